"""Attention masks: which rows of a text are seen, as booleans or as a bias of the logits."""

import torch
from torch import Tensor


def may_keep() -> bool:
    """Return whether a tensor's values may be read and results kept: without gradients, and not while compiling."""
    return not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def seen_by(real: Tensor, attention_mask: Tensor | None = None) -> Tensor | None:
    """Return the attention mask, (B, 1, 1, T): bool, or a bias if the caller gives a mask; None if all is seen."""
    # A prompt without tokens attends to its zero rows: a softmax over nothing would be NaN.
    seen = (real | ~real.any(dim=-1, keepdim=True))[:, None, None, :]
    if attention_mask is not None:
        theirs = attention_mask.view(attention_mask.shape[0], 1, -1, real.shape[1])
        return as_bias(seen, attention_mask.dtype) + theirs
    # Reading a tensor's value synchronises the GPU: do so only if the result is cached for a whole generation.
    if may_keep() and bool(seen.all()):
        return None
    return seen


def as_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the mask as a bias of the attention's logits."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
