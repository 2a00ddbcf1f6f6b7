"""Fixtures that all tests share: tiny random pipelines and LLMs of the real classes, see tiny/pipelines.py."""

import importlib.util
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from tiny.families import BUILDERS, drawn
from tiny.pipelines import build_llm, build_sd, build_sdxl

SPEED = Path(__file__).parents[1] / "speed"
LOGGERS = ("llmdiff", "llmdiff_lab", "uvicorn", "py")


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _same_logging() -> None:
    """Undo what commands set for a process of their own, and libraries' `dictConfig`, which disables loggers."""
    logging.captureWarnings(False)
    for name, log in list(logging.root.manager.loggerDict.items()):
        if name.split(".")[0] in LOGGERS and isinstance(log, logging.Logger):
            log.handlers, log.propagate, log.disabled = [], True, False
            log.setLevel(logging.NOTSET)


@pytest.fixture(autouse=True)
def _same_attention_backend() -> Iterator[None]:
    """Undo `set_attention_backend`, which sets the backend of every model of the process."""
    before, _ = _AttentionBackendRegistry.get_active_backend()
    yield
    _AttentionBackendRegistry.set_active_backend(before)


@pytest.fixture
def sd_pipe() -> StableDiffusionPipeline:
    return build_sd()


@pytest.fixture
def sdxl_pipe() -> StableDiffusionXLPipeline:
    return build_sdxl()


@pytest.fixture(params=["sd", "sdxl"])
def pipe(request: pytest.FixtureRequest) -> Any:
    return BUILDERS[request.param]()


@pytest.fixture
def tiny_llm() -> Any:
    return build_llm()


@pytest.fixture
def make_llm() -> Callable[..., Any]:
    return build_llm


@pytest.fixture
def make_sd() -> Callable[..., Any]:
    return build_sd


@pytest.fixture
def draw() -> Callable[..., torch.Tensor]:
    """Draw a few steps from a fixed seed, see `tiny.families.drawn`."""
    return drawn


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Any]:
    """Ray with two workers on this machine, where it is installed; workers import what they need themselves."""
    ray = pytest.importorskip("ray", reason="the extra ray is not installed")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    small: dict[str, Any] = {"num_cpus": 2, "object_store_memory": 2**27, "include_dashboard": False}
    if os.environ.get("RAY_ADDRESS"):
        small = {}  # one that runs already
    for last_try in (False, False, True):
        try:
            ray.init(log_to_driver=False, logging_level="ERROR", **small)
            break
        except Exception:  # a loaded machine needs more than its 30 s until the files are in memory
            ray.shutdown()
            if last_try:
                raise
    yield ray
    ray.shutdown()


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Return a function that loads a script of speed/, which may import the others beside it."""
    monkeypatch.syspath_prepend(SPEED)

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, SPEED / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load
