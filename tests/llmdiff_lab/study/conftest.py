"""A study of three systems."""

from pathlib import Path

import pytest

from llmdiff_lab.study.study import create_study
from tests.llmdiff_lab.study.studies import draw_all


@pytest.fixture
def study(tmp_path: Path) -> Path:
    create_study(tmp_path / "study", draw_all(tmp_path), check_every=6)
    return tmp_path / "study"
