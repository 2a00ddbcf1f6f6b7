"""The library's adapter as a `Conditioning`, on states of any source, with single parts removed."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from llmdiff.adapter import families
from llmdiff.adapter.adapter import LLMDiffAdapter, uses_muon
from llmdiff.adapter.attach import attach, detach
from llmdiff.adapter.installation import install
from llmdiff.adapter.processors import CrossAttentionBranch
from llmdiff.errors import ConfigError
from llmdiff.language.score_groups import GroupedScores, encode_groups, sum_groups
from llmdiff.types import TextEncoding
from llmdiff_lab.rivals.conditioning import Conditioning, Stage
from llmdiff_lab.rivals.learned_source import LearnedSource
from llmdiff_lab.rivals.lora import RemovableLora

Branches = Literal["both", "pretrained", "new"]


class AdapterConditioning(Conditioning):
    """An `LLMDiffAdapter` behind a source of states.

    The source is a `DecoderLLM` if the adapter has a context encoding, a `LearnedSource` that is trained as well, or
    any frozen object with `encode`.

    Args:
        learn_gains: whether the gains g (and k) are trained.
        noise: whether noise is added in training; without, eps is 0.
        branches: "pretrained" removes the new branch (a2 = 0), "new" removes the pretrained one (a1 = 0).
        denoiser_lora, llm_lora: LoRA layers trained inside the denoiser or the LLM, which the paper keeps frozen.
            With `llm_lora` the LLM runs with gradients in every step after the gains are learned; the constant start
            of the text (BOS, the template's beginning) is read without LoRA.

    Raises:
        ConfigError: `llm_lora` is given without a context encoding.
    """

    def __init__(
        self,
        adapter: LLMDiffAdapter,
        source: Any,
        *,
        learn_gains: bool = True,
        noise: bool = True,
        branches: Branches = "both",
        denoiser_lora: RemovableLora | None = None,
        llm_lora: RemovableLora | None = None,
    ) -> None:
        if llm_lora is not None and adapter.context is None:
            raise ConfigError(
                "llm_lora needs an adapter with a context encoding; states that are read once do not learn"
            )
        self.adapter = adapter
        self.source = source
        self.source_id = source.id
        self.learn_gains = learn_gains
        self.noise = noise
        self.modules: dict[str, nn.Module] = {"adapter": adapter}
        if isinstance(source, LearnedSource):
            self.modules["source"] = source
        self.denoiser_lora, self.llm_lora = denoiser_lora, llm_lora
        for name, lora in (("denoiser_lora", denoiser_lora), ("llm_lora", llm_lora)):
            if lora is not None:
                self.modules[name] = lora
        if adapter.context is not None and not noise:
            adapter.context.h_raw.requires_grad_(False).zero_()
        self._remove_branch(branches)

    @torch.no_grad()
    def _remove_branch(self, branches: Branches) -> None:
        for branch in self._branches():
            if branches == "pretrained":
                # The new branch is not trained, and its output is multiplied by zero.
                branch.requires_grad_(False)
                branch.a2.zero_()
                branch.a1.requires_grad_(True)
                branch.b1.requires_grad_(True)
            elif branches == "new":
                branch.a1.zero_()
                branch.a1.requires_grad_(False)
                branch.b1.requires_grad_(False)
        if branches == "new":
            self.adapter.phi.requires_grad_(False)

    def stages(self) -> Iterator[Stage]:
        """Yield "gains" if the source or the context encoding has gains, then "main"."""
        if self.adapter.context is not None:
            yield from self._context_stages()
            return
        if isinstance(self.source, LearnedSource):
            source = self.source
            yield Stage(
                name="gains",
                keeps="encodings",
                read=source.read,
                condition=lambda raw, _: self._condition(source.combine(raw)),
            )
            source.requires_grad_(False)
        yield Stage(
            name="main",
            keeps="encodings",
            read=self.source.encode,
            condition=lambda raw, _: self._condition(raw),
            fixed=not isinstance(self.source, LearnedSource),
        )

    def _context_stages(self) -> Iterator[Stage]:
        context, llm = self.adapter.context, self.source
        assert context is not None

        def with_gains(raw: GroupedScores, generator: torch.Generator | None) -> Tensor:
            states = sum_groups(context, raw, generator=generator if self.noise else None)
            return self._condition(TextEncoding(states=states, token_mask=raw.token_mask))

        def with_noise(raw: TextEncoding, generator: torch.Generator | None) -> Tensor:
            if not self.noise or generator is None:
                return self._condition(raw)
            states = context.noised(raw.states, raw.token_mask, generator)
            return self._condition(TextEncoding(states=states, token_mask=raw.token_mask))

        def with_reader(raw: list[str], generator: torch.Generator | None) -> Tensor:
            with self._llm_extended():
                noise, learns = generator if self.noise else None, torch.is_grad_enabled()
                return self._condition(context.encode(llm, raw, generator=noise, gradients=learns))

        if self.learn_gains:
            yield Stage(
                name="gains",
                keeps="scores",
                read=lambda part: encode_groups(context, llm, part, groups=context.num_blocks),
                condition=with_gains,
            )
        context.requires_grad_(False)
        if self.llm_lora is not None:
            yield Stage(name="main", keeps="texts", read=list, condition=with_reader)
            return
        yield Stage(
            name="main",
            keeps="encodings",
            read=lambda part: context.encode(llm, part),
            condition=with_noise,
            fixed=not self.learn_gains,
        )

    def _condition(self, encoding: TextEncoding) -> Tensor:
        return self.adapter.condition(encoding)[0]

    @contextmanager
    def installed(self, denoiser: nn.Module) -> Iterator[None]:
        """Return a context in which the denoiser has the adapter's two-branch layers and its LoRA, if any."""
        with self._extended(denoiser), install(denoiser, self.adapter):
            yield

    @contextmanager
    def attached(self, pipe: Any, scale: float = 1.0) -> Iterator[Any]:
        """Return a context in which the pipeline draws with this adapter and source; `scale` as in `attach`."""
        self.train(False)
        with self._extended(families.denoiser_of(pipe)), self._llm_extended():
            attach(pipe, self.source, self.adapter, scale=scale)
            try:
                yield pipe
            finally:
                detach(pipe)

    def _extended(self, denoiser: nn.Module) -> AbstractContextManager[Any]:
        return nullcontext() if self.denoiser_lora is None else self.denoiser_lora.applied(denoiser)

    def _llm_extended(self) -> AbstractContextManager[Any]:
        """Return a context in which the LLM has its LoRA layers, except for the constant start."""
        if self.llm_lora is None or self.adapter.context is None:
            return nullcontext()
        llm = self.source
        llm.prefix_states(llm.tokenize("", template=self.adapter.context.template).prefix_ids)
        return self.llm_lora.applied(llm.text_model)

    def uses_muon(self, name: str) -> bool:
        """Return whether Muon optimises the parameter: new branches and the refiner's blocks."""
        return uses_muon(name)

    def figures(self) -> Mapping[str, float]:
        """Return the mean gates of both branches."""
        gates = torch.stack([torch.stack(branch.gates()) for branch in self._branches()]).detach().mean(0)
        return {"gate_pretrained": float(gates[0]), "gate_new": float(gates[1])}

    def _branches(self) -> list[CrossAttentionBranch]:
        return [cast(CrossAttentionBranch, branch) for branch in self.adapter.branches.values()]
