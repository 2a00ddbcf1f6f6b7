"""Load metrics by name: the library's own, and those of other packages."""

from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from llmdiff.adapter.base_pipeline import EMBEDDED_NAME, packaged
from llmdiff.errors import ConfigError, MetricError
from llmdiff.evaluation.metrics.alignment import CLIPScore, SigLIPScore
from llmdiff.evaluation.metrics.distribution import CMMD, FID, KID
from llmdiff.evaluation.metrics.diversity import Diversity
from llmdiff.evaluation.metrics.kinds import DiversityMetric, Metric, PictureMetric, SetMetric
from llmdiff.evaluation.metrics.preference import HPSv2, PickScore
from llmdiff.evaluation.metrics.quality import CLIPIQA

PLUGIN_GROUP = "llmdiff.metrics"
_OWN: tuple[Any, ...] = (SigLIPScore, CLIPScore, CLIPIQA, FID, KID, CMMD, Diversity, PickScore, HPSv2)
METRICS: dict[str, Any] = {kind.name: kind for kind in _OWN}


def load_metric(name: str, model: str | Path | None = None, *, device: str = "cpu") -> Metric:
    """Return a metric by name with the model of a folder or Hub id; "openmoji" is the embedded default's SigLIP.

    Other packages provide metrics by an entry point of the group `llmdiff.metrics`, a callable that takes the model
    (or None) and `device=`, and returns a PictureMetric, SetMetric or DiversityMetric.

    Raises:
        MetricError: the metric is unknown, or its model is missing or unsuitable.
    """
    if name not in METRICS:
        return _from_plugin(name, model, device)
    if model is None:
        raise MetricError(
            f"metric {name}: no model, expected a folder or Hub id of a model of transformers (--metric-model)"
        )
    source = packaged("siglip", MetricError) if str(model) == EMBEDDED_NAME else model
    metric: Metric = METRICS[name].from_pretrained(source, device=device)
    # The user's name for it, "openmoji", not its local path.
    metric.model_id = str(model)
    return metric


def with_models(names: Sequence[str], models: Sequence[str]) -> list[tuple[str, str | None]]:
    """Pair metrics with their models, in order; None for all if no models are given.

    Raises:
        ConfigError: the numbers of models and metrics differ.
    """
    if models and len(models) != len(names):
        raise ConfigError(
            f"metric-model: got {len(models)} for {len(names)} metrics, expected one for each --metric, in their order"
        )
    return list(zip(names, models or (None,) * len(names), strict=True))


def _from_plugin(name: str, model: str | Path | None, device: str) -> Metric:
    plugins = {point.name: point for point in metadata.entry_points(group=PLUGIN_GROUP)}
    if name not in plugins:
        raise MetricError(
            f"metric: got {name!r}, expected one of {', '.join([*METRICS, *plugins])}, or one that a package brings "
            f"by an entry point of the group {PLUGIN_GROUP}"
        )
    metric = plugins[name].load()(model, device=device)
    if not isinstance(metric, PictureMetric | SetMetric | DiversityMetric):
        raise MetricError(
            f"metric {name}: {plugins[name].value} gave a {type(metric).__name__}, expected a PictureMetric, SetMetric "
            "or DiversityMetric of llmdiff.evaluation.metrics.kinds"
        )
    return metric
