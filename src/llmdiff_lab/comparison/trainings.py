"""Train every system for every seed; resumable after a kill.

RUNS/SYSTEM/seed-N/training/   logs and checkpoints      RUNS/SYSTEM/seed-N/model/   the trained model
RUNS/SYSTEM/seed-N/trained.json   its cost               RUNS/SYSTEM/search.json   the losses by learning rate
RUNS/SYSTEM/readings/   readings of the captions, if they are the same for all seeds
RUNS/store/   the latents of the captions' pictures, for all systems
"""

import gc
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline

from llmdiff.adapter.base_pipeline import EMBEDDED_NAME, load_base_pipeline
from llmdiff.errors import DivergedError
from llmdiff.files import write_whole
from llmdiff.language.calibration import CALIBRATION_CAPTIONS
from llmdiff.language.llm import DecoderLLM
from llmdiff.training.adapter_training import AdapterTraining
from llmdiff.training.conditioning import Conditioning
from llmdiff.training.config import TrainConfig
from llmdiff.training.data import Samples
from llmdiff.training.log import read_log
from llmdiff.training.prepare import COMPUTED_IN, fill_latents, latent_store, load_samples, missing_latents
from llmdiff_lab.comparison.memory import PeakMemory
from llmdiff_lab.comparison.rates import DIVERGED, RateSearch, held_out_loss
from llmdiff_lab.comparison.settings import BenchmarkSettings
from llmdiff_lab.comparison.systems import BASE, BASE_LONGER, TITLES, System
from llmdiff_lab.rivals.encoder import EncoderStates
from llmdiff_lab.rivals.readings import RivalInputs
from llmdiff_lab.rivals.registry import create, reader_of
from llmdiff_lab.rivals.storage import load_rival, save_rival
from llmdiff_lab.world_build.build import Build
from llmdiff_lab.world_build.llm_adapter import adapter_config
from llmdiff_lab.world_build.presets import Preset
from llmdiff_lab.world_build.stages import save_model

WARMUP_SHARE = 0.1
"""Largest share of a stage's steps for the warm-up, so that short stages also decay to zero."""


class Trainings:
    """The trainings of one benchmark, in its folder of runs."""

    def __init__(self, build: Build, settings: BenchmarkSettings, folder: Path) -> None:
        self.build, self.settings, self.folder = build, settings, folder
        self.rates = RateSearch(
            folder, settings.learning_rates, settings.search_steps / settings.steps, self._loss_after
        )
        self._readers: dict[str, Any] = {}
        self.preset: Preset = replace(
            build.preset,
            adapter_gain_steps=settings.gain_steps,
            adapter_warm_steps=settings.text_steps and settings.text_steps - settings.gain_steps,
            adapter_steps=settings.steps if settings.text_steps else settings.steps - settings.gain_steps,
            adapter_batch=settings.batch,
            adapter_captions=settings.captions,
        )

    @cached_property
    def pipe(self) -> StableDiffusionPipeline:
        """Return the frozen base that all rivals share."""
        pipe = self.build.pipeline()
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def prepare(self, systems: Sequence[str]) -> None:
        """Draw the scenes and load the readers that trainings of these systems need."""
        rivals = [self.settings.system(name).rival for name in systems]
        needs = {reader_of(name) for name in rivals if name not in TITLES}
        if BASE_LONGER in systems:
            self.build.prepare_longer()
        if set(systems) - {BASE, BASE_LONGER}:
            _ = self._samples
        for kind in needs:
            self._reader(kind)

    def place(self, name: str, seed: int) -> Path:
        """Return the folder of one system's run."""
        return self.folder / name / f"seed-{seed}"

    def train(self, name: str, seed: int) -> None:
        """Train a system if it is not trained yet; a mixture with the base uses the training of its rival."""
        system = self.settings.system(name)
        place = self.place(system.trained, seed)
        if not (place / "trained.json").exists():
            if system.rival == BASE:
                write_whole(place / "trained.json", json.dumps({"trained_parameters": 0}))
            elif system.rival == BASE_LONGER:
                self._train_base(place, seed)
            else:
                self._train_rival(system, place, seed)
            gc.collect()
        own = self.place(name, seed) / "trained.json"
        if not own.exists():
            write_whole(own, (place / "trained.json").read_text())

    def logs(self, name: str, seed: int) -> Path:
        """Return the folder of a system's training logs; a mixture with the base has no logs."""
        system = self.settings.system(name)
        return self.place(name if system.scale else system.trained, seed) / "training"

    def longer(self, seed: int) -> StableDiffusionPipeline:
        """Return the base after its longer training."""
        pipe: StableDiffusionPipeline = load_base_pipeline(
            str(self.place(BASE_LONGER, seed) / "model"), dtype=torch.float32
        )
        return pipe.to(self.build.device)

    def conditioning(self, name: str, seed: int) -> Conditioning:
        """Return a trained rival, ready to be attached to `pipe`."""
        parts = self.settings.system(name)
        return load_rival(
            self.place(parts.trained, seed) / "model", self._parts(parts.rival, seed, calibrate=False)
        )

    @cached_property
    def _samples(self) -> Samples:
        """Return the scenes and captions that all rivals are trained on, with latents in the store."""
        config = self._config(self.preset, self.folder)
        samples, vae = load_samples(config, self.pipe), self.pipe.vae
        store = latent_store(config, vae, samples)
        fill_latents(store, vae, samples, missing_latents(store, samples))
        return samples

    def _config(self, preset: Preset, folder: Path, seed: int = 0) -> TrainConfig:
        return adapter_config(
            preset,
            folder,
            base=str(self.build.folder / "denoiser" / "pipeline"),
            store=self.folder / "store",
            device=self.build.device,
            seed=preset.seed + seed,
            validate_once=True,
            lr_warmup_share=WARMUP_SHARE,
            precision=self.settings.precision,
        )

    def _train_rival(self, system: System, place: Path, seed: int) -> None:
        name, searched = system.rival, len(self.settings.learning_rates) > 1
        if searched and system.steps != 1:
            self.train(name, 0)  # its rate, checked in full
        rate = self.rates.best(name)
        record = self._train_with(rate, name, place, seed, times=system.steps)
        if searched and seed == 0 and system.steps == 1:
            self.rates.check_in_full(name, rate, record["held_out_loss"], lambda: _discard(place))
            if self.rates.best(name) != rate:
                record = self._train_with(self.rates.best(name), name, place, seed)
        write_whole(place / "trained.json", json.dumps(record, indent=1) + "\n")

    def _train_with(
        self, rate: float, name: str, place: Path, seed: int, *, times: float = 1.0
    ) -> dict[str, Any]:
        preset = replace(_scaled(self.preset, times), adapter_lr=rate)
        parts = self._parts(name, seed)
        conditioning = create(name, parts)
        with PeakMemory(self.build.device) as memory:
            trained = self._train_on_captions(name, preset, conditioning, place / "training", seed)
        save_rival(conditioning, name, parts, place / "model")
        loss = held_out_loss(place / "training")
        return self._record(
            place,
            trained,
            memory.peak_gb,
            learning_rate=rate,
            held_out_loss=loss,
            source=conditioning.source_id,
        )

    def _train_on_captions(
        self, name: str, preset: Preset, conditioning: Conditioning, folder: Path, seed: int = 0
    ) -> int:
        """Train on the captions, the same for all seeds, and return the number of trained parameters."""
        training = AdapterTraining(
            self._config(preset, folder, seed),
            self.pipe,
            self._samples,
            conditioning,
            must_match={"rival": name, "reader": conditioning.source_id},
            readings=self.folder / name / "readings",
        )
        training.train()
        return sum(training.trained.values())

    def _train_base(self, place: Path, seed: int) -> None:
        pipe = self.build.pipeline()
        steps, batch = self.settings.steps + self.settings.text_steps, self.settings.batch
        with PeakMemory(self.build.device) as memory:
            self.build.train_longer(pipe, place / "training", steps=steps, batch=batch, seed=seed)
        save_model(pipe, place / "model")
        trained = sum(
            parameter.numel()
            for module in (pipe.unet, pipe.text_encoder)
            for parameter in module.parameters()
        )
        record = self._record(
            place, trained, memory.peak_gb, learning_rate=self.build.preset.unet_lr, source="the base's own"
        )
        write_whole(place / "trained.json", json.dumps(record, indent=1) + "\n")

    def _record(self, place: Path, trained: int, peak_gb: float, **more: Any) -> dict[str, Any]:
        """Return the content of trained.json for a training."""
        lines = read_log(place / "training" / "log.jsonl")
        speeds = [line["steps_per_s"] for line in lines if "steps_per_s" in line]
        return {
            "trained_parameters": trained,
            # The median is robust against other load on the machine.
            "seconds_per_step": float(1 / np.median(speeds)),
            "peak_memory_gb": round(peak_gb, 3),
            "threads": torch.get_num_threads(),
            **more,
        }

    def _loss_after(self, name: str, rate: float, share: float) -> float:
        """Return the loss on held-out scenes after a training with this rate for this share of the steps, seed 0."""
        preset = replace(_scaled(self.preset, share), adapter_lr=rate)
        conditioning = create(name, self._parts(name, 0))
        folder = self.folder / name / "search" / (f"lr-{rate}" + ("-in-full" if share == 1.0 else ""))
        try:
            self._train_on_captions(name, preset, conditioning, folder)
        except DivergedError:
            return DIVERGED
        return held_out_loss(folder)

    def _parts(self, name: str, seed: int, *, calibrate: bool = True) -> RivalInputs:
        preset = self.preset
        count = min(CALIBRATION_CAPTIONS, len(self._samples)) if calibrate else 0
        captions = [text for index in range(count) for text, _ in self._samples.texts(index)]
        return RivalInputs(
            pipe=self.pipe,
            template=preset.adapter_template,
            lone=preset.adapter_lone,
            captions=captions,
            base_model_id=EMBEDDED_NAME,
            seed=preset.seed + seed + 3,
            **self._reader(reader_of(name)),
        )

    def _reader(self, kind: str | None) -> dict[str, Any]:
        """Return the frozen reader of this kind as an argument of `RivalInputs`; load it once."""
        if kind is None:
            return {}
        if kind not in self._readers:
            name, device = getattr(self.settings, kind), self.build.device
            if kind == "llm":
                dtype = COMPUTED_IN[self.settings.precision]
                self._readers[kind] = DecoderLLM.from_pretrained(name, device=device, dtype=dtype)
            else:
                self._readers[kind] = EncoderStates.from_pretrained(name, device=device)
        return {kind: self._readers[kind]}


def _discard(place: Path) -> None:
    for made in (place / "training", place / "model"):
        shutil.rmtree(made)


def _scaled(preset: Preset, times: float) -> Preset:
    """Return the preset with `times` as many steps of each kind."""
    return replace(
        preset,
        adapter_gain_steps=round(preset.adapter_gain_steps * times),
        adapter_warm_steps=round(preset.adapter_warm_steps * times),
        adapter_steps=round(preset.adapter_steps * times),
    )
