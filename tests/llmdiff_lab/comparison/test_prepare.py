"""Which metrics a benchmark takes where none are named."""

import shutil

import numpy as np
import torch

from llmdiff.evaluation.metrics.kinds import PictureMetric
from llmdiff_lab.comparison.prepare import own_metrics
from llmdiff_lab.world_build.build import Build
from llmdiff_lab.world_build.presets import CPU


def test_a_build_is_measured_by_its_own_siglip_once_it_has_one(built, tmp_path):
    shutil.copytree(built.folder, tmp_path / "build")
    build = Build(built.preset, tmp_path / "build", torch.device("cpu"))
    assert own_metrics(build) == []
    model = build.siglip()
    metrics = own_metrics(build)
    assert [metric.name for metric in metrics] == ["siglip", "fid", "cmmd"]
    assert {metric.model_id for metric in metrics} == {str(tmp_path / "build" / "siglip" / "model")}
    # It is that model which measures.
    (siglip,) = (metric for metric in metrics if isinstance(metric, PictureMetric))
    side = built.preset.image_size_px
    image = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), dtype=np.uint8)
    np.testing.assert_array_equal(siglip.score(image, ["a cat"])["siglip"], model.cosines(image, ["a cat"]))


def test_builds_of_the_shipped_preset_share_the_shipped_siglip(tmp_path):
    metrics = own_metrics(Build(CPU, tmp_path, torch.device("cpu")))
    assert [metric.model_id for metric in metrics] == ["openmoji"] * 3
