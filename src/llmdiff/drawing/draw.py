"""Draw pictures of a prompt and write them to disk: the work of `llmdiff generate` and `llmdiff compare`."""

import logging
import platform
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmdiff import __version__
from llmdiff.checks import bounds
from llmdiff.drawing.models import Models, load
from llmdiff.drawing.pictures import Panel, check_writable, numbered, save_png, sheet
from llmdiff.drawing.saving import SaveSize, enlarged, save_drawn, size_metadata
from llmdiff.errors import ConfigError, LLMDiffError, PromptError, first_line
from llmdiff.files import clean_text, is_blank

if TYPE_CHECKING:
    from PIL.Image import Image

    from llmdiff.controller import LLMController

_log = logging.getLogger(__name__)

AfterStep = Callable[[int, Any, Any], None]
"""Callback after every denoising step: its number, its timestep, its latents (B, C, h, w)."""

# torch, transformers and diffusers are imported inside functions, as their import takes seconds: a blank prompt or
# an output that cannot be written is reported before that.


@dataclass(frozen=True, kw_only=True)
class DrawingSettings:
    """Settings of a drawing. `height_px` and `width_px` None: the pipeline's own size. Prompts pass `clean_text`.

    `save_size` enlarges small pictures when they are written.
    The seed increases by one from picture to picture, so that each can be redrawn alone.

    Raises:
        PromptError: the prompt is blank.
        ConfigError: a number is out of range.
    """

    prompt: str
    negative_prompt: str | None = None
    seed: int
    number: int = 1
    steps: int = 20
    guidance_scale: float = 3.0
    height_px: int | None = None
    width_px: int | None = None
    save_size: SaveSize | None = None

    def __post_init__(self) -> None:
        if is_blank(self.prompt):
            raise PromptError(
                f"prompt is blank ({self.prompt!r}), expected a description of the picture: write one"
            )
        for name in ("prompt", "negative_prompt"):
            text = getattr(self, name)
            if text is not None:
                object.__setattr__(self, name, clean_text(name, text))
        bounds.SEED.check("seed", self.seed)
        bounds.NUMBER.check("number", self.number)
        bounds.STEPS.check("steps", self.steps)
        bounds.GUIDANCE.check("guidance_scale", self.guidance_scale)
        if self.seed + self.number > 2**63:
            raise ConfigError(f"seed is {self.seed}, expected less than {2**63 - self.number + 1}")
        for name, size_px in (("height", self.height_px), ("width", self.width_px)):
            # Every Stable Diffusion pipeline rejects other sizes.
            if size_px is not None and (size_px < 8 or size_px % 8):
                raise ConfigError(f"{name} is {size_px} px, expected a multiple of 8")

    @property
    def seeds(self) -> range:
        """Return the seed of every picture."""
        return range(self.seed, self.seed + self.number)


def new_seed() -> int:
    """Return a random seed; it is stored in the picture's metadata, so that the picture can be redrawn."""
    return random.SystemRandom().randrange(2**31)


def generate(settings: DrawingSettings, models: Models, out: Path) -> list[Path]:
    """Draw pictures with the LLM, write each with its metadata as soon as it is drawn, and return the paths.

    Raises:
        OutputError: `out` cannot be written; checked before any model is loaded.
        LLMDiffError: a model cannot be loaded, or the models do not match.
    """
    paths = numbered(out, settings.number)
    for path in paths:
        check_writable(path)
    controller, pipe = load(models, base_draws=False)
    if (notice := prompt_notice(pipe, settings.prompt)) is not None:
        _log.warning("%s", notice)
    made_with = picture_metadata(settings, models, controller, pipe)
    with controller.attached(pipe, models.control):
        for path, seed in zip(paths, settings.seeds, strict=True):
            save_drawn(draw(pipe, settings, seed), path, settings.save_size, {**made_with, "seed": seed})
    return paths


def compare(settings: DrawingSettings, models: Models, out: Path) -> Path:
    """Draw with the base text encoder and with the LLM from the same seeds; write one sheet and return its path.

    Where `(word:1.3)` is a weight (`models.weighted`), the base reads the word without the weight.

    Raises:
        OutputError: `out` cannot be written; checked before any model is loaded.
        LLMDiffError: a model cannot be loaded, or the models do not match.
    """
    check_writable(out)
    controller, pipe = load(models)
    if (notice := prompt_notice(pipe, settings.prompt)) is not None:
        _log.warning("%s", notice)
    made_with = picture_metadata(settings, models, controller, pipe)
    scale = made_with["scale"]
    captions = [f"seed {seed}" for seed in settings.seeds]
    # At scale 0 the pipeline is the base; weights are removed from the prompt.
    with controller.attached(pipe, models.control.base):
        drawn = [draw(pipe, settings, seed) for seed in settings.seeds]
        base = Panel(
            title="base text encoder",
            images=[enlarged(one, settings.save_size) for one in drawn],
            captions=captions,
        )
    with controller.attached(pipe, models.control):
        ours = Panel(
            title=f"LLM ({controller.llm.id})" + ("" if scale == 1 else f", scale {scale:g}"),
            images=[enlarged(draw(pipe, settings, seed), settings.save_size) for seed in settings.seeds],
            captions=captions,
        )
    seeds = ", ".join(map(str, settings.seeds))
    told = {**made_with, **size_metadata(drawn[0], settings.save_size), "seeds": seeds}
    save_png(sheet(settings.prompt, [base, ours]), out, told)
    return out


def prompt_notice(pipe: Any, prompt: str) -> str | None:
    """Return a notice if the prompt has no word of the world that a pipeline was trained on, else None.

    None also if the pipeline's folder names no world.
    """
    from llmdiff.world.packaged import world_of
    from llmdiff.world.vocabulary import unknown_prompt_notice

    folder = pipe.config.get("_name_or_path")
    world = world_of(folder) if folder else None
    return None if world is None else unknown_prompt_notice(prompt, world)


def draw(pipe: Any, settings: DrawingSettings, seed: int, *, after_step: AfterStep | None = None) -> "Image":
    """Draw and return one picture, in a batch of one, so that its seed suffices to redraw it."""
    return draw_together(pipe, [settings], [seed], after_step=after_step)[0]


def draw_together(
    pipe: Any,
    settings: Sequence[DrawingSettings],
    seeds: Sequence[int],
    *,
    after_step: AfterStep | None = None,
    inputs: Mapping[str, Any] | None = None,
) -> list["Image"]:
    """Draw one picture for each of the settings in one batch; only their prompts may differ.

    Every picture has its own generator, so it does not depend on the rest of the batch, up to float rounding in
    matrix products of another shape (about 1e-6 of the range from black to white, measured). `after_step` is
    called after every denoising step; an exception in it ends the drawing. If only one of height and width is
    given, the other is the pipeline's own. `inputs` replaces height and width in the pipeline's call, for
    example by input pictures.

    Raises:
        ConfigError: the pipeline does not support this size or this number of steps.
        NonFinitePictureError: a model of the pipeline overflows in its dtype.
        LLMDiffError: there is not enough memory, or a prompt cannot be encoded.
    """
    import torch

    from llmdiff.adapter import limits
    from llmdiff.adapter.decoding import decoding_checked
    from llmdiff.drawing.any_pipeline import pictures

    first = settings[0]
    height_px, width_px = limits.fitted_size_px(pipe, first.height_px, first.width_px)
    limits.check_steps(pipe, first.steps)
    negative = [one.negative_prompt or "" for one in settings]
    if any(negative):
        limits.warn_of_unread_negative(pipe, first.guidance_scale)

    def report(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if after_step is not None:
            after_step(step, timestep, tensors["latents"])
        return tensors

    try:
        with decoding_checked(pipe):
            images = pictures(
                pipe,
                [one.prompt for one in settings],
                # None differs from "": some pipelines then use zeros instead of an encoded "".
                negative_prompt=None if all(one.negative_prompt is None for one in settings) else negative,
                num_inference_steps=first.steps,
                guidance_scale=first.guidance_scale,
                **({"height": height_px, "width": width_px} if inputs is None else inputs),
                # On the CPU, so that a seed gives the same noise on every machine.
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                callback_on_step_end=report,
            )
    except RuntimeError as error:
        # Accelerators raise OutOfMemoryError; the CPU's allocator a RuntimeError.
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise LLMDiffError(
            f"not enough memory to draw ({first_line(error)}): choose a smaller height and width"
        ) from error
    return images


def picture_metadata(
    settings: DrawingSettings,
    models: Models,
    controller: "LLMController",
    pipe: Any,
) -> dict[str, object]:
    """Return the metadata that is stored in a picture, except for its seed."""
    adapter: Any = controller.adapter.config
    packages = ("torch", "diffusers", "transformers")
    return {
        "prompt": settings.prompt,
        "negative_prompt": settings.negative_prompt,
        "steps": settings.steps,
        "guidance_scale": settings.guidance_scale,
        "llm": controller.llm.id,
        "adapter": models.adapter,
        "pipeline": models.pipeline or adapter.base_model_id,
        **models.metadata(),
        "scale": controller.scale if models.scale is None else models.scale,
        "scheduler": type(pipe.scheduler).__name__,
        "Software": f"llmdiff {__version__}",
        "versions": ", ".join(
            [f"python {platform.python_version()}", *(f"{name} {version(name)}" for name in packages)]
        ),
    }
