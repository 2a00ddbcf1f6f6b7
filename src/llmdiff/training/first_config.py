"""Write a first training configuration for a folder of pictures, for `llmdiff init`."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml
from torch._subclasses.fake_tensor import FakeTensorMode

from llmdiff.adapter.base_pipeline import EMBEDDED_NAME
from llmdiff.environment import memory_bytes
from llmdiff.errors import ConfigError, DataError
from llmdiff.training.config import TrainConfig
from llmdiff.training.data import check
from llmdiff.training.data_config import DataConfig
from llmdiff.training.denoise import latent_side_px, side_multiple_px
from llmdiff.training.fake_models import fake_models
from llmdiff.training.plan import make_plan

EMBEDDED_LLM = "smollm2-135m"
_LOOKED_AT = 500
_SQUARE = 1.05  # largest aspect of pictures that need no aspect buckets
_LARGEST_BATCH = {"cpu": 8}
_MEMORY_SHARE = 0.8


def first_config(pictures: Path, *, base: str, llm: str, out: Path, device: str) -> tuple[str, list[str]]:
    """Return a configuration (YAML) that trains on the pictures of a folder, and lines of a report on them.

    The first 500 samples are read as `prepare` reads them. The resolution is the base's own, the batch the largest
    power of two that fits the device's memory, and the number of steps grows with the number of pictures.

    Raises:
        DataError: no sample is good.
        LLMDiffError: a model's config cannot be found, or LLM and base cannot be combined.
    """
    own = base == EMBEDDED_NAME
    models: dict[str, Any] = {"llm": llm, "base": base}
    if own and llm == EMBEDDED_LLM:
        models["start"] = EMBEDDED_NAME
    data = {"kind": "folder", "path": str(pictures), "store_latents": True}
    training: dict[str, Any] = {"steps": 1000, "batch_size": 1}
    draft: dict[str, Any] = {"out": str(out), "models": models, "data": data, "training": training}
    data["resolution_px"] = side_px = _native_side_px(TrainConfig.model_validate(draft))
    seen = _look(TrainConfig.model_validate(draft).data, pictures)
    data["aspect_buckets"] = not own and max(seen.aspects) > _SQUARE
    if device != "cpu":
        training["precision"] = "bf16"
    batch = _batch_size(draft, device, seen.count)
    steps = _steps(seen.count, batch, started="start" in models)
    training |= {
        "steps": steps,
        "batch_size": batch,
        "learning_rate": 3e-4 if "start" in models else 1e-4,
        "lr_warmup_steps": steps // 10,
        "ema_horizon": max(2, steps // 4),
    }
    every = max(1, steps // 4)
    draft["watch"] = {"prompts": seen.captions, "validate_every": every, "sample_every": every}
    TrainConfig.model_validate(draft)
    report = [
        f"{seen.count} samples, {side_px} px, batches of {batch}, {steps} steps",
        *(f"{count} of the first {_LOOKED_AT} are left out: {why}" for why, count in seen.bad.items()),
    ]
    if seen.side_px < side_px / 2:
        report.append(f"the pictures are small ({seen.side_px} px), they are enlarged to {side_px} px")
    return yaml.safe_dump(draft, sort_keys=False, width=110), report


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """Fields: `side_px`, the median of the shorter sides; `bad`, numbers of bad samples by reason."""

    count: int
    aspects: list[float]
    side_px: int
    captions: list[str]
    bad: Counter[str]


def _look(data: DataConfig, pictures: Path) -> _Seen:
    source, shapes = data.source(pictures), data.shapes(1)
    bad, sizes, captions = Counter[str](), list[tuple[int, int]](), dict[str, None]()
    for number in range(min(len(source), _LOOKED_AT)):
        row = source.row(number)
        found = check(row, shapes)
        if found.reason is None:
            sizes.append((found.width, found.height))
            captions.setdefault(row.texts[0])
        else:
            bad[found.reason] += 1
    if not sizes:
        why = ", ".join(f"{count} x {reason}" for reason, count in bad.most_common(3))
        raise DataError(
            f"{pictures} has no usable sample ({why}): write each picture's caption into a text file of its name, "
            "cat.txt beside cat.jpg"
        )
    return _Seen(
        count=len(source) - bad.total(),
        aspects=[max(size) / min(size) for size in sizes],
        side_px=round(median(min(size) for size in sizes)),
        captions=list(captions)[:3],
        bad=bad,
    )


def _native_side_px(config: TrainConfig) -> int:
    with FakeTensorMode():
        models = fake_models(config.models, torch.float32)
    side = models.denoiser.config.get("sample_size") or 64
    latent_side: int = side if isinstance(side, int) else max(side)
    multiple_px = side_multiple_px(models.pipe, models.family)
    return max(multiple_px, latent_side * latent_side_px(models.pipe.vae) // multiple_px * multiple_px)


def _batch_size(draft: dict[str, Any], device: str, samples: int) -> int:
    free = torch.cuda.mem_get_info()[1] if device == "cuda" else memory_bytes() / 2
    needed = []
    for batch in (1, 2):
        training = draft["training"] | {"batch_size": batch}
        try:
            plan = make_plan(TrainConfig.model_validate(draft | {"training": training}), samples=samples)
        except ConfigError:  # a pass of this family cannot be counted
            return 1
        needed.append(sum(plan.memory.values()))
    fitting = (_MEMORY_SHARE * free - needed[0]) / max(1, needed[1] - needed[0]) + 1
    batch = 1
    # At least four batches an epoch, so that few pictures are still mixed anew.
    while 2 * batch <= min(fitting, samples / 4, _LARGEST_BATCH.get(device, 64)):
        batch *= 2
    return batch


def _steps(samples: int, batch: int, *, started: bool) -> int:
    """Return the number of steps: 100 epochs of few pictures, 20 from a trained adapter, 3 of very many."""
    epochs = min(20 if started else 100, max(3, 20_000 / samples))
    return max(100 if started else 200, 100 * round(samples * epochs / batch / 100))
