"""Check before drawing what a pipeline supports: sizes, steps, and negative prompts."""

import inspect
import math
import warnings
from typing import Any

from llmdiff.adapter import families
from llmdiff.errors import ConfigError

# Beyond this multiple of the size that it was trained for, a denoiser repeats its subject.
_TIMES_TRAINED = 2


def own_size_px(pipe: Any) -> tuple[int, int] | None:
    """Return the pipeline's default (height, width); None if its config has none."""
    size = getattr(pipe, "default_sample_size", None) or _config(pipe).get("sample_size")
    if size is None:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    return height * _vae_factor(pipe), width * _vae_factor(pipe)


def side_multiple_px(pipe: Any) -> int:
    """Return the number that height and width have to be multiples of. Units: pixels."""
    family = families.family_of(pipe)
    patch = family.patch_of(families.denoiser_of(pipe))
    return math.lcm(family.side_divisor_px, _vae_factor(pipe) * patch)


def fitted_size_px(pipe: Any, height_px: int | None, width_px: int | None) -> tuple[int | None, int | None]:
    """Return height and width; if only one is given, the other is the pipeline's default.

    If both are None, return None for both. Warn about a size that the pipeline was not trained for.

    Raises:
        ConfigError: a side is not a multiple of `side_multiple_px`, or is missing and the pipeline has no default.
    """
    if height_px is None and width_px is None:
        return None, None
    own, multiple = own_size_px(pipe), side_multiple_px(pipe)
    for name, given in (("height", height_px), ("width", width_px)):
        if given is None and own is None:
            raise ConfigError(
                f"{name} is not given, and {type(pipe).__name__} has none of its own: give both"
            )
        if given is not None and (given < 1 or given % multiple):
            below = given // multiple * multiple
            nearest = " or ".join(str(side) for side in (below, below + multiple) if side > 0)
            raise ConfigError(
                f"{name} is {given} px, expected a multiple of {multiple} for this {type(pipe).__name__}: {nearest}"
            )
    if own is None:
        return height_px, width_px
    height_px, width_px = height_px or own[0], width_px or own[1]
    if height_px > _TIMES_TRAINED * own[0] or width_px > _TIMES_TRAINED * own[1]:
        warnings.warn(
            f"the size {width_px} x {height_px} is more than twice the {own[1]} x {own[0]} that the pipeline was "
            "trained for: expect its subject many times over; leave height and width out for its own size",
            stacklevel=2,
        )
    return height_px, width_px


def check_steps(pipe: Any, steps: int, *, name: str = "steps") -> None:
    """Raise a ConfigError unless the pipeline's scheduler was trained with at least this many steps."""
    trained = pipe.scheduler.config.get("num_train_timesteps")
    if trained is not None and steps > trained:
        raise ConfigError(
            f"{name} is {steps}, expected at most {trained}, as many as {type(pipe.scheduler).__name__} was trained "
            "with; 20 to 50 are usual"
        )


def guidance_arguments(pipe: Any, scale: float) -> dict[str, float]:
    """Return the argument by which the pipeline's call takes the scale of classifier-free guidance.

    Pipelines of Qwen-Image call it `true_cfg_scale`; their `guidance_scale` is an input of distilled denoisers. In
    Flux, whose `true_cfg_scale` is 1 unless it is set, guidance_scale is that input.
    """
    own = inspect.signature(type(pipe).__call__).parameters.get("true_cfg_scale")
    guided = own is not None and own.default > 1 and not _config(pipe).get("guidance_embeds")
    return {"true_cfg_scale" if guided else "guidance_scale": scale}


def reads_guidance(pipe: Any) -> bool:
    """Return whether a pipeline's `guidance_scale` has an effect; in Flux it is an input that not all models have."""
    by_other = families.family_of(pipe).guided_by == "true_cfg_scale"
    return not by_other or bool(_config(pipe).get("guidance_embeds"))


def warn_of_unread_negative(pipe: Any, guidance_scale: float) -> None:
    """Warn if a negative prompt has no effect in a pipeline whose call takes one."""
    family = families.family_of(pipe)
    by, above = family.guided_by, family.guided_above
    taken = inspect.signature(type(pipe).__call__).parameters
    if "negative_prompt" not in taken:
        return
    why = ""
    if by == "guider":
        # Distilled pipelines have no guider; the second one is for prompts with quoted text.
        guiders = [one for one in (pipe.guider, getattr(pipe, "ocr_guider", None)) if one is not None]
        if not any(one._enabled and one.num_conditions > 1 for one in guiders):
            why = ": the pipeline's guider reads none; give the pipeline another guider"
    elif by not in guidance_arguments(pipe, guidance_scale):
        own = taken[by].default
        if own <= above:
            why = (
                f": {family.title} reads it at a {by} above {above:g}, and has {own:g}; in Python, pass {by}"
            )
    elif guidance_scale <= above:
        why = f" at guidance_scale {guidance_scale:g}: choose a scale above {above:g}"
    elif _config(pipe).get("time_cond_proj_dim") is not None:
        why = ": this denoiser has learned its guidance; use its base model for guidance by prompts"
    if why:
        warnings.warn(f"negative_prompt changes nothing{why}, or leave the negative prompt out", stacklevel=2)


def _config(pipe: Any) -> Any:
    return families.denoiser_of(pipe).config


def _vae_factor(pipe: Any) -> int:
    """Return the number of pixels to a side of a latent; pipelines for videos have a name of their own for it."""
    names = ("vae_scale_factor", "vae_scale_factor_spatial", "vae_spatial_compression_ratio")
    return int(next(getattr(pipe, name) for name in names if hasattr(pipe, name)))
