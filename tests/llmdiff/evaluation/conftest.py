"""A trained checker, where this machine has one."""

from pathlib import Path

import pytest

from llmdiff.evaluation.suites.scenes_check import EMBEDDED_NAME, SceneChecker

BUILT = Path.home() / ".cache" / "llmdiff" / "builds" / "openmoji-cpu" / "checker" / "model"


@pytest.fixture(scope="session")
def trained_checker() -> SceneChecker:
    from llmdiff.evaluation.suites.scenes_check import packaged_checker

    if packaged_checker().is_dir():
        return SceneChecker.from_pretrained(EMBEDDED_NAME)
    if BUILT.is_dir():
        return SceneChecker.from_pretrained(BUILT)
    pytest.skip("no trained checker: neither in the package nor built (llmdiff-lab build)")
