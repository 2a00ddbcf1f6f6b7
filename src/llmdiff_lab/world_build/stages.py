"""A build in a folder: resumable stages that run once and record their settings."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import torch

from llmdiff.adapter.base_pipeline import load_base_pipeline
from llmdiff.adapter.manifest import check_manifest
from llmdiff.errors import ConfigError
from llmdiff.evaluation.metrics.models import ImageTextModel
from llmdiff.files import whole_folder, write_whole
from llmdiff.language.whole_weights import load_whole
from llmdiff.training.curves import save_curve


class StagedBuild:
    """The stages of one build; each finished one has a `done.json` with its figures and its settings.

    `own_values` maps a stage to the prefixes of the settings that it depends on (default: its own name),
    `shared_values` are prefixes of settings that all stages depend on. `checker_class` is the class of the checker.
    """

    shared_values: ClassVar[tuple[str, ...]] = ("image_size_px", "seed")
    own_values: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    checker_class: ClassVar[Any]

    def __init__(self, settings: Any, folder: Path) -> None:
        self.settings, self.folder = settings, folder
        folder.mkdir(parents=True, exist_ok=True)

    def stage(self, name: str, make: Callable[[], dict[str, Any]]) -> None:
        """Run a stage unless it is done; `make` returns the figures to record.

        Raises:
            ConfigError: the stage was made with other settings.
        """
        done = self.folder / name / "done.json"
        if done.exists():
            self._check_values(name, json.loads(done.read_text()).get("preset", {}))
            return
        print(f"== {name}", flush=True)
        started = time.monotonic()
        figures = make()
        for log in (self.folder / name).rglob("log.jsonl"):
            save_curve(log, log.with_name("loss.png"))
        record: dict[str, Any] = {
            **figures,
            "last_run_s": round(time.monotonic() - started),
            "preset": asdict(self.settings),
        }
        write_whole(done, json.dumps(record, indent=1))
        print(f"== {name}: {json.dumps(figures)}", flush=True)

    def is_done(self, name: str) -> bool:
        """Return whether a stage is done."""
        return (self.folder / name / "done.json").exists()

    def load(self, kind: Any, stage: str) -> Any:
        """Return the model saved by a stage."""
        place = self.folder / stage / "model"
        return load_whole(kind, place, what=str(place), use_safetensors=True)

    def begin_from(self, weights: Path) -> None:
        """Take base, checker and SigLIP from a folder that `--ship` wrote; stages already done in this build stay.

        Raises:
            LLMDiffError: the folder lacks a part, or its weights are damaged.
        """
        check_manifest(weights / "pipeline", ["model_index.json"])
        pipe = load_base_pipeline(str(weights / "pipeline"), dtype=torch.float32)
        if not (self.folder / "tokenizer").exists():
            save_model(pipe.tokenizer, self.folder / "tokenizer")
        parts = {
            "vae": (pipe.vae, "model"),
            "text": (pipe.text_encoder, "model"),
            "denoiser": (pipe, "pipeline"),
            "decoder": (pipe.vae, "model"),
            "checker": (self.checker_class.from_pretrained(weights / "checker"), "model"),
        }
        if (weights / "siglip").is_dir():
            parts["siglip"] = (ImageTextModel.from_pretrained(weights / "siglip"), "model")
        for stage, (model, name) in parts.items():

            def take(model: Any = model, place: Path = self.folder / stage / name) -> dict[str, Any]:
                save_model(model, place)
                return {"from": "weights that were trained before"}

            self.stage(stage, take)

    def _check_values(self, stage: str, was: dict[str, Any]) -> None:
        begins = (*self.shared_values, *self.own_values.get(stage, (f"{stage}_",)))
        now = json.loads(json.dumps(asdict(self.settings)))
        for value in now:
            if value.startswith(begins) and value in was and was[value] != now[value]:
                raise ConfigError(
                    f"{self.folder / stage} was made with {value} {was[value]!r}, the preset has {now[value]!r}: "
                    "delete that folder to build it again, or use another one"
                )


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
