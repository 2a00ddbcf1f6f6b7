"""Install two-branch forwards on the attention layers of a denoiser or ControlNet, and remove them again."""

import weakref
from collections.abc import Iterator, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from llmdiff.adapter import families, layers
from llmdiff.adapter.adapter import LLMDiffAdapter
from llmdiff.adapter.cross import TwoBranchAttention
from llmdiff.adapter.gain_settings import scale_of_layer
from llmdiff.adapter.joint import JointTwoBranch
from llmdiff.adapter.layer_groups import layer_groups
from llmdiff.adapter.layout import CopiedNotPickled, TextLayout
from llmdiff.adapter.processors import AttachedLayer
from llmdiff.adapter.split import SplitText
from llmdiff.errors import AttachError, UnsupportedPipelineError


class Installation(CopiedNotPickled):
    """The attached layers of a module; a context manager that removes them on exit.

    Fields:
        module: the denoiser or ControlNet.
        layers: the replacements of the forwards, by the attention layers' names.
        hook: what takes the text apart before the module projects it; None where the layers get it as it is.
        settings: its `scale`, `keep_base_text` and `layer_scale`.
        users: weak references to the pipelines that share this installation; empty after a direct `install`.
    """

    def __init__(
        self,
        module: nn.Module,
        attached: Mapping[str, AttachedLayer],
        hook: SplitText | None,
        *,
        adapter: LLMDiffAdapter,
        settings: Mapping[str, Any],
    ) -> None:
        self.module = module
        self.layers = dict(attached)
        self.adapter = adapter
        self.settings = settings
        self.users: list[weakref.ref[Any]] = []
        for layer in self.layers.values():
            layer.replaced = vars(layer.attn).get("forward")
            layer.installation = self
            layer.attn.forward = layer.forward
        self.hook = hook
        self._handles: list[Any] = []
        if hook is not None:
            self._handles = [
                module.register_forward_pre_hook(hook.before, with_kwargs=True),
                module.register_forward_hook(hook.after, with_kwargs=True, always_call=True),
            ]

    @property
    def draws(self) -> bool:
        """Return whether the module is a denoiser: whether layers have a new branch."""
        return any(layer.branch is not None for layer in self.layers.values())

    @property
    def read(self) -> bool:
        """Return whether a layer has read text from an attached `encode_prompt` since `forget_reading`."""
        return any(layer.read for layer in self.layers.values())

    def forget_reading(self) -> None:
        """Reset `read` to False."""
        for layer in self.layers.values():
            layer.read = False

    def prepare(self, device: torch.device, dtype: torch.dtype) -> None:
        """Check every layer, then bring its branch to this device and dtype.

        Raises:
            AttachError: a layer or its forward was replaced, or has its own forward again.
            UnsupportedPipelineError: a layer has a processor of an unknown kind.
        """
        for name, found in self.places().items():
            if not found:
                raise AttachError(
                    f"{name} has its own forward again while the LLM is attached (disable_cache puts back the one from "
                    "before enable_cache): detach, then attach again"
                )
            self.layers[name].check()
        for layer in self.layers.values():
            layer.place(device, dtype)

    def restore(self) -> None:
        """Remove the forwards; the module is restored to the same objects.

        Raises:
            AttachError: something else has replaced a layer's forward; nothing is removed.
        """
        for name, found in self.places().items():
            attn, before = self.layers[name].attn, self.layers[name].replaced
            for holder, key in found:
                if before is not None:
                    holder[key] = before
                elif holder is vars(attn) and key == "forward":
                    del holder[key]
                else:
                    holder[key] = type(attn).forward.__get__(attn)
        for handle in self._handles:
            handle.remove()

    def places(self) -> dict[str, list[tuple[dict[str, Any], str]]]:
        """Return where the forward of each layer is.

        A layer that has its own forward again, as after diffusers' `disable_cache`, has no place.

        Raises:
            AttachError: something else has replaced a layer or its forward, so `restore` cannot remove it.
        """
        return {name: self._places_of(name, layer) for name, layer in self.layers.items()}

    def _places_of(self, name: str, layer: AttachedLayer) -> list[tuple[dict[str, Any], str]]:
        try:
            present: Any = self.module.get_submodule(name)
        except AttributeError:
            present = None
        if present is not layer.attn:
            # A LoRA wraps linear layers that project the text.
            present = getattr(present, "base_layer", present)
        if present is layer.attn:
            found = [(holder, key) for holder, key in _holders(present) if _owner(holder.get(key)) is layer]
            now = vars(present).get("forward")
            own = now is None or getattr(now, "__func__", None) is type(present).forward
            if found or own or now is layer.replaced:
                return found
        raise AttachError(
            f"the forward of {name} was replaced while the LLM was attached: undo that, then detach"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.restore()


class TextOnce(AttachedLayer):
    """A projection or block that reads nothing but the text; its output is kept while the text is the same.

    diffusers calls it in every step. A call outside the denoiser, or with gradients, is the module's own.
    """

    def __init__(self, module: nn.Module, hook: SplitText) -> None:
        super().__init__(module, None, scale=1.0)
        self.hook = hook

    def forward(self, states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the module's output."""
        read: Tensor = self.kept(
            self.hook.source, self.hook.weights, lambda: self.original(states, *args, **kwargs)
        )
        return read


def install(
    module: nn.Module,
    adapter: LLMDiffAdapter,
    *,
    scale: float = 1.0,
    keep_base_text: bool = False,
    layer_scale: Mapping[str, float] | None = None,
    strict: bool = False,
    is_controlnet: bool = False,
) -> Installation:
    """Install two-branch attention and return the installation; call its `restore()`, or use it in a `with`.

    The denoiser then takes `adapter.condition(...)[0]` as `encoder_hidden_states`. The branches are the
    adapter's own modules, so gradients reach its parameters. With `strict`, text states of the base's width
    raise an error instead of being passed on. A ControlNet gets no branches: it reads phi(c), padding masked.

    Raises:
        AdapterMismatchError: the adapter was made for another denoiser.
        AttachError: the module already carries an adapter.
        UnsupportedPipelineError: a layer has a processor of another extension, or ControlNets of the family are not
            supported.
    """
    config: Any = adapter.config
    family = families.family_named(config.family)
    if not is_controlnet:
        layers.check_layers(module, config)
    elif family.ragged:
        raise UnsupportedPipelineError(
            f"pipe.controlnet is a {type(module).__name__}, which reads the text through modules of its "
            f"{family.title} denoiser, so the LLM's text cannot be taken apart for it: use a pipeline without one"
        )
    if installation_on(module) is not None:
        raise AttachError(
            f"the {type(module).__name__} already carries an adapter (attached to this pipeline, or to one "
            "that shares its denoiser): detach that first"
        )
    layout = TextLayout(
        width=config.text_width, hidden_size=config.hidden_size, groups=config.routing, strict=strict
    )
    shared: dict[str, Any] = {"layout": layout, "keep_base_text": keep_base_text}
    layer_scale = layer_scale or {}
    # A ControlNet's layers have the names of those that they copy; others read the first group's c.
    groups = layer_groups(config.cross_attention, config.routing)
    text_layers = layers.text_layers(module)
    branches = {} if is_controlnet else {name: adapter.branch(name) for name in text_layers}
    hook = None
    attached: dict[str, AttachedLayer] = {}
    if family.text_channel != "states":
        hook = SplitText(family, module, **shared, scale=scale, text_is_optional=is_controlnet)
        for name, part in family.text_modules(module).items():
            # A LoRA's wrapper may go while the LLM is attached.
            attached[name] = TextOnce(getattr(part, "base_layer", part), hook)
    if family.text_channel == "joint" and hook is not None:
        # Layers without a branch have to mask padding too.
        for name, attn in layers.joint_layers(module, family).items():
            attached[name] = JointTwoBranch(
                attn,
                branches.get(name),
                hook=hook,
                single_stream=layers.is_named(name, family.single_stream),
                # Where predictions are mixed, the LLM's is that at scale 1.
                scale=1.0 if family.mixing == "prediction" else scale,
                group=groups.get(name, 0),
            )
    else:
        for name, attn in text_layers.items():
            attached[name] = TwoBranchAttention(
                attn,
                branches.get(name),
                **shared,
                hook=hook,
                group=groups.get(name, 0),
                scale=scale_of_layer(name, layer_scale, scale),
            )
    # Nothing above has changed the module, and nothing below can fail.
    settings = {"scale": scale, "keep_base_text": keep_base_text, "layer_scale": dict(layer_scale)}
    return Installation(module, attached, hook, adapter=adapter, settings=settings)


def installation_on(module: nn.Module) -> Installation | None:
    """Return the installation on this denoiser or ControlNet, None if there is none."""
    for attn in layers.attention_layers(module).values():
        for holder, key in _holders(attn):
            owner = _owner(holder.get(key))
            if isinstance(owner, AttachedLayer):
                found: Installation = owner.installation
                return found
    return None


def _holders(attn: nn.Module) -> Iterator[tuple[dict[str, Any], str]]:
    """Return where a layer's forward may be: on itself, under accelerate's hook, or under diffusers' hooks."""
    yield vars(attn), "forward"
    yield vars(attn), "_old_forward"
    for reference in getattr(vars(attn).get("_diffusers_hook"), "_fn_refs", []):
        yield vars(reference), "forward"
        yield vars(reference), "original_forward"


def _owner(forward: Any) -> Any:
    return getattr(forward, "__self__", None)
