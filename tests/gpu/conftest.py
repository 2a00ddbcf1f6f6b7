"""What runs on a GPU: all tests of this folder are marked gpu and skipped without one."""

from pathlib import Path

import pytest
import torch

from tests.llmdiff.adapter.conftest import make_adapter  # noqa: F401
from tests.llmdiff.training.conftest import config, models  # noqa: F401


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    without = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            item.add_marker(without)


@pytest.fixture(autouse=True)
def _full_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions in float32 as on the CPU, not in TF32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
