"""The page in this process: what it shows, what it refuses, and that it asks nobody outside for anything."""

import io
import json
import re
import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient
from typer.testing import CliRunner

from llmdiff.cli.main import app as command
from llmdiff.controller import LLMController
from llmdiff.drawing.models import Models
from llmdiff.errors import ConfigError
from llmdiff.serving import ui_html
from llmdiff.serving.expiring_pictures import ExpiringPictures
from llmdiff.serving.settings import UiSettings
from llmdiff.serving.studio import Studio
from llmdiff.serving.ui_drawer import Drawer
from llmdiff.serving.ui_examples import EXAMPLES
from llmdiff.serving.ui_server import create_ui_app
from llmdiff.world.packaged import WEIGHTS

INJECTED = "a <img src=x onerror=alert(1)> ${alert(2)} {{alert(3)}} `cat`"


@pytest.fixture(scope="module")
def studio() -> Iterator[Studio]:
    studio = Studio()
    yield studio
    studio.close()


@pytest.fixture
def page(studio: Studio, adapter: Path) -> Iterator[Callable[..., TestClient]]:
    with ExitStack() as apps:

        def start(**more: Any) -> TestClient:
            settings = UiSettings(**({"adapters": (str(adapter),)} | more))
            app = create_ui_app(studio, settings)
            return apps.enter_context(TestClient(app, raise_server_exceptions=False, follow_redirects=False))

        yield start


class Visitor:
    """Asks the drawer for pictures as the page does; keeps what was shown last."""

    def __init__(self, studio: Studio, adapter: Path) -> None:
        settings = UiSettings(adapters=(str(adapter),))
        self.store = ExpiringPictures(max_bytes=10**7, lifetime_s=100)
        self.drawer = Drawer(studio, self.store, settings)
        self.adapter = str(adapter)
        self.kept: list[Any] = []
        self.status = self.sides = self.gallery = ""

    def draw(self, prompt: Any = "a red cat", **more: Any) -> list[str]:
        asked = {"negative_prompt": "", "seed": "5", "number": 1, "steps": 2, "guidance_scale": 4.0}
        asked |= {"scale": 1.0, "early": 1.0, "middle": 1.0, "late": 1.0}
        asked |= {"adapter": self.adapter, "llm": "", "pipeline": ""} | more
        statuses = []
        for shown in self.drawer.draw(prompt, *asked.values(), self.kept):
            names = ("status", "sides", "gallery", "kept")
            for name, value in zip(names, shown, strict=True):
                if isinstance(value, str | list):
                    setattr(self, name, value)
            statuses.append(self.status)
        return statuses

    def pictures(self, html: str) -> list[np.ndarray]:
        addresses = re.findall(r'noopener"><img src="pictures/([^"]+)\.png"', html)
        return [np.asarray(Image.open(io.BytesIO(self.store.get(one) or b""))) for one in addresses]


@pytest.fixture
def visitor(studio: Studio, adapter: Path) -> Visitor:
    return Visitor(studio, adapter)


def gradio_config(page: str) -> Any:
    """What the page tells the browser of its components."""
    return json.loads(re.search(r"window\.gradio_config = (\{.*?\});</script>", page)[1])


def test_base_and_llm_stand_side_by_side_and_in_the_gallery(visitor: Visitor) -> None:
    statuses = visitor.draw(number=2)
    assert any("step 1 of 2" in status or "step 2 of 2" in status for status in statuses)
    assert "4 pictures" in visitor.status
    base, llm = (part for part in visitor.sides.split("<section")[1:])
    assert ('data-system="base"' in base, 'data-system="llm"' in llm) == (True, True)
    assert [len(visitor.pictures(side)) for side in (base, llm)] == [2, 2]
    assert [one.seed for one in visitor.kept] == [5, 6, 5, 6]
    assert "seed 6" in base
    # The LLM's words have maps, each fetched like a picture.
    assert "llmdiff-heat" not in base
    maps = re.findall(r'<img src="pictures/([^"]+)\.png" alt="Attention to (\w+)"', llm)
    assert [word for _, word in maps] == ["a", "red", "cat"] * 2
    assert all(visitor.store.get(name) for name, _ in maps)
    # The base's picture does not depend on the LLM, so the page names none beside it.
    base_metadata, llm_metadata = (visitor.kept[at].own_metadata for at in (0, 2))
    assert set(visitor.kept[2].metadata) == set(llm_metadata)
    assert set(llm_metadata) - set(base_metadata) == {"llm", "adapter", "scale"}
    for key, value in [*base_metadata.items(), *llm_metadata.items()]:
        row = f'<th scope="row">{key.replace("_", " ")}</th><td>{ui_html.text(value)}</td>'
        assert row in visitor.gallery
    assert visitor.gallery.count('<th scope="row">llm</th>') == 2
    assert visitor.gallery.count(" download=") == 4

    visitor.draw("two blue dog", seed="9")
    assert [one.seed for one in visitor.kept] == [9, 9, 5, 6, 5, 6]
    assert visitor.gallery.index("two blue dog") < visitor.gallery.index("a red cat")
    # Drawn again from its seed, a picture is the same.
    again = visitor.pictures(visitor.gallery)
    visitor.draw(seed="5")
    assert (visitor.pictures(visitor.sides)[0] == again[2]).all()


def test_sliders_weigh_the_llms_blocks(visitor: Visitor) -> None:
    def drawn(**more: float) -> list[np.ndarray]:
        visitor.draw(**more)
        return [picture for side in visitor.sides.split("<section")[1:] for picture in visitor.pictures(side)]

    base, plain = drawn()
    assert "block_gains" not in visitor.kept[0].metadata
    same, changed = drawn(early=0.0, late=2.0)
    # A third of the tiny LLM's three blocks is one.
    assert {one.system: one.metadata.get("block_gains") for one in visitor.kept[:2]} == {
        "llm": "0-0=0,1-1=1,2-2=2",
        "base": None,
    }
    assert (same == base).all()
    assert (changed != plain).any()


def test_the_scale_mixes_base_and_llm(visitor: Visitor) -> None:
    def drawn(scale: float) -> list[np.ndarray]:
        visitor.draw(scale=scale)
        assert {one.system: one.metadata["scale"] for one in visitor.kept[:2]} == {
            "llm": str(float(scale)),
            "base": "0.0",
        }
        return [picture for side in visitor.sides.split("<section")[1:] for picture in visitor.pictures(side)]

    base, at_zero = drawn(0.0)
    mixed, alone = drawn(0.5)[1], drawn(1.0)[1]
    assert (base == at_zero).all()
    assert (mixed != base).any()
    assert (mixed != alone).any()


def test_without_a_seed_a_new_one_is_drawn(visitor: Visitor) -> None:
    for _ in range(2):
        visitor.draw(seed="  ")
    assert len({one.seed for one in visitor.kept}) == 2


def test_texts_from_outside_are_escaped(visitor: Visitor) -> None:
    visitor.draw(INJECTED, negative_prompt="<script>alert(4)</script>")
    for html in (visitor.sides, visitor.gallery):
        assert "<img src=x" not in html
        assert "<script" not in html
        assert not re.search(r"[${}`]", html)
    assert INJECTED in unescape(visitor.gallery)
    visitor.draw(seed="<b>${alert(5)}")
    assert "<b>" not in visitor.status
    assert "$" not in visitor.status
    assert 'role="alert"' in visitor.status


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"prompt": ""}, "prompt is blank"),
        ({"prompt": " \n"}, "prompt is blank"),
        ({"prompt": "\ud800"}, "UTF-8"),
        ({"prompt": "a" * 8001}, "prompt's length is 8001, expected at most 8000"),
        ({"seed": "-1"}, "seed is -1"),
        ({"seed": "1.5"}, "whole number"),
        ({"seed": "9" * 30}, "seed is"),
        ({"number": 9}, "number is 9, expected at most 8"),
        ({"number": 0}, "number is 0"),
        ({"steps": 151}, "steps is 151"),
        ({"scale": 1.5}, "scale is 1.5, expected a number from 0"),
        ({"adapter": "/nothing/here"}, "/nothing/here"),
    ],
)
def test_orders_that_are_refused(visitor: Visitor, asked: dict[str, Any], words: str) -> None:
    statuses = visitor.draw(**asked)
    assert 'role="alert"' in statuses[-1]
    assert words in unescape(statuses[-1])
    assert visitor.kept == []


def test_a_bug_shows_no_traceback(visitor: Visitor) -> None:
    visitor.draw(prompt=None)
    assert "Something went wrong" in visitor.status
    assert "Traceback" not in visitor.status


def test_expired_pictures_leave_the_gallery(visitor: Visitor) -> None:
    visitor.draw()
    visitor.store._drop_oldest()
    visitor.draw(seed="8")
    assert [(one.system, one.seed) for one in visitor.kept] == [("base", 8), ("llm", 8), ("llm", 5)]


def test_the_page_says_what_it_can(page: Any, adapter: Path) -> None:
    http = page(queue_size=3, llms=(str(adapter.parent / "llm"),))
    reply = http.get("/")
    assert reply.status_code == 200
    assert "up to 3 drawings may wait in line" in reply.text
    # The examples are of the embedded default's world, which this adapter does not draw.
    for prompts in EXAMPLES.values():
        assert not any(prompt in unescape(reply.text) for prompt in prompts)
    for label in (
        "Prompt",
        "Negative prompt",
        "Seed",
        "Number",
        "Steps",
        "Guidance scale",
        "Scale of the LLM",
        "Adapter",
        "LLM",
    ):
        assert f'"label":"{label}"' in reply.text
    config = gradio_config(reply.text)
    assert config["analytics_enabled"] is False
    assert "frame-ancestors 'none'" in reply.headers["content-security-policy"]
    assert reply.headers["x-frame-options"] == "DENY"
    # Every script, style sheet and font comes from here.
    assert not re.search(r"<(script|link)[^>]+(src|href)=[\"']?(https?:)?//", reply.text)
    assert "googleapis" not in reply.text + http.get("/theme.css").text


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file/etc/passwd",
        "/gradio_api/queue/../file=/etc/passwd",
        "/gradio_api/queue/join/../../file=/etc/passwd",
        "/gradio_api/proxy=https://example.org/",
        "/gradio_api/upload",
        "/gradio_api/call/draw",
        "/gradio_api/api/draw",
        "/gradio_api/runs",
        "/gradio_api/vibe-code",
        "/monitoring",
        "/docs",
        "/openapi.json",
        "/pictures/..%2f..%2fetc%2fpasswd.png",
        "/pictures/../../etc/passwd",
        "/static/..%2f..%2froutes.py",
        "/static/../../routes.py",
        "/assets/%2e%2e/%2e%2e/routes.py",
        "/svelte/..%2f..%2froutes.py",
    ],
)
def test_nothing_else_is_served(page: Any, path: str) -> None:
    http = page()
    for method in ("GET", "POST"):
        reply = http.request(method, path)
        assert reply.status_code in (403, 404, 405), reply.text[:200]
        assert "root:" not in reply.text
        assert "FastAPI" not in reply.text


def order(http: TestClient, data: list[Any]) -> dict[str, Any]:
    """The body of an order to draw that does not come from the page."""
    config = gradio_config(http.get("/").text)
    draw = next(one for one in config["dependencies"] if len(one["inputs"]) == 14)
    return {"data": data, "fn_index": draw["id"], "session_hash": "s", "trigger_id": draw["targets"][0][0]}


def join(http: TestClient, data: list[Any]) -> Any:
    """What the queue answers to an order that does not come from the page."""
    reply = http.post("/gradio_api/queue/join", json=order(http, data))
    if reply.status_code != 200:
        return reply
    with http.stream("GET", "/gradio_api/queue/data?session_hash=s") as stream:
        for line in stream.iter_lines():
            if line.startswith("data:") and json.loads(line[5:])["msg"] == "process_completed":
                return json.loads(line[5:])
    raise AssertionError("the queue never answered")


def test_nobody_gets_past_the_queue(page: Any, adapter: Path) -> None:
    http = page()
    body = order(http, ["a cat", "", "5", 1, 1, 4, 1, 1, 1, 1, str(adapter), "", "", None])
    for name in ("predict", "draw", "load_example"):
        reply = http.post(f"/gradio_api/run/{name}", json=body)
        assert reply.status_code == 404
        assert "queue" in reply.text


def test_what_is_not_offered_cannot_be_chosen(page: Any, adapter: Path) -> None:
    http = page()
    good = ["a cat", "", "5", 1, 1, 4, 1, 1, 1, 1, str(adapter), "", "", None]
    assert join(http, good)["success"]
    for place, value in (
        (10, str(adapter.parent)),
        (11, str(adapter.parent / "llm")),
        (12, "/etc"),
        (4, 10**6),
        (6, 2),
        (8, 3),
    ):
        answer = join(http, [*good[:place], value, *good[place + 1 :]])
        assert not answer["success"]
        assert "Traceback" not in json.dumps(answer)


def test_another_adapter_brings_its_own_scale(page: Any, adapter: Path, tmp_path: Path) -> None:
    other = tmp_path / "mixed"
    controller = LLMController.from_pretrained(str(adapter))
    controller.adapter.register_to_config(scale=0.6)
    controller.save_pretrained(other)
    http = page(adapters=(str(adapter), str(other)))
    config = gradio_config(http.get("/").text)
    slider = next(one for one in config["components"] if one["props"].get("elem_id") == "scale")
    assert slider["props"]["value"] == 1.0
    chosen = next(one for one in config["dependencies"] if one["outputs"] == [slider["id"]])

    def choose(name: str) -> Any:
        body = {"data": [name], "fn_index": chosen["id"], "session_hash": "s"}
        return http.post("/gradio_api/run/predict", json=body)

    assert choose(str(other)).json()["data"] == [0.6]
    refused = choose(str(adapter.parent))
    assert refused.status_code >= 400
    assert "Traceback" not in refused.text


def test_malformed_and_oversized_requests(page: Any) -> None:
    http = page()
    for body in (b"", b"{", b"[]", b"null", b"\xff", b'{"data": 5}', b'{"fn_index": 10000, "data": []}'):
        reply = http.post(
            "/gradio_api/queue/join", content=body, headers={"Content-Type": "application/json"}
        )
        assert 400 <= reply.status_code < 500, (body, reply.status_code)
        assert "Traceback" not in reply.text
    large = http.post("/gradio_api/queue/join", content=b"x" * 200_000)
    assert large.status_code == 413


def test_with_a_password_nothing_is_seen_before_it(page: Any) -> None:
    http = page(password="correct horse")
    for path in ("/", "/config", "/theme.css", "/pictures/a.png", "/gradio_api/info", "/assets/index.js"):
        reply = http.get(path)
        assert reply.status_code == 401
        assert "type=password" in reply.text
        assert "gradio" not in reply.text
    assert http.post("/gradio_api/queue/join", json={}).status_code == 401
    assert http.get("/health").json() == {"status": "ok"}
    assert http.post("/login", data={"password": "correct horse"}).status_code == 303
    assert "gradio_config" in http.get("/").text


def test_nobody_outside_is_asked_for_anything(
    page: Any, visitor: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    connect, resolve = socket.socket.connect, socket.getaddrinfo

    def noted(self: socket.socket, address: Any) -> Any:
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1"):
            asked.append(address)
        return connect(self, address)

    def looked_up(host: Any, *more: Any, **options: Any) -> Any:
        if host not in ("127.0.0.1", "::1", "localhost", None):
            asked.append(host)
        return resolve(host, *more, **options)

    monkeypatch.setattr(socket.socket, "connect", noted)
    monkeypatch.setattr(socket, "getaddrinfo", looked_up)
    http = page()
    http.get("/")
    visitor.draw()
    assert visitor.kept
    assert asked == []


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"adapters": ()}, "adapters"),
        ({"queue_size": 0}, "queue_size is 0"),
        ({"password": "short"}, "password has 5 characters"),
    ],
)
def test_settings_out_of_range(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        UiSettings(**given)


def refused(*options: object, env: dict[str, str] | None = None, keys: str | None = None) -> str:
    """The one line that the command says before it ends with status 1."""
    with warnings.catch_warnings():
        result = CliRunner().invoke(command, ["ui", "--port", "0", *map(str, options)], env=env, input=keys)
    assert result.exit_code == 1, result.output
    lines = [line for line in result.stderr.splitlines() if not line.startswith(("loading ", "Password"))]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


def test_the_command_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert str(tmp_path / "none") in refused("--adapter", tmp_path / "none")
    (tmp_path / "blank").write_text("\n")
    assert "password is blank" in refused("--password-file", tmp_path / "blank")
    assert "password_file" in refused("--password-file", tmp_path / "nothing")
    assert "at least 8" in refused(env={"LLMDIFF_PASSWORD": "short"})
    assert "at least 8" in refused("--password", keys="short\nshort\n")
    assert "both given" in refused("--password", "--password-file", tmp_path / "blank")
    assert "cannot be listened on" in refused("--host", "256.1.1.1")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "llmdiff-adapter[ui]" in refused()


@pytest.mark.skipif(WEIGHTS.is_dir(), reason="the embedded default's weights are there")
def test_without_the_shipped_weights_the_command_says_so() -> None:
    line = refused()
    assert "'openmoji' has no adapter here" in line
    assert "llmdiff-lab build" in line


def test_every_choice_asks_the_closed_llm_that_the_command_names() -> None:
    base = Models(reword_url="http://127.0.0.1:1/v1", reword_model="closed-1", device="cpu")
    settings = UiSettings(adapters=("one", "two"), base=base)
    assert settings.first_models == settings.models("one")
    chosen = settings.models("two", llm="an-llm")
    assert (chosen.adapter, chosen.llm, chosen.reword_url, chosen.reword_model) == (
        "two",
        "an-llm",
        base.reword_url,
        "closed-1",
    )
