"""Settings of a benchmark, stored in its folder, so that it resumes only with the same settings."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from llmdiff.errors import ConfigError
from llmdiff.files import read_json, write_whole
from llmdiff_lab.comparison.names import check_names

_NAME = "settings.json"
_BASE_TIMESTEPS = 1000  # what the embedded default's scheduler was trained with
_GAIN_SHARE = 3 / 17
# A benchmark may be given more of these later, and a reader that it had not.
_MAY_GROW, _MAY_COME = ("rivals", "seeds"), ("encoder", "t5")


@dataclass(frozen=True, kw_only=True)
class BenchmarkSettings:
    """All settings that a benchmark's figures depend on, the same for every system.

    `learning_rates` are tried by every rival alike: with the first seed, for `search_steps` steps each; the one
    with the lowest loss on held-out scenes is taken. With a single one there is no search.

    A rival NAME@SCALE is NAME, drawn at this `attach` scale: mixed with the base's own text encoder, without more
    training. NAME-xN is NAME, trained for N times as many steps, at the learning rate that NAME took.

    `text_steps` come before `steps`, from text alone (`training.warm_start`); base-longer takes them on pictures.

    Units: `steps`, `text_steps` and `search_steps` in optimiser steps, `drawing_steps` in denoising steps.

    Raises:
        ConfigError: an unknown rival, or a number out of range.
    """

    rivals: tuple[str, ...]
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

    def __post_init__(self) -> None:
        check_names(self.rivals)
        for key in ("seeds", "steps", "batch", "captions", "prompts_per_split", "drawing_steps"):
            if getattr(self, key) < 1:
                raise ConfigError(f"{key} is {getattr(self, key)}, expected at least 1")
        if self.drawing_steps > _BASE_TIMESTEPS:
            raise ConfigError(f"drawing_steps is {self.drawing_steps}, expected at most {_BASE_TIMESTEPS}")
        if not self.rivals or not self.learning_rates:
            raise ConfigError("rivals, learning_rates: got none, expected at least one of each")
        if len(self.learning_rates) > 1 and self.search_steps < 1:
            raise ConfigError(
                f"search_steps is {self.search_steps}, expected at least 1 to choose among "
                f"{len(self.learning_rates)} learning rates"
            )

    @property
    def gain_steps(self) -> int:
        """Return how many of the first steps a rival takes that learns weights for every block of its reader."""
        return round((self.text_steps or self.steps) * _GAIN_SHARE)


def keep_settings(settings: BenchmarkSettings, folder: Path) -> None:
    """Write the settings into the folder, or compare them with those that are there.

    Raises:
        ConfigError: the folder's benchmark was started with other settings.
    """
    path = folder / _NAME
    now = json.loads(json.dumps(asdict(settings)))
    if path.exists():
        was = read_json(path)
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
