"""The stages of a build: each runs once and records its settings."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from llmdiff.errors import ConfigError
from llmdiff.files import whole_folder, write_whole
from llmdiff.training.curves import save_curve
from llmdiff_lab.world_build.presets import Preset

# Prefixes of the settings that all stages depend on, and of those of each stage (default: its own name).
_SHARED_VALUES = ("image_size_px", "seed", "things", "styles")
_OWN_VALUES: Mapping[str, tuple[str, ...]] = {
    "scenes": (
        "scenes",
        "text_scenes",
        "portraits",
        "captions_each",
        "text_vocabulary",
        "text_captions",
        "text_max_tokens",
    ),
    "text": (
        "text_width",
        "text_layers",
        "text_reader_layers",
        "text_scenes",
        "text_steps",
        "text_batch",
        "text_lr",
        "text_max_tokens",
    ),
    "latents": ("scenes", "portraits"),
    "scenes-rich": ("scenes", "text_vocabulary", "text_captions", "text_max_tokens"),
    "denoiser": ("unet_", "portrait_"),
    "adapter": ("adapter_", "llm"),
}


def is_done(folder: Path) -> bool:
    """Return whether the stage in this folder is done."""
    return (folder / "done.json").exists()


def run_stage(folder: Path, preset: Preset, make: Callable[[], dict[str, Any]]) -> None:
    """Run the stage of this folder unless it is done; `make` returns the figures to record in `done.json`.

    Raises:
        ConfigError: the stage was made with other settings.
    """
    done = folder / "done.json"
    if done.exists():
        _check_values(folder, preset, json.loads(done.read_text(encoding="utf-8")).get("preset", {}))
        return
    print(f"== {folder.name}", flush=True)
    started = time.monotonic()
    figures = make()
    for log in folder.rglob("log.jsonl"):
        save_curve(log, log.with_name("loss.png"))
    record: dict[str, Any] = {
        **figures,
        "last_run_s": round(time.monotonic() - started),
        "preset": asdict(preset),
    }
    write_whole(done, json.dumps(record, indent=1))
    print(f"== {folder.name}: {json.dumps(figures)}", flush=True)


def save_model(model: Any, folder: Path) -> None:
    """Save a diffusers or transformers object whole or not at all; of several processes the first one writes.

    On the others transformers writes no weights, so a folder of theirs must not replace the first one's.
    """
    several = torch.distributed.is_initialized()
    if not several or torch.distributed.get_rank() == 0:
        with whole_folder(folder) as partial:
            model.save_pretrained(partial)
    if several:
        torch.distributed.barrier()


def _check_values(folder: Path, preset: Preset, was: dict[str, Any]) -> None:
    begins = (*_SHARED_VALUES, *_OWN_VALUES.get(folder.name, (f"{folder.name}_",)))
    now = json.loads(json.dumps(asdict(preset)))
    for value in now:
        if value.startswith(begins) and value in was and was[value] != now[value]:
            raise ConfigError(
                f"{folder} was made with {value} {was[value]!r}, the preset has {now[value]!r}: "
                "delete that folder to build it again, or use another one"
            )
