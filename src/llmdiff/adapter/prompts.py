"""The `encode_prompt` of a pipeline under LLM control."""

import copy
import inspect
import warnings
import weakref
from typing import Any

import torch
from torch import Tensor

from llmdiff.adapter.adapter import LLMDiffAdapter
from llmdiff.adapter.families import Family, Part
from llmdiff.adapter.layout import beside_base, mark_base, pad_rows, real_rows
from llmdiff.adapter.settings import Control
from llmdiff.adapter.texts import (
    Parts,
    check_second_prompts,
    encode_parts,
    negative_texts,
    plain_text,
    prompt_texts,
)
from llmdiff.errors import AttachError, PromptError

_EMBEDS = ("prompt_embeds", "negative_prompt_embeds")
_STATES: tuple[Part, ...] = ("positive", "negative")
_MASKS: tuple[tuple[Part, Part], ...] = (("positive", "positive_mask"), ("negative", "negative_mask"))


class LLMEncodePrompt:
    """Replacement of a pipeline's `encode_prompt`: same arguments, same return types, the LLM's states.

    It is stored in the pipeline's `__dict__` and holds the whole state of the attachment, so a deep copy of the
    pipeline is attached independently (its layers and adapter are copies; the LLM is shared).
    """

    def __init__(
        self,
        pipe: Any,
        llm: Any,
        adapter: LLMDiffAdapter,
        installation: Any,
        controlnet_installation: Any,
        *,
        family: Family,
        control: Control,
        replaced: Any,
        decoding: Any = None,
    ) -> None:
        self.pipe = pipe
        self.llm = llm
        self.adapter = adapter
        self.installation = installation
        self.controlnet_installation = controlnet_installation
        self.family = family
        self.control = control
        assert control.scale is not None  # `attach` resolves None to the adapter's own
        self.scale: float = control.scale
        self.reads_base = control.scale < 1 or control.keep_base_text
        self.weighted = control.weighted
        self.replaced = replaced
        self.decoding = decoding
        self.__signature__ = inspect.signature(self.base)

    @property
    def base(self) -> Any:
        """Return the `encode_prompt` that this one replaces."""
        return type(self.pipe).encode_prompt.__get__(self.pipe) if self.replaced is None else self.replaced

    def __deepcopy__(self, memo: dict[int, Any]) -> "LLMEncodePrompt":
        for shared in (self.llm, self.control, self.__signature__):
            memo[id(shared)] = shared
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__.update({name: copy.deepcopy(value, memo) for name, value in self.__dict__.items()})
        for part in (twin.installation, twin.controlnet_installation):
            if part is not None:
                part.users.append(weakref.ref(twin.pipe))
        return twin

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Tensor | None, ...]:
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
        if self.installation is None:
            return tuple(self.base(**self._as_base_reads(given)))
        self.installation.forget_reading()
        self._check_embeds(given)
        embeds: Any = given.get("prompt_embeds")
        if embeds is not None and embeds.shape[-1] == self.adapter.phi.out_features:
            parts = self._base_parts(given)
            for name in _STATES:
                states = parts.get(name)
                parts[name] = None if states is None else mark_base(states)
            return tuple(parts[name] for name in self.family.encode_prompt_returns)
        self._check_arguments(given)

        guided = bool(given.get("do_classifier_free_guidance", True)) and self.family.encodes_negative
        positive = None
        if embeds is None:
            # If the negative prompt has a call of its own, an empty one means "no negative prompt".
            positive = prompt_texts(
                "prompt",
                given.get("prompt"),
                may_be_blank=not self.family.encodes_negative,
                weighted=self.weighted,
            )
        count = len(positive) if positive is not None else len(embeds)
        negative = None
        if guided and given.get("negative_prompt_embeds") is None:
            negative = negative_texts(given.get("negative_prompt"), count)
        denoiser = self.installation.module
        device = torch.device(given.get("device") or self.pipe._execution_device)
        for part in (self.installation, self.controlnet_installation):
            if part is not None:
                part.check()
                part.place(device, denoiser.dtype)

        parts = {
            "positive": embeds,
            "negative": given.get("negative_prompt_embeds"),
            "positive_pooled": given.get("pooled_prompt_embeds"),
            "negative_pooled": given.get("negative_pooled_prompt_embeds"),
        }
        parts.update(
            encode_parts(
                self.llm,
                self.adapter,
                positive,
                negative,
                weighted=self.weighted,
                rewording=self.control.rewording,
            )
        )
        if self.reads_base and (positive is not None or negative is not None):
            self._add_base(parts, given, positive, negative, count)
        if not guided:
            parts["negative"] = parts["negative_pooled"] = None
        _pad_alike(parts)
        return self._returned(parts, device, denoiser.dtype, given.get("num_images_per_prompt") or 1)

    def check_read(self) -> None:
        """Check that the denoiser has read the text that was encoded last.

        Raises:
            AttachError: it was not read, so the picture does not depend on the LLM.
        """
        if self.installation is not None and not self.installation.read:
            name = type(self.pipe).__name__
            raise AttachError(
                f"{name} has drawn a picture without asking its {self.family.denoiser} about the prompt, so the "
                f"LLM has no part in it: detach, or use one of {', '.join(self.family.pipelines)} as it is"
            )

    def _arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the call's arguments by name, without those that the pipeline ignores."""
        bound = self.__signature__.bind(*args, **kwargs)
        bound.apply_defaults()
        kinds = {name: row.kind for name, row in self.__signature__.parameters.items()}
        given = {
            name: value
            for name, value in bound.arguments.items()
            if kinds[name] is not inspect.Parameter.VAR_KEYWORD
        }
        width = self.adapter.phi.out_features
        for name in _EMBEDS:
            embeds = given.get(name)
            if embeds is not None and embeds.shape[-1] == width + 1:
                given[name] = embeds[..., :width]
        return given

    def _as_base_reads(self, given: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments as the base's text encoder reads them."""
        prompts = {"prompt", "negative_prompt", *self.family.second_prompts} & set(given)
        return {
            **given,
            **{name: plain_text(given[name], weighted=self.weighted) for name in prompts},
        }

    def _base_parts(self, given: dict[str, Any]) -> Parts:
        result = self.base(**self._as_base_reads(given))
        return dict(zip(self.family.encode_prompt_returns, result, strict=True))

    def _returned(
        self, parts: Parts, device: torch.device, dtype: torch.dtype, copies: int
    ) -> tuple[Tensor | None, ...]:
        width, hidden_size = self.adapter.phi.out_features, self.adapter.phi.in_features
        for name, mask_name in _MASKS:
            states = parts.get(name)
            if states is not None:
                # Pipelines with masks pass these on; the layers themselves recognise padding by zero rows.
                parts[mask_name] = real_rows(states[..., width : width + hidden_size]).long()
        parts = {
            name: None
            if part is None
            else part.to(device, dtype if part.is_floating_point() else part.dtype).repeat_interleave(
                copies, dim=0
            )
            for name, part in parts.items()
        }
        positive = parts["positive"]
        if positive is not None:
            # Text tokens have no position in the image: Flux's position ids for them are all zero.
            parts["text_ids"] = positive.new_zeros(positive.shape[1], 3)
        return tuple(parts.get(name) for name in self.family.encode_prompt_returns)

    def _add_base(
        self,
        parts: Parts,
        given: dict[str, Any],
        positive: list[str] | None,
        negative: list[str] | None,
        count: int,
    ) -> None:
        """Append the base's own text states to every row that was encoded from text: [phi(c) ; c ; base]."""
        arguments = dict(given)
        unused = {name for name in given if name.endswith(("prompt_embeds", "prompt_attention_mask"))}
        arguments.update(dict.fromkeys(unused | (set(self.family.second_prompts) & set(given))))
        arguments.update(prompt=positive or [""] * count, num_images_per_prompt=1)
        if self.family.encodes_negative:
            arguments.update(
                # Keep None: some pipelines then use zeros instead of an encoded "".
                negative_prompt=None if given.get("negative_prompt") is None else negative,
                do_classifier_free_guidance=negative is not None,
            )
        base = self._base_parts(arguments)
        sides: tuple[tuple[Part, Part, Part, list[str] | None], ...] = (
            ("positive", "positive_pooled", "positive_mask", positive),
            ("negative", "negative_pooled", "negative_mask", negative),
        )
        for name, pooled_name, mask_name, texts in sides:
            ours, theirs = parts.get(name), base.get(name)
            if texts is None or ours is None or theirs is None:
                continue
            parts[name] = beside_base(ours, theirs.to(ours), base.get(mask_name))
            pooled, base_pooled = parts.get(pooled_name), base.get(pooled_name)
            if pooled is not None and base_pooled is not None:
                parts[pooled_name] = torch.lerp(base_pooled.to(pooled), pooled, self.scale)

    def _check_embeds(self, given: dict[str, Any]) -> None:
        width, hidden_size = self.adapter.phi.out_features, self.adapter.phi.in_features
        ours = width + hidden_size + (width + 1 if self.reads_base else 0)
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
        check_second_prompts(self.family, given)
        if given.get("clip_skip") is not None and not self.reads_base:
            warnings.warn("clip_skip has no effect: the LLM stands in for CLIP", stacklevel=2)


def _pad_alike(parts: Parts) -> None:
    # The attention layers treat zero rows as padding, so prompts can be padded to one length.
    positive, negative = parts["positive"], parts["negative"]
    if positive is not None and negative is not None:
        tokens = max(positive.shape[1], negative.shape[1])
        parts["positive"], parts["negative"] = (pad_rows(positive, tokens), pad_rows(negative, tokens))
