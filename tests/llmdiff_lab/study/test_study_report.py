"""The report of a study: each figure against an independent computation."""

import csv
import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from llmdiff_lab.study.report import failed_checks, write_report
from llmdiff_lab.study.study import open_study
from tests.llmdiff_lab.study.studies import PROMPTS, hidden, rate_all


def test_a_report_without_answers_says_so(study: Path, tmp_path: Path) -> None:
    write_report(study, tmp_path / "report")
    page = (tmp_path / "report" / "report.html").read_text()
    assert page.count("no answers") == 3 * (3 + 3)  # questions x (pairs of systems + systems)
    assert "+0.00" not in page
    assert "Of the choices" not in page


def test_the_report_against_a_hand_count(study: Path, tmp_path: Path) -> None:
    store = open_study(study)
    systems, noisy = hidden(study)
    rng = np.random.default_rng(3)
    counts: Counter[tuple[str, str, str]] = Counter()

    def careful(left: str, right: str, question: str) -> str:
        if noisy & {left, right}:
            return "right" if left in noisy else "left"
        if question == "quality":
            choice = "left" if systems[left] == "llm" or systems[right] == "base" else "right"
        else:
            choice = str(rng.choice(["left", "right", "tie"]))
        pair = sorted((systems[left], systems[right]))
        winner = {"left": systems[left], "right": systems[right], "tie": "tie"}[choice]
        counts[question, " ".join(pair), winner] += 1
        return choice

    for _ in range(5):
        rate_all(store, store.new_rater(max_raters=9), careful)
    careless = store.new_rater(max_raters=9)
    rate_all(store, careless, lambda *_: "tie")
    store.new_rater(max_raters=9)
    assert failed_checks(store.answers()) == {6: 2}
    store.close()

    report = write_report(study, tmp_path / "report")
    assert json.loads((tmp_path / "report" / "report.json").read_text()) == report
    assert report["raters"] == {
        "began": 7, "answered": 6, "excluded": 1, "counted": 5, "max_failed_checks": 0,
    }  # fmt: skip
    assert report["answers"] == counts.total() == 5 * 12 * 3
    for question, result in report["results"].items():
        for pair in result["pairs"]:
            key = " ".join(sorted((pair["first"], pair["second"])))
            wins = [counts[question, key, name] for name in (pair["first"], pair["second"], "tie")]
            assert [pair["first_wins"], pair["second_wins"], pair["ties"]] == wins
            rate = pair["win_rate"]
            assert rate["n"] == sum(wins) == 20
            assert rate["mean"] == pytest.approx((wins[0] + wins[2] / 2) / 20)
            assert rate["low"] < rate["mean"] <= rate["high"] or wins[0] == 0
        total = sum(row["questions"][question]["wins"]["llm"] for row in report["prompts"])
        assert total == sum(n for (q, _, winner), n in counts.items() if (q, winner) == (question, "llm"))
    quality = report["results"]["quality"]
    assert quality["agreement"] == {"alpha": 1.0, "share": 1.0, "pairs": 12}
    strengths = {name: one["mean"] for name, one in quality["bradley_terry"].items()}
    assert strengths["llm"] > strengths["third & <b>"] > strengths["base"]
    assert abs(report["results"]["details"]["agreement"]["alpha"]) < 0.3
    with_all = write_report(study, tmp_path / "all", max_failed_checks=2)
    assert with_all["answers"] == 6 * 12 * 3


def test_the_report_escapes_what_came_from_outside(study: Path, tmp_path: Path) -> None:
    store = open_study(study)
    rate_all(store, store.new_rater(max_raters=1), lambda *_: "left")
    store.close()
    out = tmp_path / "report"
    write_report(study, out, max_failed_checks=9)
    page = (out / "report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "third &amp; &lt;b&gt;" in page
    assert "default-src 'none'" in page
    assert "http" not in page.replace("http-equiv", "")
    for name in {part.split(".png")[0] for part in page.split("pictures/")[1:]}:
        assert (out / "pictures" / f"{name}.png").is_file()
    rows = list(csv.DictReader(io.StringIO((out / "answers.csv").read_text())))
    assert len(rows) == 14 * 3
    assert {row["rater"] for row in rows} == {"1"}
    # Spreadsheets would compute it.
    assert {row["prompt"] for row in rows} == {*PROMPTS[:3], "'=1+1"}
    assert all(row["preferred"] == row[row["choice"]] for row in rows)


def test_a_report_without_answers(study: Path, tmp_path: Path) -> None:
    report = write_report(study, tmp_path / "report")
    assert report["answers"] == 0
    rate = report["results"]["quality"]["pairs"][0]["win_rate"]
    assert (rate["n"], rate["low"], rate["high"]) == (0, 0.0, 1.0)
    assert "no answers" in (tmp_path / "report" / "report.html").read_text()
