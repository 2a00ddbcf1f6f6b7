"""Write a table of probes as JSON, Markdown and a plot."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmdiff.evaluation.tables import markdown_table, percent
from llmdiff_lab.inspection.figure_files import save_record

KINDS = {
    "objects": "every thing by name and in its place",
    "named": "every thing by name, in any place",
    "colours": "every colour",
    "count": "how many of each, where there are several",
    "relation": "the relation and its things in order",
    "place": "the place",
    "style": "the style",
    "all": "every answer right",
}
_PLOTTED = ("objects", "colours", "count", "relation")


def save_probes(record: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write probes.json, probes.md, probes.png and probes.svg into `folder`; return their paths.

    Raises:
        OutputError: the folder cannot be written.
    """
    return save_record("probes", record, probe_tables(record), probe_figure(record), folder)


def probe_tables(record: Mapping[str, Any]) -> str:
    """Return one Markdown table per kind of content, with a row per encoding and a column per split."""
    splits = list(record["settings"]["splits"])
    reference = record["reference"]
    lines = [
        "Share of captions that a linear probe reads correctly, in percent, with 95 % bootstrap intervals."
    ]
    lines += [f"Bold: the interval of the difference to {reference} does not contain zero.", ""]
    for kind, meaning in KINDS.items():
        shown = [split for split in splits if kind in record["table"][reference][split]]
        if not shown:
            continue
        rows = [["", *shown]]
        for encoding, row in record["table"].items():
            gaps = record["differences"].get(encoding, {})
            cells = [_cell(row[split][kind], gaps.get(split, {}).get(kind)) for split in shown]
            rows.append([encoding, *cells])
        lines += [f"**{kind}**: {meaning}", "", markdown_table(rows), ""]
    lines += [f"- {encoding}: {title}" for encoding, title in record["titles"].items()]
    return "\n".join(lines) + "\n"


def probe_figure(record: Mapping[str, Any]) -> Any:
    """Return a matplotlib figure of bars with intervals, with a panel for every kind of content."""
    from matplotlib.figure import Figure

    splits, encodings = list(record["settings"]["splits"]), list(record["table"])
    figure = Figure(figsize=(13, 8), layout="constrained")
    width = 0.8 / len(encodings)
    for place, kind in zip(figure.subplots(2, 2).flat, _PLOTTED, strict=True):
        for number, encoding in enumerate(encodings):
            found = [
                (x, record["table"][encoding][split][kind])
                for x, split in enumerate(splits)
                if kind in record["table"][encoding][split]
            ]
            means = [100 * row["mean"] for _, row in found]
            reach = [
                [100 * (row["mean"] - row["low"]) for _, row in found],
                [100 * (row["high"] - row["mean"]) for _, row in found],
            ]
            at = [x + (number - (len(encodings) - 1) / 2) * width for x, _ in found]
            place.bar(at, means, width, yerr=reach, label=encoding, error_kw={"linewidth": 0.8})
        place.set_xticks(range(len(splits)), splits)
        place.set(title=f"{kind}: {KINDS[kind]}", ylabel="read correctly, %", ylim=(0, 105))
        place.grid(axis="y", alpha=0.3)
    figure.axes[0].legend(fontsize=8)
    return figure


def _cell(row: Mapping[str, float], gap: Mapping[str, float] | None) -> str:
    mean, _, interval = percent(row, digits=0).partition(" ")
    is_clear = gap is not None and (gap["low"] > 0 or gap["high"] < 0)
    return f"**{mean}** {interval}" if is_clear else f"{mean} {interval}"
