"""The container's files, read as Docker reads them; building it needs Docker and a network, which tests have not."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from docs.shell import check_verb

from llmdiff.serving.settings import ServeSettings

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def stages() -> list[list[tuple[str, str]]]:
    """The Dockerfile's stages, each a list of instructions and their arguments."""
    text = (ROOT / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    found: list[list[tuple[str, str]]] = []
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        name, _, arguments = line.strip().partition(" ")
        if name == "FROM":
            found.append([])
        found[-1].append((name, arguments.strip()))
    return found


@pytest.fixture(scope="module")
def service() -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["llmdiff"])


def test_the_server_runs_as_a_user_without_rights(
    stages: list[list[tuple[str, str]]], service: dict[str, Any]
) -> None:
    last = [arguments for name, arguments in stages[-1] if name == "USER"][-1]
    assert int(last) > 0  # a number, so that an orchestrator can see that it is not root
    assert service["cap_drop"] == ["ALL"]
    assert service["read_only"] is True
    assert "no-new-privileges:true" in service["security_opt"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert "privileged" not in service
    assert "user" not in service


def test_the_containers_command_is_one_that_the_command_line_takes(
    stages: list[list[tuple[str, str]]], service: dict[str, Any]
) -> None:
    # The form of a list: no shell stands between, so that the signal to stop arrives.
    program, *words = json.loads(dict(stages[-1])["ENTRYPOINT"])
    assert program == "llmdiff"
    options = check_verb([*words, *service["command"]]).params
    assert options["host"] == "0.0.0.0"
    secrets = yaml.safe_load((ROOT / "compose.yaml").read_text())["secrets"]
    assert Path(options["token_file"]) == Path("/run/secrets") / next(iter(secrets))
    assert int(service["stop_grace_period"].removesuffix("s")) > ServeSettings().timeout_s


def test_what_is_copied_is_there_and_sent(stages: list[list[tuple[str, str]]]) -> None:
    sent = (ROOT / ".dockerignore").read_text().splitlines()
    copied = [
        source
        for stage in stages
        for name, arguments in stage
        if name == "COPY" and not arguments.startswith("--from")
        for source in arguments.split()[:-1]
    ]
    assert {"src", "pyproject.toml"} <= set(copied)
    for source in copied:
        assert (ROOT / source).exists()
        assert f"!{source}" in sent
