"""The trainer's `Conditioning` for an LLM and its adapter: trainable parts by stage, and stored readings."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from llmdiff.adapter.adapter import LLMDiffAdapter, uses_muon
from llmdiff.adapter.attach import attach, detach
from llmdiff.adapter.installation import install
from llmdiff.adapter.processors import CrossAttentionBranch
from llmdiff.errors import ConfigError
from llmdiff.language.cache import encoding_key
from llmdiff.language.encoding import ContextEncoding
from llmdiff.language.llm import DecoderLLM
from llmdiff.language.score_groups import GroupedScores, encode_groups, sum_groups
from llmdiff.training.conditioning import Conditioned, Conditioning, Stage
from llmdiff.types import BlockStates, TextEncoding

_log = logging.getLogger(__name__)
Gains = Literal["first", "learned", "frozen"]


class AdapterConditioning(Conditioning):
    """An `LLMDiffAdapter` on the blocks of an LLM.

    Args:
        gains: "first" trains the gains g (and k) and the noise in a first stage and then freezes them, so that each
            caption is encoded once; "learned" trains them in every step; "frozen" never.
        score_groups: number of groups of neighbouring blocks over which stored scores are summed; None: the number of
            blocks for "first", no stored scores for "learned".
        online: with frozen gains, encode captions in every step instead of storing encodings.
        noise: add noise in training.
    """

    def __init__(
        self,
        adapter: LLMDiffAdapter,
        llm: Any,
        *,
        gains: Gains = "first",
        score_groups: int | None = None,
        online: bool = False,
        noise: bool = True,
    ) -> None:
        self.adapter, self.llm, self.source_id = adapter, llm, llm.id
        self.gains, self.score_groups, self.online, self.noise = gains, score_groups, online, noise
        self.modules: dict[str, nn.Module] = {"adapter": adapter}

    @property
    def context(self) -> ContextEncoding:
        """Return the adapter's weighted sum over the LLM's blocks."""
        assert self.adapter.context is not None
        return self.adapter.context

    def stages(self) -> Iterator[Stage]:
        """Yield the stage "gains", if gains are trained first, and the stage "main"."""
        if self.gains == "first":
            yield self.score_stage("gains", self.score_groups or self.context.num_blocks)
            self.context.requires_grad_(False)
        if self.gains != "learned":
            yield self.encoding_stage()
        elif self.score_groups is not None:
            yield self.score_stage("main", self.score_groups)
        else:
            yield self._update_stage()

    def score_stage(self, name: Literal["gains", "main"], groups: int) -> Stage:
        """Return a stage that trains gains on stored scores: c = x_0 + sum_k ( gamma_k S_k + kappa_k V_k )."""
        reading = self._copied_context()

        def condition(scores: GroupedScores, generator: torch.Generator | None) -> Conditioned:
            states = sum_groups(self.context, scores, generator=self._noise(generator))
            return self.adapter.condition(TextEncoding(states=states, token_mask=scores.token_mask))

        return Stage(
            name=name,
            keeps="scores",
            read=lambda texts: encode_groups(reading, self.llm, texts, groups=groups),
            condition=condition,
            key=encoding_key(self.llm, reading, groups=groups),
        )

    def encoding_stage(self) -> Stage:
        """Return a stage that adds noise to the fixed encoding c of each caption."""
        reading = self._copied_context()

        def condition(encoding: TextEncoding, generator: torch.Generator | None) -> Conditioned:
            noise = self._noise(generator)
            if noise is None:
                return self.adapter.condition(encoding)
            states = self.context.add_noise(encoding.states, encoding.token_mask, noise)
            return self.adapter.condition(TextEncoding(states=states, token_mask=encoding.token_mask))

        return Stage(
            name="main",
            keeps="nothing" if self.online else "encodings",
            read=lambda texts: reading.encode(self.llm, texts),
            condition=condition,
            key=encoding_key(self.llm, reading),
        )

    def _update_stage(self) -> Stage:
        """Return a stage that computes all block updates in every step and stores none."""
        how = self.context

        def condition(updates: BlockStates, generator: torch.Generator | None) -> Conditioned:
            states = self.context.sum(updates, generator=self._noise(generator))
            return self.adapter.condition(TextEncoding(states=states, token_mask=updates.token_mask))

        return Stage(
            name="main",
            keeps="nothing",
            read=lambda texts: self.llm.block_updates(
                texts, lone=how.lone, template=how.template, max_length=how.max_length
            ),
            condition=condition,
        )

    def _copied_context(self) -> ContextEncoding:
        """Return a copy for reading captions: threads may read while FSDP has sharded the adapter's own."""
        return deepcopy(self.context).requires_grad_(False)

    def _noise(self, generator: torch.Generator | None) -> torch.Generator | None:
        return generator if self.noise else None

    def installed(self, denoiser: nn.Module) -> AbstractContextManager[Any]:
        """Return a context in which the denoiser has the adapter's two-branch layers."""
        return install(denoiser, self.adapter)

    @contextmanager
    def attached(self, pipe: Any) -> Iterator[Any]:
        """Return a context in which the pipeline draws with a copy of the adapter's current weights."""
        # A copy, because attaching may move an adapter to the pipeline's device and dtype.
        attach(pipe, self.llm, adapter_with(self.adapter, adapter_tensors(self.adapter)))
        try:
            yield pipe
        finally:
            detach(pipe)

    @contextmanager
    def reader_rests(self) -> Iterator[None]:
        """Return a context in which the LLM's weights are on its device only while it encodes sample prompts.

        Quantised weights that cannot be moved stay on the device.
        """
        llm = self.llm
        if not isinstance(llm, DecoderLLM) or llm.free_after_encoding:
            yield
            return
        device = llm.device
        try:
            llm.free_after_encoding = True
        except ConfigError as error:
            _log.info("the LLM stays on %s while the denoiser trains: %s", device, error)
            yield
            return
        try:
            yield
        finally:
            llm.free_after_encoding = False
            llm.to(device)

    def uses_muon(self, name: str) -> bool:
        """Return whether Muon optimises the parameter, as in new branches and the refiner's blocks."""
        return uses_muon(name)

    def figures(self) -> Mapping[str, float]:
        """Return the mean gates of both branches."""
        gates = torch.stack([torch.stack(branch.gates()) for branch in self.branches()]).detach().mean(0)
        return {"gate_pretrained": float(gates[0]), "gate_new": float(gates[1])}

    def branches(self) -> list[CrossAttentionBranch]:
        """Return the adapter's branches."""
        return [cast(CrossAttentionBranch, branch) for branch in self.adapter.branches.values()]


def adapter_tensors(adapter: LLMDiffAdapter) -> dict[str, Tensor]:
    """Return an adapter's parameters and buffers; `state_dict` would shard full parameters under FSDP again."""
    return dict(adapter.named_parameters()) | dict(adapter.named_buffers())


def adapter_with(adapter: LLMDiffAdapter, state: Mapping[str, Tensor]) -> LLMDiffAdapter:
    """Return an adapter of the same configuration with copies of these tensors, in eval mode."""
    make: Any = LLMDiffAdapter
    device = next(iter(state.values())).device
    twin: LLMDiffAdapter = make(**adapter.arguments).to(device)
    twin.load_state_dict({name: value.detach() for name, value in state.items()})
    twin.eval()
    return twin
