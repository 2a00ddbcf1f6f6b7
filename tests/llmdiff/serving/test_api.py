"""The image API in this process: what it draws, and what it answers to everything that it must refuse."""

import base64
import io
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from llmdiff.drawing.draw import DrawingSettings, draw
from llmdiff.errors import PromptError
from llmdiff.serving.pipeline_drawer import PipelineDrawer

ROUTES = ("/v1/models", "/v1/models/openmoji", "/ready", "/metrics", "/docs", "/openapi.json")
ASK = {"prompt": "a red cat", "seed": 3, "num_inference_steps": 2, "response_format": "b64_json"}

Client = Callable[..., TestClient]


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def drawn(reply: Any) -> list[np.ndarray]:
    assert reply.status_code == 200, reply.text
    return [pixels(base64.b64decode(one["b64_json"])) for one in reply.json()["data"]]


def alone(drawer: PipelineDrawer, seed: int = 3, **more: Any) -> np.ndarray:
    settings = DrawingSettings(**({"prompt": "a red cat", "seed": seed, "steps": 2} | more))
    return np.asarray(draw(drawer.pipe, settings, seed))


def refused(reply: Any, status: int, code: str, *words: str, param: str | None = None) -> None:
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert set(reply.json()) == {"error"}
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    assert error["param"] == param
    for word in words:
        assert word in error["message"]
    assert "Traceback" not in reply.text
    assert reply.headers["x-request-id"]


def test_pictures_are_those_of_their_seeds_drawn_alone(client: Client, drawer: PipelineDrawer) -> None:
    http = client()
    reply = http.post("/v1/images/generations", json=ASK | {"n": 3, "negative_prompt": "a dog"})
    assert [one["seed"] for one in reply.json()["data"]] == [3, 4, 5]
    for seed, picture in zip((3, 4, 5), drawn(reply), strict=True):
        assert (picture == alone(drawer, seed, negative_prompt="a dog")).all()
    facts = Image.open(io.BytesIO(base64.b64decode(reply.json()["data"][1]["b64_json"]))).text
    assert (facts["prompt"], facts["seed"], facts["negative_prompt"]) == ("a red cat", "4", "a dog")

    wide = drawn(http.post("/v1/images/generations", json=ASK | {"size": "24x8"}))[0]
    assert (wide == alone(drawer, width_px=24, height_px=8)).all()


def test_without_a_seed_a_new_one_is_drawn_and_told(client: Client, drawer: PipelineDrawer) -> None:
    http = client()
    ask = {key: value for key, value in ASK.items() if key != "seed"}
    replies = [http.post("/v1/images/generations", json=ask) for _ in range(2)]
    seeds = [reply.json()["data"][0]["seed"] for reply in replies]
    assert seeds[0] != seeds[1]
    assert (drawn(replies[0])[0] == alone(drawer, seeds[0])).all()


def test_pictures_by_url(client: Client, drawer: PipelineDrawer) -> None:
    http = client()
    ask = ASK | {"response_format": None}
    url = http.post("/v1/images/generations", json=ask).json()["data"][0]["url"]
    assert url.startswith("http://testserver/v1/images/files/")
    reply = http.get(url)
    assert reply.headers["content-type"] == "image/png"
    assert (pixels(reply.content) == alone(drawer)).all()
    refused(http.get("/v1/images/files/nothing.png"), 404, "not_found", "expired")

    public = client(public_url="https://pictures.example/llm/")
    url = public.post("/v1/images/generations", json=ask).json()["data"][0]["url"]
    assert url.startswith("https://pictures.example/llm/v1/images/files/")


@pytest.mark.parametrize(
    "path", ["../../../../etc/passwd", "..%2f..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/etc"]
)
def test_paths_that_climb_lead_nowhere(client: Client, path: str) -> None:
    http = client()
    refused(http.get(f"/v1/images/files/{path}.png"), 404, "not_found")
    refused(http.get(f"/v1/images/files/{path}"), 404, "not_found")


def test_what_else_is_served(client: Client) -> None:
    http = client(model_id="ours")
    assert http.get("/health").json() == {"status": "ok"}
    assert [model["id"] for model in http.get("/v1/models").json()["data"]] == ["ours"]
    assert http.get("/v1/models/ours").json()["object"] == "model"
    refused(http.get("/v1/models/a/b"), 404, "model_not_found", "'ours'", param="model")
    http.post("/v1/images/generations", json=ASK)
    figures = http.get("/metrics").text
    assert 'llmdiff_requests_total{route="/v1/images/generations",status="200"} 1.0' in figures
    assert 'llmdiff_pictures_total{outcome="drawn"} 1.0' in figures
    assert "llmdiff_ready 1.0" in figures
    http.get("/secret-of-someone")
    assert "secret" not in http.get("/metrics").text

    page = http.get("/docs")
    assert "/v1/images/generations" in page.text
    assert "http" not in page.text.replace("http://127.0.0.1:8000", "").replace("http-equiv", "")
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    operation = http.get("/openapi.json").json()["paths"]["/v1/images/generations"]["post"]
    assert {"200", "400", "413", "429", "504"} <= set(operation["responses"])
    assert "422" not in operation["responses"]


def test_without_the_token_nothing_but_health(client: Client) -> None:
    http = client(token="correct-horse", wait=False)
    good = http.headers.pop("Authorization")
    for given in (None, "Bearer wrong-horse", "Bearer ", "correct-horse", "Basic correct-horse", "Bearer é"):
        headers = [] if given is None else [(b"authorization", given.encode())]
        for route in (*ROUTES, "/v1/images/files/x.png", "/nothing", "/health/", "//health"):
            reply = http.get(route, headers=headers)
            refused(reply, 401, "invalid_api_key", "Authorization: Bearer")
            assert reply.headers["www-authenticate"] == "Bearer"
        refused(http.post("/v1/images/generations", json=ASK, headers=headers), 401, "invalid_api_key")
        assert http.get("/health", headers=headers).status_code == 200
    http.headers["Authorization"] = good
    assert http.get("/v1/models").status_code == 200
    assert http.get("/openapi.json").json()["security"] == [{"key": []}]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": " \n"}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": "a" * 32_001}, "prompt"),
        ({"n": 0}, "n"),
        ({"n": 11}, "n"),
        ({"n": "3"}, "n"),
        ({"size": "64"}, "size"),
        ({"size": "0x64"}, "size"),
        ({"size": "12x16"}, "size"),
        ({"size": "99999x99999"}, "size"),
        ({"size": "80000x80000"}, "size"),
        ({"size": "../../etc"}, "size"),
        ({"response_format": "gif"}, "response_format"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"num_inference_steps": 151}, "num_inference_steps"),
        ({"guidance_scale": 1e400}, "guidance_scale"),
        ({"guidance_scale": -1}, "guidance_scale"),
        ({"stream": True}, "stream"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_values_out_of_range(client: Client, change: dict[str, Any], param: str) -> None:
    reply = client().post(
        "/v1/images/generations",
        content=json.dumps(ASK | change).encode(),
        headers={"Content-Type": "application/json"},
    )
    refused(reply, 400, "invalid_value", param=param)


def test_pictures_too_large(client: Client) -> None:
    ask = ASK | {"size": "64x32"}
    # The tiny pipeline's own size is 16x16, and four times that is allowed.
    refused(
        client().post("/v1/images/generations", json=ask), 400, "invalid_value", "1024 pixels", param="size"
    )
    assert client(max_pixels=2048).post("/v1/images/generations", json=ask).status_code == 200


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"prompt": "\\ud800"}', b'{"prompt": NaN}', b"[" * 9999],
)
def test_malformed_bodies(client: Client, body: bytes) -> None:
    reply = client().post(
        "/v1/images/generations", content=body, headers={"Content-Type": "application/json"}
    )
    assert reply.status_code == 400
    assert reply.json()["error"]["type"] == "invalid_request_error"


def test_other_refusals(client: Client) -> None:
    http = client(max_body_bytes=1000)
    # Another site's form can send plain text without asking first, so only JSON that says so is read.
    text = http.post(
        "/v1/images/generations", content=json.dumps(ASK), headers={"Content-Type": "text/plain"}
    )
    assert text.status_code == 400
    refused(http.get("/v1/images/generations"), 405, "method_not_allowed")
    refused(http.get("/nothing"), 404, "not_found")
    model = http.post("/v1/images/generations", json=ASK | {"model": "dall-e-3"})
    refused(model, 404, "model_not_found", "'openmoji'", param="model")
    long = json.dumps(ASK | {"prompt": "a " * 600}).encode()
    refused(http.post("/v1/images/generations", content=long), 413, "request_too_large", "1000 bytes")

    def chunks() -> Iterator[bytes]:
        for start in range(0, len(long), 100):
            yield long[start : start + 100]

    refused(http.post("/v1/images/generations", content=chunks()), 413, "request_too_large")
    assert http.post("/v1/images/generations", json=ASK).status_code == 200


class _Broken:
    """A drawer that fails: on purpose when a prompt says so, with words that must not leave the server."""

    size_px, multiple_px, can_edit = (16, 16), 8, True

    def __init__(self, drawer: PipelineDrawer) -> None:
        self._drawer = drawer

    def draw(self, settings: Sequence[DrawingSettings], seeds: Sequence[int], *, on_step: Any) -> list[bytes]:
        for one in settings:
            if one.prompt == "refuse me":
                raise PromptError("prompt has no token that the LLM knows: write another")
            if one.prompt == "break":
                raise RuntimeError(f"secret state at {one.prompt} 0xdeadbeef")
        return self._drawer.draw(settings, seeds, on_step=on_step)


def test_errors_while_drawing(
    client: Client, drawer: PipelineDrawer, caplog: pytest.LogCaptureFixture
) -> None:
    http = client(_Broken(drawer))
    refusal = http.post("/v1/images/generations", json=ASK | {"prompt": "refuse me"})
    refused(refusal, 400, "invalid_value", "write another", param="prompt")
    with caplog.at_level(logging.INFO, "llmdiff.serving"):
        bug = http.post("/v1/images/generations", json=ASK | {"prompt": "break"})
    refused(bug, 500, "internal_error", bug.headers["x-request-id"])
    assert "0xdeadbeef" not in bug.text
    assert http.post("/v1/images/generations", json=ASK).status_code == 200


def test_until_the_models_are_loaded(drawer: PipelineDrawer, gated: Any) -> None:
    from llmdiff.serving.api import create_app
    from llmdiff.serving.settings import ServeSettings

    def load() -> Any:
        gated.gate.wait()
        return drawer

    with TestClient(create_app(load, ServeSettings())) as http:
        assert http.get("/health").status_code == 200
        for reply in (http.get("/ready"), http.post("/v1/images/generations", json=ASK)):
            refused(reply, 503, "loading")
            assert reply.headers["retry-after"] == "5"
        gated.gate.set()


def test_logs_are_json_and_hold_prompts_only_when_asked(
    client: Client, drawer: PipelineDrawer, capsys: pytest.CaptureFixture[str]
) -> None:
    from llmdiff.serving.logs import log_as_json

    logging.getLogger("llmdiff.serving").disabled = True  # as dictConfig leaves it, where a library calls it
    log_as_json()
    http = client(_Broken(drawer))
    for prompt in ("a red cat", "break", ""):
        http.post("/v1/images/generations", json=ASK | {"prompt": prompt})
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert not any("red cat" in json.dumps(line) or "at break" in json.dumps(line) for line in lines)
    requests = [line for line in lines if line["event"] == "request" and line["method"] == "POST"]
    assert [line["status"] for line in requests] == [200, 500, 400]
    assert requests[0]["route"] == "/v1/images/generations"
    assert requests[0]["seed"] == 3
    assert any(line.get("exception") == "RuntimeError" for line in lines)

    client(log_prompts=True).post("/v1/images/generations", json=ASK)
    line = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert line["prompt"] == "a red cat"
