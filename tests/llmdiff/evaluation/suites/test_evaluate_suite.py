"""Whole evaluations of constructed systems on suites of prompts: resumed, by two workers, with failures; figures."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from tiny.image_text import SIDE_PX, save_vision

from llmdiff.drawing.pictures import read_metadata
from llmdiff.errors import ConfigError, LLMDiffError, MetricError
from llmdiff.evaluation.metrics.distribution import FID
from llmdiff.evaluation.metrics.diversity import Diversity
from llmdiff.evaluation.metrics.kinds import Pictures
from llmdiff.evaluation.metrics.reference import read_reference
from llmdiff.evaluation.report import evaluate_suite
from llmdiff.evaluation.suites.benchmarks import read_suite
from llmdiff.evaluation.suites.suite import PromptSuite
from llmdiff.workers.jobs import Workers
from tests.llmdiff.evaluation.suites.scripted import RedSystem


class Red:
    """How red a picture is, in 0..1."""

    name, model_id, failed_score = "red", "none", 0.0

    def __init__(self) -> None:
        self.scored = 0

    def score(self, pictures: Pictures, prompts: Sequence[str]) -> dict[str, NDArray[np.float64]]:
        self.scored += len(pictures)
        return {"red": pictures[..., 0].mean((1, 2)) / 255}


@pytest.fixture
def suite(tmp_path: Path) -> PromptSuite:
    path = tmp_path / "mine.jsonl"
    rows = [
        {"id": f"n{i}", "prompt": f"thing {i}", "tags": ["even" if i % 2 == 0 else "odd"]} for i in range(5)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_suite(str(path))


def test_figures_of_a_suite_are_a_hand_count(suite: PromptSuite, tmp_path: Path) -> None:
    systems = {"base": RedSystem(51), "llm": RedSystem(102)}
    report = evaluate_suite(systems, suite, tmp_path / "out", metrics=[Red()], batch=2, command="x")
    base, ours = report["systems"]["base"], report["systems"]["llm"]
    assert (base["metrics"]["red"]["mean"], base["metrics"]["red"]["n"]) == (pytest.approx(0.2), 5)
    assert ours["metrics_by_tag"]["odd"]["red"] == pytest.approx(
        {"mean": 0.4, "low": 0.4, "high": 0.4, "n": 2, "how": "bootstrap"}
    )
    assert ours["differences_to_base"]["metrics"]["red"]["mean"] == pytest.approx(0.2)
    assert (base["pictures"], base["failed"]) == (5, 0)
    assert systems["base"].calls == systems["llm"].calls
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report
    table = (tmp_path / "out" / "report.md").read_text()
    assert "red is measured with none: not comparable with published numbers." in table
    assert report["comparable_with_published"] == []
    said = read_metadata(tmp_path / "out" / "drawn" / "llm" / "00003-0.png")
    assert (said["prompt"], said["id"], said["tags"]) == ("thing 3", "n3", "odd")
    assert int(said["seed"]) == suite.prompts[3].seeds(1, 0)[0]
    assert (tmp_path / "out" / "samples-llm.png").exists()


def test_a_stopped_run_goes_on_and_nothing_is_done_twice(suite: PromptSuite, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    class Stops(RedSystem):
        def __call__(self, prompts: list[str], seeds: list[int]) -> NDArray[np.uint8]:
            if len(self.calls) >= 4:
                raise KeyboardInterrupt
            return super().__call__(prompts, seeds)

    with pytest.raises(KeyboardInterrupt):
        evaluate_suite({"base": Stops(51)}, suite, tmp_path / "out", metrics=[Red()], batch=2)
    again, metric = RedSystem(51), Red()
    report = evaluate_suite({"base": again}, suite, tmp_path / "out", metrics=[metric], batch=2)
    assert [prompt for prompt, _ in again.calls] == ["thing 4"]
    assert metric.scored == 5
    third, idle = RedSystem(51), Red()
    assert (
        evaluate_suite({"base": third}, suite, tmp_path / "out", metrics=[idle])["systems"]
        == report["systems"]
    )
    assert (third.calls, idle.scored) == ([], 0)
    # Half a line of a killed process is scored again.
    (scores,) = (tmp_path / "out" / "scores" / "red").iterdir()
    scores.write_text(scores.read_text()[:-20])
    assert (
        evaluate_suite({"base": third}, suite, tmp_path / "out", metrics=[idle])["systems"]
        == report["systems"]
    )
    assert idle.scored == 1
    with pytest.raises(ConfigError, match="pictures drawn with suite_seed 0, expected 1"):
        evaluate_suite({"base": third}, suite, tmp_path / "out", seed=1)


def test_two_workers_draw_and_score_what_one_process_does(suite: PromptSuite, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"images_per_prompt": 2, "batch": 2}
    broken = RedSystem(51, fails_at="thing 3")
    whole = evaluate_suite({"base": broken}, suite, tmp_path / "whole", metrics=[Red()], **asked)
    idle, unused = Red(), RedSystem(51, fails_at="thing 3")
    shared = evaluate_suite(
        {"base": unused}, suite, tmp_path / "out", metrics=[idle], workers=Workers(count=2), **asked
    )
    assert (unused.calls, idle.scored) == ([], 0)  # the workers have copies
    assert shared["systems"] == whole["systems"]
    assert shared["systems"]["base"]["failed"] == 2
    pictures = sorted((tmp_path / "whole" / "drawn").rglob("*.png"))
    assert len(pictures) == 8
    for one in pictures:
        two = tmp_path / "out" / one.relative_to(tmp_path / "whole")
        assert np.array_equal(np.asarray(Image.open(one)), np.asarray(Image.open(two)))
    again = Red()
    evaluate_suite({"base": unused}, suite, tmp_path / "out", metrics=[again], **asked)
    assert again.scored == 0


def test_systems_that_cannot_travel_are_refused(suite: PromptSuite, tmp_path: Path) -> None:
    painter = RedSystem(51)
    with pytest.raises(LLMDiffError, match="cannot be sent to other processes"):
        evaluate_suite({"base": lambda *given: painter(*given)}, suite, tmp_path, workers=Workers(count=2))


def test_failed_pictures_count_and_are_tried_again(suite: PromptSuite, tmp_path: Path) -> None:
    broken = RedSystem(51, fails_at="thing 3")
    report = evaluate_suite({"base": broken}, suite, tmp_path / "out", metrics=[Red()], batch=5)
    figures = report["systems"]["base"]
    assert (figures["failed"], figures["pictures"]) == (1, 5)
    assert figures["metrics"]["red"]["mean"] == pytest.approx(0.2 * 4 / 5)
    assert figures["metrics"]["red"]["n"] == 5
    assert figures["metrics_by_tag"]["odd"]["red"]["mean"] == pytest.approx(0.1)
    assert "out of paint" in (tmp_path / "out" / "drawn" / "base" / "00003-0.failed.txt").read_text()
    assert (
        "base: 1 of 5 pictures could not be drawn and count as wrong"
        in (tmp_path / "out" / "report.md").read_text()
    )
    mended = evaluate_suite({"base": RedSystem(51)}, suite, tmp_path / "out", metrics=[Red()])
    assert mended["systems"]["base"]["failed"] == 0
    assert mended["systems"]["base"]["metrics"]["red"]["mean"] == pytest.approx(0.2)
    with pytest.raises(LLMDiffError, match="none of its 5 pictures could be drawn; the first: out of paint"):
        evaluate_suite({"base": RedSystem(1, fails_at="thing")}, suite, tmp_path / "none")
    hopeless = RedSystem(1, fails_at="thing")
    with pytest.raises(LLMDiffError, match="none of its first 18 pictures could be drawn"):
        evaluate_suite({"base": hopeless}, suite, tmp_path / "first", images_per_prompt=9, batch=9)
    assert len(hopeless.calls) < 45


def test_metrics_of_sets_and_of_several_pictures(suite: PromptSuite, tmp_path: Path) -> None:
    vision = save_vision("vit", tmp_path / "vit")
    real = tmp_path / "real"
    real.mkdir()
    for index, picture in enumerate(RedSystem(60)([""] * 6, list(range(6)))):
        Image.fromarray(picture).save(real / f"{index}.png")
    reference = read_reference(real)
    assert [one.shape for one in reference] == [(SIDE_PX, SIDE_PX, 3)] * 6
    metrics = [FID.from_pretrained(vision), Diversity.from_pretrained(vision)]
    systems = {"base": RedSystem(60), "llm": RedSystem(255)}
    report = evaluate_suite(
        systems, suite, tmp_path / "out", metrics=metrics, reference=reference, images_per_prompt=2
    )
    near, far = (report["systems"][name]["sets"] for name in ("base", "llm"))
    assert 0 <= near["fid"] < far["fid"]
    assert near["diversity"] > 0
    with pytest.raises(MetricError, match="--reference"):
        evaluate_suite(systems, suite, tmp_path / "a", metrics=metrics[:1])
    with pytest.raises(MetricError, match="--images-per-prompt"):
        evaluate_suite(systems, suite, tmp_path / "a", metrics=metrics[1:])
    with pytest.raises(ConfigError, match="has 0 pictures"):
        read_reference(tmp_path / "vit")
