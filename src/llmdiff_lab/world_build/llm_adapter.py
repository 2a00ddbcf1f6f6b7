"""The configuration of an adapter's training on the embedded default's scenes, for `llmdiff train`."""

from pathlib import Path
from typing import Any, Literal

import torch

from llmdiff.training.config import TrainConfig
from llmdiff_lab.world_build.presets import Preset


def adapter_config(
    preset: Preset,
    out: Path,
    *,
    base: str,
    store: Path | None = None,
    device: torch.device | None = None,
    seed: int | None = None,
    validate_once: bool = False,
    lr_warmup_share: float = 1.0,
    precision: Literal["no", "bf16"] = "no",
) -> TrainConfig:
    """Return the configuration that trains the preset's adapter; for "cpu" it is `configs/openmoji-smollm2.yaml`.

    Without `adapter_warm_steps`, all steps are on pictures. `seed` is that of batches and noise where it is not the
    preset's. `validate_once`: only after the last step, and without sample pictures.
    """
    from_captions = preset.adapter_warm_steps > 0
    before = preset.adapter_gain_steps + preset.adapter_warm_steps
    steps = preset.adapter_steps + (0 if from_captions else before)
    # Scenes that no adapter is trained on come on top of the captions.
    held_out = min(64, 2 * preset.adapter_batch)
    watch: dict[str, Any] = {"validate_every": 250, "sample_every": 250}
    if validate_once:
        watch = {"validate_every": steps, "prompts": (), "trackers": ()}
    return TrainConfig.model_validate(
        {
            "out": out,
            "store": store,
            "device": "cpu" if device is not None and device.type == "cpu" else None,
            "models": {
                "llm": preset.llm,
                "base": base,
                "encoding": preset.adapter_encoding,
                "lone": preset.adapter_lone,
                "template": preset.adapter_template,
                "refiner_layers": preset.adapter_refiner_layers,
                "refiner_width": preset.adapter_refiner_width,
            },
            "data": {
                **preset.adapter_data,
                "scenes": preset.adapter_captions + held_out,
                "resolution_px": preset.image_size_px,
                "aspect_buckets": False,
                "store_latents": True,
            },
            "training": {
                "steps": steps,
                "batch_size": preset.adapter_batch,
                "learning_rate": preset.adapter_lr,
                "scalar_learning_rate": preset.adapter_scalar_lr,
                "lr_warmup_steps": preset.adapter_lr_warmup_steps,
                "lr_warmup_share": lr_warmup_share,
                "optimizer": "muon" if preset.adapter_muon else "adamw",
                "ema_horizon": 200,
                "gains": "first" if preset.adapter_gain_steps else "frozen",
                "gain_steps": preset.adapter_gain_steps,
                "warm_start_steps": before if from_captions else 0,
                "lr_share_after_warm_start": preset.adapter_lr_share_after_text,
                "caption_dropout": preset.caption_dropout,
                "precision": precision,
                "seed": preset.seed if seed is None else seed,
                "checkpoint_every_s": 180,
            },
            "watch": {"validation_samples": held_out, **watch},
        }
    )
