"""What metrics say of the pictures that a benchmark keeps: measured once, also long after they were drawn.

EVALUATION/metrics.json, by metric: its model, and a value for every prompt ("values") or one for all ("sets").
"""

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmdiff.drawing.pictures import open_picture
from llmdiff.errors import MetricError
from llmdiff.evaluation.metrics.kinds import Metric
from llmdiff.evaluation.metrics.loading import EMBEDDED_NAME, load_metric
from llmdiff.evaluation.metrics.tally import Tally
from llmdiff.evaluation.report import PICTURES_NAME
from llmdiff.evaluation.scenes_metrics import tally_renders
from llmdiff.evaluation.suites import ScenePrompt
from llmdiff.files import read_json, write_whole
from llmdiff_lab.world_build.build import Build
from llmdiff_lab.world_build.presets import CPU

_NAME, _BATCH = "metrics.json", 64
_OWN = ("siglip", "fid", "cmmd")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured of one run.

    Fields:
        values: by figure, one for every prompt, in the suite's order. sets: by figure, one for all pictures.
        models: by metric.
    """

    values: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    sets: Mapping[str, float] = field(default_factory=dict)
    models: Mapping[str, str] = field(default_factory=dict)


def own_metrics(build: Build) -> list[Metric]:
    """Return SigLIP score, FID and CMMD on the SigLIP of the build's scenes; none where it has none."""
    device = str(build.device)
    if build.preset.name == CPU.name:
        with suppress(MetricError):  # a source tree without weights
            return [load_metric(name, EMBEDDED_NAME, device=device) for name in _OWN]
    if (build.folder / "siglip" / "done.json").exists():
        return [load_metric(name, build.folder / "siglip" / "model", device=device) for name in _OWN]
    return []


class Measures:
    """Metrics, and what those of sets find in real renders of the suite."""

    def __init__(self, metrics: Sequence[Metric]) -> None:
        """The metrics that are to be measured.

        Raises:
            MetricError: one needs several pictures of a prompt.
        """
        self._tallies = {metric.name: Tally([metric]) for metric in metrics}
        self._models = {metric.name: metric.model_id for metric in metrics}
        self._renders: dict[str, Tally] = {}

    def measure(self, evaluation: Path, system: str, suite: Sequence[ScenePrompt]) -> None:
        """Add what is not measured yet to the folder of one run's evaluation; returns nothing.

        Where the pictures were not kept, what was measured stays, and a warning says what could not be.
        """
        kept = _read(evaluation)
        todo = [name for name, model in self._models.items() if kept.get(name, {}).get("model") != model]
        if not todo:
            return
        paths = [evaluation / PICTURES_NAME / system / f"{index:05d}.png" for index in range(len(suite))]
        if not all(path.exists() for path in paths):
            _log.warning("%s: pictures of %s were not kept, %s cannot be measured", evaluation, system, todo)
            return
        for name in todo:
            kept[name] = {"model": self._models[name], **self._measured(name, paths, suite)}
        write_whole(evaluation / _NAME, json.dumps(kept) + "\n")

    def _measured(self, name: str, paths: Sequence[Path], suite: Sequence[ScenePrompt]) -> dict[str, Any]:
        metrics = self._tallies[name].metrics
        tally = Tally(metrics)
        for start in range(0, len(suite), _BATCH):
            images = [np.asarray(open_picture(path)) for path in paths[start : start + _BATCH]]
            tally(suite[start : start + _BATCH], np.stack(images))
        if tally.values:
            return {"values": {key: row.round(6).tolist() for key, row in tally.values.items()}}
        if name not in self._renders:
            self._renders[name] = tally_renders(metrics, suite)
        return {"sets": tally.compare(self._renders[name])}


def read_measured(evaluation: Path) -> Measured:
    """Return what was measured of a run, from its evaluation's folder."""
    kept = _read(evaluation)
    values = {name: row for one in kept.values() for name, row in one.get("values", {}).items()}
    return Measured(
        values={name: np.asarray(row, dtype=np.float64) for name, row in values.items()},
        sets={name: value for one in kept.values() for name, value in one.get("sets", {}).items()},
        models={name: one["model"] for name, one in kept.items()},
    )


def _read(evaluation: Path) -> dict[str, Any]:
    path = evaluation / _NAME
    return read_json(path) if path.exists() else {}
