"""Draw many prompts, in this process or on several workers: the work of `llmdiff batch`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from llmdiff.drawing.draw import DrawingSettings, draw, picture_metadata
from llmdiff.drawing.models import Models, load, models_digests, scale_of, usable_device
from llmdiff.drawing.pictures import PICTURE_FORMATS, check_writable, numbered, read_metadata
from llmdiff.drawing.saving import save_drawn
from llmdiff.errors import PromptError
from llmdiff.files import prompt_lines
from llmdiff.workers.jobs import HERE, Job, Workers, run_jobs

# The metadata that determines a picture, besides the models' digests and versions.
_SAME = ("prompt", "negative_prompt", "seed", "steps", "guidance_scale")


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
    workers: Workers = HERE,
) -> Iterator[Path]:
    """Draw every prompt and yield the paths as they are written: OUT/000000.png and so on, in order of the prompts.

    `settings` apply to every prompt, except for `settings.prompt`; all prompts have the same seeds. An existing picture
    with the same prompt, seed, settings and digests of the models (in its metadata) is not drawn again. The
    pictures do not depend on `workers`.

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
    make: Callable[[], PromptDrawer] = partial(PromptDrawer, settings, models)
    digests: dict[str, str] | None = None
    if workers.here or any(kept.values()):
        # Names and folders do not identify the models; digests of the loaded weights do.
        drawer = make() if workers.here else PromptDrawer(settings, replace(models, device="cpu"))
        digests = drawer.digests
        if workers.here:
            make = drawer.itself
        del drawer
    jobs = [
        Job(name=item["path"], args=item)
        for item in every
        if digests is None or kept[item["path"]] != digests
    ]
    for done in run_jobs(make, jobs, workers, device=usable_device(models.device)):
        yield done.checked()


class PromptDrawer:
    """Draws and writes one picture for each item, with models that are loaded once per process.

    Fields:
        digests: digests of the models, written into every picture.
    """

    def __init__(self, settings: DrawingSettings, models: Models) -> None:
        self._settings, self._models = settings, models
        self._controller, self._pipe = load(self._models, base_draws=False)
        self.digests = models_digests(self._controller, self._pipe)
        self._controller.attach(self._pipe, self._models.control)

    def itself(self) -> "PromptDrawer":
        """Return this drawer, for a process that has loaded it already."""
        return self

    def __call__(self, item: Mapping[str, Any]) -> Path:
        """Return the path of the item's picture."""
        settings = replace(self._settings, prompt=item["prompt"])
        about = picture_metadata(settings, self._models, self._controller, self._pipe)
        image = draw(self._pipe, settings, item["seed"])
        path = Path(item["path"])
        save_drawn(image, path, self._settings.save_size, {**about, **self.digests, "seed": item["seed"]})
        return path


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
        if "drawn_size" in told:
            width_px, height_px = map(int, told["drawn_size"].split(" x "))
    except (OSError, SyntaxError, ValueError):  # missing or damaged
        return None
    drawn_with = {**asdict(settings), **item}
    wanted = {name: drawn_with[name] for name in _SAME} | models.metadata()
    size = settings.save_size
    wanted |= {"save_size": size and size.side_px, "save_filter": size and size.filter}
    same = all(told.get(name) == (None if value is None else str(value)) for name, value in wanted.items())
    if not same or settings.height_px not in (None, height_px) or settings.width_px not in (None, width_px):
        return None
    return {name: digest for name, digest in told.items() if name.endswith("_sha256")} or None
