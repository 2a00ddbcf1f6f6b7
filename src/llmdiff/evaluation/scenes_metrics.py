"""What metrics say of the scenes suite: by split, against the base, and of sets against real renders."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llmdiff.evaluation.metrics.kinds import Metric, SetMetric
from llmdiff.evaluation.metrics.tally import Tally, metric_differences, metric_figures
from llmdiff.evaluation.suites import ScenePrompt
from llmdiff.evaluation.systems import BASE
from llmdiff.openmoji.scenes import draw, lay_out


def add_metrics(
    systems: dict[str, Any], tallies: Mapping[str, Tally], suite: Sequence[ScenePrompt], batch: int = 64
) -> None:
    """Adds `metrics` to every system's figures: of pictures with intervals, by split; of sets, one number each."""
    splits: dict[str, list[int]] = {}
    for index, row in enumerate(suite):
        splits.setdefault(row.split, []).append(index)
    reference = tally_renders(next(iter(tallies.values())).metrics, suite, batch)
    for name, tally in tallies.items():
        figures = metric_figures(tally.values, splits)
        systems[name]["metrics"] = figures["overall"]
        systems[name]["metrics_by_split"] = figures["groups"]
        if reference.metrics:
            systems[name]["sets"] = tally.compare(reference)
        if BASE in tallies and name != BASE:
            differences = metric_differences(tally.values, tallies[BASE].values)
            systems[name]["metric_differences_to_base"] = differences


def tally_renders(metrics: Sequence[Metric], suite: Sequence[ScenePrompt], batch: int = 64) -> Tally:
    """What metrics of sets find in real renders of a suite's scenes: what drawn pictures are held against."""
    reference = Tally([metric for metric in metrics if isinstance(metric, SetMetric)])
    for start in range(0, len(suite) if reference.metrics else 0, batch):
        rows = suite[start : start + batch]
        scenes = [lay_out(row.content, np.random.default_rng(row.seed)) for row in rows]
        reference(rows, np.stack([draw(scene) for scene in scenes]))
    return reference
