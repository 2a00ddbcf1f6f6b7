"""The study's server: what raters see and may do, and that no acknowledged answer is ever lost."""

import base64
import hashlib
import io
import json
import random
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx2
import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from llmdiff.drawing.pictures import save_png
from llmdiff_lab.study.api import create_study_app
from llmdiff_lab.study.study import create_study, open_study

INJECTED = "<img src=x onerror=alert(1)>"
ALL_LEFT = {"choices": {"alignment": "left", "quality": "left", "details": "tie"}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for system in ("base", "llm"):
        for number in range(60):
            image = Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8))
            facts = {"prompt": f"{INJECTED} {number}", "seed": number, "llm": "smollm2"}
            save_png(image, tmp_path / system / f"{number}.png", facts)
    sources = {"base": tmp_path / "base", "llm": tmp_path / "llm"}
    create_study(tmp_path / "study", sources, title=INJECTED, check_every=20)
    return tmp_path / "study"


@pytest.fixture
def http(folder: Path) -> Iterator[TestClient]:
    app = create_study_app(folder, max_raters=3)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client
    app.state.store.close()


def test_a_study_from_the_first_page_to_the_last_answer(http: TestClient, folder: Path) -> None:
    assert http.get("/api/study").json()["questions"][0]["id"] == "alignment"
    begun = http.post("/api/raters").json()
    rater = f"/api/raters/{begun['rater']}"
    assert http.get(begun["link"]).status_code == 200
    assert http.get(rater).json() == {"total": 63, "done": 0, "next": 0}
    for position in range(63):
        pair = http.get(f"{rater}/pairs/{position}").json()
        # Neither the systems nor which pairs are checks can be told from what a rater gets.
        assert set(pair) == {"position", "prompt", "left", "right", "choices"}
        assert not re.search("base|llm|smollm2|check", json.dumps(pair))
        for side in ("left", "right"):
            reply = http.get(pair[side])
            assert reply.headers["content-type"] == "image/png"
            image = Image.open(io.BytesIO(reply.content))
            assert (image.size, image.info) == ((8, 8), {})
        reply = http.put(f"{rater}/pairs/{position}", json=ALL_LEFT)
        assert reply.json()["done"] == position + 1
    assert http.get(rater).json() == {"total": 63, "done": 63, "next": None}
    assert http.get(f"{rater}/pairs/5").json()["choices"] == ALL_LEFT["choices"]
    store = open_study(folder)
    assert len(store.answers()) == 63 * 3
    store.close()


def test_nothing_of_a_rater_is_kept_but_a_random_token(http: TestClient, folder: Path) -> None:
    headers = {"User-Agent": "Somebodys-Browser", "X-Forwarded-For": "203.0.113.7"}
    token = http.post("/api/raters", headers=headers).json()["rater"]
    http.put(f"/api/raters/{token}/pairs/0", json=ALL_LEFT, headers=headers)
    with sqlite3.connect(folder / "study.sqlite") as connection:
        columns = {
            table: [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            for table in ("raters", "places", "answers")
        }
    connection.close()
    assert columns == {
        "raters": ["id", "token"],
        "places": ["rater", "position", "pair", "first_is_left"],
        "answers": ["rater", "position", "question", "choice"],
    }
    for path in folder.glob("study.sqlite*"):
        assert b"Somebody" not in path.read_bytes()
        assert b"203.0.113" not in path.read_bytes()


def test_the_page_runs_nothing_but_its_own_script(http: TestClient) -> None:
    page = http.get("/")
    policy = page.headers["content-security-policy"]
    for tag in ("script", "style"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page.text, re.S)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    # Self-contained, and what came from outside reaches it as JSON only and is set as text.
    assert not re.search(
        r"(src|href)=\"|https?://|innerHTML|insertAdjacent|document\.write|eval\(", page.text
    )
    assert INJECTED not in page.text
    reply = http.get("/api/study")
    assert reply.json()["title"] == INJECTED
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-content-type-options"] == "nosniff"


def test_what_is_refused(http: TestClient, folder: Path) -> None:
    token = http.post("/api/raters").json()["rater"]
    pair = f"/api/raters/{token}/pairs/0"
    for body in (
        {},
        {"choices": {}},
        {"choices": {"alignment": "left"}},
        {"choices": ALL_LEFT["choices"] | {"colour": "left"}},
        {"choices": ALL_LEFT["choices"] | {"quality": "up"}},
        {"choices": dict.fromkeys(map(str, range(50)), "left")},
        {"choices": [], "more": 1},
    ):
        reply = http.put(pair, json=body)
        assert reply.status_code == 400, body
        assert reply.json()["error"]["code"] == "invalid_value"
    for path in ("/api/raters/nobody", f"/api/raters/{token}/pairs/63", "/api/raters/nobody/pairs/0"):
        assert http.get(path).status_code == 404
    assert http.get(f"/api/raters/{token}/pairs/-1").status_code == 400
    assert http.get(f"/api/raters/{token}/pairs/{10**30}").status_code == 400
    assert http.get(f"/api/raters/{'x' * 100}").status_code == 400
    for climbing in (
        "../study.sqlite",
        "..%2fstudy.sqlite",
        "%2e%2e%2f%2e%2e%2fbase%2f0",
        "....//base/0",
        "%00",
    ):
        for suffix in ("", ".png"):
            reply = http.get(f"/pictures/{climbing}{suffix}")
            assert reply.status_code == 404
            assert b"SQLite" not in reply.content
    long = http.put(pair, content=b"x" * 20_000, headers={"Content-Type": "application/json"})
    assert long.status_code == 413
    assert http.delete(pair).status_code == 405
    assert http.get("/docs").status_code == 404
    store = open_study(folder)
    assert store.answers() == []
    for _ in range(3):
        begun = http.post("/api/raters")
        assert begun.status_code == 201
        assert http.put(f"/api/raters/{begun.json()['rater']}/pairs/0", json=ALL_LEFT).status_code == 200
    full = http.post("/api/raters")
    assert (full.status_code, full.json()["error"]["code"]) == (403, "study_full")
    store.close()


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"choices": NaN}', b"[" * 9999])
def test_malformed_answers(http: TestClient, folder: Path, body: bytes) -> None:
    token = http.post("/api/raters").json()["rater"]
    headers = {"Content-Type": "application/json"}
    reply = http.put(f"/api/raters/{token}/pairs/0", content=body, headers=headers)
    assert reply.status_code == 400
    assert reply.json()["error"]["type"] == "invalid_request_error"
    # Another site's form can send plain text without asking first, so only JSON that says so is read.
    text = http.put(f"/api/raters/{token}/pairs/0", content=json.dumps(ALL_LEFT))
    assert text.status_code == 400
    assert http.get(f"/api/raters/{token}").json()["done"] == 0


@pytest.mark.parametrize(
    "token", ["<script>alert(1)</script>", "%3Cscript%3E", "' OR 1=1 --", "..%2f..", "%00"]
)
def test_links_that_nobody_was_given(http: TestClient, token: str) -> None:
    page = http.get(f"/r/{token}")
    # The page is the same for every link: what stands in it reaches the page as text, by its own script.
    assert "<script>alert" not in page.text
    for path in (f"/api/raters/{token}", f"/api/raters/{token}/pairs/0"):
        reply = http.get(path)
        assert reply.status_code == 404
        assert "alert" not in reply.text


def killed_at_random_instants(folder: Path, times: int) -> int:
    """Kill the server again and again while raters answer; return how many acknowledged answers there are."""
    command = [sys.executable, "-m", "llmdiff_lab.cli", "study", "serve", str(folder), "--port", "0"]
    rng = random.Random(0)
    acknowledged: dict[tuple[str, int], dict[str, str]] = {}
    for _ in range(times):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            lines = map(json.loads, process.stderr)
            port = next(line["port"] for line in lines if line["event"] == "listening")
            threading.Thread(target=lambda lines=lines: [None for _ in lines], daemon=True).start()
            address = f"http://127.0.0.1:{port}"
            killer = threading.Timer(rng.uniform(0.05, 1.5), process.send_signal, [signal.SIGKILL])

            def rate(address: str, seed: int) -> None:
                own = random.Random(seed)
                with httpx2.Client(base_url=address, timeout=20) as client:
                    try:
                        token = client.post("/api/raters").json()["rater"]
                        while True:
                            at = own.randrange(63)
                            choices = {
                                question: own.choice(["left", "right", "tie"])
                                for question in ("alignment", "quality", "details")
                            }
                            path = f"/api/raters/{token}/pairs/{at}"
                            # Not known until acknowledged: the old answer or the new one may be there.
                            acknowledged.pop((token, at), None)
                            if client.put(path, json={"choices": choices}).status_code == 200:
                                acknowledged[token, at] = choices
                    except httpx2.HTTPError:
                        return

            wait_for = [threading.Thread(target=rate, args=(address, rng.randrange(10**6))) for _ in range(3)]
            with httpx2.Client(base_url=address) as client:
                while client.get("/health").status_code != 200:
                    time.sleep(0.01)
            for thread in wait_for:
                thread.start()
            killer.start()
            for thread in wait_for:
                thread.join()
            process.wait(30)
            assert process.returncode == -signal.SIGKILL
        finally:
            process.kill()
            process.communicate()
        store = open_study(folder)
        with closing(sqlite3.connect(folder / "study.sqlite")) as file:
            assert file.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        for (token, at), choices in acknowledged.items():
            assert store.shown(token, at).choices == choices
        # What was not acknowledged is there as a whole or not at all.
        assert len(store.answers()) % 3 == 0
        store.close()
    return len(acknowledged)


def test_killed_at_any_instant_no_acknowledged_answer_is_lost(folder: Path) -> None:
    assert killed_at_random_instants(folder, times=2) > 10


@pytest.mark.slow
@pytest.mark.soak
def test_killed_at_20_random_instants(folder: Path) -> None:
    assert killed_at_random_instants(folder, times=20) > 100
