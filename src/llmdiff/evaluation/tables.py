"""Format a report as text: aligned columns, or Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

NOT_COMPARABLE = "not comparable with published numbers"
# The figure of the scenes scorer, and its parts with their headings.
_EXACT = "scenes"
_PARTS = {part: part for part in ("things", "colours", "count", "size", "background")}
_PARTS |= {"relation right": "relation", "relation swapped": "swapped"}


def report_tables(report: Mapping[str, Any], *, markdown: bool = False) -> str:
    """Return a report's figures: by tag, over all prompts, those of a benchmark's own scorer, and notes.

    Figures of the scenes scorer are in percent.
    """
    systems: Mapping[str, Any] = report["systems"]
    names = list(dict.fromkeys(name for one in systems.values() for name in one["metrics"]))
    tables: list[Sequence[Sequence[str]]] = []
    if names and report["suite"]["tags"]:
        tables.append(_by_tag(report, names[0]))
    if _EXACT in names:
        tables.append(_parts(systems))
    tables.append(metric_rows(systems, [name for name in names if name.partition(":")[0] != _EXACT]))
    official = {name: one["official"] for name, one in systems.items() if "official" in one}
    if official:
        tables.append(_official(official))
    tables.append(_as_published(systems))
    sections = [text_table(rows, markdown) for rows in tables if rows]
    sections.append("\n".join(f"{note}." for note in _notes(report, bool(official))))
    return "\n\n".join(sections) + "\n"


def _by_tag(report: Mapping[str, Any], name: str) -> list[list[str]]:
    systems, tags = report["systems"], report["suite"]["tags"]
    cell, title = (percent, "exact match, %") if name == _EXACT else (figure_text, name)
    # For tags of equal size the mean over tags equals the mean over all prompts.
    with_mean = len(set(tags.values())) > 1 or sum(tags.values()) != report["suite"]["prompts"]
    rows = [[title, "all", *tags, *(["mean over tags"] if with_mean else [])]]

    def cells(figures: Mapping[str, Any], *, sign: bool = False) -> list[str]:
        found = [figures["metrics"].get(name), *(figures["metrics_by_tag"][tag].get(name) for tag in tags)]
        return ["-" if one is None else cell(one, sign=sign) for one in found]

    for system, figures in systems.items():
        means = [f"{figures['mean_over_tags'][name]:.4g}"] if with_mean else []
        rows.append([system, *cells(figures), *means])
    for system, figures in systems.items():
        if "differences_to_base" in figures:
            gaps = cells(figures["differences_to_base"], sign=True)
            rows.append([f"{system} - base", *gaps, *(["-"] if with_mean else [])])
    return rows


def _parts(systems: Mapping[str, Any]) -> list[list[str]]:
    rows = [["parts right, %", *_PARTS.values()]]
    for system, figures in systems.items():
        found = [figures["metrics"].get(f"{_EXACT}: {part}") for part in _PARTS]
        rows.append([system, *("-" if one is None else f"{100 * one['mean']:.1f}" for one in found)])
    return rows


def _official(official: Mapping[str, Any]) -> list[list[str]]:
    tags = list(dict.fromkeys(tag for one in official.values() for tag in one["by_tag"]))
    rows = [["by the published scorer", "all", *tags, "without a score"]]
    for system, one in official.items():
        by_tag = [figure_text(one["by_tag"][tag]) if tag in one["by_tag"] else "-" for tag in tags]
        rows.append([system, figure_text(one["overall"]), *by_tag, str(one["missing"])])
    return rows


def _as_published(systems: Mapping[str, Any]) -> list[list[str]]:
    """Return the figures that a benchmark aggregates in its own way, of our scorer and of the published one."""
    found: dict[str, dict[str, str]] = {}
    for system, one in systems.items():
        for name, figures in (
            (system, one.get("as_published", {})),
            (f"{system}, published scorer", one.get("official", {}).get("as_published", {})),
        ):
            if figures:
                found[name] = {figure: figure_text(interval) for figure, interval in figures.items()}
        if stated := one.get("official", {}).get("stated"):
            found[f"{system}, as its file states"] = {figure: f"{x:.4g}" for figure, x in stated.items()}
    names = list(dict.fromkeys(name for one in found.values() for name in one))
    if not names:
        return []
    return [
        ["aggregated as published", *found],
        *([n, *(x.get(n, "-") for x in found.values())] for n in names),
    ]


def _notes(report: Mapping[str, Any], has_official: bool) -> list[str]:
    suite = report["suite"]
    notes = [
        f"{suite['prompts']} prompts of {suite['benchmark'] or suite['name']}, "
        f"{suite['images_per_prompt']} pictures of each; 95 % bootstrap intervals over prompts"
    ]
    if "exact" in report["checker"]:
        notes.append(f"The checker reads {100 * report['checker']['exact']:.1f} % of real renders exactly")
    notes += [
        f"{name}: {figures['failed']} of {figures['pictures']} pictures could not be drawn and count as wrong"
        for name, figures in report["systems"].items()
        if figures["failed"]
    ]
    notes += [
        f"{name} is measured with {model}: {report['note']}"
        for name, model in report["metrics"].items()
        if name != _EXACT
    ]
    for name, one in report["systems"].items():
        official = one.get("official", {})
        if official.get("missing"):
            notes.append(
                f"The published scorer has no result for {official['missing']} pictures of {name}, which count 0; "
                f"the first: prompt {official['first_missing']}"
            )
    if has_official and not report["comparable_with_published"]:
        notes.append(
            f"The published scorer has no results for all prompts and pictures of its protocol: {report['note']}"
        )
    elif has_official:
        notes.append("Figures of the published scorer are comparable, if that scorer wrote its files")
    if not report["metrics"] and not has_official:
        notes.append(f"There are no metrics: {report['note']}")
    return notes


def failure_notes(counts: Mapping[str, int]) -> list[str]:
    """Return a note for every system that could not draw all its pictures, given the number of each."""
    return [
        f"{count} pictures of {name} could not be drawn and count as wrong"
        for name, count in counts.items()
        if count
    ]


def metric_rows(systems: Mapping[str, Any], names: Sequence[str] | None = None) -> list[list[str]]:
    """Return a header and a row for every system, with a column for each figure; empty without figures.

    `names`: the figures to include; None: all.
    """
    if names is None:
        names = list(dict.fromkeys(name for one in systems.values() for name in one.get("metrics", {})))
    sets = list(dict.fromkeys(name for one in systems.values() for name in one.get("sets", {})))
    if not names and not sets:
        return []
    rows = [["metrics", *names, *sets]]
    for system, figures in systems.items():
        found, of_set = figures.get("metrics", {}), figures.get("sets", {})
        cells = [figure_text(found[name]) if name in found else "-" for name in names]
        rows.append([system, *cells, *(f"{of_set[name]:.4g}" if name in of_set else "-" for name in sets)])
    return rows


def figure_text(figures: Mapping[str, Any], *, factor: float = 1, sign: bool = False) -> str:
    """Return a mean with its interval, four digits each, multiplied by `factor`, optionally with a sign."""
    return _interval_text(figures, factor, "+.4g" if sign else ".4g")


def percent(figures: Mapping[str, Any], *, sign: bool = False, digits: int = 1) -> str:
    """Return "mean [low, high]" in percent, or with a sign in points."""
    form = f"{'+' if sign else ''}.{digits}f"
    return _interval_text(figures, 100, form)


def _interval_text(figures: Mapping[str, Any], factor: float, form: str) -> str:
    mean, low, high = (format(factor * figures[name], form) for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def text_table(rows: Sequence[Sequence[str]], markdown: bool) -> str:
    """Format rows, the first of which is the header, as a table: aligned columns, or Markdown."""
    if markdown:
        return markdown_table(rows)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in [rows[0], ["-" * width for width in widths], *rows[1:]]:
        rest = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *rest]).rstrip())
    return "\n".join(lines)


def markdown_table(rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Format rows, the first of which is the header, as a Markdown table; columns after `left` are right-aligned."""
    head = rows[0]
    rule = "".join("---|" if column < left else "---:|" for column in range(len(head)))
    lines = ["|" + "".join(f" {_one_line(cell)} |" if cell else " |" for cell in row) for row in rows]
    return "\n".join([lines[0], f"|{rule}", *lines[1:]])


def _one_line(cell: str) -> str:
    return " ".join(cell.split("\n")).replace("|", "\\|")
