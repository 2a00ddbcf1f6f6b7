"""Whole evaluations of constructed systems on suites of prompts: resumed, by two workers, with failures; figures."""

import csv
import json
import zlib
from collections.abc import Sequence
from itertools import pairwise
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
from llmdiff.evaluation.suites.dpg_bench import DPGScorer
from llmdiff.evaluation.suites.official import official_figures
from llmdiff.evaluation.suites.suite import PromptSuite
from llmdiff.evaluation.suites.t2i_compbench import CompBenchScorer
from llmdiff.workers.jobs import Workers


class Red:
    """How red a picture is, in 0..1."""

    name, model_id, failed_score = "red", "none", 0.0

    def __init__(self) -> None:
        self.scored = 0

    def score(self, pictures: Pictures, prompts: Sequence[str]) -> dict[str, NDArray[np.float64]]:
        self.scored += len(pictures)
        return {"red": pictures[..., 0].mean((1, 2)) / 255}


class Bright:
    """Answers yes as far as a picture is bright."""

    model_id = "bright"

    def yes(self, pictures: Pictures, questions: Sequence[str]) -> NDArray[np.float64]:
        return pictures[..., 0].mean((1, 2)) / 255


class Painter:
    """A system whose pictures are as red as it is told, with noise by the seed; some prompts it cannot draw."""

    def __init__(self, red: int, *, fails_at: str = "") -> None:
        self.red, self.fails_at, self.calls = red, fails_at, []  # type: ignore[var-annotated]

    def __call__(self, prompts: list[str], seeds: list[int]) -> NDArray[np.uint8]:
        self.calls += zip(prompts, seeds, strict=True)
        if self.fails_at and any(self.fails_at in prompt for prompt in prompts):
            raise RuntimeError("out of paint")
        pictures = [np.random.default_rng(seed).integers(0, 256, (SIDE_PX, SIDE_PX, 3)) for seed in seeds]
        for picture in pictures:
            picture[..., 0] = self.red
        return np.stack(pictures).astype(np.uint8)


@pytest.fixture
def suite(tmp_path: Path) -> PromptSuite:
    path = tmp_path / "mine.jsonl"
    rows = [
        {"id": f"n{i}", "prompt": f"thing {i}", "tags": ["even" if i % 2 == 0 else "odd"]} for i in range(5)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_suite(str(path))


def test_figures_of_a_suite_are_a_hand_count(suite: PromptSuite, tmp_path: Path) -> None:
    systems = {"base": Painter(51), "llm": Painter(102)}
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

    class Stops(Painter):
        def __call__(self, prompts: list[str], seeds: list[int]) -> NDArray[np.uint8]:
            if len(self.calls) >= 4:
                raise KeyboardInterrupt
            return super().__call__(prompts, seeds)

    with pytest.raises(KeyboardInterrupt):
        evaluate_suite({"base": Stops(51)}, suite, tmp_path / "out", metrics=[Red()], batch=2)
    again, metric = Painter(51), Red()
    report = evaluate_suite({"base": again}, suite, tmp_path / "out", metrics=[metric], batch=2)
    assert [prompt for prompt, _ in again.calls] == ["thing 4"]
    assert metric.scored == 5
    third, idle = Painter(51), Red()
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
    broken = Painter(51, fails_at="thing 3")
    whole = evaluate_suite({"base": broken}, suite, tmp_path / "whole", metrics=[Red()], **asked)
    idle, unused = Red(), Painter(51, fails_at="thing 3")
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
    painter = Painter(51)
    with pytest.raises(LLMDiffError, match="cannot be sent to other processes"):
        evaluate_suite({"base": lambda *given: painter(*given)}, suite, tmp_path, workers=Workers(count=2))


def test_failed_pictures_count_and_are_tried_again(suite: PromptSuite, tmp_path: Path) -> None:
    broken = Painter(51, fails_at="thing 3")
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
    mended = evaluate_suite({"base": Painter(51)}, suite, tmp_path / "out", metrics=[Red()])
    assert mended["systems"]["base"]["failed"] == 0
    assert mended["systems"]["base"]["metrics"]["red"]["mean"] == pytest.approx(0.2)
    with pytest.raises(LLMDiffError, match="none of its 5 pictures could be drawn; the first: out of paint"):
        evaluate_suite({"base": Painter(1, fails_at="thing")}, suite, tmp_path / "none")
    hopeless = Painter(1, fails_at="thing")
    with pytest.raises(LLMDiffError, match="none of its first 18 pictures could be drawn"):
        evaluate_suite({"base": hopeless}, suite, tmp_path / "first", images_per_prompt=9, batch=9)
    assert len(hopeless.calls) < 45


def test_official_scores_that_number_pictures_through(compbench_folder: Path, tmp_path: Path) -> None:
    suite = read_suite("t2i-compbench", compbench_folder)
    scores = [{"question_id": number, "answer": "0.5000"} for number in range(16)]
    file = tmp_path / "theirs" / "color" / "annotation_blip" / "vqa_result.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(scores))
    # Two prompts of colour, ten pictures of each: four are missing. Shapes were not scored.
    found = official_figures(suite, suite.prompts, tmp_path / "theirs", images_per_prompt=10)
    assert (found["overall"]["mean"], found["overall"]["n"], found["missing"]) == (pytest.approx(0.4), 2, 4)
    assert list(found["by_tag"]) == ["color"]
    # Of a run with eight pictures of each prompt it has them all.
    eight = official_figures(suite, suite.prompts, tmp_path / "theirs", images_per_prompt=8)
    assert (eight["overall"]["mean"], eight["missing"]) == (pytest.approx(0.5), 0)


def test_questions_score_the_categories_that_are_asked_about(compbench_folder: Path, tmp_path: Path) -> None:
    (compbench_folder / "spatial_val.txt").write_text("a cat on the left of a dog\n")
    scorer, systems = CompBenchScorer(Bright()), {"base": Painter(51)}
    suite, out = read_suite("t2i-compbench", compbench_folder), tmp_path / "out"
    report = evaluate_suite(systems, suite, out, metrics=[scorer], images_per_prompt=2)
    by_tag = report["systems"]["base"]["metrics_by_tag"]
    assert report["systems"]["base"]["metrics"]["t2i_compbench"]["n"] == 3
    assert by_tag["shape"]["t2i_compbench"]["mean"] == pytest.approx(0.2)
    assert "t2i_compbench" not in by_tag["spatial"]
    official = out / "official" / "base"
    assert len(list((official / "pictures" / "spatial" / "samples").iterdir())) == 2
    written = (official / "scores-of-another-model").rglob("vqa_result.json")
    assert sorted(path.parents[1].name for path in written) == ["color", "shape"]
    table = [
        line.split("|")
        for line in (out / "report.md").read_text().splitlines()
        if "spatial" in line or "base" in line
    ]
    head, row = next((a, b) for a, b in pairwise(table) if "spatial" in "".join(a))
    by_column = dict(zip(map(str.strip, head), map(str.strip, row), strict=True))
    assert by_column["spatial"] == "-"
    assert by_column["shape"].startswith("0.2 [")
    alone = read_suite("t2i-compbench", compbench_folder / "spatial_val.txt")
    with pytest.raises(MetricError, match="scores none of this suite's prompts"):
        evaluate_suite(systems, alone, tmp_path / "alone", metrics=[scorer])


def test_metrics_of_sets_and_of_several_pictures(suite: PromptSuite, tmp_path: Path) -> None:
    vision = save_vision("vit", tmp_path / "vit")
    real = tmp_path / "real"
    real.mkdir()
    for index, picture in enumerate(Painter(60)([""] * 6, list(range(6)))):
        Image.fromarray(picture).save(real / f"{index}.png")
    reference = read_reference(real)
    assert [one.shape for one in reference] == [(SIDE_PX, SIDE_PX, 3)] * 6
    metrics = [FID.from_pretrained(vision), Diversity.from_pretrained(vision)]
    systems = {"base": Painter(60), "llm": Painter(255)}
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


def test_a_benchmark_is_written_as_its_own_scorer_reads_it_and_its_scores_come_back(
    dpg_csv: Path, tmp_path: Path
) -> None:
    suite, out = read_suite("dpg-bench", dpg_csv), tmp_path / "out"
    systems = {"base": Painter(200, fails_at="red cat"), "llm": Painter(200)}
    report = evaluate_suite(systems, suite, out, metrics=[DPGScorer(Bright())])
    base, ours = (report["systems"][name]["metrics"] for name in ("base", "llm"))
    assert (base["dpg_bench"]["mean"], ours["dpg_bench"]["mean"]) == (0.5, 1.0)
    # Only the first prompt asks for a relation; of `base` none of its pictures exists to ask about.
    assert (ours["dpg_bench: relation"]["n"], ours["dpg_bench: entity"]["n"]) == (1, 2)
    assert report["systems"]["base"]["failed"] == 4
    sheet = np.asarray(Image.open(out / "official" / "base" / "pictures" / "p1.png"))
    assert sheet.shape[:2] in ((2 * SIDE_PX, 2 * SIDE_PX), (128, 128))
    assert not sheet.any()
    ours_scores = out / "official" / "llm" / "scores-of-another-model"
    assert (ours_scores / "dpg-bench_results.txt").read_text().startswith("p1.png, 1.0, 1.0, 1.0, 1.0, 1.0\n")
    assert "not comparable with published numbers" in (ours_scores / "README.txt").read_text()
    with pytest.raises(ConfigError, match="that the published scorer wrote, elsewhere"):
        evaluate_suite(systems, suite, out, official_scores={"llm": ours_scores / "dpg-bench_results.txt"})

    theirs = tmp_path / "theirs.txt"
    theirs.write_text("/x/p1.png, 0.5, 0.5, 0.5, 0.5, 0.5\n")
    official: dict[str, Any] = {"official_scores": {"llm": theirs}}
    report = evaluate_suite(systems, suite, out, metrics=[DPGScorer(Bright())], **official)
    assert report["systems"]["llm"]["official"]["overall"]["mean"] == 0.25
    assert report["systems"]["llm"]["official"]["missing"] == 4
    assert report["comparable_with_published"] == []  # the published figure leaves the missing prompt out
    table = (out / "report.md").read_text()
    assert "dpg-bench is measured with bright: not comparable with published numbers." in table
    assert "has no result of 4 pictures of llm, which count 0; the first: prompt p2, picture 0." in table
    theirs.write_text(theirs.read_text() + "/x/p2.png, 1.0, 1.0, 1.0, 1.0, 1.0\n")
    report = evaluate_suite(systems, suite, out, metrics=[DPGScorer(Bright())], **official)
    assert report["comparable_with_published"] == ["llm"]
    assert "as far as its files are what that scorer wrote, comparable" in (out / "report.md").read_text()
    theirs.write_text("/x/p1.png, 0.5, 0.5, 0.5\n")
    part = evaluate_suite(systems, suite, tmp_path / "part", images_per_prompt=2, **official)
    assert part["comparable_with_published"] == []
    assert "Not with a result of all prompts and pictures" in (tmp_path / "part" / "report.md").read_text()


def test_the_prompt_that_dpg_benchs_scorer_fails_on_is_no_missing_one(dpg_csv: Path, tmp_path: Path) -> None:
    suite = read_suite("dpg-bench", dpg_csv)
    theirs = tmp_path / "theirs.txt"
    theirs.write_text("/x/p2.png, 0.5, 0.25, 0.5, 0.75, 0.5\nDPG-Bench score: 50.0\n")
    # The published scorer drops the file's first question, on which others of p1 depend, and fails on p1.
    found = official_figures(suite, suite.prompts, theirs, images_per_prompt=4)
    assert (found["overall"]["mean"], found["missing"], found["not_scored"]) == (0.5, 0, 1)
    assert found["stated"] == {"DPG-Bench score": 50.0}
    # Not so where it lacks another prompt.
    theirs.write_text("/x/p1.png, 0.5, 0.25, 0.5, 0.75, 0.5\n")
    found = official_figures(suite, suite.prompts, theirs, images_per_prompt=4)
    assert (found["overall"]["mean"], found["missing"], found["first_missing"]) == (0.25, 4, "p2, picture 0")


def test_pictures_that_gen_evals_scorer_has_not_seen_count_0(geneval_jsonl: Path, tmp_path: Path) -> None:
    suite, theirs = read_suite("geneval", geneval_jsonl), tmp_path / "results.jsonl"
    lines = [{"filename": f"/x/{row.id}/samples/0002.png", "correct": True} for row in suite.prompts]
    theirs.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = official_figures(suite, suite.prompts, theirs, images_per_prompt=4)
    assert (found["overall"]["mean"], found["mean_over_tags"]) == (0.25, 0.25)
    assert (found["missing"], found["first_missing"]) == (9, "00000, picture 0")
    assert found["as_published"]["prompts with a right picture"]["mean"] == 1.0


class OfPrompt:
    """Answers by the picture's red and the question: yes, where the question's hash is below it."""

    model_id = "of prompt"

    def yes(self, pictures: Pictures, questions: Sequence[str]) -> NDArray[np.float64]:
        levels = [zlib.crc32(question.encode()) % 97 / 97 for question in questions]
        return np.array([p[0, 0, 1] / 255 > level for p, level in zip(pictures, levels, strict=True)], float)


def test_dpg_benchs_categories_are_aggregated_as_published(dpg_csv: Path, tmp_path: Path) -> None:
    suite, answerer = read_suite("dpg-bench", dpg_csv), OfPrompt()
    report = evaluate_suite({"llm": Painter(9)}, suite, tmp_path / "out", metrics=[DPGScorer(answerer)])
    # By hand: the raw answers about the last of four pictures, in every category of the file's rows.
    expected: dict[str, list[float]] = {}
    with dpg_csv.open(newline="") as lines:
        for line in csv.DictReader(lines):
            index = [row.id for row in suite.prompts].index(line["item_id"])
            picture = np.asarray(Image.open(tmp_path / "out" / "drawn" / "llm" / f"{index:05d}-3.png"))
            answer = float(answerer.yes(picture[None], [line["question_natural_language"]])[0])
            category = line["tuple"].split("(")[0].strip()
            for name in (category, category.split("-")[0].strip()):
                expected.setdefault(name, []).append(answer)
    found = report["systems"]["llm"]["as_published"]
    assert {name: one["mean"] for name, one in found.items()} == {
        name: np.mean(answers) for name, answers in expected.items()
    }
    table = (tmp_path / "out" / "report.md").read_text()
    assert "| aggregated as published | llm |" in table
