"""Write the claims of the paper, with the figures of docs/results about each, and the verdict."""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from llmdiff.evaluation.tables import figure_text, markdown_table, percent

RESULTS = Path(__file__).parents[1] / "results"
# Names of splits in records of the first world.
FIRST_WORLD_SPLITS = {"descriptions": "indirect"}


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A difference in a record; a positive one supports the claim. See claims.yaml for the fields."""

    what: str
    record: str
    at: str
    split: str | None = None
    less: str | None = None
    points: bool = True


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim of the paper, with its figures or the reason why there are none. See claims.yaml for the fields."""

    title: str
    says: str
    figures: Sequence[Figure] = ()
    because: str = ""
    command: str = ""
    note: str = ""


def read_claims() -> list[Claim]:
    """Return the claims of claims.yaml, without figures of splits that their record lacks."""
    rows = yaml.safe_load(Path(__file__).with_name("claims.yaml").read_text(encoding="utf-8"))
    for row in rows:
        figures = (_placed(Figure(**one)) for one in row.get("figures", ()))
        row["figures"] = [figure for figure in figures if figure is not None]
    return [Claim(**row) for row in rows]


def _placed(figure: Figure) -> Figure | None:
    """Return the figure with its place in the record; None if the record lacks its split."""
    if figure.split is None:
        return figure
    for split in (figure.split, FIRST_WORLD_SPLITS.get(figure.split)):
        place = figure.at.format(split=split)
        try:
            _at(_record(RESULTS / f"{figure.record}.json"), place)
        except KeyError:
            continue
        return replace(figure, at=place)
    return None


@lru_cache
def _record(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _at(record: Any, place: str) -> Any:
    for key in place.split("."):
        record = record[key]
    return record


CLAIMS = read_claims()


def claims_text(results: Path, first_world: Collection[str] = ()) -> str:
    """Return a section for each claim: its text, the figures with their intervals, the verdict, the commands.

    `first_world`: the names of records that are marked as those of the first world.
    """
    return "\n".join(line for claim in CLAIMS for line in _section(claim, results, first_world))


def verdict(intervals: Sequence[Mapping[str, float]]) -> str:
    """Return whether a claim holds: whether the 95 % intervals of its differences are above zero."""
    above = [one["low"] > 0 for one in intervals]
    return "Holds." if all(above) else "Holds in part." if any(above) else "Does not hold here."


def difference(ours: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return the difference of two means and its interval, computed as for independent systems.

    Systems that draw the same prompts are correlated, so this interval is rather too wide than too narrow.

    Source: Zou and Donner 2008 (method of variance estimates recovery).
    """
    mean = ours["mean"] - other["mean"]
    below = math.hypot(ours["mean"] - ours["low"], other["high"] - other["mean"])
    above = math.hypot(ours["high"] - ours["mean"], other["mean"] - other["low"])
    return {"mean": mean, "low": mean - below, "high": mean + above, "how": "unpaired"}


def _section(claim: Claim, results: Path, first_world: Collection[str]) -> list[str]:
    lines = [f"### {claim.title}", "", f"*{claim.says}*", ""]
    records = {figure.record: _record(results / f"{figure.record}.json") for figure in claim.figures}
    intervals = []
    for figure in claim.figures:
        found = _at(records[figure.record], figure.at)
        if figure.less is not None:
            found = difference(found, _at(records[figure.record], figure.less))
        intervals.append(found)
    if not intervals:
        return [*lines, f"**Not measured, because** {claim.because}.", "", f"    {claim.command}", ""]
    rows = [
        [
            figure.what,
            f"{percent(one, sign=True)} points" if figure.points else figure_text(one, sign=True),
            f"[record](../generated/results-{figure.record}.md)"
            + (", first world" if figure.record in first_world else ""),
        ]
        for figure, one in zip(claim.figures, intervals, strict=True)
    ]
    lines += [markdown_table([["difference", "mean [95 % interval]", "from"], *rows]), ""]
    lines += [" ".join(filter(None, (f"**{verdict(intervals)}**", claim.note))), ""]
    for record in records.values():
        lines += [f"    {record['command']}", ""]
    return lines
