"""Run an LLM once over prompts and pass each block's context update and lone update to a callback.

    u_l = block_l(x_l | causal context) - x_l        the context update
    v_l = block_l(x_l | the token alone) - x_l       the lone update: same block, same x_l, no other token

Source: Dong et al. 2024 (arXiv 2502.04412), blocks as denoising steps of every token's state.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache

from llmdiff.errors import UnsupportedLLMError
from llmdiff.language.finite import FiniteWatch, non_finite_error
from llmdiff.language.hooks import BlockCall, on_every_block
from llmdiff.language.lone_calls import LONES as LONES
from llmdiff.language.lone_calls import JoinedCall, Reading, call_alone
from llmdiff.language.lone_calls import Lone as Lone
from llmdiff.language.placement import Placement
from llmdiff.language.prefix import PrefixStates, fixed_caches
from llmdiff.language.rows import TokenRows
from llmdiff.language.tokens import PromptTokens

Visit = Callable[[int, Tensor, Tensor, Any], None]
"""Called with l, x_l, u_l and v_l, which is None where no lone updates are asked for."""

# Threads share the modules that hooks are registered on: two passes at once would see each other's blocks.
one_pass_at_a_time = threading.RLock()


class BlockwiseLLM(Protocol):
    """The parts of an LLM that a forward pass uses, see `DecoderLLM`."""

    id: str
    model: Any
    text_model: Any
    tokenizer: Any
    blocks: nn.ModuleList
    num_blocks: int
    hidden_size: int
    max_positions: int | None
    placement: Placement
    reading: Reading

    @property
    def device(self) -> torch.device:
        """Return the device that the LLM computes on."""

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype that the LLM computes in."""

    def prefix_states(self, prefix_ids: tuple[int, ...]) -> PrefixStates:
        """Return the states of a constant prefix."""


@torch.no_grad()
def run_blocks(
    llm: BlockwiseLLM,
    tokens: PromptTokens,
    *,
    lone: Lone | None,
    visit: Visit,
    on_last_hidden_state: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """Call `visit(l, x_l, u_l, v_l)` for every block in order and return x_0 of the kept tokens.

    This takes one pass over the LLM. Tensors passed to `visit` are not kept here, so memory stays that of one block
    unless `visit` keeps them. Only real tokens are run, except for the padding of the context pass.

    With `lone="token"` the lone token attends to itself only; with `lone="token+bos"` it attends to itself and BOS,
    at their true positions, in every block (sliding windows do not hide BOS here). With None, v_l is None. BOS has
    v_l = u_l, so its score is 0.

    `on_last_hidden_state` receives the LLM's last state after its final norm, for encodings that use only that.

    Raises:
        CorruptWeightsError: a weight is NaN or infinite, and so are the states; raised at the end of the pass.
        ConfigError: the weights are finite but the states are not: the LLM's dtype overflows.

    Shapes:
        x_l, u_l, v_l, the last state, result: (B, T, D) float32, laid out as `tokens`; padding rows are 0.
    """
    rows = TokenRows.of(tokens, llm.device)

    def padded(index: int, x: Tensor, u: Tensor, v: Tensor | None) -> None:
        visit(index, rows.padded(x), rows.padded(u), None if v is None else rows.padded(v))

    take = on_last_hidden_state
    last = None if take is None else lambda states: take(rows.padded(states))
    x0 = run_rows(llm, rows, tokens.prefix_ids, lone=lone, visit=padded, on_last_hidden_state=last)
    return rows.padded(x0)


def run_rows(
    llm: BlockwiseLLM,
    rows: TokenRows,
    prefix_ids: tuple[int, ...],
    *,
    lone: Lone | None,
    visit: Visit,
    on_last_hidden_state: Callable[[Tensor], None] | None = None,
    watch: FiniteWatch | None = None,
) -> Tensor:
    """Run the blocks like `run_blocks`, with all tensors as rows without padding.

    Gradients follow the caller's grad mode, so weights in the blocks can learn; the cached prefix gets none. If a
    `watch` is given, the caller checks it for non-finite states, and the pass does not synchronise with the device.

    Shapes:
        x_l, u_l, v_l, the last state, result: (N + 1, D) float32, the words and then BOS, see `TokenRows`.
    """
    seen = watch or FiniteWatch(llm.num_blocks + 1, llm.device)
    x0: list[Tensor] = []
    with _alone_on_device(llm):
        prefix = llm.prefix_states(prefix_ids)
        bos_updates = prefix.bos_outputs - prefix.bos_inputs

        def hand_out(index: int, x: Tensor, u: Tensor, v: Tensor | None) -> None:
            x_l = _with_bos(x, prefix.bos_inputs[index])
            if index == 0:
                x0.append(x_l)
            u_l = _with_bos(u, bos_updates[index])
            v_l = None if v is None else _with_bos(v, bos_updates[index])
            seen.see(index, u_l, v_l)  # a non-finite x_l makes these differences non-finite too
            visit(index, x_l, u_l, v_l)

        if rows.words:
            last = _run_words(llm, rows, prefix_ids, prefix, lone, hand_out)
        else:  # every prompt is empty: the prefix has all states
            nothing = prefix.bos_inputs.new_zeros(0, prefix.bos_inputs.shape[1])
            for index in range(llm.num_blocks):
                hand_out(index, nothing, nothing, None if lone is None else nothing)
            last = prefix.bos_last.new_zeros(0, len(prefix.bos_last))  # its width may differ (OPT)
        if on_last_hidden_state is not None:
            states = _with_bos(last, prefix.bos_last)
            seen.see(llm.num_blocks, states)
            on_last_hidden_state(states)
        bad_step = seen.first_bad_step() if watch is None else None
        if bad_step is not None:
            step = "the final norm" if bad_step == llm.num_blocks else f"block {bad_step}"
            raise non_finite_error(step, llm.placement.named_weights(), id=llm.id, dtype=llm.dtype)
    return x0[0]


def _run_words(
    llm: BlockwiseLLM,
    rows: TokenRows,
    prefix_ids: tuple[int, ...],
    prefix: PrefixStates,
    lone: Lone | None,
    hand_out: Visit,
) -> Tensor:
    """Run the model on the words, hand out their states at every block, and return their last states.

    Shapes: all states (N, D) float32, N words; the last states after the final norm.
    """
    reading, sees_bos = llm.reading, lone == "token+bos"
    run = rows.behind(prefix_ids) if reading.whole_texts else rows
    joined = None
    if lone in reading.joined:
        joined = JoinedCall.of(llm, rows, len(prefix_ids), sees_bos=sees_bos)

    def on_block(
        index: int, block: nn.Module, x: Tensor, out: Tensor, kwargs: dict[str, Any], lone_out: Tensor | None
    ) -> None:
        v = None
        x_l = run.of_run(x).float()
        if lone is not None:
            if lone_out is None:
                how: dict[str, Any] = {"lone_calls": reading.lone_calls, "bos_cache": prefix.bos_cache}
                lone_out = call_alone(block, x, kwargs, run, sees_bos=sees_bos, **how)
            v = lone_out.float() - x_l
        hand_out(index, x_l, run.of_run(out).float() - x_l, v)

    with on_every_block(llm.blocks, on_block, joined):
        # Padding is on the right and attention is causal: no real token attends to padding.
        result = _call(llm, run.run_ids, prefix.cache)
    return run.of_run(result.last_hidden_state).float()


@torch.no_grad()
def run_prefix(llm: BlockwiseLLM, prefix_ids: tuple[int, ...]) -> PrefixStates:
    """Run a constant prefix and return its keys and values, and BOS's state at every block.

    Keys and values are not computed for an LLM whose `Reading` has `whole_texts`.
    """
    # Without a config every layer keeps all keys, also those outside a sliding window; masks hide them.
    recorded = None if llm.reading.whole_texts else DynamicCache()
    ids = torch.tensor([prefix_ids if recorded is not None else prefix_ids[:1]])
    found, last = run_plainly(llm, ids, cache=recorded, keep=lambda states: states[0, 0].float())
    if len(found) != llm.num_blocks or (recorded is not None and len(recorded.layers) != llm.num_blocks):
        kept = "" if recorded is None else f", and {len(recorded.layers)} keep keys and values of their own"
        raise UnsupportedLLMError(
            f"{llm.id}: of {llm.num_blocks} blocks {len(found)} are run on a text{kept}; expected a decoder-only LLM "
            "that runs each of its blocks once"
        )
    whole, bos = (None, None) if recorded is None else fixed_caches(recorded)
    inputs, outputs = (torch.stack(states) for states in zip(*found, strict=True))
    return PrefixStates(cache=whole, bos_cache=bos, bos_inputs=inputs, bos_outputs=outputs, bos_last=last)


@torch.no_grad()
def run_plainly(
    llm: BlockwiseLLM,
    ids: Tensor,
    *,
    cache: DynamicCache | None = None,
    keep: Callable[[Tensor], Tensor] = lambda states: states,
    on_block: BlockCall | None = None,
) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """Run the unmodified model on texts and return every block's input and output, and the last state.

    If `on_block` is given, it is called after each block with the block's arguments, and the list is empty.

    Shapes:
        ids: (B, S); inputs, outputs and last state: `keep` applied to (B, S, D).
    Raises:
        ValueError: a block's input is not one state for each token.
    """
    found: list[tuple[Tensor, Tensor]] = []

    def keep_states(index: int, block: nn.Module, x: Tensor, out: Tensor, *_: Any) -> None:
        if x.shape != (*ids.shape, llm.hidden_size):
            raise ValueError(f"blocks take states of shape {tuple(x.shape)}, expected one for each token")
        found.append((keep(x).to(llm.device), keep(out).to(llm.device)))

    with _alone_on_device(llm), on_every_block(llm.blocks, on_block or keep_states):
        result = _call(llm, ids.to(llm.device), cache)
    return found, keep(result.last_hidden_state)


@contextmanager
def _alone_on_device(llm: BlockwiseLLM) -> Iterator[None]:
    """Return a context of one pass: no other pass at once, the weights on the device, and no autocast."""
    with one_pass_at_a_time, llm.placement.in_use(), torch.autocast(llm.device.type, enabled=False):
        yield


def _call(llm: BlockwiseLLM, ids: Tensor, cache: Cache | None) -> Any:
    """Run the model without its head, with or without a cache."""
    # Models without a cache do not accept this argument.
    cached = {} if cache is None else {"past_key_values": cache}
    return llm.text_model(input_ids=ids, use_cache=cache is not None, return_dict=True, **cached)


def _with_bos(words: Tensor, bos: Tensor) -> Tensor:
    """Append BOS as the last row. Shapes: (N, D), (D,) => (N + 1, D)."""
    return torch.cat([words, bos.to(words.device)[None]])
