"""Train in stages: select the captions and pictures of each step and compute its loss."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from llmdiff.adapter import families
from llmdiff.errors import ConfigError
from llmdiff.training.batches import Batch, BatchLoader, CaptionReader, Epochs, Prefetcher
from llmdiff.training.checkpoint import checkpoints
from llmdiff.training.conditioning import Conditioned, Conditioning, Stage
from llmdiff.training.config import TrainConfig
from llmdiff.training.data import Samples
from llmdiff.training.denoise import denoise
from llmdiff.training.loop import StepPart, train
from llmdiff.training.objective import Noised, Objective, validation_losses
from llmdiff.training.optimizers import adapter_lr_scale
from llmdiff.training.prepare import captions_of, fill_shown, latent_store, split
from llmdiff.training.processes import installed_trackers, launched_process
from llmdiff.training.sample_sheet import draw_samples
from llmdiff.training.step_models import compiled, idle_models, on_device
from llmdiff.training.warm_start import stored_as_they_are, stored_queries, warm_start

WARM_START, _READINGS = "warm-start", "readings"
_QUERY_CAPTIONS = 256


class AdapterTraining:
    """A training of any `Conditioning` for a frozen denoiser, in stages.

    OUT/gains/        the stage of gains, if there is one
    OUT/warm-start/   the steps from captions alone, if there are any
    OUT/              the steps on pictures: log, checkpoints, samples

    Fields:
        must_match: values that must be equal when a run resumes, besides the loop's settings.
        readings: folder of readings that runs share, by default the store.
        trained: number of trained elements by parameter.

    `one_shape` trains only on whole batches of the most common shape.

    Raises:
        ConfigError: there are too few samples for a batch.
    """

    def __init__(
        self,
        config: TrainConfig,
        pipe: Any,
        samples: Samples,
        conditioning: Conditioning,
        *,
        must_match: Mapping[str, Any],
        readings: Path | None = None,
        one_shape: bool = False,
    ) -> None:
        self.config, self.pipe, self.samples, self.conditioning = config, pipe, samples, conditioning
        self.must_match, self.readings = must_match, readings or config.store_folder
        self.trained: dict[str, int] = {}
        self.denoiser = cast(Any, families.denoiser_of(pipe))
        family = families.family_of(pipe)
        self.denoise = partial(denoise, self.denoiser, family)
        if config.training.gradient_checkpointing:
            self.denoiser.enable_gradient_checkpointing()
        self.objective = Objective.of(
            pipe.scheduler,
            patch=family.patch_of(self.denoiser),
            min_snr_gamma=config.training.min_snr_gamma,
        )
        self.validation, self.kept = split(config, samples)
        if one_shape:
            self.kept = _whole_batches(self.kept, samples.rows[self.kept, 3], config.training.batch_size)
        stored = latent_store(config, pipe.vae, samples) if config.data.store_latents else None
        self.loader = BatchLoader(samples, pipe.vae, stored)
        self.process = launched_process(config.device)

    def train(self) -> None:
        """Run all stages: in each, first the steps from captions alone, then the steps on pictures, if any."""
        training, out = self.config.training, self.config.out
        text_steps, picture_steps = training.warm_start_steps, training.steps
        for stage in self.conditioning.stages():
            self.trained |= self.conditioning.trainable()
            samples, folder, steps = self.kept, out, picture_steps
            if stage.name == "gains":
                samples = samples[: max(training.gain_captions, training.batch_size)]
                folder, steps = out / stage.name, training.gain_steps
            place, last = (out / WARM_START, text_steps) if not steps else (folder, steps)
            read = self._reader(stage, samples, is_trained=_is_trained(place, last))
            with nullcontext() if stage.keeps == "nothing" else self.conditioning.reader_rests():
                if stage.name == "main" and text_steps:
                    self._from_captions(stage, read, samples, out / WARM_START, text_steps)
                if stage.name == "gains" and text_steps:
                    self._from_captions(stage, read, samples, folder, steps)
                    text_steps -= steps
                elif steps:
                    self._on_pictures(stage, read, samples, folder, steps)
                    picture_steps -= steps
        self.conditioning.train(False)
        if self.process.is_main_process and not training.steps and self.shows_samples:
            draw_samples(self.config, self.pipe, self.conditioning, training.warm_start_steps)
        if self.process.is_main_process:
            shutil.rmtree(out / _READINGS, ignore_errors=True)

    @property
    def shows_samples(self) -> bool:
        """Return whether sample pictures are drawn."""
        return bool(self.config.watch.prompts and self.config.watch.seeds)

    def _reader(self, stage: Stage, samples: NDArray[np.int64], *, is_trained: bool) -> CaptionReader:
        """Return the function that reads captions for a stage; first fill its store, if it has one."""
        store = stage.store(self.readings, self.config.out / _READINGS)
        if store is None:
            return stage.read
        if not is_trained:
            indices = [*samples, *self.validation] if stage.name == "main" else samples
            captions = [text for text, _ in captions_of(self.samples, indices)]
            fill_shown(store, captions, f"reading for {stage.name}", self.process)
        return store.batch

    def _from_captions(
        self, stage: Stage, read: CaptionReader, samples: NDArray[np.int64], folder: Path, steps: int
    ) -> None:
        """Train the denoiser's text attention to match the base's own text encoder, see `warm_start`."""
        training, side = self.config.training, self.config.data.resolution_px
        captions = captions_of(self.samples, samples)
        plain = [plain for _, plain in captions]

        def conditioned(indices: Sequence[int], generator: torch.Generator) -> Conditioned:
            with stored_as_they_are(self.denoiser.device):
                reading = read([captions[i][0] for i in indices])
            return stage.condition(reading, generator)

        # The same queries for every seed of the run, so that runs share them.
        drawn = np.random.default_rng(0).permutation(len(plain))[:_QUERY_CAPTIONS]
        self.conditioning.train()
        warm_start(
            self.pipe,
            self.conditioning,
            plain,
            conditioned,
            lambda: stored_queries(
                self.config.store_folder,
                self.pipe,
                [plain[i] for i in drawn],
                seed=0,
                height=side,
                width=side,
            ),
            # Not sharded: without the denoiser's activations every process has memory for all parameters.
            replace(training.loop(self.config.watch), steps=steps, sharded=False),
            folder,
            batch_size=training.batch_size,
            caption_dropout=training.caption_dropout,  # the last caption is the empty one
            lengths=[len(text) for text, _ in captions],
            title=f"{self.config.out.name}, {stage.name} from captions",
            must_match=self.must_match,
            **self._rates(),
        )

    def _on_pictures(
        self, stage: Stage, read: CaptionReader, samples: NDArray[np.int64], folder: Path, steps: int
    ) -> None:
        """Train with the base's own objective.

        loss = mean |denoiser(x_t, t, text states(y)) - target|^2        x_t: noised latents of a picture with caption y
        """
        config, training, is_main = self.config, self.config.training, stage.name == "main"
        loop = replace(training.loop(config.watch), steps=steps, sharded=training.sharded and is_main)
        if training.warm_start_steps:
            # The adapter is trained on captions already, so it needs smaller steps.
            loop = replace(loop, learning_rate=loop.learning_rate * training.lr_share_after_warm_start)
        processes = self.process.num_processes
        epochs = Epochs(rows=self.samples.rows[samples], batch_size=training.batch_size, seed=training.seed)

        def make(number: int) -> Batch:
            """Return the batch of a part of a step; its random numbers depend only on `number`."""
            rng = np.random.default_rng([training.seed, 14, number])
            indices = [int(samples[index]) for index in epochs.batch(number)]
            return self.loader.load(read, indices, rng, caption_dropout=training.caption_dropout)

        # The prefetcher's threads read captions while the denoiser trains.
        end = steps * training.accumulation_steps * processes
        batches = Prefetcher(make, stride=processes, ahead=training.prefetch, end=end)

        def step_loss(part: StepPart) -> tuple[Tensor, Mapping[str, float]]:
            batch = batches.get(part.number)
            latents = self.loader.latents(batch)
            conditioned = stage.condition(batch.reading, part.generator)
            noised = self.objective.noised(latents, part.generator)
            output = self.denoise(noised.latents, noised.timesteps, *conditioned, batch.sizes)
            figures = {**self.conditioning.figures(), **self.objective.figures(output, noised)}
            return self.objective.loss(output, noised), figures

        # A validation and sample pictures would compile the denoiser once more each, for a few calls.
        def validate(rank: int, processes: int) -> tuple[float, float]:
            with torch.compiler.set_stance("force_eager"):
                return validation_losses(
                    self.objective, self._validation_batches(stage, read, rank, processes)
                )

        def draw(step: int) -> Image.Image | None:
            installed.close()
            try:
                with on_device(idle, self.denoiser.device), torch.compiler.set_stance("force_eager"):
                    return draw_samples(config, self.pipe, self.conditioning, step)
            finally:
                installed.enter_context(self.conditioning.installed(self.denoiser))

        trackers = config.watch.trackers
        self.conditioning.train()
        idle = self._idle_models(stage)
        with (
            closing(batches),
            ExitStack() as installed,
            on_device(idle, torch.device("cpu")),
            compiled(self.denoiser, training.backend),
        ):
            installed.enter_context(self.conditioning.installed(self.denoiser))
            train(
                self.conditioning.modules,
                step_loss,
                loop,
                folder,
                title=config.out.name if is_main else f"{config.out.name}, {stage.name}",
                on_sample=draw if is_main and self.shows_samples else None,
                validate=validate if is_main and self.validation else None,
                must_match=self.must_match,
                metadata={"config": config.model_dump(mode="json")},
                samples_per_part=training.batch_size,
                trackers=installed_trackers() if trackers is None else trackers,
                tracking=config.out / "tensorboard",
                **self._rates(),
            )

    def _idle_models(self, stage: Stage) -> list[nn.Module]:
        """Return the base's models that no step on pictures runs: its text encoders, and the VAE of stored latents."""
        if stage.keeps == "nothing":
            return []
        used = [self.denoiser, *self.conditioning.modules.values()]
        return idle_models(self.pipe, used if self.config.data.store_latents else [*used, self.pipe.vae])

    def _rates(self) -> dict[str, Any]:
        """Return the arguments of `train` and `warm_start` for learning rates and optimisers."""
        training = self.config.training
        scale = adapter_lr_scale(training.scalar_learning_rate / training.learning_rate)

        def lr_scale(name: str) -> tuple[float, float]:
            share, decay = scale(name)
            return share * self.conditioning.lr_share(name), decay

        return {
            "lr_scale": lr_scale,
            "muon": lambda name: training.optimizer == "muon" and self.conditioning.uses_muon(name),
        }

    def _validation_batches(
        self, stage: Stage, read: CaptionReader, rank: int, processes: int
    ) -> Iterator[Any]:
        numbers = {self.validation[n]: n for n in range(rank, len(self.validation), processes)}
        for indices in self.samples.batches(numbers, self.config.training.batch_size):
            with stored_as_they_are(self.denoiser.device):
                batch = self.loader.load(read, indices, np.random.default_rng(0))
            conditioned = stage.condition(batch.reading, None)

            def predict(
                noised: Noised, conditioned: Conditioned = conditioned, batch: Batch = batch
            ) -> Tensor:
                return self.denoise(noised.latents, noised.timesteps, *conditioned, batch.sizes)

            yield self.loader.latents(batch), [numbers[index] for index in indices], predict


def _is_trained(folder: Path, steps: int) -> bool:
    """Return whether all steps are done, so that no captions have to be read."""
    found = checkpoints(folder)
    return steps == 0 or (bool(found) and found[-1][0] >= steps)


def _whole_batches(kept: Any, buckets: Tensor, batch_size: int) -> Any:
    """Return samples of the most common shape that fill whole batches."""
    found = kept[(buckets == buckets.mode().values).numpy()]
    if len(found) < batch_size:
        raise ConfigError(
            f"training.batch_size is {batch_size}, but of the first {len(kept)} samples at most {len(found)} have the "
            "same shape, which is less than a batch: lower it, or use more samples"
        )
    return found[: len(found) // batch_size * batch_size]
