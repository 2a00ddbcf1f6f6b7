"""The published benchmarks by name."""

from pathlib import Path

from llmdiff.errors import ConfigError
from llmdiff.evaluation.suites.benchmark import Benchmark
from llmdiff.evaluation.suites.dpg_bench import DPGBench
from llmdiff.evaluation.suites.geneval import GenEval
from llmdiff.evaluation.suites.geneval2 import GenEval2
from llmdiff.evaluation.suites.longtext_bench import LongTextBench
from llmdiff.evaluation.suites.oneig_bench import OneIGBench
from llmdiff.evaluation.suites.own import read_own
from llmdiff.evaluation.suites.suite import PromptSuite
from llmdiff.evaluation.suites.t2i_compbench import CompBench
from llmdiff.evaluation.suites.tiif_bench import TIIFBench
from llmdiff.evaluation.suites.unigenbench import UniGenBench

_ALL = (DPGBench, GenEval, GenEval2, LongTextBench, OneIGBench, CompBench, TIIFBench, UniGenBench)
BENCHMARKS: dict[str, Benchmark] = {kind.name: kind() for kind in _ALL}


def read_suite(name_or_file: str, files: Path | None = None) -> PromptSuite:
    """Return the suite of a benchmark, read from its official files, or of a file with a user's own prompts.

    Raises:
        ConfigError: the name is unknown, or the files are missing or not the benchmark's.
    """
    if name_or_file in BENCHMARKS:
        if files is None or not files.exists():
            raise ConfigError(
                f"suite-files: got {files}, expected the folder or file of {name_or_file}'s official prompts, which "
                "you have to download"
            )
        return BENCHMARKS[name_or_file].read(files)
    if not Path(name_or_file).is_file():
        raise ConfigError(
            f"suite: got {name_or_file!r}, expected scenes, {', '.join(BENCHMARKS)}, or a .txt or .jsonl file with "
            "prompts"
        )
    return read_own(Path(name_or_file))
