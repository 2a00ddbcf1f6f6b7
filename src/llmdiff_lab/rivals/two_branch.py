"""The library's adapter as a `Conditioning` on states of any source, with optional ablations."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import nn

from llmdiff.adapter import families
from llmdiff.adapter.adapter import LLMDiffAdapter
from llmdiff.adapter.attach import attach, detach
from llmdiff.adapter.installation import install
from llmdiff.errors import ConfigError
from llmdiff.training import adapter_conditioning
from llmdiff.training.conditioning import Conditioned, Stage
from llmdiff.types import TextEncoding
from llmdiff_lab.rivals.learned_source import LearnedSource
from llmdiff_lab.rivals.lora import LLM_LR_SHARE, RemovableLora, lora_in

Branches = Literal["both", "pretrained", "new"]


class AdapterConditioning(adapter_conditioning.AdapterConditioning):
    """An `LLMDiffAdapter` behind a source of states.

    The source is a `DecoderLLM` if the adapter has a context encoding, a `LearnedSource` that is trained as well, or
    any frozen object with `encode`.

    Args:
        learn_gains: train the gains g (and k).
        noise: add noise in training; otherwise eps is 0.
        branches: "pretrained" removes the new branch (a2 = 0), "new" removes the pretrained one (a1 = 0).
        denoiser_lora, llm_lora: LoRA layers trained inside the denoiser or the LLM, which the paper keeps frozen.
            With `llm_lora` the LLM runs with gradients in every step after the gains are trained; the constant prefix
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
                "llm_lora needs an adapter with a context encoding; states that are read once cannot be trained"
            )
        super().__init__(adapter, source, gains="first" if learn_gains else "frozen", noise=noise)
        self.source = source
        if isinstance(source, LearnedSource):
            self.modules["source"] = source
        self.denoiser_lora, self.llm_lora = denoiser_lora, llm_lora
        for name, lora in (("denoiser_lora", denoiser_lora), ("llm_lora", llm_lora)):
            if lora is not None:
                self.modules[name] = lora
        if adapter.context is not None:
            if not learn_gains:
                adapter.context.requires_grad_(False)
            if not noise:
                adapter.context.h_raw.requires_grad_(False).zero_()
        self._remove_branch(branches)

    @torch.no_grad()
    def _remove_branch(self, branches: Branches) -> None:
        for branch in self.branches():
            if branches == "pretrained":
                # Freeze the new branch, whose output is multiplied by zero.
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
            for stage in super().stages():
                trained = self.llm_lora is not None and stage.name == "main"
                # Gains depend on the run's seed, so other runs cannot use these readings.
                yield (
                    self._lora_stage()
                    if trained
                    else replace(stage, key=stage.key if self.gains == "frozen" else None)
                )
            return
        source, learns = self.source, isinstance(self.source, LearnedSource)
        if learns:

            def condition(raw: TextEncoding, generator: torch.Generator | None) -> Conditioned:
                return self.adapter.condition(source.combine(raw))

            if source.learns_in_every_step:
                yield Stage(name="main", keeps="nothing", read=source.read, condition=condition)
                return
            yield Stage(name="gains", keeps="encodings", read=source.read, condition=condition)
            source.requires_grad_(False)
        yield Stage(
            name="main",
            keeps="encodings",
            read=source.encode,
            condition=lambda raw, _: self.adapter.condition(raw),
            key=None if learns else "fixed",
        )

    def _lora_stage(self) -> Stage:
        def condition(texts: list[str], generator: torch.Generator | None) -> Conditioned:
            with self._llm_extended():
                encoding: TextEncoding = self.context.encode(
                    self.source,
                    texts,
                    generator=generator if self.noise else None,
                    gradients=torch.is_grad_enabled(),
                )
                return self.adapter.condition(encoding)

        return Stage(name="main", keeps="nothing", read=list, condition=condition)

    @contextmanager
    def installed(self, denoiser: nn.Module) -> Iterator[None]:
        """Return a context in which the denoiser has the adapter's two-branch layers and its LoRA, if any."""
        with lora_in(self.denoiser_lora, denoiser), install(denoiser, self.adapter):
            yield

    @contextmanager
    def attached(self, pipe: Any, scale: float = 1.0) -> Iterator[Any]:
        """Return a context in which the pipeline draws with this adapter and source; `scale` as in `attach`."""
        self.train(False)
        with lora_in(self.denoiser_lora, families.denoiser_of(pipe)), self._llm_extended():
            attach(pipe, self.source, self.adapter, scale=scale)
            try:
                yield pipe
            finally:
                detach(pipe)

    def lr_share(self, name: str) -> float:
        """Return the factor of the learning rate: 1/20 for LoRA in the LLM, as in LaVi-Bridge."""
        return LLM_LR_SHARE if name.startswith("llm_lora.") else 1.0

    def _llm_extended(self) -> AbstractContextManager[Any]:
        """Return a context in which the LLM has its LoRA layers, except for the constant prefix."""
        if self.llm_lora is None or self.adapter.context is None:
            return nullcontext()
        llm = self.source
        llm.prefix_states(llm.tokenize("", template=self.adapter.context.template).prefix_ids)
        return self.llm_lora.applied(llm.text_model)
