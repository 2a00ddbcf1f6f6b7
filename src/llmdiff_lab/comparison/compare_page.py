"""A comparison of LLMs as JSON, Markdown, a plot and one HTML page."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from llmdiff.evaluation.tables import markdown_table, percent
from llmdiff.serving.templates import render
from llmdiff_lab.inspection.figure_files import data_address, figure_bytes, json_text, save_all

_NAME = "compare-llms"


def save_comparison(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write compare-llms.json, .md, .png and .html to `folder` and return their paths.

    Raises:
        OutputError: the folder cannot be written.
    """
    png = figure_bytes(comparison_figure(report), dpi=100)
    page = render(
        "compare-llms.html",
        package="llmdiff_lab",
        report=report,
        tables=list(_tables(report)),
        plot=data_address(png),
    )
    contents: dict[str, str | bytes] = {
        f"{_NAME}.json": json_text(report),
        f"{_NAME}.md": comparison_tables(report),
        f"{_NAME}.png": png,
        f"{_NAME}.html": page,
    }
    return save_all(folder, contents)


def comparison_tables(report: Mapping[str, Any]) -> str:
    """Return Markdown tables of accuracy by LLM and split, differences from the base, sizes and costs."""
    return "\n".join(f"**{heading}**\n\n{markdown_table(rows)}\n" for heading, rows in _tables(report))


def comparison_figure(report: Mapping[str, Any]) -> Any:
    """Return a matplotlib figure: accuracy, held-out and by split, over parameters, and seconds per encoding."""
    from matplotlib.figure import Figure

    llms = report["llms"]
    sizes = [row["parameters"] / 1e6 for row in llms.values()]
    figure = Figure(figsize=(14, 4.6), layout="constrained")
    held_out, splits, speed = figure.subplots(1, 3)
    rows = [row["held_out"] for row in llms.values()]
    means = [100 * row["mean"] for row in rows]
    low = [100 * (row["mean"] - row["low"]) for row in rows]
    high = [100 * (row["high"] - row["mean"]) for row in rows]
    held_out.errorbar(sizes, means, yerr=[low, high], marker="o", capsize=3, color="#d0743c")
    for size, mean, name in zip(sizes, means, llms, strict=True):
        held_out.annotate(f" {Path(name).name}", (size, mean), fontsize=8)
    base = report["base"]["held_out"]
    held_out.axhline(100 * base["mean"], color="#4a7bd0", linestyle="--", label="base text encoder")
    held_out.axhspan(100 * base["low"], 100 * base["high"], color="#4a7bd0", alpha=0.12)
    held_out.legend(fontsize=8)
    held_out.set(title="exact match, all splits but seen", ylabel="%")
    for split in report["base"]["splits"]:
        values = [100 * row["splits"][split]["mean"] for row in llms.values()]
        splits.plot(sizes, values, marker="o", label=split)
    splits.legend(fontsize=8)
    splits.set(title="exact match by split", ylabel="%")
    seconds = [row["seconds_per_encoding"] for row in llms.values()]
    speed.plot(sizes, seconds, marker="o")
    speed.set(title="encoding one prompt", ylabel="seconds", ylim=(0, 1.1 * max(seconds)))
    for place in (held_out, splits, speed):
        place.set(xlabel="parameters of the LLM, millions", xscale="log")
        # A logarithmic axis has ticks at powers of ten only; label the LLMs' sizes instead.
        place.set_xticks(sizes, [f"{size:,.0f}" for size in sizes])
        place.minorticks_off()
        place.margins(x=0.45)
        place.grid(alpha=0.3)
    return figure


def _tables(report: Mapping[str, Any]) -> Iterator[tuple[str, list[list[str]]]]:
    llms, base = report["llms"], report["base"]
    names = list(base["splits"])
    rows = [["exact match, %", "all", "held out", *names]]
    for name, row in {"base text encoder": base, **llms}.items():
        cells = [row["overall"], row["held_out"], *(row["splits"][split] for split in names)]
        rows.append([_short(name), *(percent(cell) for cell in cells)])
    yield "Accuracy", rows
    for key, title in (
        ("differences_to_base", "Points above the base's own text encoder, same prompts and seeds"),
        ("differences_to_smallest", "Points above the smallest LLM"),
    ):
        found = {name: row[key] for name, row in llms.items() if row[key] is not None}
        if found:
            head, parts = ["", "all", "held out", *names], ("overall", "held_out", *names)
            body = [
                [_short(name), *(percent(gaps[part], sign=True) for part in parts)]
                for name, gaps in found.items()
            ]
            yield title, [head, *body]
    rows = [
        ["LLM", "parameters", "in blocks", "blocks", "width", "s per encoding", "trained", "s per step",
         "peak memory, GB", "held-out loss"],
    ]  # fmt: skip
    for name, row in llms.items():
        cost = row["cost"]
        figures = [cost["seconds_per_step"], cost["peak_memory_gb"], fmean(row["held_out_loss"])]
        rows.append(
            [
                _short(name),
                f"{row['parameters'] / 1e6:,.0f} M",
                f"{row['block_parameters'] / 1e6:,.0f} M",
                str(row["blocks"]),
                str(row["hidden_size"]),
                f"{row['seconds_per_encoding']:.3g}",
                f"{cost['trained_parameters']:,}",
                *(f"{value:.3g}" for value in figures),
            ]
        )
    yield "Size and cost", rows


def _short(name: str) -> str:
    return Path(name).name
