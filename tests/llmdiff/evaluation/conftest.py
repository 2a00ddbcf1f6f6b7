"""The packaged checker."""

import pytest

from llmdiff.adapter.base_pipeline import EMBEDDED_NAME
from llmdiff.evaluation.suites.scenes import load_checker
from llmdiff.world.checker import WorldChecker


@pytest.fixture(scope="session")
def trained_checker() -> WorldChecker:
    return load_checker(EMBEDDED_NAME)
