"""Call a function after every block while a model runs, and pass lone tokens to blocks together with the text."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from llmdiff.language.lone_calls import JoinedCall, first_of

# Arguments: block index, block, its input, its output, its other arguments, and the lone tokens' output of a joined
# call.
BlockCall = Callable[[int, nn.Module, Tensor, Tensor, dict[str, Any], Tensor | None], None]

_known_arguments: WeakKeyDictionary[nn.Module, list[str]] = WeakKeyDictionary()


@contextmanager
def on_every_block(
    blocks: nn.ModuleList, on_block: BlockCall, joined: JoinedCall | None = None
) -> Iterator[None]:
    """Call `on_block` after each block inside the `with`; `joined` adds the lone tokens to every block's input."""
    handles = []
    try:
        for index, block in enumerate(blocks):
            handles += _hooks_of(index, block, on_block, joined)
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hooks_of(index: int, block: nn.Module, on_block: BlockCall, joined: JoinedCall | None) -> list[Any]:
    """Register the hooks of one block and return their handles."""
    names = _arguments(block)

    def by_name(args: Any, kwargs: Any) -> tuple[Tensor, dict[str, Any]]:
        named = {**dict(zip(names, args, strict=False)), **kwargs}
        return named.pop(names[0]), named

    def before(module: nn.Module, args: Any, kwargs: Any) -> Any:
        assert joined is not None
        x, others = joined.inputs(*by_name(args, kwargs))
        return (x,), others

    def after(module: nn.Module, args: Any, kwargs: Any, out: Any) -> Any:
        x, others = by_name(args, kwargs)
        if joined is None:
            on_block(index, module, x, first_of(out), others, None)
            return None
        text, lone = joined.outputs(first_of(out))
        on_block(index, module, joined.outputs(x)[0], text, others, lone)
        return (text, *out[1:]) if isinstance(out, tuple | list) else text

    handles: list[Any] = [block.register_forward_hook(after, with_kwargs=True)]
    if joined is not None:
        handles.append(block.register_forward_pre_hook(before, with_kwargs=True))
    return handles


def _arguments(block: nn.Module) -> list[str]:
    """Return the names of a block's parameters; they are cached per block."""
    if block not in _known_arguments:
        _known_arguments[block] = list(inspect.signature(block.forward).parameters)
    return _known_arguments[block]
