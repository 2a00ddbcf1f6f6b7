"""Trains and evaluates every system for every seed; what is done is done, also after a kill.

OUT/settings.json
OUT/runs/SYSTEM/seed-N/training/   logs and checkpoints      OUT/runs/SYSTEM/seed-N/model/     what was trained
OUT/runs/SYSTEM/seed-N/trained.json   its cost               OUT/runs/SYSTEM/seed-N/evaluation/
OUT/runs/SYSTEM/search.json   the learning rates that were tried
OUT/runs/SYSTEM/readings.safetensors   what it reads of the captions, where that is the same for all seeds
.../evaluation/metrics.json   what metrics say of the pictures
OUT/report.json  OUT/report.md  OUT/report.html
"""

import gc
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from numpy.typing import NDArray
from tqdm.auto import tqdm

from llmdiff.benchmark.measures import Measures
from llmdiff.benchmark.memory import PeakMemory
from llmdiff.benchmark.page import benchmark_page
from llmdiff.benchmark.runs import read_run
from llmdiff.benchmark.settings import BASE, BASE_LONGER, BenchmarkSettings, keep_settings
from llmdiff.benchmark.summary import summarise_runs
from llmdiff.benchmark.tables import benchmark_tables, made_with
from llmdiff.evaluation.metrics.kinds import Metric
from llmdiff.evaluation.report import evaluate_systems
from llmdiff.evaluation.scenes_check import SceneChecker
from llmdiff.evaluation.suites import ScenePrompt, scenes_suite
from llmdiff.evaluation.systems import pipeline_system
from llmdiff.files import whole_folder, writable_folder, write_whole
from llmdiff.language.llm import DecoderLLM
from llmdiff.openmoji import denoiser
from llmdiff.openmoji.build import Build
from llmdiff.openmoji.captioned import CaptionedScenes, Teacher, create_teacher
from llmdiff.openmoji.contents import World
from llmdiff.openmoji.llm_adapter import held_out_loss, train_conditioning
from llmdiff.openmoji.presets import Preset
from llmdiff.rivals.conditioning import Conditioning
from llmdiff.rivals.encoder import EncoderStates
from llmdiff.rivals.registry import Parts, create, rival
from llmdiff.rivals.storage import load_rival, save_rival
from llmdiff.training.log import read_log

_CALIBRATION_CAPTIONS = 256
_HELD_OUT_BATCHES = 16
# Adapters learn gains for this share of their steps; the presets' 300 of 1,700.
_GAIN_SHARE = 3 / 17


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
        """Begins the benchmark or goes on with it. `left_out` says of systems that are not in it why.

        `metrics` are measured besides; more may be measured later, where the pictures are still there.

        Raises:
            OutputError: the folder cannot be written.
            ConfigError: its benchmark was begun with other settings.
            MetricError: a metric needs several pictures of a prompt.
        """
        self._measures = Measures(metrics)
        self.build, self.settings, self.left_out = build, settings, dict(left_out)
        self._readers: dict[str, Any] = {}
        self.folder = writable_folder(folder)
        keep_settings(settings, self.folder)
        gain_steps = round((settings.text_steps or settings.steps) * _GAIN_SHARE)
        self.preset: Preset = replace(
            build.preset,
            adapter_gain_steps=gain_steps,
            adapter_warm_steps=settings.text_steps and settings.text_steps - gain_steps,
            adapter_steps=settings.steps if settings.text_steps else settings.steps - gain_steps,
            adapter_batch=settings.batch,
            adapter_captions=settings.captions,
        )

    @cached_property
    def pipe(self) -> StableDiffusionPipeline:
        """The frozen base that all rivals share."""
        pipe = self.build.pipeline()
        pipe.set_progress_bar_config(disable=True)
        return pipe

    @cached_property
    def _data(self) -> Any:
        return self.build.scenes()

    @cached_property
    def _checker(self) -> SceneChecker:
        return self.build.checker()

    @cached_property
    def _suite(self) -> list[ScenePrompt]:
        return scenes_suite(self.settings.prompts_per_split, 0, World(objects=self._checker.objects))

    @cached_property
    def _teacher(self) -> Teacher:
        """What the base says of the captions, which all rivals learn first."""
        return create_teacher(self.preset, self._data, self.pipe)

    def _reader(self, kind: str | None) -> dict[str, Any]:
        """The frozen reader of this kind, by the name that `Parts` has for it; loaded once."""
        if kind is None:
            return {}
        if kind not in self._readers:
            name, device = getattr(self.settings, kind), self.build.device
            load: Any = DecoderLLM.from_pretrained if kind == "llm" else EncoderStates.from_pretrained
            self._readers[kind] = load(name, device=device)
        return {kind: self._readers[kind]}

    def run(self, *, command: str) -> dict[str, Any]:
        """Return the report, after whatever of the training and drawing is not yet done.

        Also written: report.json, report.md and report.html. Shows a progress bar.
        """
        # The base is not trained, so it has no seeds.
        runs = [
            (name, seed)
            for seed in range(self.settings.seeds)
            for name in self.settings.rivals
            if name != BASE or seed == 0
        ]
        with tqdm(total=2 * len(runs), desc="benchmark", unit="part") as bar:
            for name, seed in runs:
                bar.set_postfix_str(f"{name}, seed {seed}")
                self._run(name, seed, bar.update)
        found = [read_run(self._place(name, seed), name, seed) for name, seed in runs]
        report = summarise_runs(found, self.settings, command=command, left_out=self.left_out)
        write_whole(self.folder / "report.html", benchmark_page(report, found))
        write_whole(self.folder / "report.md", f"{made_with(report)}\n\n{benchmark_tables(report)}")
        write_whole(self.folder / "report.json", json.dumps(report, indent=1) + "\n")
        return report

    def _place(self, name: str, seed: int) -> Path:
        return self.folder / "runs" / name / f"seed-{seed}"

    def _run(self, name: str, seed: int, done: Callable[[int], object]) -> None:
        place = self._place(name, seed)
        if not (place / "trained.json").exists():
            if name == BASE:
                write_whole(place / "trained.json", json.dumps({"trained_parameters": 0}))
            elif name == BASE_LONGER:
                self._train_base(place, seed)
            else:
                self._train_rival(name, place, seed)
            gc.collect()
        done(1)
        if not (place / "evaluation" / "report.json").exists():
            self._evaluate(name, place, seed)
            gc.collect()
        self._measures.measure(place / "evaluation", name, self._suite)
        done(1)

    def _train_rival(self, name: str, place: Path, seed: int) -> None:
        rate = self._learning_rate(name)
        preset = replace(self.preset, adapter_lr=rate)
        parts = self._parts(name, seed)
        conditioning = create(name, parts)
        with PeakMemory(self.build.device) as memory:
            trained = self._train(name, preset, conditioning, place / "training", seed)
        save_rival(conditioning, name, parts, place / "model")
        loss = held_out_loss(preset, self._data, self.pipe, conditioning, batches=_HELD_OUT_BATCHES)
        self._note(
            place,
            trained,
            memory.peak_gb,
            learning_rate=rate,
            held_out_loss=loss,
            source=conditioning.source_id,
        )

    def _train(
        self, name: str, preset: Preset, conditioning: Conditioning, folder: Path, seed: int = 0
    ) -> int:
        """How many numbers were trained. Seeds have the same captions: they differ in what is done with them."""
        return train_conditioning(
            preset,
            self._data,
            self.pipe,
            conditioning,
            folder,
            seed=preset.seed + seed,
            teacher=self._teacher,
            readings=self.folder / "runs" / name / "readings.safetensors",
        )

    def _train_base(self, place: Path, seed: int) -> None:
        pipe = self.build.pipeline()
        settings = replace(
            self.build.preset,
            seed=self.build.preset.seed + seed,
            unet_steps=self.settings.steps + self.settings.text_steps,
            unet_batch=self.settings.batch,
        )
        with PeakMemory(self.build.device) as memory:
            denoiser.train_on(
                settings, self._data, pipe, place / "training" / "main", wording=settings.adapter_wording
            )
        with whole_folder(place / "model") as partial:
            pipe.save_pretrained(partial)
        trained = sum(
            parameter.numel()
            for module in (pipe.unet, pipe.text_encoder)
            for parameter in module.parameters()
        )
        self._note(place, trained, memory.peak_gb, learning_rate=settings.unet_lr, source="the base's own")

    def _note(self, place: Path, trained: int, peak_gb: float, **more: Any) -> None:
        lines = read_log(place / "training" / "main" / "log.jsonl")
        speeds = [line["steps_per_s"] for line in lines if "steps_per_s" in line]
        record = {
            "trained_parameters": trained,
            # The median: what a machine does beside the training comes and goes.
            "seconds_per_step": float(1 / np.median(speeds)),
            "peak_memory_gb": round(peak_gb, 3),
            "threads": torch.get_num_threads(),
            **more,
        }
        write_whole(place / "trained.json", json.dumps(record, indent=1) + "\n")

    def _learning_rate(self, name: str) -> float:
        """The rate among those of the settings that leaves the lowest loss on held-out scenes, seed 0."""
        rates = self.settings.learning_rates
        path = self.folder / "runs" / name / "search.json"
        if len(rates) == 1:
            return rates[0]
        losses: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
        share = self.settings.search_steps / self.settings.steps
        for rate in rates:
            if str(rate) in losses:
                continue
            preset = replace(
                self.preset,
                adapter_lr=rate,
                adapter_gain_steps=round(self.preset.adapter_gain_steps * share),
                adapter_warm_steps=round(self.preset.adapter_warm_steps * share),
                adapter_steps=round(self.preset.adapter_steps * share),
            )
            conditioning = create(name, self._parts(name, 0))
            folder = self.folder / "runs" / name / "search" / f"lr-{rate}"
            self._train(name, preset, conditioning, folder)
            losses[str(rate)] = held_out_loss(
                preset, self._data, self.pipe, conditioning, batches=_HELD_OUT_BATCHES
            )
            write_whole(path, json.dumps(losses, indent=1) + "\n")
        return min(rates, key=lambda rate: losses[str(rate)])

    def _parts(self, name: str, seed: int, *, calibrate: bool = True) -> Parts:
        preset = self.preset
        captions = CaptionedScenes.draw(
            self._data, _CALIBRATION_CAPTIONS, preset.seed, preset.adapter_wording
        ).captions[:-1]
        return Parts(
            pipe=self.pipe,
            template=preset.adapter_template,
            lone=preset.adapter_lone,
            captions=captions if calibrate else (),
            base_model_id="openmoji",
            seed=preset.seed + seed + 3,
            **self._reader(rival(name).needs),
        )

    def _evaluate(self, name: str, place: Path, seed: int) -> None:
        settings = self.settings
        pipe, attached = self._trained(name, place, seed)
        draw = pipeline_system(pipe, steps=settings.drawing_steps, guidance_scale=settings.guidance_scale)

        def system(prompts: list[str], seeds: list[int]) -> NDArray[np.uint8]:
            with attached():
                return draw(prompts, seeds)

        facts = {"steps": settings.drawing_steps, "guidance_scale": settings.guidance_scale, "seed": seed}
        evaluate_systems(
            {name: system},
            self._suite,
            self._checker,
            place / "evaluation",
            settings=facts,
            keep_pictures=True,
        )

    def _trained(
        self, name: str, place: Path, seed: int
    ) -> tuple[StableDiffusionPipeline, Callable[[], AbstractContextManager[Any]]]:
        """The pipeline that draws for a system, and what has to be around it while it does."""
        if name == BASE:
            return self.pipe, nullcontext
        if name == BASE_LONGER:
            longer = StableDiffusionPipeline.from_pretrained(place / "model", use_safetensors=True)
            return longer.to(self.build.device), nullcontext
        conditioning: Conditioning = load_rival(place / "model", self._parts(name, seed, calibrate=False))
        return self.pipe, lambda: conditioning.attached(self.pipe)
