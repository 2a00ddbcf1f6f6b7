"""What a command says when the machine, not its user, is in the way; and numbers in Python."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors import SafetensorError
from typer.testing import CliRunner

from llmdiff.adapter.attach import attach
from llmdiff.checks import bounds
from llmdiff.cli import main as cli
from llmdiff.controller import LLMController
from llmdiff.drawing.attention_maps import draw_with_maps
from llmdiff.drawing.draw import DrawingSettings
from llmdiff.drawing.models import Models, usable_device
from llmdiff.drawing.pictures import save_png
from llmdiff.errors import ConfigError, LLMDiffError, OutputError
from llmdiff.evaluation.picture_store import PictureJob, PictureStore, draw_missing
from llmdiff.evaluation.suites.suite import SuitePrompt
from llmdiff.files import writable_folder, write_whole
from llmdiff.language.whole_weights import damage_named
from llmdiff.serving.server import listen
from llmdiff.serving.settings import ServeSettings
from llmdiff_lab.cli.main import app as laboratory
from llmdiff_lab.study.study import create_study

numbers = pytest.mark.hostile("numbers and options")
places = pytest.mark.hostile("files and folders")


def in_new_process(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llmdiff.cli", *map(str, arguments)]
    return subprocess.run(
        command,
        text=True,
        timeout=200,
        check=False,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )


@numbers
@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("guidance_scale", value) for value in (float("nan"), float("inf"), -1.0, "3", None, 1e9)),
        *(("seed", value) for value in (-1, 2**63, 1.5, True, "1")),
        *(("number", value) for value in (0, 2**32, 2**63)),
        *(("steps", value) for value in (0, 2**31, 2**63, 20.0)),
    ],
)
def test_a_number_of_a_drawing_is_named(name: str, value: Any) -> None:
    fields: dict[str, Any] = {"prompt": "a cat", "seed": 0, name: value}
    with pytest.raises(ConfigError, match=f"{name} is .*, expected a (whole )?number from"):
        DrawingSettings(**fields)


@numbers
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1, 1.1, "1", True, [1]], ids=repr)
def test_a_scale_is_a_number_from_0_to_1(value: Any, sd_pipe: Any, tiny_llm: Any) -> None:
    with pytest.raises(ConfigError, match="scale is"):
        Models(scale=value)
    controller = LLMController.create(tiny_llm, sd_pipe)
    with pytest.raises(ConfigError, match="scale is"):
        attach(sd_pipe, tiny_llm, controller.adapter, scale=value)


def test_numbers_of_numpy_are_numbers() -> None:
    assert bounds.SCALE.holds(np.float32(0.5))
    assert bounds.SEED.holds(np.int64(5))
    assert not bounds.SEED.holds(np.float32(5))
    assert DrawingSettings(prompt="a", seed=np.int64(3), guidance_scale=7).seed == 3  # type: ignore[arg-type]


@numbers
@pytest.mark.parametrize("name", ["timeout_s", "body_timeout_s", "url_lifetime_s"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -1.0])
def test_a_time_out_is_finite(name: str, value: float) -> None:
    fields: dict[str, Any] = {name: value}
    with pytest.raises(ConfigError, match=f"{name} is"):
        ServeSettings(**fields)


@numbers
@pytest.mark.parametrize(
    "name", ["meta", "", "abacus", "cuda:99", "hpu", "privateuseone", "a" * 5000, "cpu:-1", "\ud800"]
)
def test_a_device_that_holds_nothing(name: str) -> None:
    with pytest.raises(ConfigError, match="is not available here"):
        usable_device(name)


@numbers
@pytest.mark.parametrize("host", ["", "a\0b", "a" * 300, "é" * 70, "\ud800", "..", "256.1.1.1"])
def test_an_address_that_is_none(host: str) -> None:
    with pytest.raises(ConfigError, match="host"):
        listen(host, 0)


@numbers
@pytest.mark.parametrize("seed", ["²", "9" * 5000, str(2**63), "-1", "1.5", "a", "٣"])
def test_a_study_reads_seeds_that_are_numbers(tmp_path: Path, seed: str) -> None:
    for system in ("a", "b"):
        save_png(Image.new("RGB", (8, 8)), tmp_path / system / "0.png", {"prompt": "a cat", "seed": seed})
    with pytest.raises(ConfigError, match="seed") as caught:
        create_study(tmp_path / "study", {"a": tmp_path / "a", "b": tmp_path / "b"})
    assert len(str(caught.value)) < 1000
    listed = tmp_path / "list.jsonl"
    for value in ("true", "-1", str(2**63), '"1"', "1.5"):
        listed.write_text(f'{{"prompt": "a cat", "image": "a/0.png", "seed": {value}}}\n')
        with pytest.raises(ConfigError, match="seed is"):
            create_study(tmp_path / "study", {"a": listed, "b": listed})
    assert not (tmp_path / "study").exists()


@numbers
def test_maps_of_words_that_nothing_looks_at(sd_pipe: Any, tiny_llm: Any) -> None:
    controller = LLMController.create(tiny_llm, sd_pipe)
    with pytest.raises(ConfigError, match="scale is 0"):
        draw_with_maps(controller, sd_pipe, "a cat", 0.0, steps=1)


@numbers
def test_settings_that_drew_nothing_do_not_keep_others_from_drawing(tmp_path: Path) -> None:
    row, job = SuitePrompt(id="0", prompt="a"), PictureJob(name="0", prompt="a", seed=0)
    store = PictureStore(tmp_path, [(row, [job])])

    def fails(prompts: list[str], seeds: list[int]) -> Any:
        raise ValueError("too many steps")

    def draws(prompts: list[str], seeds: list[int]) -> Any:
        return np.zeros((len(prompts), 8, 8, 3), dtype=np.uint8)

    store.check_settings({"steps": 2000})
    with pytest.raises(LLMDiffError, match="too many steps"):
        draw_missing(lambda: {"base": fails}, ["base"], store)
    store.check_settings({"steps": 20})
    draw_missing(lambda: {"base": draws}, ["base"], store)
    with pytest.raises(ConfigError, match="steps 20, expected 30"):
        store.check_settings({"steps": 30})


@places
def test_a_standard_output_that_is_full() -> None:
    for arguments in (["--version"], ["doctor"]):
        with Path("/dev/full").open("w") as full:
            done = in_new_process(*arguments, stdout=full)
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
        assert "No space left on device" in done.stderr
        assert len(done.stderr.splitlines()) == 1


@places
@pytest.mark.parametrize("home", ["/proc/nowhere", "/dev/null/llmdiff", "/dev/full"])
def test_a_home_that_cannot_be_written(home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMDIFF_HOME", home)
    result = CliRunner().invoke(
        laboratory, ["inspect", "scores", "a cat", "--llm", "smollm2-135m", "--out", str(tmp_path / "out")]
    )
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    lines = [line for line in result.stderr.splitlines() if not line.startswith(("loading", "converting"))]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")


@places
def test_a_full_disk_is_not_called_damage() -> None:
    with pytest.raises(OutputError, match="free disk space"), damage_named("adapter 'a'"):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@places
def test_what_safetensors_says_of_a_full_disk(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.raises(OutputError, match="free disk space"), damage_named("llm 'a'"):
            save_file({"a": torch.zeros(10_000)}, tmp_path / "a.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


@places
def test_many_may_try_one_folder_at_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: writable_folder(tmp_path / "out"), range(400)))
    assert set(found) == {tmp_path / "out"}
    assert list((tmp_path / "out").iterdir()) == []


@places
@pytest.mark.parametrize("name", ["a" * 255, "é" * 120, "a" * 240 + ".png"])
def test_a_long_name_is_written_whole(tmp_path: Path, name: str) -> None:
    write_whole(tmp_path / name, "text")
    assert [path.name for path in tmp_path.iterdir()] == [name]


@places
@pytest.mark.parametrize("name", ["a" * 256, "é" * 128])
def test_a_name_that_is_too_long_is_said(tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError, match="File name too long"):
        write_whole(tmp_path / name, "text")


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("by zero\nsecond line")

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr("llmdiff.cli.diagnosis.examine", fail)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_bug_is_one_line_and_a_traceback_where_asked(
    broken: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["llmdiff", "doctor"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 70
    said = capsys.readouterr().err
    assert said.startswith("internal error: ZeroDivisionError: by zero (")
    assert len(said.splitlines()) == 1
    monkeypatch.setattr(sys, "argv", ["llmdiff", "--traceback", "doctor"])
    with pytest.raises(ZeroDivisionError):
        cli.main()


# A library that swallows whatever is raised while it is imported, as some do; then it goes on for long.
_SWALLOWS = """
import time
print("importing", flush=True)
try:
    time.sleep(60)
except BaseException:
    pass
time.sleep(60)
"""


@places
@pytest.mark.parametrize("when", ["import", "work"])
def test_ctrl_c_ends_a_command(tmp_path: Path, when: str) -> None:
    (tmp_path / "swallows.py").write_text(_SWALLOWS)
    inside = "import swallows" if when == "import" else "exec(open('swallows.py').read())"
    code = (
        "import sys; from llmdiff.cli import diagnosis, main as cli\n"
        f"def examine(): {inside}\n"
        "diagnosis.examine = examine\nsys.argv = ['llmdiff', 'doctor']\ncli.main()"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(tmp_path)])}
    started = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A run of the tests in the background ignores Ctrl-C, and so would what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert started.stdout is not None
        assert started.stdout.readline() == "importing\n"
        began = time.monotonic()
        for _ in range(1 if when == "import" else 2):
            time.sleep(0.5)
            started.send_signal(signal.SIGINT)
        _, said = started.communicate(timeout=30)
    finally:
        started.kill()
    assert time.monotonic() - began < 20
    assert started.returncode == 130
    assert "Traceback" not in said


def test_ctrl_c_that_is_ignored_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    monkeypatch.setattr(sys, "argv", ["llmdiff", "--version"])
    try:
        with pytest.raises(SystemExit):
            cli.main()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@places
def test_a_study_whose_list_is_nested_a_thousand_deep(tmp_path: Path) -> None:
    for name, text in {"a": "[" * 100_000, "b": '{"prompt": ' * 10_000}.items():
        (tmp_path / f"{name}.jsonl").write_text(text)
        result = CliRunner().invoke(
            laboratory,
            [
                "study",
                "create",
                "--out",
                str(tmp_path / "study"),
                *(f"--system={s}={tmp_path / name}.jsonl" for s in "xy"),
            ],
        )
        assert result.exit_code == 1
        assert isinstance(result.exception, SystemExit)
        assert len(result.stderr.splitlines()) == 1
    shutil.rmtree(tmp_path / "study", ignore_errors=True)
