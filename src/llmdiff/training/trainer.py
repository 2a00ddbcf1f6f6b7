"""Train an adapter according to a configuration, for `llmdiff train`."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch._dynamo.exc import BackendCompilerFailed

from llmdiff.adapter.card import adapter_card
from llmdiff.errors import LLMDiffError, first_line
from llmdiff.files import write_whole
from llmdiff.language.digests import model_digest
from llmdiff.training.adapter_conditioning import adapter_tensors, adapter_with
from llmdiff.training.adapter_training import AdapterTraining
from llmdiff.training.checkpoint import only_run
from llmdiff.training.config import TrainConfig, WatchConfig
from llmdiff.training.loop_config import LoopConfig
from llmdiff.training.prepare import TrainingModels, load_models, prepare
from llmdiff.training.processes import full_tensor, launched_process
from llmdiff.training.resume import flat

# Settings outside the loop that may change when a run resumes: paths, threads, logs. All others, also new ones, are
# compared.
_HARMLESS = {"out", "store", "device", "data.path", "data.threads", "data.max_bad_share"}
_HARMLESS |= {"training.prefetch", "training.gradient_checkpointing", "training.compile"}
_HARMLESS |= {f"watch.{name}" for name in WatchConfig.model_fields if name != "validation_samples"}
# The loop compares these itself, except the optimiser, for which it has one name for two.
_OF_THE_LOOP = {f"training.{name}" for name in LoopConfig.__dataclass_fields__ if name != "optimizer"}


def train_adapter(config: TrainConfig, *, samples: int | None = None) -> Path:
    """Train an adapter, or resume its training, and return the folder of the finished adapter.

    `samples` limits the training to whole batches of one shape from the first samples, for timing.

    Raises:
        LLMDiffError: see `load_models` and `loop.train`; or the device runs out of memory.
    """
    try:
        return _train_adapter(config, samples)
    except torch.OutOfMemoryError as error:
        raise LLMDiffError(
            f"not enough memory on the device ({first_line(error)}): lower training.batch_size and raise "
            "training.accumulation_steps, or set training.gradient_checkpointing; `llmdiff plan` estimates the memory"
        ) from error
    except BackendCompilerFailed as error:
        raise LLMDiffError(
            f"training.compile is {config.training.compile}, but the backend {config.training.backend} cannot compile "
            f"the denoiser here ({first_line(error)}): set training.compile to false"
        ) from error


def _train_adapter(config: TrainConfig, samples: int | None) -> Path:
    process = launched_process(config.device)
    with only_run(config.out) if process.is_main_process else nullcontext():
        # The first process checks samples before the others use them.
        with process.main_process_first():
            models = load_models(config, process.device)
        models = replace(models, samples=replace(models.samples, rows=models.samples.rows[:samples]))
        prepare(config, models)
        training = AdapterTraining(
            config,
            models.pipe,
            models.samples,
            models.conditioning(config.training),
            must_match=identity(config, models),
            one_shape=samples is not None,
        )
        if process.is_main_process:
            write_whole(config.out / "config.yaml", config.as_yaml())
        training.train()
        state = {name: full_tensor(value) for name, value in adapter_tensors(models.adapter).items()}
        if process.is_main_process:
            adapter = adapter_with(models.adapter, state)
            card = adapter_card(adapter, repo_id=config.out.absolute().name)
            adapter.save_pretrained(config.out / "adapter", card=card)
    return config.out / "adapter"


def identity(config: TrainConfig, models: TrainingModels) -> dict[str, Any]:
    """Return the values that must be equal when a run resumes: settings, samples, and models behind its stores."""
    told = flat(config.model_dump(mode="json"))
    found = {name: value for name, value in told.items() if name not in _HARMLESS | _OF_THE_LOOP}
    found["samples"] = models.samples.fingerprint
    if config.training.stores_encodings:
        found["weights of the LLM"] = model_digest(models.llm.model)
    if config.data.store_latents:
        found["weights of the VAE"] = model_digest(models.pipe.vae)
    return found
