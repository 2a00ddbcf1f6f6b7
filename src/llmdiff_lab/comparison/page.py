"""A benchmark's report as one HTML file: pictures and plots inside, nothing comes from elsewhere."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from llmdiff.evaluation.tables import failure_notes, percent
from llmdiff_lab.comparison.plots import accuracy_plot, curves_plot, picture_uri
from llmdiff_lab.comparison.runs import Run
from llmdiff_lab.comparison.tables import (
    COST_NOTE,
    METRIC_NOTE,
    SEARCH_HEADING,
    SEARCH_NOTE,
    cost_rows,
    measured_rows,
    search_rows,
)

_CSP = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'"
_SAMPLES, _SWAPS = 4, 6
_PARTS = ("things", "colours", "count", "size", "background")
_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 78rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #8884; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } td small { opacity: .7; }
tr.ours td:first-child { font-weight: 600; } .samples td { text-align: center; white-space: normal; max-width: 9rem; }
img.picture { width: 96px; height: 96px; image-rendering: pixelated; border: 3px solid #b44; }
img.picture.right { border-color: #3a3; } img.plot { max-width: 100%; background: #fff; }
figure { display: inline-block; margin: .3rem; text-align: center; } figcaption { font-size: .8rem; }
"""


def benchmark_page(report: Mapping[str, Any], runs: Sequence[Run]) -> str:
    """Return the page of a report; the pictures are those of every system's first seed."""
    systems: Mapping[str, Any] = report["systems"]
    ranked = sorted(systems, key=lambda name: -systems[name]["held_out"]["mean"])
    first = {run.system: run for run in reversed(runs)}
    splits: Mapping[str, str] = report["suite"]["splits"]
    curves = curves_plot(systems)
    failed = {name: system["failed_pictures"] for name, system in systems.items()}
    parts = [
        "<h1>Ways to condition a diffusion model on text</h1>",
        f"<p>{len(systems)} systems, {report['settings']['seeds']} seeds, {report['suite']['prompts']} prompts. "
        f"{escape(report['date'])}, {escape(json.dumps(report['hardware']))}.</p>",
        f"<p><code>{escape(report['command'])}</code></p>",
        "<h2>Accuracy</h2>",
        "<p>How many pictures show exactly what the prompt says, in percent, with 95 % intervals: over seeds where "
        "a system has several, else over prompts. Held out: all splits but seen.</p>",
        _accuracy(systems, ranked, list(splits)),
        *(f"<p>{escape(note)}.</p>" for note in failure_notes(failed)),
        f"<ul>{''.join(f'<li><b>{escape(k)}</b>: {escape(v)}</li>' for k, v in splits.items())}</ul>",
        f"<img class=plot alt='held-out accuracy of every system' src='{accuracy_plot(systems)}'>",
        "<h2>Parts and relations</h2>",
        "<p>Shares of the prompts that ask for the part. Swapped: both things are there, the other way round.</p>",
        _parts(systems, ranked),
        *_metrics(report, ranked),
        "<h2>Cost</h2>",
        _table(cost_rows(systems, ranked), systems),
        f"<p>{COST_NOTE}</p>",
        *_search(systems, ranked),
        "<h2>Training</h2>",
        "" if curves is None else f"<img class=plot alt='training loss over steps' src='{curves}'>",
        "<h2>Equal treatment</h2>",
        f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in report['treatment'])}</ul>",
        _left_out(report["left_out"]),
        "<h2>Samples</h2>",
        "<p>The first prompts of every split, one row for each system. Green: exactly as asked for.</p>",
        *(_samples(split, ranked, first) for split in splits),
        "<h2>Relations: right beside swapped</h2>",
        _swaps(ranked, first),
        "<h2>Settings and versions</h2>",
        f"<pre>{escape(json.dumps({k: report[k] for k in ('settings', 'versions', 'checker')}, indent=1))}</pre>",
    ]
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        f'<meta http-equiv="Content-Security-Policy" content="{_CSP}">'
        "<meta name=viewport content='width=device-width'><title>Ways to condition: benchmark</title>"
        f"<style>{_STYLE}</style>{''.join(parts)}</html>\n"
    )


def _accuracy(systems: Mapping[str, Any], ranked: Sequence[str], splits: Sequence[str]) -> str:
    rows = [["system", "", "held out", "all", *splits]]
    for name in ranked:
        system = systems[name]
        cells = [system["held_out"], system["overall"], *(system["splits"][split] for split in splits)]
        rows.append([name, system["title"], *map(percent, cells)])
    return _table(rows, systems)


def _parts(systems: Mapping[str, Any], ranked: Sequence[str]) -> str:
    rows = [["system", *_PARTS, "relation right", "relation swapped", "relation wrong"]]
    for name in ranked:
        found, relation = systems[name]["parts"], systems[name].get("relation")
        cells = [percent(found[part]) if part in found else "-" for part in _PARTS]
        ends = [f"{100 * relation[kind]:.1f}" if relation else "-" for kind in ("right", "swapped", "wrong")]
        rows.append([name, *cells, *ends])
    return _table(rows, systems)


def _metrics(report: Mapping[str, Any], ranked: Sequence[str]) -> list[str]:
    rows = measured_rows(report, ranked)
    return ["<h2>Metrics</h2>", f"<p>{METRIC_NOTE}</p>", _table(rows, report["systems"])] if rows else []


def _search(systems: Mapping[str, Any], ranked: Sequence[str]) -> list[str]:
    rows = search_rows(systems, ranked)
    return [f"<h2>{SEARCH_HEADING}</h2>", f"<p>{SEARCH_NOTE}</p>", _table(rows, systems)] if rows else []


def _left_out(left_out: Mapping[str, str]) -> str:
    lines = "".join(f"<li>{escape(name)}: {escape(reason)}</li>" for name, reason in left_out.items())
    return f"<p>Left out:</p><ul>{lines}</ul>" if lines else ""


def _samples(split: str, ranked: Sequence[str], first: Mapping[str, Run]) -> str:
    some = next(iter(first.values()))
    chosen = [i for i, line in enumerate(some.verdicts) if line["split"] == split][:_SAMPLES]
    head = "".join(f"<td>{escape(some.verdicts[i]['prompt'])}</td>" for i in chosen)
    rows = "".join(
        f"<tr><td>{escape(name)}</td>{''.join(f'<td>{_picture(first[name], i)}</td>' for i in chosen)}</tr>"
        for name in ranked
    )
    return f"<h3>{escape(split)}</h3><table class=samples><tr><td></td>{head}</tr>{rows}</table>"


def _swaps(ranked: Sequence[str], first: Mapping[str, Run]) -> str:
    """The prompts where one system has the relation right and another has it swapped, pictures of both kinds."""
    blocks: list[str] = []
    for i, line in enumerate(next(iter(first.values())).verdicts):
        kinds = {
            kind: [name for name in ranked if first[name].verdicts[i]["verdict"]["relation"] == kind]
            for kind in ("right", "swapped")
        }
        if not all(kinds.values()) or len(blocks) == _SWAPS:
            continue
        rows = "".join(
            f"<tr><td>{kind}</td><td>"
            + "".join(
                f"<figure>{_picture(first[name], i, right=kind == 'right')}<figcaption>{escape(name)}</figcaption>"
                "</figure>"
                for name in names[:6]
            )
            + "</td></tr>"
            for kind, names in kinds.items()
        )
        blocks.append(f"<h3>{escape(line['prompt'])}</h3><table>{rows}</table>")
    return "".join(blocks) or "<p>No prompt has both a right and a swapped picture.</p>"


def _picture(run: Run, index: int, *, right: bool | None = None) -> str:
    exact = run.verdicts[index]["verdict"]["exact"] if right is None else right
    path = run.pictures / f"{index:05d}.png"
    if not path.exists():
        return "(not kept)"
    uri = picture_uri(path)
    return (
        f"<img class='picture{' right' if exact else ''}' alt='{'right' if exact else 'wrong'}' src='{uri}'>"
    )


def _table(rows: Sequence[Sequence[str]], systems: Mapping[str, Any]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in rows[0])
    body = "".join(
        f"<tr class='{'ours' if systems[row[0]]['group'] == 'ours' else ''}'>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in row)
        + "</tr>"
        for row in rows[1:]
    )
    return f"<table><tr>{head}</tr>{body}</table>"
