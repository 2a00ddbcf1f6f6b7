"""Ways to call an LLM's blocks on lone tokens."""

from dataclasses import dataclass
from typing import Literal, get_args

Lone = Literal["token", "token+bos"]
LONES: tuple[Lone, ...] = get_args(Lone)

LoneCalls = Literal["cached", "masked", "sequences"]
# Ordered by cost, the cheapest first.
LONE_CALLS: tuple[LoneCalls, ...] = get_args(LoneCalls)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How the blocks of an LLM are called, found by trial when it is loaded.

    Fields:
        lone_calls: how a block is called on lone tokens.
            "cached": one token per call, with the keys and values of BOS if it attends to BOS. All texts share the
            keys and values of their constant prefix. For attention whose arguments have a row for each token.
            "masked": the whole text again, under a mask that hides the other tokens. For attention with other
            arguments from outside the block: ALiBi biases, keys and values of another block.
            "sequences": every token as a separate text, after BOS if it attends to BOS, from an initial state. For
            blocks with a recurrent state: recurrence, linear attention, convolutions.
        joined: values of `lone` that may be computed in one call with the text, whatever its length.
    """

    lone_calls: LoneCalls = "cached"
    joined: frozenset[Lone] = frozenset()

    @property
    def whole_texts(self) -> bool:
        """Return whether every text is run from its first token, because its prefix cannot be cached."""
        return self.lone_calls != "cached"
