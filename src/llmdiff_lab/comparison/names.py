"""Names of a benchmark's systems: a rival with optional factors of its training steps and its scale."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from llmdiff.errors import ConfigError
from llmdiff_lab.rivals.registry import RIVALS

BASE, BASE_LONGER = "base", "base-longer"
TITLES = {
    BASE: "the base pipeline as it is",
    BASE_LONGER: "the base's denoiser and text encoder, trained on for as many steps",
}
SYSTEMS = (BASE, BASE_LONGER, *RIVALS)
_LONGER = re.compile(r"(.+)-x(\d+(?:\.\d+)?)")


@dataclass(frozen=True, kw_only=True)
class SystemName:
    """A parsed name: guided-x2.4@0.7 is guided, trained for 2.4 times as many steps, drawn at scale 0.7.

    Fields:
        rival: the base or a row of the registry. times: factor of the training steps.
        scale: scale of `attach`; None draws with the rival alone.
    """

    rival: str
    times: float = 1.0
    scale: float | None = None

    @classmethod
    def of(cls, name: str) -> "SystemName":
        """Parse a name, which may be unknown.

        Raises:
            ConfigError: the part after the @ is not a number.
        """
        trained, at, scale = name.partition("@")
        longer = None if trained in SYSTEMS else _LONGER.fullmatch(trained)
        try:
            return cls(
                rival=longer[1] if longer else trained,
                times=float(longer[2]) if longer else 1.0,
                scale=float(scale) if at else None,
            )
        except ValueError as error:
            raise ConfigError(
                f"rivals: got {name!r}, expected a number after the @, as in guided@0.7"
            ) from error

    @property
    def trained(self) -> str:
        """Return the name without its scale, which identifies the training."""
        return self.rival if self.times == 1 else f"{self.rival}-x{self.times:g}"


def check_names(names: Iterable[str]) -> None:
    """Check that these are names of systems.

    Raises:
        ConfigError: one is not.
    """
    for name in names:
        parts = SystemName.of(name)
        if parts.rival not in SYSTEMS:
            raise ConfigError(f"rivals: got {name!r}, expected some of {', '.join(SYSTEMS)}")
        if (
            name.partition("@")[0] != parts.trained
            or (parts.times != 1 and parts.rival in TITLES)
            or not parts.times
        ):
            raise ConfigError(
                f"rivals: got {name!r}, expected a factor of the steps after the -x, a number above 0 and not 1, as in "
                "refined-x2.4, and before it a rival, not the base"
            )
        if parts.scale is not None and (
            parts.rival in TITLES or RIVALS[parts.rival].group == "published" or not 0 < parts.scale < 1
        ):
            raise ConfigError(
                f"rivals: got {name!r}, expected a number above 0 and below 1 after the @, and before it a rival with "
                "our adapter"
            )


def title_of(name: str) -> str:
    """Return a short description of a system."""
    parts = SystemName.of(name)
    title = TITLES[name] if name in TITLES else RIVALS[parts.rival].title
    if parts.times != 1:
        title += f"; trained for {parts.times:g} times as many steps"
    return title if parts.scale is None else f"{title}; drawn at scale {parts.scale:g}"


def group_of(name: str) -> str:
    """Return the group of systems that it belongs to."""
    return "base" if name in TITLES else RIVALS[SystemName.of(name).rival].group


def is_longer(name: str, rival: str) -> bool:
    """Return whether a name is this rival with a factor of the training steps and without a scale."""
    parts = SystemName.of(name)
    return parts.rival == rival and parts.times != 1 and parts.scale is None
