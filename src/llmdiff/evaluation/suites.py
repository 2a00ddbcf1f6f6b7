"""Suites of prompts: the same prompts, contents and seeds for every system that is compared."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmdiff.errors import ConfigError
from llmdiff.openmoji.captions import caption
from llmdiff.openmoji.contents import SPLITS, Split, World
from llmdiff.openmoji.scenes import Content

_STREAM = 11


@dataclass(frozen=True, kw_only=True)
class ScenePrompt:
    """A prompt of the scenes suite, what it asks for, and the seed that every system draws it with."""

    split: Split
    prompt: str
    content: Content
    seed: int


def scenes_suite(
    prompts_per_split: int, seed: int = 0, world: World | None = None, *, splits: Sequence[Split] = SPLITS
) -> list[ScenePrompt]:
    """The `scenes` suite, split after split; a longer suite begins, in every split, with the shorter one.

    Raises:
        ConfigError: `prompts_per_split` is below 1, or a split is unknown.
    """
    if prompts_per_split < 1:
        raise ConfigError(f"prompts_per_split: got {prompts_per_split}, expected at least 1")
    unknown = [split for split in splits if split not in SPLITS]
    if unknown:
        raise ConfigError(f"splits: got {unknown[0]!r}, expected some of {', '.join(SPLITS)}")
    world = world or World()
    suite: list[ScenePrompt] = []
    for split in splits:
        for index in range(prompts_per_split):
            rng = np.random.default_rng([seed, _STREAM, SPLITS.index(split), index])
            content = world.content(split, rng)
            prompt = caption(content, world, rng, split)
            suite.append(
                ScenePrompt(split=split, prompt=prompt, content=content, seed=int(rng.integers(2**31)))
            )
    return suite
