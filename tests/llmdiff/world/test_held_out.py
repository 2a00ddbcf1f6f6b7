"""Nothing that is held out is in any training text: the tables against each other, and 20,000 captions."""

import re
from collections import defaultdict
from collections.abc import Iterable
from itertools import combinations

import pytest

from llmdiff.errors import LLMDiffError
from llmdiff.world.forms import all_forms
from llmdiff.world.places import places
from llmdiff.world.scenes import World
from llmdiff.world.splits import (
    SPLITS,
    held_out_parts,
    is_held_out_colour,
    is_held_out_count,
    is_held_out_pair,
    is_held_out_style,
    prompts,
    sample_scene,
    training_caption,
)
from llmdiff.world.things import all_things, parts, read_table
from llmdiff.world.words import Noun, word_count

CAPTIONS = 20_000
# A word for more than one thing of the world, when more words go before or after it: "the bird that hoots".
HYPERNYMS = {
    "baby", "bag", "ball", "balls", "bear", "beetle", "bird", "birds", "boat", "boot", "bowl", "bowls",
    "box", "boxes", "bread", "camera", "car", "cars", "cat", "cup", "dog", "fish", "flag", "flower",
    "flowers", "hand", "hands", "hat", "helmet", "horse", "house", "lamp", "lion", "man", "mountain",
    "old man", "old woman", "planet", "rock", "soup", "star", "swimsuit", "temple", "tower", "train",
    "tree", "van", "wheel", "woman",
}  # fmt: skip
_CLAUSE = re.compile(
    r"\b(?:that|who|which|whose|with|of|for|in|on|from|to|at|where|whom|without|covering|asking|licking)\b"
)


def words(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def spoken(noun: Noun) -> list[str]:
    return [words(text) for text in (noun.text, noun.plural) if text]


def held_out_words() -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for thing in all_things().values():
        for noun in thing.synonyms:
            for text in spoken(noun):
                found[text].add(thing.name)
        if thing.held_out_description:
            found[words(thing.held_out_description)].add(thing.name)
    for name, place in places().items():
        for phrase in place.held_out_phrases:
            found[words(phrase)].add(name)
    for row in read_table("styles"):
        for phrase in parts(row["held_out_phrases"]):
            found[words(phrase)].add(row["name"])
    return dict(found)


def training_words() -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for thing in all_things().values():
        for noun in thing.names:
            for text in spoken(noun):
                found[text].add(thing.name)
        if thing.description:
            found[words(thing.description)].add(thing.name)
    for form in all_forms():
        if form.tier != "held out":
            found[words(re.sub(r"\{\w+\}", " 0 ", form.text))].add(f"form {form.text}")
    for name, place in places().items():
        for phrase in (*place.phrases, *place.rich_phrases):
            found[words(phrase)].add(name)
    for row in read_table("styles"):
        for phrase in parts(row["phrases"]) + parts(row["rich_phrases"]):
            found[words(phrase)].add(row["name"])
    return dict(found)


class Finder:
    """Finds which of some phrases stand in a text as whole words; fast for thousands of both."""

    def __init__(self, phrases: Iterable[str]) -> None:
        self.by_first: dict[str, list[str]] = defaultdict(list)
        for phrase in phrases:
            self.by_first[phrase.split()[0]].append(f"{phrase} ")

    def __call__(self, text: str) -> list[str]:
        spelt = f"{words(text)} "
        starts = [0, *(found.end() for found in re.finditer(" ", spelt))]
        return [
            phrase.strip()
            for start in starts[:-1]
            for phrase in self.by_first.get(spelt[start : spelt.index(" ", start)], ())
            if spelt.startswith(phrase, start)
        ]


def held_out_forms(gap: str = ".+") -> list[tuple[str, re.Pattern[str]]]:
    """The longest piece between the gaps of each held-out form, and a pattern of all its pieces in their order."""
    found = []
    for form in all_forms():
        if form.tier == "held out":
            pieces = re.split(r"\{\w+\}", form.text)
            pattern = re.compile(gap.join(map(re.escape, pieces)), re.IGNORECASE)
            found.append((max(pieces, key=len).lower(), pattern))
    return found


def forms_in(text: str, forms: list[tuple[str, re.Pattern[str]]]) -> list[str]:
    lower = text.lower()
    return [pattern.pattern for piece, pattern in forms if piece in lower and pattern.search(text)]


def test_no_held_out_word_stands_in_a_training_text_of_the_tables() -> None:
    find = Finder(held_out_words())
    assert [(text, find(text)) for text in training_words() if find(text)] == []


def test_no_word_names_two_things() -> None:
    everything = defaultdict(set)
    for table in (training_words(), held_out_words()):
        for text, names in table.items():
            everything[text] |= names
    doubtful = {text: names for text, names in everything.items() if len(names) > 1}
    # A place may have the name of a style of speaking, a form that of nothing.
    assert {
        text: names for text, names in doubtful.items() if any(name in all_things() for name in names)
    } == {}


def test_no_synonym_and_no_description_ends_in_the_name_of_another_thing() -> None:
    names = {
        text: thing.name
        for thing in all_things().values()
        if not thing.is_action
        for noun in thing.names
        for text in spoken(noun)
    }
    found = []
    for thing in all_things().values():
        if thing.is_action:
            continue
        texts = [noun.text for noun in thing.synonyms]
        texts += [text for text in (thing.description, thing.held_out_description) if text]
        for text in texts:
            head = words(_CLAUSE.split(text)[0]).split()
            for start in range(len(head)):
                ending = " ".join(head[start:])
                other = names.get(ending)
                if other not in (None, thing.name) and ending not in HYPERNYMS:
                    found.append((thing.name, text, other))
    assert found == []


def test_no_description_says_the_name() -> None:
    for thing in all_things().values():
        find = Finder(spelt for noun in (*thing.names, *thing.synonyms) for spelt in spoken(noun))
        for text in (thing.description, thing.held_out_description):
            assert not text or find(text) == [], (thing.name, text)
        assert not thing.description or thing.description != thing.held_out_description


@pytest.mark.slow
@pytest.mark.parametrize("wording", ["plain", "rich"])
def test_no_training_caption_or_scene_has_anything_held_out(wording) -> None:
    find, forms, lengths = Finder(held_out_words()), held_out_forms(), []
    for index in range(CAPTIONS // 2):
        scene = sample_scene(1, index)
        made = training_caption(scene, 1, index, wording)
        assert find(made.text) == [], made.text
        assert forms_in(made.text, forms) == [], made.text
        names = [placed.name for placed in scene.things]
        assert not any(is_held_out_pair(*pair) for pair in combinations(set(names), 2))
        assert not any(is_held_out_count(name, names.count(name)) for name in names)
        assert not any(is_held_out_style(name, scene.style) for name in names)
        assert not any(p.colour and is_held_out_colour(p.name, p.colour) for p in scene.things)
        lengths.append(word_count(made.text))
    assert min(lengths) >= 3
    assert max(lengths) <= 160
    if wording == "rich":
        assert sum(length > 77 for length in lengths) > 0.08 * len(lengths)
    else:
        # CLIP's tokeniser makes some more tokens than words; its encoders read 77.
        assert sum(length > 60 for length in lengths) < 0.02 * len(lengths)


@pytest.mark.parametrize("split", SPLITS)
def test_a_split_holds_out_what_it_says_and_nothing_else(split) -> None:
    asked = prompts(split)
    assert len({prompt.text for prompt in asked}) == 100
    assert [prompt.text for prompt in prompts(split, 20)] == [prompt.text for prompt in asked[:20]]
    wanted = {split} if split in ("pairs", "colours", "counts", "styles") else set()
    assert all(held_out_parts(prompt.scene) == wanted for prompt in asked)
    find = Finder(held_out_words())
    said = [find(prompt.text) for prompt in asked]
    if split in ("synonyms", "descriptions", "actions"):
        assert all(said)
    else:
        assert not any(said)
    for prompt in asked:
        if split == "long":
            assert word_count(prompt.text) > 77
            assert 3 <= len(prompt.expected.things) <= 5
        if split == "negation":
            assert prompt.expected.absent
        if split == "colours":
            assert len({thing.colour for thing in prompt.expected.things}) == 2


def test_a_held_out_form_is_in_every_prompt_of_that_split_and_in_negations() -> None:
    forms = held_out_forms(".*")
    for split in ("forms", "negation"):
        for prompt in prompts(split):
            assert forms_in(prompt.text, forms), prompt.text


def test_a_smaller_world_asks_for_its_own_things_only() -> None:
    world = World(thing_count=96, styles=("flat", "line"))
    assert len(world.things) == 96
    assert {thing.group for thing in world.things} == {thing.group for thing in all_things().values()}
    for split in SPLITS:
        for prompt in prompts(split, 20, world=world):
            assert {*prompt.expected.counts, *prompt.expected.absent} <= world.names
            assert prompt.expected.style != "3d"


@pytest.mark.hostile("numbers and options")
def test_a_split_that_a_world_has_no_scenes_for_is_refused() -> None:
    with pytest.raises(LLMDiffError, match=r"split styles: .* has no scenes"):
        prompts("styles", 1, world=World(styles=("flat",)))
