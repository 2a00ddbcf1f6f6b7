"""What 20, 200 and 2,000 own pictures teach: python speed/own_pictures.py --out docs/results/own-pictures.json

The pictures are scenes of the embedded default whose captions call four things by invented words (a "wug" is a car), as
a user's captions may have words of their own. Each number of pictures is a folder of PNG and text files, trained with
the configuration that `llmdiff init` writes for it, from the shipped adapter. Measured before and after: exact match on
prompts with an invented word, and on prompts without one, which should not become worse.
"""

import argparse
import json
import random
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from llmdiff.controller import LLMController
from llmdiff.environment import provenance
from llmdiff.evaluation.report import evaluate_suite
from llmdiff.evaluation.suites.scenes import ScenePrompt, SceneScorer, load_checker, scenes_suite
from llmdiff.evaluation.systems import controller_systems
from llmdiff.evaluation.tables import percent
from llmdiff.files import write_whole
from llmdiff.training.config import TrainConfig
from llmdiff.training.first_config import first_config
from llmdiff.training.trainer import train_adapter
from llmdiff.world.captions import Caption, caption
from llmdiff.world.packaged import packaged_world
from llmdiff.world.rendering import render
from llmdiff.world.scenes import Scene
from llmdiff.world.splits import sample_scene
from llmdiff.world.voices import PLAIN

INVENTED = {"car": "wug", "cat": "dax", "house": "blicket", "horse": "fep"}
_NAMES = re.compile(rf"\b({'|'.join(INVENTED)})(s?)\b")


# Every thing by its first name.
_VOICE = replace(PLAIN, other_name_share=0.0, description_share=0.0)


def scenes(seed: int, *, invented: bool) -> Iterator[tuple[Scene, Caption, str]]:
    """Yield scenes with at least one of the four things, or none of them: scene, caption, text with invented words."""
    world = packaged_world()
    for number in range(10**9):
        scene = sample_scene(seed, number, world)
        if invented == any(placed.name in INVENTED for placed in scene.things):
            told = caption(scene, _VOICE, random.Random(f"own pictures {seed} {number}"))
            yield scene, told, _NAMES.sub(lambda found: INVENTED[found[1]] + found[2], told.text)


def write_folder(folder: Path, count: int) -> None:
    """Write pictures with captions as a user has them; returns nothing."""
    folder.mkdir(parents=True)
    for number, (scene, _, text) in zip(range(count), scenes(1, invented=True), strict=False):
        Image.fromarray(render(scene)).save(folder / f"{number:05d}.png")
        (folder / f"{number:05d}.txt").write_text(f"{text}\n")


def prompts(count: int) -> list[ScenePrompt]:
    """Return as many prompts with an invented word as without."""
    rows = []
    for tag, invented in (("invented words", True), ("other words", False)):
        found = zip(range(count), scenes(2, invented=invented), strict=False)
        rows += [
            ScenePrompt(
                id=f"{tag}-{number:05d}", prompt=text, tags=(tag,), expected=told.expected, scene=scene
            )
            for number, (scene, told, text) in found
        ]
    return rows


def measured(adapter: str, rows: list[ScenePrompt], steps: int, folder: Path) -> dict[str, Any]:
    """Return an adapter's exact match by tag, with intervals."""
    controller = LLMController.from_pretrained(adapter)
    pipe = controller.load_pipeline()
    systems = controller_systems(controller, pipe, control=None, steps=steps)
    report = evaluate_suite(
        {"llm": systems["llm"]},
        scenes_suite(rows),
        folder,
        metrics=[SceneScorer(load_checker("openmoji"))],
        settings={"steps": steps},
    )
    by_tag = report["systems"]["llm"]["metrics_by_tag"]
    return {tag: by_tag[tag]["scenes"] for tag in by_tag}


def main(words: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure every number of pictures, write the record after each, and return it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", default="20,200,2000")
    parser.add_argument("--prompts", type=int, default=100, help="with an invented word, and as many without")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps")
    parser.add_argument("--training-steps", type=int, help="instead of those that `llmdiff init` chooses")
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args(words)
    rows = prompts(chosen.prompts)
    record: dict[str, Any] = {**provenance(), "invented": INVENTED, "prompts": len(rows), "runs": {}}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        record["runs"]["0"] = {"exact_match": measured("openmoji", rows, chosen.steps, folder / "before")}
        for count in map(int, chosen.pictures.split(",")):
            write_folder(folder / f"{count}", count)
            text, _ = first_config(
                folder / f"{count}",
                base="openmoji",
                llm="smollm2-135m",
                out=folder / f"run-{count}",
                device="cpu",
            )
            config = TrainConfig.model_validate(yaml.safe_load(text) | {"device": "cpu"})
            if chosen.training_steps is not None:
                training = config.training.model_copy(update={"steps": chosen.training_steps})
                config = config.model_copy(update={"training": training})
            start = time.monotonic()
            adapter = train_adapter(config)
            record["runs"][f"{count}"] = {
                "training_steps": config.training.steps,
                "batch_size": config.training.batch_size,
                "seconds": round(time.monotonic() - start, 1),
                "exact_match": measured(str(adapter), rows, chosen.steps, folder / f"after-{count}"),
            }
            for tag, exact in record["runs"][f"{count}"]["exact_match"].items():
                print(f"{count} pictures, {tag}: {percent(exact)} %")
            write_whole(chosen.out, json.dumps(record, indent=1) + "\n")
    return record


if __name__ == "__main__":
    main()
