"""The scenes' data: held-out contents and words stay out of training, pictures show what the content says."""

from collections import Counter
from typing import get_args

import numpy as np
import pytest

from llmdiff.openmoji import captions, more_words
from llmdiff.openmoji.captions import Wording, caption
from llmdiff.openmoji.contents import SPLITS, World, is_held_out_colour, is_held_out_pair, is_training_content
from llmdiff.openmoji.scenes import Content, Item, draw, lay_out
from llmdiff.openmoji.sentence_forms import HELD_OUT, REWORDED, TRAINING
from llmdiff.openmoji.world import BACKGROUNDS, SHAPE_COLOURS, SHAPES, things_of
from llmdiff_lab.world_build.dataset import near_miss
from llmdiff_lab.world_build.presets import preset
from llmdiff_lab.world_build.text_encoder import create_tokenizer

WORLD = World(objects=24)


def _drawn(split, count=400, seed=0):
    rng = np.random.default_rng(seed)
    contents = [WORLD.content(split, rng) for _ in range(count)]
    return contents, [caption(content, WORLD, rng, split) for content in contents]


def test_there_are_enough_templates_objects_and_held_out_things():
    assert len(captions.TRAINING.all()) >= 40
    assert len(things_of(24)) == 24
    pairs = [(a.name, b.name) for i, a in enumerate(WORLD.things) for b in WORLD.things[:i]]
    assert 20 <= sum(is_held_out_pair(*pair) for pair in pairs) <= 60
    held_out = [
        (shape, colour) for shape in SHAPES for colour in SHAPE_COLOURS if is_held_out_colour(shape, colour)
    ]
    assert len(held_out) == len(SHAPE_COLOURS)


@pytest.mark.parametrize("wording", get_args(Wording))
def test_captions_of_training_never_use_held_out_words(wording):
    rng = np.random.default_rng(1)
    text = "\n".join(
        f" {caption(WORLD.training_content(rng), WORLD, rng, wording=wording)} " for _ in range(5000)
    )
    for thing in WORLD.things:
        for phrase in thing.synonyms + thing.held_out_descriptions:
            assert f" {phrase} " not in text, phrase


def test_reworded_captions_use_all_their_words_and_forms_and_plain_ones_none():
    rng = np.random.default_rng(1)
    contents = [WORLD.training_content(rng) for _ in range(8000)]
    reworded, plain = (
        "\n".join(caption(content, WORLD, rng, wording=wording) for content in contents)
        for wording in ("reworded", "plain")
    )
    phrases = [
        phrase
        for words in (
            more_words.NAMES,
            more_words.DESCRIPTIONS,
            more_words.COLOUR_WORDS,
            more_words.SHAPE_WORDS,
        )
        for name, several in words.items()
        for phrase in several
    ]
    assert len(phrases) == len(set(phrases)) > 150
    for phrase in phrases:
        assert phrase in reworded or phrase.replace(" with", "s with") in reworded, phrase
        assert f" {phrase}" not in plain, phrase
    for thing in WORLD.things:
        assert not any(description in plain for description in thing.descriptions)
    assert set(more_words.NAMES) | set(more_words.DESCRIPTIONS) <= {thing.name for thing in WORLD.things}


def test_a_coloured_shape_keeps_its_colour_however_it_is_said():
    content = Content(items=(Item(name="circle", colour="red"),), count=3)
    rng = np.random.default_rng(0)
    said = {caption(content, WORLD, rng, wording="reworded") for _ in range(400)}
    assert {True} == {any(word in text for word in ("red", *more_words.COLOUR_WORDS["red"])) for text in said}
    assert any("circles in red" in text for text in said)
    assert any("scarlet circles" in text for text in said)


def test_held_out_sentence_forms_share_no_form_with_training():
    assert not set((TRAINING + REWORDED).all()) & set(HELD_OUT.all())


@pytest.mark.parametrize("split", SPLITS)
def test_each_split_holds_what_it_says(split):
    contents, texts = _drawn(split)
    for content, text in zip(contents, texts, strict=True):
        held_out = not is_training_content(content)
        assert held_out == (split in ("pairs", "colours"))
        if split == "synonyms":
            assert all(
                any(word in text or word[:-1] in text for word in WORLD.thing(item.name).synonyms)
                or any(text.count(w) for w in ("fungi", "ies"))
                for item in content.items
            )
        if split == "indirect":
            assert any(
                phrase in text
                for item in content.items
                for phrase in WORLD.thing(item.name).held_out_descriptions
            )
    assert len(set(texts)) > 0.9 * len(texts)


def test_seen_split_is_mostly_pairs_with_balanced_relations():
    contents, _ = _drawn("seen", 2000)
    relations = Counter(content.relation for content in contents)
    assert 0.5 < 1 - relations[None] / 2000 < 0.7
    assert max(relations[r] for r in ("left", "right", "above", "below")) < 1.3 * min(
        relations[r] for r in ("left", "right", "above", "below")
    )


@pytest.mark.parametrize(
    ("relation", "axis", "sign"), [("left", 0, -1), ("right", 0, 1), ("above", 1, -1), ("below", 1, 1)]
)
def test_the_first_item_stands_where_the_relation_says(relation, axis, sign):
    rng = np.random.default_rng(2)
    for _ in range(50):
        scene = lay_out(Content(items=(Item(name="car"), Item(name="dog")), relation=relation), rng)
        first, second = ((placed.x_px, placed.y_px) for placed in scene.placed)
        assert sign * (first[axis] - second[axis]) > 20
        assert abs(first[1 - axis] - second[1 - axis]) < 10


def test_a_picture_shows_its_items_on_its_background():
    content = Content(items=(Item(name="circle", colour="red"),), count=3, background="white")
    image = draw(lay_out(content, np.random.default_rng(3)))
    assert image.shape == (64, 64, 3)
    assert image.dtype == np.uint8
    assert tuple(image[0, 32]) == (255, 255, 255)
    red = (np.abs(image.astype(int) - (0xD2, 0x2F, 0x27)) < 10).all(-1)
    assert 3 * 150 < red.sum() < 3 * 22 * 22


def test_every_thing_can_be_drawn_and_stands_out():
    for name in [thing.name for thing in things_of(48)]:
        content = Content(items=(Item(name=name),), background="white")
        image = draw(lay_out(content, np.random.default_rng(4)))
        assert (image < 250).any(-1).sum() > 60, name


@pytest.mark.parametrize("seed", range(20))
def test_a_near_miss_differs_and_stays_in_training(seed):
    rng = np.random.default_rng(seed)
    content = WORLD.training_content(rng)
    other = near_miss(content, WORLD, rng)
    assert other != content
    assert is_training_content(other)


def test_the_same_seed_gives_the_same_words():
    assert _drawn("seen", 50, seed=7)[1] == _drawn("seen", 50, seed=7)[1]
    assert set(BACKGROUNDS) >= {"white", "black"}


def test_the_same_seed_gives_the_same_tokenizer(tmp_path):
    tokenizers = [create_tokenizer(preset("openmoji-test"), tmp_path / name) for name in ("one", "two")]
    files = [(tmp_path / name / "tokenizer.json").read_bytes() for name in ("one", "two")]
    assert files[0] == files[1]
    vocabulary = tokenizers[0].get_vocab()
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))
    text = "a red car to the left of two pigs, and a zebra"
    assert tokenizers[0].decode(tokenizers[0](text).input_ids, skip_special_tokens=True) == text.replace(
        ",", " ,"
    )
