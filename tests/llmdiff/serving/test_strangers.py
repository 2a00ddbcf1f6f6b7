"""Slow clients, pages of other sites, names of strangers, and impatience at the terminal."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.testclient import TestClient

from llmdiff.serving.api import create_app
from llmdiff.serving.connections import BoundedConnection
from llmdiff.serving.password_form import PasswordForm
from llmdiff.serving.request_guard import RequestGuard
from llmdiff.serving.settings import ServeSettings
from llmdiff_lab.study.api import create_study_app
from llmdiff_lab.study.study import open_study
from tests.llmdiff.serving.conftest import GatedDrawer, serving
from tests.llmdiff.serving.test_api import ASK
from tests.llmdiff_lab.study.test_study_api import ALL_LEFT, folder  # noqa: F401 (a fixture)

URL = "/v1/images/generations"
HEAD = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"


def connected(url: str) -> socket.socket:
    port = int(url.rpartition(":")[2])
    return socket.create_connection(("127.0.0.1", port), timeout=20)


def cut_off_after_s(client: socket.socket, *, feed: bytes = b"") -> float:
    """Seconds until the server ends a connection whose client sends a byte now and then, or nothing."""
    began = time.monotonic()
    client.settimeout(0.05)
    while time.monotonic() - began < 15:
        try:
            if feed:
                client.sendall(feed)
            if client.recv(4096) == b"":
                break
        except TimeoutError:
            continue
        except OSError:
            break
    else:
        raise AssertionError("the connection was held open")
    return time.monotonic() - began


@pytest.mark.parametrize(
    ("sent", "feed"),
    [(b"", b""), (HEAD, b""), (HEAD, b"X: y\r\n"), (HEAD + b"\r\n", b"GET"), (b"\x16\x03\x01", b"")],
)
def test_headers_that_never_end_are_not_waited_for(
    drawer: Any, monkeypatch: pytest.MonkeyPatch, sent: bytes, feed: bytes
) -> None:
    monkeypatch.setattr(BoundedConnection, "header_timeout_s", 0.5)
    with serving(create_app(lambda: drawer, ServeSettings())) as (url, _), connected(url) as client:
        client.sendall(sent)
        if sent.endswith(b"\r\n\r\n"):  # a whole request is answered; the next one is what never ends
            assert client.recv(4096).startswith(b"HTTP/1.1 200")
            client.sendall(feed)
            feed = b""
        assert cut_off_after_s(client, feed=feed) < 5
        # Nor does it hurt those who are quick, and come back after a while.
        with httpx2.Client(base_url=url) as http:
            assert http.get("/health").status_code == 200
            time.sleep(0.8)
            assert http.get("/health").status_code == 200


def test_a_long_drawing_is_no_slow_header(gated: GatedDrawer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BoundedConnection, "header_timeout_s", 0.3)
    with serving(create_app(lambda: gated, ServeSettings())) as (url, _):
        threading.Timer(1.2, gated.gate.set).start()
        time.sleep(0.2)
        assert httpx2.post(f"{url}{URL}", json=ASK, timeout=30).status_code == 200


def test_replies_that_nobody_reads_are_not_kept(drawer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BoundedConnection, "write_timeout_s", 0.5)
    with serving(create_app(lambda: drawer, ServeSettings())) as (url, server), connected(url) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(0.5)
        try:
            while True:  # until both sides' buffers are full of pages
                client.sendall(b"GET /docs HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100)
        except OSError:
            pass
        end = time.monotonic() + 10
        while server.server_state.connections:
            assert time.monotonic() < end
            time.sleep(0.05)


def test_there_are_no_more_connections_than_the_machine_holds(
    drawer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BoundedConnection, "max_connections", 3)
    with serving(create_app(lambda: drawer, ServeSettings())) as (url, _):
        held = [connected(url) for _ in range(3)]
        time.sleep(0.2)
        with connected(url) as one_more:
            assert cut_off_after_s(one_more) < 2
        held.pop().close()
        time.sleep(0.2)
        assert httpx2.get(f"{url}/health").status_code == 200
        for client in held:
            client.close()


def test_many_large_requests_at_once_are_not_all_held(drawer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RequestGuard, "max_held_bytes", 3_000_000)
    path = b"POST /v1/images/edits HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2000000\r\n\r\n"
    with serving(create_app(lambda: drawer, ServeSettings())) as (url, _):
        with connected(url) as slow, connected(url) as other:
            slow.sendall(path + b"x" * 1_900_000)
            time.sleep(0.5)
            other.sendall(path + b"x" * 2_000_000)
            assert other.recv(4096).startswith(b"HTTP/1.1 503")
            slow.sendall(b"x" * 100_000)
            assert slow.recv(4096).startswith(b"HTTP/1.1 400")
        with connected(url) as later:  # nothing is held any more
            later.sendall(path + b"x" * 2_000_000)
            assert later.recv(4096).startswith(b"HTTP/1.1 400")


FOREIGN = [
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://testserver:81"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site", "Origin": "http://testserver"},
]


@pytest.mark.parametrize("headers", FOREIGN)
def test_pages_of_other_sites_ask_for_nothing(drawer: Any, folder: Path, headers: dict[str, str]) -> None:  # noqa: F811
    own = [{}, {"Origin": "http://testserver"}, {"Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}]
    with TestClient(create_app(lambda: drawer, ServeSettings())) as http:
        reply = http.post(URL, json=ASK, headers=headers)
        assert (reply.status_code, reply.json()["error"]["code"]) == (403, "cross_site")
        for one in own:
            assert http.post(URL, json={}, headers=one).status_code in (400, 503)
    # A key is what no page of a stranger has.
    with TestClient(create_app(lambda: drawer, ServeSettings(token="correct-horse"))) as http:
        http.headers["Authorization"] = "Bearer correct-horse"
        assert http.post(URL, json={}, headers=headers).status_code == 400
    app = create_study_app(folder)
    with TestClient(app) as http:
        assert http.post("/api/raters", headers=headers).status_code == 403
        for one in own:
            assert http.post("/api/raters", headers=one).status_code == 201
    app.state.store.close()


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8000", 200), ("127.0.0.1:8000", 200), ("[::1]:8000", 200), ("192.168.1.5", 200), ("llmdiff", 200),
        ("box.local:80", 200), ("pictures.example", 200), ("evil.example", 421), ("evil.example:8000", 421),
        ("127.0.0.1.evil.example", 421), ("localhost.evil.example.", 421), ("[x.y", 421),
    ],
)  # fmt: skip
def test_names_that_strangers_registered_lead_nowhere(drawer: Any, host: str, status: int) -> None:
    settings = ServeSettings(public_url="https://pictures.example/llm")
    with TestClient(create_app(lambda: drawer, settings)) as http:
        assert http.get("/v1/models", headers={"Host": host}).status_code == status
    with TestClient(create_app(lambda: drawer, ServeSettings(token="correct-horse"))) as http:
        headers = {"Host": host, "Authorization": "Bearer correct-horse"}
        assert http.get("/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("host", "allowed"), [("127.0.0.1:8001", True), ("study.example", True), ("evil.example", False)]
)
def test_a_study_answers_to_its_own_names_only(folder: Path, host: str, allowed: bool) -> None:  # noqa: F811
    app = create_study_app(folder, public_url="https://study.example")
    with TestClient(app) as http:
        for path in ("/", "/api/study"):
            assert http.get(path, headers={"Host": host}).status_code == (200 if allowed else 421)
        sent = {"Host": host, "Origin": f"http://{host}"}
        assert http.post("/api/raters", headers=sent).status_code == (201 if allowed else 421)
    app.state.store.close()


def test_who_guesses_passwords_keeps_nobody_else_out() -> None:
    async def page(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError

    form = PasswordForm(page, password="correct horse")

    async def login(address: str, password: bytes) -> int:
        sent: list[int] = []

        async def receive() -> dict[str, object]:
            return {"type": "http.request", "body": b"password=" + password, "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                sent.append(message["status"])

        scope = {"type": "http", "method": "POST", "path": "/login", "headers": [], "query_string": b""}
        scope |= {"client": (address, 5000), "scheme": "http", "server": ("localhost", 80)}
        await form(scope, receive, send)
        return sent[0]

    async def all_at_once() -> tuple[int, float, list[int]]:
        guessers = [asyncio.ensure_future(login("203.0.113.7", b"wrong")) for _ in range(40)]
        await asyncio.sleep(0.1)
        began = time.monotonic()
        status = await login("198.51.100.1", b"correct horse")
        took_s = time.monotonic() - began
        statuses = [await one for one in guessers[-24:]]
        for one in guessers:
            one.cancel()
        await asyncio.gather(*guessers, return_exceptions=True)
        return status, took_s, statuses

    status, took_s, refused = asyncio.run(all_at_once())
    assert (status, refused) == (303, [429] * 24)
    assert took_s < 0.4
    assert not form._guessing


def test_who_only_opens_a_study_takes_nobodys_place(folder: Path) -> None:  # noqa: F811
    app = create_study_app(folder, max_raters=3)
    with TestClient(app) as http:
        begun = [http.post("/api/raters").json()["rater"] for _ in range(10)]
        # The last ones can go on, the first ones begin again.
        assert [http.get(f"/api/raters/{token}").status_code for token in begun] == [404] * 7 + [200] * 3
        for token in begun[-3:]:
            assert http.put(f"/api/raters/{token}/pairs/0", json=ALL_LEFT).status_code == 200
        assert http.post("/api/raters").json()["error"]["code"] == "study_full"
        for token in begun[-3:]:
            assert http.put(f"/api/raters/{token}/pairs/1", json=ALL_LEFT).status_code == 200
    app.state.store.close()
    store = open_study(folder)
    assert (store.raters(), len(store.answers())) == (3, 3 * 2 * 3)
    store.close()


def test_a_first_answer_counts_the_places_again(folder: Path) -> None:  # noqa: F811
    app = create_study_app(folder, max_raters=1)
    store = app.state.store
    one, other = store.new_rater(max_raters=2), store.new_rater(max_raters=2)
    with TestClient(app) as http:
        assert http.put(f"/api/raters/{one}/pairs/0", json=ALL_LEFT).status_code == 200
        assert http.put(f"/api/raters/{other}/pairs/0", json=ALL_LEFT).json()["error"]["code"] == "study_full"
    store.close()


def test_a_second_interrupt_gives_up_and_says_so(adapter: Path) -> None:
    command = [sys.executable, "-m", "llmdiff.cli", "serve", "--adapter", str(adapter), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ)
    assert process.stderr is not None
    try:
        events = map(json.loads, process.stderr)
        port = next(event["port"] for event in events if event["event"] == "listening")
        next(event for event in events if event["event"] == "ready")
        replies: list[httpx2.Response] = []

        def ask() -> None:
            long = ASK | {"num_inference_steps": 150, "n": 10}
            replies.append(httpx2.post(f"http://127.0.0.1:{port}{URL}", json=long, timeout=60))

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        for thread in threads:
            thread.join(30)
        assert process.wait(30) in (0, 130, -signal.SIGINT)
        assert [reply.status_code for reply in replies] == [503] * 3
        assert {reply.json()["error"]["code"] for reply in replies} == {"closing"}
    finally:
        process.kill()
        process.communicate()
