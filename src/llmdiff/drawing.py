"""From a prompt to pictures on disk: what `llmdiff generate` and `llmdiff compare` do."""

import logging
import platform
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmdiff import __version__
from llmdiff.errors import ConfigError, CorruptWeightsError, LLMDiffError, PromptError
from llmdiff.pictures import Panel, check_writable, numbered, save_png, sheet

if TYPE_CHECKING:
    from PIL.Image import Image

    from llmdiff.controller import LLMController

# torch, transformers and diffusers are imported where they are used: a blank prompt or an output that cannot
# be written is refused before the seconds that these take.

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DrawingSettings:
    """How to draw. `height_px` and `width_px` None: the pipeline's own size.

    Units: seeds count up by one from picture to picture, so each can be drawn again alone.

    Raises:
        PromptError: the prompt is blank.
        ConfigError: a number is out of range.
    """

    prompt: str
    negative_prompt: str | None = None
    seed: int
    number: int = 1
    steps: int = 20
    guidance_scale: float = 4.0
    height_px: int | None = None
    width_px: int | None = None

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise PromptError(
                f"prompt is blank ({self.prompt!r}), expected a description of the picture: write one"
            )
        for name, text in (("prompt", self.prompt), ("negative_prompt", self.negative_prompt or "")):
            # Arguments that are no UTF-8 reach Python as lone surrogates, which no tokenizer takes.
            if any("\ud800" <= letter <= "\udfff" for letter in text):
                raise PromptError(f"{name} is not valid UTF-8: set the terminal to UTF-8 and write it again")
        for name, value, least in (
            ("seed", self.seed, 0),
            ("number", self.number, 1),
            ("steps", self.steps, 1),
        ):
            if value < least:
                raise ConfigError(f"{name} is {value}, expected at least {least}")
        if self.seed + self.number > 2**63:
            raise ConfigError(f"seed is {self.seed}, expected less than {2**63 - self.number + 1}")
        for name, size_px in (("height", self.height_px), ("width", self.width_px)):
            # Every Stable Diffusion pipeline refuses other sizes.
            if size_px is not None and (size_px < 8 or size_px % 8):
                raise ConfigError(f"{name} is {size_px} px, expected a multiple of 8")

    @property
    def seeds(self) -> range:
        """The seed of every picture."""
        return range(self.seed, self.seed + self.number)


@dataclass(frozen=True, kw_only=True)
class Models:
    """Which models draw; None: those that the adapter was made with."""

    adapter: str = "openmoji"
    llm: str | None = None
    pipeline: str | None = None
    scale: float = 1.0
    device: str | None = None


def new_seed() -> int:
    """Return a seed for those who gave none; stored in the picture, so that it can be drawn again."""
    return random.SystemRandom().randrange(2**31)


def generate(settings: DrawingSettings, models: Models, out: Path) -> list[Path]:
    """Return the pictures' paths, written one by one as they are drawn; metadata tells how each was made.

    Raises:
        OutputError: `out` cannot be written; checked before any model is loaded.
        LLMDiffError: whatever keeps the models from loading or from fitting each other.
    """
    paths = numbered(out, settings.number)
    for path in paths:
        check_writable(path)
    controller, pipe = load(models)
    facts = _facts(settings, models, controller, pipe)
    with controller.attached(pipe, models.scale):
        for path, seed in zip(paths, settings.seeds, strict=True):
            save_png(draw(pipe, settings, seed), path, {**facts, "seed": seed})
    return paths


def compare(settings: DrawingSettings, models: Models, out: Path) -> Path:
    """Return the path of one sheet: the base text encoder's pictures beside the LLM's, from the same seeds.

    Raises:
        OutputError: `out` cannot be written; checked before any model is loaded.
        LLMDiffError: whatever keeps the models from loading or from fitting each other.
    """
    check_writable(out)
    controller, pipe = load(models)
    captions = [f"seed {seed}" for seed in settings.seeds]
    base = Panel(
        title="base text encoder",
        images=[draw(pipe, settings, seed) for seed in settings.seeds],
        captions=captions,
    )
    with controller.attached(pipe, models.scale):
        ours = Panel(
            title=f"LLM ({controller.llm.id})",
            images=[draw(pipe, settings, seed) for seed in settings.seeds],
            captions=captions,
        )
    facts = _facts(settings, models, controller, pipe)
    save_png(
        sheet(settings.prompt, [base, ours]), out, {**facts, "seeds": ", ".join(map(str, settings.seeds))}
    )
    return out


def load(models: Models) -> tuple["LLMController", Any]:
    """Return the controller and the pipeline, on the device, with nothing attached yet.

    Raises:
        ConfigError: the device is not there.
        LLMDiffError: an adapter, LLM or pipeline is missing, damaged or does not fit.
    """
    device = usable_device(models.device)
    controller = load_controller(models, device=device)
    adapter: Any = controller.adapter.config
    with _damage_named(f"pipeline {models.pipeline or adapter.base_model_id!r}"):
        if models.pipeline is None:
            pipe = controller.load_pipeline(device=device)
        else:
            pipe = _load_pipeline(models.pipeline, device)
    # On a terminal only: in a log, a bar is a page of half-finished lines.
    pipe.set_progress_bar_config(disable=None, desc="drawing", leave=False)
    return controller, pipe


def load_controller(models: Models, *, device: str) -> "LLMController":
    """Return the controller of `models`, on the device.

    Raises:
        LLMDiffError: see `LLMController.from_pretrained`.
    """
    from llmdiff.controller import LLMController
    from llmdiff.language.llm import DecoderLLM

    _log.info("loading %s ...", models.adapter)
    _hide_loading_bars()
    llm = None
    if models.llm is not None:
        with _damage_named(f"llm {models.llm!r}"):
            llm = DecoderLLM.from_pretrained(models.llm, device=device)
    with _damage_named(f"adapter {models.adapter!r}"):
        return LLMController.from_pretrained(models.adapter, llm=llm, device=device)


def draw(pipe: Any, settings: DrawingSettings, seed: int) -> "Image":
    """Return one picture: alone, so that memory does not grow and a seed is all it takes to redraw it."""
    import torch

    # On the CPU, so that a seed means the same start on every machine.
    generator = torch.Generator().manual_seed(seed)
    try:
        image: Image = pipe(
            settings.prompt,
            negative_prompt=settings.negative_prompt,
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance_scale,
            height=settings.height_px,
            width=settings.width_px,
            generator=generator,
        ).images[0]
    except RuntimeError as error:
        # Accelerators have a class for it; the CPU's allocator only has words.
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise LLMDiffError(
            f"not enough memory to draw ({_first_line(error)}): choose a smaller height and width"
        ) from error
    return image


def usable_device(name: str | None) -> str:
    """Return the device's name after a trial; for None, the accelerator if there is one, else "cpu".

    Raises:
        ConfigError: there is no such device here.
    """
    import torch

    if name is None:
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return "cpu" if accelerator is None else accelerator.type
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            f'device {name!r} is not to be had here ({_first_line(error)}): leave it out, or use "cpu"'
        ) from error
    return name


def _load_pipeline(name: str, device: str) -> Any:
    from diffusers import AutoPipelineForText2Image

    load_any: Any = AutoPipelineForText2Image.from_pretrained
    try:
        return load_any(name, use_safetensors=True).to(device)
    except (OSError, ValueError) as error:
        reason = _first_line(error)
        if Path(name).is_dir():
            raise CorruptWeightsError(
                f"pipeline {name!r} is a folder that diffusers cannot read ({reason}): download or save it "
                "again"
            ) from error
        raise LLMDiffError(
            f"pipeline {name!r} is neither a folder nor to be had from the Hub ({reason}): get it once with "
            f'"hf download {name}", or pass a folder'
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _hide_loading_bars() -> None:
    """Hides the bars of steps that take less than a second, where the libraries are to be quiet."""
    import diffusers
    import huggingface_hub.utils
    import transformers

    logs: tuple[Any, ...] = (diffusers.utils.logging, transformers.utils.logging)
    if logs[0].get_verbosity() <= logging.WARNING:
        return
    downloads: Any = huggingface_hub.utils
    downloads_hidden = downloads.are_progress_bars_disabled()
    for log in logs:
        log.disable_progress_bar()
    # transformers turned off the bars of downloads as well, and those may take an hour.
    if not downloads_hidden:
        downloads.enable_progress_bars()


@contextmanager
def _damage_named(what: str) -> Iterator[None]:
    """Return a context where a damaged safetensors file, wherever it is read, is one of our errors."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise CorruptWeightsError(
            f"{what} has a weight file that is truncated or damaged ({error}): download it again"
        ) from error


def _facts(
    settings: DrawingSettings, models: Models, controller: "LLMController", pipe: Any
) -> Mapping[str, object]:
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
        "scale": models.scale,
        "scheduler": type(pipe.scheduler).__name__,
        "Software": f"llmdiff {__version__}",
        "versions": ", ".join(
            [f"python {platform.python_version()}", *(f"{name} {version(name)}" for name in packages)]
        ),
    }
