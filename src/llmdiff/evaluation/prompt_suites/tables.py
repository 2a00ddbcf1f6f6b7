"""A suite's report as text: aligned for the screen, or Markdown."""

from collections.abc import Mapping
from typing import Any

from llmdiff.evaluation.tables import figure_text, metric_table, text_table

NOT_COMPARABLE = "not comparable with published numbers"


def suite_tables(report: Mapping[str, Any], *, markdown: bool = False) -> str:
    """The report's figures: of all prompts, by tag, those of a benchmark's own scorer, and what to know about them."""
    systems: Mapping[str, Any] = report["systems"]
    suite = report["suite"]
    tables = [metric_table(systems, markdown)]
    first = next((name for one in systems.values() for name in one["metrics"]), None)
    if first is not None and suite["tags"]:
        rows = [[first, *suite["tags"], "mean over tags"]]
        for name, figures in systems.items():
            by_tag = figures["metrics_by_tag"]
            cells = [_cell(by_tag[tag].get(first)) for tag in suite["tags"]]
            rows.append([name, *cells, f"{figures['mean_over_tags'][first]:.4g}"])
        tables.append(text_table(rows, markdown))
    official = {name: one["official"] for name, one in systems.items() if "official" in one}
    if official:
        tags = list(dict.fromkeys(tag for one in official.values() for tag in one["by_tag"]))
        rows = [["by the published scorer", "all", *tags, "without a score"]]
        for name, one in official.items():
            by_tag = [_cell(one["by_tag"].get(tag)) for tag in tags]
            rows.append([name, figure_text(one["overall"]), *by_tag, str(one["missing"])])
        tables.append(text_table(rows, markdown))
    notes = [
        f"{suite['prompts']} prompts of {suite['benchmark'] or suite['name']}, "
        f"{suite['images_per_prompt']} pictures of each; 95 % bootstrap intervals over prompts"
    ]
    for name, figures in systems.items():
        notes.append(f"{name}: {figures['failed']} of {figures['pictures']} pictures could not be drawn")
    notes += [
        f"{name} is measured with {model}: {report['note']}" for name, model in report["metrics"].items()
    ]
    if official and not report["comparable_with_published"]:
        notes.append(f"Not all prompts and pictures of the published protocol: {report['note']}")
    elif official:
        notes.append("By the published scorer: as far as its files are what that scorer wrote, comparable")
    if not report["metrics"] and not official:
        notes.append(f"Nothing was measured: {report['note']}")
    return (
        "\n\n".join([table for table in tables if table] + ["\n".join(f"{note}." for note in notes)]) + "\n"
    )


def _cell(figures: Mapping[str, float] | None) -> str:
    return "-" if figures is None else figure_text(figures)
