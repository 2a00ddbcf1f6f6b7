"""A benchmark's plots, as pictures inside the page."""

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def picture_uri(path: Path) -> str:
    """Return a PNG file as an address that holds the picture itself."""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def accuracy_plot(systems: Mapping[str, Any]) -> str:
    """Return bars of held-out accuracy with intervals, best first, as an address that holds the picture."""
    from matplotlib.figure import Figure

    ranked = sorted(systems, key=lambda name: systems[name]["held_out"]["accuracy"])
    figures = [systems[name]["held_out"] for name in ranked]
    sheet = Figure(figsize=(8, 0.34 * len(ranked) + 1.2), layout="constrained")
    axes = sheet.subplots()
    means = [100 * row["accuracy"] for row in figures]
    reach = [
        [100 * (row["accuracy"] - row["low"]) for row in figures],
        [100 * (row["high"] - row["accuracy"]) for row in figures],
    ]
    colours = ["#d0743c" if systems[name]["group"] == "ours" else "#4a7bd0" for name in ranked]
    axes.barh(ranked, means, xerr=reach, color=colours, ecolor="#333", capsize=2)
    axes.set(xlabel="exact match on all held-out splits, %", xlim=(0, max(5.0, *means) * 1.25))
    axes.grid(axis="x", alpha=0.3)
    return _uri(sheet)


def curves_plot(systems: Mapping[str, Any]) -> str | None:
    """Return every system's training loss, the mean of its seeds; None where nothing was trained."""
    from matplotlib.figure import Figure

    sheet = Figure(figsize=(8, 5), layout="constrained")
    axes = sheet.subplots()
    marks = ("-", "--", "-.", ":")
    drawn = 0
    for name, system in systems.items():
        curves = [curve for curve in system["curves"] if curve]
        if not curves:
            continue
        length = min(len(curve) for curve in curves)
        steps = [curves[0][i][0] for i in range(length)]
        losses = [sum(curve[i][1] for curve in curves) / len(curves) for i in range(length)]
        # One point is a line that cannot be seen.
        axes.plot(steps, losses, marks[drawn // 10 % 4], label=name, marker="." if length < 3 else None)
        drawn += 1
    if not drawn:
        return None
    axes.set(xlabel="step", ylabel="training loss", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, ncols=2)
    return _uri(sheet)


def _uri(sheet: Any) -> str:
    buffer = io.BytesIO()
    sheet.savefig(buffer, format="png", dpi=110)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
