"""Ranges of users' numbers, shared by the command line, Python and YAML."""

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from llmdiff.errors import ConfigError


@dataclass(frozen=True)
class Bounds:
    """The range of a number, both ends included; whole numbers only if both ends are `int`."""

    low: int | float
    high: int | float

    @property
    def whole(self) -> bool:
        """Return whether only whole numbers are allowed."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def holds(self, value: Any) -> bool:
        """Return whether the value is a number in range."""
        kind: type = Integral if self.whole else Real
        if not isinstance(value, kind) or isinstance(value, bool):
            return False
        number: Any = value
        return bool(self.low <= number <= self.high)

    def check(self, name: str, value: Any) -> None:
        """Check that the value is a number in range.

        Raises:
            ConfigError: the value is not a number, not finite or out of range.
        """
        if not self.holds(value):
            raise ConfigError(f"{name} is {short(value)}, expected {self}")

    def __str__(self) -> str:
        return f"a {'whole ' if self.whole else ''}number from {self.low:,} to {self.high:,}"


def short(value: Any) -> str:
    """Return the representation of a value for an error message, truncated if it is long."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**30:
        # Python refuses to convert integers with thousands of digits.
        return f"{'-' if value < 0 else ''}10^{int(math.log10(abs(value)))} or so"
    if isinstance(value, dict | list | tuple | set):
        # Aliases of a YAML file can name the same list billions of times.
        return f"a {type(value).__name__} of {len(value)}"
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:80]}... ({len(text):,} characters)"


SEED = Bounds(0, 2**63 - 1)
# Denoising steps; a scheduler may allow fewer.
STEPS = Bounds(1, 10_000)
GUIDANCE = Bounds(0.0, 1000.0)
SCALE = Bounds(0.0, 1.0)
# Factors of what a block adds to an encoding.
BLOCK_GAIN = Bounds(-10.0, 10.0)
SIDE_PX = Bounds(1, 16_384)
# Pictures per request.
NUMBER = Bounds(1, 10_000)
ANSWERS = Bounds(1, 100)
PORT = Bounds(0, 65_535)
# Numbers of prompts, texts, captions and trials.
COUNT = Bounds(1, 1_000_000)
COUNT_OR_NONE = Bounds(0, 1_000_000)
TRAINING_STEPS = Bounds(1, 100_000_000)
TRAINING_STEPS_OR_NONE = Bounds(0, 100_000_000)
PROCESSES = Bounds(1, 1024)
SAMPLES = Bounds(1, 10**12)
LEARNING_RATE = Bounds(1e-12, 10.0)
