"""Settings of a benchmark, stored in its folder, so that it resumes only with the same settings."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from llmdiff.checks.bounds import COUNT, GUIDANCE
from llmdiff.errors import ConfigError
from llmdiff.files import read_json, write_whole
from llmdiff_lab.comparison.systems import System, Variant, check_variants, system_of
from llmdiff_lab.world_build.presets import Preset

_NAME = "settings.json"
_BASE_TIMESTEPS = 1000  # training timesteps of the embedded default's scheduler
_GAIN_SHARE = 3 / 17
PROTOCOL = 2
"""Version of the protocol; a folder has figures of one version only.

1: warm-up of 100 steps in every stage, learning rates searched within the given ones, peft's LoRA.
2: warm-up of at most a tenth of a stage, rates searched until the best is between others, LaVi-Bridge's LoRA.
"""
# Settings that may get more values later, and readers that may be added.
_MAY_GROW, _MAY_COME = ("rivals", "seeds", "variants"), ("encoder", "t5")


@dataclass(frozen=True, kw_only=True)
class BenchmarkSettings:
    """All settings that a benchmark's figures depend on, the same for every system.

    Fields:
        variants: rivals trained for longer or drawn mixed with the base, which `rivals` may name.
        learning_rates: rates that every rival tries with the first seed for `search_steps` steps; the one with the
            lowest loss on held-out scenes is used. A single rate is used without a search.
        text_steps: steps from captions alone before `steps` (`training.warm_start`); base-longer does them on pictures.
        guidance_scales: scales that every system tries with the first seed on `validation_prompts` prompts of every
            split that are not in the suite; the one with the most correct pictures is used. If empty, all systems draw
            at `guidance_scale`.
        precision: of the LLM's weights and of the trainings' forward and backward passes; "no" is float32.

    Units: `steps`, `text_steps` and `search_steps` in optimiser steps, `drawing_steps` in denoising steps.

    Raises:
        ConfigError: a rival is unknown, or a number is out of range.
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
    precision: Literal["no", "bf16"] = "no"
    protocol: int = PROTOCOL

    def __post_init__(self) -> None:
        check_variants(self.variants)
        for name in self.rivals:
            self.system(name)
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
        """Return the number of first steps in which rivals with weights for every block train these."""
        return round((self.text_steps or self.steps) * _GAIN_SHARE)


def settings_like(
    preset: Preset,
    *,
    llm: str | None = None,
    batch: int | None = None,
    captions: int | None = None,
    learning_rates: Sequence[float] = (),
    **fields: Any,
) -> BenchmarkSettings:
    """Return settings with these fields; what is missing of the others has the preset's value.

    Raises:
        ConfigError: see `BenchmarkSettings`.
    """
    return BenchmarkSettings(
        preset=preset.name,
        llm=llm or preset.llm,
        batch=batch or preset.adapter_batch,
        captions=captions or preset.adapter_captions,
        learning_rates=tuple(learning_rates) or (preset.adapter_lr,),
        **({"precision": preset.precision} | fields),
    )


def plain_settings(settings: BenchmarkSettings) -> dict[str, Any]:
    """Return the settings as JSON values."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(settings), default=Variant.model_dump))
    return plain


def read_settings(folder: Path) -> BenchmarkSettings:
    """Return the settings of the benchmark in a folder.

    Raises:
        ConfigError: the folder has no benchmark, or one of another protocol.
    """
    path = folder / _NAME
    if not path.exists():
        raise ConfigError(
            f"{folder} has no benchmark, expected {path}: give the --out of llmdiff-lab benchmark"
        )
    was = _of_this_protocol(path, PROTOCOL)
    variants = {name: Variant.model_validate(one) for name, one in was.pop("variants", {}).items()}
    plain: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in was.items()
    }
    return BenchmarkSettings(**plain, variants=variants)


def keep_settings(settings: BenchmarkSettings, folder: Path) -> None:
    """Write the settings to the folder, or compare them with existing ones.

    Raises:
        ConfigError: the folder's benchmark was started with other settings.
    """
    path = folder / _NAME
    now = plain_settings(settings)
    if path.exists():
        was = _of_this_protocol(path, settings.protocol)
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
                f"{now[changed[0]]!r}: use another folder, or the same value"
            )
    write_whole(path, json.dumps(now, indent=1) + "\n")


def _of_this_protocol(path: Path, protocol: int) -> dict[str, Any]:
    was: dict[str, Any] = {"precision": "no"} | read_json(path)
    if was.get("protocol", 1) != protocol:
        raise ConfigError(
            f"{path.parent} has a benchmark of protocol {was.get('protocol', 1)}, but this version uses protocol "
            f"{protocol}, whose figures are not comparable: use another folder"
        )
    return was
