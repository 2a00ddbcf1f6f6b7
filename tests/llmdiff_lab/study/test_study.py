"""User studies: made from pictures, and answered."""

import itertools
import json
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from llmdiff.drawing.pictures import read_metadata, save_png
from llmdiff.errors import ConfigError, LLMDiffError, OutputError
from llmdiff_lab.cli.main import app
from llmdiff_lab.study.model import InvalidAnswerError, StudyFullError, UnknownRaterError
from llmdiff_lab.study.report import write_report
from llmdiff_lab.study.study import create_study, open_study
from tests.llmdiff_lab.study.studies import PROMPTS, SYSTEMS, draw_all, hidden, picture, rate_all


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
