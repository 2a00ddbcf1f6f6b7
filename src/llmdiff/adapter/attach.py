"""attach / detach: put an LLM in control of a pipeline, and restore the pipeline exactly."""

import warnings
import weakref
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Protocol

from torch import nn

from llmdiff.adapter import families, layers
from llmdiff.adapter.adapter import LLMDiffAdapter
from llmdiff.adapter.base_encoder import has_text_encoder
from llmdiff.adapter.decoding import watch_decoding
from llmdiff.adapter.gain_settings import check_layers_of
from llmdiff.adapter.installation import Installation, install, installation_on
from llmdiff.adapter.prompts import LLMEncodePrompt
from llmdiff.adapter.settings import Control, as_control
from llmdiff.adapter.texts import check_context
from llmdiff.adapter.trial import check_by_drawing
from llmdiff.checks.validation import keywords_of
from llmdiff.errors import AdapterMismatchError, AttachError, ConfigError
from llmdiff.language.loading import same_model_name
from llmdiff.language.saved_encodings import SavedEncodings


class TextSource(Protocol):
    """The attributes that `attach` reads from an LLM, or from another source of text states."""

    @property
    def id(self) -> str:
        """Return the name that an adapter stores."""

    @property
    def hidden_size(self) -> int:
        """Return D, the width of its states."""

    @property
    def num_blocks(self) -> int:
        """Return L, the number of blocks; 0 if its states are not a sum over blocks."""


@keywords_of(Control)
def attach(
    pipe: Any,
    llm: TextSource | None,
    adapter: LLMDiffAdapter,
    control: Control | float | None = None,
    **fields: Any,
) -> None:
    """Put the LLM in control of the pipeline, so that plain `pipe("a prompt")` follows it.

    Pass a `Control`, its scale alone, or its fields as keyword arguments.

    `scale` from 0 to 1 mixes the base's text encoder with the LLM in every attention layer that reads text:
    0 is the base pipeline, bit for bit; 1 is the LLM alone, as in the paper; None is the adapter's own scale, 1
    unless its author chose another. `keep_base_text` lets the pretrained branch of every such layer attend to the
    base encoder's tokens and phi(c) in one softmax, so that a LoRA's trigger words keep their effect. The base's text
    encoder reads prompts without weights. The pipeline's weights, and the files that its `save_pretrained` writes,
    are unchanged. An adapter without a context encoding takes its states from `llm.encode(prompts) -> TextEncoding`.

    Attach a pipeline that shares its denoiser with an attached one (`from_pipe`) by the same call, with
    the same adapter and settings; until then it refuses to draw. A ControlNet's cross-attention reads
    phi(c). A pipeline class that is not diffusers' own draws one small step with two prompts, to show that the text
    reaches its pictures.

    While attached, `pipe(...)` raises an error instead of returning a wrong picture: a
    NonFinitePictureError if a model overflows, an AttachError if the LLM's text did not reach the denoiser.

    Raises:
        ConfigError: scale is not between 0 and 1, the base's text encoder is needed but missing, or `weighted`
            or `rewording` is set for an adapter without a context encoding.
        UnsupportedPipelineError: the pipeline belongs to no known family, or carries another extension's
            processors.
        AdapterMismatchError: the adapter was made for another family, width or LLM; an LLM of the right
            sizes but another name is accepted with `strict=False`.
        AttachError: an LLM is attached already, or the text does not reach the pipeline's pictures.
    If one of these is raised, nothing is attached.
    """
    control = as_control(control, fields)
    scale = own_scale(adapter) if control.scale is None else control.scale
    control = replace(control, scale=scale)
    if is_attached(pipe):
        raise AttachError("pipe already has an LLM attached: detach(pipe) first")
    family, denoiser = families.family_of(pipe), families.denoiser_of(pipe)
    check_fits(pipe, adapter)
    check_llm(llm, adapter, strict=control.strict)
    check_context(adapter, control)
    scales = control.layer_scale or {}
    check_layers_of(scales, family, layers.text_layers(denoiser))
    if control.keep_base_text and family.mixing == "prediction":
        raise ConfigError(
            f"keep_base_text is True, but {family.title} gives every text row a position or lets them attend to each "
            "other, so the base's tokens cannot stand beside the LLM's: use a scale below 1, which mixes predictions"
        )
    if control.reads_base and not has_text_encoder(pipe):
        what = f"scale {scale:g}" if scale < 1 else "layer_scale"
        what = "keep_base_text=True" if control.keep_base_text and scale > 0 else what
        raise ConfigError(
            f"{what} needs the base's own text encoder, but pipe.text_encoder is None: load it "
            "(load_pipeline(text_encoders=True)), or attach with scale=1.0 and keep_base_text=False, the LLM alone"
        )
    parts = _installed(pipe, denoiser, adapter, control) if scale > 0 else []
    pipe.encode_prompt = LLMEncodePrompt(pipe, llm, adapter, parts, control, decoding=watch_decoding(pipe))
    if parts and not type(pipe).__module__.startswith("diffusers."):
        try:
            check_by_drawing(pipe)
        except BaseException:
            detach(pipe)
            raise


def _installed(
    pipe: Any, denoiser: nn.Module, adapter: LLMDiffAdapter, control: Control
) -> list[Installation]:
    """Return the installations on the pipeline's modules: those of another pipeline that shares them, or new ones."""
    settings: dict[str, Any] = {
        "scale": control.scale,
        "keep_base_text": control.keep_base_text,
        "layer_scale": dict(control.layer_scale or {}),
    }
    parts = []
    with ExitStack() as undo:
        for module, is_controlnet in _modules(pipe, denoiser):
            part = _shared_installation(module, adapter, settings)
            if part is None:
                part = install(module, adapter, **settings, strict=True, is_controlnet=is_controlnet)
                undo.enter_context(part)
            parts.append(part)
        undo.pop_all()
    for part in parts:
        part.users.append(weakref.ref(pipe))
    return parts


def _modules(pipe: Any, denoiser: nn.Module) -> list[tuple[nn.Module, bool]]:
    """Return the modules of a pipeline that read the text, the denoiser first, and whether each is a ControlNet."""
    # Wan 2.2 has a second denoiser of the same kind for the last steps.
    second, controlnet = getattr(pipe, "transformer_2", None), getattr(pipe, "controlnet", None)
    found = [(denoiser, False)]
    if isinstance(second, nn.Module):
        found.append((second, False))
    if isinstance(controlnet, nn.Module):
        found += [(net, True) for net in getattr(controlnet, "nets", [controlnet])]
    return [(getattr(module, "_orig_mod", module), is_controlnet) for module, is_controlnet in found]


def own_scale(adapter: LLMDiffAdapter) -> float:
    """Return the adapter's own scale, the default of `attach`."""
    config: Any = adapter.config
    return float(config.scale)


def detach(pipe: Any) -> None:
    """Restore the pipeline exactly as it was before `attach`: same objects, same bits.

    Layers that another attached pipeline shares stay attached until that one is detached too.

    Raises:
        AttachError: no LLM is attached, or something else has replaced an attached layer's forward.
    """
    if not is_attached(pipe):
        raise AttachError("pipe has no LLM attached: attach one first, or leave out detach(pipe)")
    attached: LLMEncodePrompt = vars(pipe)["encode_prompt"]
    leaving = [part for part in attached.parts if not _other_users(part, pipe)]
    for part in leaving:
        part.places()  # raises an error while nothing is removed yet
    for part in leaving:
        part.restore()
    if attached.decoding is not None:
        attached.decoding.remove()
    if attached.replaced is None:
        del pipe.encode_prompt
    else:
        pipe.encode_prompt = attached.replaced


def is_attached(pipe: Any) -> bool:
    """Return whether an LLM is attached to this pipeline."""
    return isinstance(getattr(pipe, "__dict__", {}).get("encode_prompt"), LLMEncodePrompt)


def control_of(pipe: Any) -> Control:
    """Return how the LLM controls this attached pipeline; `scale` is a number.

    Raises:
        AttachError: no LLM is attached.
    """
    if not is_attached(pipe):
        raise AttachError("pipe has no LLM attached: attach one first")
    control: Control = vars(pipe)["encode_prompt"].control
    return control


def check_fits(pipe: Any, adapter: LLMDiffAdapter) -> None:
    """Check that the adapter was made for pipelines like this one.

    Raises:
        UnsupportedPipelineError: the pipeline belongs to no known family.
        AdapterMismatchError: names what the adapter and the pipeline have.
    """
    config: Any = adapter.config
    family, denoiser = families.family_of(pipe), families.denoiser_of(pipe)
    if family.name != config.family:
        made_for = families.family_named(config.family)
        raise AdapterMismatchError(
            f"pipe is of the family {family.title} ({family.name}), the adapter was made for "
            f"{made_for.title} ({made_for.name}): use a pipeline of that family or another adapter"
        )
    layers.check_layers(denoiser, config)
    pooled = families.pooled_width(denoiser, family, pipe)
    if pooled != config.pooled_width:
        raise AdapterMismatchError(
            f"pipe wants pooled text vectors of width {pooled}, the adapter makes {config.pooled_width}: "
            f"use the adapter's own base pipeline, {config.base_model_id!r}"
        )


def check_llm(llm: TextSource | None, adapter: LLMDiffAdapter, *, strict: bool = True) -> None:
    """Check that the adapter was made for this LLM.

    Names with the same last part ("owner/SmolLM2" and "models/smollm2") match: the same model loaded from a
    folder. With `strict=False` any LLM of the right sizes passes, with a warning.

    Raises:
        AdapterMismatchError: the width, the number of blocks or the name differs.
    """
    config: Any = adapter.config
    if llm is None:
        raise AdapterMismatchError(f"llm is None, the adapter was made for {config.llm_id!r}: load that LLM")
    if not all(hasattr(llm, name) for name in ("id", "hidden_size", "num_blocks")):
        raise AdapterMismatchError(
            f"llm is a {type(llm).__name__}, expected a DecoderLLM: load it with DecoderLLM.from_pretrained"
        )
    for what, found, expected in (
        ("states of width", llm.hidden_size, config.hidden_size),
        ("decoder blocks:", llm.num_blocks, config.num_blocks),
    ):
        if found != expected:
            raise AdapterMismatchError(
                f"llm {llm.id!r} has {what} {found}, the adapter was made for {expected}: use "
                f"{config.llm_id!r}"
            )
    if isinstance(llm, SavedEncodings):
        llm.check_adapter(adapter)
    if same_model_name(llm.id, config.llm_id):
        return
    message = f"llm is {llm.id!r}, the adapter was made for {config.llm_id!r}"
    if strict:
        # The sizes fit, so it would draw, but from states that the adapter was not trained on.
        raise AdapterMismatchError(
            f"{message}: use that LLM, or pass strict=False if both are the same model under two names"
        )
    warnings.warn(f"{message}: right only if both are the same model", stacklevel=3)


def _shared_installation(
    module: nn.Module, adapter: LLMDiffAdapter, settings: dict[str, Any]
) -> Installation | None:
    """Return the installation that another pipeline has put on the module; None if a new one is needed.

    Raises:
        AttachError: it has another adapter or other settings.
    """
    present = installation_on(module)
    if present is None or not present.users:
        return None
    if not _other_users(present, None):
        # Every pipeline that it was made for is gone.
        present.restore()
        return None
    if present.adapter is adapter and present.settings == settings:
        return present
    raise AttachError(
        f"the {type(module).__name__} already carries another adapter or other settings, for a pipeline that "
        "shares its denoiser: detach that one first, or attach the same adapter with the same settings"
    )


def _other_users(part: Installation, pipe: Any) -> bool:
    """Return whether another living pipeline is attached through this installation."""
    for reference in part.users:
        user = reference()
        if user is None or user is pipe or not is_attached(user):
            continue
        if any(part is one for one in vars(user)["encode_prompt"].parts):
            return True
    return False
