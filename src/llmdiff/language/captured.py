"""Run the LLM on prompts as CUDA graphs: one launch for a pass instead of hundreds.

At batch 1, launches take more time than the GPU's work. A pass is captured for batch sizes that repeat: texts are
padded to one of a few lengths (a bucket), and padding is processed like words and dropped from the result. Attention
is causal, and a lone token attends only to itself (and BOS), so padding does not change other rows.

A graph is used if its result equals that of the eager pass and it is faster. Otherwise, and after any error, the eager
pass is used.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from llmdiff.errors import first_line
from llmdiff.language.blocks import one_pass_at_a_time
from llmdiff.language.finite import FiniteWatch
from llmdiff.language.llm import DecoderLLM
from llmdiff.language.lone_calls import JoinedCall, Lone
from llmdiff.language.rows import SharedInputs, TokenRows

_log = logging.getLogger(__name__)

BUCKETS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Lengths in tokens that texts are padded to; longer texts run eagerly."""

# Capturing takes the time of several passes, so a size is captured only after some repetitions.
_CAPTURE_AT = 3
_MAX_GRAPHS = 8
_TIMED = 3
# Relative difference of states. Matrix products of another size round differently; wrong states differ by about 1.
_TOLERANCE = {torch.float32: 1e-3}
_COARSE_TOLERANCE = 0.05


class BlockSum(Protocol):
    """The parts of a `ContextEncoding` that a pass uses."""

    lone: Lone
    clip: float

    def state_dict(self) -> dict[str, Tensor]:
        """Return its gains and scales."""

    def sum_rows(
        self,
        llm: DecoderLLM,
        rows: TokenRows,
        prefix_ids: tuple[int, ...],
        weights: Tensor | None,
        watch: FiniteWatch | None = None,
    ) -> Tensor:
        """Return c of every token of a pass without noise."""


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """A pass over texts padded to one of the lengths, in which padding counts as words.

    Fields:
        rows: R texts of S tokens each, N = R * S words.
        places: (n,), indices of the real words among the N.
    """

    context: BlockSum
    llm: DecoderLLM
    prefix_ids: tuple[int, ...]
    rows: TokenRows
    places: Tensor

    @classmethod
    def of(
        cls, context: BlockSum, llm: DecoderLLM, rows: TokenRows, prefix_ids: tuple[int, ...]
    ) -> "Bucket | None":
        """Return the bucket of a pass that can be captured; None if it has to run eagerly.

        It can be captured if lone tokens and text share calls, the weights stay on the device, and the padded texts
        fit into the LLM's positions.
        """
        texts, steps = rows.run_ids.shape
        length = next((length for length in BUCKETS if length >= steps), None)
        if rows.words == 0 or length is None:
            return None
        if context.lone not in llm.reading.joined or not llm.placement.stays:
            return None
        if llm.max_positions is not None and len(prefix_ids) + length > llm.max_positions:
            return None
        if any(one.device != llm.device for one in context.state_dict().values()):
            return None
        everywhere = torch.arange(texts * length, device=rows.run_ids.device)
        padded = TokenRows(
            run_ids=torch.nn.functional.pad(rows.run_ids, (0, length - steps)),
            run_places=everywhere,
            token_places=everywhere,  # not used: the result is not padded into a batch
            rows=everywhere,
            batch=texts,
            width=length,
        )
        if JoinedCall.of(llm, padded, len(prefix_ids), sees_bos=context.lone == "token+bos") is None:
            return None
        places = rows.run_places.div(steps, rounding_mode="floor") * length + rows.run_places % steps
        return cls(context=context, llm=llm, prefix_ids=prefix_ids, rows=padded, places=places)

    def weights(self, weights: Tensor | None) -> Tensor:
        """Return weights with 1 for padding: (n + 1, 1) or None => (N + 1, 1)."""
        every = torch.ones(self.rows.words + 1, 1, device=self.places.device)
        if weights is not None:
            every[self.places] = weights[:-1].to(every)
        return every

    def real(self, c: Tensor) -> Tensor:
        """Return the rows of real words and of BOS: (N + 1, D) => (n + 1, D)."""
        return torch.cat([c.index_select(0, self.places), c[-1:]])

    def read(self, ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return c of all N words and BOS, (N + 1, D), and the sums of `FiniteWatch`, without synchronising.

        `ids` (R, S) replace the token ids of `rows`.
        """
        watch = FiniteWatch(self.llm.num_blocks + 1, self.llm.device)
        rows = replace(self.rows, run_ids=ids, _shared=SharedInputs())  # shared inputs belong to one pass
        return self.context.sum_rows(self.llm, rows, self.prefix_ids, weights, watch), watch.sums


def captured_sum(
    context: BlockSum,
    llm: DecoderLLM,
    rows: TokenRows,
    prefix_ids: tuple[int, ...],
    weights: Tensor | None,
) -> Tensor | None:
    """Return c of a pass by a CUDA graph, (n + 1, D); None if it has to run eagerly.

    The result is also None if states are not finite: the eager pass then raises the error.
    """
    if llm.device.type != "cuda" or not llm.captures:
        return None
    bucket = Bucket.of(context, llm, rows, prefix_ids)
    if bucket is None:
        return None
    # Buffers kept for later passes must not be inference tensors, which can be written only in inference mode.
    with one_pass_at_a_time, torch.cuda.device(llm.device), torch.inference_mode(False), torch.no_grad():
        graph = _all_graphs.setdefault(llm, _Graphs()).graph(bucket, rows)
        if graph is None:
            return None
        c, sums = graph(bucket.rows.run_ids, bucket.weights(weights))
        return bucket.real(c).clone() if bool(sums.isfinite().all()) else None


class _Graph:
    """A captured pass with its input and output buffers."""

    def __init__(self, bucket: Bucket) -> None:
        self._ids, self._weights = bucket.rows.run_ids.clone(), bucket.weights(None)
        device = self._ids.device
        cuda: Any = torch.cuda  # parts of it have no types
        side = cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(2):  # warm-up: libraries select kernels and allocate memory before the capture
                bucket.read(self._ids, self._weights)
        torch.cuda.current_stream(device).wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._c, self._sums = bucket.read(self._ids, self._weights)

    def __call__(self, ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        self._ids.copy_(ids)
        self._weights.copy_(weights)
        self._graph.replay()
        return self._c, self._sums


class _Graphs:
    """The graphs of one LLM by size of the pass; None for a size that runs eagerly."""

    def __init__(self) -> None:
        self._seen: dict[Any, int] = {}
        self._made: dict[Any, tuple[object, _Graph | None]] = {}

    def graph(self, bucket: Bucket, rows: TokenRows) -> _Graph | None:
        """Return the graph for a pass of this size; None if the size is not repeated or the graph is not faster."""
        context, prefix_ids = bucket.context, bucket.prefix_ids
        # A graph reads from these addresses.
        weights = tuple(one.data_ptr() for one in context.state_dict().values())
        key = (prefix_ids, tuple(bucket.rows.run_ids.shape), weights, context.clip, context.lone)
        # Moving the LLM's weights drops its cached prefixes, which a graph reads from.
        prefix = bucket.llm.prefix_states(prefix_ids)
        made_for, graph = self._made.get(key, (None, None))
        if made_for is prefix:
            return graph
        self._seen[key] = self._seen.get(key, 0) + 1
        if self._seen[key] < _CAPTURE_AT:
            return None
        if len(self._made) >= _MAX_GRAPHS:
            del self._made[next(iter(self._made))]
        graph = _worth_it(bucket, rows)
        self._made[key] = (prefix, graph)
        return graph


# Used under `one_pass_at_a_time`.
_all_graphs: "WeakKeyDictionary[DecoderLLM, _Graphs]" = WeakKeyDictionary()


def _worth_it(bucket: Bucket, rows: TokenRows) -> _Graph | None:
    """Return a graph of the pass if it equals the eager pass over `rows` and is faster, else None; log the decision."""
    llm = bucket.llm
    texts, steps = bucket.rows.run_ids.shape
    what = f"{llm.id}: {texts} x {steps} tokens are read"
    ones = bucket.weights(None)

    def eager() -> Tensor:
        return bucket.context.sum_rows(llm, rows, bucket.prefix_ids, None)

    try:
        expected = eager()
        graph = _Graph(bucket)
        found = bucket.real(graph(bucket.rows.run_ids, ones)[0])
        apart = float((found - expected).norm() / expected.norm())
        if not apart <= _TOLERANCE.get(llm.dtype, _COARSE_TOLERANCE):
            _log.warning("%s eagerly: a CUDA graph gives states that differ by %.1e", what, apart)
            return None
        eager_s = _seconds(eager, llm.device)
        graph_s = _seconds(lambda: graph(bucket.rows.run_ids, ones), llm.device)
    except RuntimeError as error:  # out of memory, or an operation that cannot be captured
        torch.cuda.empty_cache()
        _log.warning("%s eagerly: they cannot be captured (%s)", what, first_line(error))
        return None
    if graph_s >= eager_s:
        _log.info("%s eagerly: %.1f ms, by a CUDA graph %.1f ms", what, 1e3 * eager_s, 1e3 * graph_s)
        return None
    _log.info("%s by a CUDA graph: %.1f ms, eagerly %.1f ms", what, 1e3 * graph_s, 1e3 * eager_s)
    return graph


def _seconds(act: Callable[[], object], device: torch.device) -> float:
    """Return the shortest of a few runs in seconds."""
    cuda: Any = torch.cuda
    found: list[float] = []
    for _ in range(_TIMED):
        start, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
        torch.cuda.synchronize(device)
        start.record()
        act()
        end.record()
        torch.cuda.synchronize(device)
        found.append(start.elapsed_time(end) / 1e3)
    return min(found)
