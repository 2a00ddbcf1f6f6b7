"""Whether a prompt has a word of a world."""

import pytest

from llmdiff.world.scenes import World
from llmdiff.world.splits import SPLITS, prompts
from llmdiff.world.vocabulary import known_names, unknown_prompt_notice

SMALL = World(thing_count=96, styles=("flat", "line"))


@pytest.mark.parametrize(
    "prompt",
    ["a cat", "Two DOGS", "an automobile", "somebody working out at the gym", "something blue", "at the seaside",
     "the pet that purrs", "exactly three rabbits, please"],
)  # fmt: skip
def test_a_word_of_the_world_is_enough(prompt):
    assert unknown_prompt_notice(prompt, SMALL) is None


@pytest.mark.parametrize(
    "prompt", ["a submarine in the bathtub", "Katze", "a picture of his army", "…", "one zebra"]
)
def test_a_prompt_of_unknown_words_is_told_so_in_one_line(prompt):
    notice = unknown_prompt_notice(prompt, SMALL)
    assert notice is not None
    assert "\n" not in notice
    assert "llmdiff world" in notice


def test_what_the_whole_world_knows_a_smaller_one_need_not():
    assert "zebra" in known_names(World())
    assert "zebra" not in known_names(SMALL)


def test_no_prompt_of_the_evaluation_is_unknown():
    for split in SPLITS:
        for prompt in prompts(split, 20, world=SMALL):
            assert unknown_prompt_notice(prompt.text, SMALL) is None, prompt.text
