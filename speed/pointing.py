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
from llmdiff.evaluation.suites.scenes import scene_prompts
from llmdiff.evaluation.suites.scenes_check import SceneChecker
from llmdiff.files import write_whole
from llmdiff.openmoji.contents import World
from llmdiff.openmoji.scenes import SCENE_SIZE_PX

BRANCHES: tuple[Branch, ...] = ("both", "pretrained", "new")
_REACH_PX = 12.5  # half of a pair's size


def play(
    controller: LLMController, pipe: Any, checker: SceneChecker, *, scenes: int, steps: int
) -> dict[str, Any]:
    """Return the record of the game: accuracy of every branch over the drawn objects, with intervals."""
    world = World(objects=checker.objects)
    hits: dict[str, list[float]] = {branch: [] for branch in BRANCHES}
    drawn = 0
    with tqdm(total=scenes, desc="scenes") as bar:
        for row in scene_prompts(20 * scenes, 1, world, splits=("seen",)):
            named = [(item, _name_in(row.prompt, world.thing(item.name))) for item in row.content.items]
            if row.content.relation is None or not all(name for _, name in named):
                continue
            maps = draw_with_maps(controller, pipe, row.prompt, 1.0, seed=row.seed, steps=steps)
            seen = {thing.name: thing for thing in checker.read(np.asarray(maps.picture)[None])[0].things}
            drawn += 1
            bar.update()
            for item, name in named:
                if item.name in seen and any(word.text == name for word in maps.words):
                    thing = seen[item.name]
                    for branch in BRANCHES:
                        x, y = (share * SCENE_SIZE_PX for share in maps.peak(str(name), branch))
                        hits[branch].append(max(abs(x - thing.x_px), abs(y - thing.y_px)) <= _REACH_PX)
            if drawn == scenes:
                break
    chance = (2 * _REACH_PX / SCENE_SIZE_PX) ** 2
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
    checker = SceneChecker.from_pretrained("openmoji")
    record = play(controller, pipe, checker, scenes=chosen.scenes, steps=chosen.steps)
    for branch in BRANCHES:
        print(f"{branch:12s} {record[branch]}; chance {record['chance']:.3f}")
    write_whole(chosen.out, json.dumps(record | {"adapter": chosen.adapter}, indent=1) + "\n")


def _name_in(prompt: str, thing: Any) -> str | None:
    """Return the thing's name if it is a single word of the prompt; None for shapes and descriptions."""
    if thing is None:
        return None
    return next((name for name in thing.names if name in prompt.replace(",", "").split()), None)


if __name__ == "__main__":
    main()
