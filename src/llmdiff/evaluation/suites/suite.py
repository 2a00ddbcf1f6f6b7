"""A suite of prompts with their ids, tags and seeds."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from llmdiff.errors import ConfigError
from llmdiff.evaluation.metrics.kinds import Named, Pictures
from llmdiff.files import clean_text, is_blank


@dataclass(frozen=True, kw_only=True)
class SuitePrompt:
    """One prompt of a suite.

    Fields:
        id: its name in the suite.
        tags: the groups that it belongs to.
        metadata: what the benchmark's scorer needs to know about it.
        seed: the seed of its first picture, if the suite sets one.
    """

    id: str
    prompt: str
    tags: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None

    def seeds(self, count: int, seed: int) -> list[int]:
        """Return the seeds of its pictures. They depend on nothing else: all systems draw with the same seeds."""
        keys = [f"{seed}|{self.id}|{number}".encode() for number in range(count)]
        seeds = [int.from_bytes(hashlib.sha256(key).digest()[:4], "big") >> 1 for key in keys]
        return seeds if self.seed is None else [self.seed, *seeds[1:]]


@dataclass(frozen=True, kw_only=True)
class PromptSuite:
    """The prompts of a suite, in order.

    Fields:
        sha256: hash of the files that the prompts were read from.
        images_per_prompt: how many pictures to draw of each prompt by default.
        benchmark: title of the published benchmark; None for a user's own prompts.
        meanings: explanations of tags.
        reference: returns the pictures that set metrics compare with if the user passes none.
    """

    name: str
    prompts: tuple[SuitePrompt, ...]
    sha256: str
    images_per_prompt: int = 1
    benchmark: str | None = None
    meanings: Mapping[str, str] = field(default_factory=dict)
    reference: Callable[[], Pictures] | None = None

    @property
    def score_name(self) -> str:
        """Return the name of the figure of the suite's own scorer."""
        return self.name.replace("-", "_")

    def first(self, count: int) -> tuple[SuitePrompt, ...]:
        """Return the first `count` prompts of every combination of tags, in order."""
        taken: dict[tuple[str, ...], int] = {}
        kept = []
        for row in self.prompts:
            taken[row.tags] = taken.get(row.tags, 0) + 1
            if taken[row.tags] <= count:
                kept.append(row)
        return tuple(kept)


def prompts_by_tag(rows: Sequence[SuitePrompt]) -> dict[str, list[int]]:
    """Return the indices of the prompts of every tag."""
    return {tag: [i for i, row in enumerate(rows) if tag in row.tags] for row in rows for tag in row.tags}


class SuiteScorer(Named, Protocol):
    """Scores pictures with more knowledge than their prompts. Higher is better, 0 is the worst."""

    def judge(self, pictures: Pictures, rows: Sequence[SuitePrompt]) -> list[dict[str, Any]]:
        """Return the result of every picture: `score` in 0..1, and `parts`, further named figures.

        A result without `score` means that the scorer does not score pictures of this prompt.
        """
        ...

    def failed(self, row: SuitePrompt) -> dict[str, Any]:
        """Return the result of a picture that could not be drawn, in the form of `judge`."""
        ...


def suite_of(
    name: str,
    rows: Sequence[SuitePrompt],
    files: Sequence[Path],
    *,
    images_per_prompt: int = 1,
    benchmark: str | None = None,
) -> PromptSuite:
    """Return the suite of these prompts, which were read from these files.

    Raises:
        ConfigError: there are no prompts, one is empty, or two have the same id.
    """
    place = files[0] if files else name
    if not rows:
        raise ConfigError(f"suite {place}: holds no prompts, expected at least one")
    seen: set[str] = set()
    for row in rows:
        if is_blank(row.prompt):
            raise ConfigError(f"suite {place}: prompt {row.id!r} is empty")
        if row.id in seen:
            raise ConfigError(f"suite {place}: two prompts are called {row.id!r}; names have to differ")
        seen.add(row.id)
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(files)))
    cleaned = [
        replace(row, prompt=clean_text(f"suite {place}: prompt {row.id!r}", row.prompt)) for row in rows
    ]
    return PromptSuite(
        name=name,
        prompts=tuple(cleaned),
        sha256=digest.hexdigest(),
        images_per_prompt=images_per_prompt,
        benchmark=benchmark,
    )
