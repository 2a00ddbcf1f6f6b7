"""Measure the reliability of the checker on new renders of every split, clean and distorted."""

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from llmdiff.errors import LLMDiffError
from llmdiff.evaluation.tables import text_table
from llmdiff.world.checker import WorldChecker, to_checker_input
from llmdiff.world.reading import Reading, expected_of, matches
from llmdiff.world.rendering import render
from llmdiff.world.scenes import Scene, World
from llmdiff.world.splits import SPLITS, Split, split_scene
from llmdiff_lab.world_build.spoiling import mush, spoil, to_uint8

_BATCH, _MOST_CONFUSIONS = 128, 20
# Seed stream of the renders, different from that of the evaluation's prompts.
_STREAM = "checker"


def checker_figures(checker: WorldChecker, *, renders: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Return the shares of new renders of all splits whose contents the checker reads exactly.

    `exact`: all scenes, and those of `one or two`, `three to five` and `six` things; `splits` and `parts`: by name;
    `spoilt`: distorted like generated pictures; `shuffled`: compared with another render, the chance level;
    `nothing`: share of empty pictures with a detected thing. `confusions`: pairs of a thing and its wrong reading with
    their number, the most frequent first; `things read right`: share of all things.
    """
    rng = np.random.default_rng([seed, 10])
    scenes = held_out_scenes(checker.world, renders, seed)
    tally: dict[str, list[bool]] = {}
    splits: dict[Split, list[bool]] = {}
    parts: dict[str, list[bool]] = {}
    confused: Counter[tuple[str, str]] = Counter()
    for start in range(0, renders, _BATCH):
        named = scenes[start : start + _BATCH]
        some = [scene for _, scene in named]
        images = np.stack([render(scene) for scene in some])
        read = checker.read(images)
        for index, ((split, scene), reading) in enumerate(zip(named, read, strict=True)):
            verdict = matches(expected_of(scene), reading)
            for name in ("exact", _size_name(len(scene.things))):
                tally.setdefault(name, []).append(verdict.exact)
            splits.setdefault(split, []).append(verdict.exact)
            for part, is_right in verdict.parts.items():
                parts.setdefault(part, []).append(is_right)
            other = read[index - 1]
            tally.setdefault("shuffled", []).append(matches(expected_of(scene), other).exact)
            confused.update(pairs_read(scene, reading))
        for scene, reading in zip(
            some, checker.read(to_uint8(spoil(images, rng, clean_share=0.0))), strict=True
        ):
            tally.setdefault("spoilt", []).append(matches(expected_of(scene), reading).exact)
        pixels = to_checker_input(images)
        for reading in checker.read(to_uint8(mush(pixels, pixels.roll(1, dims=0), rng))):
            tally.setdefault("nothing", []).append(bool(reading.things))
    wrong = Counter({pair: count for pair, count in confused.items() if pair[0] != pair[1]})
    return {
        **{name: _share(values) for name, values in sorted(tally.items())},
        "things read right": round(1 - wrong.total() / confused.total(), 4),
        "splits": {split: _share(values) for split, values in splits.items()},
        "parts": {name: _share(values) for name, values in parts.items()},
        "confusions": [[*pair, count] for pair, count in wrong.most_common(_MOST_CONFUSIONS)],
        "renders": renders,
        "seed": seed,
    }


def figures_tables(figures: dict[str, Any], *, markdown: bool = False) -> str:
    """Return tables of the result of `checker_figures` in percent, and of the confusions."""
    rows = [["renders", "read exactly, %"]]
    rows += [[name, _percent(figures[key])] for key, name in _SHOWN.items() if key in figures]
    rows += [[f"split {split}", _percent(share)] for split, share in figures["splits"].items()]
    parts = [["part", "right, %"], *([part, _percent(share)] for part, share in figures["parts"].items())]
    confusions = [["thing", "read as", "times"], *([a, b, str(n)] for a, b, n in figures["confusions"])]
    notes = (
        f"{figures['renders']} fresh renders; everything that a render shows is compared. "
        f"{_percent(figures['things read right'])} % of all things are read as what they are."
    )
    return "\n\n".join(
        [text_table(rows, markdown), text_table(parts, markdown), text_table(confusions, markdown), notes]
    )


_SHOWN = {
    "exact": "all",
    "one or two": "one or two things",
    "three to five": "three to five things",
    "six": "six things",
    "spoilt": "spoilt as drawn pictures are",
    "shuffled": "compared with another render: chance",
    "nothing": "pictures of nothing in which a thing is seen",
}


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"


def held_out_scenes(world: World, count: int, seed: int) -> list[tuple[Split, Scene]]:
    """Return new scenes of every split in turn, without splits that this world has no scenes for."""
    splits = [split for split in SPLITS if _can_make(split, world)]
    turns = [splits[index % len(splits)] for index in range(count)]
    return [
        (split, split_scene(split, world, random.Random(f"{_STREAM} {seed} {index}")))
        for index, split in enumerate(turns)
    ]


def _can_make(split: Split, world: World) -> bool:
    try:
        split_scene(split, world, random.Random(_STREAM))
    except LLMDiffError:
        return False
    return True


def pairs_read(scene: Scene, reading: Reading) -> list[tuple[str, str]]:
    """Return, for each thing of a scene, its name and the name read at its position, or "nothing"."""
    left = list(reading.things)
    pairs = []
    for placed in scene.things:
        near = min(left, key=lambda seen: np.hypot(seen.x - placed.x, seen.y - placed.y), default=None)
        reach = placed.side / 2
        if near is None or np.hypot(near.x - placed.x, near.y - placed.y) > reach:
            pairs.append((_named(placed.name, placed.who), "nothing"))
            continue
        left.remove(near)
        pairs.append((_named(placed.name, placed.who), _named(near.name, near.who)))
    return [*pairs, *(("nothing", _named(seen.name, seen.who)) for seen in left)]


def _named(name: str, who: str | None) -> str:
    return f"{name} ({who})" if who else name


def _size_name(count: int) -> str:
    return "one or two" if count <= 2 else "three to five" if count <= 5 else "six"


def _share(values: Sequence[bool]) -> float:
    return round(float(np.mean(values)), 4)
