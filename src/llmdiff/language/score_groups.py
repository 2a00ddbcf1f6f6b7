"""Scores summed over groups of blocks: the form in which captions are stored while gains are trained.

    S_k = sum of clip(s_l / score_scale_l),  V_k = sum of clip(v_l / lone_scale_l)      over the blocks l of group k
    c   = x_0 / x0_scale + sum_k ( gamma_k S_k + kappa_k V_k )

Scales and clipping are constant, so they are applied when a caption is encoded; a training step is then one weighted
sum. With K = L groups this equals the sum of `ContextEncoding`. With fewer, the blocks of a group share a gain, and a
caption takes (1 + 2 K) / (1 + 2 L) of the space: for an LLM of 7 B with 32 blocks, 4.6 MB with K = 4 instead of 33 MB.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmdiff.errors import ConfigError
from llmdiff.language.blocks import run_rows
from llmdiff.language.encoding import ContextEncoding
from llmdiff.language.llm import DecoderLLM
from llmdiff.language.rows import TokenRows


@dataclass(frozen=True, kw_only=True)
class GroupedScores:
    """Grouped scores of a batch of prompts.

    Shapes:
        parts: (N, P, D), the N real tokens of all prompts in order; P = 1 + K in "paper", 1 + 2 K in "guided":
            x_0, then S_k, then V_k.
        token_mask: (B, T) bool, True = real token.
    """

    parts: Tensor
    token_mask: Tensor


def group_of(block: int, num_blocks: int, groups: int) -> int:
    """Return the group of a block; groups are contiguous, and their sizes differ by at most one."""
    return block * groups // num_blocks


def group_parts(context: ContextEncoding, groups: int) -> int:
    """Return P, the number of stored states for each token."""
    return 1 + groups * (1 if context.kappa is None else 2)


@torch.no_grad()
def encode_groups(
    context: ContextEncoding, llm: DecoderLLM, prompts: Sequence[str], *, groups: int
) -> GroupedScores:
    """Return the grouped scores of prompts, summed while the LLM runs: memory grows with K, not with L.

    Raises:
        ConfigError: `groups` is below 1 or above the number of blocks.
        LLMDiffError: see `ContextEncoding.encode`.
    """
    if not 1 <= groups <= context.num_blocks:
        raise ConfigError(
            f"score_groups is {groups}, expected 1 to {context.num_blocks}, the number of the LLM's blocks"
        )
    context.check_llm(llm)
    tokens = llm.tokenize(prompts, template=context.template, max_length=context.max_length)
    mask = tokens.token_mask.to(llm.device)
    guided = context.kappa is not None
    rows = TokenRows.of(tokens, llm.device)
    parts = torch.zeros(rows.words + 1, group_parts(context, groups), context.hidden_size, device=mask.device)

    def add(index: int, x: Tensor, u: Tensor, v: Tensor) -> None:
        if index == 0:
            parts[:, 0] = (x / context.x0_scale.to(x.device)).to(parts)
        group = 1 + group_of(index, context.num_blocks, groups)
        score_scale, lone_scale = context.score_scale[index], context.lone_scale[index]
        parts[:, group] += context.in_scales(u - v, score_scale.to(u.device)).to(parts)
        if guided:
            parts[:, groups + group] += context.in_scales(v, lone_scale.to(v.device)).to(parts)

    run_rows(llm, rows, tokens.prefix_ids, lone=context.lone, visit=add)
    return GroupedScores(parts=parts[rows.rows[mask.flatten()]], token_mask=mask)


def sum_groups(
    context: ContextEncoding, grouped: GroupedScores, *, generator: torch.Generator | None = None
) -> Tensor:
    """Return c of grouped scores, differentiable in gamma and kappa; with a generator, add noise.

    The gain of a group is the mean of its blocks' gains, so these get equal gradients.

    Shapes:
        result: (B, T, D) float32, with routing (B, T, d, D); padding rows are exactly 0.
    """
    gamma, kappa = context.gains()
    per_kind = 1 if kappa is None else 2
    groups = (grouped.parts.shape[1] - 1) // per_kind
    gains = [gamma.new_ones(1, *gamma.shape[1:]), _group_means(gamma, groups)]
    if kappa is not None:
        gains.append(_group_means(kappa, groups))
    weighted = "p,npd->nd" if context.routed is None else "pg,npd->ngd"
    rows = torch.einsum(weighted, torch.cat(gains).to(grouped.parts.device), grouped.parts.float())
    mask = grouped.token_mask
    c = rows.new_zeros(*mask.shape, *rows.shape[1:])
    c = c.masked_scatter(mask[(...,) + (None,) * (c.ndim - 2)], rows)
    return context.add_noise(c, mask, generator)


def _group_means(gains: Tensor, groups: int) -> Tensor:
    index = torch.tensor([group_of(block, len(gains), groups) for block in range(len(gains))]).to(
        gains.device
    )
    sums = gains.new_zeros(groups, *gains.shape[1:]).index_add(0, index, gains)
    return sums / torch.bincount(index, minlength=groups).reshape(-1, *(1,) * (gains.ndim - 1))
