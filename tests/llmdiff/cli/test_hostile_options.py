"""Every option of every verb with values of nobody's good will: one line of error or none, no traceback, no hang."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from llmdiff.cli.main import app
from llmdiff.cli.options import Verb
from llmdiff_lab.cli.main import app as laboratory

hostile = pytest.mark.hostile("numbers and options")
files = pytest.mark.hostile("files and folders")


class Stopped(BaseException):
    """Everything was taken and heavy work would begin: loading models, training, listening."""


# Where that is.
_HEAVY = (
    "llmdiff.drawing.draw.load",
    "llmdiff.drawing.batch.load",
    "llmdiff.drawing.models.load",
    "llmdiff.drawing.models.load_controller",
    "llmdiff.language.llm.DecoderLLM.from_pretrained",
    "llmdiff.serving.server.run_server",
    "llmdiff.serving.ui_server.serve_ui",
    "llmdiff.training.trainer.train_adapter",
    "llmdiff.training.prepare.load_models",
    "llmdiff.training.plan.make_plan",
    "llmdiff.evaluation.report.evaluate_suite",
    "llmdiff_lab.study.api.serve_study",
    "llmdiff_lab.inspection.denoising.load_encoder",
    "llmdiff_lab.inspection.probe_table.measure_probes",
    "llmdiff_lab.comparison.fill.Recipe.benchmark",
    "llmdiff_lab.comparison.prepare.prepare_build",
    "llmdiff_lab.world_build.slices.run_build",
)

_APPLICATIONS = (app, laboratory)
_COMMANDS = {id(one): typer.main.get_command(one) for one in _APPLICATIONS}


def verbs_of(application: typer.Typer) -> dict[str, Any]:
    """Every verb of a command, by its words."""

    def walk(words: str, command: Any) -> Iterator[tuple[str, Any]]:
        inner = getattr(command, "commands", None)
        if inner is None:
            yield words, command
            return
        for name, one in inner.items():
            yield from walk(f"{words} {name}".strip(), one)

    return dict(walk("", _COMMANDS[id(application)]))


VERBS = verbs_of(app) | verbs_of(laboratory)
HOMES = {words.split()[0]: one for one in _APPLICATIONS for words in verbs_of(one)}
PARAMETERS = [
    (words, one) for words, command in VERBS.items() for one in command.params if one.name not in ("help",)
]


def kind_of(parameter: Any) -> type:
    """The type of an option's value, or of each of several: also that of older versions of typer."""
    descriptor = getattr(parameter, "type_descriptor", None)
    if descriptor is None:
        names = {"integer": int, "integer range": int, "float": float, "float range": float, "boolean": bool}
        return names.get(parameter.type.name, str)
    found = descriptor.annotation
    inner = getattr(found, "__args__", None)
    return inner[0] if inner else found


def ids(parameters: list[tuple[str, Any]]) -> list[str]:
    return [f"{words.replace(' ', '-')}-{one.name}" for words, one in parameters]


VALUED = [(words, one) for words, one in PARAMETERS if kind_of(one) is not bool]


def test_every_verb_checks_its_texts() -> None:
    assert {words for words, command in VERBS.items() if not isinstance(command, Verb)} == set()


@pytest.mark.parametrize(("words", "parameter"), VALUED, ids=ids(VALUED))
def test_every_number_has_bounds(words: str, parameter: Any) -> None:
    if kind_of(parameter) not in (int, float):
        return
    allowed = getattr(parameter.callback, "allowed", None)
    assert allowed is not None, f"{words} {parameter.opts}: make it with cli_options.number"
    assert allowed.whole is (kind_of(parameter) is int)
    assert abs(allowed.low) <= allowed.high < 2**63


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with odd files in it; nothing heavy begins and nothing is left elsewhere."""

    def stop(*_: Any, **__: Any) -> None:
        raise Stopped

    # Making all verbs takes much longer than running one.
    monkeypatch.setattr("typer.testing._get_command", lambda one: _COMMANDS[id(one)])
    for name in _HEAVY:
        monkeypatch.setattr(name, stop)
    monkeypatch.setenv("LLMDIFF_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(
        "out: run\nmodels: {llm: a, base: b}\ndata: {kind: scenes}\ntraining: {steps: 1, batch_size: 1}\n"
    )
    (tmp_path / "prompts.txt").write_text("a cat\n")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "latin1").write_bytes("ein Kätzchen".encode("latin-1"))
    (tmp_path / "deep").write_text("[" * 50_000)
    (tmp_path / "empty").write_text("")
    (tmp_path / "full").symlink_to("/dev/full")
    (tmp_path / "loop").symlink_to("loop")
    return tmp_path


def base_arguments(words: str) -> list[str]:
    """What a verb needs: values that it takes."""
    needed = {
        "generate": ["a cat", "--out", "a.png"],
        "compare": ["a cat", "--out", "a.png"],
        "batch": ["prompts.txt", "--out", "out"],
        "train": ["config.yaml"],
        "prepare": ["config.yaml"],
        "plan": ["config.yaml"],
        "port": ["--llm", "a", "--captions", "prompts.txt", "--out", "out"],
        "reword": ["prompts.txt", "--out", "out.jsonl", "--llm", "a"],
        "study create": ["--out", "study", "--system", "a=folder", "--system", "b=folder"],
        "study serve": ["study"],
        "study report": ["study", "--out", "out"],
        "inspect denoising": ["--out", "out", "--model", "a"],
    }
    prompts = {"inspect scores", "inspect attention"}
    return needed.get(words) or ([*(["a cat"] if words in prompts else []), "--out", "out"])


def arguments(words: str, parameter: Any, value: str) -> list[str]:
    """A command line with this value for one option or argument."""
    base = base_arguments(words) if words not in ("serve", "ui", "doctor") else []
    if parameter.param_type_name == "argument":
        if parameter.nargs == -1:
            return [*words.split(), *base, "--", value]
        return [*words.split(), *base[1:], "--", value]
    option = parameter.opts[-1]
    if option in base:
        at = base.index(option)
        del base[at : at + 2]
    return [*words.split(), *base, f"{option}={value}"]


def check(given_arguments: list[str]) -> None:
    """Run a command line: it begins its work, or says in one line why not."""
    try:
        result = CliRunner().invoke(HOMES[given_arguments[0]], given_arguments)
    except Stopped:
        return
    assert result.exception is None or isinstance(result.exception, SystemExit), (
        f"{given_arguments}: {result.exception!r}"
    )
    assert result.exit_code in (0, 1, 2), given_arguments
    assert "Traceback" not in result.output
    if result.exit_code:
        said = [
            line for line in result.stderr.splitlines() if line.lower().startswith(("error: ", "aborted"))
        ]
        assert len(said) == 1, result.stderr
        assert len(said[0]) < 7000
        # Usage, an empty line and the error where the line itself was wrong; else the error alone.
        more = [line for line in result.stderr.splitlines() if not line.startswith(("warning: ", "loading "))]
        assert result.exit_code == 2 or said[0].startswith("Aborted") or more == said


NUMBERS = [
    *(
        "nan",
        "inf",
        "-inf",
        "1e400",
        "-1",
        "0",
        "1e-400",
        "0x10",
        "1_000",
        "²",
        "٣",
        "",
        " ",
        "1,5",
        "true",
        "None",
    ),
    *(str(number) for number in (2**31, 2**32, 2**63 - 1, 2**63, 2**64, 2**64 + 1, -(2**63), 10**18, 10**30)),
    "9" * 5000,
    "1" + "0" * 400,
]
NAMES = [
    *("", " ", "\n", "a\nb", "a\0b", "\ud800", "a\udcff", "\ufeff", "\u200b", "-", "--", "~", ".", "..", "/"),
    *(
        "a" * 240,
        "a" * 240 + ".png",
        "a" * 256,
        "é" * 200,
        "a" * 5000,
        "a/" * 3000,
        "a=b",
        "=",
        "a=",
        "1/²",
        "1/0",
    ),
    *("pipe", "folder", "latin1", "deep", "empty", "full", "loop", "prompts.txt/a.png", "folder/../folder"),
    *(
        "/dev/zero",
        "/dev/null",
        "/dev/full",
        "/etc/shadow",
        "/proc/self/mem",
        "/proc/nothing/a.png",
        "full/a.png",
    ),
    *(
        "a=pipe",
        "a=/dev/zero",
        "a=deep",
        "training.steps=9e999",
        "a.b.c.d=1",
        "training.precision=no",
        "out=[[",
    ),
    *(
        "meta",
        "cuda:99",
        "cpu:-1",
        "cpu:" + "9" * 30,
        "http://",
        "http://[",
        "https://a:99999999/",
        "file:///etc",
    ),
    *(
        "nobody/nothing",
        "a/b/c",
        "https://\udcff",
        "%s%n",
        "{prompt}",
        "<|im_end|>",
        "\x1b[31m",
        "../../etc/passwd",
    ),
]


def hostile_values(parameter: Any) -> st.SearchStrategy[str]:
    random = st.text(st.characters(blacklist_characters="/"), max_size=30)
    if kind_of(parameter) in (int, float):
        some = st.one_of(st.integers().map(str), st.floats().map(str), st.floats(width=16).map(str), random)
        return st.one_of(st.sampled_from(NUMBERS), some)
    return st.one_of(st.sampled_from(NAMES), st.sampled_from(NAMES), random)


_QUIET = list(HealthCheck)


@hostile
@pytest.mark.timeout(120)
@pytest.mark.parametrize(("words", "parameter"), VALUED, ids=ids(VALUED))
@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=_QUIET)
@given(data=st.data())
def test_fuzzed_options(place: Path, words: str, parameter: Any, data: st.DataObject) -> None:
    check(arguments(words, parameter, data.draw(hostile_values(parameter))))


@pytest.mark.soak
@settings(max_examples=20_000, deadline=None, suppress_health_check=_QUIET)
@given(data=st.data())
def test_fuzzed_options_for_long(place: Path, data: st.DataObject) -> None:
    words, parameter = data.draw(st.sampled_from(VALUED))
    check(arguments(words, parameter, data.draw(hostile_values(parameter))))


@files
@pytest.mark.timeout(60)
@pytest.mark.parametrize("value", NAMES, ids=lambda value: ascii(value)[1:40])
@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("generate", "out"),
        ("batch", "prompts"),
        ("train", "config"),
        ("plan", "config"),
        ("port", "captions"),
        ("port", "out"),
        ("reword", "captions"),
        ("reword", "out"),
        ("study create", "system"),
        ("study create", "out"),
        ("study report", "study"),
        ("inspect denoising", "texts"),
        ("evaluate", "suite"),
        ("evaluate", "suite_files"),
        ("evaluate", "reference"),
        ("serve", "token_file"),
        ("ui", "password_file"),
    ],
)
def test_places_that_are_none(place: Path, words: str, name: str, value: str) -> None:
    parameter = next(one for one in VERBS[words].params if one.name == name)
    check(arguments(words, parameter, value))
    assert stat.S_ISFIFO((place / "pipe").stat().st_mode)
