"""A benchmark's report as one self-contained HTML file with pictures and plots."""

from collections.abc import Mapping, Sequence
from typing import Any

from llmdiff.evaluation.tables import failure_notes
from llmdiff.serving.templates import render
from llmdiff_lab.comparison.plots import accuracy_plot, curves_plot
from llmdiff_lab.comparison.runs import EXACT, Run
from llmdiff_lab.comparison.tables import (
    accuracy_cells,
    best_first,
    further_tables,
    part_rows,
)
from llmdiff_lab.inspection.figure_files import data_address

_SAMPLES, _SWAPS = 4, 6


def benchmark_page(report: Mapping[str, Any], runs: Sequence[Run]) -> str:
    """Return the page of a report, with pictures of every system's first seed."""
    systems: Mapping[str, Any] = report["systems"]
    ranked = best_first(systems)
    first = {run.system: run for run in reversed(runs)}
    splits = list(report["suite"]["splits"])
    one = next(iter(first.values()))

    def address_of(name: str, index: int) -> str | None:
        path = first[name].pictures / f"{index:05d}-0.png"
        return data_address(path.read_bytes()) if path.exists() else None

    return render(
        "benchmark.html",
        package="llmdiff_lab",
        report=report,
        ranked=ranked,
        ours=[name for name in ranked if systems[name]["group"] == "ours"],
        accuracy=[
            ["system", "", "held out", "all", *splits],
            *([name, systems[name]["title"], *accuracy_cells(systems[name], splits)] for name in ranked),
        ],
        failures=failure_notes({name: system["failed_pictures"] for name, system in systems.items()}),
        accuracy_plot=accuracy_plot(systems),
        parts=part_rows(systems, ranked, intervals=True),
        tables=further_tables(report, ranked),
        curves_plot=curves_plot(systems),
        prompts=[line["prompt"] for line in one.prompts],
        samples={
            split: [i for i, its in enumerate(one.splits) if its == split][:_SAMPLES] for split in splits
        },
        right={name: run.figure(EXACT) == 1 for name, run in first.items()},
        swaps=_swaps(ranked, first),
        address_of=address_of,
    )


def _swaps(ranked: Sequence[str], first: Mapping[str, Run]) -> dict[int, dict[str, list[str]]]:
    """Return the prompts where one system has the relation right and another has it swapped: kind => systems."""
    found: dict[int, dict[str, list[str]]] = {}
    shown = {
        kind: {name: first[name].figure(f"{EXACT}: relation {kind}") == 1 for name in ranked}
        for kind in ("right", "swapped")
    }
    for index in range(len(next(iter(first.values())).prompts)):
        kinds = {kind: [name for name in ranked if by_name[name][index]] for kind, by_name in shown.items()}
        if all(kinds.values()) and len(found) < _SWAPS:
            found[index] = kinds
    return found
