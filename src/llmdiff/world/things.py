"""The contents of scenes: things, people doing something, coloured shapes; read from the tables in `data/`."""

from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Literal, get_args

from llmdiff.world.words import Noun, noun

Style = Literal["flat", "line", "3d"]
STYLES: tuple[Style, ...] = get_args(Style)
Who = Literal["man", "woman"]
COLOURS: dict[str, str] = {
    "red": "#d22f27",
    "orange": "#f1891e",
    "yellow": "#fcea2b",
    "green": "#3f9b2f",
    "blue": "#2460d8",
    "purple": "#8a3fb5",
    "pink": "#f79ac0",
    "brown": "#7a4a24",
}
BACKGROUNDS: dict[str, str] = {
    "white": "#ffffff",
    "gray": "#9a9a9a",
    "black": "#262626",
    "blue": "#8fc4f2",
    "green": "#9bd99a",
    "pink": "#f6a5c8",
    "yellow": "#f5e69a",
    "purple": "#b9a0e0",
}
SHAPE_SVG: dict[str, str] = {
    "circle": '<circle cx="36" cy="36" r="30"/>',
    "square": '<rect x="8" y="8" width="56" height="56"/>',
    "triangle": '<path d="M36 8 L66 62 H6 Z"/>',
    "star": '<path d="M36 4 L45.5 26.5 L69 28.5 L51 44.5 L56.5 68 L36 55.5 L15.5 68 L21 44.5 L3 28.5 L26.5 26.5 Z"/>',
    "heart": '<path d="M36 66 C8 46 3 33 5.500 23 C9 7 29 7 36 22 C43 7 63 7 66.500 23 C69 33 64 46 36 66 Z"/>',
    "diamond": '<path d="M36 4 L62 36 L36 68 L10 36 Z"/>',
}


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One kind of thing: its drawings and the words for it.

    `names` and `description` occur in training captions; `synonyms` and `held_out_description` never do. Names of an
    action follow "a man": "running"; its `codepoints` are those of man, woman and anyone.

    Fields:
        styles: the styles in which it can be drawn, always including flat.
        fills: colours in the SVG that recolouring replaces, each with the brightness of its replacement.
        own_colour: the colour nearest to its natural one, if it can be recoloured.
        turns: whether it looks different upside down.
        is_pair: whether two people do the action.
    """

    name: str
    group: str
    codepoints: dict[str, str]
    names: tuple[Noun, ...]
    synonyms: tuple[Noun, ...]
    description: str
    held_out_description: str
    styles: tuple[Style, ...]
    fills: tuple[tuple[str, float], ...] = ()
    own_colour: str | None = None
    turns: bool = False
    is_pair: bool = False

    @property
    def is_action(self) -> bool:
        """Return whether this is somebody doing something."""
        return self.group == "actions"

    @property
    def is_shape(self) -> bool:
        """Return whether this is a coloured shape."""
        return self.group == "shapes"

    @property
    def who(self) -> tuple[Who, ...]:
        """Return the persons of the action: man and woman, if the drawings distinguish them."""
        return ("man", "woman") if "man" in self.codepoints else ()

    @property
    def countable(self) -> Noun | None:
        """Return the first countable name."""
        return next((name for name in self.names if name.plural is not None), None)

    @property
    def colours(self) -> tuple[str, ...]:
        """Return the colours that a caption can mention."""
        return tuple(COLOURS) if self.is_shape or self.fills else ()

    def codepoint(self, who: str | None = None) -> str:
        """Return the code point of the drawing."""
        return self.codepoints[who or ""]


@lru_cache
def all_things() -> dict[str, Thing]:
    """Return everything in the tables by name: things, then actions, then shapes."""
    found = [_thing(row) for row in read_table("things")]
    found += [_action(row) for row in read_table("actions")]
    found += [_shape(name) for name in SHAPE_SVG]
    return {thing.name: thing for thing in found}


def read_table(name: str) -> list[dict[str, str]]:
    """Return the rows of a table of the package, by column."""
    text = (files("llmdiff.world") / "data" / f"{name}.tsv").read_text(encoding="utf-8")
    header, *rows = (line.split("\t") for line in text.splitlines())
    return [dict(zip(header, row, strict=True)) for row in rows]


def parts(cell: str) -> tuple[str, ...]:
    """Return the parts of a cell, separated by semicolons."""
    return tuple(part.strip() for part in cell.split(";") if part.strip())


def _thing(row: dict[str, str]) -> Thing:
    others = (part.partition(":") for part in parts(row["other_names"]))
    return Thing(
        name=row["name"],
        group=row["group"],
        codepoints={"": row["codepoint"]},
        names=(noun(row["name"], row["plural"]), *(noun(text, plural) for text, _, plural in others)),
        synonyms=tuple(
            noun(text, plural) for text, _, plural in (part.partition(":") for part in parts(row["synonyms"]))
        ),
        description=row["description"],
        held_out_description=row["held_out_description"],
        styles=_styles(row["styles"]),
        fills=tuple(
            (fill, float(share)) for fill, _, share in (part.partition(":") for part in parts(row["fills"]))
        ),
        own_colour=row["own_colour"] or None,
        turns=row["turns"] == "yes",
    )


def _action(row: dict[str, str]) -> Thing:
    codepoints = {key: row[key] for key in ("man", "woman") if row[key]}
    return Thing(
        name=row["name"],
        group="actions",
        codepoints=codepoints | {"": row["anyone"] or row["man"]},
        names=tuple(_doing(text) for text in (row["name"], *parts(row["wordings"]))),
        synonyms=tuple(map(_doing, parts(row["held_out_wordings"]))),
        description="",
        held_out_description="",
        styles=_styles(row["styles"]),
        is_pair=row["subject"] == "pair",
    )


def _shape(name: str) -> Thing:
    return Thing(
        name=name,
        group="shapes",
        codepoints={},
        names=(noun(name),),
        synonyms=(),
        description="",
        held_out_description="",
        styles=("flat",),
    )


def _doing(text: str) -> Noun:
    return Noun(text=text, plural=None, article="")


def _styles(cell: str) -> tuple[Style, ...]:
    return tuple(style for style in STYLES if style == "flat" or style in cell.split())
