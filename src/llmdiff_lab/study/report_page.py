"""A study's report as one HTML page; its pictures lie beside it, nothing comes from elsewhere."""

from collections.abc import Mapping
from html import escape
from typing import Any

from llmdiff.evaluation.tables import percent

_CSP = "default-src 'none'; img-src 'self' file: data:; style-src 'unsafe-inline'; base-uri 'none'"
_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; } th, td { padding: .3rem .8rem; text-align: right;
border-bottom: 1px solid #8884; } th:first-child, td:first-child { text-align: left; }
.prompt { border-top: 1px solid #8886; padding: 1rem 0; } .pictures { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; } img { width: 12rem; max-width: 100%; image-rendering: pixelated; display: block; }
.bar { display: inline-block; width: 10rem; height: .7rem; background: #8883; position: relative; }
.bar i { position: absolute; top: 0; bottom: 0; background: #4a7bd0; }
.bar b { position: absolute; top: -.2rem; bottom: -.2rem; left: 50%; border-left: 1px solid; }
"""


def report_page(report: Mapping[str, Any], pictures: Mapping[tuple[int, str], str]) -> str:
    """Return the page. `pictures`: (index of the prompt, system) => name of the file in `pictures/`."""
    raters, sides = report["raters"], report["sides"]
    left_share = f"{100 * sides['left'] / (sides['left'] + sides['right'] or 1):.0f} %"
    parts = [
        f"<h1>{escape(report['title'])}</h1>",
        f"<p>{report['answers']} answers by {raters['counted']} raters; {raters['began']} began, "
        f"{raters['excluded']} left out for failing more than {raters['max_failed_checks']} attention checks. "
        f"Of the choices, {left_share} were for the left picture.</p>",
    ]
    for question, result in report["results"].items():
        parts.append(f"<h2>{escape(report['questions'][question])}</h2>")
        parts.append(_win_rates(result))
        parts.append(_strengths(result))
        parts.append(_agreement(result["agreement"]))
    parts.append("<h2>Every prompt</h2>")
    parts += [_prompt(report, index, row, pictures) for index, row in enumerate(report["prompts"])]
    parts.append("<h2>How this was computed</h2>")
    parts += [f"<p>{escape(note)}</p>" for note in report["method"]]
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        f'<meta http-equiv="Content-Security-Policy" content="{_CSP}">'
        f"<meta name=viewport content='width=device-width'><title>{escape(report['title'])}: report</title>"
        f"<style>{_STYLE}</style>{''.join(parts)}</html>\n"
    )


def _win_rates(result: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{escape(pair['first'])} against {escape(pair['second'])}</td><td>{pair['first_wins']}</td>"
        f"<td>{pair['second_wins']}</td><td>{pair['ties']}</td><td>{_rate(pair['win_rate'])}</td>"
        f"<td><span class=bar><i style='left:{100 * pair['win_rate']['low']:.1f}%;"
        f"width:{100 * (pair['win_rate']['high'] - pair['win_rate']['low']):.1f}%'></i><b></b></span></td></tr>"
        for pair in result["pairs"]
    )
    return (
        "<table><tr><th>systems</th><th>first wins</th><th>second wins</th><th>ties</th>"
        f"<th>first's win rate, %</th><th>0 to 100 %</th></tr>{rows}</table>"
    )


def _rate(rate: Mapping[str, Any]) -> str:
    return percent(rate) if rate["n"] else "no answers"


def _strengths(result: Mapping[str, Any]) -> str:
    ranked = sorted(result["bradley_terry"].items(), key=lambda item: -item[1]["mean"])
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{one['mean']:+.2f} [{one['low']:+.2f}, {one['high']:+.2f}]</td></tr>"
        for name, one in ranked
    )
    return f"<table><tr><th>system</th><th>Bradley-Terry strength</th></tr>{rows}</table>"


def _agreement(agreement: Mapping[str, Any]) -> str:
    if agreement["share"] is None:
        return "<p>No pair was judged by more than one rater, so agreement is not known.</p>"
    alpha = (
        "not defined (all answers are alike)" if agreement["alpha"] is None else f"{agreement['alpha']:.2f}"
    )
    return (
        f"<p>Raters agree on {100 * agreement['share']:.0f} % of what two of them judged "
        f"({agreement['pairs']} pairs); Krippendorff's alpha: {alpha}.</p>"
    )


def _prompt(
    report: Mapping[str, Any],
    index: int,
    row: Mapping[str, Any],
    pictures: Mapping[tuple[int, str], str],
) -> str:
    figures = "".join(
        f"<figure><img src='pictures/{escape(pictures[index, system])}.png' alt='' loading=lazy>"
        f"<figcaption>{escape(system)}</figcaption></figure>"
        for system in report["systems"]
        if (index, system) in pictures
    )
    head = "".join(f"<th>{escape(system)}</th>" for system in report["systems"])
    rows = "".join(
        f"<tr><td>{escape(question)}</td>"
        + "".join(f"<td>{counts['wins'][system]}</td>" for system in report["systems"])
        + f"<td>{counts['ties']}</td></tr>"
        for question, counts in row["questions"].items()
    )
    return (
        f"<section class=prompt><h3>{escape(row['prompt'])}</h3><div class=pictures>{figures}</div>"
        f"<table><tr><th>wins</th>{head}<th>ties</th></tr>{rows}</table></section>"
    )
