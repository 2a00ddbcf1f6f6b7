"""Prompt files and score files: read and written in the formats of a user's own prompts and of the benchmarks."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llmdiff.errors import ConfigError, InputFileError
from llmdiff.evaluation.suites.benchmarks import BENCHMARKS, read_suite
from llmdiff.evaluation.suites.official import export_pictures, official_figures
from llmdiff.evaluation.suites.own import read_own
from llmdiff.evaluation.suites.questions import dependent_scores, questions_of
from llmdiff.evaluation.suites.suite import SuitePrompt
from llmdiff.evaluation.suites.t2i_compbench import noun_phrases

DPG_BENCH, GENEVAL, COMPBENCH = (BENCHMARKS[name] for name in ("dpg-bench", "geneval", "t2i-compbench"))


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
        ConfigError, match=r"got 'portraits', expected scenes, dpg-bench, geneval, geneval2, longtext-bench"
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
    with pytest.raises(ConfigError, match="line 1: no 'include', expected GenEval's"):
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
    questions = questions_of(suite.prompts[0])
    assert [(one.id, one.after, one.category, one.group) for one in questions] == [
        (1, (), "entity - whole", "entity"),
        (2, (1,), "attribute - color", "attribute"),
        (3, (1, 2), "relation - spatial", "relation"),
    ]
    # No cat: its colour and place do not count, whatever was answered; and so on down the line.
    for answers, scores in (([0, 1, 1], [0, 0, 0]), ([1, 0, 1], [1, 0, 0]), ([1, 1, 1], [1, 1, 1])):
        found = dependent_scores(questions, np.array(answers, dtype=float), chained=True)
        assert found.tolist() == scores

    export_pictures(DPG_BENCH, suite.prompts, [pictures(10, 20, 30, 40)] * 2, tmp_path / "sheets", "llm")
    sheet = np.asarray(Image.open(tmp_path / "sheets" / "p1.png"))
    assert sheet.shape == (16, 16, 3)
    assert [sheet[0, 0, 0], sheet[0, 8, 0], sheet[8, 0, 0], sheet[8, 8, 0]] == [10, 20, 30, 40]

    judged = [[{"score": 1.0}, {"score": 0.5}], [{"score": 0.0}, {"score": 0.25}]]
    DPG_BENCH.write_scores(suite.prompts, judged, tmp_path, "llm")
    assert (
        tmp_path / "dpg-bench_results.txt"
    ).read_text() == "p1.png, 1.0, 0.5, 0.75\np2.png, 0.0, 0.25, 0.125\n"
    # What the published scorer writes: paths, and a summary behind.
    (tmp_path / "theirs.txt").write_text(
        "/some/where, with a comma/p1.png, 1.0, 0.5, 0.75\n/x/p2.png, 0.125, 0.125\nModel: m\n"
        "L1 category scores:\n\tentity: 71.3\nL2 category scores:\n\tentity - whole: 71.25\nDPG-Bench score: 43.75\n"
    )
    with pytest.raises(ConfigError, match=r"2 scores of 'p1', expected 4: .* --pic-num 4"):
        DPG_BENCH.read_scores(tmp_path / "theirs.txt", suite.prompts, 4)
    (tmp_path / "theirs.txt").write_text(
        (tmp_path / "theirs.txt").read_text().replace("p2.png, 0.125", "p2.png, 0.125, 0.125")
    )
    found = DPG_BENCH.read_scores(tmp_path / "theirs.txt", suite.prompts, 2)
    assert found.results == {
        "p1": [{"score": 1.0}, {"score": 0.5}],
        "p2": [{"score": 0.125}, {"score": 0.125}],
    }
    assert found.stated == {"entity": 71.3, "entity - whole": 71.25, "DPG-Bench score": 43.75}
    with pytest.raises(ConfigError, match="expected DPG-Bench's results"):
        DPG_BENCH.read_scores(dpg_csv, suite.prompts, 4)
    (tmp_path / "others.txt").write_text("q1.png, 1.0, 1.0\n")
    with pytest.raises(ConfigError, match="none of its names is a prompt's, such as 'p1'"):
        DPG_BENCH.read_scores(tmp_path / "others.txt", suite.prompts, 1)


def test_geneval(geneval_jsonl: Path, tmp_path: Path) -> None:
    suite = read_suite("geneval", geneval_jsonl)
    assert [(row.id, row.tags) for row in suite.prompts] == [
        ("00000", ("single_object",)),
        ("00001", ("counting",)),
        ("00002", ("colors",)),
    ]
    export_pictures(GENEVAL, suite.prompts, [pictures(1, 2)] * 3, tmp_path / "images", "llm")
    assert (
        json.loads((tmp_path / "images" / "00001" / "metadata.jsonl").read_text())
        == suite.prompts[1].metadata
    )
    sample = np.asarray(Image.open(tmp_path / "images" / "00002" / "samples" / "0001.png"))
    assert sample[0, 0, 0] == 2

    judged: list[Any] = [
        [{"score": 1.0, "reason": ""}, {"score": 0.0, "reason": "no cat"}],
        [{"score": 0.0}] * 2,
    ]
    GENEVAL.write_scores(suite.prompts[:2], judged, tmp_path, "llm")
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert set(lines[0]) == {"filename", "tag", "prompt", "correct", "reason", "metadata", "details"}
    assert (lines[0]["correct"], lines[1]["reason"], lines[2]["reason"]) == (True, "no cat", "not drawn")
    assert json.loads(lines[0]["metadata"]) == suite.prompts[0].metadata
    found = GENEVAL.read_scores(tmp_path / "results.jsonl", suite.prompts, 2)
    right, wrong = {"score": 1.0}, {"score": 0.0}
    assert found.results == {"00000": [right, wrong], "00001": [wrong, wrong], "00002": [None, None]}
    with pytest.raises(ConfigError, match=r"picture 1 of prompt '00000', expected 1 of each"):
        GENEVAL.read_scores(tmp_path / "results.jsonl", suite.prompts, 1)
    (tmp_path / "twice.jsonl").write_text((tmp_path / "results.jsonl").read_text() * 2)
    with pytest.raises(ConfigError, match="has picture 0 of prompt '00000' twice"):
        GENEVAL.read_scores(tmp_path / "twice.jsonl", suite.prompts, 2)
    with pytest.raises(ConfigError, match="expected GenEval's results"):
        GENEVAL.read_scores(geneval_jsonl, suite.prompts, 4)


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
    export_pictures(COMPBENCH, suite.prompts, [pictures(1, 2)] * 3, tmp_path / "images", "llm")
    assert sorted(path.name for path in (tmp_path / "images" / "color" / "samples").iterdir()) == [
        "a red car and a blue cat_000000.png",
        "a red car and a blue cat_000001.png",
        "the green apple on a white table_000002.png",
        "the green apple on a white table_000003.png",
    ]
    assert (tmp_path / "images" / "shape" / "samples" / "a round clock_000000.png").exists()
    halves: list[Any] = [[{"score": 0.25}, {"score": 1.0}], [{"score": 0.5}] * 2, [{"score": 0.75}] * 2]
    COMPBENCH.write_scores(suite.prompts, halves, tmp_path / "out", "llm")
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
    found = COMPBENCH.read_scores(tmp_path / "out", suite.prompts, 2).results
    assert list(found.values()) == halves
    shape.unlink()
    found = COMPBENCH.read_scores(tmp_path / "out", suite.prompts, 2).results
    assert list(found) == [row.id for row in suite.prompts[:2]]
    assert COMPBENCH.read_scores(color, suite.prompts[:2], 2).results == found
    for place, rows, named in (
        (color, suite.prompts, "prompts are of color, shape; expected a folder"),
        (tmp_path / "images", suite.prompts, "has results of no category"),
        (tmp_path / "out", suite.prompts[2:], "has results of color, expected folders shape/annotation_blip"),
        (color, suite.prompts[:1], "has picture 2, expected at most 2 from 0 on"),
        (compbench_folder / "color_val.txt", suite.prompts[:1], r"vqa_result\.json"),
    ):
        with pytest.raises(ConfigError, match=named):
            COMPBENCH.read_scores(place, rows, 2)


def test_every_category_of_t2i_compbench_is_read_from_its_own_scorers_result(tmp_path: Path) -> None:
    """The complex category's score is a mean of three intermediate ones, by the kind of its prompts."""
    dataset, theirs, rng = tmp_path / "dataset", tmp_path / "theirs", np.random.default_rng(4)
    dataset.mkdir()
    places = {
        "color": "annotation_blip",
        "spatial": "labels/annotation_obj_detection_2d",
        "3d_spatial": "labels/annotation_obj_detection_3d",
        "numeracy": "annotation_num",
        "non_spatial": "annotation_clip",
    }
    lines = [f"a thing {number} and another." for number in range(6)]
    for category in (*places, "complex"):
        (dataset / f"{category}_val.txt").write_text("".join(f"{category}: {line}\n" for line in lines))

    def write(category: str, place: str) -> np.ndarray:
        scores = rng.random(60).round(4)
        file = theirs / category / place / "vqa_result.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps([{"question_id": i, "answer": s} for i, s in enumerate(scores)]))
        return scores

    expected = {category: write(category, place).mean() for category, place in places.items()}
    parts = {
        name: write("complex", places[name]).reshape(6, 10) for name in ("color", "spatial", "non_spatial")
    }
    suite = read_suite("t2i-compbench", dataset)
    with pytest.raises(ConfigError, match=r"has no annotation_3_in_1/vqa_result.json"):
        official_figures(suite, suite.prompts, theirs, images_per_prompt=10)
    # Two prompts with a spatial relation, two with an action, two with both.
    both = [parts["color"] + parts["spatial"], parts["color"] + parts["non_spatial"]]
    combined = np.concatenate([both[0][:2] / 2, both[1][2:4] / 2, sum(parts.values())[4:] / 3]).ravel()
    file = theirs / "complex" / "annotation_3_in_1" / "vqa_result.json"
    file.parent.mkdir()
    file.write_text(json.dumps([{"question_id": i, "answer": float(s)} for i, s in enumerate(combined)]))
    found = official_figures(suite, suite.prompts, theirs, images_per_prompt=10)
    assert {tag: one["mean"] for tag, one in found["by_tag"].items()} == pytest.approx(
        expected | {"complex": combined.mean()}
    )
    assert abs(combined.mean() - parts["color"].mean()) > 0.001  # which the intermediate file says
    assert (found["missing"], found["not_scored"]) == (0, 0)


def test_prompt_lists_of_t2i_compbench_are_of_a_category(tmp_path: Path) -> None:
    for name in ("color_val_seen.txt", "color_val_unseen.txt"):
        (tmp_path / name).write_text("a red car\n")
        assert read_suite("t2i-compbench", tmp_path / name).prompts[0].tags == ("color",)
    for name in ("complex_val_spatial.txt", "colour_val.txt"):
        (tmp_path / name).write_text("a red car\n")
        with pytest.raises(ConfigError, match=r"is no category of T2I-CompBench, expected color_val.txt"):
            read_suite("t2i-compbench", tmp_path / name)


def test_noun_phrases_are_what_stands_between_the_words_that_join() -> None:
    assert noun_phrases("a red car and a blue cat") == ["a red car", "a blue cat"]
    assert noun_phrases("the oval mirror is near the cubic block, next to a lamp.") == [
        "the oval mirror",
        "the cubic block",
        "a lamp",
    ]
    assert noun_phrases("a wooden toy in Finland") == ["a wooden toy", "Finland"]
    assert noun_phrases("a cat on the left of a dog") == ["a cat", "a dog"]
