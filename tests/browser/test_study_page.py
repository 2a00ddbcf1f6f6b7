"""A whole study in a real browser: three raters, one reload, and a report that agrees with a hand count."""

import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llmdiff.drawing.draw import DrawingSettings
from llmdiff.drawing.models import Models
from llmdiff.serving.studio import Drawn, Studio
from llmdiff_lab.study.api import create_study_app
from llmdiff_lab.study.report import write_report
from llmdiff_lab.study.study import create_study
from tests.llmdiff.serving.conftest import serving

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(1800)]

INJECTED = "a <img src=x onerror=alert(1)> dog"
PROMPTS = (
    "an automobile to the right of a tortoise",
    "the reptile that hides in its shell, on a pink background",
    INJECTED,
    "looking from left to right: a mushroom, then a house",
    "a spacecraft above a fortress on a blue background",
)
QUESTIONS = ("alignment", "quality", "details")


class Pictures:
    """What raters are not told, read from the study's database: whose picture is whose, and which are noise."""

    def __init__(self, folder: Path) -> None:
        with sqlite3.connect(folder / "study.sqlite") as connection:
            rows = connection.execute(
                "SELECT first, second, first_picture, second_picture FROM pairs"
            ).fetchall()
        connection.close()
        self.system = {p: s for row in rows for s, p in zip(row[:2], row[2:], strict=True) if s is not None}
        self.noise = {row[3] for row in rows if row[0] is None}


@pytest.fixture
def study(models: Models, tmp_path: Path) -> Path:
    studio = Studio()
    for seed, prompt in enumerate(PROMPTS):
        order = DrawingSettings(prompt=prompt, seed=seed, steps=20 if models.adapter == "openmoji" else 2)
        for event in studio.draw(order, models):
            if isinstance(event, Drawn):
                place = tmp_path / "pictures" / event.system / f"{seed}.png"
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(event.png)
    studio.close()
    sources = {name: tmp_path / "pictures" / name for name in ("base", "llm")}
    create_study(tmp_path / "study", sources, title="Which picture shows it?", check_every=5)
    return tmp_path / "study"


@pytest.fixture
def url(study: Path) -> Iterator[str]:
    app = create_study_app(study)
    with serving(app) as (address, _):
        yield address
    app.state.store.close()


class Rater:
    """Answers pairs on the page and notes what was chosen between what."""

    def __init__(
        self,
        page: Any,
        pictures: Pictures,
        *,
        careless: bool = False,
        take: Callable[[Any], None] | None = None,
    ) -> None:
        self.page = page
        self.take = take  # called once, at a pair that can stand in the documentation
        self.pictures = pictures
        self.careless = careless
        self.chosen: list[tuple[str, str]] = []  # (question, system or "tie"), attention checks left out
        self.left = 0

    def rate(self, pairs: range, total: int, *, by: str = "mouse") -> None:
        from playwright.sync_api import expect

        for number in pairs:
            expect(self.page.locator("#count")).to_have_text(f"Pair {number} of {total}")
            expect(self.page.locator("#rate")).to_have_attribute("aria-busy", "false")
            names = [
                Path(self.page.locator(f"#{side}").get_attribute("src")).stem for side in ("left", "right")
            ]
            choices = self._decide(*names)
            shown = self.page.locator("#prompt").inner_text()
            if self.take is not None and shown != INJECTED and not {*names} & self.pictures.noise:
                self.take(self.page)
                self.take = None
            for question, choice in choices.items():
                if by == "keys":
                    key = {"left": "ArrowLeft", "right": "ArrowRight", "tie": "ArrowDown"}[choice]
                    self.page.keyboard.press(key)
                else:
                    button = self.page.locator(f"[data-question={question}] [data-choice={choice}]")
                    button.tap() if by == "touch" else button.click()
            if by == "keys":
                self.page.keyboard.press("Enter")
            else:
                self.page.locator("#next").click()
        if pairs[-1] == total:
            expect(self.page.get_by_text("That was the last pair")).to_be_visible()
        else:
            expect(self.page.locator("#count")).to_have_text(f"Pair {pairs[-1] + 1} of {total}")

    def _decide(self, left: str, right: str) -> dict[str, str]:
        if {left, right} & self.pictures.noise:
            wanted = right if (left in self.pictures.noise) != self.careless else left
            return dict.fromkeys(QUESTIONS, "left" if wanted == left else "right")
        # For alignment the LLM's, for quality whatever is on the left, for details neither.
        llm = "left" if self.pictures.system[left] == "llm" else "right"
        choices = {"alignment": llm, "quality": "left", "details": "tie"}
        for question, choice in choices.items():
            side = {"left": left, "right": right}.get(choice)
            self.chosen.append((question, "tie" if side is None else self.pictures.system[side]))
            self.left += choice == "left"
        return choices


def test_a_whole_study(study: Path, url: str, visit: Any, shoot: Any, tmp_path: Path) -> None:
    from playwright.sync_api import expect

    pictures, total = Pictures(study), len(PROMPTS) + 1
    page = visit(url)
    expect(page.get_by_role("heading")).to_have_text("Which picture shows it?")
    expect(page.locator("#begin")).to_be_visible()
    shoot(page, "study-welcome", clip={"x": 0, "y": 0, "width": 1280, "height": 300})
    page.locator("#begin").click()
    first = Rater(page, pictures, take=lambda page: shoot(page, "study-pair", full_page=True))
    first.rate(range(1, 3), total)
    expect(page.locator("#rate")).to_have_attribute("aria-busy", "false")
    page.locator("[data-question=alignment] [data-choice=left]").click()

    # In the middle the page is loaded again: what was answered is there, what was only chosen is not.
    # Two questions are visible without scrolling.
    page.set_viewport_size({"width": 1280, "height": 800})
    box = page.locator("fieldset").nth(1).bounding_box()
    assert box["y"] + box["height"] <= 800
    link = page.url
    page.reload()
    expect(page.locator("#count")).to_have_text(f"Pair 3 of {total}")
    expect(page.locator("#rate")).to_have_attribute("aria-busy", "false")
    expect(page.locator("[data-question=alignment] [aria-pressed=true]")).to_have_count(0)
    page.locator("#back").click()
    expect(page.locator("#count")).to_have_text(f"Pair 2 of {total}")
    expect(page.locator("#rate")).to_have_attribute("aria-busy", "false")
    expect(page.locator("#questions [aria-pressed=true]")).to_have_count(3)
    page.locator("#next").click()
    first.rate(range(3, 5), total, by="keys")
    # Their own link works in another browser, too.
    first.page = visit(url)
    first.page.goto(link)
    first.rate(range(5, total + 1), total)

    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    second = Rater(visit(url, **phone), pictures, take=lambda page: shoot(page, "study-phone"))
    second.page.locator("#begin").tap()
    second.rate(range(1, 2), total, by="touch")
    assert second.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    expect(second.page.locator("#keys")).to_be_hidden()
    second.rate(range(2, total + 1), total, by="touch")
    careless = Rater(visit(url), pictures, careless=True)
    careless.page.locator("#begin").click()
    careless.rate(range(1, total + 1), total, by="keys")

    report = write_report(study, tmp_path / "report")
    assert report["raters"] == {
        "began": 3, "answered": 3, "excluded": 1, "counted": 2, "max_failed_checks": 0,
    }  # fmt: skip
    assert report["answers"] == 2 * len(PROMPTS) * len(QUESTIONS)
    assert report["sides"]["left"] == first.left + second.left
    counted = Counter(first.chosen + second.chosen)
    for question in QUESTIONS:
        (pair,) = report["results"][question]["pairs"]
        wins = {system: counted[question, system] for system in ("base", "llm", "tie")}
        assert (pair["first"], pair["second"]) == ("base", "llm")
        assert (pair["first_wins"], pair["second_wins"], pair["ties"]) == tuple(wins.values())
        assert pair["win_rate"]["n"] == 2 * len(PROMPTS) == sum(wins.values())
        rate = pair["win_rate"]
        assert rate["mean"] == pytest.approx((wins["base"] + wins["tie"] / 2) / rate["n"])
        assert rate["low"] <= rate["mean"] <= rate["high"]
    assert report["results"]["alignment"]["pairs"][0]["win_rate"]["mean"] == 0

    # The page of the report says the same, and shows every picture.
    page = visit((tmp_path / "report" / "report.html").as_uri())
    rows = page.get_by_role("row", name="base against llm")
    for at, question in enumerate(QUESTIONS):
        cells = rows.nth(at).locator("td").all_inner_texts()
        assert cells[1:4] == [str(counted[question, system]) for system in ("base", "llm", "tie")]
    expect(page.get_by_text(f"{report['answers']} answers by 2 raters; 3 began, 1 left out")).to_be_visible()
    images = page.locator("img")
    assert images.count() == 2 * len(PROMPTS)
    for index in range(images.count()):
        images.nth(index).scroll_into_view_if_needed()
        expect(images.nth(index)).to_have_js_property("complete", True)
        assert images.nth(index).evaluate("image => image.naturalWidth") > 0
    page.evaluate("scrollTo(0, 0)")
    shoot(page, "study-report")
