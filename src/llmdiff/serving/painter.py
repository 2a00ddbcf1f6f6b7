"""The painter behind the server: one pipeline under LLM control, drawing PNG files."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llmdiff.adapter.limits import own_size_px
from llmdiff.drawing import draw as drawing
from llmdiff.drawing.draw import DrawingSettings
from llmdiff.drawing.models import Models, load
from llmdiff.drawing.pictures import png_bytes
from llmdiff.errors import ConfigError, UnsupportedPipelineError

if TYPE_CHECKING:
    from llmdiff.controller import LLMController


class PipelinePainter:
    """Draws with a pipeline that its controller is attached to; for one thread at a time.

    Fields:
        size_px: (height, width) of a picture whose size nobody chose.
    """

    def __init__(self, controller: "LLMController", pipe: Any, models: Models) -> None:
        self._controller = controller
        self._pipe = pipe
        self._models = models
        controller.attach(pipe, models.scale)
        pipe.set_progress_bar_config(disable=True)
        size_px = own_size_px(pipe)
        if size_px is None:
            raise UnsupportedPipelineError(
                f"{type(pipe).__name__} has no size of its own: its denoiser's config lacks sample_size"
            )
        self.size_px = size_px

    @classmethod
    def load(cls, models: Models) -> "PipelinePainter":
        """Return the painter with these models.

        Raises:
            LLMDiffError: a model is missing, damaged or does not fit.
        """
        controller, pipe = load(models)
        return cls(controller, pipe, models)

    def draw(
        self, settings: Sequence[DrawingSettings], seeds: Sequence[int], *, on_step: Callable[[], None]
    ) -> list[bytes]:
        """Return PNG files that say how they were made; see `drawing.draw_together`."""
        images = drawing.draw_together(self._pipe, settings, seeds, after_step=lambda *_: on_step())
        pictures = []
        for image, one, seed in zip(images, settings, seeds, strict=True):
            made_with = drawing.facts(one, self._models, self._controller, self._pipe)
            pictures.append(png_bytes(image, {**made_with, "seed": seed}))
        return pictures


def check_size(settings: DrawingSettings, own_px: tuple[int, int], max_pixels: int | None) -> DrawingSettings:
    """Return the settings with their size filled in.

    Raises:
        ConfigError: the picture would have more than `max_pixels` (None: four times the pipeline's own).
    """
    height_px = settings.height_px or own_px[0]
    width_px = settings.width_px or own_px[1]
    limit = max_pixels or 4 * own_px[0] * own_px[1]
    if height_px * width_px > limit:
        raise ConfigError(
            f"size is {width_px}x{height_px}, expected at most {limit} pixels in all: choose a smaller one"
        )
    return replace(settings, height_px=height_px, width_px=width_px)
