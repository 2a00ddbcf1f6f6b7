"""The verb `evaluate` on tiny models: suites, metrics, workers and what is refused before anything is drawn."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from tiny.image_text import save_image_text, save_vision
from tiny.pipelines import build_llm, build_sd
from typer.testing import CliRunner

from llmdiff.adapter import LLMDiffAdapter
from llmdiff.cli.main import app
from llmdiff.controller import LLMController
from llmdiff.evaluation.suites.scenes import scene_prompts
from llmdiff.language.llm import DecoderLLM
from llmdiff.world.checker import WorldChecker
from llmdiff.world.scenes import World
from llmdiff.world.splits import SPLITS

Evaluate = Callable[..., Result]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny adapter and its models, a checker, a CLIP and a vision model."""
    root = tmp_path_factory.mktemp("models")
    pipe, llm = build_sd(), build_llm()
    pipe.save_pretrained(root / "pipe")
    llm.model.save_pretrained(root / "llm")
    llm.tokenizer.save_pretrained(root / "llm")
    loaded = DecoderLLM.from_pretrained(root / "llm")
    LLMController.create(loaded, pipe, base_model_id=str(root / "pipe")).save_pretrained(root / "adapter")
    WorldChecker(World(thing_count=20, styles=("flat", "line")), channels=8).save_pretrained(root / "checker")
    save_image_text("clip", root / "clip")
    save_vision("vit", root / "vit")
    (root / "mine.jsonl").write_text(
        '{"prompt": "a cat", "tags": ["one"]}\n'
        '{"prompt": "two red car", "tags": ["two"]}\n'
        '{"prompt": "a dog", "tags": ["one"]}\n'
    )
    return root


@pytest.fixture
def evaluate(models: Path) -> Evaluate:
    def call(out: Path, *arguments: object) -> Result:
        fixed = ("evaluate", "--adapter", models / "adapter", "--device", "cpu", "--steps", 1, "--out", out)
        return CliRunner().invoke(app, [*map(str, fixed), *map(str, arguments)])

    return call


def report(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "report.json").read_text())
    return found


def scenes_by_tag(found: dict[str, Any], system: str) -> dict[str, Any]:
    return {
        tag: {name: figure for name, figure in row.items() if name.startswith("scenes")}
        for tag, row in found["systems"][system]["metrics_by_tag"].items()
    }


def test_own_prompts_by_two_workers_with_a_metric(evaluate: Evaluate, models: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked = ("--suite", models / "mine.jsonl", "--metric", "clip-score", "--metric-model", models / "clip")
    result = evaluate(out, *asked, "--workers", 2)
    assert result.exit_code == 0, result.output
    assert "not comparable with published numbers" in result.output
    figures = report(out)
    assert list(figures["systems"]) == ["base", "llm"]
    assert figures["suite"]["tags"] == {"one": 2, "two": 1}
    assert figures["systems"]["llm"]["metrics"]["clip_score"]["n"] == 3
    assert figures["metrics"] == {"clip-score": str(models / "clip")}
    assert len(list((out / "drawn" / "llm").glob("*.png"))) == 3
    alone = evaluate(tmp_path / "alone", *asked)
    assert alone.exit_code == 0, alone.output
    assert report(tmp_path / "alone")["systems"] == figures["systems"]
    refused = evaluate(out, *asked, "--steps", 2)
    assert refused.exit_code == 1
    assert "pictures drawn with steps 1, expected 2" in refused.stderr


@pytest.mark.hostile("stale batches")
@pytest.mark.parametrize("suite", ["mine.jsonl", "scenes"])
def test_pictures_of_models_that_were_changed_in_place_are_not_gone_on_with(
    models: Path, tmp_path: Path, suite: str
) -> None:
    for name in ("adapter", "llm", "pipe"):
        shutil.copytree(models / name, tmp_path / name)
    own = LLMDiffAdapter.from_pretrained(tmp_path / "adapter")
    own.register_to_config(llm_id=str(tmp_path / "llm"), base_model_id=str(tmp_path / "pipe"))
    own.save_pretrained(tmp_path / "adapter")
    which = ["--prompts", "1", "--checker", str(models / "checker")]
    which = which if suite == "scenes" else ["--suite", str(models / suite)]

    def run() -> Result:
        fixed = ["evaluate", "--adapter", tmp_path / "adapter", "--device", "cpu", "--steps", 1]
        return CliRunner().invoke(app, [*map(str, [*fixed, "--out", tmp_path / "out"]), *which])

    assert run().exit_code == 0
    assert run().exit_code == 0
    pipe = build_sd()
    pipe.vae.decoder.conv_out.bias.data.add_(0.1)
    pipe.save_pretrained(tmp_path / "pipe")
    refused = run()
    assert refused.exit_code == 1
    assert "has pictures drawn with pipeline_sha256" in refused.stderr
    build_sd().save_pretrained(tmp_path / "pipe")
    assert run().exit_code == 0
    llm = build_llm()
    llm.model.model.norm.weight.data.mul_(1.01)
    llm.model.save_pretrained(tmp_path / "llm")
    refused = run()
    assert refused.exit_code == 1
    assert "has pictures drawn with llm_sha256" in refused.stderr


def test_the_prompts_are_those_of_the_world_that_the_pipeline_was_trained_on(
    models: Path, tmp_path: Path
) -> None:
    shutil.copytree(models / "pipe", tmp_path / "pipe")
    world = {"thing_count": 40, "styles": ["flat", "line"]}
    (tmp_path / "pipe" / "world.json").write_text(json.dumps(world))
    adapter = LLMDiffAdapter.from_pretrained(models / "adapter")
    adapter.register_to_config(llm_id=str(models / "llm"), base_model_id=str(tmp_path / "pipe"))
    adapter.save_pretrained(tmp_path / "adapter")
    WorldChecker(World(thing_count=40), channels=8).save_pretrained(tmp_path / "checker")

    def run(checker: Path) -> Result:
        fixed = [
            "evaluate",
            "--adapter",
            tmp_path / "adapter",
            "--device",
            "cpu",
            "--steps",
            1,
            "--prompts",
            1,
        ]
        return CliRunner().invoke(app, [*map(str, [*fixed, "--out", tmp_path / "out", "--checker", checker])])

    refused = run(models / "checker")
    assert refused.exit_code == 1
    assert "cannot read 20 of the 40 things" in refused.stderr
    done = run(tmp_path / "checker")
    assert done.exit_code == 0, done.output
    assert set(report(tmp_path / "out")["systems"]["llm"]["metrics_by_tag"]) == set(SPLITS)
    lines = (tmp_path / "out" / "prompts.jsonl").read_text().splitlines()
    asked = {json.loads(line)["prompt"] for line in lines}
    assert asked == {
        row.prompt for row in scene_prompts(1, 0, World(thing_count=40, styles=("flat", "line")))
    }


def test_scenes_with_metrics_and_by_two_workers(evaluate: Evaluate, models: Path, tmp_path: Path) -> None:
    asked = ("--prompts", 1, "--checker", models / "checker")
    measured = ("--metric", "clip-score", "--metric", "fid", "--metric-model", models / "clip")
    measured = (*measured, "--metric-model", models / "vit")
    whole = evaluate(tmp_path / "whole", *asked, *measured)
    assert whole.exit_code == 0, whole.output
    found = report(tmp_path / "whole")
    assert {"scenes", "clip_score"} <= set(found["systems"]["llm"]["metrics"])
    assert found["systems"]["llm"]["metrics_by_tag"]["pairs"]["clip_score"]["n"] == 1
    assert found["systems"]["base"]["sets"]["fid"] > 0
    assert "clip_score" in whole.output
    assert "not comparable with published numbers" in whole.output
    assert found["settings"]["scale"] == 1.0
    off = evaluate(tmp_path / "off", *asked, "--scale", 0)
    assert off.exit_code == 0, off.output
    assert report(tmp_path / "off")["settings"]["scale"] == 0.0
    assert scenes_by_tag(report(tmp_path / "off"), "llm") == scenes_by_tag(found, "base")
    shared = evaluate(tmp_path / "out", *asked, "--workers", 2)
    assert shared.exit_code == 0, shared.output
    again = report(tmp_path / "out")
    for name in ("base", "llm"):
        assert again["systems"][name]["failed"] == 0
        assert scenes_by_tag(again, name) == scenes_by_tag(found, name)
        assert again["seconds_per_image"][name] > 0


def test_what_cannot_be_is_said_before_anything_is_drawn(
    evaluate: Evaluate, models: Path, tmp_path: Path
) -> None:
    mine = ("--suite", models / "mine.jsonl")
    for arguments, said in (
        (("--suite", "portraits"), "suite: got 'portraits', expected scenes, dpg-bench"),
        (("--suite", "geneval"), "suite-files: got None"),
        ((*mine, "--metric", "clip-score"), "metric clip-score: no model"),
        ((*mine, "--metric-model", models / "clip"), "got 1 for 0 metrics"),
        ((*mine, "--metric", "geneval"), "metric geneval: no model"),
        (
            (*mine, "--official-scores", "llm=none.txt"),
            "expected SYSTEM=FILE with an existing file or folder",
        ),
        (
            (*mine, "--official-scores", f"llm={models}", "--official-scores", f"llm={models}"),
            "official-scores: llm is given twice",
        ),
        ((*mine, "--metric", "fid", "--metric-model", models / "vit"), "--reference"),
        (("--suite-files", tmp_path), "the suite scenes has its own prompts and scorer"),
        (("--reference", tmp_path), "has 0 pictures"),
    ):
        result = evaluate(tmp_path / "out", *arguments)
        assert result.exit_code == 1, result.output
        assert said in result.stderr, result.stderr
        assert not list((tmp_path / "out").rglob("*.png"))
