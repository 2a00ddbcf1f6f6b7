"""A benchmark's plots, as pictures embedded in the page."""

from collections.abc import Mapping
from typing import Any

from llmdiff_lab.inspection.figure_files import data_address, figure_bytes

_LOSSES = {
    "text_curves": "from captions: what stays unexplained",
    "curves": "on pictures: denoising loss",
}
_DASHES = ("-", "--", "-.", ":")


def accuracy_plot(systems: Mapping[str, Any]) -> str:
    """Return a data URL of a bar plot of held-out accuracy with intervals, best first."""
    from matplotlib.figure import Figure

    ranked = sorted(systems, key=lambda name: systems[name]["held_out"]["mean"])
    figures = [systems[name]["held_out"] for name in ranked]
    sheet = Figure(figsize=(8, 0.34 * len(ranked) + 1.2), layout="constrained")
    axes = sheet.subplots()
    means = [100 * row["mean"] for row in figures]
    reach = [
        [100 * (row["mean"] - row["low"]) for row in figures],
        [100 * (row["high"] - row["mean"]) for row in figures],
    ]
    colours = ["#d0743c" if systems[name]["group"] == "ours" else "#4a7bd0" for name in ranked]
    axes.barh(ranked, means, xerr=reach, color=colours, ecolor="#333", capsize=2)
    axes.set(xlabel="exact match on all held-out splits, %", xlim=(0, max(5.0, *means) * 1.25))
    axes.grid(axis="x", alpha=0.3)
    return data_address(figure_bytes(sheet, dpi=110))


def curves_plot(systems: Mapping[str, Any]) -> str | None:
    """Return every system's mean losses over seeds, from captions and on pictures; None if none was trained."""
    from matplotlib.figure import Figure

    found = {kind: _mean_curves(systems, kind) for kind in ("text_curves", "curves")}
    panels = [(_LOSSES[kind], curves) for kind, curves in found.items() if curves]
    if not panels:
        return None
    sheet = Figure(figsize=(11, 4.5 * len(panels)), layout="constrained")
    # A system has the same colour and line style in both panels.
    names = list(dict.fromkeys(name for _, curves in panels for name in curves))
    looks = {name: {"color": f"C{i % 10}", "linestyle": _DASHES[i // 10 % 4]} for i, name in enumerate(names)}
    for axes, (title, curves) in zip(sheet.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
        for name, (steps, losses) in curves.items():
            # One point is a line that cannot be seen.
            axes.plot(steps, losses, label=name, marker="." if len(steps) < 3 else None, **looks[name])
        axes.set(xlabel="step", ylabel=title, yscale="log")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return data_address(figure_bytes(sheet, dpi=110))


def _mean_curves(systems: Mapping[str, Any], kind: str) -> dict[str, tuple[list[int], list[float]]]:
    """Return steps and mean losses over seeds by system, without systems that have none."""
    result: dict[str, tuple[list[int], list[float]]] = {}
    for name, system in systems.items():
        curves = [curve for curve in system[kind] if curve]
        if curves:
            length = min(map(len, curves))
            losses = [sum(curve[i][1] for curve in curves) / len(curves) for i in range(length)]
            result[name] = [curves[0][i][0] for i in range(length)], losses
    return result
