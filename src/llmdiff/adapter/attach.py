"""attach / detach: put an LLM in control of a pipeline, and take it out again without a trace."""

import warnings
from typing import Any, Protocol, Self, cast

import torch
from torch import nn

from llmdiff.adapter import families
from llmdiff.adapter.adapter import LLMDiffAdapter
from llmdiff.adapter.processors import TwoBranchAttnProcessor
from llmdiff.adapter.prompts import LLMEncodePrompt
from llmdiff.errors import AdapterMismatchError, AttachError, ConfigError


class TextSource(Protocol):
    """What attach needs to know of an LLM, or of whatever else the adapter's states come from."""

    @property
    def id(self) -> str: ...

    @property
    def hidden_size(self) -> int: ...

    @property
    def num_blocks(self) -> int: ...


class Installation:
    """The adapter's processors on a denoiser; a context manager that takes them off again when it ends."""

    def __init__(
        self, denoiser: nn.Module, originals: dict[str, Any], processors: dict[str, TwoBranchAttnProcessor]
    ) -> None:
        self.denoiser = denoiser
        self.originals = originals
        self.processors = processors

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        """Bring every branch to this device and dtype; returns nothing."""
        for processor in self.processors.values():
            processor.place(device, dtype)

    def check(self) -> None:
        """Return nothing if every processor is still on its layer.

        Raises:
            AttachError: something else (attention slicing, an IP-Adapter) has replaced one.
        """
        for name, processor in self.processors.items():
            present = cast(Any, self.denoiser.get_submodule(name)).processor
            if present is not processor:
                raise AttachError(
                    f"the attention processor of {name} is now {type(present).__name__}, it was replaced "
                    "while the LLM was attached: detach, change the pipeline, attach again"
                )

    def restore(self) -> None:
        """Put back the very same processor objects that were there before; returns nothing."""
        for name, original in self.originals.items():
            cast(Any, self.denoiser.get_submodule(name)).set_processor(original)

    __call__ = restore

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.restore()


def install(denoiser: nn.Module, adapter: LLMDiffAdapter, *, scale: float = 1.0) -> Installation:
    """Return the installed two-branch processors; call `.restore()` on them, or use them in a `with`.

    Only the processors of the cross-attention layers change: the denoiser then takes
    `adapter.condition(...)[0]` as `encoder_hidden_states`. The branches are the adapter's own modules, so a
    loss reaches its parameters.

    Raises:
        AdapterMismatchError: the adapter was made for another denoiser.
        AttachError: the denoiser already carries an adapter.
        UnsupportedPipelineError: a layer has a processor of another extension, see `TwoBranchAttnProcessor`.
    """
    config: Any = adapter.config
    _check_layers(denoiser, adapter)
    originals, processors = {}, {}
    for name, layer in families.cross_attention_layers(denoiser).items():
        attn = cast(Any, layer)
        original = attn.processor
        if isinstance(original, TwoBranchAttnProcessor):
            raise AttachError(
                "the denoiser already carries an adapter (attached to this pipeline, or to one that shares "
                "its denoiser): detach that first"
            )
        originals[name] = original
        processors[name] = TwoBranchAttnProcessor(
            adapter.branch(name), original, attn, text_width=config.text_width, scale=scale
        )
    # Nothing above changed the denoiser, and nothing below can fail.
    for name, processor in processors.items():
        cast(Any, denoiser.get_submodule(name)).set_processor(processor)
    return Installation(denoiser, originals, processors)


def attach(pipe: Any, llm: TextSource | None, adapter: LLMDiffAdapter, *, scale: float = 1.0) -> None:
    """Put the LLM in control of the pipeline, so that plain `pipe("a prompt")` follows it; returns nothing.

    `scale` between 0 and 1 mixes with the base's own text encoder in every cross-attention layer; 0 is the
    base pipeline, bit for bit. The pipeline's weights, and what `save_pretrained` writes of it, stay the
    base's. An adapter without a context encoding takes its states from `llm.encode(prompts) -> TextEncoding`.

    Raises:
        ConfigError: scale is not between 0 and 1.
        UnsupportedPipelineError: the pipeline belongs to no known family, or carries another extension's
            processors.
        AdapterMismatchError: the adapter was made for another family, width or LLM.
        AttachError: an LLM is attached already.
    Nothing is attached when one of these is raised.
    """
    if not 0.0 <= scale <= 1.0:
        raise ConfigError(f"scale is {scale}, expected a number from 0 (the base pipeline) to 1 (the LLM)")
    if is_attached(pipe):
        raise AttachError("pipe already has an LLM attached: detach(pipe) first")
    family, denoiser = families.family_of(pipe), families.denoiser_of(pipe)
    check_fits(pipe, adapter)
    check_llm(llm, adapter)
    installation = None
    if scale > 0:
        installation = install(denoiser, adapter, scale=scale)
    pipe.encode_prompt = LLMEncodePrompt(
        pipe,
        llm,
        adapter,
        installation,
        family=family,
        scale=scale,
        replaced=pipe.__dict__.get("encode_prompt"),
    )


def detach(pipe: Any) -> None:
    """Make the pipeline exactly what it was before attach: same processors, same bits; returns nothing.

    Raises:
        AttachError: no LLM is attached.
    """
    if not is_attached(pipe):
        raise AttachError("pipe has no LLM attached: attach one first, or leave out detach(pipe)")
    attached: LLMEncodePrompt = pipe.__dict__["encode_prompt"]
    if attached.installation is not None:
        attached.installation.restore()
    if attached.replaced is None:
        del pipe.encode_prompt
    else:
        pipe.encode_prompt = attached.replaced


def is_attached(pipe: Any) -> bool:
    """Return whether an LLM is attached to this pipeline."""
    return isinstance(vars(pipe).get("encode_prompt"), LLMEncodePrompt)


def check_fits(pipe: Any, adapter: LLMDiffAdapter) -> None:
    """Return nothing if the adapter was made for pipelines like this one.

    Raises:
        UnsupportedPipelineError: the pipeline belongs to no known family.
        AdapterMismatchError: names what the adapter and the pipeline have.
    """
    config: Any = adapter.config
    family, denoiser = families.family_of(pipe), families.denoiser_of(pipe)
    if family.name != config.family:
        titles = {row.name: row.title for row in families.FAMILIES}
        raise AdapterMismatchError(
            f"pipe is of the family {family.title} ({family.name}), the adapter was made for "
            f"{titles[config.family]} ({config.family}): use a pipeline of that family or another adapter"
        )
    _check_layers(denoiser, adapter)
    pooled = families.pooled_width(denoiser) if family.has_pooled else None
    if pooled != config.pooled_width:
        raise AdapterMismatchError(
            f"pipe wants pooled text vectors of width {pooled}, the adapter makes {config.pooled_width}: "
            f"use the adapter's own base pipeline, {config.base_model_id!r}"
        )


def _check_layers(denoiser: nn.Module, adapter: LLMDiffAdapter) -> None:
    config: Any = adapter.config
    width = families.text_width(denoiser)
    remedy = f"use a pipeline like the adapter's own base, {config.base_model_id!r}"
    if width != config.text_width:
        raise AdapterMismatchError(
            f"pipe takes text states of width {width}, the adapter makes {config.text_width}: {remedy}"
        )
    found, expected = families.layer_table(denoiser), config.cross_attention
    if len(found) != len(expected):
        raise AdapterMismatchError(
            f"pipe has {len(found)} cross-attention layers, the adapter was made for {len(expected)}: "
            f"{remedy}"
        )
    for name in found:
        if found[name] != expected.get(name):
            raise AdapterMismatchError(
                f"pipe's cross-attention layer {name} has {found[name]}, the adapter was made for "
                f"{expected.get(name, 'no such layer')}: {remedy}"
            )


def check_llm(llm: TextSource | None, adapter: LLMDiffAdapter) -> None:
    """Return nothing if the adapter was made for an LLM like this one; warn if its id is another.

    Raises:
        AdapterMismatchError: another width or number of blocks.
    """
    config: Any = adapter.config
    if llm is None:
        raise AdapterMismatchError(f"llm is None, the adapter was made for {config.llm_id!r}: load that LLM")
    for what, found, expected in (
        ("states of width", llm.hidden_size, config.hidden_size),
        ("decoder blocks:", llm.num_blocks, config.num_blocks),
    ):
        if found != expected:
            raise AdapterMismatchError(
                f"llm {llm.id!r} has {what} {found}, the adapter was made for {expected}: use "
                f"{config.llm_id!r}"
            )
    if llm.id != config.llm_id:
        warnings.warn(
            f"llm is {llm.id!r}, the adapter was made for {config.llm_id!r}: right only if both are the same "
            "model",
            stacklevel=3,
        )
