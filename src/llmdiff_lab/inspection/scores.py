"""Measure the updates of every LLM block for every token of a prompt, and how an adapter uses them."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from llmdiff.adapter.adapter import LLMDiffAdapter
from llmdiff.adapter.processors import CrossAttentionBranch
from llmdiff.errors import ConfigError
from llmdiff.language.blocks import Lone, run_blocks
from llmdiff.language.encoding import ContextEncoding
from llmdiff.language.llm import DecoderLLM
from llmdiff.language.rewording import Rewording, readings

Rows = tuple[tuple[float, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Gains:
    """The learned weights of a `ContextEncoding`, one per block; kappa and k are None in "paper".

    Fields:
        gamma, kappa: weights of scores and lone updates in units of their median norms.
        h: variance of the noise.
        g, k: the same weights as factors of s_l and v_l.
    """

    gamma: tuple[float, ...]
    kappa: tuple[float, ...] | None
    h: tuple[float, ...]
    g: tuple[float, ...]
    k: tuple[float, ...] | None


@dataclass(frozen=True, kw_only=True)
class ScoreReport:
    """The updates of every block for the tokens of one prompt; the first token is BOS.

    Fields:
        text, before: the encoded text and the text read before it: the prompt and nothing, unless a closed LLM
            answered.
        context_norm, lone_norm, score_norm: norms of u_l, v_l and s_l = u_l - v_l, in the LLM's units.
        cosine: cosine of u_l and v_l; 1 if the context does not change the direction.
        added: norm of the block's contribution to c, in units of x_0's median norm.
        along: cosine of the contribution and the final c.
        running: cosine of c after this block and the final c.
        state_norm: norm of the token's state x_l, before every block and after the last.
        gates: (a1 e^b1, a2 e^b2), pretrained and new, of every attached layer; None without an adapter.

    Shapes: rows (L, T), with L blocks and T tokens; state_norm (L + 1, T).
    """

    prompt: str
    text: str
    before: str
    llm: str
    lone: str
    encoding: str
    tokens: tuple[str, ...]
    x0_norm: tuple[float, ...]
    encoding_norm: tuple[float, ...]
    context_norm: Rows
    lone_norm: Rows
    score_norm: Rows
    cosine: Rows
    added: Rows
    along: Rows
    running: Rows
    state_norm: Rows
    gains: Gains
    gates: dict[str, tuple[float, float]] | None

    def to_json(self) -> dict[str, Any]:
        """Return the report as a JSON object."""
        return asdict(self) | {"sink": self.sink}

    @property
    def sink(self) -> dict[str, Any]:
        """Return the token and block of the largest context update, and its norms.

        Attention sinks have massive activations. If they also arise in the lone pass, the subtraction removes them.
        `without`, by block: the norm of the token's context update in units of the other tokens' median, that is
        without subtraction; `with`: the same of its score.
        """
        norms = torch.tensor(self.context_norm)
        block, token = divmod(int(norms.argmax()), norms.shape[1])
        return {
            "without": _beside_others(self.context_norm, token),
            "with": _beside_others(self.score_norm, token),
            "block": block,
            "token": token,
            "text": self.tokens[token],
            "context_norm": self.context_norm[block][token],
            "lone_norm": self.lone_norm[block][token],
            "score_norm": self.score_norm[block][token],
            "median_context_norm": float(norms.median()),
        }


@torch.no_grad()
def inspect_scores(
    llm: DecoderLLM,
    prompt: str,
    *,
    adapter: LLMDiffAdapter | None = None,
    lone: Lone = "token+bos",
    calibration_prompts: Sequence[str] | None = None,
    rewording: Rewording | None = None,
) -> ScoreReport:
    """Return the report of one prompt, with an adapter's gains, or with all gains 1 for an LLM alone.

    Without an adapter, scales are calibrated on `calibration_prompts`, or on the prompt itself. With `rewording`, the
    closed LLM's first answer and the prompt are read together, as when drawing.

    Raises:
        ConfigError: the adapter does not sum blocks.
        AdapterMismatchError: the adapter was trained with another LLM.
        PromptError: the prompt cannot be encoded.

    Source: Dong et al. 2024 (arXiv 2502.04412), the analysis of blocks as denoising steps.
    """
    if adapter is None:
        context = ContextEncoding(llm.num_blocks, llm.hidden_size, encoding="paper", lone=lone)
        context.calibrate(llm, list(calibration_prompts or [prompt]))
    elif adapter.context is None:
        raise ConfigError("the adapter sums no blocks (its encoding is None): there are no scores to inspect")
    else:
        context = adapter.context
    text, before = readings(prompt, prompt, rewording)[0]
    tokens = llm.tokenize([text], template=context.template, max_length=context.max_length, contexts=[before])
    blocks: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def visit(index: int, x: Tensor, u: Tensor, v: Tensor | None) -> None:
        assert v is not None
        added = context.contribution(index, u, v)[0]
        # With routing, the mean over the groups of attention layers.
        added = added if context.routed is None else added.mean(dim=-2)
        blocks.append((x[0].clone(), u[0].clone(), v[0].clone(), added))

    run_blocks(llm, tokens, lone=context.lone, visit=visit)
    x, u, v, added = (torch.stack(one) for one in zip(*blocks, strict=True))
    running = x[0] / context.x0_scale.to(x.device) + added.cumsum(0)
    final = running[-1].expand_as(running)
    ids = tokens.input_ids[0][tokens.token_mask[0]].tolist()
    return ScoreReport(
        prompt=prompt,
        text=text,
        before=before,
        llm=llm.id,
        lone=context.lone,
        encoding=context.encoding,
        tokens=tuple(
            llm.tokenizer.convert_tokens_to_string([t]) for t in llm.tokenizer.convert_ids_to_tokens(ids)
        ),
        gains=Gains(
            gamma=_row(context.gamma),
            kappa=None if context.kappa is None else _row(context.kappa),
            h=_row(context.h),
            g=_row(context.gamma / context.score_scale),
            k=None if context.kappa is None else _row(context.kappa / context.lone_scale),
        ),
        gates=None if adapter is None else _gates(adapter),
        x0_norm=_row(x[0].norm(dim=-1)),
        encoding_norm=_row(running[-1].norm(dim=-1)),
        context_norm=_rows(u.norm(dim=-1)),
        lone_norm=_rows(v.norm(dim=-1)),
        score_norm=_rows((u - v).norm(dim=-1)),
        cosine=_rows(F.cosine_similarity(u, v, dim=-1)),
        added=_rows(added.norm(dim=-1)),
        along=_rows(F.cosine_similarity(added, final, dim=-1)),
        running=_rows(F.cosine_similarity(running, final, dim=-1)),
        state_norm=_rows(torch.cat([x, x[-1:] + u[-1:]]).norm(dim=-1)),
    )


def _gates(adapter: LLMDiffAdapter) -> dict[str, tuple[float, float]]:
    branches = cast(dict[str, CrossAttentionBranch], dict(adapter.branches.items()))
    gates = {name: branch.gates() for name, branch in branches.items()}
    return {name: (float(first), float(new)) for name, (first, new) in gates.items()}


def _beside_others(rows: Rows, token: int) -> tuple[float, ...]:
    """Return every block's norm at one token in units of the median of the other tokens without BOS."""
    table = torch.tensor(rows)
    others = [index for index in range(table.shape[1]) if index not in (0, token)]
    medians = table[:, others].median(1).values if others else table.new_ones(len(table))
    return _row(table[:, token] / medians.clamp(min=1e-9))


def _rows(values: Tensor) -> Rows:
    return tuple(map(_row, values))


def _row(values: Tensor) -> tuple[float, ...]:
    row = tuple(float(value) for value in values.detach().float().cpu())
    assert all(math.isfinite(value) for value in row)
    return row
