"""What a metric is: the two kinds, and the pictures that they are given."""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Pictures = NDArray[np.uint8]
"""Pictures of one size. Shapes: (N, H, W, 3), red, green and blue in 0..255."""


@runtime_checkable
class PictureMetric(Protocol):
    """A metric that gives every picture figures of its own. More is better, unless its docstring says otherwise.

    Fields:
        name: what it is called on the command line.
        model_id: the model that it scores with, as it was loaded.
        failed_score: what a picture counts that was never drawn.
    """

    name: str
    model_id: str
    failed_score: float

    def score(self, pictures: Pictures, prompts: Sequence[str]) -> Mapping[str, NDArray[np.float64]]:
        """Return named figures of every picture. Shapes: (N,) each."""
        ...


@runtime_checkable
class SetMetric(Protocol):
    """A metric of sets of pictures, on features that are taken once of every picture.

    Fields:
        name: what it is called on the command line.
        model_id: the model whose features it uses, as it was loaded.
    """

    name: str
    model_id: str

    def features(self, pictures: Pictures) -> NDArray[np.float32]:
        """Return the features of every picture. Shapes: (N, D)."""
        ...

    def compare(self, reference: NDArray[np.float32], drawn: NDArray[np.float32]) -> Mapping[str, float]:
        """Return named figures of the drawn pictures against the reference; less is nearer."""
        ...


@runtime_checkable
class DiversityMetric(Protocol):
    """A metric of how much pictures of one prompt, from different seeds, differ.

    Fields:
        name: what it is called on the command line.
        model_id: the model whose features it uses, as it was loaded.
    """

    name: str
    model_id: str

    def diversity(self, pictures: Pictures) -> float:
        """Return the mean distance of every two of these pictures."""
        ...


Metric = PictureMetric | SetMetric | DiversityMetric
