"""Measure the update of every LLM block for every token of a prompt, and its use by an adapter."""

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
    """The learned weights of a `ContextEncoding`, one number for each block; kappa is None in "paper".

    gamma, kappa: weights of scores and lone updates in units of their median norms; h: variance of the noise.
    g, k: the same weights as they stand before s_l and v_l themselves.
    """

    gamma: tuple[float, ...]
    kappa: tuple[float, ...] | None
    h: tuple[float, ...]
    g: tuple[float, ...]
    k: tuple[float, ...] | None


@dataclass(frozen=True, kw_only=True)
class ScoreReport:
    """Every block's work on the tokens of one prompt, the first of which is BOS.

    Shapes (rows are the L blocks, columns the T tokens):
        context_norm, lone_norm, score_norm: norms of u_l, v_l and s_l = u_l - v_l, in the LLM's own units.
        cosine: between u_l and v_l; 1 where the context changed nothing of the direction.
        added: norm of what the block adds to c, in units of x_0's median norm.
        along: cosine between what it adds and the finished c.
        running: cosine between c after this block and the finished c.
        state_norm: norm of the token's state x_l, (L + 1, T): with the one after the last block.
    Fields:
        gates: (pretrained, new) of every attached layer by name, a1 e^b1 and a2 e^b2; None without an adapter.
        text, before: what was encoded and what was read before it: the prompt and nothing, unless a closed LLM
            answered.
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
        """Return the report as JSON takes it."""
        return asdict(self) | {"sink": self.sink}

    @property
    def sink(self) -> dict[str, Any]:
        """Return the token and block of the largest context update, and how large that and its score are.

        Attention sinks are answered with massive activations; the score of one that arises in the lone pass
        as well is small, which is what the subtraction is good for. By block, for this token: "without" is its
        context update in units of the other tokens' median, "with" its score in units of theirs.
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
    """Return the report of one prompt: with an adapter's gains, or with all gains 1 for an LLM alone.

    Without an adapter, scales are calibrated on `calibration_prompts`, or on the prompt itself. With
    `rewording`, the closed LLM's first answer and the prompt are read together, as for a picture.

    Raises:
        ConfigError: the adapter does not read blocks (it was made on states of another kind).
        AdapterMismatchError: the adapter was made for another LLM.
        PromptError: the prompt cannot be encoded.

    Source: Dong et al. 2024 (arXiv 2502.04412), the analysis of blocks as denoising steps.
    """
    if adapter is None:
        context = ContextEncoding(llm.num_blocks, llm.hidden_size, encoding="paper", lone=lone)
        context.calibrate(llm, list(calibration_prompts or [prompt]))
    elif adapter.context is None:
        raise ConfigError("the adapter sums no blocks (its encoding is None): there are no scores to look at")
    else:
        context = adapter.context
    text, before = readings(prompt, prompt, rewording)[0]
    tokens = llm.tokenize([text], template=context.template, max_length=context.max_length, contexts=[before])
    seen = _Seen(context)
    run_blocks(llm, tokens, lone=context.lone, visit=seen.visit)
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
        **seen.rows(),
    )


def _gates(adapter: LLMDiffAdapter) -> dict[str, tuple[float, float]]:
    branches = cast(dict[str, CrossAttentionBranch], dict(adapter.branches.items()))
    return {
        name: (float(first), float(new))
        for name, (first, new) in ((n, b.gates()) for n, b in branches.items())
    }


class _Seen:
    """Collects norms and cosines block by block; what is added is kept, so that `along` can look at the end."""

    def __init__(self, context: ContextEncoding) -> None:
        self._context = context
        self._x0 = torch.empty(0)
        self._x0_norm: tuple[float, ...] = ()
        self._last_state = torch.empty(0)
        self._added: list[Tensor] = []
        self._norms: dict[str, list[tuple[float, ...]]] = {
            name: [] for name in ("context_norm", "lone_norm", "score_norm", "cosine", "state_norm")
        }

    def visit(self, index: int, x: Tensor, u: Tensor, v: Tensor | None) -> None:
        assert v is not None
        if index == 0:
            self._x0 = x[0] / self._context.x0_scale.to(x.device)
            self._x0_norm = _row(x[0].norm(dim=-1))
        for name, states in (("context_norm", u), ("lone_norm", v), ("score_norm", u - v), ("state_norm", x)):
            self._norms[name].append(_row(states[0].norm(dim=-1)))
        self._norms["cosine"].append(_row(F.cosine_similarity(u[0], v[0], dim=-1)))
        added = self._context.contribution(index, u, v)[0]
        # With routing, the mean over the groups of attention layers.
        self._added.append(added if self._context.routed is None else added.mean(dim=-2))
        self._last_state = x[0] + u[0]

    def rows(self) -> dict[str, Any]:
        added = torch.stack(self._added)
        running = self._x0 + added.cumsum(0)
        final = running[-1].expand_as(running)
        self._norms["state_norm"].append(_row(self._last_state.norm(dim=-1)))
        return {
            "x0_norm": self._x0_norm,
            "encoding_norm": _row(running[-1].norm(dim=-1)),
            **{name: tuple(rows) for name, rows in self._norms.items()},
            "added": tuple(map(_row, added.norm(dim=-1))),
            "along": tuple(map(_row, F.cosine_similarity(added, final, dim=-1))),
            "running": tuple(map(_row, F.cosine_similarity(running, final, dim=-1))),
        }


def _beside_others(rows: Rows, token: int) -> tuple[float, ...]:
    """Return every block's norm at one token in units of the median of the others, BOS left out of these."""
    table = torch.tensor(rows)
    others = [index for index in range(table.shape[1]) if index not in (0, token)]
    medians = table[:, others].median(1).values if others else table.new_ones(len(table))
    return _row(table[:, token] / medians.clamp(min=1e-9))


def _row(values: Tensor) -> tuple[float, ...]:
    row = tuple(float(value) for value in values.detach().float().cpu())
    assert all(math.isfinite(value) for value in row)
    return row
