"""Training on a GPU: every precision, resume, memory as planned, a benchmark's systems side by side."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny.pipelines import build_llm

from llmdiff.errors import LLMDiffError
from llmdiff.training.log import read_log
from llmdiff.training.objective import Objective
from llmdiff.training.trainer import train_adapter
from llmdiff.workers.jobs import Workers
from llmdiff_lab.comparison.fill import Recipe, fill
from llmdiff_lab.comparison.prepare import choose_rivals
from llmdiff_lab.world_build.build import Build
from llmdiff_lab.world_build.presets import find_preset


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(next(Path(folder).glob("*.safetensors")))


def on_gpu(config: Any, out: str, **changes: Any) -> Any:
    return config(out, **changes).model_copy(update={"device": "cuda"})


@pytest.mark.parametrize(
    "changes",
    [
        {"training__precision": "bf16"},
        {"training__precision": "fp16"},
        {"training__precision": "fp16", "training__gains": "learned", "training__accumulation_steps": 2},
        {"training__gradient_checkpointing": True, "training__optimizer": "muon"},
        {"training__gains": "learned", "training__score_groups": 2, "training__warm_start_steps": 2},
        {"training__encodings": "online", "data__store_latents": False},
        {"base": "sdxl", "training__precision": "bf16"},
    ],
    ids=str,
)
def test_every_way_of_training_runs_and_changes_the_adapter(
    config: Any, changes: dict[str, Any], tmp_path: Path
) -> None:
    before = weights(train_adapter(on_gpu(config, "none", **(changes | {"training__steps": 1}))))
    after = weights(train_adapter(on_gpu(config, "run", **(changes | {"training__steps": 8}))))
    assert all(torch.isfinite(value).all() for value in after.values())
    assert any(not torch.equal(before[name], after[name]) for name in before)
    memory = [line["memory_gb"] for line in read_log(tmp_path / "run" / "log.jsonl") if "memory_gb" in line]
    assert all(value > 0 for value in memory)


def test_float32_trains_as_the_cpu_does(config: Any) -> None:
    cpu = weights(train_adapter(config("cpu")))
    gpu = weights(train_adapter(on_gpu(config, "gpu")))
    for name, value in cpu.items():
        torch.testing.assert_close(gpu[name], value, atol=2e-3, rtol=2e-2)


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_a_stopped_run_resumes_bit_for_bit(
    config: Any, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    changes = {"training__precision": precision, "training__caption_dropout": 0.5}
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        whole = weights(train_adapter(on_gpu(config, "whole", **changes)))
        noised, steps = Objective.noised, []

        def stops(self: Any, *given: Any) -> Any:
            steps.append(self)
            if len(steps) == 4:
                raise KeyboardInterrupt
            return noised(self, *given)

        monkeypatch.setattr(Objective, "noised", stops)
        with pytest.raises(KeyboardInterrupt):
            train_adapter(on_gpu(config, "cut", **changes))
        monkeypatch.setattr(Objective, "noised", noised)
        resumed = weights(train_adapter(on_gpu(config, "cut", **changes)))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_run_that_does_not_fit_says_so_in_one_line(config: Any) -> None:
    share = 2**28 / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(share)
    try:
        with pytest.raises(LLMDiffError, match=r"memory .*training\.batch_size .*llmdiff plan"):
            train_adapter(on_gpu(config, "large", training__batch_size=4, data__resolution_px=2048))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


def test_systems_of_a_benchmark_side_by_side(tmp_path: Path) -> None:
    llm: Any = build_llm()
    llm.model.save_pretrained(tmp_path / "llm")
    llm.tokenizer.save_pretrained(tmp_path / "llm")
    settings = find_preset("test", llm=str(tmp_path / "llm"))
    Build(settings, tmp_path / "build", torch.device("cuda")).run("checker")
    names = [
        "base",
        "base-longer",
        "last-hidden",
        "ella",
        "lavi-bridge",
        "llm4gen",
        "per-block",
        "layer-weights",
        "refined",
    ]
    recipe = Recipe(
        preset="test",
        build=tmp_path / "build",
        begin=None,
        device="cuda",
        out=tmp_path / "out",
        choice=choose_rivals(names),
        metrics=(("siglip", "openmoji"), ("fid", "openmoji"), ("cmmd", "openmoji")),
        settings={
            "llm": str(tmp_path / "llm"),
            "steps": 2,
            "text_steps": 6,
            "prompts_per_split": 1,
            "drawing_steps": 1,
            "seeds": 1,
            "learning_rates": (1e-3, 1e-2),
            "search_steps": 1,
        },
    )
    plan = recipe.benchmark()
    fill(recipe, plan, Workers(count=4))
    report = plan.report(command="", processes=4)
    assert set(report["systems"]) == set(names)
    assert report["hardware"]["gpu"] == torch.cuda.get_device_name()
    assert report["systems"]["refined"]["cost"]["peak_memory_gb"] > 0
