"""The `encode_prompt` of a pipeline under LLM control."""

import copy
import inspect
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llmdiff.adapter.adapter import LLMDiffAdapter
from llmdiff.adapter.families import Family, Part
from llmdiff.errors import PromptError
from llmdiff.types import TextEncoding

Parts = dict[Part, Tensor | None]


class LLMEncodePrompt:
    """Stands in for a pipeline's `encode_prompt`: same arguments, same return, the LLM's states.

    It lies in the pipeline's `__dict__` and holds all there is to know about the attachment, so a deep copy
    of the pipeline is attached on its own (its processors and adapter are copies; the LLM is shared).
    """

    def __init__(
        self,
        pipe: Any,
        llm: Any,
        adapter: LLMDiffAdapter,
        installation: Any,
        *,
        family: Family,
        scale: float,
        replaced: Any,
    ) -> None:
        self.pipe = pipe
        self.llm = llm
        self.adapter = adapter
        self.installation = installation
        self.family = family
        self.scale = scale
        self.replaced = replaced
        self.__signature__ = inspect.signature(self.base)

    @property
    def base(self) -> Any:
        """The `encode_prompt` that this one stands in for."""
        return type(self.pipe).encode_prompt.__get__(self.pipe) if self.replaced is None else self.replaced

    def __deepcopy__(self, memo: dict[int, Any]) -> "LLMEncodePrompt":
        for shared in (self.llm, self.__signature__):
            memo[id(shared)] = shared
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__.update({name: copy.deepcopy(value, memo) for name, value in self.__dict__.items()})
        return twin

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Tensor | None, ...]:
        """Return what the pipeline's own `encode_prompt` returns, with rows of [phi(c) ; c] for text states.

        Prompt embeddings of the base's width pass through to the base, and the pipeline then draws as without
        the LLM; embeddings that this method returned before are accepted again.

        Raises:
            PromptError: a prompt is blank or no text, negative prompts do not match the prompts in number, a
                second prompt for a second text encoder is given, or embeddings have a width that fits
                neither.
            AttachError: an attention processor was replaced while attached.
        """
        bound = self.__signature__.bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        embeds: Any = given.get("prompt_embeds")
        negative_embeds: Any = given.get("negative_prompt_embeds")
        width = self.adapter.phi.out_features
        if self.installation is None or (embeds is not None and embeds.shape[-1] == width):
            base: tuple[Tensor | None, ...] = self.base(*args, **kwargs)
            return base
        self._check_embeds("prompt_embeds", embeds)
        self._check_embeds("negative_prompt_embeds", negative_embeds)
        self._check_arguments(given)

        guided = bool(given.get("do_classifier_free_guidance", True))
        positive = None if embeds is not None else _texts("prompt", given.get("prompt"))
        count = len(positive) if positive is not None else len(embeds)
        negative = None
        if guided and negative_embeds is None:
            negative = _negative_texts(given.get("negative_prompt"), count)
        denoiser = self.installation.denoiser
        device = given.get("device") or self.pipe._execution_device
        self.installation.check()
        self.installation.place(torch.device(device), denoiser.dtype)

        parts: Parts = {
            "positive": embeds,
            "negative": negative_embeds,
            "positive_pooled": given.get("pooled_prompt_embeds"),
            "negative_pooled": given.get("negative_pooled_prompt_embeds"),
        }
        parts.update(self._encode(positive, negative))
        if self.scale < 1 and (positive is not None or negative is not None):
            self._mix_base(parts, given, positive, negative, count)
        if not guided:
            parts["negative"] = parts["negative_pooled"] = None
        _pad_alike(parts)
        copies = given.get("num_images_per_prompt") or 1
        return tuple(
            part
            if part is None
            else part.to(device=device, dtype=denoiser.dtype).repeat_interleave(copies, dim=0)
            for part in (parts[name] for name in self.family.encode_prompt_returns)
        )

    def _encode(self, positive: list[str] | None, negative: list[str] | None) -> Parts:
        texts = list(dict.fromkeys([*(positive or []), *(negative or [])]))
        if not texts:
            return {}
        # One pass of the LLM for all, every different text once: negative prompts mostly repeat.
        states, pooled = self.adapter.condition(encode_texts(self.adapter, self.llm, texts))
        parts: Parts = {}
        if positive is not None:
            rows = [texts.index(text) for text in positive]
            parts["positive"], parts["positive_pooled"] = (
                states[rows],
                None if pooled is None else pooled[rows],
            )
        if negative is not None:
            rows = [texts.index(text) for text in negative]
            parts["negative"], parts["negative_pooled"] = (
                states[rows],
                None if pooled is None else pooled[rows],
            )
        return parts

    def _mix_base(
        self,
        parts: Parts,
        given: dict[str, Any],
        positive: list[str] | None,
        negative: list[str] | None,
        count: int,
    ) -> None:
        """Append the base's own text states to every row that was encoded from text: [phi(c) ; c ; base]."""
        arguments = dict(given)
        unused = {name for name in given if name.endswith("prompt_embeds")} | set(self.family.second_prompts)
        arguments.update(dict.fromkeys(unused))
        arguments.update(
            prompt=positive or [""] * count,
            # None stays None: some bases then take zeros instead of an encoded "".
            negative_prompt=None if given.get("negative_prompt") is None else negative,
            num_images_per_prompt=1,
            do_classifier_free_guidance=negative is not None,
        )
        base = dict(zip(self.family.encode_prompt_returns, self.base(**arguments), strict=True))
        sides: tuple[tuple[Part, Part, list[str] | None], ...] = (
            ("positive", "positive_pooled", positive),
            ("negative", "negative_pooled", negative),
        )
        for name, pooled_name, texts in sides:
            ours, pooled = parts.get(name), parts.get(pooled_name)
            if texts is None or ours is None:
                continue
            theirs = base[name].to(ours)
            tokens = max(ours.shape[1], theirs.shape[1])
            parts[name] = torch.cat([_pad_rows(ours, tokens), _pad_rows(theirs, tokens)], dim=-1)
            if pooled is not None:
                parts[pooled_name] = torch.lerp(base[pooled_name].to(pooled), pooled, self.scale)

    def _check_embeds(self, name: str, embeds: Tensor | None) -> None:
        width, hidden_size = self.adapter.phi.out_features, self.adapter.phi.in_features
        expected = width + hidden_size + (width if self.scale < 1 else 0)
        if embeds is not None and embeds.shape[-1] != expected:
            raise PromptError(
                f"{name} has width {embeds.shape[-1]}, expected {expected} while the LLM is attached: make "
                "it with this pipeline's encode_prompt, or detach to use embeddings of the base's text "
                "encoder"
            )

    def _check_arguments(self, given: dict[str, Any]) -> None:
        for name in self.family.second_prompts:
            first = given.get(name.removesuffix("_2"))
            if given.get(name) is not None and given[name] != first:
                raise PromptError(
                    f"{name} is for a second text encoder, but one LLM reads the whole prompt: write all of "
                    f"it in {name.removesuffix('_2')}"
                )
        if given.get("clip_skip") is not None and self.scale == 1:
            warnings.warn("clip_skip has no effect: the LLM stands in for CLIP", stacklevel=2)


def encode_texts(adapter: LLMDiffAdapter, llm: Any, texts: Sequence[str]) -> TextEncoding:
    """Return the encoding that the adapter was made for: its context encoding's, else `llm.encode`'s."""
    if adapter.context is not None:
        return adapter.context.encode(llm, list(texts))
    encoding: TextEncoding = llm.encode(list(texts))
    return encoding


def _texts(name: str, prompt: Any) -> list[str]:
    texts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(texts, list | tuple) or not texts or not all(isinstance(text, str) for text in texts):
        raise PromptError(f"{name} is {prompt!r}, expected a text or a list of texts")
    for index, text in enumerate(texts):
        if not text.strip():
            where = name if len(texts) == 1 else f"{name}[{index}]"
            raise PromptError(
                f"{where} is blank ({text!r}), expected a description of the picture: write one"
            )
    return list(texts)


def _negative_texts(negative_prompt: Any, count: int) -> list[str]:
    if negative_prompt is None or isinstance(negative_prompt, str):
        return [negative_prompt or ""] * count
    texts = list(negative_prompt)
    if not all(isinstance(text, str) for text in texts):
        raise PromptError(f"negative_prompt is {negative_prompt!r}, expected a text or a list of texts")
    if len(texts) != count:
        raise PromptError(
            f"negative_prompt has {len(texts)} texts, prompt has {count}: give one for each, or a single text"
        )
    return texts


def _pad_alike(parts: Parts) -> None:
    # Zero rows are padding to the processors, so any two prompts can be brought to one length.
    positive, negative = parts["positive"], parts["negative"]
    if positive is not None and negative is not None:
        tokens = max(positive.shape[1], negative.shape[1])
        parts["positive"], parts["negative"] = (_pad_rows(positive, tokens), _pad_rows(negative, tokens))


def _pad_rows(states: Tensor, tokens: int) -> Tensor:
    """(B, T, width) => (B, tokens, width), zero rows appended."""
    return F.pad(states, (0, 0, 0, tokens - states.shape[1]))
