"""The container's files say what they must; building it needs Docker and a network, which tests have not."""

import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from llmdiff.cli.main import app
from llmdiff.serving.settings import ServeSettings

ROOT = Path(__file__).parents[3]


@pytest.fixture
def dockerfile() -> str:
    return (ROOT / "Dockerfile").read_text()


def test_the_server_runs_as_nobody_in_particular(dockerfile: str) -> None:
    last_stage = dockerfile[dockerfile.rindex("\nFROM ") :]
    assert re.search(r"^USER [1-9]\d*$", last_stage, re.M)
    assert last_stage.index("USER ") < last_stage.index("ENTRYPOINT ")
    assert 'ENTRYPOINT ["llmdiff", "serve"' in last_stage
    service = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["llmdiff"]
    assert service["cap_drop"] == ["ALL"]
    assert service["read_only"] is True
    assert "no-new-privileges:true" in service["security_opt"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert "privileged" not in service


def test_what_is_copied_is_there_and_sent(dockerfile: str) -> None:
    sent = (ROOT / ".dockerignore").read_text()
    for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile, re.M):
        for source in sources.split():
            assert (ROOT / source).exists()
            assert f"!{source}\n" in sent


def test_options_exist_and_time_is_enough(dockerfile: str) -> None:
    options = CliRunner().invoke(app, ["serve", "--help"]).stdout
    service = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["llmdiff"]
    for option in re.findall(r"--[a-z-]+", dockerfile[dockerfile.rindex("ENTRYPOINT") :]) + [
        part for part in service["command"] if part.startswith("--")
    ]:
        assert option in options
    assert int(service["stop_grace_period"].removesuffix("s")) > ServeSettings().timeout_s
