"""What every block adds to a token in its context and alone, computed in ways that share nothing with the library's."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from llmdiff.language import DecoderLLM, Lone


def explicit_updates(llm: DecoderLLM, ids: list[int], visible: Any) -> tuple[Tensor, Tensor, Tensor]:
    """x_l, block_l(x_l | visible) - x_l, and the last state: no cache, 4-D masks, the whole text at once.

    `visible(block index, query places, key places)` gives the mask.
    """
    calls: list[tuple[Tensor, dict[str, Any]]] = []
    hooks = []
    for block in llm.blocks:
        names = list(inspect.signature(block.forward).parameters)

        def before(module: Any, args: Any, kwargs: Any, names: list[str] = names) -> None:
            by_name = {**dict(zip(names, args, strict=False)), **kwargs}
            calls.append((by_name.pop(names[0]), by_name))

        hooks.append(block.register_forward_pre_hook(before, with_kwargs=True))
    with torch.no_grad():
        last = llm.text_model(torch.tensor([ids]), use_cache=False).last_hidden_state
    for hook in hooks:
        hook.remove()
    place = torch.arange(len(ids))
    inputs, updates = [], []
    for index, (block, (x, kwargs)) in enumerate(zip(llm.blocks, calls, strict=True)):
        hidden = ~visible(index, place[:, None], place[None, :])
        mask = torch.zeros(1, 1, len(ids), len(ids))
        mask.masked_fill_(hidden, torch.finfo(torch.float32).min)
        if llm.model.config.model_type == "mpt":  # alone in its terms
            mask = hidden[None, None]
        elif getattr(llm.model.config, "alibi", False):  # Falcon's masks hold ALiBi's distances
            mask = kwargs["attention_mask"].masked_fill(hidden, torch.finfo(torch.float32).min)
        with torch.no_grad():
            out = block.forward(x, **{**kwargs, "attention_mask": mask})
        out = out[0] if isinstance(out, tuple | list) else out
        inputs.append(x[0])
        updates.append(out[0] - x[0])
    return torch.stack(inputs), torch.stack(updates), last[0]


def causal(llm: DecoderLLM) -> Any:
    """The mask of the LLM's own pass, sliding windows included."""
    config = llm.model.config
    kinds = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)

    def visible(index: int, query: Tensor, key: Tensor) -> Tensor:
        slides = window is not None and (kinds is None or kinds[index] == "sliding_attention")
        return (key <= query) & (query - key < window) if slides else key <= query

    return visible


def alone(lone: Lone) -> Any:
    """The diagonal, with or without the first column."""
    return lambda index, query, key: (key == query) | ((key == 0) & (lone == "token+bos"))


def assert_relative(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """The norm of every single token's difference, relative to the norm of what is expected of it."""
    assert actual.shape == expected.shape
    error = (actual - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert error.max() <= tolerance, f"relative error {float(error.max()):.1e} in {error.argmax()}"


def own_updates(llm: DecoderLLM, ids: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Every block's input and update, and the last state, in the model's own pass over one text."""
    inputs: list[Tensor] = []
    updates: list[Tensor] = []

    def after(block: Any, args: Any, kwargs: Any, out: Any) -> None:
        x = args[0] if args else kwargs["hidden_states"]
        inputs.append(x[0])
        updates.append((out[0] if isinstance(out, tuple | list) else out)[0] - x[0])

    hooks = [block.register_forward_hook(after, with_kwargs=True) for block in llm.blocks]
    with torch.no_grad():
        last = llm.text_model(torch.tensor([ids]), use_cache=False).last_hidden_state[0]
    for hook in hooks:
        hook.remove()
    return torch.stack(inputs), torch.stack(updates), last


def lone_updates(llm: DecoderLLM, ids: list[int], lone: Lone) -> Tensor:
    """What every block adds to each token alone: under masks, or in texts of one or two tokens where it has a state."""
    if llm.reading.lone_calls != "sequences":
        return explicit_updates(llm, ids, alone(lone))[1]
    arguments: list[tuple[Any, ...]] = []
    hooks = [
        block.register_forward_pre_hook(lambda block, args: arguments.append(args)) for block in llm.blocks
    ]
    inputs, _, _ = own_updates(llm, ids)
    for hook in hooks:
        hook.remove()
    return torch.stack(
        [_short_text(llm, ids, inputs, arguments, place, lone) for place in range(len(ids))], dim=1
    )


def _short_text(
    llm: DecoderLLM, ids: list[int], inputs: Tensor, arguments: list[tuple[Any, ...]], place: int, lone: Lone
) -> Tensor:
    """What the blocks add to one token when the model reads it alone or after BOS, given the whole text's states."""
    places = [0, place] if lone == "token+bos" and place else [place]
    updates: list[Tensor] = []

    def before(states: Tensor, given: tuple[Any, ...]) -> Callable[..., Any]:
        def replaced(block: Any, args: Any, kwargs: Any) -> Any:
            if not args:
                return (), {**kwargs, "hidden_states": states}
            # Whatever else earlier blocks hand on for each token.
            others = (
                of_text[:, places]
                if isinstance(of_text, Tensor) and of_text.shape[:2] == (1, len(ids))
                else own
                for of_text, own in zip(given, args, strict=True)
            )
            return (states, *list(others)[1:]), kwargs

        return replaced

    def after(states: Tensor) -> Callable[..., None]:
        def kept(block: Any, args: Any, out: Any) -> None:
            updates.append(((out[0] if isinstance(out, tuple | list) else out) - states)[0, -1])

        return kept

    hooks = []
    for block, x, given in zip(llm.blocks, inputs, arguments, strict=True):
        states = x[None, places]
        hooks.append(block.register_forward_pre_hook(before(states, given), with_kwargs=True))
        hooks.append(block.register_forward_hook(after(states)))
    takes = inspect.signature(llm.text_model.forward).parameters
    where = {"position_ids": torch.tensor([places])} if "position_ids" in takes else {}
    if (
        "attention_mask" in takes
    ):  # without one, a gap between positions is taken for the start of another text
        where["attention_mask"] = torch.ones(1, len(places))
    with torch.no_grad():
        llm.text_model(torch.tensor([[ids[i] for i in places]]), use_cache=False, **where)
    for hook in hooks:
        hook.remove()
    return torch.stack(updates)
