"""Modules of a denoiser that read the text alone: computed once for a picture."""

from typing import Any

from torch import Tensor, nn

from llmdiff.adapter.processors import AttachedLayer
from llmdiff.adapter.split import SplitText


class TextOnce(AttachedLayer):
    """A projection or block that reads nothing but the text; its output is kept while the text is the same.

    diffusers calls it in every step. A call outside the denoiser, or with gradients, is the module's own.
    """

    def __init__(self, module: nn.Module, hook: SplitText) -> None:
        super().__init__(module, None, scale=1.0)
        self.hook = hook

    def check(self) -> None:
        """Accept any module."""

    def forward(self, states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the module's output."""
        read: Tensor = self.kept(
            self.hook.source, self.hook.weights, lambda: self.original(states, *args, **kwargs)
        )
        return read
