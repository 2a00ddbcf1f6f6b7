"""How an LLM is read: what "alone" means, and in which way its blocks can be called on tokens alone."""

from dataclasses import dataclass
from typing import Literal, get_args

Lone = Literal["token", "token+bos"]
LONES: tuple[Lone, ...] = get_args(Lone)

LoneCalls = Literal["cached", "masked", "sequences"]
# The cheapest first.
LONE_CALLS: tuple[LoneCalls, ...] = get_args(LoneCalls)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How the blocks of an LLM are read, found by trial when it is loaded.

    Fields:
        lone_calls: how a block is called on tokens alone.
            "cached": one token each, behind the keys and values of BOS where it sees that. Texts share the keys and
            values of what stands before all of them. For attention whose inputs belong to one token each.
            "masked": the whole text once more, under a mask that hides the other tokens. For attention that gets
            something else from outside the block: ALiBi's distances, keys and values of another block.
            "sequences": every token as a text of its own, after BOS where it sees that, from a new state. For blocks
            with a state: recurrence, linear attention, convolutions.
        joined: the readings of "alone" that may be computed in one call with the text, however long that is.
    """

    lone_calls: LoneCalls = "cached"
    joined: frozenset[Lone] = frozenset()

    @property
    def whole_texts(self) -> bool:
        """Whether every text is read from its first token on, as no start of it can be remembered."""
        return self.lone_calls != "cached"
