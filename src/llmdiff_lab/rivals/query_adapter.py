"""Queries from the base's own tokens attend to an LLM's last states."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmdiff.types import TextEncoding
from llmdiff_lab.rivals.base_text import padded_ids
from llmdiff_lab.rivals.connector import Connector
from llmdiff_lab.rivals.last_hidden import LastHiddenStates

_BLOCKS = 6


class QueryAdapterConnector(Connector):
    """Learned embeddings of the base tokenizer's ids attend to each other and to the LLM's states, block by block:

        z = E[ids]
        z = z + SelfAttn(LN(z));   z = z + CrossAttn(LN(z), h);   z = z + W_2 gelu(W_1 LN(z))
        c = LN(W z)

    The result has a row for each token of the base's own text, including padding, as in the denoiser's training.

    Shapes: ids (B, S), h (B, T, D) => (B, S, W).
    Source: Anima (circlestone-labs/Anima), whose adapter has six blocks with queries from T5 ids and keys from Qwen3's
        last states; here the queries are from CLIP's ids, and the denoiser is frozen. No rotary embedding, because
        CLIP's positions are learned.
    """

    keeps = "nothing"

    def __init__(self, source: LastHiddenStates, tokenizer: Any, *, width: int) -> None:
        super().__init__(source)
        self.tokenizer = tokenizer
        self.embedding = nn.Embedding(len(tokenizer), width)
        self.position = nn.Parameter(torch.zeros(int(tokenizer.model_max_length), width))
        self.norm_llm = nn.LayerNorm(source.hidden_size)
        self.blocks = nn.ModuleList(_Block(width, source.hidden_size) for _ in range(_BLOCKS))
        self.out, self.norm = nn.Linear(width, width), nn.LayerNorm(width)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def read(self, prompts: Sequence[str]) -> tuple[Tensor, TextEncoding]:
        """Return the base tokenizer's ids (B, S) and the LLM's states (B, T, D)."""
        return padded_ids(self.tokenizer, prompts), self.source.encode(prompts)

    def carried(self, raw: tuple[Tensor, TextEncoding]) -> TextEncoding:
        """Return the U-Net's text states, (B, S, W); every row is read."""
        ids, texts = raw
        device = self.position.device
        z = self.embedding(ids.to(device)) + self.position
        llm_states, mask = self.norm_llm(texts.states.to(device)), texts.token_mask.to(device)
        for block in self.blocks:
            z = block(z, llm_states, mask)
        c = self.norm(self.out(z))
        return TextEncoding(states=c, token_mask=torch.ones(c.shape[:2], dtype=torch.bool, device=device))

    def uses_muon(self, name: str) -> bool:
        """Return whether Muon optimises the parameter: the matrices of the blocks."""
        return ".blocks." in name


class _Block(nn.Module):
    def __init__(self, width: int, hidden_size: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.self_attention = nn.MultiheadAttention(width, _heads(width), batch_first=True)
        self.cross_attention = nn.MultiheadAttention(
            width, _heads(width), kdim=hidden_size, vdim=hidden_size, batch_first=True
        )
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, z: Tensor, llm_states: Tensor, mask: Tensor) -> Tensor:
        y = self.norms[0](z)
        z = z + self.self_attention(y, y, y, need_weights=False)[0]
        y = self.norms[1](z)
        z = z + self.cross_attention(y, llm_states, llm_states, key_padding_mask=~mask, need_weights=False)[0]
        result: Tensor = z + self.narrow(F.gelu(self.widen(self.norms[2](z))))
        return result


def _heads(width: int) -> int:
    return next(count for count in (8, 4, 2, 1) if width % count == 0)
