"""Install two-branch forwards on the attention layers of a denoiser or ControlNet, and remove them again."""

import weakref
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import nn

from llmdiff.adapter import families, layers
from llmdiff.adapter.adapter import LLMDiffAdapter
from llmdiff.adapter.cross import TwoBranchAttention
from llmdiff.adapter.joint import JointTwoBranch, SplitText
from llmdiff.adapter.processors import AttachedLayer
from llmdiff.errors import AdapterMismatchError, AttachError


class Installation:
    """The attached layers of a module; a context manager that removes them on exit.

    Fields:
        module: the denoiser or ControlNet.
        layers: the replacements of the forwards, by the attention layers' names.
        users: weak references to the pipelines that share this installation; empty after a direct `install`.
    """

    def __init__(
        self,
        module: nn.Module,
        attached: Mapping[str, AttachedLayer],
        hook: SplitText | None,
        *,
        adapter: LLMDiffAdapter,
        scale: float,
        keep_base_text: bool,
    ) -> None:
        self.module = module
        self.layers = dict(attached)
        self.adapter = adapter
        self.settings = (scale, keep_base_text)
        self.users: list[weakref.ref[Any]] = []
        self.replaced: dict[str, Any] = {}
        for name, layer in self.layers.items():
            self.replaced[name] = vars(layer.attn).get("forward")
            layer.replaced = self.replaced[name]
            layer.installation = self
            layer.attn.forward = layer.forward
        self.hook = hook
        self._handle = None if hook is None else module.register_forward_pre_hook(hook, with_kwargs=True)

    @property
    def read(self) -> bool:
        """Return whether a layer has read text from an attached `encode_prompt` since `forget_reading`."""
        return any(layer.read for layer in self.layers.values())

    def forget_reading(self) -> None:
        """Reset `read` to False."""
        for layer in self.layers.values():
            layer.read = False

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move every branch to this device and dtype."""
        for layer in self.layers.values():
            layer.place(device, dtype)

    def check(self) -> None:
        """Check that every layer still has our forward and a supported processor.

        Raises:
            AttachError: something else has replaced a layer or its forward.
            UnsupportedPipelineError: a layer has a processor of an unknown kind.
        """
        self.check_in_place()
        for layer in self.layers.values():
            layer.check()

    def check_in_place(self) -> None:
        """Check that every layer still has our forward.

        Raises:
            AttachError: something else has replaced a layer or its forward.
        """
        for name in self.layers:
            self._holder(name)

    def restore(self) -> None:
        """Remove the forwards; the module is restored to the same objects.

        Raises:
            AttachError: something else has replaced a layer's forward; nothing is removed.
        """
        holders = {name: self._holder(name) for name in self.layers}
        for name, key in holders.items():
            attn, before = self.layers[name].attn, self.replaced[name]
            if before is not None:
                setattr(attn, key, before)
            elif key == "forward":
                del attn.forward
            else:
                setattr(attn, key, type(attn).forward.__get__(attn))
        if self._handle is not None:
            self._handle.remove()

    def _holder(self, name: str) -> str:
        """Return the attribute that holds our forward: `forward`, or `_old_forward` under an accelerate hook."""
        layer = self.layers[name]
        try:
            present: Any = self.module.get_submodule(name)
        except AttributeError:
            present = None
        if present is layer.attn:
            for key in ("forward", "_old_forward"):
                if getattr(vars(present).get(key), "__self__", None) is layer:
                    return key
        raise AttachError(
            f"the forward of {name} was replaced while the LLM was attached: undo that, then detach"
        )

    def __call__(self) -> None:
        """Remove the forwards."""
        self.restore()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.restore()


def install(
    denoiser: nn.Module,
    adapter: LLMDiffAdapter,
    *,
    scale: float = 1.0,
    keep_base_text: bool = False,
    strict: bool = False,
) -> Installation:
    """Install two-branch attention and return the installation; call its `restore()`, or use it in a `with`.

    The denoiser then takes `adapter.condition(...)[0]` as `encoder_hidden_states`. The branches are the
    adapter's own modules, so gradients reach its parameters. With `strict`, text states of the base's width
    raise an error instead of being passed on.

    Raises:
        AdapterMismatchError: the adapter was made for another denoiser.
        AttachError: the denoiser already carries an adapter.
        UnsupportedPipelineError: a layer has a processor of another extension.
    """
    config: Any = adapter.config
    family = families.family_named(config.family)
    check_layers(denoiser, adapter)
    _check_free(denoiser)
    width, hidden_size = config.text_width, config.hidden_size
    text_layers: Mapping[str, Any] = layers.text_layers(denoiser)
    attached: dict[str, AttachedLayer] = {}
    if family.text_channel == "joint":
        # Layers without text projections have to mask padding too.
        for name, attn in layers.attention_layers(denoiser).items():
            branch = adapter.branch(name) if name in text_layers else None
            attached[name] = JointTwoBranch(attn, branch, scale=scale)
    else:
        for name, attn in text_layers.items():
            attached[name] = TwoBranchAttention(
                attn,
                adapter.branch(name),
                text_width=width if family.text_channel == "states" else None,
                hidden_size=hidden_size,
                scale=scale,
                keep_base_text=keep_base_text,
                strict=strict,
            )
    hook = None
    if family.text_channel != "states":
        hook = SplitText(
            family.text_channel,
            text_width=width,
            hidden_size=hidden_size,
            scale=scale,
            keep_base_text=keep_base_text,
            strict=strict,
        )
    # Nothing above has changed the denoiser, and nothing below can fail.
    return Installation(denoiser, attached, hook, adapter=adapter, scale=scale, keep_base_text=keep_base_text)


def install_control(
    controlnet: nn.Module, adapter: LLMDiffAdapter, *, scale: float, keep_base_text: bool
) -> Installation:
    """Install layers on a ControlNet and return the installation: its cross-attention reads phi(c), padding masked.

    Raises:
        AttachError: the ControlNet already carries an adapter.
        UnsupportedPipelineError: a layer has a processor of another extension.
    """
    config: Any = adapter.config
    _check_free(controlnet)
    attached = {
        name: TwoBranchAttention(
            attn,
            None,
            text_width=config.text_width,
            hidden_size=config.hidden_size,
            scale=scale,
            keep_base_text=keep_base_text,
            strict=True,
        )
        for name, attn in layers.text_layers(controlnet).items()
    }
    return Installation(
        controlnet, attached, None, adapter=adapter, scale=scale, keep_base_text=keep_base_text
    )


def installation_on(module: nn.Module) -> Installation | None:
    """Return the installation on this denoiser or ControlNet, None if there is none."""
    for attn in layers.attention_layers(module).values():
        for key in ("forward", "_old_forward"):
            owner = getattr(vars(attn).get(key), "__self__", None)
            if isinstance(owner, AttachedLayer):
                found: Installation = owner.installation
                return found
    return None


def check_layers(denoiser: nn.Module, adapter: LLMDiffAdapter) -> None:
    """Check that the adapter was made for a denoiser like this one.

    Raises:
        AdapterMismatchError: the width or the layers differ.
    """
    config: Any = adapter.config
    width = families.text_width(denoiser, families.family_named(config.family))
    remedy = f"use a pipeline like the adapter's own base, {config.base_model_id!r}"
    if width != config.text_width:
        raise AdapterMismatchError(
            f"pipe takes text states of width {width}, the adapter makes {config.text_width}: {remedy}"
        )
    found, expected = layers.layer_table(denoiser), config.cross_attention
    if len(found) != len(expected):
        raise AdapterMismatchError(
            f"pipe has {len(found)} attention layers that read the text, the adapter was made for "
            f"{len(expected)}: {remedy}"
        )
    for name in found:
        if found[name] != expected.get(name):
            raise AdapterMismatchError(
                f"pipe's attention layer {name} has {found[name]}, the adapter was made for "
                f"{expected.get(name, 'no such layer')}: {remedy}"
            )


def _check_free(module: nn.Module) -> None:
    if installation_on(module) is not None:
        raise AttachError(
            f"the {type(module).__name__} already carries an adapter (attached to this pipeline, or to one "
            "that shares its denoiser): detach that first"
        )
