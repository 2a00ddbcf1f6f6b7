"""Call a pipeline of any family for pictures, with the arguments that it supports and one frame for videos."""

import inspect
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llmdiff.adapter.limits import guidance_arguments, reads_guidance

if TYPE_CHECKING:
    from PIL.Image import Image

# Arguments that request one frame; Latte's temporal layers are not needed for it.
_ONE_FRAME: dict[str, Any] = {
    "num_frames": 1,
    "frames": 1,
    "video_length": 1,
    "enable_temporal_attentions": False,
}


def pictures(pipe: Any, prompts: Sequence[str], **asked: Any) -> list["Image"]:
    """Return a picture for each prompt; arguments in `asked` that the pipeline does not take are dropped.

    `guidance_scale` is the scale of classifier-free guidance, whatever the pipeline calls it. Warn about a guidance
    scale or negative prompt that it does not take.
    """
    wanted = inspect.signature(type(pipe).__call__).parameters
    if (scale := asked.get("guidance_scale")) is not None:
        asked = {name: value for name, value in asked.items() if name != "guidance_scale"}
        asked |= guidance_arguments(pipe, scale)
        if "true_cfg_scale" in asked and scale > 1 and asked.get("negative_prompt") is None:
            asked["negative_prompt"] = [""] * len(prompts)  # without one, these pipelines do not guide
    takes_all = any(row.kind is row.VAR_KEYWORD for row in wanted.values())
    given = {name: value for name, value in asked.items() if name in wanted or takes_all}
    for name in ("guidance_scale", "negative_prompt"):
        if asked.get(name) is not None and name not in given:
            warnings.warn(
                f"{name} has no effect: {type(pipe).__name__} takes none; leave it out, or set its own guider",
                stacklevel=3,
            )
    if given.get("guidance_scale", 1.0) > 1 and not reads_guidance(pipe):
        warnings.warn(
            f"guidance_scale has no effect: the denoiser of this {type(pipe).__name__} is distilled and reads none; "
            "leave it at 1",
            stacklevel=3,
        )
    given |= {name: value for name, value in _ONE_FRAME.items() if name in wanted}
    result = pipe(prompt=list(prompts), output_type="pil", **given)
    if hasattr(result, "images"):
        return list(result.images)
    return [frames[0] for frames in result.frames]
