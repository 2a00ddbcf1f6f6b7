"""The published benchmarks by name."""

from pathlib import Path

from llmdiff.errors import ConfigError
from llmdiff.evaluation.suites import (
    dpg_bench,
    geneval,
    geneval2,
    longtext_bench,
    oneig_bench,
    t2i_compbench,
    tiif_bench,
    unigenbench,
)
from llmdiff.evaluation.suites.own import read_own
from llmdiff.evaluation.suites.suite import Benchmark, PromptSuite

_MODULES = (
    dpg_bench,
    geneval,
    geneval2,
    longtext_bench,
    oneig_bench,
    t2i_compbench,
    tiif_bench,
    unigenbench,
)
BENCHMARKS: dict[str, Benchmark] = {module.NAME: module.BENCHMARK for module in _MODULES}


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
