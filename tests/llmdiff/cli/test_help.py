"""The help of every verb: `-h`, a whole summary, plain names of types, and an example that its verb accepts."""

import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from llmdiff.cli.main import app
from llmdiff_lab.cli.main import app as laboratory

ROOTS: dict[str, Any] = {
    "llmdiff": typer.main.get_command(app),
    "llmdiff-lab": typer.main.get_command(laboratory),
}


def commands(words: tuple[str, ...], command: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield words, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands((*words, name), inner)


ALL = [found for name, root in ROOTS.items() for found in commands((name,), root)]
VERBS = [found for found in ALL if not hasattr(found[1], "commands")]


def words_of(found: tuple[tuple[str, ...], Any]) -> str:
    return "-".join(found[0])


def help_of(words: tuple[str, ...], option: str = "-h") -> str:
    root = app if words[0] == "llmdiff" else laboratory
    result = CliRunner().invoke(root, [*words[1:], option], prog_name=words[0], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("found", ALL, ids=words_of)
def test_h_is_help_in_plain_words_and_whole_sentences(found: tuple[tuple[str, ...], Any]) -> None:
    words, command = found
    text = help_of(words)
    assert text == help_of(words, "--help")
    below_usage = text.partition("\n")[2]
    assert not re.search(r"<\w|Annotated|Optional|\blist\[|\.\.\.$", below_usage, re.MULTILINE)
    for inner in getattr(command, "commands", {}).values():
        first = " ".join(inner.help.split()).split(". ")[0].rstrip(".")
        assert f"{first}.".replace(" ", "") in "".join(text.split())  # lines may break at hyphens


@pytest.mark.parametrize("found", VERBS, ids=words_of)
def test_every_verb_ends_with_an_example_that_it_accepts(found: tuple[tuple[str, ...], Any]) -> None:
    words, command = found
    example = help_of(words).rstrip().splitlines()[-1].strip()
    given = shlex.split(example)
    assert tuple(given[: len(words)]) == words
    command.make_context(words[-1], given[len(words) :])  # parses and validates; runs nothing


def test_types_have_plain_names() -> None:
    shown = help_of(("llmdiff", "generate"))
    assert "--steps NUMBER" in shown
    assert "--llm TEXT" in shown
    assert "--dtype float32|bfloat16|float16\n" in shown
    assert "Usage: llmdiff generate PROMPT [OPTIONS]" in shown
    assert "--out PATH" in help_of(("llmdiff", "world"))
