"""The systems of a benchmark: the base, rivals, and rivals trained for longer or drawn mixed with the base."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from llmdiff.checks.validation import Settings, what_is_wrong
from llmdiff.errors import ConfigError
from llmdiff.files import read_text
from llmdiff.training.yaml_text import parse_yaml
from llmdiff_lab.rivals.registry import RIVALS

BASE, BASE_LONGER = "base", "base-longer"
TITLES = {
    BASE: "the base pipeline as it is",
    BASE_LONGER: "the base's denoiser and text encoder, trained on for as many steps",
}
SYSTEMS = (BASE, BASE_LONGER, *RIVALS)


class Variant(Settings):
    """A rival that is trained for longer, or drawn mixed with the base's own text encoder.

    Fields:
        rival: a row of `rivals.yaml`.
        steps: how many times the steps of the settings it is trained for, at the rival's learning rate.
        scale: that of `attach`; None draws with the rival alone.
    """

    rival: str
    steps: Annotated[float, Field(gt=0, le=1000)] = 1.0
    scale: Annotated[float, Field(gt=0, lt=1)] | None = None


@dataclass(frozen=True, kw_only=True)
class System:
    """One system by its name. `rival` is the base or a row of `rivals.yaml`; the rest is that of `Variant`."""

    name: str
    rival: str
    steps: float = 1.0
    scale: float | None = None

    @property
    def trained(self) -> str:
        """Return the name of what is trained, whatever scale it is drawn at."""
        return self.rival if self.steps == 1 else f"{self.rival}-x{self.steps:g}"

    @property
    def title(self) -> str:
        """Return a short description."""
        title = TITLES[self.rival] if self.rival in TITLES else RIVALS[self.rival].title
        if self.steps != 1:
            title += f"; trained for {self.steps:g} times as many steps"
        return title if self.scale is None else f"{title}; drawn at scale {self.scale:g}"

    @property
    def group(self) -> str:
        """Return the group of systems that it belongs to."""
        return "base" if self.rival in TITLES else RIVALS[self.rival].group

    def is_alone(self, rivals: Collection[str]) -> bool:
        """Return whether it is one of these rivals, trained for any number of steps, and drawn without the base."""
        return self.rival in rivals and self.scale is None


def read_variants(path: Path) -> dict[str, Variant]:
    """Return the variants of a YAML file, by their names.

    Raises:
        InputFileError: the file cannot be read.
        ConfigError: it is no YAML, a field is wrong, or a name is taken.
    """
    found = parse_yaml(f"{path} is no YAML", read_text(path))
    if not isinstance(found, dict):
        raise ConfigError(
            f"{path} has {type(found).__name__}, expected NAME: {{rival: ..., steps: ..., scale: ...}}"
        )
    variants: dict[str, Variant] = {}
    for name, fields in found.items():
        try:
            variants[str(name)] = Variant.model_validate(fields)
        except ValidationError as error:
            raise ConfigError(f"{path}, {name}: {what_is_wrong(error, Variant)}") from error
    check_variants(variants)
    return variants


def check_variants(variants: Mapping[str, Variant]) -> None:
    """Check that variants are of rivals, differ from them, and have names of their own.

    Raises:
        ConfigError: one is not.
    """
    trained = {
        System(name=name, rival=one.rival, steps=one.steps).trained: name for name, one in variants.items()
    }
    for name, one in variants.items():
        if one.rival not in RIVALS:
            raise ConfigError(f"system {name!r}: rival {one.rival!r}, expected one of {', '.join(RIVALS)}")
        taken = name in SYSTEMS or (name in trained and trained[name] != name)
        if taken or not name or not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
            raise ConfigError(
                f"system {name!r}: expected a name that no rival and no training has, of letters, digits, - . and _"
            )
        if one.steps == 1 and one.scale is None:
            raise ConfigError(
                f"system {name!r} is {one.rival} itself: give it steps other than 1, or a scale"
            )
        if one.scale is not None and RIVALS[one.rival].group == "published":
            raise ConfigError(
                f"system {name!r}: scale {one.scale:g} is given, but our adapter does not read {one.rival}: leave the "
                "scale out"
            )


def system_of(name: str, variants: Mapping[str, Variant]) -> System:
    """Return the system of this name.

    Raises:
        ConfigError: there is none.
    """
    if name in variants:
        one = variants[name]
        return System(name=name, rival=one.rival, steps=one.steps, scale=one.scale)
    if name not in SYSTEMS:
        raise ConfigError(f"rivals: got {name!r}, expected some of {', '.join((*SYSTEMS, *variants))}")
    return System(name=name, rival=name)
