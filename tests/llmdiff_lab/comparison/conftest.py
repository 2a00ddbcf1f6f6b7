"""A base and a checker of the test preset, made once, and a tiny LLM in a folder."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny.pipelines import build_llm

from llmdiff_lab.world_build.build import Build
from llmdiff_lab.world_build.presets import find_preset


@pytest.fixture(scope="package")
def llm_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("llm") / "tiny"
    llm: Any = build_llm()
    llm.model.save_pretrained(folder)
    llm.tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="package")
def built(tmp_path_factory: pytest.TempPathFactory, llm_folder: str) -> Build:
    folder: Path = tmp_path_factory.mktemp("build")
    build = Build(find_preset("test", llm=llm_folder), folder, torch.device("cpu"))
    build.run("checker")
    return build
