"""A suite of prompts with their ids, tags and seeds."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from llmdiff.errors import ConfigError
from llmdiff.evaluation.metrics.kinds import Pictures
from llmdiff.evaluation.statistics import Interval
from llmdiff.files import clean_text, is_blank


@dataclass(frozen=True, kw_only=True)
class SuitePrompt:
    """One prompt: its name in the suite, what groups it belongs to, and what a benchmark's scorer has to know of it.

    `seed`: of its first picture, where the suite says it.
    """

    id: str
    prompt: str
    tags: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None

    def seeds(self, count: int, seed: int) -> list[int]:
        """Return the seeds of its pictures: the same for every system, in whatever order and company it is drawn."""
        keys = [f"{seed}|{self.id}|{number}".encode() for number in range(count)]
        seeds = [int.from_bytes(hashlib.sha256(key).digest()[:4], "big") >> 1 for key in keys]
        return seeds if self.seed is None else [self.seed, *seeds[1:]]


@dataclass(frozen=True, kw_only=True)
class PromptSuite:
    """Prompts in their order, how many pictures each asks for, and the hash of the files that they were read from.

    `benchmark`: the published benchmark whose files these are; None for a user's own prompts. `meanings`: of tags.
    `reference`: pictures of what the prompts ask for, which metrics of sets compare with where no others are given.
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
        """Return the first `count` prompts of every group of tags, in the suite's order."""
        taken: dict[tuple[str, ...], int] = {}
        kept = []
        for row in self.prompts:
            taken[row.tags] = taken.get(row.tags, 0) + 1
            if taken[row.tags] <= count:
                kept.append(row)
        return tuple(kept)


Results = Sequence[Sequence[Mapping[str, Any]]]
"""Of every prompt, the results of its pictures, in the form of `SuiteScorer.judge`."""


@dataclass(frozen=True, kw_only=True)
class OfficialScores:
    """What a published scorer found.

    Fields:
        results: by a prompt's id the result of each of its pictures, in the form of `SuiteScorer.judge`; None for a
            picture that the scorer has no result of. A prompt that is not in it is none that this scorer scores.
        stated: figures of the scorer's own summary, in its units.
    """

    results: Mapping[str, Sequence[Mapping[str, Any] | None]]
    stated: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A published benchmark: its prompts, its scorer, and the files that its own scorer reads and writes.

    Fields:
        read: the suite of its prompt files.
        scorer: the class of our scorer.
        picture_path: of a prompt's picture by its number, the number of pictures and the system's name.
        write_scores: writes results in the form of the published scorer's files; takes the prompts, their results, the
            folder and the system's name.
        read_scores: reads what the published scorer wrote; takes the file or folder, the prompts, and how many pictures
            there are of each.
        figures: the figures that are no means over prompts, aggregated as published.
        sheet: the published scorer reads up to four pictures in one file, two by two.
        failed_level: grey level, 0..255, of a picture that could not be drawn: not black for a scorer that leaves black
            pictures out.
        side_files: other files beside the pictures, by path.
    """

    name: str
    title: str
    read: Callable[[Path], PromptSuite]
    scorer: Any
    picture_path: Callable[[SuitePrompt, int, int, str], str]
    write_scores: Callable[[Sequence[SuitePrompt], Results, Path, str], None]
    read_scores: Callable[[Path, Sequence[SuitePrompt], int], OfficialScores]
    figures: Callable[[Sequence[SuitePrompt], Results], dict[str, Interval]] = lambda rows, results: {}
    sheet: bool = False
    failed_level: int = 0
    side_files: Callable[[Sequence[SuitePrompt], str], Mapping[str, str]] = lambda rows, system: {}


def results_by_prompt(
    found: Iterable[tuple[str, int, Mapping[str, Any]]],
    rows: Sequence[SuitePrompt],
    count: int,
    place: Path,
) -> dict[str, list[Mapping[str, Any] | None]]:
    """Return the results of every prompt's pictures, from triples of a prompt's id, the picture's number and result.

    Raises:
        ConfigError: none of the prompts is in it, or a picture twice, or one beyond `count`.
    """
    results: dict[str, list[Mapping[str, Any] | None]] = {row.id: [None] * count for row in rows}
    known = False
    for id, number, result in found:
        if id not in results:
            continue
        known = True
        if not 0 <= number < count:
            raise ConfigError(
                f"official scores {place}: has picture {number} of prompt {id!r}, expected {count} of each, from 0 on "
                "(--images-per-prompt)"
            )
        if results[id][number] is not None:
            raise ConfigError(f"official scores {place}: has picture {number} of prompt {id!r} twice")
        results[id][number] = result
    if not known:
        raise ConfigError(f"official scores {place}: none of its names is a prompt's, such as {rows[0].id!r}")
    return results


class SuiteScorer(Protocol):
    """What scores the pictures of a benchmark, knowing more than their prompts. More is better, 0 is worst.

    Fields:
        name: its name on the command line.
        model_id: the folders or Hub ids of its models.
    """

    name: str
    model_id: str

    def judge(self, pictures: Pictures, rows: Sequence[SuitePrompt]) -> list[dict[str, Any]]:
        """Return the result for every picture; `score` is the picture's score in 0..1.

        Without `score` where it cannot score pictures of such prompts. `parts`: named figures besides.
        """
        ...

    def failed(self, row: SuitePrompt) -> dict[str, Any]:
        """Return the result for a picture that could not be drawn, in the form of `judge`."""
        ...


def suite_of(
    name: str,
    rows: Sequence[SuitePrompt],
    files: Sequence[Path],
    *,
    images_per_prompt: int = 1,
    benchmark: str | None = None,
) -> PromptSuite:
    """Return the suite of these rows, read from these files.

    Raises:
        ConfigError: no prompts, an empty one, or two of one name.
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
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.read_bytes())
    return PromptSuite(
        name=name,
        prompts=tuple(
            replace(row, prompt=clean_text(f"suite {place}: prompt {row.id!r}", row.prompt)) for row in rows
        ),
        sha256=digest.hexdigest(),
        images_per_prompt=images_per_prompt,
        benchmark=benchmark,
    )
