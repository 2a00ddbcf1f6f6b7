"""Draw the same seeds with base and LLM, step by step, for the page."""

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from llmdiff.drawing import draw as drawing
from llmdiff.drawing.draw import DrawingSettings
from llmdiff.drawing.models import Models, load
from llmdiff.drawing.pictures import png_bytes
from llmdiff.errors import PromptError, UnsupportedPipelineError
from llmdiff.serving.preview import Previewer

if TYPE_CHECKING:
    from PIL.Image import Image

    from llmdiff.controller import LLMController
    from llmdiff.drawing.attention_maps import WordWatch

System = Literal["base", "llm"]
# The most progress reports per second; every one is a message to the browser.
_REPORT_EVERY_S = 0.1


@dataclass(frozen=True, kw_only=True)
class Loading:
    """The models are being loaded."""

    models: Models


@dataclass(frozen=True, kw_only=True)
class Step:
    """A picture after `step` of `steps`; `preview` is a PNG file, None where there is no new one."""

    system: System
    seed: int
    step: int
    steps: int
    preview: bytes | None


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A finished picture as a PNG file, and its metadata.

    Fields:
        heat: for every word of the prompt, a PNG file of its attention map; empty for the base, and if the pipeline
            has no cross-attention.
    """

    system: System
    seed: int
    png: bytes
    metadata: Mapping[str, str]
    heat: Sequence[tuple[str, bytes]] = ()


@dataclass(frozen=True, kw_only=True)
class Notice:
    """A one-line notice about the following pictures."""

    text: str


Event = Loading | Notice | Step | Drawn


class _StoppedError(Exception):
    """The visitor has left."""


class Studio:
    """Draws one order at a time in a worker thread, and keeps the last models loaded."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="studio")
        self._loaded: tuple[Models, LLMController, Any] | None = None
        self._stops: set[threading.Event] = set()

    def load(self, models: Models) -> None:
        """Load the models, unless they are the last ones used.

        Raises:
            LLMDiffError: a model is missing, damaged or does not fit.
        """
        self._thread.submit(self._models, models, lambda event: None).result()

    def draw(self, settings: DrawingSettings, models: Models) -> Generator[Event, None, None]:
        """Draw and yield events: for all of the base's pictures, then for the LLM's.

        Closing the generator ends the drawing at its next step. `models.scale` is the LLM's scale.

        Raises:
            LLMDiffError: a model is missing, damaged or does not fit, or the order cannot be drawn.
        """
        events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        stop = threading.Event()
        self._stops.add(stop)
        work = self._thread.submit(self._draw, settings, models, events.put, stop)
        work.add_done_callback(lambda _: events.put(None))
        try:
            while (event := events.get()) is not None:
                yield event
            work.result()
        except _StoppedError:
            return
        finally:
            stop.set()
            work.cancel()
            self._stops.discard(stop)

    def stop(self) -> None:
        """Stop the current drawing at its next step, and all waiting ones."""
        for stop in list(self._stops):
            stop.set()

    def close(self) -> None:
        """Stop the current drawing and end the thread."""
        self.stop()
        self._thread.shutdown(cancel_futures=True)

    def _models(self, models: Models, tell: Callable[[Event], None]) -> tuple["LLMController", Any]:
        # The loaded models do not depend on the control settings.
        wanted = replace(models, scale=None, block_gains=None, layer_scale=None)
        if self._loaded is None or self._loaded[0] != wanted:
            # Free the old models first: there may not be memory for both.
            self._loaded = None
            tell(Loading(models=models))
            controller, pipe = load(models)
            pipe.set_progress_bar_config(disable=True)
            self._loaded = (wanted, controller, pipe)
        return self._loaded[1:]

    def _draw(
        self,
        settings: DrawingSettings,
        models: Models,
        tell: Callable[[Event], None],
        stop: threading.Event,
    ) -> None:
        controller, pipe = self._models(models, tell)
        if (notice := drawing.prompt_notice(pipe, settings.prompt)) is not None:
            tell(Notice(text=notice))

        def picture(system: System, seed: int, words_watch: "WordWatch | None" = None) -> None:
            after_step = _watcher(pipe, settings, system, seed, tell, stop, words_watch)
            image = drawing.draw(pipe, settings, seed, after_step=after_step)
            # Scale 0 is the base, so that the metadata reproduces the picture.
            made_with = (
                replace(models, scale=0.0, block_gains=None, layer_scale=None) if system == "base" else models
            )
            metadata = drawing.picture_metadata(settings, made_with, controller, pipe) | {"seed": seed}
            words = {name: str(value) for name, value in metadata.items() if value is not None}
            heat = [] if words_watch is None else _heat(words_watch, image)
            tell(Drawn(system=system, seed=seed, png=png_bytes(image, words), metadata=words, heat=heat))

        for seed in settings.seeds:
            picture("base", seed)
        with controller.attached(pipe, models.control):
            for seed in settings.seeds:
                with _words_watched(controller, pipe, settings.prompt) as words_watch:
                    picture("llm", seed, words_watch)


@contextmanager
def _words_watched(controller: "LLMController", pipe: Any, prompt: str) -> Iterator["WordWatch | None"]:
    """Return a context that records attention maps if the pipeline has cross-attention."""
    from llmdiff.drawing.attention_maps import watching_words

    with ExitStack() as stack:
        try:
            watch = stack.enter_context(watching_words(controller, pipe, prompt))
        except (UnsupportedPipelineError, PromptError):  # no cross-attention; a prompt without words
            watch = None
        yield watch


def _heat(watch: "WordWatch", image: "Image") -> list[tuple[str, bytes]]:
    from llmdiff.drawing.heat import heat_picture

    maps = watch.maps(image)
    return [
        (word.text, png_bytes(heat_picture(image, heat), {"prompt": maps.prompt, "word": word.text}))
        for word, heat in zip(maps.words, maps.summed().numpy(), strict=True)
    ]


def _watcher(
    pipe: Any,
    settings: DrawingSettings,
    system: System,
    seed: int,
    tell: Callable[[Event], None],
    stop: threading.Event,
    words_watch: "WordWatch | None",
) -> drawing.AfterStep:
    """Return a callback that reports every step; it does not change the picture."""
    previewer = Previewer(pipe)
    told_at = 0.0

    def after_step(step: int, timestep: Any, latents: Any) -> None:
        nonlocal told_at
        if stop.is_set():
            raise _StoppedError
        if words_watch is not None:
            words_watch.next_step()
        preview = previewer.after_step(timestep, latents)
        now = time.monotonic()
        if preview is not None or now - told_at >= _REPORT_EVERY_S:
            told_at = now
            # Some schedulers take more steps than requested.
            steps = max(getattr(pipe, "num_timesteps", settings.steps), step + 1)
            tell(Step(system=system, seed=seed, step=step + 1, steps=steps, preview=preview))

    return after_step
