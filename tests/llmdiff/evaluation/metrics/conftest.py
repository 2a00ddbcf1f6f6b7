"""Tiny random models in folders, and pictures to score."""

from pathlib import Path

import numpy as np
import pytest
from tiny.image_text import SIDE_PX, save_image_text, save_vision

from llmdiff.evaluation.metrics.kinds import Pictures


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of every tiny model, by its kind."""
    root = tmp_path_factory.mktemp("metric-models")
    made = {kind: save_image_text(kind, root / kind) for kind in ("clip", "siglip", "siglip2")}
    return made | {kind: save_vision(kind, root / kind) for kind in ("vit", "resnet")}


@pytest.fixture
def pictures() -> Pictures:
    return np.random.default_rng(0).integers(0, 256, (5, SIDE_PX, SIDE_PX, 3), dtype=np.uint8)
