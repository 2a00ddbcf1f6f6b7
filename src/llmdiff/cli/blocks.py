"""Blocks of options that several verbs share: each is written once, as the signature of a function."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

Verb = Callable[..., None]


def takes(block: Callable[..., Any], argument: str, *names: str) -> Callable[[Verb], Verb]:
    """Return a decorator that adds a block's options, by default all, to a verb.

    The verb is called with the result of `block` for their values as `argument`. Options of the verb itself replace
    those of the block.
    """

    def decorate(verb: Verb) -> Verb:
        own = inspect.signature(verb).parameters
        options = {
            name: one
            for name, one in inspect.signature(block).parameters.items()
            if name not in own and name in (names or [name])
        }

        @functools.wraps(verb)
        def run(**given: Any) -> None:
            value = block(**{name: given.pop(name) for name in options})
            verb(**{argument: value}, **given)

        shown = [one for name, one in own.items() if name != argument]
        shown = [one.replace(kind=one.KEYWORD_ONLY) for one in (*shown, *options.values())]
        run.__dict__["__signature__"] = inspect.Signature(shown)
        run.__annotations__ = {one.name: one.annotation for one in shown}
        return run

    return decorate
