"""LaVi-Bridge: a feed-forward adapter between an LLM and a denoiser, with LoRA in both."""

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache

from llmdiff.language.llm import DecoderLLM
from llmdiff.types import TextEncoding
from llmdiff_lab.rivals.connector import Connector
from llmdiff_lab.rivals.last_hidden import LastHiddenStates
from llmdiff_lab.rivals.lora import LLM_LR_SHARE, RemovableLora, layers_within, lora_in

RANK, DROPOUT = 32, 0.1
_DENOISER_KINDS = frozenset({"ResnetBlock2D", "Attention", "GEGLU"})


class LaviBridgeConnector(Connector):
    """Two feed-forward stages from the LLM's last hidden states to the U-Net's text states:

        c = FF2(LN2(FF1(LN1(h)))),   FF(x) = W2 dropout((W1a x) * gelu(W1b x)),   inner width 4 times the input
        FF1: D -> (D + W) / 2,   FF2: (D + W) / 2 -> W

    and LoRA of rank 32 in every projection of the LLM's attention, and in every layer of the U-Net's residual
    blocks, attentions and gated feed-forwards. With LoRA in it, the LLM runs in every training step, with gradients;
    without, its states are read once.

    Shapes: h (B, T, D) => (B, T, W).
    Source: Zhao et al. 2024 (arXiv 2403.07860) and the released code (rank 32, dropout 0.1; 4096 -> 2432 -> 768
        for Llama 2, 1024 -> 896 -> 768 for T5-large; the LLM's LoRA has a twentieth of the learning rate). Differences
        from the released code: padding is masked; captions are dropped as for every rival of the benchmark, while the
        release drops none; in steps from captions alone only the LoRA in the U-Net's text attention gets gradients,
        because no other layer of the U-Net runs.

    Args:
        lora: models with LoRA; without any, only the feed-forward stages are trained.
    """

    def __init__(
        self,
        source: LastHiddenStates,
        denoiser: nn.Module,
        *,
        width: int,
        lora: Collection[Literal["denoiser", "llm"]] = ("denoiser", "llm"),
    ) -> None:
        super().__init__(source)
        middle = (source.hidden_size + width) // 2
        self.norm1, self.norm2 = nn.LayerNorm(source.hidden_size), nn.LayerNorm(middle)
        self.ff1 = _FeedForward(source.hidden_size, middle)
        self.ff2 = _FeedForward(middle, width)
        self.llm_lora = llm_lora(source.llm) if "llm" in lora else None
        self.keeps = "encodings" if self.llm_lora is None else "nothing"
        self.denoiser_lora = denoiser_lora(denoiser) if "denoiser" in lora else None

    def read(self, prompts: Sequence[str]) -> list[str] | TextEncoding:
        """Return the LLM's last states; with LoRA in it the prompts themselves, because its states change."""
        return self.source.encode(prompts) if self.llm_lora is None else list(prompts)

    def carried(self, raw: Sequence[str] | TextEncoding) -> TextEncoding:
        """Return the U-Net's text states of the prompts or of the LLM's last states, (B, T, W)."""
        last = raw if isinstance(raw, TextEncoding) else self._last_hidden(raw)
        device = self.norm1.weight.device
        last = TextEncoding(states=last.states.to(device), token_mask=last.token_mask.to(device))
        states = self.ff2(self.norm2(self.ff1(self.norm1(last.states))))
        return TextEncoding(
            states=states.masked_fill(~last.token_mask[..., None], 0), token_mask=last.token_mask
        )

    def _last_hidden(self, prompts: Sequence[str]) -> TextEncoding:
        """Return the LLM's last states of the kept tokens, with gradients for its LoRA."""
        llm = self.source.llm
        tokens = llm.tokenize(list(prompts), template=self.source.template)
        rows = [ids[real].tolist() for ids, real in zip(tokens.input_ids, tokens.token_mask, strict=True)]
        # A constant prefix is run once for all rows, which gives the same states and gradients; an LLM that cannot
        # cache it reads it in every row. Its first token is BOS, which the rows have as well.
        own = tokens.prefix_ids if llm.reading.whole_texts else ()
        runs = [[*own, *context, *row[1:]] for context, row in zip(tokens.context_ids, rows, strict=True)]
        ids = torch.zeros(len(runs), max(1, *map(len, runs)), dtype=torch.int64, device=llm.device)
        places = torch.zeros(tokens.input_ids.shape, dtype=torch.int64)
        for b, (run, row) in enumerate(zip(runs, rows, strict=True)):
            ids[b, : len(run)] = torch.tensor(run)
            places[b, 1 : len(row)] = torch.arange(len(run) - len(row) + 1, len(run)) + (not own)
        # Padding is on the right and attention is causal: no real token attends to padding.
        with lora_in(self.llm_lora, llm.text_model):
            if own:
                last: Tensor = llm.text_model(input_ids=ids, use_cache=False).last_hidden_state
            else:
                cache = DynamicCache()
                prefix = ids.new_tensor([tokens.prefix_ids])
                first = llm.text_model(
                    input_ids=prefix, past_key_values=cache, use_cache=True
                ).last_hidden_state
                cache.batch_repeat_interleave(len(runs))
                rest = llm.text_model(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state
                last = torch.cat([first[:, :1].expand(len(runs), -1, -1), rest], dim=1)
        places, mask = places.to(last.device), tokens.token_mask.to(last.device)
        kept = last.float().gather(1, places[..., None].expand(-1, -1, last.shape[-1]))
        return TextEncoding(states=kept, token_mask=mask)

    def extended(self, denoiser: nn.Module) -> AbstractContextManager[Any]:
        """Return a context in which the denoiser has its LoRA layers."""
        return lora_in(self.denoiser_lora, denoiser)

    def lr_share(self, name: str) -> float:
        """Return the factor of the learning rate: 1/20 for the LoRA in the LLM."""
        return LLM_LR_SHARE if ".llm_lora." in name else 1.0

    def uses_muon(self, name: str) -> bool:
        """Return whether Muon optimises the parameter: the feed-forward stages; LoRA matrices have too low a rank."""
        return ".ff1." in name or ".ff2." in name


def denoiser_lora(denoiser: nn.Module) -> RemovableLora:
    """Return new LoRA layers for the layers of a U-Net that have them in LaVi-Bridge."""
    return RemovableLora(denoiser, layers_within(denoiser, _DENOISER_KINDS), rank=RANK, dropout=DROPOUT)


def llm_lora(llm: DecoderLLM) -> RemovableLora:
    """Return new LoRA layers for the layers of `llm.text_model` that have them in LaVi-Bridge."""
    model = llm.text_model
    # The class is called LlamaAttention, MistralAttention and so on.
    attention = frozenset(
        type(module).__name__ for module in model.modules() if type(module).__name__.endswith("Attention")
    )
    return RemovableLora(model, layers_within(model, attention), rank=RANK, dropout=DROPOUT)


class _FeedForward(nn.Module):
    def __init__(self, width: int, out_width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * 4 * width)
        self.dropout = nn.Dropout(DROPOUT)
        self.out = nn.Linear(4 * width, out_width)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        result: Tensor = self.out(self.dropout(x * F.gelu(gate)))
        return result
