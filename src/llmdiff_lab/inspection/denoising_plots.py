"""Plot and tabulate the denoising reports of several models."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmdiff.evaluation.tables import markdown_table
from llmdiff_lab.inspection.denoising import DenoisingReport
from llmdiff_lab.inspection.figure_files import figure_bytes, json_text, save_all

_PANELS = (
    ("distance", "distance to the final state"),
    ("cosine", "cosine with the final state"),
    ("final_r2", "final state found by a linear reader, R2"),
    ("own_token", "own token named by a linear reader"),
    ("next_token", "next token named by a linear reader"),
)


def save_denoising(
    reports: Sequence[DenoisingReport], folder: Path, *, made_with: Mapping[str, Any] | None = None
) -> list[Path]:
    """Write denoising.json, denoising.png and denoising.md into `folder`; return their paths.

    `made_with`: further entries of the JSON, for example the command.

    Raises:
        OutputError: the folder cannot be written.
    """
    record = {**(made_with or {}), "models": [report.to_json() for report in reports]}
    contents: dict[str, str | bytes] = {
        "denoising.json": json_text(record),
        "denoising.png": figure_bytes(denoising_figure(reports)),
        "denoising.md": denoising_table(reports),
    }
    return save_all(folder, contents)


def denoising_figure(reports: Sequence[DenoisingReport]) -> Any:
    """Return a matplotlib figure of every quantity over the share of blocks done, with a line for every model."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 7.5), layout="constrained")
    places = list(figure.subplots(2, 3).flat)
    for place, (name, title) in zip(places, _PANELS, strict=False):
        for report in reports:
            last = len(report.blocks) - 1
            depths = [block.depth / last for block in report.blocks]
            values = [getattr(block, name) for block in report.blocks]
            means = [value if isinstance(value, float) else value.mean for value in values]
            (line,) = place.plot(
                depths, means, marker=".", label=f"{Path(report.model).name} ({report.kind})"
            )
            if not isinstance(values[0], float):
                low, high = [value.low for value in values], [value.high for value in values]
                place.fill_between(depths, low, high, alpha=0.2, color=line.get_color())
        place.set(title=title, xlabel="share of blocks done")
    places[0].set_yscale("symlog", linthresh=0.1)
    handles, labels = places[0].get_legend_handles_labels()
    places[-1].set_axis_off()
    places[-1].legend(handles, labels, loc="center", frameon=False)
    return figure


def denoising_table(reports: Sequence[DenoisingReport]) -> str:
    """Return a Markdown table of each model half-way and after the last block."""
    rows = [[
        "model", "kind", "blocks", "tokens that approach in every block", "blocks that lead away, mean",
        "final state's R2 half-way", "own token at the end", "next token half-way", "next token at the end",
    ]]  # fmt: skip
    for report in reports:
        middle, last = report.blocks[len(report.blocks) // 2], report.blocks[-1]
        shares = [100 * one.mean for one in (last.own_token, middle.next_token, last.next_token)]
        rows.append([
            Path(report.model).name, report.kind, str(len(report.blocks) - 1), f"{100 * report.monotone:.1f} %",
            f"{report.steps_back:.1f}", f"{middle.final_r2:.2f}", *(f"{share:.0f} %" for share in shares),
        ])  # fmt: skip
    return markdown_table(rows, left=2) + "\n"
