"""The password before the page: nothing behind it without the password, and no guessing by the thousand."""

import asyncio
import time
from collections.abc import Iterator

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from llmdiff.serving.password_form import PasswordForm

PASSWORD = "correct horse: battery & stäple"


@pytest.fixture
def app() -> Starlette:
    async def secret(request: object) -> PlainTextResponse:
        return PlainTextResponse("the secret")

    return Starlette(routes=[Route(path, secret) for path in ("/", "/pictures/a.png", "/health", "/login/x")])


@pytest.fixture
def form(app: Starlette) -> PasswordForm:
    return PasswordForm(app, password=PASSWORD, open_paths=("/health",))


@pytest.fixture
def http(form: PasswordForm) -> Iterator[TestClient]:
    with TestClient(form, follow_redirects=False) as client:
        yield client


@pytest.mark.parametrize("path", ["/", "/pictures/a.png", "/nothing", "/login/x", "//login", "/health/"])
def test_without_the_password_there_is_only_the_form(http: TestClient, path: str) -> None:
    for cookies in ({}, {"llmdiff_session": ""}, {"llmdiff_session": "guess"}, {"llmdiff_session": "é"}):
        header = "; ".join(f"{name}={value}" for name, value in cookies.items())
        for method in ("GET", "POST", "PUT"):
            reply = http.request(method, path, headers=[(b"cookie", header.encode())])
            assert reply.status_code == 401
            assert "type=password" in reply.text
            assert "secret" not in reply.text
    assert http.get("/health").text == "the secret"


def test_the_password_opens_everything(http: TestClient) -> None:
    assert http.get("/login").status_code == 200
    reply = http.post("/login", data={"password": PASSWORD})
    assert (reply.status_code, reply.headers["location"]) == (303, ".")
    cookie = reply.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert "secure" not in cookie
    assert http.get("/").text == "the secret"
    assert http.get("/pictures/a.png").text == "the secret"


def test_over_tls_the_cookie_stays_there(form: PasswordForm) -> None:
    with TestClient(form, base_url="https://testserver", follow_redirects=False) as http:
        assert "secure" in http.post("/login", data={"password": PASSWORD}).headers["set-cookie"].lower()


@pytest.mark.parametrize(
    "body", [b"", b"password=", b"password=wrong", b"\xff\xfe", b"password=%ff%00", b"x=1&"]
)
def test_anything_else_does_not(http: TestClient, body: bytes) -> None:
    reply = http.post("/login", content=body)
    assert reply.status_code == 401
    assert "not the password" in reply.text
    assert "set-cookie" not in reply.headers
    assert http.get("/").status_code == 401


def test_another_start_is_another_session(app: Starlette, form: PasswordForm) -> None:
    again = PasswordForm(app, password=PASSWORD)
    with TestClient(form, follow_redirects=False) as http:
        http.post("/login", data={"password": PASSWORD})
        cookie = http.cookies["llmdiff_session"]
    with TestClient(again, cookies={"llmdiff_session": cookie}) as http:
        assert http.get("/").status_code == 401


def test_wrong_guesses_are_answered_one_at_a_time(form: PasswordForm) -> None:
    async def guess() -> int:
        sent: list[int] = []

        async def receive() -> dict[str, object]:
            return {"type": "http.request", "body": b"password=wrong", "more_body": False}

        async def send(message: dict[str, object]) -> None:
            if message["type"] == "http.response.start":
                sent.append(int(str(message["status"])))

        scope = {"type": "http", "method": "POST", "path": "/login", "headers": [], "query_string": b""}
        await form(scope, receive, send)
        return sent[0]

    async def crowd(number: int) -> list[int]:
        return await asyncio.gather(*(guess() for _ in range(number)))

    began = time.monotonic()
    assert asyncio.run(crowd(3)) == [401] * 3
    assert time.monotonic() - began >= 1.4
    # No more than a handful wait; the rest hears so at once.
    statuses = asyncio.run(crowd(20))
    assert statuses.count(429) == 4
