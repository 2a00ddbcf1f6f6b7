"""GenEval 2, UniGenBench++ and TIIF-Bench: formats and figures, computed by hand."""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from llmdiff.errors import ConfigError, MetricError
from llmdiff.evaluation.metrics.kinds import Pictures
from llmdiff.evaluation.report import check_metrics
from llmdiff.evaluation.suites.benchmarks import BENCHMARKS, read_suite
from llmdiff.evaluation.suites.geneval2 import GenEval2Scorer
from llmdiff.evaluation.suites.official import export_pictures, official_figures, published_figures
from llmdiff.evaluation.suites.questions import questions_of
from llmdiff.evaluation.suites.tiif_bench import TIIFScorer
from llmdiff.evaluation.suites.unigenbench import UniGenBenchScorer
from tests.llmdiff.evaluation.suites.scripted import PICTURE, Says, means, random_results, written_and_read


@pytest.fixture
def geneval2(tmp_path: Path) -> Path:
    rows = [
        {
            "prompt": "two red cats",
            "atom_count": 3,
            "vqa_list": [["How many cats are there?", "two"], ["Are they red?", "Yes"], ["Any cats?", "Yes"]],
            "skills": ["count", "attribute", "object"],
        },
        {"prompt": "a dog", "atom_count": 1, "vqa_list": [["Any dogs?", "Yes"]], "skills": ["object"]},
    ]
    path = tmp_path / "geneval2_data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_geneval2_soft_tifa(geneval2: Path, tmp_path: Path) -> None:
    suite = read_suite("geneval2", geneval2.parent)
    assert [(row.tags, suite.images_per_prompt) for row in suite.prompts] == [
        (("3 atoms",), 1),
        (("1 atoms",), 1),
    ]
    says = Says({"How many cats are there?": 0.9, "Are they red?": 0.1, "Any cats?": 0.6, "Any dogs?": 0.5})
    judged = GenEval2Scorer(says).judge(np.repeat(PICTURE, 2, axis=0), suite.prompts)
    assert {"two", "Two", " two", " Two", "2", " 2"} == set(says.wanted[0])
    assert {"Yes", "yes", " Yes", " yes"} == set(says.wanted[1])
    gm = (0.9 * 0.1 * 0.6) ** (1 / 3)
    assert [one["score"] for one in judged] == pytest.approx([gm, 0.5])
    found = published_figures(suite, suite.prompts, [[one] for one in judged])
    assert means(found) == pytest.approx(
        {
            "Soft-TIFA GM": (gm + 0.5) / 2,
            "Soft-TIFA AM": ((0.9 + 0.1 + 0.6) / 3 + 0.5) / 2,
            "count": 0.9,
            "attribute": 0.1,
            "object": (0.6 + 0.5) / 2,
        }
    )
    back = written_and_read(suite, [[one] for one in judged], tmp_path / "s", 1, "score_lists.json")
    assert (back["overall"]["mean"], means(back["as_published"])) == (
        pytest.approx((gm + 0.5) / 2),
        pytest.approx(means(found)),
    )
    # A question without any chance of the right answer: the geometric mean is 0.
    (tmp_path / "zero.json").write_text("[[0.9, 0.0, 0.6], [0.5]]")
    zero = official_figures(suite, suite.prompts, tmp_path / "zero.json", images_per_prompt=1)
    assert zero["overall"]["mean"] == 0.25
    export_pictures(BENCHMARKS["geneval2"], suite.prompts, [PICTURE] * 2, tmp_path / "out", "ours")
    paths = json.loads((tmp_path / "out" / "image_paths.json").read_text())
    assert list(paths) == ["two red cats", "a dog"]
    assert all((tmp_path / "out" / path).exists() for path in paths.values())


def test_geneval2_files_that_do_not_fit_are_named(geneval2: Path, tmp_path: Path) -> None:
    suite, file = read_suite("geneval2", geneval2), tmp_path / "s.json"
    for content, said in (
        ("[[0.5], [0.5]]", "has 1 scores of prompt 00000, expected 3: run .* --method soft_tifa_gm"),
        ("[[0.5, 0.5, 0.5]]", "expected a list of the scores of every prompt"),
    ):
        file.write_text(content)
        with pytest.raises(ConfigError, match=said):
            official_figures(suite, suite.prompts, file, images_per_prompt=1)
    geneval2.write_text(geneval2.read_text().replace('"Any dogs?", "Yes"', '"Any dogs?", "No"'))
    with pytest.raises(ConfigError, match=r"line 2: answer 'No' to 'Any dogs\?', expected yes"):
        read_suite("geneval2", geneval2)

    class OnlyYes:
        model_id = "only yes"

        def yes(self, pictures: Pictures, questions: Sequence[str]) -> NDArray[np.float64]:
            return np.ones(len(questions))

    with pytest.raises(MetricError, match="answers yes or no only"):
        GenEval2Scorer(OnlyYes()).judge(PICTURE, suite.prompts[:1])


def write_unigen(folder: Path, name: str, rows: list[tuple[str, list[str], list[str]]]) -> None:
    language = name.removesuffix("_long")
    keys = ("考点", "考点对应描述") if language == "zh" else ("Testpoints", "Testpoint Description")
    with (folder / f"test_prompts_{name}.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["index", f"prompt_{language}", f"sub_dims_{language}"])
        for index, (prompt, points, texts) in enumerate(rows):
            table.writerow([index, prompt, json.dumps({keys[0]: points, keys[1]: texts}, ensure_ascii=False)])


@pytest.fixture
def unigen(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    short = [
        ("two red cats", ["Attribute - Color", "Attribute - Quantity", "Style"], ["red", "two", "ink"]),
        ("a dog", ["Attribute - Color"], ["brown"]),
    ]
    long = [(f"In the morning, {prompt}.", points, texts) for prompt, points, texts in short]
    write_unigen(folder, "en", short)
    write_unigen(folder, "en_long", long)
    write_unigen(folder, "zh", [("两只猫", ["属性-数量", "风格"], ["两只", "水墨"])])
    return folder


def test_unigenbench_twins_and_dimensions(unigen: Path, tmp_path: Path) -> None:
    suite = read_suite("unigenbench", unigen)
    assert [(row.id, row.tags) for row in suite.prompts] == [
        ("en-0", ("en",)),
        ("en-1", ("en",)),
        ("en_long-0", ("en_long",)),
        ("en_long-1", ("en_long",)),
        ("zh-0", ("zh",)),
    ]
    assert suite.prompts[2].prompt == "In the morning, two red cats."
    results = random_results(suite, 4)
    # Every test point of every picture counts once, in its dimension and its sub-dimension.
    expected: dict[str, list[float]] = {}
    for row, some in zip(suite.prompts, results, strict=True):
        for one in some:
            for question, answer in zip(questions_of(row), one["answers"], strict=True):
                for name in {question.category, question.category.split("-")[0].strip()}:
                    expected.setdefault(f"{row.tags[0]}: {name}", []).append(answer)
    back = written_and_read(suite, results, tmp_path / "s", 4)
    assert means(back["as_published"]) == pytest.approx(
        {name: np.mean(one) for name, one in expected.items()}
    )
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == [
        "ours_en.csv",
        "ours_en_long.csv",
        "ours_zh.csv",
    ]
    alone = read_suite("unigenbench", unigen / "test_prompts_en.csv")
    figures = official_figures(alone, alone.prompts, tmp_path / "s" / "ours_en.csv", images_per_prompt=4)
    assert set(figures["as_published"]) == {"Attribute", "Attribute - Color", "Attribute - Quantity", "Style"}
    export_pictures(BENCHMARKS["unigenbench"], alone.prompts, [PICTURE] * 2, tmp_path / "out", "ours")
    assert (tmp_path / "out" / "en" / "ours" / "1_0.png").exists()
    scorer = UniGenBenchScorer(Says({question.text: 0.7 for question in questions_of(alone.prompts[0])}))
    assert scorer.judge(PICTURE, alone.prompts[:1])[0]["score"] == 1.0


def test_unigenbench_pictures_that_were_not_judged_are_missing(unigen: Path, tmp_path: Path) -> None:
    suite = read_suite("unigenbench", unigen / "test_prompts_en.csv")
    lines = [
        ["index", "testpoint", "result_json", "img_path"],
        ["0", "-", json.dumps({"score": [1, 0, 1]}), "/x/0_0.png"],
        ["0", "-", "null", "/x/0_1.png"],
        ["1", "-", json.dumps({"score": [1]}), "/x/1_1.png"],
    ]
    file = tmp_path / "m_en.csv"
    with file.open("w", newline="") as table:
        csv.writer(table).writerows(lines)
    found = official_figures(suite, suite.prompts, file, images_per_prompt=2)
    assert (found["missing"], found["first_missing"]) == (2, "en-0, picture 1")
    assert found["overall"]["mean"] == pytest.approx(((2 / 3 + 0) / 2 + 1 / 2) / 2)
    assert found["as_published"]["Attribute - Color"]["mean"] == pytest.approx(2 / 4)
    file.write_text(file.read_text().replace("[1, 0, 1]", "[1, 0]"))
    with pytest.raises(ConfigError, match="row 1: 2 scores of 3 test points"):
        official_figures(suite, suite.prompts, file, images_per_prompt=2)
    both = read_suite("unigenbench", unigen)
    with pytest.raises(ConfigError, match=r"expected one file MODEL_en\.csv in a folder"):
        official_figures(both, both.prompts, file, images_per_prompt=2)
    # As a row of the published file is: without the comma between two strings.
    broken = unigen / "test_prompts_en.csv"
    broken.write_text(broken.read_text().replace('Color"", ""Attribute', 'Color"" ""Attribute'))
    assert len(questions_of(read_suite("unigenbench", broken).prompts[0])) == 3


@pytest.fixture
def tiif(tmp_path: Path) -> Path:
    kinds = {
        "color+texture": [("Is it red?", "yes"), ("Is it rough?", "Yes")],
        "shape+color": [("Is it round?", "yes")],
        "negation": [("Is there a cat?", "no"), ("Is there a dog?", "yes")],
        "action+color": [("Is it running?  ", "yes")],
        "text": [("Is the text 'a' in the image?", "Yes")],
        "real_world": [("Is it a street?", "yes")],
    }
    for folder in ("testmini_prompts", "testmini_eval_prompts"):
        (tmp_path / folder).mkdir()
    for kind, pairs in kinds.items():
        prompts = [
            {"type": kind, "short_description": f"{kind} {i}", "long_description": f"A long {kind} {i}"}
            for i in range(2)
        ]
        asked = {
            "type": kind,
            "yn_question_list": [q for q, _ in pairs],
            "yn_answer_list": [a for _, a in pairs],
        }
        for folder, name, lines in (
            ("testmini_prompts", "prompts", prompts),
            ("testmini_eval_prompts", "eval_prompts", [asked] * 2),
        ):
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (tmp_path / folder / f"{kind}_{name}.jsonl").write_text(text)
    return tmp_path


def test_tiif_bench_groups_are_means_over_types(tiif: Path, tmp_path: Path) -> None:
    suite = read_suite("tiif-bench", tiif)
    assert len(suite.prompts) == 6 * 2 * 2
    assert [row.prompt for row in suite.prompts if row.tags[0] == "text"][:2] == ["text 0", "A long text 0"]
    assert {row.tags for row in suite.prompts} >= {("negation", "short"), ("negation", "long")}
    results = random_results(suite, 1, seed=3)
    accuracy: Callable[..., float] = lambda length, *kinds: float(  # noqa: E731
        np.mean(
            [
                np.mean(
                    [
                        answer
                        for row, (one,) in zip(suite.prompts, results, strict=True)
                        if row.tags == (kind, length)
                        for answer in one["answers"]
                    ]
                )
                for kind in kinds
            ]
        )
    )
    expected = {}
    for length in ("short", "long"):
        groups = {
            "Attribute": accuracy(length, "color+texture", "shape+color"),
            "Reasoning": accuracy(length, "negation"),
            "Attribute+Relation": accuracy(length, "action+color"),
            "Text Generation": accuracy(length, "text"),
            "Real World": accuracy(length, "real_world"),
        }
        wholes = {
            "basic": accuracy(length, "color+texture", "shape+color", "negation"),
            "advanced": accuracy(length, "action+color", "text"),
            "overall": np.mean(list(groups.values())),
        }
        expected |= {f"{length}: {name}": value for name, value in (groups | wholes).items()}
    back = written_and_read(suite, results, tmp_path / "s", 1, "ours")
    assert means(back["as_published"]) == pytest.approx(expected)
    assert all(one["low"] <= one["mean"] <= one["high"] for one in back["as_published"].values())
    (tmp_path / "s" / "ours" / "negation" / "long" / "1.json").unlink()
    lacking = official_figures(suite, suite.prompts, tmp_path / "s" / "ours", images_per_prompt=1)
    assert (lacking["missing"], lacking["first_missing"]) == (1, "negation-1-long, picture 0")
    file = tmp_path / "s" / "ours" / "text" / "short" / "0.json"
    file.write_text(file.read_text().replace("text 'a'", "text 'b'"))
    with pytest.raises(ConfigError, match="answers other questions than those of line 1 of text"):
        official_figures(suite, suite.prompts, tmp_path / "s" / "ours", images_per_prompt=1)
    export_pictures(BENCHMARKS["tiif-bench"], suite.prompts, [PICTURE] * 24, tmp_path / "out", "ours")
    assert (tmp_path / "out" / "negation" / "ours" / "long_description" / "1.png").exists()


def test_tiif_bench_asks_for_no_where_no_is_right(tiif: Path) -> None:
    suite = read_suite("tiif-bench", tiif / "testmini_prompts")
    row = next(row for row in suite.prompts if row.tags == ("negation", "short"))
    scorer = TIIFScorer(Says({"Is there a cat?": 0.2, "Is there a dog?": 0.2}))
    (judged,) = scorer.judge(PICTURE, [row])
    assert (judged["answers"], judged["score"]) == ([1.0, 0.0], 0.5)
    # The full set has no questions: it can be drawn and written, not scored.
    (tiif / "testmini_eval_prompts").rename(tiif / "elsewhere")
    with pytest.raises(MetricError, match="metric tiif-bench: scores none of this suite's prompts"):
        check_metrics([scorer], read_suite("tiif-bench", tiif), 1, has_reference=False)
    (tiif / "elsewhere").rename(tiif / "testmini_eval_prompts")
    file = tiif / "testmini_eval_prompts" / "text_eval_prompts.jsonl"
    file.write_text(file.read_text().splitlines()[0] + "\n")
    with pytest.raises(ConfigError, match="has 1 lines, expected 2"):
        read_suite("tiif-bench", tiif)
