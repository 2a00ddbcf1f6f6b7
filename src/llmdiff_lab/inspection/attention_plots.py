"""Write attention maps of words as pictures and numbers."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from llmdiff.drawing.attention_maps import WordMaps
from llmdiff_lab.inspection.figure_files import figure_bytes, save_all

_COLUMNS, _MOST_STEPS = 6, 8


def save_maps(maps: WordMaps, folder: Path) -> list[Path]:
    """Write attention.png (summed), attention-steps.png, picture.png and attention.json into `folder`; return paths.

    Raises:
        OutputError: the folder cannot be written.
    """
    record = {
        "prompt": maps.prompt,
        "words": [word.text for word in maps.words],
        "side": maps.both.shape[-1],
        **{
            branch: np.round(maps.summed(branch).numpy(), 6).tolist()
            for branch in ("both", "pretrained", "new")
        },
    }
    picture = io.BytesIO()
    maps.picture.save(picture, format="PNG")
    contents: dict[str, str | bytes] = {
        "attention.png": figure_bytes(summed_figure(maps)),
        "attention-steps.png": figure_bytes(steps_figure(maps)),
        "picture.png": picture.getvalue(),
        "attention.json": json.dumps(record) + "\n",
    }
    return save_all(folder, contents)


def summed_figure(maps: WordMaps) -> Any:
    """Return a matplotlib figure of the picture and of every word's mean map over it."""
    from matplotlib.figure import Figure

    count = 1 + len(maps.words)
    columns = min(_COLUMNS, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(2.3 * columns, 2.6 * rows + 0.6), layout="constrained")
    figure.suptitle(maps.prompt)
    places = figure.subplots(rows, columns, squeeze=False).flat
    summed = maps.summed().numpy()
    _show(places[0], maps.picture, None, "picture")
    for place, word, heat in zip(places[1:], maps.words, summed, strict=False):
        _show(place, maps.picture, heat, word.text)
    for place in places[count:]:
        place.set_axis_off()
    return figure


def steps_figure(maps: WordMaps) -> Any:
    """Return a matplotlib figure with a row for every word and a column for some denoising steps."""
    from matplotlib.figure import Figure

    steps = maps.both.shape[0]
    chosen = sorted({round(i) for i in np.linspace(0, steps - 1, min(_MOST_STEPS, steps))})
    figure = Figure(figsize=(1.5 * len(chosen) + 1, 1.6 * len(maps.words) + 0.6), layout="constrained")
    figure.suptitle(maps.prompt)
    grid = figure.subplots(len(maps.words), len(chosen), squeeze=False)
    for row, (places, word) in enumerate(zip(grid, maps.words, strict=True)):
        for place, step in zip(places, chosen, strict=True):
            _show(place, maps.picture, maps.both[step, row].numpy(), f"step {step + 1}" if row == 0 else "")
        places[0].text(-0.08, 0.5, word.text, transform=places[0].transAxes, ha="right", va="center")
    return figure


def _show(place: Any, picture: Any, heat: Any, title: str) -> None:
    extent = (0, picture.width, picture.height, 0)
    if heat is None:
        place.imshow(picture, extent=extent)
    else:
        place.imshow(picture.convert("L").convert("RGB"), extent=extent)
        place.imshow(heat, extent=extent, cmap="inferno", alpha=0.65, interpolation="bilinear")
    place.set_title(title.replace("$", r"\$"), fontsize=9)
    place.set_axis_off()
