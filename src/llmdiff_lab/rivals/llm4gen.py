"""LLM4GEN: the LLM's states attend to CLIP's, and both are read side by side."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmdiff.types import TextEncoding
from llmdiff_lab.rivals.base_text import padded_ids
from llmdiff_lab.rivals.connector import Connector, side_by_side
from llmdiff_lab.rivals.last_hidden import LastHiddenStates
from llmdiff_lab.rivals.lora import RemovableLora, lora_in


class Llm4GenConnector(Connector):
    """The Cross-Adapter Module: LLM tokens attend to CLIP's tokens; the U-Net reads both, concatenated.

        y = W_llm c_llm
        y = y + W_o Attn(W_q LN(y), W_k LN(c_clip), W_v LN(c_clip))
        y = y + W_2 quickgelu(W_1 LN(y)),   quickgelu(x) = x sigmoid(1.702 x)
        c = [c_clip ; y]

    CLIP's padding tokens are read, as in Stable Diffusion; the LLM's padding is masked.

    Shapes: CLIP (B, S, W), LLM (B, T, D) => (B, S + T, W).
    Source: Liu et al. 2024 (arXiv 2407.00737), as in the released inference code (8 heads, one module). The
        original also fine-tunes the whole U-Net with an entity-guided loss; here the denoiser is frozen, or has LoRA
        (`denoiser_lora`), and the loss is the base's own.
    """

    def __init__(
        self,
        source: LastHiddenStates,
        tokenizer: Any,
        text_encoder: Any,
        *,
        heads: int = 8,
        denoiser_lora: RemovableLora | None = None,
    ) -> None:
        super().__init__(source)
        self.denoiser_lora = denoiser_lora
        self.clip = (tokenizer, text_encoder)  # in a tuple, so that it is not registered as a submodule
        self.hidden_size, self.heads = source.hidden_size, heads
        width = self.width = int(text_encoder.config.hidden_size)
        self.llm_proj = nn.Linear(source.hidden_size, width)
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.q_norm, self.kv_norm, self.norm = (nn.LayerNorm(width) for _ in range(3))
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        for layer in (self.q_proj, self.k_proj, self.v_proj, self.out_proj):
            nn.init.trunc_normal_(layer.weight, std=0.02)

    @torch.no_grad()
    def read(self, prompts: Sequence[str]) -> TextEncoding:
        """Return CLIP's and the LLM's states, concatenated along the tokens, (B, S + T, max(W, D))."""
        tokenizer, text_encoder = self.clip
        ids = padded_ids(tokenizer, prompts).to(text_encoder.device)
        clip = text_encoder(ids).last_hidden_state.float()
        return side_by_side(clip, self.source.encode(prompts))

    def carried(self, raw: TextEncoding) -> TextEncoding:
        """Return [c_clip ; y], (B, S + T, W)."""
        count = int(self.clip[0].model_max_length)
        states = raw.states.to(self.llm_proj.weight.device)
        clip, y = states[:, :count, : self.width], self.llm_proj(states[:, count:, : self.hidden_size])
        # The release normalises the LLM's side with its kv_norm and CLIP's with its q_norm.
        texts = self.q_norm(clip)
        looked_up = F.scaled_dot_product_attention(
            self._heads(self.q_proj(self.kv_norm(y))),
            self._heads(self.k_proj(texts)),
            self._heads(self.v_proj(texts)),
        )
        y = y + self.out_proj(looked_up.transpose(1, 2).flatten(2))
        inner = self.fc1(self.norm(y))
        y = y + self.fc2(inner * torch.sigmoid(1.702 * inner))
        mask = raw.token_mask.to(y.device)
        both = torch.cat([clip, y], dim=1).masked_fill(~mask[..., None], 0)
        return TextEncoding(states=both, token_mask=mask)

    def _heads(self, states: Tensor) -> Tensor:
        return torch.unflatten(states, -1, (self.heads, -1)).transpose(1, 2)

    def extended(self, denoiser: nn.Module) -> AbstractContextManager[Any]:
        """Return a context in which the denoiser has its LoRA layers, if there are any."""
        return lora_in(self.denoiser_lora, denoiser)

    def uses_muon(self, name: str) -> bool:
        """Return whether Muon optimises the parameter: all but the first projection and LoRA."""
        return ".llm_proj." not in name and "_lora." not in name
