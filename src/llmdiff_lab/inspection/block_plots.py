"""Write what `block_accuracy` measures as a table and a figure."""

from pathlib import Path
from typing import Any

from llmdiff.evaluation.tables import percent, text_table
from llmdiff_lab.inspection.figure_files import save_record

_PICTURE = "![Learned weights, accuracy without each block, and accuracy with each block alone](blocks.png)"


def save_blocks(report: dict[str, Any], folder: Path) -> list[Path]:
    """Write blocks.json, blocks.md, blocks.png and blocks.svg into `folder`; return their paths.

    Raises:
        OutputError: the folder cannot be written.
    """
    text = f"Made with `{report['command']}`\n\n{_PICTURE}\n\n{block_table(report, markdown=True)}\n"
    return save_record("blocks", report, text, block_figure(report), folder)


def block_table(report: dict[str, Any], *, markdown: bool = False) -> str:
    """Return the accuracies as a table, in percent and points, with one row for each block."""
    weights = report["weights"]
    rows = [["block", *weights, "all but it, points", "it alone, %"]]
    for block, (without, alone) in enumerate(zip(report["without"], report["alone"], strict=True)):
        learned = [" ".join(f"{value:.2f}" for value in values[block]) for values in weights.values()]
        rows.append([str(block), *learned, percent(without, sign=True), percent(alone)])
    return (
        f"{text_table(rows, markdown)}\n\nAll blocks: {percent(report['all'])} %; no block, which leaves x_0 alone: "
        f"{percent(report['none'])} %. {report['prompts']} prompts, drawn exactly right; 95 % bootstrap intervals over "
        f"prompts.{_groups_text(report['groups'])}"
    )


def _groups_text(groups: list[list[str]]) -> str:
    if len(groups) == 1:
        return ""
    named = "; ".join(
        f"{number}: {', '.join(_short(name) for name in part)}" for number, part in enumerate(groups)
    )
    return f" One weight for each group of attention layers: {named}."


def _short(layer: str) -> str:
    """Return "up_blocks.1.attentions.0" of the name of an attention layer inside it."""
    return layer.partition(".transformer_blocks")[0]


def block_figure(report: dict[str, Any]) -> Any:
    """Return a matplotlib figure: learned weights, accuracy without each block, and of each block alone."""
    from matplotlib.figure import Figure

    weights = report["weights"]
    routed = len(weights["gamma"][0]) > 1
    panels = len(weights) if routed else 1
    figure = Figure(
        figsize=(max(8.0, 0.3 * len(report["alone"]) + 2), 3.2 * (panels + 2)), layout="constrained"
    )
    places = figure.subplots(panels + 2, 1)
    if routed:
        for place, (name, values) in zip(places, weights.items(), strict=False):
            _heat_map(figure, place, values, name, report["groups"])
    else:
        for name, values in weights.items():
            places[0].plot([row[0] for row in values], marker=".", label=name)
        places[0].axhline(0, color="gray", linewidth=0.5)
        places[0].set(title="learned weights of the LLM's blocks", xlabel="block")
        places[0].legend(fontsize=8)
    _bars(places[-2], report["without"], "accuracy without a block, minus that with all", "points")
    places[-2].axhline(0, color="gray", linewidth=0.5)
    _bars(places[-1], report["alone"], "accuracy with one block alone", "%")
    for name, style, label in (("all", "--", "all blocks"), ("none", ":", "no block")):
        places[-1].axhline(100 * report[name]["mean"], color="gray", linestyle=style, label=label)
    places[-1].legend(fontsize=8)
    return figure


def _bars(place: Any, rows: list[dict[str, float]], title: str, unit: str) -> None:
    means = [100 * row["mean"] for row in rows]
    below = [100 * (row["mean"] - row["low"]) for row in rows]
    above = [100 * (row["high"] - row["mean"]) for row in rows]
    place.errorbar(range(len(rows)), means, yerr=[below, above], fmt="o", markersize=4, capsize=2)
    place.set(title=f"{title}, 95 % intervals over prompts", xlabel="block", ylabel=unit)


def _heat_map(figure: Any, place: Any, values: list[list[float]], name: str, groups: list[list[str]]) -> None:
    """Draw the weights of every group (rows) and block (columns), white at 1, where they start."""
    rows = [list(column) for column in zip(*values, strict=True)]
    most = max(abs(value - 1) for row in rows for value in row) or 1.0
    image = place.imshow(
        rows,
        aspect="auto",
        cmap="RdBu_r",
        vmin=1 - most,
        vmax=1 + most,
        interpolation="nearest",
        origin="lower",
    )
    place.set(title=f"learned {name} by group of attention layers (1: as at the start)", xlabel="block")
    labels = [f"{_short(part[0])}{f' and {len(part) - 1} more' if part[1:] else ''}" for part in groups]
    place.set_yticks(range(len(rows)), labels, fontsize=8)
    figure.colorbar(image, ax=place, shrink=0.9)
