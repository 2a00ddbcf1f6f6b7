"""Trains an adapter as a configuration says: what `llmdiff train` does."""

import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmdiff.adapter.adapter import uses_muon
from llmdiff.adapter.installation import install
from llmdiff.drawing.pictures import save_png
from llmdiff.errors import ConfigError, LLMDiffError, NonFinitePictureError, first_line
from llmdiff.files import write_whole
from llmdiff.language.score_groups import GroupedScores, sum_groups
from llmdiff.training.batches import Epochs, Prefetcher
from llmdiff.training.config import TrainConfig
from llmdiff.training.denoise import Sizes, denoise, encode_pictures
from llmdiff.training.loop import StepPart, train
from llmdiff.training.objective import Noised, Objective, validation_losses
from llmdiff.training.optimizers import adapter_lr_scale
from llmdiff.training.prepare import Parts, encoding_cache, latent_store, load_parts, prepare
from llmdiff.training.processes import installed_trackers, launched_process, whole_tensor
from llmdiff.training.runs import identity, only_run
from llmdiff.training.sample_sheet import adapter_tensors, adapter_with, sample_sheet
from llmdiff.training.warm_start import draw_queries, warm_start
from llmdiff.types import BlockStates, TextEncoding

Read = TextEncoding | GroupedScores | BlockStates
"""What the LLM made of texts: their encoding; while gains are learned, their grouped scores or all block updates."""

_QUERY_CAPTIONS = 256
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Samples of one shape. Shapes: pictures (B, 3, H, W) in -1..1, or (B, C, h, w) where latents are stored."""

    pictures: Tensor
    texts: list[str]
    sizes: list[Sizes]
    read: Read


def train_adapter(config: TrainConfig, *, samples: int | None = None) -> Path:
    """Train, or go on training, and return the folder of the finished adapter.

    `samples`: only on whole batches of one shape, out of the first so many, to be timed.

    Raises:
        LLMDiffError: see `load_parts` and `loop.train`; or the device's memory does not suffice.
    """
    try:
        return _train_adapter(config, samples)
    except torch.OutOfMemoryError as error:
        raise LLMDiffError(
            f"not enough memory on the device ({first_line(error)}): lower training.batch_size and raise "
            "training.accumulation_steps, or set training.gradient_checkpointing; `llmdiff plan` says what a run takes"
        ) from error


def _train_adapter(config: TrainConfig, samples: int | None) -> Path:
    process = launched_process(config.device)
    with only_run(config.out) if process.is_main_process else nullcontext():
        # The first process checks and encodes what is not in the store yet; the others then find it there.
        with process.main_process_first():
            parts = load_parts(config, process.device)
            parts = replace(parts, samples=replace(parts.samples, rows=parts.samples.rows[:samples]))
            prepare(config, parts)
        run = _Run(config, parts, process.num_processes, one_shape=samples is not None)
        if process.is_main_process:
            write_whole(config.out / "config.yaml", config.as_yaml())
        run.train()
        state = {name: whole_tensor(value) for name, value in adapter_tensors(parts.adapter).items()}
        if process.is_main_process:
            adapter_with(parts.adapter, state).save_pretrained(config.out / "adapter")
    return config.out / "adapter"


class _Run:
    """One run's samples, texts and models, as the loop's functions of a step."""

    def __init__(self, config: TrainConfig, parts: Parts, processes: int, *, one_shape: bool = False) -> None:
        self.config, self.parts = config, parts
        training = config.training
        self.denoiser, self.family = parts.denoiser, parts.family
        if training.gradient_checkpointing:
            self.denoiser.enable_gradient_checkpointing()
        self.objective = Objective.of(parts.pipe.scheduler, min_snr_gamma=training.min_snr_gamma)
        # The same samples are set aside whatever the run's seed, so that runs can be compared.
        order = np.random.default_rng(0).permutation(len(parts.samples))
        held_out = config.validation_count(len(order))
        self.validation, self.kept = order[:held_out].tolist(), np.sort(order[held_out:])
        if one_shape:
            self.kept = _whole_batches(self.kept, parts.samples.rows[self.kept, 3], training.batch_size)
        self.epochs = Epochs(
            rows=parts.samples.rows[self.kept], batch_size=training.batch_size, seed=training.seed
        )
        self.latents = (
            latent_store(config, parts.pipe.vae, parts.samples) if config.data.store_latents else None
        )
        self.encodings = (
            encoding_cache(config, parts.llm, parts.context) if training.stores_encodings else None
        )
        # A copy, because FSDP shares out the adapter's own, and a thread may read while that is apart.
        self.reading = deepcopy(self.parts.context).requires_grad_(False)
        every = training.steps * training.accumulation_steps * processes
        # The LLM reads the next texts in a thread of these, while the denoiser trains.
        self.batches = Prefetcher(self._batch, stride=processes, ahead=training.prefetch, end=every)

    def train(self) -> None:
        """Run the loop; returns nothing. The adapter is then what the run leaves behind."""
        config, training = self.config, self.config.training
        if training.warm_start_steps:
            self._warm_start()
        trackers = config.watch.trackers
        self.installed = install(self.denoiser, self.parts.adapter)
        try:
            train(
                {"adapter": self.parts.adapter},
                self._loss,
                training.loop(config.watch),
                config.out,
                title=config.out.name,
                **self._rates(),
                on_sample=self._draw,
                validate=self._validate if self.validation else None,
                extra=self._same(),
                metadata={"config": config.model_dump(mode="json")},
                samples_per_part=training.batch_size,
                trackers=installed_trackers() if trackers is None else trackers,
            )
        finally:
            self.batches.close()
            self.installed.restore()
        self.parts.adapter.eval()

    def _warm_start(self) -> None:
        """Trains from captions alone, or loads what an earlier start of this run has trained so."""
        config, training = self.config, self.config.training
        captions = self.parts.captions()
        side, seed = config.data.resolution_px, training.seed
        drawn = [
            captions[i] for i in np.random.default_rng(seed).permutation(len(captions))[:_QUERY_CAPTIONS]
        ]

        def choose(rng: np.random.Generator) -> list[int]:
            dropped = rng.random(training.batch_size) < training.caption_dropout
            chosen = rng.integers(len(captions), size=training.batch_size)
            return list(np.where(dropped, len(captions) - 1, chosen))  # the last caption is the empty one

        def conditioned(indices: Sequence[int], generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
            read = self._read([captions[i] for i in indices])
            return self.parts.adapter.condition(self._encoding(read, generator if training.noise else None))

        warm_start(
            self.parts.pipe,
            {"adapter": self.parts.adapter},
            captions,
            conditioned,
            lambda: draw_queries(self.parts.pipe, drawn, seed=seed, height=side, width=side),
            # Every process keeps the whole adapter: without the denoiser's activations there is room.
            replace(training.loop(config.watch), steps=training.warm_start_steps, sharded=False),
            config.out / "warm-start",
            installed=lambda denoiser: install(denoiser, self.parts.adapter),
            batch_size=training.batch_size,
            choose=choose,
            **self._rates(),
            title=f"{config.out.name}, from text",
            extra=self._same(),
        )

    def _same(self) -> dict[str, Any]:
        stored = self.encodings is not None, self.latents is not None
        return identity(self.config, self.parts, encodings=stored[0], latents=stored[1])

    def _rates(self) -> dict[str, Any]:
        """How fast each parameter learns, from text as on pictures."""
        training = self.config.training
        return {
            "lr_scale": adapter_lr_scale(training.scalar_learning_rate / training.learning_rate),
            "muon": lambda name: training.optimizer == "muon" and uses_muon(name),
        }

    def _batch(self, number: int) -> Batch:
        """The batch of a part of a step; all its chance comes from its number."""
        rng = np.random.default_rng([self.config.training.seed, 14, number])
        indices = [int(self.kept[index]) for index in self.epochs.batch(number)]
        return self._load(indices, rng, self.config.training.caption_dropout)

    def _load(self, indices: list[int], rng: np.random.Generator, caption_dropout: float = 0.0) -> Batch:
        loaded = [self.parts.samples.load(index, rng) for index in indices]
        pictures = [pixels for pixels, _, _ in loaded]
        if self.latents is not None:
            pictures = [self.latents.get(self.parts.samples.picture_name(index)) for index in indices]
        dropped = rng.random(len(loaded)) < caption_dropout
        texts = ["" if drop else text for drop, (_, text, _) in zip(dropped, loaded, strict=True)]
        return Batch(
            pictures=torch.stack(pictures),
            texts=texts,
            sizes=[sizes for _, _, sizes in loaded],
            read=self._read(texts),
        )

    def _loss(self, part: StepPart) -> tuple[Tensor, Mapping[str, float]]:
        batch = self.batches.get(part.step * part.count + part.index)
        latents = self._latents(batch)
        noise = part.generator if self.config.training.noise else None
        states, pooled = self.parts.adapter.condition(self._encoding(batch.read, noise))
        noised = self.objective.noised(latents, part.generator)
        output = self._denoise(noised, states, pooled, batch.sizes)
        return self.objective.loss(output, noised), self.objective.figures(output, noised)

    def _denoise(self, noised: Noised, states: Tensor, pooled: Tensor | None, sizes: list[Sizes]) -> Tensor:
        return denoise(self.denoiser, self.family, noised.latents, noised.timesteps, states, pooled, sizes)

    @torch.no_grad()
    def _latents(self, batch: Batch) -> Tensor:
        pictures = batch.pictures.to(self.parts.pipe.vae.device)
        return (
            pictures.float() if self.latents is not None else encode_pictures(self.parts.pipe.vae, pictures)
        )

    def _read(self, texts: list[str]) -> Read:
        """What the LLM makes of texts, as far as it does not depend on what is trained."""
        if self.encodings is not None:
            return self.encodings.batch(texts)
        llm, how = self.parts.llm, self.reading
        if self.config.training.gains == "frozen":
            return how.encode(llm, texts)
        return llm.block_updates(texts, lone=how.lone, template=how.template, max_length=how.max_length)

    def _encoding(self, read: Read, noise: torch.Generator | None) -> TextEncoding:
        if isinstance(read, BlockStates):
            states = self.parts.context.sum(read, generator=noise)
        elif isinstance(read, GroupedScores):
            states = sum_groups(self.parts.context, read, generator=noise)
        elif noise is None:
            return read
        else:
            states = self.parts.context.noised(read.states, read.token_mask, noise)
        return TextEncoding(states=states, token_mask=read.token_mask)

    def _validate(self, rank: int, processes: int) -> tuple[float, float]:
        return validation_losses(self.objective, self._validation_batches(rank, processes))

    def _validation_batches(self, rank: int, processes: int) -> Iterator[Any]:
        size = self.config.training.batch_size
        by_bucket: dict[int, list[int]] = defaultdict(list)
        for number in range(rank, len(self.validation), processes):
            by_bucket[int(self.parts.samples.rows[self.validation[number], 3])].append(number)
        for numbers in by_bucket.values():
            for start in range(0, len(numbers), size):
                part = numbers[start : start + size]
                # Loaded as for training, whose thread knows no autocast: that refuses to stack what is stored in half.
                with torch.autocast(self.denoiser.device.type, enabled=False):
                    batch = self._load([self.validation[number] for number in part], np.random.default_rng(0))
                states, pooled = self.parts.adapter.condition(self._encoding(batch.read, None))

                def predict(
                    noised: Noised, states: Tensor = states, pooled: Any = pooled, batch: Batch = batch
                ) -> Tensor:
                    return self._denoise(noised, states, pooled, batch.sizes)

                yield self._latents(batch), part, predict

    @torch.no_grad()
    def _draw(self, step: int) -> None:
        """Saves pictures of the same prompts from the same seeds, as the adapter draws now."""
        if not self.config.watch.prompts or not self.config.watch.seeds:
            return
        self.installed.restore()
        try:
            picture = sample_sheet(self.config, self.parts, title=f"{self.config.out.name}, step {step}")
        except NonFinitePictureError as error:
            # The adapter may be fine: what overflows is mostly a VAE, which training does not decode with.
            _log.warning("no sample pictures of step %d: %s", step, error)
            return
        finally:
            self.installed = install(self.denoiser, self.parts.adapter)
        save_png(picture, self.config.out / "samples" / f"step-{step:08d}.png", {"step": step})


def _whole_batches(kept: Any, buckets: Tensor, batch_size: int) -> Any:
    """The samples of the commonest shape, as many as fill whole batches."""
    found = kept[(buckets == buckets.mode().values).numpy()]
    if len(found) < batch_size:
        raise ConfigError(
            f"training.batch_size is {batch_size}, but of the first {len(kept)} samples at most {len(found)} have the "
            "same shape, which is less than a batch: lower it, or use more samples"
        )
    return found[: len(found) // batch_size * batch_size]
