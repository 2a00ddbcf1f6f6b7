"""An encoder-decoder's decoder blocks as denoising steps: x_0 plus a learned sum of their updates."""

from collections.abc import Sequence

import torch
from torch import Tensor

from llmdiff.errors import ConfigError
from llmdiff_lab.rivals.encoder import EncoderStates, blocks_of, recorded
from llmdiff_lab.rivals.update_sum import UpdateSum


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
