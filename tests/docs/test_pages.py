"""Every command and every Python block of README, tutorials and how-to pages works as it is written."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from PIL import Image
from tiny.pipelines import build_llm, build_sd

from docs.calls import check_calls
from docs.pages import KINDS, PAGES, ROOT, Block, blocks, commands, every_block
from docs.shell import check_command, check_verb
from llmdiff.cli.main import app
from llmdiff.controller import LLMController
from llmdiff.evaluation.tables import percent
from llmdiff.language.llm import DecoderLLM
from llmdiff_lab.cli.main import app as laboratory

BLOCKS = every_block()
PYTHON = [block for block in BLOCKS if block.language == "python"]
_drawn: dict[str, Any] = {}


def test_every_block_is_found_and_says_how_it_is_tested() -> None:
    assert len(BLOCKS) > 40
    for block in BLOCKS:
        assert block.kind in ("", *KINDS), f"{block}: unknown mark {block.kind}"
        assert block.kind or not block.is_shell, (
            f"{block}: a shell block needs a mark, see tests/docs/pages.py"
        )
    marks = sum(page.read_text().count("<!-- docs-test:") for page in PAGES)
    assert marks == sum(bool(block.kind) for block in BLOCKS), "a mark stands before no block, or is misspelt"


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.is_shell], ids=str)
def test_commands_are_ones_that_there_are(block: Block) -> None:
    for words in commands(block.script):
        check_command(words)


@pytest.mark.parametrize(
    "wrong", ["llmdiff generate cat --steps 0", "llmdiff paint", "make cake", "sudo reboot"]
)
def test_a_wrong_command_would_be_noticed(wrong: str) -> None:
    usage_error = typer.BadParameter.__bases__[0]
    with pytest.raises((AssertionError, usage_error)):
        check_command(wrong.split())


@pytest.mark.parametrize("block", [block for block in PYTHON if block.kind not in ("", "quote")], ids=str)
def test_names_and_arguments_are_ones_that_there_are(block: Block) -> None:
    assert check_calls(block.text) > 0


def test_a_wrong_argument_would_be_noticed() -> None:
    with pytest.raises(TypeError, match="keep_base_txt"):
        check_calls("controller.attach(pipe, keep_base_txt=True)")
    with pytest.raises(AttributeError):
        check_calls("controller.fasten(pipe)")
    with pytest.raises(ImportError):
        check_calls("from llmdiff.errors import NoSuchError")


@pytest.mark.parametrize("block", [block for block in PYTHON if block.kind == "quote"], ids=str)
def test_quotes_are_python(block: Block) -> None:
    compile(
        "def quoted():\n" + "".join(f"    {line}\n" for line in block.text.splitlines()), str(block), "exec"
    )


@pytest.fixture
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What pages use without making it: a controller, its LLM and pipeline, all tiny and random; pictures."""
    if not _drawn:
        folder = tmp_path_factory.mktemp("llm")
        tiny = build_llm()
        tiny.model.save_pretrained(folder)
        tiny.tokenizer.save_pretrained(folder)
        _drawn["llm"] = DecoderLLM.from_pretrained(folder)
    torch.manual_seed(0)
    pipe = build_sd()
    pipe.set_progress_bar_config(disable=True)
    picture = Image.new("RGB", (16, 16), "red")
    return {
        "torch": torch,
        "DecoderLLM": DecoderLLM,
        "LLMController": LLMController,
        "llm": _drawn["llm"],
        "pipe": pipe,
        "controller": LLMController.create(_drawn["llm"], pipe),
        "sketch": picture,
        "photo": picture,
        "mask": Image.new("L", (16, 16), 255),
    }


@pytest.mark.parametrize(
    "page", [p for p in PAGES if any(b.page == p and not b.kind for b in PYTHON)], ids=str
)
def test_python_blocks_run(
    page: Path, names: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for block in blocks(page):
        if block.language == "python" and not block.kind:
            exec(compile(block.text, str(block), "exec"), names)


README_ROWS = {
    "lavi-bridge": "LaVi-Bridge",
    "refined-x2.4": "ours, 2.4 times the steps",
    "refined": "ours |",
    "last-hidden-refined": "the LLM's last layer in our adapter",
    "llm4gen": "LLM4GEN",
    "base": "the pipeline's own text encoder",
    "ella": "ELLA",
    "paper": "the paper's own form",
}


def test_the_table_in_the_readme_is_the_recorded_one() -> None:
    systems = json.loads((ROOT / "docs" / "results" / "benchmark-first-world.json").read_text())["systems"]
    shown = (ROOT / "README.md").read_text().splitlines()
    rows = [line for line in shown if line.startswith("|") and line.count("[") == 1 and "](" not in line]
    assert len(rows) == len(README_ROWS)
    for row, (name, title) in zip(rows, README_ROWS.items(), strict=True):
        system = systems[name]
        held_out, siglip = 100 * system["held_out"]["mean"], system["metrics"]["siglip"]["mean"]
        assert row.startswith(f"| {title}")
        assert row.endswith(f" | {percent(system['overall'])} | {held_out:.1f} | {siglip:.3f} |")


def test_the_readme_says_what_the_shipped_adapter_was_measured_to_do() -> None:
    record = json.loads((ROOT / "docs" / "results" / "scenes.json").read_text())
    base, llm = (100 * record["systems"][name]["metrics"]["scenes"]["mean"] for name in ("base", "llm"))
    shown = (ROOT / "README.md").read_text()
    assert (
        f"draws {llm:.1f} % of {record['suite']['prompts']:,} prompts exactly right; the pipeline's own text encoder "
        f"draws {base:.1f} %" in shown
    )


_FIGURE = re.compile(r"([+-]?[\d.]+)(?: points?)?(?: \w+)? \[([+-]?[\d.]+), ([+-]?[\d.]+)\]")


def _intervals(record: Any) -> Iterator[tuple[float, float, float]]:
    """Every recorded mean with its interval, in points and as it is, and the same seen from the other side."""
    if isinstance(record, list):
        for part in record:
            yield from _intervals(part)
    elif isinstance(record, dict):
        middle = record.get("mean")
        if middle is not None and "low" in record:
            for factor in (1, 100):
                low, high = factor * record["low"], factor * record["high"]
                yield from ((factor * middle, low, high), (-factor * middle, -high, -low))
        for part in record.values():
            yield from _intervals(part)


@pytest.mark.parametrize("page", ["README.md", "docs/explanation/findings.md"])
def test_intervals_in_sentences_are_recorded_ones(page: str) -> None:
    names = (
        "scenes",
        "behaviour",
        "benchmark",
        "benchmark-first-world",
        "benchmark-refined",
        "benchmark-parts",
    )
    results = ROOT / "docs" / "results"
    known = [
        found for name in names for found in _intervals(json.loads((results / f"{name}.json").read_text()))
    ]
    sentences = [line for line in (ROOT / page).read_text().splitlines() if not line.startswith("|")]
    shown = [found.groups() for line in sentences for found in _FIGURE.finditer(line)]
    assert shown
    for figures in shown:
        near = [0.501 * 10 ** -len(figure.partition(".")[2]) for figure in figures]
        assert any(
            all(abs(float(f) - k) < n for f, k, n in zip(figures, recorded, near, strict=True))
            for recorded in known
        ), figures


def in_page_folder(folder: Path) -> dict[str, str]:
    """The environment of a reader: `llmdiff` and `python` are there, and so is configs/."""
    (folder / "configs").symlink_to(ROOT / "configs")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT / "src")}


@pytest.mark.docs
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "page", [p for p in PAGES if any(b.page == p and b.kind == "heavy" for b in BLOCKS)], ids=str
)
def test_a_page_works_from_top_to_bottom(page: Path, tmp_path: Path) -> None:
    environment = in_page_folder(tmp_path)
    for block in blocks(page):
        if block.kind == "serves":
            check_server(block, tmp_path, environment)
        elif block.kind == "heavy":
            command = ["bash", "-euc", block.script] if block.is_shell else [sys.executable, "-c", block.text]
            done = subprocess.run(
                command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"


def check_server(block: Block, folder: Path, environment: dict[str, str]) -> None:
    """The last command of a block listens, answers 200 and ends with status 0 when told to."""
    *_, words = [words for words in commands(block.script) if words[0] in ("llmdiff", "llmdiff-lab")]
    verb = check_verb(words[1:], app if words[0] == "llmdiff" else laboratory)
    url = f"http://127.0.0.1:{verb.params['port']}{block.more}"
    log = folder / "server.log"
    with log.open("w") as file:
        server = subprocess.Popen(words, cwd=folder, env=environment, stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + 600
        while True:
            try:
                with urllib.request.urlopen(url, timeout=10) as answer:
                    assert answer.status == 200
                break
            except OSError:
                assert server.poll() is None, f"{block}\n{log.read_text()}"
                assert time.monotonic() < deadline, f"{block}\n{log.read_text()}"
                time.sleep(1)
        server.send_signal(signal.SIGTERM)
        assert server.wait(120) in (0, -signal.SIGTERM), log.read_text()
    finally:
        server.kill()
        server.wait()
