"""The image API on a real loopback port: queue, batches, clients that leave, a gentle end."""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import openai
import pytest

from llmdiff.drawing.draw import DrawingSettings, draw
from llmdiff.drawing.models import Models, load
from llmdiff.serving.api import create_app
from llmdiff.serving.pipeline_drawer import PipelineDrawer
from llmdiff.serving.server import listen, say_listening
from llmdiff.serving.settings import ServeSettings
from tests.llmdiff.serving.conftest import GatedDrawer, serving, wait_until
from tests.llmdiff.serving.test_api import ASK, alone, drawn, pixels

URL = "/v1/images/generations"


class Running:
    """A server on a port, and threads that ask it."""

    def __init__(self, drawn_by: Any, threads: ThreadPoolExecutor, **settings: Any) -> None:
        self.app = create_app(lambda: drawn_by, ServeSettings(**settings))
        self.batcher = self.app.state.service.batcher
        self._threads = threads
        token = settings.get("token")
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}

    def on(self, url: str) -> None:
        self.http = httpx2.Client(base_url=url, timeout=60, headers=self._headers)
        wait_until(lambda: self.http.get("/ready").status_code == 200)

    def ask(self, **more: Any) -> Future[httpx2.Response]:
        return self._threads.submit(self.http.post, URL, json=ASK | more)

    def figure(self, name: str) -> float:
        lines = self.http.get("/metrics").text.splitlines()
        return next((float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name)), 0.0)


@pytest.fixture
def running() -> Iterator[Callable[..., Any]]:
    from contextlib import ExitStack

    with ThreadPoolExecutor(64) as threads, ExitStack() as servers:

        def start(drawn_by: Any, **settings: Any) -> Running:
            one = Running(drawn_by, threads, **settings)
            url, one.server = servers.enter_context(serving(one.app))
            one.on(url)
            return one

        yield start


def test_compatible_requests_share_a_batch(running: Any, gated: GatedDrawer) -> None:
    server = running(gated, max_batch=3)
    first = server.ask(prompt="a cat")
    gated.begun.acquire()
    asked = {"a dog": {"n": 2}, "two blue dog": {}, "a car": {}, "a red apple": {"num_inference_steps": 3}}
    later = {}
    for waiting, (prompt, more) in enumerate(asked.items(), start=1):
        later[prompt] = server.ask(prompt=prompt, seed=20, **more)
        wait_until(lambda waiting=waiting: server.figure("llmdiff_queue_waiting") == waiting)
    gated.gate.set()
    # First come, first served; what has other steps does not fit.
    assert drawn(first.result())
    replies = {prompt: drawn(reply.result()) for prompt, reply in later.items()}
    assert gated.batches == [["a cat"], ["a dog", "a dog", "two blue dog"], ["a car"], ["a red apple"]]

    for prompt, pictures in replies.items():
        steps = asked[prompt].get("num_inference_steps", 2)
        for seed, picture in enumerate(pictures, start=20):
            expected = alone(gated.drawer, seed, prompt=prompt, steps=steps)
            # Not mixed up; the last bit of a float may round to the next of 255 levels.
            assert np.abs(picture.astype(int) - expected).max() <= 1
    assert server.figure("llmdiff_batch_pictures_count") == 4
    assert server.figure("llmdiff_batch_pictures_sum") == 6


def test_the_queue_is_bounded(running: Any, gated: GatedDrawer) -> None:
    server = running(gated, queue_size=2)
    first = server.ask()
    gated.begun.acquire()
    waiting = [server.ask(n=3) for _ in range(2)]
    wait_until(lambda: server.figure("llmdiff_queue_waiting") == 2)
    reply = server.ask().result()
    assert reply.status_code == 429
    assert reply.json()["error"]["code"] == "queue_full"
    assert 1 <= int(reply.headers["retry-after"]) <= 600
    gated.gate.set()
    assert [len(drawn(one.result())) for one in (first, *waiting)] == [1, 3, 3]
    assert server.ask().result().status_code == 200


def test_time_out(running: Any, gated: GatedDrawer) -> None:
    server = running(gated, timeout_s=0.3)
    drawing, waiting = server.ask(), server.ask()
    for reply in (drawing.result(), waiting.result()):
        assert reply.status_code == 504
        assert reply.json()["error"]["code"] == "timeout"
    # What runs was given up at its next step, and nothing was drawn that nobody waits for.
    wait_until(lambda: server.figure('llmdiff_pictures_total{outcome="abandoned"}') == len(gated.batches))
    assert server.figure('llmdiff_pictures_total{outcome="drawn"}') == 0
    assert server.figure("llmdiff_queue_waiting") == 0


def test_when_the_client_leaves_drawing_stops(running: Any, gated: GatedDrawer) -> None:
    server = running(gated)
    leaving = httpx2.Client(base_url=server.http.base_url, timeout=0.5)
    with pytest.raises(httpx2.TimeoutException):
        leaving.post(URL, json=ASK | {"n": 10})
    leaving.close()
    wait_until(lambda: server.figure('llmdiff_pictures_total{outcome="abandoned"}') == 1)
    assert not gated.gate.is_set()
    # Nor are the other nine drawn.
    gated.gate.set()
    assert drawn(server.ask().result())
    assert len(gated.batches) == 2


def test_who_stays_gets_the_picture_when_a_neighbour_leaves(running: Any, gated: GatedDrawer) -> None:
    server = running(gated, max_batch=4)
    first = server.ask()
    gated.begun.acquire()
    leaving = httpx2.Client(base_url=server.http.base_url, timeout=0.5)
    stays = server.ask(prompt="a dog")
    wait_until(lambda: server.figure("llmdiff_queue_waiting") == 1)
    with pytest.raises(httpx2.TimeoutException):
        leaving.post(URL, json=ASK)
    leaving.close()
    wait_until(lambda: server.figure("llmdiff_queue_waiting") == 1)
    gated.gate.set()
    assert drawn(first.result())
    assert drawn(stays.result())
    assert gated.batches == [["a red cat"], ["a dog"]]


def test_a_gentle_end_finishes_what_was_taken(running: Any, gated: GatedDrawer) -> None:
    server = running(gated)
    drawing = server.ask()
    gated.begun.acquire()
    waiting = server.ask()
    wait_until(lambda: server.figure("llmdiff_queue_waiting") == 1)
    server.batcher.closing = True
    refused = server.ask().result()
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "closing"
    assert server.http.get("/ready").status_code == 503
    server.server.should_exit = True
    gated.gate.set()
    assert drawn(drawing.result())
    assert drawn(waiting.result())


def test_the_openai_client(running: Any, drawer: PipelineDrawer) -> None:
    server = running(drawer, token="correct-horse")
    base_url = str(server.http.base_url.join("/v1"))
    with openai.OpenAI(base_url=base_url, api_key="correct-horse", max_retries=0) as ours:
        assert [model.id for model in ours.models.list()] == ["openmoji"]
        reply = ours.images.generate(
            model="openmoji",
            prompt="a red cat",
            n=2,
            response_format="b64_json",
            extra_body={"seed": 3, "num_inference_steps": 2, "guidance_scale": 3.0},
        )
        for seed, image in zip((3, 4), reply.data, strict=True):
            assert (pixels(base64.b64decode(image.b64_json)) == alone(drawer, seed)).all()
        url = ours.images.generate(prompt="a cat", extra_body={"num_inference_steps": 1}).data[0].url
        assert server.http.get(url).headers["content-type"] == "image/png"
        with pytest.raises(openai.BadRequestError, match="multiple of 8") as caught:
            ours.images.generate(prompt="a cat", size="12x12")
        assert (caught.value.param, caught.value.code) == ("size", "invalid_value")
        with pytest.raises(openai.NotFoundError):
            ours.images.generate(prompt="a cat", model="dall-e-3")
    with (
        openai.OpenAI(base_url=base_url, api_key="wrong-horse", max_retries=0) as theirs,
        pytest.raises(openai.AuthenticationError),
    ):
        theirs.images.generate(prompt="a cat")


def test_the_command_serves_and_ends_gently(adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("correct-horse\n")
    command = [sys.executable, "-m", "llmdiff.cli", "serve", "--adapter", str(adapter)]
    options = ["--port", "0", "--token-file", str(tmp_path / "key")]

    process = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True, env=os.environ)
    try:
        events = map(json.loads, process.stderr)
        port = next(event["port"] for event in events if event["event"] == "listening")
        ready = next(event for event in events if event["event"] == "ready")
        assert ready["model"] == "adapter"
        headers = {"Authorization": "Bearer correct-horse"}
        with (
            httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, headers=headers) as http,
            ThreadPoolExecutor(1) as thread,
        ):
            began = threading.Event()

            def long_order() -> httpx2.Response:
                began.set()
                return http.post(URL, json=ASK | {"num_inference_steps": 100})

            reply = thread.submit(long_order)
            began.wait()
            wait_until(lambda: 'bucket{le="+Inf"}' in http.get("/metrics").text)
            wait_until(lambda: "llmdiff_queue_waiting 0.0" in http.get("/metrics").text)
            process.send_signal(signal.SIGTERM)
            picture = drawn(reply.result())[0]
        settings = DrawingSettings(prompt="a red cat", seed=3, steps=100)
        controller, pipe = load(Models(adapter=str(adapter)))
        with controller.attached(pipe):
            assert (picture == np.asarray(draw(pipe, settings, 3))).all()
        process.wait(60)
        # uvicorn passes the signal on once everything has ended.
        assert process.returncode in (0, -signal.SIGTERM)
    finally:
        process.kill()
        process.communicate()


def test_the_command_refuses_what_cannot_work(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from llmdiff.cli.main import app

    (tmp_path / "blank").write_text("\n")
    for options, words in (
        (["--token-file", str(tmp_path / "none")], "token_file"),
        (["--token-file", str(tmp_path / "blank")], "token is blank"),
        (["--host", "256.1.1.1"], "cannot be listened on"),
    ):
        result = CliRunner().invoke(app, ["serve", *options])
        assert result.exit_code == 1, result.output
        assert result.stderr.startswith("error: ")
        assert words in result.stderr
    result = subprocess.run(
        [sys.executable, "-m", "llmdiff.cli", "serve", "--port", "0", "--adapter", str(tmp_path / "none")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in result.stderr


def test_who_reads_the_address_is_not_refused() -> None:
    with listen("127.0.0.1", 0) as listener:
        say_listening(listener, "docs at")
        with socket.create_connection(listener.getsockname(), timeout=5):
            pass
