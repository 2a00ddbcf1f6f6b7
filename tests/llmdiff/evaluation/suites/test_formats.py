"""Prompt files and score files: read and written in the formats of a user's own prompts and of the benchmarks."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llmdiff.errors import ConfigError, InputFileError
from llmdiff.evaluation.suites import dpg_bench, geneval, t2i_compbench
from llmdiff.evaluation.suites.benchmarks import read_suite
from llmdiff.evaluation.suites.own import read_own
from llmdiff.evaluation.suites.suite import SuitePrompt


def pictures(*values: int, side: int = 8) -> np.ndarray:
    return np.stack([np.full((side, side, 3), value, dtype=np.uint8) for value in values])


def test_own_prompts_as_text_and_as_json_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a cat\n\n  two dogs \n", encoding="utf-8-sig")
    text = read_own(tmp_path / "a.txt")
    assert [(row.id, row.prompt, row.tags) for row in text.prompts] == [
        ("1", "a cat", ()),
        ("3", "two dogs", ()),
    ]
    assert (text.benchmark, text.images_per_prompt) == (None, 1)
    (tmp_path / "b.jsonl").write_text(
        '{"id": "x", "prompt": "a cat", "tags": ["animals", "one"]}\n{"prompt": "two dogs", "tags": "animals"}\n'
    )
    rows = read_own(tmp_path / "b.jsonl").prompts
    assert [(row.id, row.tags) for row in rows] == [("x", ("animals", "one")), ("2", ("animals",))]
    assert (
        read_suite(str(tmp_path / "b.jsonl")).sha256 == read_own(tmp_path / "b.jsonl").sha256 != text.sha256
    )


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", "\n \n", "holds no prompts"),
        ("a.csv", "a cat", "ends in .txt or .jsonl"),
        ("a.jsonl", "{a cat}", "line 1: no JSON"),
        ("a.jsonl", '{"prompt": 3}', "line 1: expected an object"),
        ("a.jsonl", '{"prompt": "a", "seeed": 3}', "unknown key 'seeed'"),
        ("a.jsonl", '{"prompt": "a", "tags": [1]}', "tags are"),
        ("a.jsonl", '{"prompt": "a", "id": "x"}\n{"prompt": "b", "id": "x"}', "two prompts are called 'x'"),
        ("a.jsonl", '{"prompt": " "}', "prompt '1' is empty"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=said):
        read_own(tmp_path / name)


def test_suites_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"got 'portraits', expected scenes, dpg-bench, geneval, t2i-compbench"
    ):
        read_suite("portraits")
    with pytest.raises(ConfigError, match="suite-files: got None, expected the folder or file of geneval"):
        read_suite("geneval")
    for name in ("dpg-bench", "geneval"):
        with pytest.raises(InputFileError, match="cannot be read"):
            read_suite(name, tmp_path)
    with pytest.raises(ConfigError, match=r"no \*_val.txt"):
        read_suite("t2i-compbench", tmp_path)
    (tmp_path / "dpg_bench.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match="no column 'item_id'"):
        read_suite("dpg-bench", tmp_path)
    (tmp_path / "evaluation_metadata.jsonl").write_text('{"tag": "x", "prompt": "y"}\n')
    with pytest.raises(ConfigError, match="line 2: 'include'"):
        read_suite("geneval", tmp_path)


def test_seeds_are_the_prompts_own() -> None:
    row, other = SuitePrompt(id="a", prompt="x"), SuitePrompt(id="b", prompt="x")
    assert row.seeds(3, 0)[:2] == row.seeds(2, 0)
    assert len({*row.seeds(4, 0), *other.seeds(4, 0), *row.seeds(4, 1)}) == 12
    assert all(0 <= seed < 2**31 for seed in row.seeds(100, 5))


def test_dpg_bench(dpg_csv: Path, tmp_path: Path) -> None:
    suite = read_suite("dpg-bench", dpg_csv.parent)
    assert [(row.id, row.prompt) for row in suite.prompts] == [("p1", "A red cat, on a car"), ("p2", "A car")]
    assert (suite.images_per_prompt, suite.benchmark) == (4, "DPG-Bench")
    questions = suite.prompts[0].facts["questions"]
    assert [(one["id"], one["after"], one["category"]) for one in questions] == [
        (1, [], "entity - whole"),
        (2, [1], "attribute - color"),
        (3, [1, 2], "relation - spatial"),
    ]
    # No cat: its colour and place do not count, whatever was answered; and so on down the line.
    assert dpg_bench.score_of_answers(questions, {1: False, 2: True, 3: True}) == {1: 0, 2: 0, 3: 0}
    assert dpg_bench.score_of_answers(questions, {1: True, 2: False, 3: True}) == {1: 1, 2: 0, 3: 0}
    assert dpg_bench.score_of_answers(questions, {1: True, 2: True, 3: True}) == {1: 1, 2: 1, 3: 1}

    dpg_bench.export_pictures(suite.prompts, [pictures(10, 20, 30, 40)] * 2, tmp_path / "sheets")
    sheet = np.asarray(Image.open(tmp_path / "sheets" / "p1.png"))
    assert sheet.shape == (16, 16, 3)
    assert [sheet[0, 0, 0], sheet[0, 8, 0], sheet[8, 0, 0], sheet[8, 8, 0]] == [10, 20, 30, 40]

    judged = [[{"score": 1.0}, {"score": 0.5}], [{"score": 0.0}, {"score": 0.25}]]
    dpg_bench.write_scores(suite.prompts, judged, tmp_path / "r.txt")
    assert (tmp_path / "r.txt").read_text() == "p1.png, 1.0, 0.5, 0.75\np2.png, 0.0, 0.25, 0.125\n"
    # What the published scorer writes: paths, and a summary behind.
    (tmp_path / "theirs.txt").write_text(
        "/some/where, with a comma/p1.png, 1.0, 0.5, 0.75\n/x/p2.png, 0.125, 0.125\nModel: m\n"
        "L1 category scores:\n\tentity: 71.3\nDPG-Bench score: 43.75\n"
    )
    found = dpg_bench.read_scores(tmp_path / "theirs.txt", suite.prompts, 4)
    assert (found.by_id, found.missing) == ({"p1": 0.75, "p2": 0.125}, 0)
    with pytest.raises(ConfigError, match="expected DPG-Bench's results"):
        dpg_bench.read_scores(dpg_csv, suite.prompts, 4)
    (tmp_path / "others.txt").write_text("q1.png, 1.0, 1.0\n")
    with pytest.raises(ConfigError, match="none of its names is a prompt's, such as 'p1'"):
        dpg_bench.read_scores(tmp_path / "others.txt", suite.prompts, 4)


def test_geneval(geneval_jsonl: Path, tmp_path: Path) -> None:
    suite = read_suite("geneval", geneval_jsonl)
    assert [(row.id, row.tags) for row in suite.prompts] == [
        ("00000", ("single_object",)),
        ("00001", ("counting",)),
        ("00002", ("colors",)),
    ]
    geneval.export_pictures(suite.prompts, [pictures(1, 2)] * 3, tmp_path / "images")
    assert (
        json.loads((tmp_path / "images" / "00001" / "metadata.jsonl").read_text()) == suite.prompts[1].facts
    )
    sample = np.asarray(Image.open(tmp_path / "images" / "00002" / "samples" / "0001.png"))
    assert sample[0, 0, 0] == 2

    judged: list[Any] = [
        [{"score": 1.0, "reason": ""}, {"score": 0.0, "reason": "no cat"}],
        [{"score": 0.0}] * 2,
    ]
    geneval.write_scores(suite.prompts[:2], judged, tmp_path / "results.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert set(lines[0]) == {"filename", "tag", "prompt", "correct", "reason", "metadata", "details"}
    assert (lines[0]["correct"], lines[1]["reason"], lines[2]["reason"]) == (True, "no cat", "not drawn")
    assert json.loads(lines[0]["metadata"]) == suite.prompts[0].facts
    found = geneval.read_scores(tmp_path / "results.jsonl", suite.prompts, 4)
    assert (found.by_id, found.missing) == ({"00000": 0.5, "00001": 0.0, "00002": 0.0}, 1)
    with pytest.raises(ConfigError, match="expected GenEval's results"):
        geneval.read_scores(geneval_jsonl, suite.prompts, 4)


def test_t2i_compbench(compbench_folder: Path, tmp_path: Path) -> None:
    suite = read_suite("t2i-compbench", compbench_folder)
    assert [(row.prompt, row.tags) for row in suite.prompts] == [
        ("a red car and a blue cat", ("color",)),
        ("the green apple on a white table", ("color",)),
        ("a round clock", ("shape",)),
    ]
    assert [
        row.tags for row in read_suite("t2i-compbench", compbench_folder / "color_train.txt").prompts
    ] == [("color",)]
    t2i_compbench.export_pictures(suite.prompts, [pictures(1, 2)] * 3, tmp_path / "images")
    assert sorted(path.name for path in (tmp_path / "images" / "color" / "samples").iterdir()) == [
        "a red car and a blue cat_000000.png",
        "a red car and a blue cat_000001.png",
        "the green apple on a white table_000002.png",
        "the green apple on a white table_000003.png",
    ]
    assert (tmp_path / "images" / "shape" / "samples" / "a round clock_000000.png").exists()
    halves: list[Any] = [[{"score": 0.25}, {"score": 1.0}], [{"score": 0.5}] * 2, [{"score": 0.75}] * 2]
    t2i_compbench.write_scores(suite.prompts, halves, tmp_path / "out" / "vqa_result.json")
    # One file for each category, numbered as its pictures are.
    color, shape = (
        tmp_path / "out" / name / "annotation_blip" / "vqa_result.json" for name in ("color", "shape")
    )
    assert json.loads(color.read_text())[:3] == [
        {"question_id": 0, "answer": "0.2500"},
        {"question_id": 1, "answer": "1.0000"},
        {"question_id": 2, "answer": "0.5000"},
    ]
    assert json.loads(shape.read_text())[0] == {"question_id": 0, "answer": "0.7500"}
    found = t2i_compbench.read_scores(tmp_path / "out", suite.prompts, 2)
    assert (list(found.by_id.values()), found.missing) == ([0.625, 0.5, 0.75], 0)
    shape.unlink()
    found = t2i_compbench.read_scores(tmp_path / "out", suite.prompts, 2)
    assert list(found.by_id) == [row.id for row in suite.prompts[:2]]
    assert t2i_compbench.read_scores(color, suite.prompts[:2], 2).by_id == found.by_id
    for place, rows, named in (
        (color, suite.prompts, "prompts are of color, shape; expected a folder"),
        (tmp_path / "images", suite.prompts, "has categories none"),
        (tmp_path / "out", suite.prompts[2:], "has categories color, expected CATEGORY"),
        (color, suite.prompts[:1], "has picture 3, expected at most 2"),
        (compbench_folder / "color_val.txt", suite.prompts[:1], r"vqa_result\.json"),
    ):
        with pytest.raises(ConfigError, match=named):
            t2i_compbench.read_scores(place, rows, 2)


def test_noun_phrases_are_what_stands_between_the_words_that_join() -> None:
    assert t2i_compbench.noun_phrases("a red car and a blue cat") == ["a red car", "a blue cat"]
    assert t2i_compbench.noun_phrases("the oval mirror is near the cubic block, next to a lamp.") == [
        "the oval mirror",
        "the cubic block",
        "a lamp",
    ]
    assert t2i_compbench.noun_phrases("a wooden toy in Finland") == ["a wooden toy", "Finland"]
