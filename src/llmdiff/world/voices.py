"""How captions speak: which sentence forms and words they use, in training and in each split."""

from dataclasses import dataclass, replace
from typing import Literal

from llmdiff.world.forms import Tier

Wording = Literal["plain", "rich"]
"""How a training caption speaks.

plain: what the base's own text encoder is trained with: short, in plain forms, mostly by first names.
rich: what the adapter is trained with: also in longer forms, by other names and descriptions, with sentences
that add nothing and things that are not there.
"""


@dataclass(frozen=True, kw_only=True)
class Voice:
    """Which forms and words captions use.

    Fields:
        tiers: of sentence forms; `absent_tiers`, `place_tiers`, `style_tiers`, `distractor_tiers`: of negations,
            of the words for places and for styles, of sentences that add nothing.
        other_name_share, description_share: how often a thing goes by another name, by its description.
        flat_share, background_share: how often a caption says that the style is flat, what the background is.
        distractors: how many sentences that add nothing, each as likely as it is often here.
        bare_share: how often a single sentence has neither capital letter nor full stop.
        describes_one: whether one thing goes by its held-out description.
        long_share: how often sentences are added until no CLIP encoder can read all of it.
    """

    tiers: tuple[Tier, ...] = ("plain",)
    absent_tiers: tuple[Tier, ...] = ("plain", "rich")
    place_tiers: tuple[Tier, ...] = ("plain",)
    style_tiers: tuple[Tier, ...] = ("plain",)
    distractor_tiers: tuple[Tier, ...] = ("rich",)
    other_name_share: float = 0.15
    description_share: float = 0.03
    flat_share: float = 0.05
    background_share: float = 0.5
    distractors: tuple[int, ...] = (0,)
    opening_share: float = 0.5
    most_spot_sentences: int = 5
    bare_share: float = 0.8
    says_absent: bool = False
    uses_synonyms: bool = False
    describes_one: bool = False
    rewords_actions: bool = False
    long_share: float = 0.0


PLAIN = Voice()
RICH = Voice(
    tiers=("plain", "rich"),
    place_tiers=("plain", "rich"),
    style_tiers=("plain", "rich"),
    other_name_share=0.4,
    description_share=0.25,
    distractors=(0, 0, 0, 0, 1, 1, 2, 3),
    bare_share=0.5,
    says_absent=True,
    long_share=0.08,
)
VOICES: dict[Wording, Voice] = {"plain": PLAIN, "rich": RICH}
# No descriptions of training, no other names: what is tested is the one held-out thing.
_TESTED = replace(PLAIN, other_name_share=0.0, description_share=0.0)
SPLIT_VOICES: dict[str, Voice] = {
    "seen": PLAIN,
    "pairs": _TESTED,
    "colours": _TESTED,
    "counts": _TESTED,
    "forms": replace(_TESTED, tiers=("held out",)),
    "synonyms": replace(_TESTED, uses_synonyms=True, place_tiers=("held out",)),
    "descriptions": replace(_TESTED, describes_one=True),
    "actions": replace(_TESTED, rewords_actions=True),
    "long": replace(RICH, long_share=1.0, distractors=(0,), bare_share=0.0, says_absent=False),
    "negation": replace(_TESTED, says_absent=True, absent_tiers=("held out",)),
    "styles": _TESTED,
}
