"""A benchmark's report as Markdown tables, for its folder and for the documentation."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llmdiff.evaluation.suites.scenes import PARTS
from llmdiff.evaluation.tables import (
    failure_notes,
    figure_text,
    markdown_table,
    metric_rows,
    percent,
    text_table,
)
from llmdiff_lab.comparison.rates import DIVERGED
from llmdiff_lab.comparison.runs import IN_FULL

RELATIONS = ("right", "swapped", "wrong")
_METRIC_NOTE = (
    "siglip: cosine of picture and prompt; more is better. fid, kid, cmmd: distance from real renders of the same "
    "scenes; less is better. Differences have intervals over prompts. Measured with the models named in report.json; "
    "not comparable with published numbers."
)

OVER_SEEDS = "The same, 95 % intervals over seeds"

_COST_NOTE = (
    "s per step: on pictures. s, training: all steps, those from captions too; what reads its captions once does so "
    "before, and that is not in it."
)

_SEARCH_NOTE = (
    "After short trainings, with further rates where the best was the lowest or the highest; in full: where the "
    "highest rate that all tried won, or a higher one, of it and the next lower one. "
    "Less is better; seeds of one system differ by about 0.001."
)

_PREDICTION_NOTE = (
    "Spearman's rank correlation of a loss with the held-out accuracy, over systems; 95 % bootstrap intervals over "
    "systems. -1: the lower the loss, the better the pictures, without exception. The loss from captions needs no "
    "picture at all: it is the last one of the steps from captions alone, before any step on pictures."
)


def benchmark_tables(report: Mapping[str, Any]) -> str:
    """Return tables of accuracy, differences, parts and costs, with the best system on held-out splits first."""
    systems: Mapping[str, Any] = report["systems"]
    ranked = best_first(systems)
    splits = list(report["suite"]["splits"])
    lines = [
        markdown_table(
            [["system", "what it is"], *([name, systems[name]["title"]] for name in ranked)], left=2
        )
    ]
    seeds = report["settings"]["seeds"]
    over = "seeds where a system has several, else over prompts" if seeds > 1 else "prompts"
    heading = f"Exact match, %, with 95 % intervals over {over}"
    rows = [[name, *accuracy_cells(systems[name], splits)] for name in ranked]
    lines += _table(heading, ["system", "held out", "all", *splits], rows)
    failed = {name: system["failed_pictures"] for name, system in systems.items()}
    lines += [f"\n{note}." for note in failure_notes(failed)]
    parts = ("held_out", "overall", *splits)
    for heading, gaps in _differences(report, ranked):
        rows = [[name, *(_points(gap[part]) for part in parts)] for name, gap in gaps.items()]
        if rows:
            lines += _table(heading, ["", "held out", "all", *splits], rows)
        # These intervals are wider, and only approximate with few seeds.
        rows = [
            [name, *(_points(gap[part].get("over_seeds")) for part in parts)]
            for name, gap in gaps.items()
            if "over_seeds" in gap["overall"]
        ]
        if rows:
            lines += _table(OVER_SEEDS, ["", "held out", "all", *splits], rows)
    head, *rows = part_rows(systems, ranked)
    lines += _table("Parts right, %, of the prompts that ask for them", head, rows)
    for heading, (head, *rows), note in further_tables(report, ranked):
        lines += [*_table(heading, head, rows), "", note]
    if report["left_out"]:
        lines += ["", "**Left out**", ""]
        lines += [f"- {name}: {reason}" for name, reason in report["left_out"].items()]
    lines += ["", "**Equal treatment**", "", *(f"- {line}" for line in report["treatment"])]
    return "\n".join([*lines, ""])


def further_tables(
    report: Mapping[str, Any], ranked: Sequence[str]
) -> list[tuple[str, list[list[str]], str]]:
    """Return heading, rows and note of the tables of metrics, costs, learning rates and predictions that have rows."""
    systems = report["systems"]
    tables = [
        ("Metrics", _measured_rows(report, ranked), _METRIC_NOTE),
        ("Cost", _cost_rows(systems, ranked), _COST_NOTE),
        ("Learning rates: the loss on held-out scenes", _search_rows(systems, ranked), _SEARCH_NOTE),
        ("Can a system be chosen without drawing a picture?", _prediction_rows(report), _PREDICTION_NOTE),
    ]
    return [table for table in tables if table[1]]


def best_first(systems: Mapping[str, Any]) -> list[str]:
    """Return the names of the systems, the best on held-out splits first."""
    return sorted(systems, key=lambda name: -systems[name]["held_out"]["mean"])


def ranking(report: Mapping[str, Any]) -> str:
    """Return the systems with their held-out accuracy in percent, best first, one per line."""
    rows = [["exact match, %", "held out", "seen"]]
    for name in best_first(report["systems"]):
        system = report["systems"][name]
        seen = system["splits"].get("seen")
        rows.append([name, percent(system["held_out"]), "-" if seen is None else percent(seen)])
    return text_table(rows, markdown=False)


def _differences(
    report: Mapping[str, Any], ranked: Sequence[str]
) -> Iterator[tuple[str, dict[str, Mapping[str, Any]]]]:
    """Yield headings with differences by system: ours minus it, others of ours minus it, it minus the base."""
    systems, over = report["systems"], "points, same prompts, 95 % intervals over prompts"
    above = {name: systems[name]["ours_above"] for name in ranked if "ours_above" in systems[name]}
    yield f"{report['ours']} above the others: {over}", above
    also = {name: systems[name].get("also_above", {}) for name in ranked}
    for one in dict.fromkeys(one for found in also.values() for one in found):
        yield (
            f"{one} above the others: {over}",
            {k: found[one] for k, found in also.items() if one in found},
        )
    to_base = {
        name: systems[name]["differences_to_base"]
        for name in ranked
        if "differences_to_base" in systems[name]
    }
    yield f"Points above the base, {over.removeprefix('points, ')}", to_base


def made_with(report: Mapping[str, Any]) -> str:
    """Return the command, the date and the machine of a report as one sentence."""
    return f"Made with `{report['command']}` on {report['date'][:10]}, {machine_of(report)}."


def machine_of(report: Mapping[str, Any]) -> str:
    """Return a short description of a report's hardware."""
    machine = report["hardware"]
    return ", ".join(
        [f"{machine['cpus']} cores, {machine['machine']}", *([machine["gpu"]] if "gpu" in machine else [])]
    )


def _points(figures: Mapping[str, float] | None) -> str:
    return "-" if figures is None else percent(figures, sign=True)


def _table(heading: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield from ["", f"**{heading}**", "", markdown_table([head, *rows])]


def accuracy_cells(system: Mapping[str, Any], splits: Sequence[str]) -> list[str]:
    """Return the accuracy in percent on held-out prompts, on all prompts, and on every split."""
    found = [system["held_out"], system["overall"], *(system["splits"][split] for split in splits)]
    return [percent(figures) for figures in found]


def part_rows(
    systems: Mapping[str, Any], ranked: Sequence[str], *, intervals: bool = False
) -> list[list[str]]:
    """Return a header and the percentages of correct parts and relations by system."""

    def cell(figures: Mapping[str, Any]) -> str:
        return percent(figures) if intervals else f"{100 * figures['mean']:.1f}"

    asked = [part for part in PARTS if any(part in systems[name]["parts"] for name in ranked)]
    rows = [["system", *asked, *(f"relation {kind}" for kind in RELATIONS)]]
    for name in ranked:
        parts = systems[name]["parts"]
        shown = [cell(parts[part]) if part in parts else "-" for part in asked]
        relation = systems[name].get("relation")
        shown += [f"{100 * relation[kind]:.1f}" if relation else "-" for kind in RELATIONS]
        rows.append([name, *shown])
    return rows


def _measured_rows(report: Mapping[str, Any], ranked: Sequence[str]) -> list[list[str]]:
    """Return a header and the metrics' figures by system, with the difference from ours; empty without metrics."""
    systems = {name: report["systems"][name] for name in ranked}
    rows = metric_rows(systems)
    if rows:
        rows[0][0] = "system"
    if not rows or report["ours"] is None:
        return rows
    names = list(dict.fromkeys(name for system in systems.values() for name in system.get("metrics", {})))
    rows[0] += [f"{report['ours']} - this, {name}" for name in names]
    for row in rows[1:]:
        above = systems[row[0]].get("metrics_ours_above", {})
        row += [figure_text(above[name]) if name in above else "-" for name in names]
    return rows


def _cost_rows(systems: Mapping[str, Any], ranked: Sequence[str]) -> list[list[str]]:
    rows = [[
        "system", "trained parameters", "s per step", "s, training", "s per picture", "threads", "peak memory, GB",
        "learning rate", "held-out loss",
    ]]  # fmt: skip
    for name in ranked:
        cost, losses = systems[name]["cost"], systems[name].get("held_out_loss")
        figures = [cost["seconds_per_step"], cost.get("training_seconds"), cost["seconds_per_image"]]
        more = [cost["peak_memory_gb"], systems[name].get("learning_rate")]
        more.append(sum(losses) / len(losses) if losses else None)
        rows.append([
            name, f"{cost['trained_parameters']:,}", *map(_short, figures), cost.get("threads", "-"),
            *map(_short, more),
        ])  # fmt: skip
    return rows


def _search_rows(systems: Mapping[str, Any], ranked: Sequence[str]) -> list[list[str]]:
    searches = {name: systems[name]["search"] for name in ranked if "search" in systems[name]}
    if not searches:
        return []
    rates = sorted({rate for found in searches.values() for rate in found if rate != IN_FULL}, key=float)
    full = sorted({rate for found in searches.values() for rate in found.get(IN_FULL, ())}, key=float)
    rows = [["system", *rates, *(f"{rate} {IN_FULL}" for rate in full), "taken"]]
    for name, found in searches.items():
        losses = [found.get(rate) for rate in rates] + [found.get(IN_FULL, {}).get(rate) for rate in full]
        shown = [
            "-" if loss is None else "diverged" if loss >= DIVERGED else f"{loss:.4f}" for loss in losses
        ]
        rows.append([name, *shown, _short(systems[name]["learning_rate"])])
    return rows


def _prediction_rows(report: Mapping[str, Any]) -> list[list[str]]:
    rows = [
        [loss, f"{rho['mean']:.2f} [{rho['low']:.2f}, {rho['high']:.2f}]", str(rho["n"])]
        for loss, rho in (report.get("prediction") or {}).items()
    ]
    return [["loss", "rank correlation with held-out accuracy", "systems"], *rows] if rows else []


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
