"""`--via` against a real OpenAI-compatible server: `transformers serve` with SmolLM2 stands in for the closed LLM."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx2
import pytest

from llmdiff.language.gguf import embedded_llm_folder
from llmdiff.language.proxy import ClosedLLM, ProxySettings

pytestmark = [pytest.mark.slow, pytest.mark.soak, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server of SmolLM2's own chat model."""
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log"
    command = [Path(sys.executable).with_name("transformers"), "serve", embedded_llm_folder()]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with log.open("w") as said:
        process = subprocess.Popen(
            list(map(str, command)), stdout=said, stderr=said, env=os.environ | {"HF_HUB_OFFLINE": "1"}
        )
    try:
        for _ in range(600):
            assert process.poll() is None, log.read_text()[-2000:]
            try:
                if httpx2.get(f"http://127.0.0.1:{port}/health", timeout=2).is_success:
                    break
            except httpx2.HTTPError:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(30)


def test_a_real_model_rewords_a_prompt_and_is_asked_once(server: str, tmp_path: Path) -> None:
    settings = ProxySettings(
        url=server, model=str(embedded_llm_folder()), timeout_s=240, budget_s=480, max_characters=2000
    )
    prompt = "the animal that barks, to the left of a red star"
    answers = ClosedLLM(settings, cache=tmp_path).answers(prompt)
    assert len(answers) == 1
    assert len(answers[0].split()) > 2
    assert answers[0] != prompt
    # Kept on disk: the same answer without the server.
    unreachable = ProxySettings(
        url=server,
        model=str(embedded_llm_folder()),
        timeout_s=0.001,
        budget_s=0.002,
        retries=0,
        max_characters=2000,
    )
    assert ClosedLLM(unreachable, cache=tmp_path).answers(prompt) == answers


def test_a_model_that_the_server_does_not_have_leaves_the_prompt_alone(server: str) -> None:
    settings = ProxySettings(url=server, model="no-such/model", timeout_s=60, budget_s=60, retries=0)
    with pytest.warns(UserWarning, match="no-such/model|closed LLM"):
        assert ClosedLLM(settings).answers("a dog") == ()
