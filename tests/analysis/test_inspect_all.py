"""The script that writes what docs/results says of the insides of an LLM, whole, on a tiny random LLM."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from language.conftest import tiny_llm

from llmdiff.base_pipeline import load_base_pipeline
from llmdiff.controller import LLMController
from llmdiff.language.llm import DecoderLLM

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def inspect_all(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    spec = importlib.util.spec_from_file_location("inspect_all", BENCHMARKS / "inspect_all.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_part_is_written_once_and_none_is_large(inspect_all, tmp_path, monkeypatch, capsys):
    llm = tiny_llm("llama")
    llm.model.save_pretrained(tmp_path / "llm")
    llm.tokenizer.save_pretrained(tmp_path / "llm")
    loaded = DecoderLLM.from_pretrained(tmp_path / "llm")
    pipe = load_base_pipeline("openmoji", dtype=torch.float32)
    LLMController.create(loaded, pipe, base_model_id="openmoji").save_pretrained(tmp_path / "adapter")
    out = tmp_path / "results"
    arguments = {"out": out, "adapter": tmp_path / "adapter", "llm": tmp_path / "llm", "encoder": "none"}
    arguments |= {"steps": 1, "scenes": 2, "texts": 24, "captions": 8, "tests": 2, "probe-steps": 1}
    words = [word for name, value in arguments.items() for word in (f"--{name}", str(value))]

    def run(*more):
        monkeypatch.setattr(sys, "argv", ["inspect_all.py", *words, "--work", str(tmp_path / "work"), *more])
        inspect_all.main()
        return capsys.readouterr().out

    assert "there already" not in run()
    assert sorted(path.name for path in out.iterdir()) == [
        "attention-steps.png", "attention.json", "attention.png", "denoising.json", "denoising.md",
        "denoising.png", "pointing.json", "probes.json", "probes.md", "probes.png", "scores.json", "scores.png",
    ]  # fmt: skip
    for path in out.iterdir():
        assert 0 < path.stat().st_size < 1_000_000
        if path.suffix == ".json":
            record = json.loads(path.read_text())
            assert record["command"].startswith("python benchmarks/inspect_all.py --out")
            assert record["date"] > "2026"
    assert json.loads((out / "pointing.json").read_text())["scenes"] == 2
    assert run().count("there already") == 5
    before = (out / "scores.json").stat().st_mtime_ns
    assert "pointing: {" in run("--only", "pointing", "--again")
    assert (out / "scores.json").stat().st_mtime_ns == before
    with pytest.raises(SystemExit):
        run("--only", "nothing")
    assert "expected some of scores, attention" in capsys.readouterr().err
