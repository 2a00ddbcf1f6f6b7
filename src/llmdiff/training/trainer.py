"""Train an adapter according to a configuration, for `llmdiff train`."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch._dynamo.exc import BackendCompilerFailed

from llmdiff.adapter.card import adapter_card
from llmdiff.errors import LLMDiffError, first_line
from llmdiff.files import write_whole
from llmdiff.training.adapter_conditioning import adapter_tensors, adapter_with
from llmdiff.training.adapter_training import AdapterTraining
from llmdiff.training.config import TrainConfig
from llmdiff.training.prepare import load_models, prepare
from llmdiff.training.processes import full_tensor, launched_process
from llmdiff.training.runs import identity, only_run


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
        # The first process checks samples and fills the store before the others use it.
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
