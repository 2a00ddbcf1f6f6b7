"""The `encode_prompt` of a pipeline under LLM control."""

import inspect
import warnings
import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from llmdiff.adapter.adapter import LLMDiffAdapter
from llmdiff.adapter.contract import prompt_contract
from llmdiff.adapter.families import denoiser_of, family_of, is_compiled
from llmdiff.adapter.layout import CopiedNotPickled, TextLayout, beside_base, mark_base, real_rows
from llmdiff.adapter.prompt_parts import (
    Parts,
    as_list,
    learned_tokens,
    no_second_text,
    pad_alike,
)
from llmdiff.adapter.settings import Control
from llmdiff.adapter.texts import (
    check_second_prompts,
    encode_parts,
    negative_texts,
    plain_text,
    prompt_texts,
)
from llmdiff.errors import AttachError, PromptError
from llmdiff.language.rows import padded_batch

_EMBEDS = ("prompt_embeds", "negative_prompt_embeds")
_SIDES = ("positive", "negative")


class LLMEncodePrompt(CopiedNotPickled):
    """Replacement of a pipeline's `encode_prompt`: same arguments, same return types, the LLM's states.

    It is stored in the pipeline's `__dict__` and holds the whole state of the attachment, so a deep copy of the
    pipeline is attached independently (its layers and adapter are copies; the LLM is shared).
    """

    def __init__(
        self,
        pipe: Any,
        llm: Any,
        adapter: LLMDiffAdapter,
        parts: list[Any],
        control: Control,
        *,
        decoding: Any,
    ) -> None:
        self.pipe = pipe
        self.llm = llm
        self.adapter = adapter
        # The installations on the modules that read the text, the denoiser's first; none at scale 0.
        self.parts = parts
        self.family = family_of(pipe)
        self.contract = prompt_contract(pipe.__class__)
        phi = adapter.phi
        self.layout = TextLayout(width=phi.out_features, hidden_size=phi.in_features, groups=adapter.groups)
        self.control = control
        self.reads_base = control.reads_base
        # An `encode_prompt` of the instance's own, and the handle of the hook on the VAE; `detach` needs both.
        self.replaced = vars(pipe).get("encode_prompt")
        self.decoding = decoding
        self.__signature__ = inspect.signature(self.base)

    @property
    def base(self) -> Any:
        """Return the `encode_prompt` that this one replaces."""
        return type(self.pipe).encode_prompt.__get__(self.pipe) if self.replaced is None else self.replaced

    def __deepcopy__(self, memo: dict[int, Any]) -> "LLMEncodePrompt":
        for shared in (self.llm, self.control, self.__signature__, self.contract, self.family):
            memo[id(shared)] = shared
        twin = super().__deepcopy__(memo)
        for part in twin.parts:
            part.users.append(weakref.ref(twin.pipe))
        return twin

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Return the outputs of the pipeline's `encode_prompt`, with rows of [phi(c) ; c] as text states.

        Prompt embeddings of the base's width are passed to the base, and the pipeline then draws without the
        LLM; embeddings returned by this method are accepted.

        Raises:
            PromptError: a prompt is blank or not a string, a weight is out of range, the numbers of prompts and
                negative prompts differ, a prompt for a second text encoder is given, or embeddings have a width
                that fits neither.
            AttachError: an attached layer was replaced while attached.
        """
        given = self._arguments(args, kwargs)
        if not self.parts:
            return tuple(self.base(**self._as_base_reads(given)))
        denoiser = self.parts[0].module
        if denoiser_of(self.pipe) is not denoiser:
            raise AttachError(
                f"the {type(denoiser).__name__} of this {type(self.pipe).__name__} was replaced while the "
                "LLM was attached: detach, then attach again"
            )
        for part in self.parts:
            part.forget_reading()
        embeds: Any = given.get("prompt_embeds")
        if self.family.ragged and embeds is not None:
            return embeds, given.get("negative_prompt_embeds") or []
        self._check_embeds(given)
        if embeds is not None and embeds.shape[-1] == self.layout.width:
            return self._without_llm(given)
        self._check_arguments(given)

        guided = bool(given.get("do_classifier_free_guidance", True)) and self.contract.encodes_negative
        texts, count = self._texts(given, guided=guided)
        device = torch.device(given.get("device") or self.pipe._execution_device)
        for part in self.parts:
            part.prepare(device, self.parts[0].module.dtype)
        parts = {
            "positive": embeds,
            "negative": given.get("negative_prompt_embeds"),
            "positive_pooled": given.get("pooled_prompt_embeds"),
            "negative_pooled": given.get("negative_pooled_prompt_embeds"),
            **encode_parts(self.llm, self.adapter, texts, self.control),
        }
        if self.reads_base and texts:
            self._add_base(parts, given, texts, count)
        if not guided:
            parts["negative"] = parts["negative_pooled"] = None
        # A ragged family reads each text as long as it is.
        pad_alike(parts, in_steps=is_compiled(self.pipe) and not self.family.ragged)
        copies = given.get(self.contract.copies) if self.contract.copies else None
        return self._returned(parts, device, copies or 1)

    def check_read(self) -> None:
        """Raise an AttachError unless the denoiser has read the text that was encoded last."""
        if self.parts and not any(part.read for part in self.parts if part.draws):
            name = type(self.pipe).__name__
            raise AttachError(
                f"{name} has drawn a picture without asking its {type(self.parts[0].module).__name__} about the "
                f"prompt, so the LLM has no part in it: detach, or use a pipeline of {self.family.title} that asks it"
            )

    def _arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the call's arguments by name, without those that the pipeline ignores."""
        bound = self.__signature__.bind(*args, **kwargs)
        bound.apply_defaults()
        given = dict(bound.arguments)
        for name, row in self.__signature__.parameters.items():
            if row.kind is row.VAR_KEYWORD:
                del given[name]
        width = self.layout.width
        for name in _EMBEDS:
            embeds = given.get(name)
            if isinstance(embeds, Tensor) and embeds.shape[-1] == width + 1:
                given[name] = embeds[..., :width]
        return given

    def _texts(self, given: dict[str, Any], *, guided: bool) -> tuple[dict[str, list[str]], int]:
        """Return the texts to encode, "positive" and "negative", and the number of prompts."""
        prompt, embeds = given.get("prompt"), given.get("prompt_embeds")
        # If the negative prompt has a call of its own, an empty one means "no negative prompt".
        alone = not self.contract.encodes_negative
        if prompt is None and alone:
            prompt = [""] * given.get("batch_size", 1)  # HunyuanImage's
        texts = {}
        if embeds is None:
            weighted = self.control.weighted
            texts["positive"] = prompt_texts("prompt", prompt, may_be_blank=alone, weighted=weighted)
        count = len(texts["positive"] if embeds is None else embeds)
        if guided and given.get("negative_prompt_embeds") is None:
            texts["negative"] = negative_texts(given.get("negative_prompt"), count)
        return texts, count

    def _as_base_reads(self, given: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments as the base's text encoder reads them."""
        prompts = {"prompt", "negative_prompt", *self.contract.second_prompts} & set(given)
        plain = {name: plain_text(given[name], weighted=self.control.weighted) for name in prompts}
        return {**given, **plain}

    def _base_parts(self, given: dict[str, Any]) -> Parts:
        result = self.base(**self._as_base_reads(given))
        return dict(zip(self.contract.returns, result, strict=True))

    def _without_llm(self, given: dict[str, Any]) -> tuple[Any, ...]:
        """Return what the base encodes, marked as its own, and warn about it."""
        warnings.warn(
            "prompt_embeds is of the base's text encoder, so the base draws this picture without the LLM: pass the "
            "prompt as text, or what this pipeline's encode_prompt returns",
            stacklevel=3,
        )
        parts = self._base_parts(given)
        for name in _SIDES:
            if parts.get(name) is not None:
                parts[name] = mark_base(parts[name])
        return tuple(parts[name] for name in self.contract.returns)

    def _returned(self, parts: Parts, device: torch.device, copies: int) -> tuple[Any, ...]:
        denoiser = self.parts[0].module
        start, end = self.layout.ends
        for name in _SIDES:
            states = parts.get(name)
            if states is not None:
                # Pipelines with masks pass these on; the layers themselves recognise padding by zero rows.
                parts[f"{name}_mask"] = real_rows(states[..., start:end]).long()
        wants_second = "second" in self.contract.returns and parts.get("second") is None
        if wants_second and parts["positive"] is not None:
            parts["second"], parts["second_mask"] = no_second_text(parts["positive"], denoiser)
        for name, part in parts.items():
            if part is not None:
                part = part.to(device, denoiser.dtype if part.is_floating_point() else part.dtype)
                parts[name] = part.repeat_interleave(copies, dim=0)
        prepare = getattr(self.pipe, "_prepare_text_ids", None)
        for name in _SIDES:
            states, ids_name = parts.get(name), f"{name}_ids"
            if states is not None and ids_name in self.contract.returns:
                # Text tokens have no position in the image: Flux's position ids for them are all zero. Where they
                # are counted (FLUX.2), the pipeline counts them.
                ids = states.new_zeros(states.shape[1], 3) if prepare is None else prepare(states)
                parts[ids_name] = ids.to(device)
        if self.family.ragged:
            return tuple(as_list(parts.get(name), start, end) for name in self.contract.returns)
        return tuple(parts.get(name) for name in self.contract.returns)

    def _add_base(
        self, parts: Parts, given: dict[str, Any], texts: Mapping[str, list[str]], count: int
    ) -> None:
        """Append the base's own text states to every row that was encoded from text: [phi(c) ; c ; base]."""
        arguments = dict(given)
        unused = {name for name in given if "prompt_embeds" in name or name.endswith("prompt_attention_mask")}
        arguments.update(dict.fromkeys(unused | (set(self.contract.second_prompts) & set(given))))
        arguments["prompt"] = texts.get("positive", [""] * count)
        if self.contract.copies is not None:
            arguments[self.contract.copies] = 1
        if self.contract.encodes_negative:
            arguments.update(
                # Keep None: some pipelines then use zeros instead of an encoded "".
                negative_prompt=None if given.get("negative_prompt") is None else texts.get("negative"),
                do_classifier_free_guidance="negative" in texts,
            )
        base = self._base_parts(arguments)
        scale: Any = self.control.scale
        for name in texts:
            ours, theirs, pooled_name = parts.get(name), base.get(name), f"{name}_pooled"
            if ours is None or theirs is None:
                continue
            mask = None if self.family.base_reads_padding else base.get(f"{name}_mask")
            if self.family.ragged:
                theirs, mask = padded_batch(theirs)
            parts[name] = beside_base(ours, theirs.to(ours), mask)
            pooled, base_pooled = parts.get(pooled_name), base.get(pooled_name)
            if pooled is not None and base_pooled is not None:
                parts[pooled_name] = torch.lerp(base_pooled.to(pooled), pooled, scale)
        parts.update({name: base[name] for name in ("second", "second_mask") if name in base})

    def _check_embeds(self, given: dict[str, Any]) -> None:
        width = self.layout.width
        ours = self.layout.ends[1] + (width + 1 if self.reads_base else 0)
        first = given.get("prompt_embeds")
        base = first is not None and first.shape[-1] == width
        for name in _EMBEDS:
            embeds = given.get(name)
            expected = width if base else ours
            if embeds is not None and embeds.shape[-1] != expected:
                raise PromptError(
                    f"{name} has width {embeds.shape[-1]}, expected {expected} while the LLM is attached: make "
                    "it with this pipeline's encode_prompt, or detach to use embeddings of the base's text "
                    "encoder"
                )

    def _check_arguments(self, given: dict[str, Any]) -> None:
        check_second_prompts(self.contract.second_prompts, given)
        texts = [given.get("prompt"), given.get("negative_prompt")]
        learned = [token for token in learned_tokens(self.pipe) if any(token in str(text) for text in texts)]
        if learned and not self.reads_base:
            warnings.warn(
                f"{', '.join(learned)} of a textual inversion has no effect: the LLM reads it as plain text; attach "
                "with keep_base_text=True, which lets the base's text encoder read it too",
                stacklevel=2,
            )
        if given.get("clip_skip") is not None and not self.reads_base:
            warnings.warn("clip_skip has no effect: the LLM stands in for CLIP", stacklevel=2)
