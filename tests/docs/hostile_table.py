"""The table of hostile inputs in docs/explanation/hostile_inputs.md: `python tests/docs/hostile_table.py` writes it."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1]))  # where this is run as a command

from docs.written import write

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "explanation" / "hostile_inputs.md"

# What is tried of every kind; a test's mark names one of these.
TRIED = {
    "weights": "missing, renamed, scaled, cut or left-over tensors of every model that is loaded",
    "llm kinds": "models that are no causal LLMs, or whose blocks cannot be called on a lone token",
    "packed denoisers": "quantised and offloaded denoisers under a new adapter",
    "ignored text": "pipelines that would draw without reading the LLM",
    "undoing": "caches, copies and denoisers that change while an LLM is attached",
    "non-finite pictures": "overflows in half precision, in every way to draw",
    "user pictures": "orientation, transparency, 16 bits, damage, bombs, formats that run programs",
    "texts": "byte-order marks, odd line ends, control tokens, surrogates, blank and damaged rows",
    "stale stores": "pictures, models and settings that changed since a store or a run was made",
    "stale batches": "pictures that other models drew under the same names",
    "numbers and options": "every option of every verb: not finite, out of range, of 64 bits and more, no numbers",
    "adapter config": "every field of `config.json` and of a training's configuration: other types, sizes, names",
    "files and folders": "pipes, devices, links, long names, nesting, full disks and places that cannot be written",
    "sizes and guidance": "sizes that a pipeline rounds or cannot draw; prompts that guidance leaves out",
    "private paths": "places on the author's machine in what is uploaded",
    "openai client": "requests of OpenAI's clients: hints, sizes, formats, edits",
}


class _Counts:
    """A plugin of pytest that counts marked tests once all are collected."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            for mark in item.iter_markers("hostile"):
                self.counts[mark.args[0]] += 1


def collected() -> dict[str, int]:
    """Return how many tests have each kind's mark; in a process of its own, as tests are imported for that."""
    done = subprocess.run(
        [sys.executable, __file__, "--count"],
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
        cwd=ROOT,
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _count() -> None:
    marked = [
        str(path) for path in (ROOT / "tests").rglob("test_*.py") if "hostile" in path.read_text("utf-8")
    ]
    plugin = _Counts()
    status = pytest.main(
        ["--collect-only", "-qq", "-p", "no:cacheprovider", "-m", "hostile and not gpu", *marked], [plugin]
    )
    assert status == pytest.ExitCode.OK, status
    print(f"\n{json.dumps(plugin.counts)}")


def table(counts: Mapping[str, int]) -> str:
    """Return the table's lines."""
    assert set(counts) <= set(TRIED), f"unknown kinds: {set(counts) - set(TRIED)}"
    rows = [f"| {kind} | {what} | {counts[kind]:,} |" for kind, what in TRIED.items() if kind in counts]
    total = f"| all | | {sum(counts.values()):,} |"
    return "\n".join(["| kind | what is tried | tests |", "|---|---|---:|", *rows, total])


if __name__ == "__main__":
    if "--count" in sys.argv:
        _count()
    else:
        write(PAGE, {"table": table(collected())})
