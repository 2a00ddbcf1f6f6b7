"""x_0 plus a learned sum of block updates without a subtraction, for LLMs and encoders."""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from llmdiff.errors import ConfigError
from llmdiff.language.encoding import ContextEncoding
from llmdiff.language.llm import DecoderLLM
from llmdiff.types import BlockStates, TextEncoding
from llmdiff_lab.rivals.block_inputs import LLMStates
from llmdiff_lab.rivals.encoder import EncoderStates, blocks_of, recorded
from llmdiff_lab.rivals.learned_source import LearnedSource


class UpdateSum(LearnedSource):
    """c = x_0 / x0_scale + sum_l gamma_l clip(u_l / scale_l): our encoding with all lone updates set to 0.

    Gains, scales and clipping are those of `ContextEncoding`, so that only the subtraction differs.
    """

    def __init__(self, id: str, num_updates: int, hidden_size: int) -> None:
        super().__init__()
        self.id = id
        self.hidden_size = hidden_size
        self.context = ContextEncoding(num_updates, hidden_size, encoding="paper", clip=3.0)
        self.context.h_raw.requires_grad_(False)  # no noise is drawn

    @abstractmethod
    def updates(self, prompts: Sequence[str]) -> tuple[Tensor, list[Tensor], Tensor]:
        """Return x_0 (B, T, D), every block's update (B, T, D) and the token mask (B, T)."""

    def read(self, prompts: Sequence[str]) -> TextEncoding:
        """Return x_0 and all updates side by side. Shapes: (B, T, (1 + L) * D), (B, T)."""
        x0, updates, mask = self.updates(prompts)
        return TextEncoding(states=torch.cat([x0, *updates], dim=-1), token_mask=mask)

    def combine(self, raw: TextEncoding) -> TextEncoding:
        """Return c. Shapes: (B, T, (1 + L) * D) => (B, T, D)."""
        states = raw.states.to(self.context.gamma.device)
        x0, *updates = torch.split(states, self.hidden_size, dim=-1)
        context = torch.stack(updates)
        blocks = BlockStates(
            x0=x0,
            context=context,
            lone=torch.zeros(()).to(context).expand_as(context),
            token_mask=raw.token_mask.to(context.device),
            input_ids=torch.zeros(x0.shape[:2], dtype=torch.int64),
        )
        return TextEncoding(states=self.context.sum(blocks), token_mask=blocks.token_mask)

    @torch.no_grad()
    def calibrate(self, prompts: Sequence[str]) -> None:
        """Set the scales to median token norms over these captions, without first tokens."""
        norms: list[Tensor] = []
        for start in range(0, len(prompts), 16):
            raw = self.read(prompts[start : start + 16])
            words = raw.token_mask & (raw.token_mask.cumsum(1) > 1)
            parts = torch.unflatten(raw.states[words], -1, (-1, self.hidden_size))
            norms.append(torch.linalg.vector_norm(parts.float(), dim=-1))
        scales = torch.cat(norms).median(dim=0).values.clamp(min=1e-6)
        self.context.x0_scale.copy_(scales[0])
        self.context.score_scale.copy_(scales[1:])


class ContextOnly(UpdateSum):
    """c = x_0 + sum_l g_l u_l,   u_l = block_l(x_l | causal context) - x_l

    Source: ours, an ablation of Dong et al. 2024 (arXiv 2502.04412): no lone update is subtracted.
    """

    def __init__(self, llm: DecoderLLM, *, template: str | None = None) -> None:
        super().__init__(llm.id, llm.num_blocks, llm.hidden_size)
        self._source = LLMStates(llm, template=template)

    def updates(self, prompts: Sequence[str]) -> tuple[Tensor, list[Tensor], Tensor]:
        """Return x_0, every block's context update and the token mask."""
        first: list[Tensor] = []
        updates: list[Tensor] = []

        def keep(index: int, x: Tensor, u: Tensor) -> None:
            if index == 0:
                first.append(x)
            updates.append(u)

        mask = self._source.read(prompts, keep)
        return first[0], updates, mask


class Consecutive(ContextOnly):
    """c = x_0 + sum_l g_l (u_l - u_{l-1}),   u_{-1} = 0,   u_l = block_l(x_l | causal context) - x_l

    A score is the difference between the updates of a block and the block before it; no block reads a token alone.
    Without clipping this is `ContextOnly` with gains g_l - g_{l+1}; scales and clipping are per difference.

    Source: a second reading of the score in Dong et al. 2024 (arXiv 2502.04412): its text also fits a difference
        between consecutive denoising steps of the same token.
    """

    def updates(self, prompts: Sequence[str]) -> tuple[Tensor, list[Tensor], Tensor]:
        """Return x_0, the differences of consecutive blocks' updates and the token mask."""
        first, updates, mask = super().updates(prompts)
        differences = [one - before for one, before in zip(updates[1:], updates[:-1], strict=True)]
        return first, [updates[0], *differences], mask


class BlockPosterior(UpdateSum):
    """c = x_0 + sum_l g_l u_l,   u_l = block_l(x_l | whole text) - x_l

    A block of an encoder (T5's or an encoder-only model's) reads the whole text at once. Its output is the posterior
    p(x^{t-1} | x^t) of all tokens together, so there is no separate left context and nothing to subtract.

    Source: Dong et al. 2024 (arXiv 2502.04412), blocks as denoising steps, carried over to encoders by us.
    """

    def __init__(self, encoder: EncoderStates) -> None:
        super().__init__(encoder.id, len(encoder.blocks), encoder.hidden_size)
        self.encoder = encoder

    def updates(self, prompts: Sequence[str]) -> tuple[Tensor, list[Tensor], Tensor]:
        """Return x_0, every block's update and the token mask."""
        return self.encoder.updates(prompts)


class DecoderPosterior(UpdateSum):
    """c = x_0 + sum_l g_l u_l,   u_l = block_l(x_l | tokens up to its own, the encoder's states) - x_l

    The decoder reads its start token and then the same prompt as the encoder. The encoder's states replace the left
    context, so nothing is subtracted.

    Raises:
        ConfigError: the model's decoder is missing.

    Source: Dong et al. 2024 (arXiv 2502.04412), which takes the posterior of encoder-decoder LLMs from the decoder's
        blocks and does not specify the decoder's input.
    """

    def __init__(self, encoder: EncoderStates) -> None:
        if encoder.decoder is None:
            raise ConfigError(
                f"t5 {encoder.id!r} has no decoder, or its weights are missing: give a whole encoder-decoder"
            )
        blocks = blocks_of(encoder.decoder, int(encoder.decoder.config.num_layers), id=encoder.id)
        super().__init__(encoder.id, len(blocks), encoder.hidden_size)
        self.encoder = encoder
        self._blocks = tuple(blocks)  # in a tuple, so that they are not registered as submodules

    @torch.no_grad()
    def updates(self, prompts: Sequence[str]) -> tuple[Tensor, list[Tensor], Tensor]:
        """Return x_0, every block's update and the token mask."""
        encoder, decoder = self.encoder, self.encoder.decoder
        ids, mask = encoder.tokens(prompts)
        states = encoder.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        start = ids.new_full((len(ids), 1), int(decoder.config.decoder_start_token_id))
        # Padding is on the right and attention is causal: no real token attends to padding.
        with recorded(self._blocks) as found:
            decoder(
                input_ids=torch.cat([start, ids], dim=1),
                encoder_hidden_states=states,
                encoder_attention_mask=mask.long(),
                use_cache=False,
            )
        blank = ~mask[..., None]
        updates = [(out - x)[:, 1:].masked_fill(blank, 0) for x, out in found]
        return found[0][0][:, 1:].masked_fill(blank, 0), updates, mask
