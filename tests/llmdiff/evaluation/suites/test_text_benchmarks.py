"""OneIG-Bench and LongText-Bench: formats and figures, computed by hand."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from llmdiff.errors import ConfigError
from llmdiff.evaluation.report import evaluate_suite
from llmdiff.evaluation.suites.benchmarks import BENCHMARKS, read_suite
from llmdiff.evaluation.suites.longtext_bench import LongTextScorer
from llmdiff.evaluation.suites.official import export_pictures, official_figures, published_figures
from llmdiff.evaluation.suites.oneig_bench import OneIGScorer
from llmdiff.evaluation.suites.text_accuracy import edit_distance
from tests.llmdiff.evaluation.suites.scripted import PICTURE, Says, means, written_and_read


@pytest.fixture
def oneig(tmp_path: Path) -> Path:
    (tmp_path / "scripts" / "alignment" / "Q_D").mkdir(parents=True)
    (tmp_path / "scripts" / "text").mkdir()
    (tmp_path / "OneIG-Bench.csv").write_text(
        "category,id,prompt_en,type,prompt_length,class\n"
        "General_Object,000,a red cat,NP,short,\n"
        "Text_Rendering,000,a sign,NP,short,\n"
        "Text_Rendering,001,a poster,NP,short,\n"
        "Knowledge_Reasoning,000,why the sky is blue,NP,short,physics\n"
    )
    questions = {"1": "A cat?", "2": "Red?", "3": "Dark red?"}
    parents = {"1": [0], "2": [1], "3": [2]}
    asked = {"000": {"question": json.dumps(questions), "dependency": json.dumps(parents)}}
    (tmp_path / "scripts" / "alignment" / "Q_D" / "object.json").write_text(json.dumps(asked))
    (tmp_path / "scripts" / "text" / "text_content.csv").write_text(
        ",id,prompt_en,text_content\n0,000,a sign,\"['Fresh, fresh Brews']\"\n1,001,a poster,Open today\n"
    )
    return tmp_path


def test_oneig_bench_alignment_and_text(oneig: Path, tmp_path: Path) -> None:
    suite = read_suite("oneig-bench", oneig)
    assert [row.id for row in suite.prompts] == ["object_000", "text_000", "text_001", "reasoning_000"]
    says = Says({"A cat?": 0.1, "Red?": 0.9, "Dark red?": 0.9}, ["fresh Brews fresh", "Open today!"])
    judged = OneIGScorer(says).judge(np.repeat(PICTURE, 4, axis=0), suite.prompts)
    # No cat, so no red one; but "dark red" builds on "red", which was answered yes.
    assert judged[0]["score"] == pytest.approx(1 / 3)
    # Of Fresh, fresh, Brews the reader saw two.
    assert (judged[1]["right"], judged[1]["count"]) == (2, 3)
    assert judged[1]["edits"] == plain_edit_distance("Fresh fresh Brews", "fresh Brews fresh")
    assert (judged[2]["edits"], judged[2]["complete"], judged[2]["score"]) == (0, 1.0, 1.0)
    assert judged[3] == {}
    results = [[one] for one in judged]
    ed, cr, wac = judged[1]["edits"] / 2, 1 / 2, (2 + 2) / (3 + 2)
    expected = {"alignment": 1 / 3, "ED": ed, "CR": cr, "WAC": wac}
    expected["text score"] = 1 - min(100, ed) * (1 - cr) * (1 - wac) / 100
    assert means(published_figures(suite, suite.prompts, results)) == pytest.approx(expected)
    back = written_and_read(suite, results, tmp_path / "s", 4)
    assert means(back["as_published"]) == pytest.approx(expected)
    assert (back["missing"], back["not_scored"]) == (0, 1)
    (tmp_path / "s" / "reasoning_prompt_score_EN_2025.csv").write_text(",ours\n000,0.25\n")
    back = official_figures(suite, suite.prompts, tmp_path / "s", images_per_prompt=4)
    assert (back["as_published"]["reasoning"]["mean"], back["not_scored"]) == (0.25, 0)
    (tmp_path / "s" / "alignment_prompt_score_EN.csv").write_text(",a,b\nobject_000,0.5,0.5\n")
    with pytest.raises(ConfigError, match="scores of 2 models"):
        official_figures(suite, suite.prompts, tmp_path / "s", images_per_prompt=4)


def test_a_failed_picture_is_not_black_for_a_scorer_that_leaves_black_ones_out(
    oneig: Path, tmp_path: Path
) -> None:
    def system(prompts: list[str], seeds: list[int]) -> NDArray[np.uint8]:
        if "a red cat" in prompts:
            raise RuntimeError("out of paint")
        return np.full((len(prompts), 8, 8, 3), 200, dtype=np.uint8)

    suite, says = read_suite("oneig-bench", oneig), Says({}, ["Open today"] * 8)
    report = evaluate_suite({"llm": system}, suite, tmp_path / "out", metrics=[OneIGScorer(says)])
    assert report["systems"]["llm"]["as_published"]["alignment"]["mean"] == 0
    sheet = np.asarray(Image.open(tmp_path / "out" / "official/llm/pictures/object/llm/000.png"))
    assert (sheet == 1).all()
    table = (tmp_path / "out" / "report.md").read_text()
    assert "| text score |" in table
    assert "| alignment | 0 [0, 0] |" in table


@cache
def plain_edit_distance(first: str, second: str) -> int:
    """The recursive definition."""
    if not first or not second:
        return len(first) + len(second)
    return min(
        plain_edit_distance(first[1:], second) + 1,
        plain_edit_distance(first, second[1:]) + 1,
        plain_edit_distance(first[1:], second[1:]) + (first[0] != second[0]),
    )


def test_edit_distance_is_that_of_the_definition() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        first, second = ("".join(rng.choice(list("abc"), rng.integers(0, 9))) for _ in range(2))
        assert edit_distance(first, second) == plain_edit_distance(first, second)


def test_longtext_bench_counts_words_and_characters(tmp_path: Path) -> None:
    rows = [
        {
            "category": "sign",
            "length": "short",
            "prompt": "p",
            "text": ["Fresh, FRESH", "brews"],
            "prompt_id": 0,
        },
        {"category": "sign", "length": "long", "prompt": "q", "text": ["a b c d", "e"], "prompt_id": 7},
    ]
    english, chinese = tmp_path / "text_prompts.jsonl", tmp_path / "text_prompts_zh.jsonl"
    english.write_text("".join(json.dumps(row) + "\n" for row in rows))
    chinese.write_text(json.dumps(rows[0] | {"text": ["新鲜", "A 新!"]}) + "\n")
    suite = read_suite("longtext-bench", english)
    assert [(row.id, row.tags) for row in suite.prompts] == [
        ("0000", ("sign", "short")),
        ("0007", ("sign", "long")),
    ]
    scorer = LongTextScorer(Says({}, ["fresh brews beer", "E. d c; b a a", "", "a b"]))
    results = [scorer.judge(np.repeat(PICTURE, 2, axis=0), [row] * 2) for row in suite.prompts]
    # "fresh brews" of "fresh fresh brews"; none; none; two of five: four of 3 + 3 + 5 + 5.
    assert [one["score"] for some in results for one in some] == pytest.approx([2 / 3, 0, 0, 2 / 5])
    expected = {"Text Score": 4 / 16, "Text Score, short": 2 / 6, "Text Score, long": 2 / 10}
    back = written_and_read(suite, results, tmp_path / "s", 2, "results.jsonl")
    assert means(back["as_published"]) == pytest.approx(expected)
    empty = tmp_path / "empty.jsonl"
    empty.write_text(json.dumps(rows[0] | {"text": ["?!"]}) + "\n")
    with pytest.raises(ConfigError, match=r"line 1: text .* has no letters or digits to find"):
        read_suite("longtext-bench", empty)
    (one,) = read_suite("longtext-bench", chinese).prompts
    (judged,) = LongTextScorer(Says({}, ["鲜 新 a"])).judge(PICTURE, [one])
    assert (judged["right"], judged["count"]) == (2, 4)  # of 新鲜A新, characters with case
    export_pictures(
        BENCHMARKS["longtext-bench"], suite.prompts, [np.repeat(PICTURE, 2, 0)] * 2, tmp_path / "o", "x"
    )
    assert (tmp_path / "o" / "0007_2.png").exists()
