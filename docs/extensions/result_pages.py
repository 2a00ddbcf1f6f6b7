"""Pages of recorded results, and the findings."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from inside_pages import inside_findings, inside_page, kind_of, opening
from page_text import cell

from llmdiff.evaluation.tables import markdown_table, report_tables

RESULTS = Path(__file__).parents[1] / "results"

# Headings of the pages of results; others have the record's name.
RESULT_TITLES = {
    "attention": "Where the picture follows a word",
    "behaviour": "How the base, LaVi-Bridge and ours draw",
    "benchmark": "Ways to condition, trained alike",
    "benchmark-first-world": "Ways to condition, on the first world",
    "benchmark-parts": "Ours with single parts removed",
    "benchmark-refined": "Encodings, each with the refiner",
    "blocks": "Which of the LLM's blocks count",
    "compare-llms": "Several LLMs, the same adapter",
    "denoising": "Is an LLM a diffusion model?",
    "forty-prompts": "Forty prompts of a stranger",
    "own-pictures": "What own pictures teach",
    "performance": "Speed and memory",
    "pointing": "The pointing game",
    "probes": "What linear probes recover",
    "proxy": "With a closed LLM by proxy",
    "scale": "How much LLM draws best",
    "scenes": "Base and LLM on the scenes",
    "scorer": "How good the scorer is",
    "scores": "What every block does",
    "speed-record": "The speed record",
    "training-speed": "The speed of training",
    "warm-start": "The start from text alone",
}

ABOUT_FIRST_WORLD = (
    "Recorded on the first world of the embedded default: 24 objects, pictures of 64 x 64 pixels and six splits, of "
    "which `phrasings` and `indirect` are now `forms` and `descriptions`. The shipped world is larger, so its figures "
    "differ."
)
# Names of the records in RESULTS that were made on the first world. Remove a name when its record is made again.
FIRST_WORLD = frozenset({
    "attention", "benchmark-first-world", "benchmark-parts", "benchmark-refined", "compare-llms", "denoising",
    "own-pictures", "performance", "pointing", "probes", "proxy", "scale", "scorer", "scores",
    "speed-record", "training-speed", "warm-start",
})  # fmt: skip

# A record with one of these keys has its page in a text beside it.
_KEYS_BESIDE = frozenset({"claims", "entries", "without", "exact by guidance scale"})


def title_of(path: Path) -> str:
    """Return the heading of a record's page."""
    return RESULT_TITLES.get(path.stem, path.stem)


def result_page(path: Path) -> str:
    """Return the page of one recorded result."""
    record = json.loads(path.read_text(encoding="utf-8"))
    lines = [f"# {title_of(path)}", ""]
    if _is_of_first_world(path):
        lines += ["```{note}", ABOUT_FIRST_WORLD, "```", ""]
    source = f"[`docs/results/{path.name}`](../results/{path.name})"
    end = ["", f"All that was recorded: {source}.", ""]
    if not _KEYS_BESIDE.isdisjoint(record):
        return "\n".join([*lines, _beside(path), *end])
    if kind_of(record) == "benchmark":
        lines += opening(record)
    command = record.get("command")
    if command:
        lines += ["Made with", "", "```text", command, "```", ""]
    if record.get("date"):
        lines += [f"on {record['date'][:10]}.", ""]
    if kind_of(record) is not None:
        lines += inside_page(record, path)
    elif "systems" in record and "suite" in record:
        lines += [*_evaluation(record)]
    else:
        lines += [*_record(record, 2)]
    return "\n".join([*lines, *end])


def _is_of_first_world(path: Path) -> bool:
    return path.parent == RESULTS and path.stem in FIRST_WORLD


def _beside(path: Path) -> str:
    """Return the text beside a record, with the paths of its pictures relative to the generated pages."""
    text = path.with_suffix(".md").read_text(encoding="utf-8")
    return text.replace("](", "](../results/").rstrip()


def _evaluation(record: Mapping[str, Any]) -> Iterator[str]:
    yield report_tables(record, markdown=True)
    yield from [
        "## What the splits are",
        "",
        splits_table(record["suite"]["meanings"]),
        "",
        "## Where the intervals leave no doubt",
        "",
        *_verdicts(record),
        "",
    ]
    for heading in ("settings", "seconds_per_image", "checker", "versions"):
        if isinstance(record.get(heading), dict):
            yield from [f"## {heading.replace('_', ' ').capitalize()}", "", _table(record[heading]), ""]


def splits_table(meanings: Mapping[str, str]) -> str:
    """Return a table of what is new in each split."""
    rows = [[f"`{split}`", cell(what)] for split, what in meanings.items()]
    return markdown_table([["split", "what is new in it"], *rows], left=2)


def _verdicts(record: Mapping[str, Any]) -> Iterator[str]:
    """Say for every difference whether its interval contains zero."""
    for name, figures in record["systems"].items():
        gaps = figures.get("differences_to_base")
        if gaps is None:
            continue
        verdicts: dict[str, list[str]] = {
            f"`{name}` follows better": [],
            "`base` follows better": [],
            "not decided": [],
        }
        better, worse, open_ = verdicts
        of_tags = {tag: found["scenes"] for tag, found in gaps["metrics_by_tag"].items()}
        for split, gap in {"all": gaps["metrics"]["scenes"], **of_tags}.items():
            key = better if gap["low"] > 0 else worse if gap["high"] < 0 else open_
            verdicts[key].append(f"{split} ({100 * gap['mean']:+.1f} points)")
        yield from (f"- {verdict}: {', '.join(splits) or 'nowhere'}" for verdict, splits in verdicts.items())


def _record(record: Mapping[str, Any], level: int) -> Iterator[str]:
    """Return any nested record: numbers and records of equal shape as tables, others as sections."""
    plain = {key: value for key, value in record.items() if not isinstance(value, dict | list)}
    plain = {key: value for key, value in plain.items() if key not in ("command", "date", "how")}
    if plain:
        yield from [_table(plain), ""]
    for key, value in record.items():
        if not isinstance(value, dict | list) or not value:
            continue
        yield from [f"{'#' * min(level, 6)} {cell(str(key).replace('_', ' '))}", ""]
        rows = dict(enumerate(value)) if isinstance(value, list) else value
        if all(
            isinstance(row, dict) and not any(isinstance(x, dict) for x in row.values())
            for row in rows.values()
        ):
            columns = list(dict.fromkeys(column for row in rows.values() for column in row))
            body = [
                [cell(str(name)), *(_number(row.get(column, "")) for column in columns)]
                for name, row in rows.items()
            ]
            yield from [markdown_table([["", *(cell(str(column)) for column in columns)], *body]), ""]
        elif isinstance(value, dict):
            yield from _record(value, level + 1)
        else:
            yield from [", ".join(_number(one) for one in value), ""]


def _table(values: Mapping[str, Any]) -> str:
    rows = [[cell(str(name).replace("_", " ")), _number(value)] for name, value in values.items()]
    return markdown_table([["", ""], *rows], left=2)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else cell(str(value))


def findings(folder: Path = RESULTS) -> str:
    """Return the findings for and against the method, from every recorded evaluation."""
    lines: list[str] = []
    others: list[str] = []
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        link = f"[{title_of(path)}](../generated/results-{path.stem}.md)"
        if _is_of_first_world(path):
            link += " (first world)"
        if inside := inside_findings(record):
            lines += [f"**{link}**:", "", *inside, ""]
        elif "systems" in record and "suite" in record:
            lines += [f"**{link}**, {record['suite']['prompts']} prompts:", ""]
            lines += [*_verdicts(record), ""]
        else:
            others.append(link)
    if others:
        lines += [f"Also recorded: {', '.join(others)}.", ""]
    return "\n".join(lines)
