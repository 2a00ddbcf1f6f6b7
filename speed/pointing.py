"""Does the denoiser look at the thing that a word names? The pointing game on drawn scenes.

    python speed/pointing.py --scenes 100 --out docs/results/pointing.json

Pairs of two objects are drawn with the LLM in control; where the checker sees both, the highest place of each
object's word map has to lie within that object. Chance is the share of the picture that the object covers.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from llmdiff.controller import LLMController
from llmdiff.drawing.attention_maps import Branch, draw_with_maps
from llmdiff.evaluation.statistics import bootstrap_mean
from llmdiff.evaluation.suites.scenes import load_checker, scene_prompts
from llmdiff.files import write_whole
from llmdiff.world.checker import WorldChecker
from llmdiff.world.layouts import OPPOSITE
from llmdiff.world.things import all_things

BRANCHES: tuple[Branch, ...] = ("both", "pretrained", "new")
_REACH = 0.205  # half of the side of a thing in a pair, as a share of the picture


def play(
    controller: LLMController, pipe: Any, checker: WorldChecker, *, scenes: int, steps: int
) -> dict[str, Any]:
    """Return the record of the game: accuracy of every branch over the drawn objects, with intervals."""
    hits: dict[str, list[float]] = {branch: [] for branch in BRANCHES}
    drawn = 0
    with tqdm(total=scenes, desc="scenes") as bar:
        for row in scene_prompts(40 * scenes, 1, checker.world, splits=("seen",)):
            named = {thing.name: _word_in(row.prompt, thing.name) for thing in row.expected.things}
            if row.expected.relation not in OPPOSITE or not all(named.values()):
                continue
            (seed,) = row.seeds(1, 0)
            maps = draw_with_maps(controller, pipe, row.prompt, 1.0, seed=seed, steps=steps)
            seen = {thing.name: thing for thing in checker.read(np.asarray(maps.picture)[None])[0].things}
            drawn += 1
            bar.update()
            for name, text in named.items():
                if name in seen and any(word.text == text for word in maps.words):
                    thing = seen[name]
                    for branch in BRANCHES:
                        x, y = maps.peak(str(text), branch)
                        hits[branch].append(max(abs(x - thing.x), abs(y - thing.y)) <= _REACH)
            if drawn == scenes:
                break
    chance = (2 * _REACH) ** 2
    record: dict[str, Any] = {"scenes": drawn, "chance": round(chance, 4), "steps": steps}
    for branch, values in hits.items():
        if not values:  # the checker saw none of the objects
            record[branch] = {"n": 0}
            continue
        record[branch] = asdict(bootstrap_mean(values))
    return record


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--adapter", default="openmoji")
    parser.add_argument("--scenes", type=int, default=100, help="pairs to draw")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    controller = LLMController.from_pretrained(chosen.adapter)
    pipe = controller.load_pipeline()
    pipe.set_progress_bar_config(disable=True)
    checker = load_checker("openmoji")
    record = play(controller, pipe, checker, scenes=chosen.scenes, steps=chosen.steps)
    for branch in BRANCHES:
        print(f"{branch:12s} {record[branch]}; chance {record['chance']:.3f}")
    write_whole(chosen.out, json.dumps(record | {"adapter": chosen.adapter}, indent=1) + "\n")


def _word_in(prompt: str, name: str) -> str | None:
    """Return the word of the prompt that names this thing; None if it has another description."""
    words = prompt.replace(",", "").replace(".", "").split()
    return next((noun.text for noun in all_things()[name].names if noun.text in words), None)


if __name__ == "__main__":
    main()
