"""The page of `llmdiff ui` in a real browser: drawing, previews, gallery, download, stop, queue, password."""

import io
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llmdiff.drawing.draw import DrawingSettings, draw
from llmdiff.drawing.models import Models, load
from llmdiff.serving.settings import UiSettings
from llmdiff.serving.studio import Studio
from llmdiff.serving.ui_examples import EXAMPLES, OPENING
from llmdiff.serving.ui_server import create_ui_app
from tests.browser.conftest import WEIGHTS
from tests.llmdiff.serving.conftest import serving

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(1800)]

INJECTED = "a <img src=x onerror=alert(1)> ${alert(2)} {{alert(3)}} cat"
DONE = re.compile(r"Done: \d+ pictures")


@pytest.fixture
def ui(models: Models) -> Iterator[Callable[..., str]]:
    """Serve the page with the models already loaded; its address."""
    with ExitStack() as running:

        def start(**more: Any) -> str:
            studio = Studio()
            running.callback(studio.close)
            settings = UiSettings(adapters=(models.adapter,), base=Models(device=models.device), **more)
            studio.load(settings.first_models)
            app = create_ui_app(studio, settings)
            url, _ = running.enter_context(serving(app))
            running.callback(app.state.end)
            running.callback(studio.stop)
            return url

        yield start


def field(page: Any, name: str) -> Any:
    """The box to write into; sliders have one for the number."""
    return page.locator(f"#{name} :is(textarea, input[type=text], input[type=number])").first


def ask(page: Any, prompt: str | None = None, *, seed: int, steps: int, number: int = 1) -> None:
    if prompt is not None:
        field(page, "prompt").fill(prompt)
    if not field(page, "seed").is_visible():
        page.get_by_role("button", name="Settings").click()
    field(page, "seed").fill(str(seed))
    for name, value in (("steps", steps), ("number", number)):
        field(page, name).fill(str(value))
        field(page, name).press("Tab")
    page.locator("#draw").click()


def status(page: Any) -> Any:
    from playwright.sync_api import expect

    return expect(page.locator("#status"))


def test_pictures_are_drawn_through_the_page(ui: Any, visit: Any, models: Models, shoot: Any) -> None:
    from playwright.sync_api import expect

    page = visit(ui())
    expect(page.get_by_text("up to 8 drawings may wait in line")).to_be_visible()
    # What appears for a moment only is noted as it appears.
    page.evaluate(
        """() => { window.seen = new Set();
        new MutationObserver(() => {
          if (document.querySelector('.llmdiff-preview img')) seen.add('preview');
          if (document.querySelector('#status progress')) seen.add('progress');
        }).observe(document.body, {childList: true, subtree: true}); }"""
    )
    shipped = models.adapter == "openmoji"
    # The tiny LLM knows few words.
    prompt = "a red star to the left of a blue heart" if shipped else "a red cat left of two blue dog"
    field(page, "prompt").fill(prompt)
    steps = 20 if shipped else 120
    ask(page, seed=5, steps=steps)
    status(page).to_have_text(DONE)
    assert set(page.evaluate("[...seen]")) == {"preview", "progress"}

    controller, pipe = load(models)
    order = DrawingSettings(prompt=prompt, seed=5, steps=steps)
    expected = {"base": np.asarray(draw(pipe, order, 5))}
    with controller.attached(pipe):
        expected["llm"] = np.asarray(draw(pipe, order, 5))
    for system, pixels in expected.items():
        side = page.locator(f"#sides [data-system={system}]")
        shown = side.locator("a > img")
        assert shown.evaluate("image => image.complete && image.naturalWidth") == pixels.shape[1]
        with page.expect_download() as download:
            side.get_by_text("Download").click()
        assert download.value.suggested_filename == f"{system}-5.png"
        picture = Image.open(io.BytesIO(Path(download.value.path()).read_bytes()))
        assert (np.asarray(picture) == pixels).all()
        assert picture.text["prompt"] == order.prompt
        assert picture.text["seed"] == "5"
        side.get_by_text("How it was made").click()
        expect(side.get_by_role("row", name="steps")).to_have_text(f"steps{steps}")
        # The base's picture does not depend on the LLM.
        assert side.locator("th").get_by_text("llm", exact=True).count() == (1 if system == "llm" else 0)

    words = page.locator("#sides [data-system=llm] .llmdiff-words")
    order_words = order.prompt.split()
    words.get_by_text("Attention to each word").click()
    expect(words.locator("figcaption")).to_have_text(order_words)
    assert (
        words.locator("img").first.evaluate("image => image.decode().then(() => image.naturalWidth)") >= 160
    )
    shoot(page.locator("#sides"), "ui-words")

    ask(page, "two cats", seed=8, steps=2 if steps > 20 else steps, number=2)
    expect(page.locator("#gallery .llmdiff-pictures > figure")).to_have_count(6)
    status(page).to_have_text(DONE)
    expect(page.locator("#gallery .llmdiff-pictures > figure").first).to_contain_text("two cats")


def test_the_keyboard_draws_and_a_seed_can_be_used_again(ui: Any, visit: Any) -> None:
    from playwright.sync_api import expect

    page = visit(ui())
    page.get_by_role("button", name="Settings").click()
    field(page, "steps").fill("1")
    field(page, "prompt").fill("a cat")
    field(page, "prompt").press("Enter")
    status(page).to_have_text(DONE)
    page.locator("#again").click()
    seed = page.locator("#sides figcaption span").first.inner_text().removeprefix("seed ")
    expect(field(page, "seed")).to_have_value(seed)


def test_the_embedded_default_opens_with_a_picture(visit: Any, shoot: Any) -> None:
    from playwright.sync_api import expect

    if not WEIGHTS.is_dir():
        pytest.skip("the embedded default's weights are not here")
    with ExitStack() as running:
        studio = Studio()
        running.callback(studio.close)
        app = create_ui_app(studio, UiSettings(base=Models(device="cpu")))
        url, _ = running.enter_context(serving(app))
        running.callback(app.state.end)
        page = visit(url)
        pictures = page.locator("#sides a > img")
        expect(pictures).to_have_count(2)
        assert pictures.first.evaluate("image => image.decode().then(() => image.naturalWidth)") >= 128
        expect(field(page, "prompt")).to_have_value(OPENING)
        example = EXAMPLES["New words (in no training caption)"][1]
        page.get_by_text(example).first.click()
        expect(field(page, "prompt")).to_have_value(example)
        page.get_by_text("What this small model knows").click()
        page.get_by_text("umbrella", exact=True).click()
        expect(field(page, "prompt")).to_have_value(f"{example} umbrella")
        page.get_by_role("button", name="Settings").click()
        field(page, "late-blocks").scroll_into_view_if_needed()
        shoot(page.locator(".gradio-container"), "ui-settings")

        # Both pictures are side by side and visible without scrolling.
        for name, side_px in (("ui", (1280, 800)), ("ui-phone", (390, 844))):
            size = {"width": side_px[0], "height": side_px[1]}
            for suffix, scheme in (("", "light"), ("-dark", "dark")):
                page = visit(url, viewport=size, color_scheme=scheme, is_mobile=size["width"] < 500)
                pictures = page.locator("#sides a > img")
                expect(pictures).to_have_count(2)
                for picture in pictures.all():
                    picture.evaluate("image => image.decode()")
                base, llm = (picture.bounding_box() for picture in pictures.all())
                assert (base["y"], base["height"]) == (llm["y"], llm["height"])
                assert llm["y"] + llm["height"] <= size["height"]
                shoot(page, f"{name}{suffix}")


def test_what_is_wrong_is_said_and_nothing_that_is_typed_runs(ui: Any, visit: Any) -> None:
    from playwright.sync_api import expect

    page = visit(ui())
    ask(page, INJECTED, seed=1, steps=1)
    status(page).to_have_text(DONE)
    expect(page.locator("#gallery .llmdiff-pictures > figure").first).to_contain_text(INJECTED)
    assert page.locator("#gallery img[src=x], #sides img[src=x]").count() == 0
    ask(page, "   ", seed=1, steps=1)
    status(page).to_contain_text("prompt is blank")
    field(page, "seed").fill("<b>x")
    field(page, "prompt").fill("a cat")
    page.locator("#draw").click()
    status(page).to_contain_text("seed is '<b>x', expected a whole number")


def test_stop_and_the_queue(ui: Any, visit: Any) -> None:
    from playwright.sync_api import expect

    url = ui(queue_size=1)
    first, second = visit(url), visit(url)
    third = visit(url, expected=("503",))
    ask(first, "a cat", seed=1, steps=150, number=8)
    status(first).to_contain_text("step")
    ask(second, "a dog", seed=2, steps=1)
    expect(second.get_by_text(re.compile(r"queue: \d"))).to_be_visible()
    # One is drawn, one waits: there is no room for a third, and the page says so.
    ask(third, "a car", seed=3, steps=1)
    expect(third.get_by_text("currently busy. Please try again").first).to_be_visible()
    first.locator("#stop").click()
    # The thread is free for who waits, and the first one's page has ended where it was.
    status(second).to_have_text(DONE)
    assert not DONE.search(first.locator("#status").inner_text())
    assert first.locator("#gallery .llmdiff-pictures > figure").count() < 16


def test_the_password(ui: Any, visit: Any, shoot: Any) -> None:
    from playwright.sync_api import expect

    page = visit(ui(password="correct horse"), expected=("401",))
    expect(page.locator("#draw")).to_have_count(0)
    page.get_by_label("Password").fill("wrong horse")
    page.get_by_role("button").click()
    expect(page.get_by_role("alert")).to_have_text("That is not the password.")
    shoot(page, "ui-password")
    page.get_by_label("Password").fill("correct horse")
    page.keyboard.press("Enter")
    expect(page.locator("#draw")).to_be_visible()
    page.reload()
    expect(page.locator("#draw")).to_be_visible()


def test_on_a_phone_nothing_sticks_out(ui: Any, visit: Any) -> None:
    page = visit(ui(), viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    ask(page, "a cat", seed=3, steps=4)
    status(page).to_have_text(DONE)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
