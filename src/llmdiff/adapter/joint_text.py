"""What a denoiser's hook hands to its joint attention layers."""

from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor

from llmdiff.adapter.masks import may_keep


@dataclass(frozen=True, kw_only=True)
class JointText:
    """The text inputs of a joint transformer's attention layers.

    Shapes:
        llm_states (B, T, D), c; seen (B, 1, 1, T) or None, which rows of c are real; bias (B, 1, 1, rows), what is
        added to the logits of the text's rows, None where that is nothing; lead, the denoiser's own rows before them;
        counts (B,), the rows of each text in a single stream, most the largest of them.
    """

    llm_states: Tensor
    seen: Tensor | None
    bias: Tensor | None = None
    lead: int = 0
    counts: Tensor | None = None
    most: int = 0
    _beside: dict[int, Tensor] = field(default_factory=dict, repr=False)

    def beside_image(self, rows: int, *, text_first: bool) -> Tensor:
        """Return the bias of all rows of a joint attention: that of the text's rows, and 0 for the image's.

        It is the same in all layers and steps, so it is kept, but not where it may be part of a graph.
        """
        assert self.bias is not None
        found = self._beside.get(rows)
        if found is None:
            tokens = self.bias.shape[-1]
            before = self.lead if text_first else rows - tokens
            found = F.pad(self.bias, (before, rows - tokens - before))
            if may_keep():
                self._beside[rows] = found
        return found
