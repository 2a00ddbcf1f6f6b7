"""Many prompts drawn, one picture after the other or on many workers: what `llmdiff batch` does."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from PIL import Image

from llmdiff.drawing.draw import DrawingSettings, draw, facts
from llmdiff.drawing.models import Models, load, scale_of, usable_device
from llmdiff.drawing.pictures import check_writable, numbered, read_metadata, save_png
from llmdiff.drawing.ray_workers import on_workers
from llmdiff.errors import PromptError

# Of what a picture says of itself: all that decides what is on it, besides versions.
_SAME = (
    "prompt",
    "negative_prompt",
    "seed",
    "steps",
    "guidance_scale",
    "adapter",
    "scale",
    "dtype",
    "via",
    "via_answers",
)


def read_prompts(path: Path) -> list[str]:
    """Return the lines of a text file, blank ones left out.

    Raises:
        PromptError: it cannot be read, is not UTF-8 or has no prompt.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(
            f"prompts {path} cannot be read ({error}): give a UTF-8 text file, one prompt a line"
        ) from error
    found = [line.strip() for line in lines if line.strip()]
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
    already, of the same prompt, seed and settings, is not drawn again. With `workers`, as many processes draw, on this
    machine or on Ray's cluster; which of them draws a picture makes no difference to it.

    Raises:
        OutputError: the folder cannot be written; known before any model is loaded.
        LLMDiffError: whatever keeps the models from loading or a prompt from being drawn.
    """
    every = list(_items(prompts, settings, out))
    if every:
        check_writable(Path(every[0]["path"]))
    models = replace(models, scale=scale_of(models))
    items = [item for item in every if not _is_there(item, settings, models)]
    made_of = {"settings": asdict(settings), "models": asdict(models)}
    if workers is None:
        painter = Painter(**made_of) if items else None
        for item in items:
            assert painter is not None
            yield Path(painter(item)["path"])
        return
    gpus_each = 0.0 if usable_device(models.device) == "cpu" else 1.0
    for done in on_workers(Painter, made_of, items, workers=workers, gpus_each=gpus_each):
        yield Path(done["path"])


class Painter:
    """One process's models, attached; draws and writes one picture for each item."""

    def __init__(self, *, settings: Mapping[str, Any], models: Mapping[str, Any]) -> None:
        self._settings, self._models = DrawingSettings(**settings), Models(**models)
        self._controller, self._pipe = load(self._models)
        self._controller.attach(self._pipe, self._models.scale)

    def __call__(self, item: Mapping[str, Any]) -> dict[str, str]:
        """Return the path of the item's picture."""
        settings = replace(self._settings, prompt=item["prompt"])
        about = facts(settings, self._models, self._controller, self._pipe)
        image = draw(self._pipe, settings, item["seed"])
        save_png(image, Path(item["path"]), {**about, "seed": item["seed"]})
        return {"path": item["path"]}


def _items(prompts: Sequence[str], settings: DrawingSettings, out: Path) -> Iterator[dict[str, Any]]:
    for number, prompt in enumerate(prompts):
        own = replace(settings, prompt=prompt)  # a prompt that cannot be drawn is named before any is
        paths = numbered(out.absolute() / f"{number:06d}.png", settings.number)
        for path, seed in zip(paths, own.seeds, strict=True):
            yield {"prompt": prompt, "seed": seed, "path": str(path)}


def _is_there(item: Mapping[str, Any], settings: DrawingSettings, models: Models) -> bool:
    path = Path(item["path"])
    try:
        told = read_metadata(path)
        with Image.open(path) as image:
            width_px, height_px = image.size
    except (OSError, SyntaxError):  # none, or a damaged one
        return False
    wanted = {**asdict(settings), **asdict(models), **item, "via": models.via_model}
    if models.via_answers == 1:
        wanted["via_answers"] = None  # not worth saying
    named = [name for name in ("llm", "pipeline") if wanted[name] is not None]
    return (
        all(
            told.get(name) == (None if wanted[name] is None else str(wanted[name]))
            for name in (*_SAME, *named)
        )
        and settings.height_px in (None, height_px)
        and settings.width_px in (None, width_px)
    )
