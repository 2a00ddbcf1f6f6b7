"""Draw many prompts, in this process or on Ray workers: the work of `llmdiff batch`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from PIL import Image

from llmdiff.drawing.draw import DrawingSettings, draw, picture_metadata
from llmdiff.drawing.models import Models, load, models_digests, scale_of, usable_device
from llmdiff.drawing.pictures import PICTURE_FORMATS, check_writable, numbered, read_metadata, save_png
from llmdiff.drawing.ray_workers import on_workers
from llmdiff.errors import PromptError
from llmdiff.files import prompt_lines

# The metadata that determines a picture, besides the models' digests and versions.
_SAME = (
    "prompt",
    "negative_prompt",
    "seed",
    "steps",
    "guidance_scale",
)


def read_prompts(path: Path) -> list[str]:
    """Return the lines of a text file, without blank lines.

    Raises:
        InputFileError: it cannot be read or is not UTF-8.
        PromptError: it has no prompt.
    """
    found = prompt_lines(path)
    if not found:
        raise PromptError(f"prompts {path} has no prompt: write one a line")
    return found


def draw_prompts(
    prompts: Sequence[str],
    settings: DrawingSettings,
    models: Models,
    out: Path,
    *,
    workers: int | None = None,
) -> Iterator[Path]:
    """Draw every prompt and yield the paths as they are written: OUT/000000.png and so on, in order of the prompts.

    `settings` apply to every prompt, except for `settings.prompt`; all prompts have the same seeds. An existing picture
    with the same prompt, seed, settings and digests of the models (in its metadata) is not drawn again. `workers` is
    the number of processes, on this machine or on a Ray cluster; the pictures do not depend on it.

    Raises:
        OutputError: the folder cannot be written; checked before any model is loaded.
        LLMDiffError: a model cannot be loaded, or a prompt cannot be drawn.
    """
    every = list(_items(prompts, settings, out))
    if not every:
        return
    check_writable(Path(every[0]["path"]))
    models = replace(models, scale=scale_of(models))
    kept = {item["path"]: _digests(item, settings, models) for item in every}
    init_args = {"settings": asdict(settings), "models": asdict(models)}
    painter = None
    if workers is None or any(kept.values()):
        # Names and folders do not identify the models; digests of the loaded weights do.
        place = {} if workers is None else {"models": asdict(replace(models, device="cpu"))}
        painter = Painter(**{**init_args, **place})
    items = [item for item in every if painter is None or kept[item["path"]] != painter.digests]
    if workers is None:
        for item in items:
            assert painter is not None
            yield Path(painter(item)["path"])
        return
    del painter
    gpus_each = 0.0 if usable_device(models.device) == "cpu" else 1.0
    for done in on_workers(Painter, init_args, items, workers=workers, gpus_each=gpus_each):
        yield Path(done["path"])


class Painter:
    """Draws and writes one picture for each item, with models that are loaded once per process.

    Fields:
        digests: digests of the models, written into every picture.
    """

    def __init__(self, *, settings: Mapping[str, Any], models: Mapping[str, Any]) -> None:
        self._settings, self._models = DrawingSettings(**settings), Models(**models)
        self._controller, self._pipe = load(self._models)
        self.digests = models_digests(self._controller, self._pipe)
        self._controller.attach(self._pipe, self._models.control)

    def __call__(self, item: Mapping[str, Any]) -> dict[str, str]:
        """Return the path of the item's picture."""
        settings = replace(self._settings, prompt=item["prompt"])
        about = picture_metadata(settings, self._models, self._controller, self._pipe)
        image = draw(self._pipe, settings, item["seed"])
        save_png(image, Path(item["path"]), {**about, **self.digests, "seed": item["seed"]})
        return {"path": item["path"]}


def _items(prompts: Sequence[str], settings: DrawingSettings, out: Path) -> Iterator[dict[str, Any]]:
    for number, prompt in enumerate(prompts):
        own = replace(settings, prompt=prompt)  # validates every prompt before drawing the first
        paths = numbered(out.absolute() / f"{number:06d}.png", settings.number)
        for path, seed in zip(paths, own.seeds, strict=True):
            yield {"prompt": own.prompt, "seed": seed, "path": str(path)}


def _digests(item: Mapping[str, Any], settings: DrawingSettings, models: Models) -> dict[str, str] | None:
    """Return the digests of the models that drew the item's picture; None if it is missing or has other settings."""
    path = Path(item["path"])
    try:
        told = read_metadata(path)
        with Image.open(path, formats=PICTURE_FORMATS) as image:
            width_px, height_px = image.size
    except (OSError, SyntaxError):  # missing or damaged
        return None
    drawn_with = {**asdict(settings), **item}
    wanted = {name: drawn_with[name] for name in _SAME} | models.metadata()
    same = all(told.get(name) == (None if value is None else str(value)) for name, value in wanted.items())
    if not same or settings.height_px not in (None, height_px) or settings.width_px not in (None, width_px):
        return None
    return {name: digest for name, digest in told.items() if name.endswith("_sha256")} or None
