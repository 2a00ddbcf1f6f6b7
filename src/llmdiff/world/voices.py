"""Sentence forms and words of captions, in training and in each split."""

from dataclasses import dataclass, replace
from typing import Literal

from llmdiff.world.forms import Tier

Wording = Literal["plain", "rich"]
"""Wording of training captions.

plain: for the base's own text encoder: short, in plain forms, mostly with first names.
rich: for the adapter: also longer forms, other names and descriptions, irrelevant sentences and absent things.
"""


@dataclass(frozen=True, kw_only=True)
class Voice:
    """The forms and words that captions use. Shares are probabilities.

    Fields:
        tiers: tiers of sentence forms; `absent_tiers`, `place_tiers`, `style_tiers`, `distractor_tiers`: those of
            negations, words for places, words for styles, and irrelevant sentences.
        other_name_share, description_share: share of things with another name, with their description.
        flat_share, background_share: share of captions that mention the flat style, the background.
        distractors: numbers of irrelevant sentences; one of them is drawn.
        bare_share: share of single sentences without capital letter and full stop.
        describes_one: whether one thing has its held-out description.
        long_share: share of captions that are extended beyond the 77 tokens of CLIP.
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
# No descriptions and other names of training, so that only the held-out part is tested.
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
