"""Users' texts: what ends a line, what is blank, what is stripped, what is refused."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from llmdiff import LLMController
from llmdiff.cli.main import app
from llmdiff.drawing.draw import DrawingSettings
from llmdiff.errors import ConfigError, InputFileError, PromptError, first_line
from llmdiff.evaluation.suites.dpg_bench import DPGBench
from llmdiff.evaluation.suites.own import read_own
from llmdiff.files import clean_text, is_blank, prompt_lines, read_text, text_lines
from llmdiff.language.chat_completions import checked_answer
from llmdiff.serving.settings import read_secret
from llmdiff.training.config import load_config

NO_LINE_ENDS = ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e"]


@pytest.mark.hostile("texts")
@pytest.mark.parametrize("char", NO_LINE_ENDS)
def test_text_that_only_looks_like_a_line_end_stays_whole_everywhere(tmp_path: Path, char: str) -> None:
    text = f"hello{char}world"
    assert text_lines(f"{text}\na\r\nb\rc\n") == [text, "a", "b", "c"]
    assert first_line(ValueError(f"{text}\nmore")) == text
    (tmp_path / "own.txt").write_bytes(f"{text}\n".encode())
    assert [row.prompt for row in read_own(tmp_path / "own.txt").prompts] == [text]
    (tmp_path / "own.jsonl").write_bytes(f'{{"prompt": "a{char if ord(char) > 31 else ""}b"}}\n'.encode())
    assert len(read_own(tmp_path / "own.jsonl").prompts) == 1
    columns = "item_id,text,proposition_id,dependency,category_broad,tuple,question_natural_language"
    (tmp_path / "dpg.csv").write_bytes(f"{columns}\nx,{text},1,0,entity,entity - whole (a),a?\n".encode())
    assert [row.prompt for row in DPGBench().read(tmp_path / "dpg.csv").prompts] == [text]


@pytest.mark.hostile("texts")
@pytest.mark.parametrize("text", ["", " \t", "\ufeff", "\u200b", "\ufeff \u200b \ufeff", "\u2028"])
def test_texts_without_a_visible_character_are_blank(text: str) -> None:
    assert is_blank(text)
    with pytest.raises(PromptError, match="blank"):
        DrawingSettings(prompt=text, seed=1)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("a cat", "a cat"),
        (" a cat ", " a cat "),
        ("\ufeffa cat", "a cat"),
        (" \u200ba cat\u200b \ufeff", " a cat "),
        ("a\u200bb\ufeffc", "a\u200bb\ufeffc"),
        ("\ufeff ", " "),
        ("👩\u200d🚀", "👩\u200d🚀"),
    ],
)
@pytest.mark.hostile("texts")
def test_invisible_characters_are_dropped_at_the_ends_only(text: str, read: str) -> None:
    assert clean_text("prompt", text) == read


@pytest.mark.hostile("texts")
def test_a_byte_order_mark_changes_no_file(tmp_path: Path) -> None:
    for name, content in {
        "own.txt": "a cat\n",
        "own.jsonl": '{"prompt": "a cat"}\n',
        "token": "secret-token\n",
    }.items():
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content.encode())
    assert read_own(tmp_path / "own.txt").prompts[0].prompt == "a cat"
    assert read_own(tmp_path / "own.jsonl").prompts[0].prompt == "a cat"
    assert prompt_lines(tmp_path / "own.txt") == ["a cat"]
    assert read_secret("token", tmp_path / "token", None) == "secret-token"


@pytest.mark.hostile("texts")
@pytest.mark.parametrize("prompt", ['"a cat \\ud83d"', '" \\ufeff "', "[" * 100_000])
def test_a_suite_with_a_bad_prompt_names_it(tmp_path: Path, prompt: str) -> None:
    (tmp_path / "own.jsonl").write_text(f'{{"prompt": "a dog"}}\n{{"prompt": {prompt}}}\n')
    with pytest.raises((ConfigError, PromptError), match=r"line 2|prompt '2'") as caught:
        read_own(tmp_path / "own.jsonl")
    assert "\n" not in str(caught.value)


@pytest.mark.hostile("texts")
def test_files_that_are_no_texts_are_refused_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.txt")
    (tmp_path / "latin.txt").write_bytes("a café\n".encode("latin-1"))
    readers: list[Any] = [read_text, prompt_lines, read_own, lambda path: read_secret("token", path, None)]
    readers += [lambda path: load_config(path, [])]
    for name in ("fifo.txt", "latin.txt", "none.txt"):
        for read in readers:
            with pytest.raises(
                (InputFileError, ConfigError), match=r"regular file|not UTF-8|cannot be read"
            ) as caught:
                read(tmp_path / name)
            assert "\n" not in str(caught.value)


@pytest.mark.hostile("texts")
def test_a_closed_llms_answer_is_one_line_by_the_same_rule() -> None:
    assert checked_answer("\ufeff\na red cat\u2028on a mat\n", 100) == "a red cat on a mat"


@pytest.mark.hostile("texts")
@pytest.mark.parametrize("negative", [5, {"a": 1}, b"bad", [None], ["ok", 3], object()])
def test_negative_prompts_that_are_no_texts_are_refused_by_name(
    sd_pipe: Any, tiny_llm: Any, negative: Any
) -> None:
    with (
        LLMController.create(tiny_llm, sd_pipe).attached(sd_pipe),
        pytest.raises(PromptError, match="negative_prompt is"),
    ):
        sd_pipe.encode_prompt("a cat", "cpu", 1, True, negative_prompt=negative)


@pytest.mark.hostile("texts")
@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", ["prompt", "negative_prompt"])
def test_half_a_character_is_refused_at_every_scale(
    sd_pipe: Any, tiny_llm: Any, scale: float, name: str
) -> None:
    texts = {"prompt": "a cat", "negative_prompt": "a dog", name: "a cat \ud83d"}
    with (
        LLMController.create(tiny_llm, sd_pipe).attached(sd_pipe, scale),
        pytest.raises(PromptError, match="is not valid UTF-8"),
    ):
        sd_pipe(**texts, num_inference_steps=1)


@pytest.mark.hostile("texts")
@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0])
def test_a_byte_order_mark_before_a_prompt_changes_no_picture(
    sd_pipe: Any, tiny_llm: Any, draw: Any, scale: float
) -> None:
    with LLMController.create(tiny_llm, sd_pipe).attached(sd_pipe, scale):
        plain = draw(sd_pipe, "a red cat", negative_prompt="a dog")
        marked = draw(sd_pipe, "\ufeffa red cat", negative_prompt="a dog\u200b")
    assert torch.equal(plain, marked)


@pytest.mark.hostile("texts")
def test_an_argument_that_is_no_utf8_is_one_line(tmp_path: Path) -> None:
    for command in (["generate", b"a cat \xff"], ["generate", "a cat", "--negative-prompt", b"\xff"]):
        ran = subprocess.run(
            [sys.executable, "-m", "llmdiff.cli", *command, "--out", str(tmp_path / "a.png")],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env=os.environ | {"PYTHONUTF8": "1"},
        )
        assert ran.returncode == 1
        assert len(ran.stderr.strip().splitlines()) == 1
        assert "is not valid UTF-8" in ran.stderr


@pytest.mark.hostile("texts")
def test_a_mark_before_an_argument_is_no_part_of_the_prompt(tmp_path: Path) -> None:
    ran = CliRunner().invoke(app, ["generate", "\ufeff", "--out", str(tmp_path / "a.png")])
    assert ran.exit_code == 1
    assert "blank" in ran.output
    assert DrawingSettings(prompt="\ufeffa cat", negative_prompt="\u200bdog", seed=1) == DrawingSettings(
        prompt="a cat", negative_prompt="dog", seed=1
    )
