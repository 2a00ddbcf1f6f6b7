"""Checks that a documented command exists and takes the words it is given, without running it."""

import importlib.util
import json
import re
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import typer.main
from accelerate.commands.launch import launch_command_parser
from packaging.requirements import Requirement

from docs.pages import ROOT
from llmdiff.cli.main import app
from llmdiff.language.packaged import PACKAGED
from llmdiff.serving.schemas import ImageRequest
from llmdiff.training.config import load_config
from llmdiff_lab.cli.main import app as laboratory
from llmdiff_lab.rivals.encoder import MINILM_PACKAGE

_PACKAGES = {"llmdiff-adapter", Requirement(MINILM_PACKAGE).name}
_PACKAGES |= {Requirement(row.package).name for row in PACKAGED.values()}
# Programs of others, whose words are theirs.
_OTHERS = ("npm", "tar", "openssl", "docker", "export", "transformers")


def check_command(words: list[str]) -> None:
    """Raises an error that names what is wrong."""
    program, *rest = words
    match Path(program).name, rest:
        case "llmdiff", _:
            check_verb(rest)
        case "llmdiff-lab", _:
            check_verb(rest, laboratory)
        case "python", ["-m", "llmdiff.cli", *inner]:
            check_verb(inner)
        case "python", ["-m", "pytest", *inner]:
            _check_paths(inner)
        case "python", ["-m", module, *_]:
            assert importlib.util.find_spec(module), f"no module {module}"
        case "python", [script, *inner]:
            _check_script(script, inner)
        case "accelerate", ["launch", *inner]:
            launched = launch_command_parser().parse_args(inner)
            assert launched.module
            check_command(["python", "-m", launched.training_script, *launched.training_script_args])
        case "pytest", _:
            _check_paths(rest)
        case "make", _:
            targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert {word for word in rest if "=" not in word} <= set(targets), f"no target among {rest}"
        case "pip", ["install", *inner]:
            _check_requirements([word for word in inner if not word.startswith("-")])
        case "source", [".venv/bin/activate"]:
            pass
        case "curl", [url, *inner]:
            _check_request(url, inner)
        case name, _:
            assert name in _OTHERS, f"unknown command {name}"


def check_verb(words: list[str], program: typer.Typer = app) -> Any:
    """Return the context of a verb of `llmdiff` or `llmdiff-lab` after parsing its words as the command line does."""
    command: Any = typer.main.get_command(program)
    context: Any = command.make_context("llmdiff", [words[0]])
    rest = list(words)
    while hasattr(command, "commands"):
        name, command, rest = command.resolve_command(context, rest)
        assert command is not None, f"no verb {name}"
        if not hasattr(command, "commands"):
            break
        context = command.make_context(name, rest[:1], parent=context)
    context = command.make_context(words[0], list(rest), parent=context)
    if words[0] in ("train", "prepare"):
        # The file is there, and every key and value is one that the configuration knows.
        load_config(ROOT / context.params["config"], list(context.params["changes"] or []))
    return context


def _check_script(script: str, words: list[str]) -> None:
    text = (ROOT / script).read_text()
    for option in (word for word in words if word.startswith("--")):
        assert f'"{option}"' in text, f"{script} has no option {option}"


def _check_paths(words: list[str]) -> None:
    paths = [word for word in words if "/" in word]
    assert all((ROOT / path).exists() for path in paths), f"not all of {paths} exist"


def _check_requirements(words: list[str]) -> None:
    known = distribution("llmdiff-adapter")
    for requirement in map(Requirement, words):
        assert requirement.name in _PACKAGES, f"unknown {requirement}"
        assert requirement.extras <= set(known.metadata.get_all("Provides-Extra") or [])


def _check_request(url: str, words: list[str]) -> None:
    path = re.sub(r"https?://[^/]+", "", url)
    assert f'"{path}"' in (ROOT / "src" / "llmdiff" / "serving" / "api.py").read_text(), f"no route {path}"
    ImageRequest.model_validate(json.loads(words[words.index("-d") + 1]))
