"""A comparison of LLMs as JSON, Markdown, a plot and one HTML page."""

import base64
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from llmdiff.evaluation.tables import markdown_table, percent
from llmdiff.files import write_whole

_NAME = "compare-llms"
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;display:block;overflow-x:auto}img{max-width:100%;background:#fff}"
    "td,th{padding:.25rem .6rem;border-bottom:1px solid #8884;text-align:right;white-space:nowrap}"
    "td:first-child,th:first-child{text-align:left}"
)


def save_comparison(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """The paths written into `folder`: compare-llms.json, .md, .png and .html.

    Raises:
        OutputError: the folder cannot be written.
    """
    png = io.BytesIO()
    comparison_figure(report).savefig(png, format="png", dpi=100)
    contents: dict[str, str | bytes] = {
        "json": json.dumps(report, indent=1) + "\n",
        "md": comparison_tables(report),
        "png": png.getvalue(),
        "html": _page(report, png.getvalue()),
    }
    paths = {ending: folder / f"{_NAME}.{ending}" for ending in contents}
    for ending, content in contents.items():
        write_whole(paths[ending], content)
    return list(paths.values())


def comparison_tables(report: Mapping[str, Any]) -> str:
    """Markdown: accuracy by LLM and split, the differences to the base, then sizes and costs."""
    return "\n".join(f"**{heading}**\n\n{markdown_table(rows)}\n" for heading, rows in _tables(report))


def comparison_figure(report: Mapping[str, Any]) -> Any:
    """A matplotlib figure: held-out accuracy and that of every split over parameters, and seconds per encoding."""
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
        # A logarithmic axis marks powers of ten; LLMs lie between them.
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
        figures = [cost["seconds_per_step"], cost["peak_memory_gb"], _mean(row["held_out_loss"])]
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


def _page(report: Mapping[str, Any], png: bytes) -> str:
    tables = "".join(
        f"<h2>{escape(heading)}</h2><table><tr>{''.join(f'<th>{escape(x)}</th>' for x in rows[0])}</tr>"
        + "".join(f"<tr>{''.join(f'<td>{escape(x)}</td>' for x in row)}</tr>" for row in rows[1:])
        + "</table>"
        for heading, rows in _tables(report)
    )
    picture = base64.b64encode(png).decode()
    facts = {key: report[key] for key in ("settings", "hardware", "versions")}
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'; img-src data:; "
        "style-src 'unsafe-inline'\">"
        f"<title>LLMs compared</title><style>{_STYLE}</style><h1>One adapter on {len(report['llms'])} LLMs</h1>"
        f"<p>{escape(report['date'])}. <code>{escape(report['command'])}</code></p>"
        f"<img alt='accuracy over parameters' src='data:image/png;base64,{picture}'>{tables}"
        f"<h2>Equal treatment</h2><ul>{''.join(f'<li>{escape(one)}</li>' for one in report['treatment'])}</ul>"
        f"<h2>Settings and versions</h2><pre>{escape(json.dumps(facts, indent=1))}</pre></html>\n"
    )


def _short(name: str) -> str:
    return Path(name).name


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
