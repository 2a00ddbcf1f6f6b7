"""More than the server can do: crowds of clients, and whatever a fuzzer thinks of."""

import base64
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import psutil
import pytest

from llmdiff.serving.api import create_app
from llmdiff.serving.pipeline_drawer import PipelineDrawer
from llmdiff.serving.settings import ServeSettings
from tests.llmdiff.serving.conftest import serving, wait_until
from tests.llmdiff.serving.test_api import ASK, alone, pixels

URL = "/v1/images/generations"
PROMPTS = ("a red cat", "two blue dog", "a car", "a green apple on the left of a dog")


def crowd(drawer: PipelineDrawer, *, clients: int, seconds: float, max_batch: int) -> dict[str, Any]:
    """What clients got who ask without a pause: replies by status, wrong pictures, growth of memory."""
    expected = {(prompt, seed): alone(drawer, seed, prompt=prompt) for prompt in PROMPTS for seed in range(8)}
    app = create_app(lambda: drawer, ServeSettings(queue_size=8, max_batch=max_batch, url_store_bytes=10**6))
    statuses: dict[Any, int] = {}
    differences: list[int] = []
    retry_after: set[str] = set()
    lock = threading.Lock()
    end = threading.Event()

    def ask(url: str, number: int) -> None:
        rng = np.random.default_rng(number)
        with httpx2.Client(base_url=url, timeout=120) as http:
            while not end.is_set():
                prompt, seed = PROMPTS[rng.integers(len(PROMPTS))], int(rng.integers(8))
                reply = http.post(URL, json=ASK | {"prompt": prompt, "seed": seed})
                with lock:
                    statuses[reply.status_code] = statuses.get(reply.status_code, 0) + 1
                if reply.status_code == 200:
                    picture = pixels(base64.b64decode(reply.json()["data"][0]["b64_json"])).astype(int)
                    with lock:
                        differences.append(int(np.abs(picture - expected[prompt, seed]).max()))
                else:
                    with lock:
                        retry_after.add(reply.headers["retry-after"])
                    time.sleep(0.05)

    memory_mb: list[float] = []
    with serving(app) as (url, _):
        wait_until(lambda: httpx2.get(f"{url}/ready").status_code == 200)
        threads = [threading.Thread(target=ask, args=(url, number)) for number in range(clients)]
        for thread in threads:
            thread.start()
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(seconds / 20)
            memory_mb.append(psutil.Process().memory_info().rss / 2**20)
        end.set()
        for thread in threads:
            thread.join()
    return {
        "statuses": statuses,
        "differences": differences,
        "retry_after": retry_after,
        "growth_mb": np.mean(memory_mb[-5:]) - np.mean(memory_mb[5:10]),
    }


def test_a_small_crowd(drawer: PipelineDrawer) -> None:
    got = crowd(drawer, clients=12, seconds=3, max_batch=1)
    assert set(got["statuses"]) <= {200, 429}
    assert got["statuses"][200] == len(got["differences"]) > 0
    # One picture at a time: the bits of drawing alone, and nobody gets another's.
    assert set(got["differences"]) == {0}


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("max_batch", [1, 4])
def test_50_clients_for_a_minute(drawer: PipelineDrawer, max_batch: int) -> None:
    got = crowd(drawer, clients=50, seconds=60, max_batch=max_batch)
    print(got | {"differences": {d: got["differences"].count(d) for d in set(got["differences"])}})
    assert set(got["statuses"]) == {200, 429}
    assert got["statuses"][200] == len(got["differences"])
    assert max(got["differences"]) <= (0 if max_batch == 1 else 1)
    assert all(1 <= int(after) <= 600 for after in got["retry_after"])
    assert got["growth_mb"] < 20


def test_batches_change_no_picture_by_more_than_a_level(drawer: PipelineDrawer) -> None:
    from llmdiff.drawing.draw import DrawingSettings, draw_together

    prompts = [PROMPTS[index % 4] for index in range(8)]
    settings = [DrawingSettings(prompt=prompt, seed=0, steps=2) for prompt in prompts]
    together = draw_together(drawer.pipe, settings, range(8))
    for seed, (prompt, picture) in enumerate(zip(prompts, together, strict=True)):
        difference = np.abs(np.asarray(picture).astype(int) - alone(drawer, seed, prompt=prompt))
        assert difference.max() <= 1


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(600)
def test_whatever_a_fuzzer_sends_nothing_breaks(drawer: PipelineDrawer, tmp_path: Path) -> None:
    app = create_app(lambda: drawer, ServeSettings(max_steps=3, max_pixels=1024))
    with serving(app) as (url, _):
        wait_until(lambda: httpx2.get(f"{url}/ready").status_code == 200)
        checks = (
            "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
        )
        options = ["--checks", checks, "--mode", "all", "--max-examples", "60", "--seed", "1", "--no-color"]
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", *options]
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=500, check=False, cwd=tmp_path
        )
        print(result.stdout)
        assert result.returncode == 0, result.stdout + result.stderr
        requests = app.state.service.metrics.requests.collect()[0].samples
    sent = {
        (one.labels["route"], one.labels["status"]): one.value
        for one in requests
        if one.name.endswith("_total")
    }
    print(sent)
    assert not [status for _, status in sent if status.startswith("5")]
    assert sent[URL, "200"] > 10
    assert sent[URL, "400"] > 50
