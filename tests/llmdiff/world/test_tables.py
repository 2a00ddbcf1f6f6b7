"""What the tables hold: enough of everything, well formed, small."""

import re
from collections import Counter
from importlib.resources import files

import pytest

from llmdiff.world.forms import all_forms, forms, style_phrases
from llmdiff.world.places import places
from llmdiff.world.things import BACKGROUNDS, COLOURS, STYLES, all_things
from llmdiff.world.words import indefinite_article, joined, noun, plural_of, word_count

THINGS = all_things()
PLAIN = [thing for thing in THINGS.values() if not thing.is_action and not thing.is_shape]
ACTIONS = [thing for thing in THINGS.values() if thing.is_action]


def test_the_world_is_as_large_as_it_is_meant_to_be() -> None:
    assert len(PLAIN) >= 600
    assert sum(bool(thing.synonyms) for thing in PLAIN) >= 300
    assert sum(bool(thing.description and thing.held_out_description) for thing in PLAIN) >= 200
    assert len(ACTIONS) >= 30
    assert all(len(thing.synonyms) >= 2 for thing in ACTIONS)
    assert sum(bool(thing.fills) for thing in PLAIN) >= 20
    assert len(COLOURS) == len(BACKGROUNDS) == 8
    assert len(places()) >= 8
    assert len(all_forms()) >= 150
    for style in STYLES:
        assert sum(style in thing.styles for thing in PLAIN) >= 600


def test_no_two_things_share_a_drawing_or_a_name() -> None:
    codepoints = Counter(code for thing in THINGS.values() for code in set(thing.codepoints.values()))
    assert [code for code, times in codepoints.items() if times > 1] == []


def test_every_kind_of_form_has_some_of_each_tier_that_captions_need() -> None:
    kinds = {form.kind for form in all_forms()}
    for kind in kinds - {"opening", "absent", "absent-s", "distractor"}:
        assert len(forms(kind, ("plain",))) >= 1
    # The words for places are held out, not the one way to add them.
    for kind in kinds - {"opening", "place"}:
        assert len(forms(kind, ("held out",))) >= 1
    assert len({(form.kind, form.text) for form in all_forms()}) == len(all_forms())
    for form in all_forms():
        assert form.text == form.text.strip()
        assert word_count(re.sub(r"\{\w+\}", "", form.text)) <= 25


def test_styles_and_places_have_words_for_training_and_held_out_ones() -> None:
    for style in STYLES:
        assert style_phrases(style, ("plain",))
        assert style_phrases(style, ("held out",))
    for place in places().values():
        assert len(place.phrases) >= 2
        assert len(place.held_out_phrases) >= 2
        assert 'viewBox="0 0 128 128"' in place.svg


def test_the_data_files_are_small() -> None:
    sizes = [len(file.read_bytes()) for file in (files("llmdiff.world") / "data").iterdir() if file.is_file()]
    assert max(sizes) < 2**20


@pytest.mark.parametrize(
    ("words", "article"),
    [("apple", "an"), ("cat", "a"), ("unicorn", "a"), ("hourglass", "an"), ("SUV", "an"), ("umbrella", "an"),
     ("one-armed bandit", "a"), ("x-ray", "an"), ("UFO", "a"), ("undergraduate", "an"), ("red apple", "a")],
)  # fmt: skip
def test_articles(words, article) -> None:
    assert indefinite_article(words) == article


@pytest.mark.parametrize(
    ("singular", "plural"),
    [("cat", "cats"), ("box", "boxes"), ("cherry", "cherries"), ("policeman", "policemen"), ("bus", "buses"),
     ("glass of wine", "glasses of wine"), ("kitchen knife", "kitchen knives"),
     ("face with a mask", "faces with a mask"),     ("dormouse", "dormice"), ("boy", "boys")],
)  # fmt: skip
def test_plurals(singular, plural) -> None:
    assert plural_of(singular) == plural


def test_nouns_take_their_articles_adjectives_and_numbers() -> None:
    assert noun("apple").singular("red ") == "a red apple"
    assert noun("apple").singular() == "an apple"
    assert noun("the sun").singular() == "the sun"
    assert noun("bread", "-").singular("large ") == "large bread"
    assert noun("mouse", "mice").several("two", "small ") == "two small mice"
    with pytest.raises(ValueError, match="bread"):
        noun("bread", "-").several("two")
    assert joined(["a", "b", "c"]) == "a, b and c"
    assert joined(["a"]) == "a"


def test_every_thing_can_be_said_with_its_article() -> None:
    for thing in PLAIN:
        for name in thing.names:
            said = name.singular()
            assert said == said.strip()
            assert "  " not in said
            assert not re.search(r"\ba [aeio]", said) or said.startswith("a one"), said
