"""A real tiny pipeline behind the image API, in this process or on a loopback port."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from llmdiff.controller import LLMController
from llmdiff.drawing.draw import DrawingSettings
from llmdiff.drawing.models import Models
from llmdiff.language.llm import DecoderLLM
from llmdiff.serving.api import create_app
from llmdiff.serving.pipeline_drawer import PipelineDrawer
from llmdiff.serving.server import GentleServer, listen, run_server
from llmdiff.serving.settings import ServeSettings

_built: list[PipelineDrawer] = []
_saved: list[Path] = []


class GatedDrawer:
    """The real drawer behind a gate: what is drawn waits at its first step until the gate is opened."""

    def __init__(self, drawer: PipelineDrawer) -> None:
        self.drawer = drawer
        self.size_px, self.multiple_px, self.can_edit = drawer.size_px, drawer.multiple_px, drawer.can_edit
        self.gate = threading.Event()
        self.begun = threading.Semaphore(0)
        self.batches: list[list[str]] = []

    def draw(
        self, settings: Sequence[DrawingSettings], seeds: Sequence[int], *, on_step: Callable[[], None]
    ) -> list[bytes]:
        self.batches.append([one.prompt for one in settings])
        self.begun.release()
        while not self.gate.wait(0.01):
            on_step()
        return self.drawer.draw(settings, seeds, on_step=on_step)


@pytest.fixture
def drawer(make_sd: Callable[..., Any], make_llm: Callable[..., Any]) -> PipelineDrawer:
    """Attached once: the tests only draw with it."""
    if not _built:
        pipe = make_sd()
        _built.append(PipelineDrawer(LLMController.create(make_llm(), pipe), pipe, Models()))
    return _built[0]


def save_models(root: Path, pipe: Any, llm: Any) -> Path:
    """Save a pipeline, an LLM and a fresh adapter for both; the adapter's folder, which names the other two."""
    pipe.save_pretrained(root / "pipe")
    llm.model.save_pretrained(root / "llm")
    llm.tokenizer.save_pretrained(root / "llm")
    loaded = DecoderLLM.from_pretrained(root / "llm")
    controller = LLMController.create(loaded, pipe, base_model_id=str(root / "pipe"))
    controller.save_pretrained(root / "adapter")
    return root / "adapter"


@pytest.fixture
def adapter(
    make_sd: Callable[..., Any], make_llm: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a tiny adapter, with its pipeline and LLM beside it; saved once, the tests only read it."""
    if not _saved:
        _saved.append(save_models(tmp_path_factory.mktemp("models"), make_sd(), make_llm()))
    return _saved[0]


@pytest.fixture
def gated(drawer: PipelineDrawer) -> Iterator[GatedDrawer]:
    gated = GatedDrawer(drawer)
    yield gated
    gated.gate.set()


@pytest.fixture
def client(drawer: PipelineDrawer) -> Iterator[Callable[..., TestClient]]:
    """Start the app in this process, with settings, and wait until it is ready."""
    with ExitStack() as apps:

        def start(drawn_by: Any = None, *, wait: bool = True, **settings: Any) -> TestClient:
            app = create_app(lambda: drawn_by or drawer, ServeSettings(**settings))
            client = apps.enter_context(TestClient(app, raise_server_exceptions=False))
            if "token" in settings:
                client.headers["Authorization"] = f"Bearer {settings['token']}"
            if wait:
                wait_until(lambda: client.get("/ready").status_code == 200)
            return client

        yield start


@contextmanager
def serving(app: Any, on_closing: Callable[[], None] = lambda: None) -> Iterator[tuple[str, GentleServer]]:
    """A real server on a loopback port: its address and the server; ended gently."""
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    servers: list[GentleServer] = []
    thread = threading.Thread(
        target=run_server,
        args=(app, listener),
        kwargs={"grace_s": 20, "on_closing": on_closing, "on_server": servers.append},
    )
    thread.start()
    try:
        wait_until(lambda: bool(servers) and servers[0].started)
        yield f"http://127.0.0.1:{port}", servers[0]
    finally:
        servers[0].should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def wait_until(holds: Callable[[], bool], timeout_s: float = 60.0) -> None:
    end = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
