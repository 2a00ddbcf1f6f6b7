"""Scenes as data: the same from the same seed, nothing hides anything, captions say what is there."""

import random
from dataclasses import replace
from itertools import combinations

import pytest

from llmdiff.world.captions import caption
from llmdiff.world.layouts import RELATIONS
from llmdiff.world.rendering import SCENE_SIZE_PX
from llmdiff.world.scenes import Placed, Scene, World, any_scene, laid_out
from llmdiff.world.splits import is_held_out_colour, prompts, sample_scene, training_caption
from llmdiff.world.things import COLOURS, STYLES
from llmdiff.world.voices import PLAIN, RICH

SCENES = [sample_scene(0, index) for index in range(3000)]


def test_a_seed_and_an_index_give_the_same_scene_and_caption_for_all_time() -> None:
    assert SCENES[:50] == [sample_scene(0, index) for index in range(50)]
    assert sample_scene(0, 1) != sample_scene(1, 1)
    scene = SCENES[3]
    assert training_caption(scene, 0, 3) == training_caption(scene, 0, 3)
    assert training_caption(scene, 0, 3) != training_caption(scene, 0, 4)


def test_every_relation_style_count_and_attribute_occurs() -> None:
    assert {scene.relation for scene in SCENES} == set(RELATIONS)
    assert {scene.style for scene in SCENES} == set(STYLES)
    assert {len(scene.things) for scene in SCENES} == {1, 2, 3, 4, 5, 6}
    assert {placed.size for scene in SCENES for placed in scene.things} == {None, "small", "large"}
    assert {placed.who for scene in SCENES for placed in scene.things} == {None, "man", "woman"}
    assert any(placed.upside_down for scene in SCENES for placed in scene.things)
    assert {placed.colour for scene in SCENES for placed in scene.things} == {None, *COLOURS}
    assert all((scene.place is None) != (scene.background is None) for scene in SCENES)


def test_things_stand_inside_the_picture_and_do_not_hide_each_other() -> None:
    for scene in SCENES:
        for placed in scene.things:
            assert placed.side * SCENE_SIZE_PX >= 0.28 * SCENE_SIZE_PX
            assert 0 < placed.x < 1
            assert 0 < placed.y < 1
        for one, other in combinations(scene.things, 2):
            wide = (one.side + other.side) / 2 - abs(one.x - other.x)
            high = (one.side + other.side) / 2 - abs(one.y - other.y)
            shared = max(wide, 0) * max(high, 0)
            assert shared <= 0.12 * min(one.side, other.side) ** 2, scene


def test_things_stand_as_their_relation_says() -> None:
    for scene in SCENES:
        first, *others = scene.things
        if scene.relation == "left":
            assert first.x < others[0].x - 0.25
        elif scene.relation == "below":
            assert first.y > others[0].y + 0.25
        elif scene.relation == "between":
            assert any(
                min(getattr(others[0], axis), getattr(others[1], axis)) + 0.25
                < getattr(first, axis)
                < max(getattr(others[0], axis), getattr(others[1], axis)) - 0.25
                for axis in ("x", "y")
            )
        elif scene.relation == "row":
            assert [placed.x for placed in scene.things] == sorted(placed.x for placed in scene.things)
        elif scene.relation == "column":
            assert [placed.y for placed in scene.things] == sorted(placed.y for placed in scene.things)
        elif scene.relation in ("corner", "spots"):
            for placed in scene.things:
                words = (placed.spot or "").split()
                assert ("left" in words) == (placed.x < 0.4)
                assert ("bottom" in words) == (placed.y > 0.6)


def test_a_caption_asks_for_what_the_scene_shows() -> None:
    for index, scene in enumerate(SCENES):
        for wording in ("plain", "rich"):
            asked = training_caption(scene, 0, index, wording).expected
            names = [placed.name for placed in scene.things]
            assert asked.counts == {name: names.count(name) for name in names}
            assert asked.place == scene.place
            assert asked.background in (None, scene.background)
            assert asked.style in (None, scene.style)
            assert asked.style or scene.style == "flat"
            assert not set(asked.absent) & set(names)


def scene(*things: Placed, relation: str = "left", **other) -> Scene:
    return laid_out(
        Scene(things=things, relation=relation, background="white", **other),
        random.Random(0),  # type: ignore
    )


def said(asked: Scene, voice=PLAIN, count: int = 300) -> set[str]:
    spoken = replace(
        voice, description_share=0.0, other_name_share=0.0, distractors=(0,), background_share=0.0
    )
    return {caption(asked, spoken, random.Random(seed)).text for seed in range(count)}


def test_attributes_are_said() -> None:
    asked = scene(Placed(name="car", colour="red", size="small"), Placed(name="dog", upside_down=True))
    texts = said(asked)
    assert "a small red car to the left of an upside-down dog" in texts
    assert "a dog upside down right of a tiny red car" in texts
    for text in texts:
        assert "red car" in text
        assert "upside" in text
        assert "blue" not in text


def test_counts_are_said_with_plurals_and_verbs() -> None:
    asked = scene(*[Placed(name="mouse")] * 2, Placed(name="umbrella"), relation="group")
    assert {"two mice and an umbrella", "there are two mice and an umbrella"} <= said(asked)
    assert asked.groups == [(asked.things[0], 2), (asked.things[2], 1)] or len(asked.groups) == 2


def test_actions_are_said_with_who_does_them() -> None:
    texts = said(scene(Placed(name="running", who="woman"), relation="alone"))
    assert {"a woman running", "a woman who is running", "a person running"} <= texts
    pair = said(scene(Placed(name="wrestling", who="man"), relation="alone"))
    assert "two men wrestling" in pair
    assert not any("a man" in text for text in pair)


def test_what_is_absent_is_said() -> None:
    texts = said(scene(Placed(name="chair"), relation="alone", absent=("cat",)), RICH)
    assert "a chair without a cat" in texts
    assert any("There is no cat." in text for text in texts)
    plain = said(scene(Placed(name="chair"), relation="alone", absent=("cat",)))
    assert not any("cat" in text for text in plain)


def test_the_split_of_colours_asks_for_a_colour_that_no_training_scene_has() -> None:
    things = prompts("colours", 1)[0].expected.things
    assert len(things) == 2
    assert any(is_held_out_colour(thing.name, thing.colour) for thing in things)


def test_a_world_of_too_few_things_is_refused() -> None:
    with pytest.raises(ValueError, match="thing_count: got 5"):
        any_scene(World(thing_count=5), random.Random(0))
