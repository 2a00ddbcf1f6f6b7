"""The packaged checker."""

import pytest

from llmdiff.adapter.base_pipeline import EMBEDDED_NAME
from llmdiff.evaluation.suites.scenes_check import SceneChecker


@pytest.fixture(scope="session")
def trained_checker() -> SceneChecker:
    return SceneChecker.from_pretrained(EMBEDDED_NAME)
