"""What `llmdiff plan` counts of a step, beside that step on a GPU: python speed/planned.py --device cuda

Denoiser and adapter of the shipped configs' sizes, with random weights, run the step that the plan counts: forward and
backward, in the config's precision, with and without gradient checkpointing. Compared are the activations at their peak
(what the step takes beyond weights and gradients) and the seconds, which the plan computes for GPUs that it knows.
"""

import gc
import statistics
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from measuring import Record, finish, parser, record, wait

from llmdiff.adapter.installation import install
from llmdiff.errors import LLMDiffError
from llmdiff.training.config import TrainConfig, load_config
from llmdiff.training.gpus import GPUS
from llmdiff.training.meta_models import MetaModels, meta_models
from llmdiff.training.plan_step import count_step, latent_shape, pass_once
from llmdiff.training.prepare import COMPUTED_IN, set_trainable

_CONFIGS = Path(__file__).parents[1] / "configs"
_TOKENS = 32


def materialise(models: MetaModels, device: torch.device) -> None:
    """Returns nothing; gives denoiser and adapter random weights on the device, buffers zeros."""
    for module in (models.denoiser, models.adapter):
        module.to_empty(device=device)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.normal_(std=0.01)
            for buffer in module.buffers():
                buffer.zero_()


def measured(
    models: MetaModels, config: TrainConfig, latents: tuple[int, ...], half: torch.dtype | None, options: Any
) -> tuple[int, float]:
    """Returns the peak of a step's activations in bytes, and its median seconds."""
    device, adapter = torch.device(options.device), models.adapter

    def step() -> None:
        autocast = nullcontext() if half is None else torch.autocast(device.type, half)
        with install(models.denoiser, adapter), autocast:
            pass_once(models, config, latents, tokens=_TOKENS, device=device)

    step()  # whatever is made once
    held = torch.cuda.memory_allocated() if device.type == "cuda" else 0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(1 if options.quick else options.repeats):
        wait(options.device)
        began = time.perf_counter()
        step()
        wait(options.device)
        seconds.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated() - held if device.type == "cuda" else 0
    adapter.zero_grad(set_to_none=True)
    return peak, statistics.median(seconds)


def compare(config: TrainConfig, options: Any) -> list[Record]:
    """Returns the records of one config."""
    training, device = config.training, torch.device(options.device)
    models = meta_models(config.models, COMPUTED_IN[training.precision])
    set_trainable(models.adapter, training)
    half = None if training.precision == "no" else COMPUTED_IN[training.precision]
    latents = latent_shape(models, config)
    counted = {
        asked: count_step(models, config, latents, tokens=_TOKENS, checkpointing=asked, like_gpu=half)
        for asked in (False, True)
    }
    materialise(models, device)
    known = [gpu for gpu in GPUS if device.type == "cuda" and gpu.name in torch.cuda.get_device_name(device)]
    records = []
    for asked, cost in counted.items():
        if asked:
            models.denoiser.enable_gradient_checkpointing()
        peak, seconds = measured(models, config, latents, half, options)
        name = f"{config.out.name}, batch {training.batch_size}{', checkpointed' if asked else ''}"
        planned_s = known[0].seconds(cost.calls, half=half is not None) if known else None
        if device.type == "cuda":
            records.append(
                record(
                    f"activations, {name}",
                    ours=cost.peak_bytes / 1e9,
                    other=peak / 1e9,
                    unit="GB planned, measured",
                    device=options.device,
                )
            )
        if planned_s is not None:
            records.append(
                record(
                    f"a pass, {name}",
                    ours=planned_s,
                    other=seconds,
                    unit="s planned, measured",
                    device=options.device,
                )
            )
        print(
            name,
            f"{seconds:.4f} s",
            f"{peak / 1e9:.2f} GB of {cost.peak_bytes / 1e9:.2f} planned",
            flush=True,
        )
    return records


def main(arguments: Sequence[str] | None = None) -> list[Record]:
    options_of = parser(__doc__ or "")
    options_of.add_argument("configs", nargs="*", type=Path, help="[all that ship]")
    options = options_of.parse_args(arguments)
    records: list[Record] = []
    for path in options.configs or sorted(_CONFIGS.glob("*.yaml")):
        try:
            records += compare(load_config(path, []), options)
        except (LLMDiffError, torch.OutOfMemoryError) as error:
            print(f"{path.name}: left out, {error}", flush=True)
        gc.collect()
        if torch.device(options.device).type == "cuda":
            torch.cuda.empty_cache()
    return finish(records, options)


if __name__ == "__main__":
    main()
