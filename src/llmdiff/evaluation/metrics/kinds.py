"""Protocols of metrics, and the type of their pictures."""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Pictures = NDArray[np.uint8]
"""Pictures of one size. Shapes: (N, H, W, 3), red, green and blue in 0..255."""


class Named(Protocol):
    """The common part of metrics and scorers.

    Fields:
        name: its name on the command line.
        model_id: the folder or Hub id of its model, or several with commas between them.
    """

    name: str
    model_id: str


@runtime_checkable
class PictureMetric(Named, Protocol):
    """A metric that scores every picture. Higher is better, unless its docstring says otherwise.

    Fields:
        failed_score: the score of a picture that could not be drawn.
    """

    failed_score: float

    def score(self, pictures: Pictures, prompts: Sequence[str]) -> Mapping[str, NDArray[np.float64]]:
        """Return named figures of every picture. Shapes: (N,) each."""
        ...


@runtime_checkable
class SetMetric(Named, Protocol):
    """A metric of sets of pictures, on features that are computed once per picture."""

    def features(self, pictures: Pictures) -> NDArray[np.float32]:
        """Return the features of every picture. Shapes: (N, D)."""
        ...

    def compare(self, reference: NDArray[np.float32], drawn: NDArray[np.float32]) -> Mapping[str, float]:
        """Return named figures of the drawn pictures against the reference; lower is closer."""
        ...


@runtime_checkable
class DiversityMetric(Named, Protocol):
    """A metric of the differences among pictures of one prompt from different seeds."""

    def diversity(self, pictures: Pictures) -> float:
        """Return the mean pairwise distance of these pictures."""
        ...


Metric = PictureMetric | SetMetric | DiversityMetric
