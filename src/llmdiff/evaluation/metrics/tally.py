"""What metrics say of one system's pictures, collected batch by batch, and the figures of it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from llmdiff.errors import MetricError
from llmdiff.evaluation.metrics.kinds import Metric, PictureMetric, Pictures, SetMetric
from llmdiff.evaluation.statistics import bootstrap_mean, paired_difference


class Asked(Protocol):
    """A row of a suite, as far as metrics look at it."""

    @property
    def prompt(self) -> str:
        """Return the text that the picture was asked for with."""
        ...


class Tally:
    """Figures of every picture and features of all, for a system that draws one picture of each prompt.

    Fields:
        values: figures by their name, a value for each picture.

    Raises:
        MetricError: a metric needs several pictures of a prompt.
    """

    def __init__(self, metrics: Sequence[Metric]) -> None:
        for metric in metrics:
            if not isinstance(metric, PictureMetric | SetMetric):
                raise MetricError(
                    f"metric {metric.name}: does not score single pictures by their prompts, which is what the suite "
                    "scenes has: measure it on another --suite"
                )
        self.metrics = metrics
        self._values: dict[str, list[NDArray[np.float64]]] = {}
        self._features: dict[str, list[NDArray[np.float32]]] = {}

    def __call__(self, rows: Sequence[Asked], images: Pictures) -> None:
        """Measures the pictures of these rows."""
        for metric in self.metrics:
            if isinstance(metric, PictureMetric):
                for name, values in metric.score(images, [row.prompt for row in rows]).items():
                    self._values.setdefault(name, []).append(values)
            elif isinstance(metric, SetMetric):
                self._features.setdefault(metric.name, []).append(metric.features(images))

    @property
    def values(self) -> dict[str, NDArray[np.float64]]:
        """Return every metric's value of each picture, in the order they came in."""
        return {name: np.concatenate(parts) for name, parts in self._values.items()}

    def compare(self, reference: "Tally") -> dict[str, float]:
        """The figures of set metrics against the pictures that another tally was given."""
        figures: dict[str, float] = {}
        for metric in self.metrics:
            if isinstance(metric, SetMetric):
                both = (np.concatenate(one._features[metric.name]) for one in (reference, self))
                figures |= metric.compare(*both)
        return figures


def metric_figures(
    values: Mapping[str, NDArray[np.float64]], groups: Mapping[str, Sequence[int]]
) -> dict[str, Any]:
    """The means of figures with their 95 % intervals over prompts, of all prompts and of each group of them.

    NaN: the prompt does not ask for what the figure measures; `n` says how many prompts count.
    """

    def means(at: Sequence[int] | slice) -> dict[str, Any]:
        chosen = {name: row[at] for name, row in values.items()}
        counted = {name: row[~np.isnan(row)] for name, row in chosen.items()}
        return {name: asdict(bootstrap_mean(row)) for name, row in counted.items() if len(row)}

    return {
        "overall": means(slice(None)),
        "groups": {group: means(list(at)) for group, at in groups.items()},
    }


def metric_differences(
    ours: Mapping[str, NDArray[np.float64]], base: Mapping[str, NDArray[np.float64]]
) -> dict[str, Any]:
    """The mean differences of figures, prompt by prompt, with their 95 % intervals."""
    found = {}
    for name, row in ours.items():
        both = ~(np.isnan(row) | np.isnan(base[name])) if name in base else np.zeros(len(row), dtype=bool)
        if both.any():
            found[name] = asdict(paired_difference(row[both], base[name][both]))
    return found
