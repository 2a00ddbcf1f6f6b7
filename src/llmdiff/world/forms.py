"""Sentence forms of captions, from the table `data/forms.tsv`, and the words for styles."""

import random
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from llmdiff.world.things import parts, read_table

Tier = Literal["plain", "rich", "held out"]


@dataclass(frozen=True, kw_only=True)
class Form:
    """A sentence with gaps.

    Gaps: {a}, {b}, {c} things in the relation's order; {is}, {bis} the verb of a and b; {k} number of things;
    {p} a corner or phrase of a place; {x} the caption so far; {c} of a background its colour; {s} a style;
    {n}, {m} absent things, with and without article.

    Fields:
        tier: "plain": in captions of the base's training too; "rich": in longer training captions; "held out": never
            in training.
        is_phrase: whether it is a noun phrase, which other forms can extend.
    """

    kind: str
    tier: Tier
    is_phrase: bool
    text: str


@lru_cache
def forms(kind: str, tiers: tuple[Tier, ...]) -> tuple[Form, ...]:
    """Return the forms of a kind that belong to these tiers."""
    return tuple(form for form in all_forms() if form.kind == kind and form.tier in tiers)


@lru_cache
def all_forms() -> tuple[Form, ...]:
    """Return every sentence form."""
    return tuple(
        Form(
            kind=row["kind"],
            tier=row["tier"],  # type: ignore[arg-type]
            is_phrase=row["grammar"] == "phrase",
            text=row["text"],
        )
        for row in read_table("forms")
    )


@lru_cache
def style_phrases(style: str, tiers: tuple[Tier, ...]) -> tuple[str, ...]:
    """Return the words for a style in captions of these tiers."""
    row = next(row for row in read_table("styles") if row["name"] == style)
    columns = {"plain": "phrases", "rich": "rich_phrases", "held out": "held_out_phrases"}
    return tuple(phrase for tier in tiers for phrase in parts(row[columns[tier]]))


def pick(kind: str, tiers: tuple[Tier, ...], rng: random.Random) -> Form:
    """Return a random form of a kind, from the plain tier if these tiers have none."""
    return rng.choice(forms(kind, tiers) or forms(kind, ("plain", "rich")))
