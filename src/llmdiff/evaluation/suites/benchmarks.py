"""The published benchmarks by name, with their readers, scorers and exporters."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmdiff.errors import ConfigError
from llmdiff.evaluation.metrics.kinds import Pictures
from llmdiff.evaluation.suites import dpg_bench, geneval, t2i_compbench
from llmdiff.evaluation.suites.own import read_own
from llmdiff.evaluation.suites.suite import OfficialScores, PromptSuite, SuitePrompt


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A published benchmark: functions for its prompt files, scorer, picture folders and score files.

    `read_scores` takes what the published scorer wrote, the prompts, and how many pictures there are of each.
    """

    read: Callable[[Path], PromptSuite]
    scorer: Any
    scores_name: str
    export_pictures: Callable[[Sequence[SuitePrompt], Sequence[Pictures], Path], None]
    write_scores: Callable[[Sequence[SuitePrompt], Sequence[Sequence[Mapping[str, Any]]], Path], None]
    read_scores: Callable[[Path, Sequence[SuitePrompt], int], OfficialScores]


BENCHMARKS: dict[str, Benchmark] = {
    dpg_bench.NAME: Benchmark(
        read=dpg_bench.read_dpg_bench,
        scorer=dpg_bench.DPGScorer,
        scores_name="dpg-bench_results.txt",
        export_pictures=dpg_bench.export_pictures,
        write_scores=dpg_bench.write_scores,
        read_scores=dpg_bench.read_scores,
    ),
    geneval.NAME: Benchmark(
        read=geneval.read_geneval,
        scorer=geneval.GenEvalScorer,
        scores_name="results.jsonl",
        export_pictures=geneval.export_pictures,
        write_scores=geneval.write_scores,
        read_scores=geneval.read_scores,
    ),
    t2i_compbench.NAME: Benchmark(
        read=t2i_compbench.read_t2i_compbench,
        scorer=t2i_compbench.CompBenchScorer,
        scores_name="vqa_result.json",
        export_pictures=t2i_compbench.export_pictures,
        write_scores=t2i_compbench.write_scores,
        read_scores=t2i_compbench.read_scores,
    ),
}


def read_suite(name_or_file: str, files: Path | None = None) -> PromptSuite:
    """Return the suite of a benchmark's name and its official files, or of a file with a user's own prompts.

    Raises:
        ConfigError: the name is unknown, or the files are missing or not the benchmark's.
    """
    if name_or_file in BENCHMARKS:
        if files is None or not files.exists():
            raise ConfigError(
                f"suite-files: got {files}, expected the folder or file of {name_or_file}'s official prompts, which "
                "are yours to get"
            )
        return BENCHMARKS[name_or_file].read(files)
    if not Path(name_or_file).is_file():
        raise ConfigError(
            f"suite: got {name_or_file!r}, expected scenes, {', '.join(BENCHMARKS)}, or a .txt or .jsonl file with "
            "prompts"
        )
    return read_own(Path(name_or_file))
