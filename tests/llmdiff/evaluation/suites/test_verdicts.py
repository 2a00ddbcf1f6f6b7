"""Verdicts on hand-made cases."""

import pytest

from llmdiff.evaluation.suites.verdicts import UNCLEAR, SeenScene, SeenThing, verdict
from llmdiff.openmoji.scenes import Content, Item

CAT, CAR = Item(name="cat"), Item(name="car")
RED_STAR, BLUE_STAR = Item(name="star", colour="red"), Item(name="star", colour="blue")


def thing(
    name: str, x_px: float = 32, y_px: float = 32, *, colour: str | None = None, size: str = "other"
) -> SeenThing:
    return SeenThing(name=name, colour=colour, size=size, x_px=x_px, y_px=y_px)


def scene(*things: SeenThing, background: str = "white") -> SeenScene:
    return SeenScene(things=things, background=background)


def pair(relation: str) -> Content:
    return Content(items=(CAT, CAR), relation=relation)  # type: ignore[arg-type]


def test_a_single_thing_is_right_on_any_background_and_in_any_size() -> None:
    result = verdict(Content(items=(CAT,)), scene(thing("cat", size="big"), background="pink"))
    assert result.exact
    assert (result.size, result.background, result.relation, result.colours) == (None, None, None, None)


def test_what_is_asked_for_is_compared() -> None:
    asked = Content(items=(CAT,), size="small", background="blue")
    assert verdict(asked, scene(thing("cat", size="small"), background="blue")).exact
    wrong_size = verdict(asked, scene(thing("cat", size="normal"), background="blue"))
    assert wrong_size.size is False
    assert wrong_size.background is True
    assert not wrong_size.exact
    assert not verdict(asked, scene(thing("cat", size="small"), background="gray")).exact


@pytest.mark.parametrize(
    ("asked", "places", "expected"),
    [
        ("left", ((16, 32), (48, 32)), "right"),
        ("left", ((48, 32), (16, 32)), "swapped"),
        ("left", ((32, 16), (32, 48)), "wrong"),
        ("right", ((48, 30), (16, 34)), "right"),
        ("right", ((16, 32), (48, 32)), "swapped"),
        ("above", ((32, 16), (32, 48)), "right"),
        ("above", ((32, 48), (32, 16)), "swapped"),
        ("below", ((30, 48), (34, 16)), "right"),
        ("below", ((16, 32), (48, 32)), "wrong"),
    ],
)
def test_relations(asked: str, places: tuple[tuple[float, float], ...], expected: str) -> None:
    result = verdict(pair(asked), scene(thing("cat", *places[0]), thing("car", *places[1])))
    assert result.relation == expected
    assert result.things
    assert result.count
    assert result.exact == (expected == "right")


def test_a_missing_or_wrong_thing_leaves_no_right_relation() -> None:
    assert verdict(pair("left"), scene(thing("cat", 16, 32))).relation == "wrong"
    other = verdict(pair("left"), scene(thing("cat", 16, 32), thing("dog", 48, 32)))
    assert other.relation == "wrong"
    assert not other.things
    assert other.count


def test_shapes_of_one_kind_are_told_apart_by_colour() -> None:
    asked = Content(items=(RED_STAR, BLUE_STAR), relation="left")
    red, blue = thing("star", 16, 32, colour="red"), thing("star", 48, 32, colour="blue")
    assert verdict(asked, scene(red, blue)).exact
    swapped = verdict(asked, scene(thing("star", 16, 32, colour="blue"), thing("star", 48, 32, colour="red")))
    assert swapped.relation == "swapped"
    assert swapped.things
    assert swapped.colours
    assert not swapped.exact


def test_a_wrong_colour_is_no_wrong_relation() -> None:
    asked = Content(items=(RED_STAR, CAT), relation="above")
    result = verdict(asked, scene(thing("star", 32, 16, colour="green"), thing("cat", 32, 48)))
    assert result.relation == "right"
    assert result.things
    assert result.colours is False
    assert not result.exact


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_counts(count: int) -> None:
    asked = Content(items=(CAT,), count=3)
    result = verdict(asked, scene(*(thing("cat", 16.0 * i, 32) for i in range(count))))
    assert result.count == result.things == result.exact == (count == 3)


def test_extra_and_unclear_things_are_wrong() -> None:
    extra = verdict(pair("left"), scene(thing("cat", 16, 32), thing("car", 48, 32), thing("dog", 32, 56)))
    assert not extra.things
    assert not extra.count
    assert not extra.exact
    assert extra.relation == "right"
    assert not verdict(Content(items=(CAT,)), scene(thing("cat"), thing(UNCLEAR, 10, 10))).exact
    assert not verdict(Content(items=(CAT,), size="big"), scene()).exact
