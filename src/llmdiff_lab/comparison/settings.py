"""Settings of a benchmark, stored in its folder, so that it resumes only with the same settings."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llmdiff.checks.bounds import COUNT, GUIDANCE
from llmdiff.errors import ConfigError
from llmdiff.files import read_json, write_whole
from llmdiff_lab.comparison.systems import System, Variant, check_names, check_variants, system_of

_NAME = "settings.json"
_BASE_TIMESTEPS = 1000  # what the embedded default's scheduler was trained with
_GAIN_SHARE = 3 / 17
PROTOCOL = 2
"""Raised when systems are treated otherwise, so that figures of two protocols do not meet in one folder.

1: a warm-up of 100 steps in every stage, rates searched within those given, LoRA as peft has it.
2: a warm-up of at most a tenth of a stage, rates searched until the best is between others, LoRA as LaVi-Bridge has it.
"""
# A benchmark may be given more of these later, and a reader that it had not.
_MAY_GROW, _MAY_COME = ("rivals", "seeds", "variants"), ("encoder", "t5")


@dataclass(frozen=True, kw_only=True)
class BenchmarkSettings:
    """All settings that a benchmark's figures depend on, the same for every system.

    `learning_rates` are tried by every rival alike: with the first seed, for `search_steps` steps each; the one
    with the lowest loss on held-out scenes is taken. With a single one there is no search.

    `variants` are rivals trained for longer, at the learning rate that the rival took, or drawn mixed with the base's
    own text encoder, without more training; `rivals` names them like rivals.

    `text_steps` come before `steps`, from text alone (`training.warm_start`); base-longer takes them on pictures.

    `guidance_scales` are tried by every system with the first seed on `validation_prompts` prompts of every split that
    are not in the suite; the one that draws most of them right is taken. Without, all draw at `guidance_scale`.

    Units: `steps`, `text_steps` and `search_steps` in optimiser steps, `drawing_steps` in denoising steps.

    Raises:
        ConfigError: an unknown rival, or a number out of range.
    """

    rivals: tuple[str, ...]
    variants: Mapping[str, Variant] = field(default_factory=dict)
    seeds: int = 3
    preset: str = "cpu"
    llm: str
    encoder: str | None = None
    t5: str | None = None
    steps: int
    text_steps: int = 0
    batch: int
    captions: int
    learning_rates: tuple[float, ...]
    search_steps: int = 0
    prompts_per_split: int = 100
    drawing_steps: int = 20
    guidance_scale: float = 3.0
    guidance_scales: tuple[float, ...] = ()
    validation_prompts: int = 20
    protocol: int = PROTOCOL

    def __post_init__(self) -> None:
        check_variants(self.variants)
        check_names(self.rivals, self.variants)
        for key in ("seeds", "steps", "batch", "captions", "prompts_per_split", "drawing_steps"):
            if getattr(self, key) < 1:
                raise ConfigError(f"{key} is {getattr(self, key)}, expected at least 1")
        for scale in self.guidance_scales:
            GUIDANCE.check("guidance_scales", scale)
        COUNT.check("validation_prompts", self.validation_prompts)
        if self.drawing_steps > _BASE_TIMESTEPS:
            raise ConfigError(f"drawing_steps is {self.drawing_steps}, expected at most {_BASE_TIMESTEPS}")
        if not self.rivals or not self.learning_rates:
            raise ConfigError("rivals, learning_rates: got none, expected at least one of each")
        if len(self.learning_rates) > 1 and self.search_steps < 1:
            raise ConfigError(
                f"search_steps is {self.search_steps}, expected at least 1 to choose among "
                f"{len(self.learning_rates)} learning rates"
            )

    def system(self, name: str) -> System:
        """Return the system of this name."""
        return system_of(name, self.variants)

    @property
    def gain_steps(self) -> int:
        """Return how many of the first steps a rival takes that learns weights for every block of its reader."""
        return round((self.text_steps or self.steps) * _GAIN_SHARE)


def plain_settings(settings: BenchmarkSettings) -> dict[str, Any]:
    """Return the settings as JSON values."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(settings), default=Variant.model_dump))
    return plain


def keep_settings(settings: BenchmarkSettings, folder: Path) -> None:
    """Write the settings into the folder, or compare them with those that are there.

    Raises:
        ConfigError: the folder's benchmark was started with other settings.
    """
    path = folder / _NAME
    now = plain_settings(settings)
    if path.exists():
        was = read_json(path)
        if was.get("protocol", 1) != settings.protocol:
            raise ConfigError(
                f"{folder} has a benchmark of protocol {was.get('protocol', 1)}, this version trains by protocol "
                f"{settings.protocol}, whose figures do not compare: take another folder; its report stays as it is"
            )
        changed = [
            key
            for key in now
            if key not in _MAY_GROW
            and was.get(key) != now[key]
            and not (key in _MAY_COME and was.get(key) is None)
        ]
        if changed:
            raise ConfigError(
                f"{folder} has a benchmark with {changed[0]} {was.get(changed[0])!r}, this one has "
                f"{now[changed[0]]!r}: take another folder, or the same value"
            )
    write_whole(path, json.dumps(now, indent=1) + "\n")
