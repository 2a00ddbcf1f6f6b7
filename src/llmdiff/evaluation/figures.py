"""Figures of an evaluation: values per prompt from the scores of its pictures, and means with intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmdiff.evaluation.metrics.kinds import PictureMetric
from llmdiff.evaluation.picture_store import PictureStore
from llmdiff.evaluation.score_store import ScoreStore, figures_of
from llmdiff.evaluation.statistics import bootstrap_mean
from llmdiff.evaluation.suites.suite import SuitePrompt, SuiteScorer

Values = dict[str, NDArray[np.float64]]
"""Figures by name. Shapes: (prompts,) each; NaN if a figure does not apply to a prompt."""


def prompt_values(
    system: str,
    metrics: Sequence[PictureMetric | SuiteScorer],
    store: PictureStore,
    scores: ScoreStore,
) -> Values:
    """Return the figures of every prompt: means over its pictures; NaN if none of them has that score."""
    values: Values = {}
    for metric in metrics:
        found = scores.read(metric.name, metric.model_id, system)
        drawn = list(dict.fromkeys(name for one in found.values() for name in one["values"]))
        prompts = [
            [found[job.name]["values"] if job.name in found else _failed(metric, row, drawn) for job in some]
            for row, some in store.prompts
        ]
        # A part may be requested only by prompts whose pictures could not be drawn.
        failed = (name for scored in prompts for one in scored for name in one)
        for name in dict.fromkeys([*drawn, *failed]):
            has = [[one[name] for one in scored if name in one] for scored in prompts]
            values[name] = np.array([float(np.mean(some)) if some else np.nan for some in has])
    return values


def _failed(
    metric: PictureMetric | SuiteScorer, row: SuitePrompt, names: Sequence[str]
) -> Mapping[str, float]:
    """Return the score of a picture that could not be drawn."""
    if isinstance(metric, PictureMetric):
        return dict.fromkeys(names, float(metric.failed_score))
    return figures_of(metric, metric.failed(row))


def mean_over_tags(means: Mapping[str, Any]) -> dict[str, float]:
    """Return the mean over tags of each figure's mean, from the result of `metric_figures`."""
    by_tag = [one for one in means["metrics_by_tag"].values() if one]
    names = [name for name in means["metrics"] if any(name in one for one in by_tag)]
    return {name: float(np.mean([one[name]["mean"] for one in by_tag if name in one])) for name in names}


def metric_figures(values: Values, groups: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Return the means of figures with their 95 % intervals over prompts: `metrics`, of all, and `metrics_by_tag`.

    Prompts with NaN are skipped; `n` is the number of the others.
    """

    def means(at: Sequence[int] | slice) -> dict[str, Any]:
        counted = {name: row[at][~np.isnan(row[at])] for name, row in values.items()}
        return {name: asdict(bootstrap_mean(row)) for name, row in counted.items() if len(row)}

    return {
        "metrics": means(slice(None)),
        "metrics_by_tag": {group: means(list(at)) for group, at in groups.items()},
    }


def metric_differences(ours: Values, base: Values) -> Values:
    """Return the differences per prompt of the figures that both have."""
    return {name: row - base[name] for name, row in ours.items() if name in base}
