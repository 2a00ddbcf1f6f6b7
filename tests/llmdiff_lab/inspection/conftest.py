"""A tiny adapter on the shipped base whose LLM knows every word, and the scripts of speed/."""

from pathlib import Path

import pytest
import torch

from llmdiff.adapter.base_pipeline import load_base_pipeline
from llmdiff.controller import LLMController
from llmdiff.language.llm import DecoderLLM
from tests.llmdiff.language.conftest import tiny_llm


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
