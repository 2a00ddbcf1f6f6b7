"""Make studies from pictures, and answer them."""

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from llmdiff.drawing.pictures import save_png
from llmdiff_lab.study.store import StudyStore

PROMPTS = ("a cat", "two dogs", "<script>alert(1)</script>", "=1+1")
SYSTEMS = ("base", "llm", "third & <b>")


def picture(number: int, size: int = 16) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 255, (size, size, 3), dtype=np.uint8))


def draw_all(
    root: Path, systems: Sequence[str] = SYSTEMS, prompts: Sequence[str] = PROMPTS
) -> dict[str, Path]:
    """Folders as `llmdiff generate` writes them: a system's pictures with prompt and seed inside."""
    folders = {}
    for index, system in enumerate(systems):
        folders[system] = root / f"system-{index}"
        for number, prompt in enumerate(prompts):
            # File names in another order than prompts: the metadata is what counts.
            path = folders[system] / f"{(number * 7 + index) % 10}-{number}.png"
            facts = {"prompt": prompt, "seed": 5, "llm": system}
            save_png(picture(10 * index + number), path, facts)
    return folders


def rate_all(store: StudyStore, token: str, prefer: Any, *, upto: int | None = None) -> list[Any]:
    """Answer a rater's pairs with `prefer(left picture, right picture, question)`."""
    shown = []
    for position in range(upto or store.progress(token).total):
        pair = store.shown(token, position)
        choices = {q: prefer(pair.left_picture, pair.right_picture, q) for q in store.settings.questions}
        store.answer(token, position, choices)
        shown.append(pair)
    return shown


def hidden(folder: Path) -> tuple[dict[str, str], set[str]]:
    """What raters are not told, read from the database: the system of every picture; those in noise."""
    with sqlite3.connect(folder / "study.sqlite") as connection:
        rows = connection.execute("SELECT first, second, first_picture, second_picture FROM pairs").fetchall()
    connection.close()
    systems = {p: s for one in rows for s, p in zip(one[:2], one[2:], strict=True) if s is not None}
    return systems, {row[3] for row in rows if row[0] is None}
