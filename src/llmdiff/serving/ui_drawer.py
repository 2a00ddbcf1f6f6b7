"""The handler of the page's button: validate the inputs, draw, and show progress."""

import os
import time
from base64 import b64encode
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

from llmdiff.drawing.draw import DrawingSettings, new_seed
from llmdiff.drawing.models import Models, gains_of_thirds, scale_of
from llmdiff.errors import ConfigError, LLMDiffError
from llmdiff.serving import ui_html
from llmdiff.serving.expiring_pictures import ExpiringPictures
from llmdiff.serving.logs import log
from llmdiff.serving.settings import UiSettings
from llmdiff.serving.studio import Drawn, Loading, Notice, Step, Studio
from llmdiff.serving.ui_examples import OPENING, OPENING_SEED, own_world
from llmdiff.serving.ui_html import Shown

MAX_PROMPT = 8000
_MAX_GALLERY = 60


def gradio() -> Any:
    """Import gradio with its telemetry disabled, and return the module."""
    # Gradio reads these when imported.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import gradio

    return gradio


class Drawer:
    """The handler of the page's button: validates the inputs, draws, and shows progress."""

    def __init__(self, studio: Studio, store: ExpiringPictures, settings: UiSettings) -> None:
        self._studio = studio
        self._store = store
        self._settings = settings

    def opening(self) -> list[Shown]:
        """Return the pictures that the page opens with; none, if the first adapter draws another world."""
        models = self._settings.first_models
        if not own_world(models.adapter):
            return []
        order = DrawingSettings(prompt=OPENING, seed=OPENING_SEED)
        with closing(self._studio.draw(order, replace(models, scale=scale_of(models)))) as events:
            # Inside the page, because they outlive the store of pictures.
            return [
                Shown(
                    system=event.system,
                    seed=event.seed,
                    address=f"data:image/png;base64,{b64encode(event.png).decode()}",
                    metadata=event.metadata,
                )
                for event in events
                if isinstance(event, Drawn)
            ]

    def draw(
        self,
        prompt: str,
        negative_prompt: str,
        seed: str,
        number: float,
        steps: float,
        guidance_scale: float,
        scale: float,
        early: float,
        middle: float,
        late: float,
        adapter: str,
        llm: str,
        pipeline: str,
        kept: Sequence[Shown],
    ) -> Iterator[tuple[Any, Any, Any, Any]]:
        """Draw and yield updates of the page: the status, the two sides, the gallery, its state."""
        try:
            order = self._order(prompt, negative_prompt, seed, number, steps, guidance_scale)
            gains = gains_of_thirds(self._settings.models(adapter), (early, middle, late))
            models = self._settings.models(
                adapter, llm=llm or None, pipeline=pipeline or None, scale=scale, block_gains=gains
            )
            yield from self._shown(order, models, [one for one in kept if self._is_kept(one)])
        except LLMDiffError as error:
            yield _change(ui_html.error(str(error)))
        except Exception as error:
            log("drawing failed", level=40, error=error)
            yield _change(ui_html.error("Something went wrong. The server's log has the details."))

    def _shown(
        self, order: DrawingSettings, models: Models, earlier: Sequence[Shown]
    ) -> Iterator[tuple[Any, Any, Any, Any]]:
        pictures: list[Shown] = []
        preview: bytes | None = None
        notice = ""
        total, began = 2 * order.number, time.monotonic()
        yield _change(ui_html.status("starting ...", done=0), ui_html.sides(order.seeds, []))
        with closing(self._studio.draw(order, models)) as events:
            for event in events:
                if isinstance(event, Loading):
                    yield _change(ui_html.status(f"loading {models.adapter} ...", done=0))
                elif isinstance(event, Notice):
                    notice = f" Note: {event.text}."
                elif isinstance(event, Step):
                    preview = event.preview or preview
                    words = (
                        f"{ui_html.TITLES[event.system]}, picture {len(pictures) % order.number + 1} of "
                        f"{order.number}: step {event.step} of {event.steps}"
                    )
                    done = (len(pictures) + event.step / event.steps) / total
                    sides = ui_html.sides(order.seeds, pictures, event, preview)
                    yield _change(ui_html.status(words, done=done), sides)
                else:
                    preview = None
                    pictures.append(self._keep(event))
                    words = f"{len(pictures)} of {total} pictures drawn"
                    kept = [*pictures, *earlier][:_MAX_GALLERY]
                    yield (
                        ui_html.status(words, done=len(pictures) / total),
                        ui_html.sides(order.seeds, pictures),
                        ui_html.gallery(kept),
                        kept,
                    )
        yield _change(ui_html.status(f"Done: {total} pictures in {time.monotonic() - began:.1f} s.{notice}"))

    def _order(
        self,
        prompt: str,
        negative_prompt: str,
        seed: str,
        number: float,
        steps: float,
        guidance_scale: float,
    ) -> DrawingSettings:
        for name, value, most in (
            ("number", number, self._settings.max_number),
            ("steps", steps, self._settings.max_steps),
            ("prompt's length", max(len(prompt), len(negative_prompt)), MAX_PROMPT),
        ):
            if value > most:
                raise ConfigError(f"{name} is {value:g}, expected at most {most}")
        return DrawingSettings(
            prompt=prompt,
            negative_prompt=negative_prompt if negative_prompt.strip() else None,
            seed=_seed(seed),
            number=int(number),
            steps=int(steps),
            guidance_scale=guidance_scale,
        )

    def _keep(self, event: Drawn) -> Shown:
        return Shown(
            system=event.system,
            seed=event.seed,
            address=self._address(event.png),
            metadata=event.metadata,
            heat=[(word, self._address(png)) for word, png in event.heat],
        )

    def _address(self, png: bytes) -> str:
        return f"pictures/{self._store.add(png)}.png"

    def _is_kept(self, one: Shown) -> bool:
        return self._store.get(one.address.removeprefix("pictures/").removesuffix(".png")) is not None


def _change(status: str, sides: str | None = None) -> tuple[Any, Any, Any, Any]:
    """Return an update of the status, and of the sides if given."""
    skip = gradio().skip
    return status, skip() if sides is None else sides, skip(), skip()


def _seed(given: str) -> int:
    if not given.strip():
        return new_seed()
    try:
        return int(given)
    except ValueError:
        raise ConfigError(f"seed is {given!r}, expected a whole number, or nothing for a new one") from None
