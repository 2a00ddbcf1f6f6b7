"""Train and evaluate every system for every seed; resumable after a kill.

OUT/settings.json
OUT/runs/   see `trainings`; beside them:
OUT/runs/SYSTEM/seed-N/evaluation/   pictures, scores and figures, see `evaluate_suite`
OUT/report.json  OUT/report.md  OUT/report.html
OUT/runs/SYSTEM/guidance/SCALE/   the same for validation prompts, if guidance is chosen
OUT/logs/   logs of several workers, see `fill`
"""

import gc
import json
import logging
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import StableDiffusionPipeline
from numpy.typing import NDArray
from tqdm.auto import tqdm

from llmdiff.evaluation.metrics.kinds import Metric
from llmdiff.evaluation.picture_store import DRAWN_NAME
from llmdiff.evaluation.report import check_metrics, evaluate_suite
from llmdiff.evaluation.suites.scenes import SceneScorer, scene_prompts, scenes_suite
from llmdiff.evaluation.suites.suite import PromptSuite
from llmdiff.evaluation.systems import pipeline_system
from llmdiff.files import read_json, writable_folder, write_whole
from llmdiff.training.conditioning import Conditioning
from llmdiff_lab.comparison.page import benchmark_page
from llmdiff_lab.comparison.runs import EXACT, read_run
from llmdiff_lab.comparison.settings import BenchmarkSettings, keep_settings
from llmdiff_lab.comparison.summary import summarise_runs
from llmdiff_lab.comparison.systems import BASE, BASE_LONGER
from llmdiff_lab.comparison.tables import benchmark_tables, made_with
from llmdiff_lab.comparison.trainings import Trainings
from llmdiff_lab.rivals.two_branch import AdapterConditioning
from llmdiff_lab.world_build.build import Build

# The suite's prompts are of seed 0.
_VALIDATION_SEED = 1
_log = logging.getLogger(__name__)


class Benchmark:
    """One benchmark in a folder, on a finished build of the embedded default's base and checker."""

    def __init__(
        self,
        build: Build,
        settings: BenchmarkSettings,
        folder: Path,
        *,
        left_out: Mapping[str, str],
        metrics: Sequence[Metric] = (),
    ) -> None:
        """Start or resume the benchmark. `left_out` maps omitted systems to the reason.

        `metrics` are additional metrics; more can be added later if the pictures still exist.

        Raises:
            OutputError: the folder cannot be written.
            ConfigError: its benchmark has other settings.
            MetricError: a metric needs several pictures of a prompt.
        """
        self.metrics = list(metrics)
        self.build, self.settings, self.left_out = build, settings, dict(left_out)
        self.folder = writable_folder(folder)
        keep_settings(settings, self.folder)
        self.trainings = Trainings(build, settings, self.folder / "runs")
        check_metrics(self.metrics, self._suite, 1, has_reference=False)

    @cached_property
    def scorer(self) -> SceneScorer:
        """Return the scorer with the build's checker."""
        return SceneScorer(self.build.checker())

    @cached_property
    def _suite(self) -> PromptSuite:
        world = self.scorer.checker.world
        return scenes_suite(scene_prompts(self.settings.prompts_per_split, 0, world))

    def run(self, *, command: str) -> dict[str, Any]:
        """Run `fill`, then return the `report`."""
        self.fill()
        return self.report(command=command)

    def fill(self, systems: Collection[str] | None = None, *, seeds: Collection[int] | None = None) -> None:
        """Do the missing trainings and drawings of these systems and seeds (None: all), with a progress bar."""
        runs = [
            (name, seed)
            for name, seed in self.runs()
            if (systems is None or name in systems) and (seeds is None or seed in seeds)
        ]
        with tqdm(total=2 * len(runs), desc="benchmark", unit="part") as bar:
            for name, seed in runs:
                bar.set_postfix_str(f"{name}, seed {seed}")
                self.trainings.train(name, seed)
                bar.update()
                self._evaluate(name, self.trainings.place(name, seed) / "evaluation", seed)
                bar.update()

    def is_drawn(self, name: str, seed: int) -> bool:
        """Return whether this system's pictures are drawn and scored."""
        return (self.trainings.place(name, seed) / "evaluation" / "report.json").exists()

    def report(self, *, command: str, processes: int = 1) -> dict[str, Any]:
        """Write report.json, report.md and report.html of a finished benchmark and return the report.

        `processes` is the number of processes that ran at the same time.
        """
        trainings = self.trainings
        found = [
            read_run(trainings.place(name, seed), name, seed, logs=trainings.logs(name, seed))
            for name, seed in self.runs()
        ]
        report = summarise_runs(
            found, self.settings, command=command, left_out=self.left_out, processes=processes
        )
        write_whole(self.folder / "report.html", benchmark_page(report, found))
        write_whole(self.folder / "report.md", f"{made_with(report)}\n\n{benchmark_tables(report)}")
        write_whole(self.folder / "report.json", json.dumps(report, indent=1) + "\n")
        return report

    def runs(self) -> list[tuple[str, int]]:
        """Return all systems with their seeds. The base is not trained, so it has no seeds."""
        return [
            (name, seed)
            for seed in range(self.settings.seeds)
            for name in self.settings.rivals
            if name != BASE or seed == 0
        ]

    def _evaluate(self, name: str, place: Path, seed: int) -> None:
        """Draw and score the missing pictures, and write the report.

        If the pictures were deleted, existing figures are kept, and a warning names those that cannot be measured.
        """
        metrics: list[Any] = [self.scorer, *self.metrics]
        if (place / "report.json").exists():
            measured = read_json(place / "report.json")["metrics"]
            missing = [one.name for one in metrics if measured.get(one.name) != one.model_id]
            kept = (place / DRAWN_NAME / name).exists()
            if missing and not kept:
                _log.warning("%s: pictures of %s were not kept, %s cannot be measured", place, name, missing)
            if not missing or not kept:
                return
        self._draw(name, seed, self._suite, place, self._guidance_scale(name), metrics)
        gc.collect()

    def _guidance_scale(self, name: str) -> float:
        """Return the guidance scale of the settings with the most correct pictures of validation prompts.

        Ties go to the lowest. The pictures are those of the first seed. Validation prompts are from the suite's splits
        but not in the suite.
        """
        scales = sorted(self.settings.guidance_scales)
        shares = {scale: float(self.validation_exact(name, scale).mean()) for scale in scales}
        return max(shares, key=lambda scale: shares[scale]) if shares else self.settings.guidance_scale

    def validation_exact(self, name: str, guidance_scale: float) -> NDArray[np.float64]:
        """Return whether the first seed draws each validation prompt right at a guidance scale. Shapes: (prompts,)."""
        place = self.trainings.folder / name / "guidance" / f"{guidance_scale:g}"
        if not (place / "report.json").exists():
            self._draw(name, 0, self.validation, place, guidance_scale, [self.scorer])
        lines = (place / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
        return np.array([json.loads(line)["values"][EXACT] for line in lines], dtype=np.float64)

    @cached_property
    def validation(self) -> PromptSuite:
        """Return the prompts of the suite's splits that are not in the suite."""
        world, count = self.scorer.checker.world, self.settings.validation_prompts
        tested = {row.prompt for row in self._suite.prompts}
        # Twice as many, as some may be in the suite.
        found = [row for row in scene_prompts(2 * count, _VALIDATION_SEED, world) if row.prompt not in tested]
        by_split: dict[str, list[Any]] = {}
        for row in found:
            by_split.setdefault(row.split, []).append(row)
        return scenes_suite([row for rows in by_split.values() for row in rows[:count]])

    def _draw(
        self, name: str, seed: int, suite: PromptSuite, place: Path, guidance_scale: float, metrics: list[Any]
    ) -> None:
        """Draw and score the missing pictures of a suite, with the models of one training."""
        steps = self.settings.drawing_steps
        drawer = cache(lambda: self.drawer(name, seed))  # on first use: existing pictures need no weights

        def system(prompts: list[str], seeds: list[int]) -> NDArray[np.uint8]:
            with drawer().attached():
                draw = pipeline_system(drawer().pipe, steps=steps, guidance_scale=guidance_scale)
                return draw(prompts, seeds)

        facts = {"steps": steps, "guidance_scale": guidance_scale, "training_seed": seed}
        evaluate_suite({name: system}, suite, place, metrics=metrics, settings=facts)

    def drawer(self, name: str, seed: int) -> "Drawer":
        """Return the models that draw for a system."""
        pipe, scale = self.trainings.pipe, self.settings.system(name).scale
        if name == BASE:
            return Drawer(pipe)
        if name == BASE_LONGER:
            return Drawer(self.trainings.longer(seed))
        return Drawer(pipe, self.trainings.conditioning(name, seed), scale)


@dataclass(frozen=True)
class Drawer:
    """A pipeline, what is attached to it while it draws (None: nothing), and at which scale (None: alone)."""

    pipe: StableDiffusionPipeline
    conditioning: Conditioning | None = None
    scale: float | None = None

    def attached(self) -> AbstractContextManager[Any]:
        """Return a context in which the pipeline draws for the system."""
        if self.conditioning is None:
            return nullcontext()
        if self.scale is None:
            return self.conditioning.attached(self.pipe)
        assert isinstance(self.conditioning, AdapterConditioning)
        return self.conditioning.attached(self.pipe, self.scale)
