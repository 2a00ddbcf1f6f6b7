"""Split the tensor of the attached `encode_prompt` for denoisers that process text before their attention layers do.

phi(c) replaces the text states, and c is passed to the attention layers separately: in an argument of the denoiser
that reaches every layer where there is one, else through `SplitText.handed`, which is set while the denoiser runs.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from llmdiff.adapter.families import Family
from llmdiff.adapter.joint_text import JointText
from llmdiff.adapter.layout import NO_TEXT, TextLayout, TextParts, mean_of_groups, pack_into_mask, real_rows
from llmdiff.adapter.masks import as_bias, may_keep, seen_by
from llmdiff.errors import AttachError

KEY = "llm_text"
# Of one picture: prompt and negative prompt, each in a call of its own or both in one.
_GUIDED_TEXTS = 2
_MASKS = ("encoder_hidden_states_mask", "encoder_attention_mask")


# What is made of a text: the layers' inputs, and the arguments of a call for the base's text where predictions mix.
_Made = tuple[JointText, dict[str, Any] | None]


class SplitText:
    """Forward hooks of a denoiser or ControlNet that split the tensor of the attached `encode_prompt`.

    Fields:
        handed: what the layers read while the module runs: `JointText`, a packed tensor, "base" for text of the base
            alone, None between calls.
        carrier: the module's argument that carries c to the layers: the family's, None where the module has none.
        source: the tensor that came from `encode_prompt`; layers cache what they read by it. None: not to be cached.
        weights: those of the modules that read the text alone.

    Raises:
        AttachError: the module is called without text, or in a way that would lose c.
    """

    def __init__(
        self,
        family: Family,
        module: nn.Module,
        *,
        layout: TextLayout,
        scale: float,
        keep_base_text: bool,
        text_is_optional: bool = False,
    ) -> None:
        self.family = family
        # Qwen-Image's ControlNet names its argument unlike the denoiser, and reads nothing of it.
        takes = inspect.signature(type(module).forward).parameters
        self.carrier = family.carrier if family.carrier in takes else None
        self.layout = layout
        self.scale = scale
        self.keep_base_text = keep_base_text
        self.text_is_optional = text_is_optional
        self.handed: Any = None
        self.source: Tensor | None = None
        self.weights: tuple[Tensor, ...] = ()
        # Arguments of the call for the base's text, and the `source` of that call.
        self._base_call: tuple[tuple[Any, ...], dict[str, Any], Tensor | None] | None = None
        self._made_before: list[tuple[tuple[tuple[int, int], ...], list[Tensor], _Made]] = []

    def __getstate__(self) -> dict[str, Any]:
        # A copy reads other tensors.
        return {**self.__dict__, "_made_before": []}

    def before(
        self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the changed arguments of the module."""
        family = self.family
        if len(args) > 1:
            names = list(inspect.signature(type(module).forward).parameters)[1:]
            args, kwargs = args[:1], {**dict(zip(names[1:], args[1:], strict=False)), **kwargs}
        states = kwargs.get(family.text_argument)
        self.handed, self.source, self._base_call = "base", None, None
        if states is None:
            if self.layout.strict and not self.text_is_optional:
                raise AttachError(NO_TEXT)
            return args, kwargs
        checkpointed = torch.is_grad_enabled() and getattr(module, "gradient_checkpointing", False)
        if checkpointed and self.carrier is None:
            raise AttachError(
                f"gradient checkpointing is on, which computes layers again where {family.title} has no argument to "
                "give them the LLM's text: call disable_gradient_checkpointing() of the denoiser"
            )
        parts = self._parts(states)
        if parts is None:
            base = [self.layout.base(text) for text in states] if family.ragged else self.layout.base(states)
            return args, {**kwargs, family.text_argument: base}
        keeps = self._keeps(module)
        if family.text_channel == "projected":
            self.source = states if keeps else None
            return args, {**kwargs, **self._projected(parts)}
        return args, {**kwargs, **self._joint(module, states, parts, args, kwargs, keeps=keeps)}

    def _projected(self, parts: TextParts) -> dict[str, Any]:
        """Return the arguments for rows that the denoiser projects; c is handed to the layers as a mask."""
        carried = pack_into_mask(parts)
        if self.carrier is None:
            self.handed = carried
            return {self.family.text_argument: _rows(parts)}
        # The given mask is redundant: padding rows of c are zero.
        return {self.family.text_argument: _rows(parts), self.carrier: carried}

    def _joint(
        self,
        module: Any,
        states: Any,
        parts: TextParts,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        keeps: bool,
    ) -> dict[str, Any]:
        """Return the arguments for joint layers; c is handed to them as a `JointText`."""
        mixed = None
        if self.family.mixing == "prediction" and parts.base is not None:
            if getattr(module, "is_cache_enabled", False):
                raise AttachError(
                    f"a cache is enabled, and at scale {self.scale:g} the {type(module).__name__} runs twice a step, "
                    "for two texts: call its disable_cache(), or attach with scale 1"
                )
            mixed, parts = parts, replace(parts, base=None, base_real=None)

        def make() -> _Made:
            text = self._joint_text(module, parts)
            return text, None if mixed is None else self._text_of_base(mixed, kwargs)

        text, theirs = self._made_once(states, make)
        # For a list of texts, a tensor that is made once from all of them.
        self.source = (text.llm_states if self.family.ragged else states) if keeps else None
        if theirs is not None:
            base = theirs[self.family.text_argument]
            source = base[0] if self.family.ragged else base
            self._base_call = (args, {**kwargs, **theirs}, source if keeps else None)
        changed = {self.family.text_argument: _rows(parts)}
        changed |= {name: real_rows(parts.llm_states).long() for name in _MASKS if name in kwargs}
        if "attention_mask" in kwargs:
            changed["attention_mask"] = None
        if self.carrier is None:
            self.handed = text
        else:
            changed[self.carrier] = {**(kwargs.get(self.carrier) or {}), KEY: text}
        ids = kwargs.get("txt_ids")
        if ids is not None and parts.base is not None:
            changed["txt_ids"] = torch.cat([ids, ids], dim=-2)
        return changed

    def after(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Return the module's output, mixed with that for the base's text if the family mixes predictions."""
        call, self._base_call = self._base_call, None
        self.source = None
        if call is not None and output is not None:
            args, kwargs, self.source = call
            self.handed = "base"
            output = _mixed(module.forward(*args, **kwargs), output, self.scale)
        self.handed = self.source = None
        return output

    def _parts(self, states: Any) -> TextParts | None:
        """Return the parts; with routing, the denoiser reads the mean of all groups' phi(c) as its one text."""
        groups, (start, width) = self.layout.groups, self.layout.ends
        if not self.family.ragged:
            found = self.layout.split(states)
            return found and replace(found, projected=mean_of_groups(found.projected, groups))
        if any(self.layout.split(text) is None for text in states):
            return None
        own = [self._own_rows(text[:, :width], start) for text in states]
        padded, lengths = pad_sequence(own, batch_first=True), tuple(len(text) for text in own)
        projected = mean_of_groups(padded[..., :start], groups)
        parts = TextParts(projected, padded[..., start:], lengths=lengths)
        if states[0].shape[-1] == width:
            return parts
        base = pad_sequence([text[text[:, -1] != 0, width:] for text in states], batch_first=True)
        return replace(parts, base=base[..., :-1], base_real=base[..., -1] != 0)

    def _own_rows(self, text: Tensor, start: int) -> Tensor:
        """Return a ragged text without padding."""
        real = real_rows(text[:, start:])
        if torch.compiler.is_compiling() and not torch.is_grad_enabled() and self.scale == 1:
            # A number of rows that depends on values would end the graph, and `encode_prompt` returns no padding.
            torch._assert_async(
                real.all(), "a text of a compiled denoiser has padding: encode each by itself"
            )
            return text
        return text[real]

    def _text_of_base(self, parts: TextParts, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments with the base's text, for a call of its own."""
        base, real = parts.base, parts.base_real
        assert base is not None
        assert real is not None
        if self.family.ragged:
            return {self.family.text_argument: [text[seen] for text, seen in zip(base, real, strict=True)]}
        joint_mask = kwargs.get("attention_mask")
        # Where one mask is for text and image (Chroma), the base reads the rows of its padding too: all rows but the
        # zeros that make its text as long as the LLM's.
        read = real if joint_mask is None else real | real_rows(base)
        used = int(read.any(dim=0).nonzero().max()) + 1 if bool(read.any()) else 1
        changed = {name: real[:, :used].long() for name in _MASKS if name in kwargs}
        if joint_mask is not None:
            image = joint_mask[:, parts.llm_states.shape[1] :].to(base)
            changed["attention_mask"] = torch.cat([real[:, :used].to(base), image], dim=1)
        if kwargs.get("txt_ids") is not None:
            # Text has no position there, so that rows differ in nothing.
            changed["txt_ids"] = kwargs["txt_ids"][:1].expand(used, -1)
        return {self.family.text_argument: base[:, :used].contiguous(), **changed}

    def _made_once(self, states: Any, make: Callable[[], _Made]) -> _Made:
        """Return the inputs of the attention layers, made once for a tensor that comes again in every step.

        They depend on values of it (whether a row is padding), and reading those makes the host wait for a GPU.
        """
        given = states if isinstance(states, list) else [states]
        if not may_keep() or any(text.is_inference() for text in given):
            return make()
        stamp = tuple((id(text), text._version) for text in given)
        for known, _, made in self._made_before:
            if known == stamp:
                return made
        made = make()
        # The tensors are kept beside it, so that their ids stay their own.
        self._made_before = [*self._made_before[1 - _GUIDED_TEXTS :], (stamp, given, made)]
        return made

    def _joint_text(self, module: Any, parts: TextParts) -> JointText:
        real = real_rows(parts.llm_states)
        counts, most = None, 0
        if self.family.single_stream and self.family.branches:
            multiple = self.family.text_rows_multiple
            if parts.lengths is None:
                lengths = real.sum(dim=-1)
                longest = int(lengths.max())
            else:
                lengths, longest = torch.tensor(parts.lengths, device=real.device), max(parts.lengths)
            counts = (lengths + multiple - 1) // multiple * multiple
            most = -(-longest // multiple) * multiple
        registers = getattr(module, "register_tokens", None)
        return JointText(
            llm_states=parts.llm_states,
            seen=seen_by(real),
            bias=None if self.family.masks_padding else self._bias(parts),
            lead=0 if registers is None else registers.shape[1],
            counts=counts,
            most=most,
        )

    def _bias(self, parts: TextParts) -> Tensor | None:
        """Return the bias of the text rows' logits.

        Adding log(w) to a row's logits weights it by w in the softmax. phi(c)'s rows have w = scale, the base's
        1 - scale (1 with `keep_base_text`): continuous in scale, and the base pipeline at scale 0.
        """
        dtype = parts.llm_states.dtype
        ours = real_rows(parts.llm_states)[:, None, None]
        if parts.base is None or parts.base_real is None:
            return None if may_keep() and bool(ours.all()) else as_bias(ours, dtype)
        theirs = as_bias(parts.base_real[:, None, None], dtype)
        if not self.keep_base_text:
            theirs = theirs + math.log1p(-self.scale)
        return torch.cat([as_bias(ours, dtype) + math.log(self.scale), theirs], dim=-1)

    def _keeps(self, module: nn.Module) -> bool:
        """Return whether layers may keep what depends on the text alone, until another text comes."""
        if not may_keep():
            return False
        reads_text = self.family.text_modules(module).values()
        # A LoRA's strength can change between steps.
        if any(hasattr(part, "base_layer") for each in reads_text for part in each.modules()):
            return False
        self.weights = tuple(weight for each in reads_text for weight in each.parameters())
        return True


def _rows(parts: TextParts) -> Any:
    """Return the rows that the denoiser processes: phi(c), followed by the base's states if there are any."""
    if parts.lengths is not None:
        return [text[:length] for text, length in zip(parts.projected, parts.lengths, strict=True)]
    return parts.projected if parts.base is None else torch.cat([parts.projected, parts.base], dim=1)


def _mixed(base: Any, ours: Any, scale: float) -> Any:
    """Return (1 - scale) * base + scale * ours for the output of a denoiser, whatever holds its tensors."""
    if isinstance(ours, Tensor):
        return torch.lerp(base, ours, scale)
    if isinstance(ours, dict):  # a diffusers output, with its fields in order
        return type(ours)(**{name: _mixed(base[name], value, scale) for name, value in ours.items()})
    return type(ours)(_mixed(one, other, scale) for one, other in zip(base, ours, strict=True))
