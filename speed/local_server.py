"""A local OpenAI-compatible server of a chat model, in the place of a closed LLM: `transformers serve`."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO

import httpx2


@contextmanager
def served(model: str, *, start_s: float = 300) -> Iterator[str]:
    """Return a context with the address of a server for this folder or Hub id.

    Raises:
        RuntimeError: the server did not start in time; says what it printed last.
    """
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("transformers")), "serve", model]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            command, stdout=said, stderr=said, env=os.environ | {"HF_HUB_OFFLINE": "1"}
        )
        try:
            _wait(process, f"http://127.0.0.1:{port}/health", start_s, said)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            process.wait(30)


def _wait(process: "subprocess.Popen[bytes]", url: str, start_s: float, said: IO[str]) -> None:
    deadline = time.monotonic() + start_s
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx2.get(url, timeout=2).is_success:
                return
        except httpx2.HTTPError:
            time.sleep(0.5)
    said.seek(0)
    raise RuntimeError(f"transformers serve did not start within {start_s:.0f} s: {said.read()[-2000:]}")
