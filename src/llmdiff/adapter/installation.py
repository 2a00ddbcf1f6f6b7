"""Install two-branch forwards on the attention layers of a denoiser or ControlNet, and remove them again."""

import copy
import weakref
from collections.abc import Iterator, Mapping
from typing import Any, Self

import torch
from torch import nn

from llmdiff.adapter import families, layers
from llmdiff.adapter.adapter import LLMDiffAdapter
from llmdiff.adapter.cross import TwoBranchAttention
from llmdiff.adapter.gain_settings import scale_of_layer
from llmdiff.adapter.joint import JointTwoBranch
from llmdiff.adapter.layer_groups import layer_groups
from llmdiff.adapter.layout import NOT_PICKLED
from llmdiff.adapter.processors import AttachedLayer
from llmdiff.adapter.split import SplitText
from llmdiff.adapter.text_once import TextOnce
from llmdiff.errors import AttachError, UnsupportedPipelineError


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
        layer_scale: Mapping[str, float],
    ) -> None:
        self.module = module
        self.layers = dict(attached)
        self.adapter = adapter
        self.settings = (scale, keep_base_text, dict(layer_scale))
        self.users: list[weakref.ref[Any]] = []
        self.replaced: dict[str, Any] = {}
        for name, layer in self.layers.items():
            self.replaced[name] = vars(layer.attn).get("forward")
            layer.replaced = self.replaced[name]
            layer.installation = self
            layer.attn.forward = layer.forward
        self.hook = hook
        self._handles: list[Any] = []
        if hook is not None:
            self._handles = [
                module.register_forward_pre_hook(hook.before, with_kwargs=True),
                module.register_forward_hook(hook.after, with_kwargs=True, always_call=True),
            ]

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__.update({name: copy.deepcopy(value, memo) for name, value in self.__dict__.items()})
        return twin

    def __reduce__(self) -> Any:
        raise AttachError(NOT_PICKLED)

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
            if not self._places(name):
                raise AttachError(
                    f"{name} has its own forward again while the LLM is attached (disable_cache puts back the one from "
                    "before enable_cache): detach, then attach again"
                )

    def check_removable(self) -> None:
        """Check that `restore` can remove every forward.

        Raises:
            AttachError: something else has replaced a layer or its forward.
        """
        for name in self.layers:
            self._places(name)

    def restore(self) -> None:
        """Remove the forwards; the module is restored to the same objects.

        Raises:
            AttachError: something else has replaced a layer's forward; nothing is removed.
        """
        places = {name: self._places(name) for name in self.layers}
        for name, found in places.items():
            attn, before = self.layers[name].attn, self.replaced[name]
            for holder, key in found:
                if before is not None:
                    holder[key] = before
                elif holder is vars(attn) and key == "forward":
                    del holder[key]
                else:
                    holder[key] = type(attn).forward.__get__(attn)
        for handle in self._handles:
            handle.remove()

    def _places(self, name: str) -> list[tuple[dict[str, Any], str]]:
        """Return where our forward is; empty if the layer has its own again, as after diffusers' `disable_cache`."""
        layer = self.layers[name]
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
            if found or own or now is self.replaced[name]:
                return found
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
    layer_scale: Mapping[str, float] | None = None,
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
    layers.check_layers(denoiser, adapter.config)
    return _install(
        denoiser,
        adapter,
        scale=scale,
        keep_base_text=keep_base_text,
        layer_scale=layer_scale or {},
        strict=strict,
        with_branches=True,
    )


def install_control(
    controlnet: nn.Module,
    adapter: LLMDiffAdapter,
    *,
    scale: float,
    keep_base_text: bool,
    layer_scale: Mapping[str, float],
) -> Installation:
    """Install layers on a ControlNet and return the installation: it reads phi(c), padding masked.

    Raises:
        AttachError: the ControlNet already carries an adapter.
        UnsupportedPipelineError: a layer has a processor of another extension, or ControlNets of the family are not
            supported.
    """
    config: Any = adapter.config
    family = families.family_named(config.family)
    if family.ragged:
        raise UnsupportedPipelineError(
            f"pipe.controlnet is a {type(controlnet).__name__}, which reads the text through modules of its "
            f"{family.title} denoiser, so the LLM's text cannot be taken apart for it: use a pipeline without one"
        )
    return _install(
        controlnet,
        adapter,
        scale=scale,
        keep_base_text=keep_base_text,
        layer_scale=layer_scale,
        strict=True,
        with_branches=False,
    )


def _install(
    module: nn.Module,
    adapter: LLMDiffAdapter,
    *,
    scale: float,
    keep_base_text: bool,
    layer_scale: Mapping[str, float],
    strict: bool,
    with_branches: bool,
) -> Installation:
    config: Any = adapter.config
    family = families.family_named(config.family)
    _check_free(module)
    shared: dict[str, Any] = {
        "text_width": config.text_width,
        "hidden_size": config.hidden_size,
        "groups": config.routing,
        "scale": scale,
        "keep_base_text": keep_base_text,
        "strict": strict,
    }
    # A ControlNet's layers have the names of those that they copy; others read the first group's c.
    groups = layer_groups(config.cross_attention, config.routing)
    text_layers: Mapping[str, Any] = layers.text_layers(module)
    branches = {name: adapter.branch(name) for name in text_layers} if with_branches else {}
    hook = None
    if family.text_channel != "states":
        hook = SplitText(family, module, **shared, text_is_optional=not with_branches)
    attached: dict[str, AttachedLayer] = {}
    if hook is not None:
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
                hook=hook,
                group=groups.get(name, 0),
                **{**shared, "scale": scale_of_layer(name, layer_scale, scale)},
            )
    # Nothing above has changed the module, and nothing below can fail.
    return Installation(
        module,
        attached,
        hook,
        adapter=adapter,
        scale=scale,
        keep_base_text=keep_base_text,
        layer_scale=layer_scale,
    )


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


def _check_free(module: nn.Module) -> None:
    if installation_on(module) is not None:
        raise AttachError(
            f"the {type(module).__name__} already carries an adapter (attached to this pipeline, or to one "
            "that shares its denoiser): detach that first"
        )
