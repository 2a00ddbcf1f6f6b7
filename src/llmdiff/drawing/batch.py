"""Many prompts drawn, one picture after the other or on many workers: what `llmdiff batch` does."""

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

# Of what a picture says of itself: all that decides what is on it, besides the models' digests and versions.
_SAME = (
    "prompt",
    "negative_prompt",
    "seed",
    "steps",
    "guidance_scale",
    "scale",
    "dtype",
    "via",
    "via_answers",
)


def read_prompts(path: Path) -> list[str]:
    """Return the lines of a text file, blank ones left out.

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
    """Return the paths of pictures as they are drawn: OUT/000000.png and so on, in the order of the prompts.

    `settings` hold for every prompt but for their own; all prompts have the same seeds. A picture that is there
    already, of the same prompt, seed and settings and drawn by the same models (their digests are in its file), is not
    drawn again. With `workers`, as many processes draw, on this machine or on Ray's cluster; which of them draws a
    picture makes no difference to it.

    Raises:
        OutputError: the folder cannot be written; known before any model is loaded.
        LLMDiffError: whatever keeps the models from loading or a prompt from being drawn.
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
        # Names and folders do not tell whether a picture is of these models: what was loaded does.
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
    """One process's models, attached; draws and writes one picture for each item.

    Fields:
        digests: of the models, written into every picture.
    """

    def __init__(self, *, settings: Mapping[str, Any], models: Mapping[str, Any]) -> None:
        self._settings, self._models = DrawingSettings(**settings), Models(**models)
        self._controller, self._pipe = load(self._models)
        self.digests = models_digests(self._controller, self._pipe)
        self._controller.attach(self._pipe, self._models.scale)

    def __call__(self, item: Mapping[str, Any]) -> dict[str, str]:
        """Return the path of the item's picture."""
        settings = replace(self._settings, prompt=item["prompt"])
        about = picture_metadata(settings, self._models, self._controller, self._pipe)
        image = draw(self._pipe, settings, item["seed"])
        save_png(image, Path(item["path"]), {**about, **self.digests, "seed": item["seed"]})
        return {"path": item["path"]}


def _items(prompts: Sequence[str], settings: DrawingSettings, out: Path) -> Iterator[dict[str, Any]]:
    for number, prompt in enumerate(prompts):
        own = replace(settings, prompt=prompt)  # a prompt that cannot be drawn is named before any is
        paths = numbered(out.absolute() / f"{number:06d}.png", settings.number)
        for path, seed in zip(paths, own.seeds, strict=True):
            yield {"prompt": own.prompt, "seed": seed, "path": str(path)}


def _digests(item: Mapping[str, Any], settings: DrawingSettings, models: Models) -> dict[str, str] | None:
    """Return the digests of the models that drew the item's picture; None if it is not there or of other settings."""
    path = Path(item["path"])
    try:
        told = read_metadata(path)
        with Image.open(path, formats=PICTURE_FORMATS) as image:
            width_px, height_px = image.size
    except (OSError, SyntaxError):  # none, or a damaged one
        return None
    wanted = {**asdict(settings), **asdict(models), **item, "via": models.via_model}
    if models.via_answers == 1:
        wanted["via_answers"] = None  # not worth saying
    same = all(told.get(name) == (None if wanted[name] is None else str(wanted[name])) for name in _SAME)
    if not same or settings.height_px not in (None, height_px) or settings.width_px not in (None, width_px):
        return None
    return {name: digest for name, digest in told.items() if name.endswith("_sha256")} or None
