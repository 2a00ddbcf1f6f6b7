"""Evaluations of constructed systems: the report's figures against a hand count, its files, its errors."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from llmdiff.controller import LLMController
from llmdiff.errors import ConfigError, LLMDiffError, OutputError
from llmdiff.evaluation.picture_store import DRAWN_NAME
from llmdiff.evaluation.report import evaluate_suite
from llmdiff.evaluation.suites.scenes import ScenePrompt, SceneScorer, scene_prompts, scenes_suite
from llmdiff.evaluation.suites.suite import SuitePrompt
from llmdiff.evaluation.systems import System, controller_systems, pipeline_system
from llmdiff.evaluation.tables import report_tables
from llmdiff.world.checker import WorldChecker
from llmdiff.world.layouts import OPPOSITE
from llmdiff.world.reading import Reading, reading_of
from llmdiff.world.scenes import World
from llmdiff.world.splits import SPLITS

from .told_reader import Reader

WORLD = World(thing_count=40, styles=("flat", "line"))


def untrained() -> WorldChecker:
    return WorldChecker(WORLD, channels=8).eval()


def seed_of(row: SuitePrompt) -> int:
    (seed,) = row.seeds(1, 0)
    return seed


def render(rows: Sequence[ScenePrompt]) -> System:
    """A system that draws what its rows ask for: it looks the scene up by the seed."""
    by_seed = {seed_of(row): row for row in rows}

    def system(prompts: list[str], seeds: list[int]) -> NDArray[np.uint8]:
        return np.stack([by_seed[seed].render() for seed in seeds])

    return system


def evaluate(
    systems: Mapping[str, System], rows: Sequence[ScenePrompt], checker: WorldChecker, out: Path, **more: Any
) -> dict[str, Any]:
    return evaluate_suite(systems, scenes_suite(rows), out, metrics=[SceneScorer(checker)], **more)


def prompt_lines(out: Path, system: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "prompts.jsonl").read_text().splitlines()]
    return [line for line in lines if line["system"] == system]


def test_figures_agree_with_a_hand_count(tmp_path: Path) -> None:
    rows = scene_prompts(60, 0, WORLD, splits=["seen", "pairs"])
    related = [row for row in rows if row.expected.relation in OPPOSITE and row.expected.background is None]
    others = [row for row in rows if row.expected.relation is None and row.expected.background is not None]
    rows = [others[0], others[1], related[0], related[-1]]
    right = [reading_of(row.scene) for row in rows]

    def turned(seen: Reading) -> Reading:
        first, second = seen.things
        there = {"x": second.x, "y": second.y}, {"x": first.x, "y": first.y}
        things = tuple(replace(one, **at) for one, at in zip(seen.things, there, strict=True))
        return replace(seen, things=things)

    nothing = Reading(things=(), place=right[3].place)
    other_background = replace(right[1], background="no such")
    # base: right, wrong things, swapped, nothing. llm: right, another background, right, swapped.
    base = [right[0], replace(right[1], things=()), turned(right[2]), nothing]
    ours = [right[0], other_background, right[2], turned(right[3])]
    figures = evaluate(
        {"base": render(rows), "llm": render(rows)}, rows, Reader(WORLD, base + ours), tmp_path, batch=4
    )["systems"]
    base_found, ours_found = figures["base"]["metrics"], figures["llm"]["metrics"]
    assert (base_found["scenes"]["mean"], base_found["scenes"]["n"]) == (0.25, 4)
    assert (ours_found["scenes"]["mean"], ours_found["scenes"]["n"]) == (0.5, 4)
    assert base_found["scenes"]["low"] <= 0.25 <= base_found["scenes"]["high"]
    assert base_found["scenes: things"]["mean"] == 0.5
    assert ours_found["scenes: things"]["mean"] == 1.0
    for kind, (of_base, of_ours) in {"right": (0, 0.5), "swapped": (0.5, 0.5), "wrong": (0.5, 0)}.items():
        assert base_found[f"scenes: relation {kind}"]["mean"] == of_base
        assert ours_found[f"scenes: relation {kind}"]["mean"] == of_ours
        assert ours_found[f"scenes: relation {kind}"]["n"] == 2
    asked = sum(row.expected.background is not None for row in rows)
    assert ours_found["scenes: background"]["n"] == asked
    assert ours_found["scenes: background"]["mean"] == pytest.approx((asked - 1) / asked)
    by_tag = figures["llm"]["metrics_by_tag"]
    for tag in by_tag:
        of_tag = [row for row, exact in zip(rows, (1, 0, 1, 0), strict=True) if row.split == tag and exact]
        count = sum(row.split == tag for row in rows)
        assert by_tag[tag]["scenes"]["mean"] == len(of_tag) / count
    assert figures["llm"]["differences_to_base"]["metrics"]["scenes"]["mean"] == pytest.approx(0.25)
    assert "differences_to_base" not in figures["base"]


def test_everything_is_written_and_every_system_gets_the_same(tmp_path: Path) -> None:
    suite = scene_prompts(3, 0, WORLD)
    calls: dict[str, list[tuple[str, int]]] = {"base": [], "llm": []}

    def noted(name: str, system: System) -> System:
        def note(prompts: list[str], seeds: list[int]) -> NDArray[np.uint8]:
            calls[name] += zip(prompts, seeds, strict=True)
            return system(prompts, seeds)

        return note

    systems = {name: noted(name, render(suite)) for name in calls}
    checker = untrained()
    checker.figures = {"exact": 0.99}
    report = evaluate(systems, suite, checker, tmp_path, batch=4, settings={"steps": 2}, command="test")
    assert calls["base"] == calls["llm"] == [(row.prompt, seed_of(row)) for row in suite]
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert set(report) >= {"systems", "suite", "checker", "versions", "command", "date", "seconds_per_image"}
    assert report["checker"] == {"exact": 0.99}
    assert set(report["systems"]["llm"]["metrics_by_tag"]) == set(SPLITS)
    lines = prompt_lines(tmp_path, "llm")
    assert [line["prompt"] for line in lines] == [row.prompt for row in suite]
    exact = [line["values"]["scenes"] for line in lines]
    assert report["systems"]["llm"]["metrics"]["scenes"]["mean"] == pytest.approx(np.mean(exact))
    scored = (tmp_path / "scores" / "scenes" / "llm.jsonl").read_text().splitlines()
    assert all("seen" in json.loads(line) for line in scored)
    for name in systems:
        with Image.open(tmp_path / f"samples-{name}.png") as grid:
            assert grid.size[0] > 0
    assert not list(tmp_path.rglob("*partial*"))
    table = report_tables(report)
    rows = table.split("\n\n")[0].splitlines()
    assert len({len(row) for row in rows}) == 1
    assert "llm - base" in table
    assert (tmp_path / "report.md").read_text().startswith("| exact match")


def test_a_wrong_answer_of_a_system_is_named(tmp_path: Path) -> None:
    def floats(prompts: list[str], seeds: list[int]) -> Any:
        return np.zeros((len(prompts), 128, 128, 3))

    with pytest.raises(LLMDiffError, match="system odd: gave float64"):
        evaluate({"odd": floats}, scene_prompts(1, 0, WORLD), untrained(), tmp_path)
    with pytest.raises(ConfigError, match="systems"):
        evaluate({}, scene_prompts(1, 0, WORLD), untrained(), tmp_path)
    assert not (tmp_path / "report.json").exists()


def test_an_unwritable_folder_is_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    def never(prompts: list[str], seeds: list[int]) -> NDArray[np.uint8]:
        raise AssertionError("drew although nothing can be written")

    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError, match="cannot be written"):
            evaluate({"base": never}, scene_prompts(1, 0, WORLD), untrained(), out)


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
    systems = controller_systems(controller, controller.load_pipeline(), steps=2)
    report = evaluate(systems, scene_prompts(1, 0, WORLD), untrained(), tmp_path / "out")
    assert list(report["systems"]) == ["base", "llm"]
    assert report["systems"]["llm"]["metrics"]["scenes"]["n"] == len(SPLITS)
    base, llm = (sorted((tmp_path / "out" / DRAWN_NAME / name).glob("*.png")) for name in ("base", "llm"))
    assert np.any(np.asarray(Image.open(base[0])) != np.asarray(Image.open(llm[0])))


def test_real_renders_are_right_and_shuffled_ones_are_not(
    tmp_path: Path, trained_checker: WorldChecker
) -> None:
    suite = scene_prompts(25, 3, trained_checker.world)
    shifted = [replace(row, scene=suite[i - 7].scene) for i, row in enumerate(suite)]
    systems = {"perfect": render(suite), "shuffled": render(shifted)}
    report = evaluate(systems, suite, trained_checker, tmp_path)
    assert report["systems"]["perfect"]["metrics"]["scenes"]["mean"] >= 0.97
    assert report["systems"]["shuffled"]["metrics"]["scenes"]["mean"] <= 0.05


def test_a_picture_that_cannot_be_drawn_is_wrong_counted_and_said(
    tmp_path: Path, trained_checker: WorldChecker, caplog: pytest.LogCaptureFixture
) -> None:
    suite = scene_prompts(3, 3, trained_checker.world, splits=["seen", "pairs"])
    broken = {seed_of(suite[1]), seed_of(suite[4]), seed_of(suite[5])}
    perfect = render(suite)

    def fragile(prompts: list[str], seeds: list[int]) -> NDArray[np.uint8]:
        if broken & set(seeds):
            raise RuntimeError("the lamp went out")
        return perfect(prompts, seeds)

    systems = {"fragile": fragile, "perfect": perfect}
    report = evaluate(systems, suite, trained_checker, tmp_path, batch=4)
    assert [report["systems"][name]["failed"] for name in systems] == [3, 0]
    for row, line, other in zip(
        suite, prompt_lines(tmp_path, "fragile"), prompt_lines(tmp_path, "perfect"), strict=True
    ):
        # Every part that the prompt asks for counts, drawn or not.
        assert set(line["values"]) == set(other["values"])
        if seed_of(row) in broken:
            assert {name for name, value in line["values"].items() if value} <= {
                "scenes: relation wrong",
                "scenes: way up",
            }
    assert "fragile: 3 of 6 pictures could not be drawn" in report_tables(report)
    assert "perfect: " not in report_tables(report)
    said = [record.getMessage() for record in caplog.records if "could not be drawn" in record.getMessage()]
    assert len(said) == 3
    assert repr(suite[1].prompt) in said[0]
    assert said[0].endswith("the lamp went out")


def test_a_system_that_draws_nothing_is_no_result(tmp_path: Path) -> None:
    def dead(prompts: list[str], seeds: list[int]) -> NDArray[np.uint8]:
        raise RuntimeError("no lamp")

    with pytest.raises(LLMDiffError, match="no lamp"):
        evaluate({"dead": dead}, scene_prompts(1, 0, WORLD), untrained(), tmp_path, batch=2)
    assert not (tmp_path / "report.json").exists()
