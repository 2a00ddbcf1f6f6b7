"""What every run needs first, made once and kept: models, checked samples, encodings, latents."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from llmdiff.adapter import families
from llmdiff.adapter.adapter import LLMDiffAdapter
from llmdiff.adapter.base_pipeline import load_base_pipeline
from llmdiff.adapter.limits import check_steps
from llmdiff.controller import LLMController
from llmdiff.errors import ConfigError
from llmdiff.language.cache import EncodingCache, ScoreCache
from llmdiff.language.digests import model_digest
from llmdiff.language.encoding import ContextEncoding
from llmdiff.language.llm import DecoderLLM
from llmdiff.language.tensor_store import TensorStore
from llmdiff.training.config import TrainConfig, TrainingConfig
from llmdiff.training.data import Samples, check_samples
from llmdiff.training.denoise import check_trainable, encode_pictures, side_multiple_px

LATENT_CHUNK = 256  # pictures that are put on disk together
_LATENT_FORMAT = 2  # of what is kept, and of how pictures are opened
_CALIBRATION_CAPTIONS = 256
COMPUTED_IN = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The models and data of a run, on this process's device; all but the adapter frozen."""

    llm: DecoderLLM
    pipe: Any
    adapter: LLMDiffAdapter
    samples: Samples

    @property
    def context(self) -> ContextEncoding:
        """The adapter's weighted sum over the LLM's blocks; `load_parts` refuses adapters without one."""
        assert self.adapter.context is not None
        return self.adapter.context

    @property
    def family(self) -> families.Family:
        """The family of the base."""
        return families.family_of(self.pipe)

    @property
    def denoiser(self) -> Any:
        """The base's U-Net or transformer."""
        return families.denoiser_of(self.pipe)

    def captions(self) -> list[str]:
        """Return every caption of every sample, and the empty one."""
        return [*(text for index in range(len(self.samples)) for text in self.samples.texts(index)), ""]


def load_parts(config: TrainConfig, device: torch.device) -> Parts:
    """Return the models and the checked samples of a run.

    Raises:
        LLMDiffError: a model or the data cannot be had, or they do not fit each other.
    """
    dtype = COMPUTED_IN[config.training.precision]
    llm = DecoderLLM.from_pretrained(config.models.llm, device=device, dtype=dtype)
    pipe = load_base_pipeline(config.models.base, dtype=dtype).to(device)
    check_trainable(pipe)
    check_steps(pipe, config.watch.sample_steps, name="watch.sample_steps")
    samples = load_samples(config, pipe)
    config.validation_count(len(samples))
    if samples.quarantined:
        _log.info("%d samples are in quarantine: %s", samples.quarantined, config.store_folder / "samples")
    torch.manual_seed(config.training.seed)
    adapter = _adapter(config, llm, pipe, samples).to(device).train()
    families.denoiser_of(pipe).requires_grad_(False).eval()
    pipe.vae.requires_grad_(False).eval()
    pipe.set_progress_bar_config(disable=True)
    if adapter.context is None:
        raise ConfigError(
            f"models.start {config.models.start!r} reads no LLM's blocks: train it where it was made"
        )
    set_trainable(adapter, config.training)
    return Parts(llm=llm, pipe=pipe, adapter=adapter, samples=samples)


def load_samples(config: TrainConfig, pipe: Any) -> Samples:
    """Return the good samples of a run's data, checked the first time.

    Raises:
        DataError: the data cannot be had, or too much of it is bad.
    """
    store = config.store_folder
    return check_samples(
        config.data.source(store / "tables"),
        config.data.shapes(side_multiple_px(pipe, families.family_of(pipe))),
        store / "samples",
        max_bad_share=config.data.max_bad_share,
        threads=config.data.threads,
    )


def set_trainable(adapter: LLMDiffAdapter, training: TrainingConfig) -> None:
    """Let train what a run trains of an adapter; returns nothing."""
    assert adapter.context is not None
    if training.gains == "frozen":
        adapter.context.requires_grad_(False)
    adapter.context.h_raw.requires_grad_(training.noise)


def prepare(config: TrainConfig, parts: Parts) -> dict[str, int]:
    """Make what the store lacks, and return how much that was; interrupted, it goes on when run again."""
    made = {"captions": 0, "pictures": 0}
    if config.training.stores_encodings:
        captions = parts.captions()
        cache = encoding_cache(config, parts.llm, parts.context)
        with tqdm(desc="encoding captions", mininterval=2) as bar:
            made["captions"] = cache.fill(captions, progress=bar.update)
    if config.data.store_latents:
        vae, samples = parts.pipe.vae, parts.samples
        store = latent_store(config, vae, samples)
        missing = missing_latents(store, samples)
        with tqdm(total=len(missing), desc="encoding pictures", mininterval=2) as bar:
            made["pictures"] = fill_latents(store, vae, samples, missing, progress=bar.update)
    return made


def encoding_cache(
    config: TrainConfig, llm: DecoderLLM, context: ContextEncoding
) -> EncodingCache | ScoreCache:
    """Return the store of encodings that fits the adapter's gains and the LLM; of scores while gains learn."""
    groups = config.training.score_groups
    if groups is None:
        return EncodingCache(config.store_folder, llm, context)
    return ScoreCache(config.store_folder, llm, context, groups=groups)


def latent_store(config: TrainConfig, vae: Any, samples: Samples) -> TensorStore:
    """Return the store of latents for this VAE and this cut of the pictures; names are digests of pictures.

    A picture that was painted over has none, and one whose caption or name has changed keeps its own.
    """
    shapes = samples.shapes
    cut = [shapes.resolution_px, shapes.multiple_px, shapes.aspect_buckets, shapes.max_aspect]
    key = sha256(json.dumps([_LATENT_FORMAT, model_digest(vae), cut]).encode()).hexdigest()[:32]
    return TensorStore(config.store_folder / "latents" / key)


def missing_latents(store: TensorStore, samples: Samples) -> list[int]:
    """Return the samples whose latents are not in the store, of like pictures one."""
    first: dict[str, int] = {}
    for index in range(len(samples)):
        first.setdefault(samples.picture_name(index), index)
    return [first[name] for name in store.missing(first)]


@torch.no_grad()
def fill_latents(
    store: TensorStore,
    vae: Any,
    samples: Samples,
    indices: list[int],
    *,
    progress: Callable[[int], object] = lambda done: None,
) -> int:
    """Put the latents of these samples into the store, and return how many those were."""
    rng = np.random.default_rng(0)  # a centre crop asks for no chance
    for start in range(0, len(indices), LATENT_CHUNK):
        chunk: dict[str, Tensor] = {}
        for index in indices[start : start + LATENT_CHUNK]:
            pixels, _, _ = samples.load(index, rng)
            chunk[samples.picture_name(index)] = encode_pictures(vae, pixels[None])[0].half().cpu()
            progress(1)
        store.put(chunk)
    return len(indices)


def _adapter(config: TrainConfig, llm: DecoderLLM, pipe: Any, samples: Samples) -> LLMDiffAdapter:
    models = config.models
    if models.start is not None:
        return LLMController.from_pretrained(models.start, llm=llm).adapter
    rows = np.random.default_rng(0).permutation(len(samples))[:_CALIBRATION_CAPTIONS]
    captions = [samples.texts(int(row))[0] for row in rows]
    return LLMController.create(
        llm,
        pipe,
        models,
        base_model_id=models.base,
        calibration_prompts=captions,
    ).adapter
