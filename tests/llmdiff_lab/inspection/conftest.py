"""A tiny adapter on the shipped base whose LLM knows every word, and the scripts of speed/."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from language.conftest import tiny_llm

from llmdiff.adapter.base_pipeline import load_base_pipeline
from llmdiff.controller import LLMController
from llmdiff.language.llm import DecoderLLM

BENCHMARKS = Path(__file__).parents[3] / "speed"


@pytest.fixture
def reading_adapter(tmp_path: Path) -> Path:
    """Its folder; the LLM lies beside it as `llm`."""
    llm = tiny_llm("llama")
    llm.model.save_pretrained(tmp_path / "llm")
    llm.tokenizer.save_pretrained(tmp_path / "llm")
    loaded = DecoderLLM.from_pretrained(tmp_path / "llm")
    pipe = load_base_pipeline("openmoji", dtype=torch.float32)
    LLMController.create(loaded, pipe, base_model_id="openmoji").save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """A function that loads a script of benchmarks/, which may import the others beside it."""
    monkeypatch.syspath_prepend(BENCHMARKS)

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load
