"""Distance between sets of drawn and real pictures: FID, KID and CMMD, on the features of any vision model.

The published numbers of FID and KID are on features of one Inception network, those of CMMD on CLIP ViT-L/14 at 336
pixels. Figures are comparable only on the same features; a report names the model.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from llmdiff.errors import MetricError
from llmdiff.evaluation.metrics.kinds import Pictures
from llmdiff.evaluation.metrics.models import ModelMetric, VisionModel

_ROWS = 1024
_CMMD_SIGMA, _CMMD_SCALE = 10.0, 1000.0

Features = NDArray[np.float32] | NDArray[np.float64]
Kernel = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]


def frechet_distance(reference: Features, drawn: Features) -> float:
    """Return the squared Fréchet distance of two normal distributions with the sets' means and covariances.

        |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))

    The trace of the root is the sum of the roots of the eigenvalues of C1^(1/2) C2 C1^(1/2), which is symmetric.

    Shapes: (N, D) and (M, D).

    Raises:
        MetricError: a set has fewer than two pictures, or the widths of the features differ.

    Source: Heusel et al. 2017 (arXiv 1706.08500), equation 6.
    """
    first, second = _checked(reference, drawn)
    c1, c2 = (np.atleast_2d(np.cov(one, rowvar=False)) for one in (first, second))
    values, vectors = np.linalg.eigh(c1)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ c2 @ root).clip(min=0)).sum()
    gap = first.mean(0) - second.mean(0)
    return float(gap @ gap + np.trace(c1) + np.trace(c2) - 2 * cross)


def squared_mmd(reference: Features, drawn: Features, kernel: Kernel) -> float:
    """Return the unbiased estimate of the squared maximum mean discrepancy; it may fall below 0.

        mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)

    Shapes: (N, D) and (M, D). Memory: that of 1024 rows of the kernel.

    Raises:
        MetricError: a set has fewer than two pictures, or the widths of the features differ.

    Source: Gretton et al. 2012, equation 3.
    """
    x, y = _checked(reference, drawn)

    def total(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
        return float(sum(kernel(a[start : start + _ROWS], b).sum() for start in range(0, len(a), _ROWS)))

    def among(a: NDArray[np.float64]) -> float:
        itself = sum(float(kernel(row[None], row[None])[0, 0]) for row in a)
        return (total(a, a) - itself) / (len(a) * (len(a) - 1))

    return among(x) + among(y) - 2 * total(x, y) / (len(x) * len(y))


def polynomial_kernel(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return KID's kernel, (x . y / D + 1)^3. Source: Bińkowski et al. 2018 (arXiv 1801.01401), section 3."""
    kernel: NDArray[np.float64] = (x @ y.T / x.shape[1] + 1) ** 3
    return kernel


def gaussian_kernel(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return CMMD's kernel, exp(-|x - y|^2 / (2 sigma^2)), sigma = 10. Source: Jayasumana et al. 2024, section 4."""
    squared = (x**2).sum(1)[:, None] + (y**2).sum(1)[None] - 2 * x @ y.T
    kernel: NDArray[np.float64] = np.exp(-squared.clip(min=0) / (2 * _CMMD_SIGMA**2))
    return kernel


class _OnFeatures(ModelMetric):
    """Base of the three metrics: a vision model and its features."""

    model_kind = VisionModel

    def features(self, pictures: Pictures) -> NDArray[np.float32]:
        """Return the features of every picture. Shapes: (N, D)."""
        features: NDArray[np.float32] = self.model.features(pictures).numpy()
        return features


class FID(_OnFeatures):
    """Fréchet distance of features. It is biased upwards with few pictures, most below a few thousand."""

    name = "fid"

    def compare(self, reference: NDArray[np.float32], drawn: NDArray[np.float32]) -> dict[str, float]:
        """Return the distance; 0 is the same distribution."""
        return {"fid": frechet_distance(reference, drawn)}


class KID(_OnFeatures):
    """Squared MMD of features with KID's kernel, over the whole sets.

    Papers report the mean over subsets, which has the same expectation and a higher variance.
    """

    name = "kid"

    def compare(self, reference: NDArray[np.float32], drawn: NDArray[np.float32]) -> dict[str, float]:
        """Return the estimate; 0 is the same distribution."""
        return {"kid": squared_mmd(reference, drawn, polynomial_kernel)}


class CMMD(_OnFeatures):
    """1000 times the squared MMD of unit feature vectors with a Gaussian kernel.

    Source: Jayasumana et al. 2024 (arXiv 2401.09603), its unbiased estimate; its published code computes the biased
    one, which is larger by about 1000 (1 - mean kernel) / N for each set.
    """

    name = "cmmd"

    def compare(self, reference: NDArray[np.float32], drawn: NDArray[np.float32]) -> dict[str, float]:
        """Return the estimate; 0 is the same distribution."""
        first, second = (
            one / np.linalg.norm(one, axis=1, keepdims=True).clip(min=1e-12) for one in (reference, drawn)
        )
        return {"cmmd": _CMMD_SCALE * squared_mmd(first, second, gaussian_kernel)}


def _checked(reference: Features, drawn: Features) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if min(len(reference), len(drawn)) < 2 or reference.shape[1:] != drawn.shape[1:]:
        raise MetricError(
            f"reference, drawn: got features of shapes {reference.shape} and {drawn.shape}, expected at least two "
            "pictures of each, and one width"
        )
    return reference.astype(np.float64), drawn.astype(np.float64)
