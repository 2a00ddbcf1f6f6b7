"""Files exchanged with the published scorers: written as they read them, and read as they write them."""

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
from tiny.image_text import SIDE_PX

from llmdiff.errors import ConfigError, MetricError
from llmdiff.evaluation.metrics.kinds import Pictures
from llmdiff.evaluation.report import evaluate_suite
from llmdiff.evaluation.suites.benchmarks import read_suite
from llmdiff.evaluation.suites.dpg_bench import DPGScorer
from llmdiff.evaluation.suites.official import official_figures
from llmdiff.evaluation.suites.t2i_compbench import CompBenchScorer
from tests.llmdiff.evaluation.suites.scripted import Bright, RedSystem


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
    scorer, systems = CompBenchScorer(Bright()), {"base": RedSystem(51)}
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


def test_a_benchmark_is_written_as_its_own_scorer_reads_it_and_its_scores_come_back(
    dpg_csv: Path, tmp_path: Path
) -> None:
    suite, out = read_suite("dpg-bench", dpg_csv), tmp_path / "out"
    systems = {"base": RedSystem(200, fails_at="red cat"), "llm": RedSystem(200)}
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
    assert "has no result for 4 pictures of llm, which count 0; the first: prompt p2, picture 0." in table
    theirs.write_text(theirs.read_text() + "/x/p2.png, 1.0, 1.0, 1.0, 1.0, 1.0\n")
    report = evaluate_suite(systems, suite, out, metrics=[DPGScorer(Bright())], **official)
    assert report["comparable_with_published"] == ["llm"]
    assert "Figures of the published scorer are comparable" in (out / "report.md").read_text()
    theirs.write_text("/x/p1.png, 0.5, 0.5, 0.5\n")
    part = evaluate_suite(systems, suite, tmp_path / "part", images_per_prompt=2, **official)
    assert part["comparable_with_published"] == []
    assert "has no results for all prompts and pictures" in (tmp_path / "part" / "report.md").read_text()


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
    report = evaluate_suite({"llm": RedSystem(9)}, suite, tmp_path / "out", metrics=[DPGScorer(answerer)])
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
