"""Draw one step with a pipeline class that is not diffusers' own, to see that the LLM's text reaches its picture."""

import inspect
import logging
from typing import Any

import torch

from llmdiff.adapter.limits import side_multiple_px
from llmdiff.errors import AttachError, LLMDiffError

_log = logging.getLogger(__name__)
_PROMPTS = ("a red cat on a chair", "two blue houses at night, seen from above")


def check_by_drawing(pipe: Any) -> None:
    """Check that an attached pipeline draws different pictures for different prompts: one step, the smallest size.

    A pipeline that needs more than a prompt, or fails by itself, is not checked here, but when it draws.

    Raises:
        AttachError: the pictures are the same, or drawing has found that the text is not read.
    """
    wanted = inspect.signature(type(pipe).__call__).parameters
    takes_all = any(row.kind is row.VAR_KEYWORD for row in wanted.values())
    side_px = 4 * side_multiple_px(pipe)
    small = {"num_inference_steps": 1, "height": side_px, "width": side_px, "output_type": "pt"}
    given = {name: value for name, value in small.items() if name in wanted or takes_all}
    before = dict(vars(pipe))
    pictures = []
    try:
        pipe.set_progress_bar_config(disable=True)
        with torch.random.fork_rng(), torch.no_grad():
            for prompt in _PROMPTS:
                torch.manual_seed(0)
                pictures.append(_tensors(pipe(prompt=prompt, **given)))
    except LLMDiffError:
        raise
    except Exception as error:  # whatever a class of someone's own raises
        _log.info("%s cannot be tried before it draws: %s", type(pipe).__name__, error)
        return
    finally:
        vars(pipe).clear()
        vars(pipe).update(before)
    first, second = pictures
    if first and all(torch.equal(one, other) for one, other in zip(first, second, strict=True)):
        raise AttachError(
            f"{type(pipe).__name__} draws the same picture whatever the prompt is, so the LLM has no part in it: use "
            "the pipeline of diffusers that it derives from"
        )


def _tensors(drawn: Any) -> list[torch.Tensor]:
    values = drawn if isinstance(drawn, tuple | list) else getattr(drawn, "values", lambda: [drawn])()
    return [value for value in values if isinstance(value, torch.Tensor)]
