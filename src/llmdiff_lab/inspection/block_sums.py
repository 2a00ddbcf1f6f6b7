"""Scores of every block for many captions, read once, so that a probe can learn how to sum them."""

from collections.abc import Sequence
from typing import Literal

import torch

from llmdiff.errors import ConfigError
from llmdiff.language.blocks import Lone
from llmdiff.language.calibration import CALIBRATION_CAPTIONS
from llmdiff.language.encoding import ContextEncoding
from llmdiff.language.llm import DecoderLLM
from llmdiff.language.score_groups import GroupedScores, encode_groups, sum_groups
from llmdiff.types import TextEncoding
from llmdiff_lab.inspection.caption_bank import GroupBank, by_length, in_batches

Sum = Literal["paper", "guided", "plain"]
_BATCH = 16


class BlockSums:
    """Scores and lone updates of every block for many captions, and three ways to sum them with learned gains.

        paper:   c = x_0 + sum_l g_l s_l
        guided:  c = x_0 + sum_l (g_l s_l + k_l v_l)
        plain:   guided with k = g: the block's whole update, without subtraction

    Units: 1 MB a caption of 15 tokens for SmolLM2's 30 blocks.
    """

    def __init__(
        self, llm: DecoderLLM, captions: Sequence[str], *, template: str | None, lone: Lone, title: str
    ) -> None:
        """Read the captions, the shortest first, with a progress bar of this title."""
        self.llm = llm
        self.scales = ContextEncoding(llm.num_blocks, llm.hidden_size, lone=lone, template=template)
        self.scales.calibrate(llm, captions[:CALIBRATION_CAPTIONS])
        order = by_length(captions)
        batches = in_batches([captions[index] for index in order], batch=_BATCH, title=title)
        self._bank = GroupBank(
            (encode_groups(self.scales, llm, part, groups=llm.num_blocks) for part in batches), order
        )

    def fresh_gains(self, kind: Sum) -> ContextEncoding:
        """Return untrained gains with the scales of these captions.

        Raises:
            ConfigError: the sum is unknown.
        """
        if kind not in ("paper", "guided", "plain"):
            raise ConfigError(f'sum is {kind!r}, expected "paper", "guided" or "plain"')
        context = ContextEncoding(
            self.llm.num_blocks, self.llm.hidden_size, encoding="guided" if kind == "guided" else "paper"
        )
        scales = {name: value for name, value in self.scales.state_dict().items() if "scale" in name}
        context.load_state_dict(scales, strict=False)
        return context

    def encode(self, indices: Sequence[int], kind: Sum, gains: ContextEncoding) -> TextEncoding:
        """Return the sums of these captions, differentiable in the gains. Shapes: (B, T, D), (B, T)."""
        grouped = self._bank.batch(indices)
        if kind != "guided":
            blocks = self.llm.num_blocks
            # parts: x_0, the scores, the lone updates
            parts = grouped.parts.float()
            x0, scores, alone = parts[:, :1], parts[:, 1 : 1 + blocks], parts[:, 1 + blocks :]
            if kind == "plain":
                # k = g, in units of the score's scale
                scores = scores + alone * (gains.lone_scale / gains.score_scale)[:, None]
            grouped = GroupedScores(parts=torch.cat([x0, scores], 1), token_mask=grouped.token_mask)
        return TextEncoding(states=sum_groups(gains, grouped), token_mask=grouped.token_mask)
