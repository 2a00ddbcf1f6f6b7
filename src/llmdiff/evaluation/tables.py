"""A report as text: aligned for the screen, or Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

_PARTS = ("things", "colours", "count", "size", "background")


def report_tables(report: Mapping[str, Any], *, markdown: bool = False) -> str:
    """The report's figures in percent: exact accuracy by split, differences to the base, and the parts."""
    systems: Mapping[str, Any] = report["systems"]
    splits = list(report["suite"]["splits"])
    rows = [["exact match, %", "all", *splits]]
    for name, figures in systems.items():
        rows.append([name, percent(figures["overall"]), *(percent(figures["splits"][s]) for s in splits)])
    for name, figures in systems.items():
        if "differences_to_base" in figures:
            gaps = figures["differences_to_base"]
            values = [gaps["overall"], *(gaps["splits"][split] for split in splits)]
            rows.append([f"{name} - base", *(percent(v, sign=True) for v in values)])
    parts = [["parts right, %", *_PARTS, "relation", "swapped"]]
    for name, figures in systems.items():
        measured, relation = figures["parts"], figures["parts"].get("relation")
        line = [f"{100 * measured[part]['mean']:.1f}" if part in measured else "-" for part in _PARTS]
        ends = [f"{100 * relation[kind]:.1f}" if relation else "-" for kind in ("right", "swapped")]
        parts.append([name, *line, *ends])
    measured = metric_table(systems, markdown)
    notes = [f"{report['suite']['prompts']} prompts; 95 % bootstrap intervals over prompts"]
    if "exact" in report["checker"]:
        notes.append(f"The checker reads {100 * report['checker']['exact']:.1f} % of real renders exactly")
    for name, model in report.get("metrics", {}).items():
        notes.append(f"{name} is measured with {model}; not comparable with published numbers")
    notes += failure_notes(report.get("failed_pictures", {}))
    tables = [text_table(rows, markdown), text_table(parts, markdown), *([measured] if measured else [])]
    sections = [*tables, "\n".join(f"{note}." for note in notes)]
    return "\n\n".join(sections) + "\n"


def failure_notes(counts: Mapping[str, int]) -> list[str]:
    """Return a note for every system that could not draw all its pictures; `counts` says how many of each."""
    return [
        f"{count} pictures of {name} could not be drawn and count as wrong"
        for name, count in counts.items()
        if count
    ]


def metric_table(systems: Mapping[str, Any], markdown: bool) -> str | None:
    """What metrics measured, a column for each figure; None if nothing was measured."""
    rows = metric_rows(systems)
    return text_table([["metrics", *rows[0][1:]], *rows[1:]], markdown) if rows else None


def metric_rows(systems: Mapping[str, Any]) -> list[list[str]]:
    """A head and a row for every system, a column for each figure; nothing if nothing was measured."""
    names = {name: None for figures in systems.values() for name in figures.get("metrics", {})}
    sets = {name: None for figures in systems.values() for name in figures.get("sets", {})}
    if not names and not sets:
        return []
    rows = [["system", *names, *sets]]
    for system, figures in systems.items():
        found, of_set = figures.get("metrics", {}), figures.get("sets", {})
        cells = [figure_text(found[name]) if name in found else "-" for name in names]
        rows.append([system, *cells, *(f"{of_set[name]:.4g}" if name in of_set else "-" for name in sets)])
    return rows


def figure_text(figures: Mapping[str, Any], *, factor: float = 1) -> str:
    """A mean with its interval, four digits each; all times `factor`."""
    mean, low, high = (factor * figures[name] for name in ("mean", "low", "high"))
    return f"{mean:.4g} [{low:.4g}, {high:.4g}]"


def percent(figures: Mapping[str, Any], *, sign: bool = False) -> str:
    """Return "mean [low, high]" in percent, or with a sign in points."""
    mean, low, high = (100 * figures[name] for name in ("mean", "low", "high"))
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]" if sign else f"{mean:.1f} [{low:.1f}, {high:.1f}]"


def text_table(rows: Sequence[Sequence[str]], markdown: bool) -> str:
    """Rows as one table, the first its head: aligned for the screen, or Markdown."""
    if markdown:
        return markdown_table(rows)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in [rows[0], ["-" * width for width in widths], *rows[1:]]:
        rest = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *rest]).rstrip())
    return "\n".join(lines)


def markdown_table(rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Rows as a Markdown table, the first its head; all but the first `left` columns are aligned to the right."""
    head = rows[0]
    rule = "".join("---|" if column < left else "---:|" for column in range(len(head)))
    lines = ["|" + "".join(f" {_one_line(cell)} |" if cell else " |" for cell in row) for row in rows]
    return "\n".join([lines[0], f"|{rule}", *lines[1:]])


def _one_line(cell: str) -> str:
    return " ".join(cell.split("\n")).replace("|", "\\|")
