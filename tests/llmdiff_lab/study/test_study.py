"""User studies: made from pictures, answered, counted; each figure against an independent computation."""

import csv
import io
import itertools
import json
import sqlite3
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from llmdiff.drawing.pictures import read_metadata, save_png
from llmdiff.errors import ConfigError, LLMDiffError, OutputError
from llmdiff_lab.cli.main import app
from llmdiff_lab.study.model import InvalidAnswerError, StudyFullError, UnknownRaterError
from llmdiff_lab.study.report import failed_checks, write_report
from llmdiff_lab.study.store import StudyStore
from llmdiff_lab.study.study import create_study, open_study

PROMPTS = ("a cat", "two dogs", "<script>alert(1)</script>", "=1+1")
SYSTEMS = ("base", "llm", "third & <b>")


def picture(number: int, size: int = 16) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 255, (size, size, 3), dtype=np.uint8))


def draw_all(
    root: Path, systems: Sequence[str] = SYSTEMS, prompts: Sequence[str] = PROMPTS
) -> dict[str, Path]:
    """Folders as `llmdiff generate` writes them: a system's pictures with prompt and seed inside."""
    folders = {}
    for index, system in enumerate(systems):
        folders[system] = root / f"system-{index}"
        for number, prompt in enumerate(prompts):
            # File names in another order than prompts: the metadata is what counts.
            path = folders[system] / f"{(number * 7 + index) % 10}-{number}.png"
            facts = {"prompt": prompt, "seed": 5, "llm": system}
            save_png(picture(10 * index + number), path, facts)
    return folders


@pytest.fixture
def study(tmp_path: Path) -> Path:
    create_study(tmp_path / "study", draw_all(tmp_path), check_every=6)
    return tmp_path / "study"


def rate_all(store: StudyStore, token: str, prefer: Any, *, upto: int | None = None) -> list[Any]:
    """Answer a rater's pairs with `prefer(left picture, right picture, question)`."""
    shown = []
    for position in range(upto or store.progress(token).total):
        pair = store.shown(token, position)
        choices = {q: prefer(pair.left_picture, pair.right_picture, q) for q in store.settings.questions}
        store.answer(token, position, choices)
        shown.append(pair)
    return shown


def hidden(folder: Path) -> tuple[dict[str, str], set[str]]:
    """What raters are not told, read from the database: the system of every picture; those in noise."""
    with sqlite3.connect(folder / "study.sqlite") as connection:
        rows = connection.execute("SELECT first, second, first_picture, second_picture FROM pairs").fetchall()
    connection.close()
    systems = {p: s for one in rows for s, p in zip(one[:2], one[2:], strict=True) if s is not None}
    return systems, {row[3] for row in rows if row[0] is None}


def test_a_study_holds_every_pair_of_systems_and_tells_nothing(study: Path) -> None:
    store = open_study(study)
    token = store.new_rater(max_raters=10)
    shown = [store.shown(token, position) for position in range(store.progress(token).total)]
    store.close()
    systems, noisy = hidden(study)
    compared = Counter(
        (pair.prompt, frozenset((systems[pair.left_picture], systems[pair.right_picture])))
        for pair in shown
        if not {pair.left_picture, pair.right_picture} & noisy
    )
    # 4 prompts x 3 pairs of systems, and one check for every 6 of those.
    expected = itertools.product(PROMPTS, map(frozenset, itertools.combinations(SYSTEMS, 2)))
    assert compared == Counter(expected)
    assert len(shown) - compared.total() == 2

    names = sorted(path.stem for path in (study / "pictures").iterdir())
    assert len(names) == 4 * 3 + 2
    for path in (study / "pictures").iterdir():
        assert read_metadata(path) == {}
    originals = {picture(10 * s + p).tobytes() for s in range(3) for p in range(4)}
    kept = {Image.open(study / "pictures" / f"{name}.png").tobytes() for name in set(names) - noisy}
    assert kept == originals


def test_attention_checks_come_at_random_places_but_not_first(study: Path) -> None:
    store = open_study(study)
    _, noisy = hidden(study)
    places = set()
    for _ in range(60):
        token = store.new_rater(max_raters=100)
        shown = [store.shown(token, position) for position in range(14)]
        places |= {at for at, pair in enumerate(shown) if {pair.left_picture, pair.right_picture} & noisy}
    store.close()
    assert min(places) == 5
    assert places == set(range(5, 14))


def test_a_report_without_answers_says_so(study: Path, tmp_path: Path) -> None:
    write_report(study, tmp_path / "report")
    page = (tmp_path / "report" / "report.html").read_text()
    assert page.count("no answers") == 3 * (3 + 3)  # questions x (pairs of systems + systems)
    assert "+0.00" not in page
    assert "Of the choices" not in page


def test_sides_and_order_are_random_and_stay(study: Path) -> None:
    store = open_study(study)
    tokens = [store.new_rater(max_raters=100) for _ in range(40)]
    systems, noisy = hidden(study)
    base_left = orders = total = 0
    first = [store.shown(tokens[0], position) for position in range(14)]
    for token in tokens:
        shown = [store.shown(token, position) for position in range(14)]
        orders += [pair.prompt for pair in shown] != [pair.prompt for pair in first]
        for pair in shown:
            sides = (systems.get(pair.left_picture), systems.get(pair.right_picture))
            if "base" in sides and not {pair.left_picture, pair.right_picture} & noisy:
                base_left += sides[0] == "base"
                total += 1
    assert orders >= 38
    assert total == 40 * 8
    assert abs(base_left / total - 0.5) < 0.15
    store.close()
    again = open_study(study)
    assert [again.shown(tokens[0], position) for position in range(14)] == first
    assert len({*tokens}) == 40
    assert min(map(len, tokens)) >= 22
    again.close()


def test_a_rater_goes_on_where_they_were(study: Path) -> None:
    store = open_study(study)
    token = store.new_rater(max_raters=1)
    assert (store.progress(token).done, store.progress(token).next) == (0, 0)
    rate_all(store, token, lambda *_: "left", upto=3)
    store.close()
    store = open_study(study)
    assert (store.progress(token).done, store.progress(token).next) == (3, 3)
    # Sent again: the last answer stands, and counts once.
    store.answer(token, 1, dict.fromkeys(store.settings.questions, "tie"))
    assert set(store.shown(token, 1).choices.values()) == {"tie"}
    assert store.progress(token).done == 3
    with pytest.raises(StudyFullError, match="thank you"):
        store.new_rater(max_raters=1)
    for position, choices in (
        (0, {}),
        (0, {"alignment": "left"}),
        (0, dict.fromkeys(store.settings.questions, "up")),
        (0, {**dict.fromkeys(store.settings.questions, "left"), "colour": "left"}),
    ):
        with pytest.raises(InvalidAnswerError, match="choices"):
            store.answer(token, position, choices)
    with pytest.raises(UnknownRaterError, match="position 99"):
        store.answer(token, 99, dict.fromkeys(store.settings.questions, "left"))
    with pytest.raises(UnknownRaterError):
        store.progress("' OR 1=1 --")
    store.close()


def test_pairs_are_given_evenly(tmp_path: Path) -> None:
    create_study(tmp_path / "study", draw_all(tmp_path), pairs_per_rater=3, check_every=0, ties=False)
    store = open_study(tmp_path / "study")
    seen: Counter[frozenset[str]] = Counter()
    for _ in range(8):
        token = store.new_rater(max_raters=8)
        shown = rate_all(store, token, lambda *_: "right")
        seen.update(frozenset((pair.left_picture, pair.right_picture)) for pair in shown)
    assert set(seen.values()) == {2}
    assert len(seen) == 12
    with pytest.raises(InvalidAnswerError):
        store.answer(token, 0, dict.fromkeys(store.settings.questions, "tie"))
    store.close()


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


def test_lists_of_pictures(tmp_path: Path) -> None:
    lists = {}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for seed in (2, 10):
            picture(seed).save(tmp_path / name / f"{seed}.png")
        rows = [{"prompt": "a cat", "image": f"{seed}.png", "seed": seed} for seed in (10, 2)]
        lists[name] = tmp_path / name / "list.jsonl"
        lists[name].write_text("\n".join(map(json.dumps, rows)) + "\n")
    create_study(tmp_path / "study", lists, check_every=0)
    store = open_study(tmp_path / "study")
    assert store.prompts() == ["a cat", "a cat"]
    names = store.pictures()
    for system in ("one", "two"):
        for row, seed in enumerate((2, 10)):
            stored = Image.open(tmp_path / "study" / "pictures" / f"{names[row, system]}.png")
            assert stored.tobytes() == picture(seed).tobytes()
    store.close()

    (tmp_path / "secret.png").write_bytes((tmp_path / "one" / "2.png").read_bytes())
    for line, words in (
        ('{"prompt": "a", "image": "../secret.png"}', "outside"),
        (json.dumps({"prompt": "a", "image": str(tmp_path / "secret.png")}), "outside"),
        ('{"prompt": "a"}', "expected"),
        ("[1]", "expected"),
        ("{", "line 1"),
        ('{"prompt": " ", "image": "2.png"}', "blank"),
        ('{"prompt": "a", "image": "2.png", "seed": "x"}', "seed"),
        ("", "no pictures"),
    ):
        lists["one"].write_text(line)
        with pytest.raises(ConfigError, match=words):
            create_study(tmp_path / "other", lists)
        assert not (tmp_path / "other").exists()
    lists["one"].write_text('{"prompt": "a cat", "image": "list.jsonl"}\n' * 2)
    with pytest.raises(OutputError, match="cannot be read as a picture"):
        create_study(tmp_path / "other", lists)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "secret.png", "study", "two"]


def test_studies_that_cannot_be_made(study: Path, tmp_path: Path) -> None:
    folders = {name: tmp_path / f"system-{index}" for index, name in enumerate(SYSTEMS)}
    (tmp_path / "bare").mkdir()
    picture(1).save(tmp_path / "bare" / "a.png")
    save_png(picture(1), tmp_path / "more" / "a.png", {"prompt": "a cat", "seed": 1})
    for systems, more, words in (
        ({"base": folders["base"]}, {}, "at least two"),
        (folders | {"": folders["base"]}, {}, "printable"),
        (folders, {"questions": ["beauty"]}, "questions"),
        (folders, {"pairs_per_rater": 0}, "pairs_per_rater"),
        (folders | {"bare": tmp_path / "bare"}, {}, "has no prompt in its metadata"),
        (folders | {"none": tmp_path / "none"}, {}, "neither a folder nor"),
        (folders | {"more": tmp_path / "more"}, {}, "different numbers of pictures"),
    ):
        with pytest.raises(ConfigError, match=words):
            create_study(tmp_path / "other", systems, **more)
        assert not (tmp_path / "other").exists()
    with pytest.raises(OutputError, match="exists already"):
        create_study(study, folders)
    (tmp_path / "not").mkdir()
    (tmp_path / "not" / "study.sqlite").write_text("no database")
    for folder in ("not", "bare"):
        with pytest.raises(ConfigError, match=r"study\.sqlite"):
            write_report(tmp_path / folder, tmp_path / "report")


def test_on_the_command_line(tmp_path: Path) -> None:
    folders = draw_all(tmp_path, ("base", "llm"))
    given = [part for name, folder in folders.items() for part in ("--system", f"{name}={folder}")]
    call = CliRunner().invoke
    result = call(app, ["study", "create", "--out", str(tmp_path / "s"), *given, "--question", "quality"])
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 's'}\n")
    result = call(app, ["study", "report", str(tmp_path / "s"), "--out", str(tmp_path / "r")])
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'r' / 'report.html'}\n")
    result = call(app, ["study", "create", "--out", str(tmp_path / "s"), *given])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: out ")
    result = call(app, ["study", "create", "--out", str(tmp_path / "t"), "--system", "base"])
    assert result.exit_code == 1
    assert "NAME=SOURCE" in result.stderr
    assert call(app, ["study", "serve", str(tmp_path / "none")]).stderr.startswith("error: study ")


def test_errors_are_the_librarys() -> None:
    for error in (UnknownRaterError, InvalidAnswerError, StudyFullError):
        assert issubclass(error, LLMDiffError)
