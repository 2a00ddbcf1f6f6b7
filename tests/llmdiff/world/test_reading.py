"""The comparison of a reading with what a caption asks for: every split, every fault."""

from dataclasses import replace

import pytest

from llmdiff.world.expected import Expected, ExpectedThing
from llmdiff.world.reading import (
    FAULTS,
    FAULTS_OF,
    UNCLEAR,
    Reading,
    SeenThing,
    expected_of,
    matches,
    reading_of,
)
from llmdiff.world.scenes import World
from llmdiff.world.splits import SPLITS, Prompt, Split, prompts
from llmdiff.world.things import all_things

WORLD = World(styles=("flat", "line"))


def seen(name: str, x: float = 0.5, y: float = 0.5, **others: object) -> SeenThing:
    return SeenThing(name=name, x=x, y=y, side=0.4, **others)  # type: ignore[arg-type]


def wanted(*things: ExpectedThing | str, **others: object) -> Expected:
    named = tuple(ExpectedThing(name=thing) if isinstance(thing, str) else thing for thing in things)
    return Expected(things=named, **others)  # type: ignore[arg-type]


def faults(expected: Expected, *things: SeenThing, **behind: str) -> tuple[str, ...]:
    return matches(expected, Reading(things=things, **behind)).faults


@pytest.mark.parametrize("split", SPLITS)
def test_a_render_of_a_prompts_own_scene_is_exact_and_every_change_to_it_is_named(split: Split) -> None:
    for prompt in prompts(split, 40, seed=3, world=WORLD):
        reading = reading_of(prompt.scene)
        for expected in (prompt.expected, expected_of(prompt.scene)):
            verdict = matches(expected, reading)
            assert verdict.exact, (prompt.text, verdict)
            assert all(verdict.parts.values())
        for fault, changed in _changes(prompt, reading):
            verdict = matches(prompt.expected, changed)
            assert fault in verdict.faults, (prompt.text, fault, verdict)
            assert not verdict.exact
            assert not all(
                verdict.parts[part]
                for part, named in FAULTS_OF.items()
                if fault in named and part in verdict.parts
            )


def _changes(prompt: Prompt, reading: Reading) -> list[tuple[str, Reading]]:
    """The reading changed in one respect each, and the fault that this is."""
    expected, things = prompt.expected, reading.things
    first = things[0]
    total = expected.counts

    def with_first(**changes: object) -> Reading:
        return replace(reading, things=(replace(first, **changes), *things[1:]))  # type: ignore[arg-type]

    other = next(
        name
        for name in ("cat", "dog", "house", "tree", "car", "apple")
        if name not in total and name not in expected.absent
    )
    fewer = "thing missing" if total[first.name] == 1 else "wrong count"
    found = [
        (fewer, replace(reading, things=things[1:])),
        ("extra thing", replace(reading, things=(*things, seen(other, style=first.style)))),
        ("wrong count", replace(reading, things=(*things, first))),
    ]
    if expected.things[0].colour:
        found.append(("wrong colour", with_first(colour="red" if first.colour != "red" else "blue")))
    if expected.things[0].size:
        found.append(("wrong size", with_first(side=0.4 if len(things) == 2 else 0.6)))
    if all_things()[first.name].turns:
        found.append(("wrong way up", with_first(upside_down=not first.upside_down)))
    if expected.things[0].who:
        found.append(("wrong person", with_first(who="man" if first.who == "woman" else "woman")))
    if expected.relation in ("left", "right", "above", "below", "row", "column", "corner"):
        mirrored = [replace(thing, x=1 - thing.x, y=1 - thing.y) for thing in things]
        found.append(("wrong relation", replace(reading, things=tuple(mirrored))))
    if expected.relation in ("spots", "between"):
        turned = [replace(a, x=b.x, y=b.y) for a, b in zip(things, (*things[1:], things[0]), strict=True)]
        found.append(("wrong relation", replace(reading, things=tuple(turned))))
    if expected.place:
        found.append(("wrong place", replace(reading, place="beach" if expected.place != "beach" else "sea")))
        found.append(("wrong place", replace(reading, place=None, background="white")))
    if expected.background:
        found.append(
            (
                "wrong background",
                replace(reading, background="pink" if expected.background != "pink" else "gray"),
            )
        )
    if expected.style:
        found.append(("wrong style", with_first(style="3d")))
    if expected.absent:
        unwanted = seen(expected.absent[-1], style=first.style)
        found.append(("unwanted thing", replace(reading, things=(*things, unwanted))))
    return found


def test_every_fault_occurs_in_these_changes() -> None:
    named = {
        fault
        for split in SPLITS
        for prompt in prompts(split, 40, seed=3, world=WORLD)
        for fault, _ in _changes(prompt, reading_of(prompt.scene))
    }
    assert named == set(FAULTS) == {fault for names in FAULTS_OF.values() for fault in names}


def test_what_a_caption_leaves_open_is_not_compared() -> None:
    asked = wanted("cat")
    for style in ("flat", "line", "3d"):
        assert not faults(asked, seen("cat", 0.2, 0.9, style=style), place="beach")
    assert not faults(wanted("running"), seen("running", who="woman"))
    assert not faults(wanted("car"), seen("car", colour="pink"))
    assert set(matches(asked, Reading(things=())).parts) == {"things", "count", "way up"}


def test_a_thing_that_has_a_colour_anyway_need_not_be_painted() -> None:
    own = all_things()["car"].own_colour
    assert own is not None
    asked = wanted(ExpectedThing(name="car", colour=own))
    assert not faults(asked, seen("car"))
    assert not faults(asked, seen("car", colour=own))
    other = "purple" if own != "purple" else "green"
    assert faults(asked, seen("car", colour=other)) == ("wrong colour",)
    assert faults(wanted(ExpectedThing(name="car", colour=other)), seen("car")) == ("wrong colour",)


def test_two_of_a_kind_are_told_apart_by_colour() -> None:
    asked = wanted(
        ExpectedThing(name="circle", colour="red"),
        ExpectedThing(name="circle", colour="blue"),
        relation="left",
    )
    red, blue = seen("circle", 0.2, colour="red"), seen("circle", 0.8, colour="blue")
    assert not faults(asked, blue, red)
    swapped = matches(asked, Reading(things=(replace(red, x=0.8), replace(blue, x=0.2))))
    assert swapped.faults == ("wrong relation",)
    assert swapped.swapped
    two_reds = matches(asked, Reading(things=(red, replace(blue, colour="red"))))
    assert two_reds.faults == ("wrong colour", "wrong relation")
    assert not two_reds.swapped


def test_counts_are_those_of_each_name_and_of_all_things() -> None:
    asked = wanted(ExpectedThing(name="cat", count=2), "dog")
    cat, dog = seen("cat"), seen("dog")
    assert not faults(asked, cat, dog, cat)
    assert faults(asked, cat, dog) == ("wrong count",)
    assert faults(asked, cat, dog, dog) == ("wrong count",)
    assert faults(asked, cat, cat) == ("thing missing",)
    instead = matches(asked, Reading(things=(cat, cat, seen("cow"))))
    assert instead.faults == ("thing missing", "extra thing")
    assert instead.parts["count"]
    assert not instead.parts["things"]
    assert faults(asked, cat, cat, dog, seen(UNCLEAR)) == ("extra thing",)


def test_between_is_between_in_any_direction_and_nowhere_else() -> None:
    asked = wanted("cat", "dog", "cow", relation="between")
    assert not faults(asked, seen("cat", 0.5, 0.4), seen("dog", 0.8, 0.5), seen("cow", 0.2, 0.5))
    assert not faults(asked, seen("cat", 0.5, 0.5), seen("dog", 0.5, 0.2), seen("cow", 0.5, 0.8))
    for x, y in ((0.95, 0.5), (0.05, 0.5), (0.5, 0.05), (0.5, 0.95)):
        shown = (seen("cat", x, y), seen("dog", 0.8, 0.5), seen("cow", 0.2, 0.5))
        assert faults(asked, *shown) == ("wrong relation",)


def test_a_spot_between_two_spots_is_neither() -> None:
    for spot, at in (("top left", (0.2, 0.2)), ("bottom right", (0.8, 0.8)), ("middle", (0.5, 0.5))):
        asked = wanted(ExpectedThing(name="cat", spot=spot), relation="spots")
        assert not faults(asked, seen("cat", *at))
        assert faults(asked, seen("cat", 0.5, 0.1)) == ("wrong relation",)


def test_an_empty_picture_lacks_everything_and_says_so_once() -> None:
    asked = wanted(
        ExpectedThing(name="circle", colour="red", size="large"),
        "cat",
        relation="left",
        place="beach",
        style="flat",
    )
    empty = matches(asked, Reading(things=()))
    assert empty.faults == ("thing missing", "wrong place", "wrong style")
    assert not any(
        empty.parts[part] for part in ("things", "count", "colours", "size", "relation", "place", "style")
    )
