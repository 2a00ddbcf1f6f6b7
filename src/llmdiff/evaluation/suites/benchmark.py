"""A published benchmark: its prompts, and the files that its own scorer reads and writes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from llmdiff.errors import ConfigError
from llmdiff.evaluation.statistics import Interval, bootstrap_ratios
from llmdiff.evaluation.suites.suite import PromptSuite, SuitePrompt, suite_of

Rows = Sequence[SuitePrompt]
Results = Sequence[Sequence[Mapping[str, Any]]]
"""For every prompt, the results of its pictures, in the form of `SuiteScorer.judge`."""
CategorySums = Mapping[str, tuple[float, float]]
"""For one prompt and every category: the sum of its scores, and how many there are."""
Ratios = Mapping[str, NDArray[np.float64]]
"""Figures by name. Shapes: (...) each, for example (resamples,)."""


@dataclass(frozen=True, kw_only=True)
class OfficialScores:
    """Scores that a published scorer wrote.

    Fields:
        results: the result of every picture by its prompt's id, in the form of `SuiteScorer.judge`; None for a
            picture without a result. Prompts that the scorer does not score are missing.
        stated: figures of the scorer's own summary, in its units.
    """

    results: Mapping[str, Sequence[Mapping[str, Any] | None]]
    stated: Mapping[str, float] = field(default_factory=dict)


class Benchmark:
    """Base of the published benchmarks.

    Fields:
        name, title: its name on the command line, and in reports.
        scorer: the class of this library's scorer.
        images_per_prompt: pictures of each prompt, as published.
        sheet: whether the published scorer reads up to four pictures of a prompt from one file, two by two.
        failed_level: grey level of a picture that could not be drawn, 0..255; not black for a scorer that skips
            black pictures.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    scorer: ClassVar[Any]
    images_per_prompt: ClassVar[int] = 1
    sheet: ClassVar[bool] = False
    failed_level: ClassVar[int] = 0

    def read(self, path: Path) -> PromptSuite:
        """Return the suite of the benchmark's prompt files, see `prompts`.

        Raises:
            InputFileError: a file is missing.
            ConfigError: a file is not the benchmark's.
        """
        rows, files = self.prompts(path)
        return suite_of(
            self.name,
            rows,
            files or [path],
            images_per_prompt=self.images_per_prompt,
            benchmark=self.title,
        )

    def prompts(self, path: Path) -> tuple[Rows, Sequence[Path]]:
        """Return the prompts, and the files that they were read from."""
        raise NotImplementedError

    def picture_path(self, row: SuitePrompt, number: int, count: int, system: str) -> str:
        """Return where the published scorer expects picture `number` of the `count` pictures of a prompt."""
        raise NotImplementedError

    def side_files(self, rows: Rows, system: str) -> Mapping[str, str]:
        """Return the content of other files that the published scorer reads, by path."""
        return {}

    def write_scores(self, rows: Rows, results: Results, folder: Path, system: str) -> None:
        """Write results of this library's scorer in the format of the published scorer."""
        raise NotImplementedError

    def read_scores(self, place: Path, rows: Rows, images_per_prompt: int) -> OfficialScores:
        """Return the results that the published scorer wrote.

        Raises:
            ConfigError: the file is not the scorer's, has none of these prompts, or another number of pictures.
        """
        raise NotImplementedError

    def category_sums(self, row: SuitePrompt, results: Sequence[Mapping[str, Any]]) -> CategorySums:
        """Return what one prompt adds to the figures that are not means over prompts."""
        return {}

    def combine(self, ratios: Ratios, rows: Rows) -> Ratios:
        """Return the published figures, given the mean score of every category."""
        return ratios

    def figures(self, rows: Rows, results: Results) -> dict[str, Interval]:
        """Return the figures that the benchmark aggregates in its own way, with intervals over prompts."""
        sums = [self.category_sums(row, some) for row, some in zip(rows, results, strict=True)]
        names = list(dict.fromkeys(name for one in sums for name in one))
        if not names:
            return {}
        cells = np.array([[one.get(name, (0.0, 0.0)) for name in names] for one in sums], dtype=np.float64)
        figures: list[str] = []

        def combined(ratios: NDArray[np.float64]) -> NDArray[np.float64]:
            found = self.combine({name: ratios[..., index] for index, name in enumerate(names)}, rows)
            figures[:] = list(found)
            return np.stack(list(found.values()), axis=-1)

        intervals = bootstrap_ratios(cells[..., 0], cells[..., 1], combined)
        return dict(zip(figures, intervals, strict=True))

    @staticmethod
    def by_prompt(
        found: Iterable[tuple[str, int, Mapping[str, Any]]], rows: Rows, count: int, place: Path
    ) -> dict[str, list[Mapping[str, Any] | None]]:
        """Return the results of every prompt's pictures, from triples of prompt id, picture number and result.

        Raises:
            ConfigError: no prompt matches, or a picture is there twice or has a number that is too high.
        """
        results: dict[str, list[Mapping[str, Any] | None]] = {row.id: [None] * count for row in rows}
        known = False
        for id, number, result in found:
            if id not in results:
                continue
            known = True
            if not 0 <= number < count:
                raise ConfigError(
                    f"official scores {place}: has picture {number} of prompt {id!r}, expected {count} of each, from 0 "
                    "on (--images-per-prompt)"
                )
            if results[id][number] is not None:
                raise ConfigError(f"official scores {place}: has picture {number} of prompt {id!r} twice")
            results[id][number] = result
        if not known:
            raise ConfigError(
                f"official scores {place}: none of its names is a prompt's, such as {rows[0].id!r}"
            )
        return results
