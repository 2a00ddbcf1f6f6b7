"""Draw PNG files with one pipeline under LLM control."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from llmdiff.adapter.limits import own_size_px, side_multiple_px
from llmdiff.drawing import draw as drawing
from llmdiff.drawing.draw import DrawingSettings
from llmdiff.drawing.models import Models, load
from llmdiff.drawing.pictures import png_bytes
from llmdiff.errors import UnsupportedPipelineError
from llmdiff.serving.editing import EditSettings, edit_class, edit_inputs, edit_pipeline

if TYPE_CHECKING:
    from llmdiff.controller import LLMController


class PipelineDrawer:
    """Draws with an attached pipeline; not thread-safe.

    Fields:
        controller, pipe: the LLM's side, and the pipeline that it is attached to.
        size_px: the default (height, width).
        multiple_px: the number that height and width must be multiples of.
        can_edit: whether its family has an image-to-image pipeline.
    """

    def __init__(self, controller: "LLMController", pipe: Any, models: Models) -> None:
        self.controller = controller
        self.pipe = pipe
        self._models = models
        controller.attach(pipe, models.control)
        pipe.set_progress_bar_config(disable=True)
        size_px = own_size_px(pipe)
        if size_px is None:
            raise UnsupportedPipelineError(
                f"{type(pipe).__name__} has no size of its own: its denoiser's config lacks sample_size"
            )
        self.size_px = size_px
        self.multiple_px = side_multiple_px(pipe)
        self.can_edit = edit_class(pipe) is not None
        self._edit_pipe: Any = None  # created on first use

    @classmethod
    def load(cls, models: Models) -> "PipelineDrawer":
        """Load these models and return a drawer.

        Raises:
            LLMDiffError: a model is missing, damaged or does not fit.
        """
        controller, pipe = load(models, base_draws=False)
        return cls(controller, pipe, models)

    def draw(
        self, settings: Sequence[DrawingSettings], seeds: Sequence[int], *, on_step: Callable[[], None]
    ) -> list[bytes]:
        """Return PNG files with metadata; see `drawing.draw_together`."""
        edits = [one for one in settings if isinstance(one, EditSettings)]
        pipe, inputs = self.pipe, None
        if edits:
            pipe = self._editing()
            inputs = edit_inputs(pipe, edits)
        images = drawing.draw_together(pipe, settings, seeds, after_step=lambda *_: on_step(), inputs=inputs)
        pictures = []
        for image, one, seed in zip(images, settings, seeds, strict=True):
            made_with = drawing.picture_metadata(one, self._models, self.controller, self.pipe)
            if isinstance(one, EditSettings):
                made_with |= {"image_sha256": one.picture_sha256, "strength": one.strength}
            pictures.append(png_bytes(image, {**made_with, "seed": seed}))
        return pictures

    def _editing(self) -> Any:
        if self._edit_pipe is None:
            pipe = edit_pipeline(self.pipe)
            self.controller.attach(pipe, self._models.control)
            pipe.set_progress_bar_config(disable=True)
            self._edit_pipe = pipe
        return self._edit_pipe
