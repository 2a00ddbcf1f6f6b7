"""How much of the LLM draws best: accuracy over `scale`, from the base's own text encoder (0) to the LLM alone (1).

    python speed/scale.py --prompts 40 --out docs/results/scale.json

The prompts are not those of `llmdiff evaluate` (another seed), so that a scale chosen here is not chosen on them.
"""

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

from llmdiff.controller import LLMController
from llmdiff.evaluation.report import evaluate_suite
from llmdiff.evaluation.suites.scenes import SceneScorer, load_checker, scene_prompts, scenes_suite
from llmdiff.evaluation.systems import BASE, System, controller_systems
from llmdiff.evaluation.tables import report_tables
from llmdiff.files import writable_folder


def sweep(chosen: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return the report of the base, once, and of every scale above 0."""
    controller = LLMController.from_pretrained(chosen.adapter)
    checker = load_checker("openmoji")
    drawing = {"steps": chosen.steps, "guidance_scale": chosen.guidance_scale}
    systems: dict[str, System] = {}
    pipe = controller.load_pipeline()
    for scale in map(float, chosen.scales.split(",")):
        base, ours = controller_systems(controller, pipe, control=scale, **drawing).values()
        systems.setdefault(BASE, base)
        systems[f"scale {scale:g}"] = ours
    suite = scenes_suite(scene_prompts(chosen.prompts, chosen.seed, checker.world))
    return evaluate_suite(
        systems, suite, folder, metrics=[SceneScorer(checker)], settings=drawing, seed=chosen.seed
    )


def main() -> None:
    """Measure and writes."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--out", type=Path, required=True)
    words.add_argument("--adapter", default="openmoji")
    words.add_argument("--scales", default="0.3,0.4,0.5,0.6,0.7,0.8,0.9,1")
    words.add_argument("--prompts", type=int, default=40, help="of every split")
    words.add_argument("--seed", type=int, default=1, help="of the suite; llmdiff evaluate has 0")
    words.add_argument("--steps", type=int, default=12)
    words.add_argument("--guidance-scale", type=float, default=3.0)
    chosen = words.parse_args()
    writable_folder(chosen.out.parent)
    with tempfile.TemporaryDirectory() as folder:
        print(report_tables(sweep(chosen, Path(folder))))
        shutil.copy(Path(folder) / "report.json", chosen.out)


if __name__ == "__main__":
    main()
