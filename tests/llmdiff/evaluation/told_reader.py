"""A checker that sees what it is told to."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from llmdiff.world.checker import WorldChecker
from llmdiff.world.reading import Reading
from llmdiff.world.scenes import World


class Reader(WorldChecker):
    """Sees what it is told to, in the order of the pictures."""

    def __init__(self, world: World, seen: Sequence[Reading]) -> None:
        super().__init__(world, channels=8)
        self.seen = list(seen)

    def read(self, images: NDArray[np.uint8], *, batch: int = 64) -> list[Reading]:
        found, self.seen = self.seen[: len(images)], self.seen[len(images) :]
        return found
