"""ELLA: a resampler that depends on the time step."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import Tensor, nn

from llmdiff.types import TextEncoding
from llmdiff_lab.rivals.connector import Connector
from llmdiff_lab.rivals.last_hidden import LastHiddenStates

_LAYERS, _HEADS, _QUERIES = 6, 8, 64


class EllaConnector(Connector):
    """64 learned queries attend to the LLM's last hidden states in 6 blocks that depend on the time step.

        e = MLP(sinusoid(t));   z = queries + W silu(e);   x = W_in c
        per block:  z = z + Attn(AdaLN1(z, e), [AdaLN1(z, e) ; AdaLN2(x, e)])
                    z = z + W2 relu(W1 AdaLN3(z, e))^2
        AdaLN(x, e) = LN(x) (1 + scale) + shift,   [shift ; scale] = W silu(e), zero at the start

    The U-Net's own cross-attention reads the 64 queries.

    Shapes: LLM states (B, T, D) => (B, 64, W).
    Source: Hu et al. 2024 (arXiv 2403.05135), the Timestep-Aware Semantic Connector, with the sizes of the
        released one for SD 1.5 (6 layers, 8 heads, sinusoid of the U-Net's first width, time embedding of width
        W). Padding is masked, where the release pads every prompt to one length and reads the padding.
    """

    def __init__(self, source: LastHiddenStates, *, width: int, time_channels: int) -> None:
        super().__init__(source)
        self.position = Timesteps(time_channels, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(time_channels, width, act_fn="silu")
        self.queries = nn.Parameter(torch.randn(_QUERIES, width) * width**-0.5)
        self.time_in = nn.Linear(width, width)
        self.proj_in = nn.Linear(source.hidden_size, width)
        self.blocks = nn.ModuleList(_ResamplerBlock(width) for _ in range(_LAYERS))

    def read(self, prompts: Sequence[str]) -> TextEncoding:
        """Return the LLM's last hidden states, (B, T, D)."""
        return self.source.encode(prompts)

    def at_step(self, encoding: TextEncoding, timesteps: Tensor) -> TextEncoding:
        """Return the queries after all blocks, (B, 64, W), without padding."""
        time = self.time_embedding(self.position(timesteps).to(self.queries.dtype))[:, None]
        latents = self.queries + self.time_in(nn.functional.silu(time))
        x = self.proj_in(encoding.states)
        for block in self.blocks:
            latents = block(x, latents, time, ~encoding.token_mask)
        real = torch.ones(latents.shape[:2], dtype=torch.bool, device=latents.device)
        return TextEncoding(states=latents, token_mask=real)

    def uses_muon(self, name: str) -> bool:
        """Return whether Muon optimises the parameter: matrices of blocks, except those of the time step."""
        return ".blocks." in name and ".linear." not in name


class _AdaLayerNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 2 * width)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        shift, scale = self.linear(nn.functional.silu(time)).chunk(2, dim=-1)
        modulated: Tensor = self.norm(x) * (1 + scale) + shift
        return modulated


class _SquaredReLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.relu().square()


class _ResamplerBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, _HEADS, batch_first=True)
        self.mlp = nn.Sequential(
            OrderedDict(
                c_fc=nn.Linear(width, 4 * width), act=_SquaredReLU(), c_proj=nn.Linear(4 * width, width)
            )
        )
        self.ln_1, self.ln_2, self.ln_ff = (_AdaLayerNorm(width) for _ in range(3))

    def forward(self, x: Tensor, latents: Tensor, time: Tensor, padding: Tensor) -> Tensor:
        query = self.ln_1(latents, time)
        seen = torch.cat([query, self.ln_2(x, time)], dim=1)
        hidden = torch.cat([padding.new_zeros(latents.shape[:2]), padding], dim=1)
        latents = latents + self.attn(query, seen, seen, key_padding_mask=hidden, need_weights=False)[0]
        result: Tensor = latents + self.mlp(self.ln_ff(latents, time))
        return result
