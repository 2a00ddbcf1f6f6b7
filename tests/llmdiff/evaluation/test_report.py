"""Evaluations of constructed systems: the report's figures against a hand count, its files, its errors."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from llmdiff.controller import LLMController
from llmdiff.errors import ConfigError, LLMDiffError, OutputError
from llmdiff.evaluation.report import evaluate_scenes, evaluate_systems
from llmdiff.evaluation.scenes_check import SceneChecker
from llmdiff.evaluation.suites import ScenePrompt, scenes_suite
from llmdiff.evaluation.summary import summarise
from llmdiff.evaluation.systems import System, pipeline_system
from llmdiff.evaluation.tables import report_tables
from llmdiff.evaluation.verdicts import Verdict
from llmdiff.openmoji.contents import SPLITS, World
from llmdiff.openmoji.scenes import draw, lay_out

WORLD = World(objects=6)


def render(rows: Sequence[ScenePrompt]) -> System:
    """A system that draws what its rows ask for: it looks the content up by the seed."""
    contents = {row.seed: row.content for row in rows}

    def system(prompts: list[str], seeds: list[int]) -> NDArray[np.uint8]:
        return np.stack([draw(lay_out(contents[seed], np.random.default_rng(seed))) for seed in seeds])

    return system


def result(**parts: Any) -> Verdict:
    given: dict[str, Any] = {
        "things": True, "colours": None, "count": True, "relation": None, "size": None, "background": None,
    }  # fmt: skip
    return Verdict(**(given | parts))


def test_figures_agree_with_a_hand_count() -> None:
    suite = scenes_suite(2, 0, WORLD, splits=["seen", "pairs"])
    right, wrong = result(), result(things=False)
    verdicts = {
        "base": [right, wrong, result(relation="swapped"), result(relation="wrong")],
        "llm": [
            right,
            right,
            result(relation="right", background=True),
            result(relation="swapped", background=False),
        ],
    }
    figures = summarise(suite, verdicts)
    base, ours = figures["base"], figures["llm"]
    assert (base["overall"]["mean"], base["overall"]["n"]) == (0.25, 4)
    assert (ours["overall"]["mean"], ours["overall"]["n"]) == (0.75, 4)
    assert base["overall"]["low"] <= 0.25 <= base["overall"]["high"]
    assert {split: row["mean"] for split, row in base["splits"].items()} == {"seen": 0.5, "pairs": 0.0}
    assert {split: row["mean"] for split, row in ours["splits"].items()} == {"seen": 1.0, "pairs": 0.5}
    assert base["parts"]["things"]["mean"] == 0.75
    assert base["parts"]["relation"] == {"right": 0.0, "swapped": 0.5, "wrong": 0.5, "n": 2}
    assert ours["parts"]["relation"] == {"right": 0.5, "swapped": 0.5, "wrong": 0.0, "n": 2}
    assert (ours["parts"]["background"]["mean"], ours["parts"]["background"]["n"]) == (0.5, 2)
    assert "colours" not in ours["parts"]
    assert "background" not in base["parts"]
    assert ours["differences_to_base"]["overall"]["mean"] == pytest.approx(0.5)
    assert ours["differences_to_base"]["splits"]["pairs"]["mean"] == pytest.approx(0.5)
    assert "differences_to_base" not in base


def test_everything_is_written_and_every_system_gets_the_same(tmp_path: Path) -> None:
    suite = scenes_suite(3, 0, WORLD)
    calls: dict[str, list[tuple[str, int]]] = {"base": [], "llm": []}

    def noted(name: str, system: System) -> System:
        def note(prompts: list[str], seeds: list[int]) -> NDArray[np.uint8]:
            calls[name] += zip(prompts, seeds, strict=True)
            return system(prompts, seeds)

        return note

    systems = {name: noted(name, render(suite)) for name in calls}
    checker = SceneChecker(6).eval()
    checker.figures = {"exact": 0.99}
    report = evaluate_systems(
        systems, suite, checker, tmp_path, batch=4, settings={"steps": 2}, command="test"
    )
    assert calls["base"] == calls["llm"] == [(row.prompt, row.seed) for row in suite]
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert set(report) >= {"systems", "suite", "checker", "versions", "command", "date", "seconds_per_image"}
    assert report["checker"] == {"exact": 0.99}
    assert set(report["systems"]["llm"]["splits"]) == set(SPLITS)
    lines = [json.loads(line) for line in (tmp_path / "verdicts.jsonl").read_text().splitlines()]
    assert len(lines) == 2 * len(suite)
    exact = [line["verdict"]["exact"] for line in lines if line["system"] == "llm"]
    assert report["systems"]["llm"]["overall"]["mean"] == pytest.approx(np.mean(exact))
    for split in SPLITS:
        for name in systems:
            with Image.open(tmp_path / "grids" / f"{split}-{name}.png") as grid:
                assert grid.size[0] > 0
    assert not list(tmp_path.rglob("*partial*"))
    table = report_tables(report)
    rows = table.split("\n\n")[0].splitlines()
    assert len({len(row) for row in rows}) == 1
    assert "llm - base" in table
    assert (tmp_path / "report.md").read_text().startswith("| exact match")


def test_a_wrong_answer_of_a_system_is_named(tmp_path: Path) -> None:
    def floats(prompts: list[str], seeds: list[int]) -> Any:
        return np.zeros((len(prompts), 64, 64, 3))

    with pytest.raises(LLMDiffError, match="system odd: gave float64"):
        evaluate_systems({"odd": floats}, scenes_suite(1, 0, WORLD), SceneChecker(6), tmp_path)
    with pytest.raises(ConfigError, match="systems"):
        evaluate_systems({}, scenes_suite(1, 0, WORLD), SceneChecker(6), tmp_path)
    assert not (tmp_path / "report.json").exists()


def test_an_unwritable_folder_is_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    def never(prompts: list[str], seeds: list[int]) -> NDArray[np.uint8]:
        raise AssertionError("drew although nothing can be written")

    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError, match="cannot be written"):
            evaluate_systems({"base": never}, scenes_suite(1, 0, WORLD), SceneChecker(6), out)


def test_a_picture_does_not_depend_on_its_batch(sd_pipe: Any) -> None:
    prompts, seeds = ["a cat", "a red car", "two dogs"], [4, 5, 6]
    together = pipeline_system(sd_pipe, steps=2, batch=3)(prompts, seeds)
    alone = pipeline_system(sd_pipe, steps=2, batch=1)(prompts, seeds)
    assert together.dtype == np.uint8
    assert np.abs(together.astype(int) - alone.astype(int)).max() <= 1
    swapped = pipeline_system(sd_pipe, steps=2, batch=2)(prompts[::-1], seeds[::-1])[::-1]
    assert np.abs(together.astype(int) - swapped.astype(int)).max() <= 1


def test_base_and_controlled_pipeline_are_evaluated(tmp_path: Path, sd_pipe: Any, tiny_llm: Any) -> None:
    sd_pipe.save_pretrained(tmp_path / "base")
    controller = LLMController.create(tiny_llm, sd_pipe, base_model_id=str(tmp_path / "base"))
    report = evaluate_scenes(
        controller, 1, tmp_path / "out", steps=2, checker=SceneChecker(6).eval(), command="x"
    )
    assert list(report["systems"]) == ["base", "llm"]
    assert report["systems"]["llm"]["overall"]["n"] == len(SPLITS)
    assert report["settings"]["base_model"] == str(tmp_path / "base")
    first = (tmp_path / "out" / "grids" / "seen-base.png").read_bytes()
    assert first != (tmp_path / "out" / "grids" / "seen-llm.png").read_bytes()


def test_real_renders_are_right_and_shuffled_ones_are_not(
    tmp_path: Path, trained_checker: SceneChecker
) -> None:
    suite = scenes_suite(25, 3, World(objects=trained_checker.objects))
    shifted = [
        ScenePrompt(split=row.split, prompt=row.prompt, seed=row.seed, content=suite[i - 7].content)
        for i, row in enumerate(suite)
    ]
    systems = {"perfect": render(suite), "shuffled": render(shifted)}
    report = evaluate_systems(systems, suite, trained_checker, tmp_path)
    assert report["systems"]["perfect"]["overall"]["mean"] >= 0.97
    assert report["systems"]["shuffled"]["overall"]["mean"] <= 0.05


def test_a_picture_that_cannot_be_drawn_is_black_counted_and_said(
    tmp_path: Path, trained_checker: SceneChecker, caplog: pytest.LogCaptureFixture
) -> None:
    suite = scenes_suite(3, 3, World(objects=trained_checker.objects), splits=["seen", "pairs"])
    broken = {suite[1].seed, suite[4].seed, suite[5].seed}
    perfect = render(suite)

    def fragile(prompts: list[str], seeds: list[int]) -> NDArray[np.uint8]:
        if broken & set(seeds):
            raise RuntimeError("the lamp went out")
        return perfect(prompts, seeds)

    systems = {"fragile": fragile, "perfect": perfect}
    report = evaluate_systems(systems, suite, trained_checker, tmp_path, batch=4, keep_pictures=True)
    assert report["failed_pictures"] == {"fragile": 3, "perfect": 0}
    lines = [json.loads(line) for line in (tmp_path / "verdicts.jsonl").read_text().splitlines()]
    wrong = {(line["system"], line["seed"]) for line in lines if not line["verdict"]["exact"]}
    assert {("fragile", seed) for seed in broken} <= wrong
    for index, row in enumerate(suite):
        with Image.open(tmp_path / "pictures" / "fragile" / f"{index:05d}.png") as kept:
            assert (not np.asarray(kept).any()) == (row.seed in broken)
    assert "3 pictures of fragile could not be drawn" in report_tables(report)
    assert "of perfect could not" not in report_tables(report)
    said = [record.getMessage() for record in caplog.records if "could not be drawn" in record.getMessage()]
    assert len(said) == 3
    assert repr(suite[1].prompt) in said[0]
    assert said[0].endswith("the lamp went out")


def test_a_system_that_draws_nothing_is_no_result(tmp_path: Path) -> None:
    def dead(prompts: list[str], seeds: list[int]) -> NDArray[np.uint8]:
        raise RuntimeError("no lamp")

    with pytest.raises(RuntimeError, match="no lamp"):
        evaluate_systems({"dead": dead}, scenes_suite(1, 0, WORLD), SceneChecker(6), tmp_path, batch=2)
    assert not (tmp_path / "report.json").exists()
