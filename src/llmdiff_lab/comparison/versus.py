"""Compare two systems of a benchmark prompt by prompt: by split, between seeds, and in what they get wrong.

    python -m llmdiff_lab.comparison.versus FOLDER lavi-bridge refined

FOLDER is the folder of a benchmark, or what `docs/results/benchmark-first-world-runs.tar.xz` unpacks to. No models are
needed.
"""

import sys
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from llmdiff.errors import ConfigError, LLMDiffError
from llmdiff.evaluation.statistics import bootstrap_mean, cohens_kappa, paired_difference
from llmdiff.evaluation.tables import markdown_table, percent
from llmdiff_lab.comparison.runs import EXACT, Run, read_run

_FAULTS_SHOWN = 8


def read_runs(folder: Path, system: str) -> list[Run]:
    """Return the runs of all seeds of a system.

    Raises:
        ConfigError: the folder has none.
    """
    places = {
        int(place.name.removeprefix("seed-")): place
        for place in (folder / "runs" / system).glob("seed-[0-9]*")
    }
    found = [read_run(place, system, seed) for seed, place in sorted(places.items())]
    if not found:
        raise ConfigError(f"{folder}: no runs of {system!r}, expected {folder / 'runs' / system / 'seed-0'}")
    return found


def split_rows(ours: Sequence[Run], others: Sequence[Run]) -> list[list[str]]:
    """Return a head and a row for each split: exact match in percent, and the difference in points.

    Means over seeds; 95 % bootstrap intervals over prompts.
    """
    means = [np.mean([run.figure(EXACT) for run in runs], axis=0) for runs in (ours, others)]
    splits = np.array(ours[0].splits)
    rows = [["split", ours[0].system, others[0].system, "difference, points"]]
    for split in dict.fromkeys(ours[0].splits):
        first, second = (values[splits == split] for values in means)
        figures = [percent(vars(bootstrap_mean(values))) for values in (first, second)]
        rows.append([split, *figures, percent(vars(paired_difference(first, second)), sign=True)])
    return rows


def seed_rows(*systems: Sequence[Run]) -> list[list[str]]:
    """Return a head and a row for each system: how far its seeds agree on which prompts they draw right.

    Cohen's kappa is the mean over pairs of seeds: 1 for the same prompts, 0 for agreement by chance.
    """
    rows = [["system", "seeds", "kappa between seeds", "right with every seed, %", "right with no seed, %"]]
    for runs in systems:
        exact = np.array([run.figure(EXACT) == 1 for run in runs])
        kappas = [cohens_kappa(first, second) for first, second in combinations(exact, 2)]
        known = [kappa for kappa in kappas if kappa is not None]
        kappa = f"{np.mean(known):.2f}" if known else "-"
        shares = [f"{100 * share:.1f}" for share in (exact.all(0).mean(), (~exact).all(0).mean())]
        rows.append([runs[0].system, str(len(runs)), kappa, *shares])
    return rows


def fault_rows(*systems: Sequence[Run]) -> list[list[str]]:
    """Return a head and a row for each kind of fault: its share of the pictures that are not exact, in percent."""
    counts = [Counter(fault for run in runs for fault in _faults(run)) for runs in systems]
    kinds = [kind for kind, _ in sum(counts, Counter()).most_common(_FAULTS_SHOWN)]
    rows = [["what is wrong", *(runs[0].system for runs in systems)]]
    rows += [
        [kind, *(f"{100 * count[kind] / max(1, count.total()):.1f}" for count in counts)] for kind in kinds
    ]
    rows.append(["pictures that are not exact", *(str(count.total()) for count in counts)])
    return rows


def _faults(run: Run) -> list[str]:
    """Return what is wrong with each picture that is not exact: the names of its wrong parts, joined by +."""
    prefix = f"{EXACT}: "
    found = []
    for line in run.prompts:
        values = line["values"]
        if values[EXACT] == 1:
            continue
        parts = {
            name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)
        }
        wrong = [name for name, value in parts.items() if not name.startswith("relation") and value == 0]
        wrong += [name for name in ("relation swapped", "relation wrong") if parts.get(name) == 1]
        found.append(" + ".join(sorted(wrong)) or "other")
    return found


def main(arguments: Sequence[str]) -> str:
    """Return the tables of two systems as Markdown.

    Raises:
        ConfigError: there are not three arguments, or the folder lacks a system.
    """
    if len(arguments) != 3:
        raise ConfigError(f"got {len(arguments)} arguments, expected FOLDER SYSTEM OTHER")
    ours, others = (read_runs(Path(arguments[0]), system) for system in arguments[1:])
    tables = (split_rows(ours, others), seed_rows(ours, others), fault_rows(ours, others))
    return "\n\n".join(markdown_table(rows) for rows in tables)


if __name__ == "__main__":
    try:
        print(main(sys.argv[1:]))
    except LLMDiffError as error:
        raise SystemExit(f"error: {error}") from None
