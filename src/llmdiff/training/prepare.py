"""Load and prepare the inputs of a run: models, checked samples, stored encodings and latents."""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from llmdiff.adapter import families
from llmdiff.adapter.adapter import LLMDiffAdapter
from llmdiff.adapter.base_pipeline import load_base_pipeline
from llmdiff.adapter.limits import check_steps
from llmdiff.controller import LLMController
from llmdiff.errors import ConfigError
from llmdiff.language.cache import CaptionStore, EncodingCache, ScoreCache
from llmdiff.language.calibration import CALIBRATION_CAPTIONS
from llmdiff.language.digests import model_digest
from llmdiff.language.encoding import ContextEncoding
from llmdiff.language.llm import DecoderLLM
from llmdiff.language.tensor_store import TensorStore
from llmdiff.training.adapter_conditioning import AdapterConditioning
from llmdiff.training.config import TrainConfig, TrainingConfig
from llmdiff.training.data import Samples, check_samples
from llmdiff.training.denoise import check_trainable, encode_pictures, side_multiple_px
from llmdiff.training.processes import launched_process
from llmdiff.training.warm_start import check_warm_start

LATENT_CHUNK = 256  # number of pictures in one file
_ENCODED_TOGETHER = 16
_LATENT_FORMAT = 3  # version of the files, of how pictures are opened and of how latents are scaled
COMPUTED_IN = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_Item = TypeVar("_Item")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainingModels:
    """The models and data of a run on this process's device; everything but the adapter is frozen."""

    llm: DecoderLLM
    pipe: Any
    adapter: LLMDiffAdapter
    samples: Samples

    @property
    def context(self) -> ContextEncoding:
        """Return the adapter's weighted sum over the LLM's blocks; `load_models` rejects adapters without one."""
        assert self.adapter.context is not None
        return self.adapter.context

    def conditioning(self, training: TrainingConfig) -> AdapterConditioning:
        """Return the trainer's conditioning by LLM and adapter."""
        return AdapterConditioning(
            self.adapter,
            self.llm,
            gains=training.gains,
            score_groups=training.score_groups,
            online=training.encodings == "online",
            noise=training.noise,
        )


def load_models(config: TrainConfig, device: torch.device) -> TrainingModels:
    """Return the models and the checked samples of a run.

    Raises:
        LLMDiffError: a model or the data cannot be loaded, or they cannot be combined.
    """
    dtype = COMPUTED_IN[config.training.precision]
    llm = DecoderLLM.from_pretrained(config.models.llm, device=device, dtype=dtype)
    pipe = load_base_pipeline(config.models.base, dtype=dtype).to(device)
    check_trainable(pipe, checkpointing=config.training.gradient_checkpointing)
    if config.training.warm_start_steps:
        check_warm_start(pipe)
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
            f"models.start {config.models.start!r} does not read an LLM's blocks, so llmdiff train cannot train it: "
            "use the program that made it"
        )
    set_trainable(adapter, config.training)
    return TrainingModels(llm=llm, pipe=pipe, adapter=adapter, samples=samples)


def load_samples(config: TrainConfig, pipe: Any) -> Samples:
    """Return the good samples of a run's data; check them on first use.

    Raises:
        DataError: the data cannot be loaded, or too many samples are bad.
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
    """Freeze the parameters of an adapter that a run does not train."""
    assert adapter.context is not None
    if training.gains == "frozen":
        adapter.context.requires_grad_(False)
    adapter.context.h_raw.requires_grad_(training.noise)


def split(config: TrainConfig, samples: Samples) -> tuple[list[int], NDArray[np.int64]]:
    """Return the samples for validation, in random order, and those for training.

    The split does not depend on the run's seed, so that runs can be compared.

    Raises:
        ConfigError: fewer samples than a batch are left for training.
    """
    order = np.random.default_rng(0).permutation(len(samples))
    held_out = config.validation_count(len(order))
    return order[:held_out].tolist(), np.sort(order[held_out:])


def captions_of(samples: Samples, indices: Iterable[int]) -> list[tuple[str, str]]:
    """Return all captions of these samples and at the end the empty one, each with its plain wording."""
    return [*(texts for index in indices for texts in samples.texts(int(index))), ("", "")]


def prepare(config: TrainConfig, models: TrainingModels) -> dict[str, int]:
    """Compute missing entries of the store and return their numbers; an interrupted call can be repeated.

    With `gains: first` captions are stored as scores for the training of gains; encodings need trained gains. Of
    several processes each computes its share and waits for the others; the numbers are those of its share.
    """
    made = {"captions": 0, "pictures": 0}
    process = launched_process(config.device)
    if (store := caption_store(config, models.llm, models.context)) is not None:
        captions = captions_to_read(config, models.samples)
        made["captions"] = fill_shown(store, captions, "encoding captions", process)
    if config.data.store_latents:
        vae, samples = models.pipe.vae, models.samples
        latents = latent_store(config, vae, samples)
        with (
            _own_share(missing_latents(latents, samples), process) as missing,
            tqdm(total=len(missing), desc="encoding pictures", mininterval=2, disable=not missing) as bar,
        ):
            made["pictures"] = fill_latents(latents, vae, samples, missing, progress=bar.update)
    return made


def fill_shown(store: CaptionStore[Any], captions: Sequence[str], title: str, process: Any) -> int:
    """Fill a store like `CaptionStore.fill`, with a progress bar; of several processes each reads its share."""
    missing = [text for chunk in store.missing_chunks(captions) for text in chunk]
    with (
        _own_share(missing, process) as own,
        tqdm(total=len(own), desc=title, mininterval=2, disable=not own) as bar,
    ):
        return store.fill(own, progress=bar.update)


@contextmanager
def _own_share(missing: list[_Item], process: Any) -> Iterator[list[_Item]]:
    """Yield this process's share of what is missing; the context ends when every process has finished its own."""
    process.wait_for_everyone()  # all have listed what is missing before one of them writes
    yield missing[process.process_index :: process.num_processes]
    process.wait_for_everyone()


def captions_to_read(config: TrainConfig, samples: Samples) -> list[str]:
    """Return the captions that `prepare` stores."""
    indices: Iterable[int] = range(len(samples))
    if config.training.gains == "first":
        indices = split(config, samples)[1][: config.training.gain_captions]
    return [text for text, _ in captions_of(samples, indices)]


def caption_store(config: TrainConfig, llm: DecoderLLM, context: ContextEncoding) -> CaptionStore[Any] | None:
    """Return the store of captions for a run's first stage; None if it has none."""
    training = config.training
    if not training.stores_encodings:
        return None
    if training.gains == "frozen":
        return EncodingCache(config.store_folder, llm, context)
    groups = training.score_groups or context.num_blocks
    return ScoreCache(config.store_folder, llm, context, groups=groups)


def latent_store(config: TrainConfig, vae: Any, samples: Samples) -> TensorStore:
    """Return the store of latents for this VAE and crop of the pictures; names are digests of pictures.

    A changed picture has another name; a changed caption or file name does not matter.
    """
    shapes = samples.shapes
    cut = [shapes.resolution_px, shapes.multiple_px, shapes.aspect_buckets, shapes.max_aspect]
    key = sha256(json.dumps([_LATENT_FORMAT, model_digest(vae), cut]).encode()).hexdigest()[:32]
    return TensorStore(config.store_folder / "latents" / key)


def missing_latents(store: TensorStore, samples: Samples) -> list[int]:
    """Return the samples whose latents are not in the store, one for each different picture."""
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
    """Store the latents of these samples and return their number."""
    rng = np.random.default_rng(0)  # not used for a centre crop
    for start in range(0, len(indices), LATENT_CHUNK):
        chunk: dict[str, Tensor] = {}
        for part in samples.batches(indices[start : start + LATENT_CHUNK], _ENCODED_TOGETHER):
            pixels = torch.stack([samples.load(index, rng)[0] for index in part])
            latents = encode_pictures(vae, pixels).half().cpu()
            chunk |= {samples.picture_name(index): one for index, one in zip(part, latents, strict=True)}
            progress(len(part))
        store.put(chunk)
    return len(indices)


def _adapter(config: TrainConfig, llm: DecoderLLM, pipe: Any, samples: Samples) -> LLMDiffAdapter:
    models = config.models
    if models.start is not None:
        started = LLMController.from_pretrained(models.start, llm=llm).adapter
        if started.groups == 1 < models.routing and config.training.gains == "frozen":
            raise ConfigError(
                f"models.routing is {models.routing}, but training.gains is frozen, so all groups would keep the gains "
                f"of {models.start!r}: set gains to first or learned, or leave routing out"
            )
        return models.continued(started)
    rows = np.random.default_rng(0).permutation(len(samples))[:CALIBRATION_CAPTIONS]
    captions = [samples.texts(int(row))[0][0] for row in rows]
    return LLMController.create(
        llm,
        pipe,
        models,
        base_model_id=models.base,
        calibration_prompts=captions,
    ).adapter
