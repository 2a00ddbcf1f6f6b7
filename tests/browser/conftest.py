"""A real browser: Debian's Chromium, without a window; what it asks and complains of is watched."""

import io
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llmdiff.drawing.models import Models
from llmdiff.world.packaged import WEIGHTS
from tests.llmdiff.serving.conftest import save_models

FLAGS = ("no-sandbox", "disable-gpu", "disable-background-networking", "disable-component-update")
FLAGS += ("disable-sync", "no-first-run")
# Generous: these tests also run beside other work.
TIMEOUT_S = 240
MAX_SCREENSHOT_BYTES = 200_000

_saved: list[Models] = []


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """The browser; the only reason to skip is that there is none."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no browser here: install one, for example with `apt-get install chromium`")
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=TIMEOUT_S * 1000)
    with sync_playwright() as playwright:
        flags = [f"--{flag}" for flag in FLAGS]
        running = playwright.chromium.launch(executable_path=path, args=flags, timeout=TIMEOUT_S * 1000)
        yield running
        running.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """Open a page as another visitor. At the end: nothing failed but what was expected to, no dialog opened, and
    nobody outside was asked for anything.
    """
    noticed: list[str] = []
    with ExitStack() as contexts:

        def open_page(url: str, *, at: str = "", expected: tuple[str, ...] = (), **options: Any) -> Any:
            context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
            contexts.callback(context.close)
            context.set_default_timeout(TIMEOUT_S * 1000)
            page = context.new_page()
            # A file's neighbours are its own; a server's address is all there is of it.
            inside = url.rpartition("/")[0] if url.startswith("file:") else url

            def note(what: str) -> None:
                if not any(words in what for words in expected):
                    noticed.append(what)

            def asked(request: Any) -> None:
                if not request.url.startswith((inside, "data:", "blob:")):
                    note(f"asked {request.url}")

            page.on("request", asked)
            page.on("dialog", lambda dialog: (note(f"dialog {dialog.message}"), dialog.dismiss()))
            page.on("pageerror", lambda error: note(f"error {error}"))
            page.on("console", lambda line: line.type == "error" and note(f"console {line.text}"))
            page.goto(url + at)
            return page

        yield open_page
    assert noticed == []


@pytest.fixture
def models(
    request: pytest.FixtureRequest,
    make_sd: Callable[..., Any],
    make_llm: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Models:
    """Tiny random models; for screenshots that are kept, the shipped ones, if they are there."""
    if request.config.getoption("--screenshots") and WEIGHTS.is_dir():
        return Models(adapter="openmoji", device="cpu")
    if not _saved:
        adapter = save_models(tmp_path_factory.mktemp("models"), make_sd(), make_llm())
        _saved.append(Models(adapter=str(adapter), device="cpu"))
    return _saved[0]


@pytest.fixture
def shoot(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., None]:
    """Take a picture of a page under a name; kept where `--screenshots` says."""
    folder = Path(request.config.getoption("--screenshots") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)

    def take(page: Any, name: str, **options: Any) -> None:
        png = page.screenshot(animations="disabled", **options)
        # 256 colours are enough for a page, and a small file.
        image = Image.open(io.BytesIO(png)).convert("RGB").quantize(256)
        image.save(folder / f"{name}.png", optimize=True)
        assert (folder / f"{name}.png").stat().st_size < MAX_SCREENSHOT_BYTES

    return take
