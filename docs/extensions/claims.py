"""The claims of the paper, each with the figures of docs/results that speak for or against it, and what follows."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmdiff.evaluation.tables import figure_text, markdown_table, percent


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A difference that a record holds; above zero speaks for the claim.

    `less`: the place of what is to be taken from the figure, where the record holds no difference of the two over the
    same prompts. `points`: whether it is a share, shown in points.
    """

    what: str
    record: str
    at: str
    less: str | None = None
    points: bool = True


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What the paper says, the figures about it, and where there are none, why, and the command that would measure."""

    title: str
    says: str
    figures: Sequence[Figure] = ()
    because: str = ""
    command: str = ""
    note: str = ""


_SIGLIP = "systems.{}.metrics.siglip"
CLAIMS = (
    Claim(
        title="A better SigLIP score",
        says="Pictures drawn with the LLM fit their prompts better by SigLIP score than with other text encoders.",
        figures=(
            Figure(
                what="the shipped adapter above its base",
                record="scenes",
                at="systems.llm.differences_to_base.metrics.siglip",
                points=False,
            ),
            Figure(
                what="`refined` above `base`",
                record="benchmark",
                at="systems.base.metrics_ours_above.siglip",
                points=False,
            ),
            *(
                Figure(
                    what=f"`paper` above `{name}`, not paired",
                    record="benchmark",
                    at=_SIGLIP.format("paper"),
                    less=_SIGLIP.format(name),
                    points=False,
                )
                for name in ("base", "last-hidden", "encoder-only")
            ),
        ),
        note="The SigLIP is the embedded default's own, trained on its renders.",
    ),
    Claim(
        title="A better CLIP-IQA",
        says="Pictures drawn with the LLM have a higher CLIP-IQA.",
        because="it needs a CLIP of photographs and a base that draws them, with a trained adapter; the embedded "
        "default draws emoji scenes",
        command="llmdiff evaluate --suite PROMPTS.txt --adapter ADAPTER --metric clip-iqa --metric-model CLIP "
        "--out report",
    ),
    Claim(
        title="Users prefer the pictures",
        says="People prefer pictures drawn with the LLM.",
        because="no raters have been asked; the study itself is [built](../tutorials/user-study.md)",
        command="llmdiff-lab study create --out study --system base=figures/drawn/base --system llm=figures/drawn/llm",
    ),
    Claim(
        title="Long and complex descriptions",
        says="The LLM follows long and complex descriptions better.",
        because="captions of the recorded world name at most two kinds of things in one sentence; the world that "
        "`llmdiff.world` describes has up to five things and descriptions of up to 110 words, and no adapter has been "
        "recorded on it. For other bases, UniGenBench++ and TIIF-Bench have a long twin of every short prompt",
        command="llmdiff evaluate --suite unigenbench --suite-files data/ --metric unigenbench --metric-model VLM "
        "--out report",
    ),
    Claim(
        title="Actions",
        says="The LLM draws actions better.",
        because="the recorded world has no actions; the one that `llmdiff.world` describes has 46, and no adapter has "
        "been recorded on it. For other bases, UniGenBench++ has a dimension of actions",
        command="llmdiff evaluate --suite unigenbench --suite-files test_prompts_en.csv --metric unigenbench "
        "--metric-model VLM --out report",
    ),
    Claim(
        title="Details that the text implies",
        says="The LLM draws what a text only implies. Here: things described, not named (split `indirect`).",
        figures=(
            Figure(
                what="the shipped adapter above its base",
                record="scenes",
                at="systems.llm.differences_to_base.metrics_by_tag.indirect.scenes",
            ),
            Figure(
                what="`refined` above the encoder-only MiniLM, also refined",
                record="benchmark",
                at="systems.encoder-only-refined.ours_above.indirect",
            ),
            Figure(
                what="`refined` above the base's own text states, also refined",
                record="benchmark",
                at="systems.base-states-refined.ours_above.indirect",
            ),
            Figure(
                what="`paper` above `base`",
                record="benchmark",
                at="systems.paper.differences_to_base.indirect",
            ),
        ),
    ),
    Claim(
        title="Decoder-only against encoder-only and encoder-decoder",
        says="A decoder-only LLM is the better text encoder.",
        figures=(
            Figure(
                what="`refined` above the encoder-only MiniLM, also refined",
                record="benchmark",
                at="systems.encoder-only-refined.ours_above.overall",
            ),
            Figure(
                what="`paper` above the encoder-only MiniLM, not paired",
                record="benchmark",
                at="systems.paper.overall",
                less="systems.encoder-only.overall",
            ),
            Figure(
                what="`paper` above the base's own text states, not paired",
                record="benchmark",
                at="systems.paper.overall",
                less="systems.base-states.overall",
            ),
        ),
        note="MiniLM has 22 million parameters, the LLM 135 million. Encoder-decoder models are not measured, because "
        "no T5 was at hand.",
    ),
    Claim(
        title="Every block against the last layer",
        says="The sum over all blocks says more than the last layer.",
        figures=(
            Figure(
                what="`refined` above the last layer, also refined",
                record="benchmark",
                at="systems.last-hidden-refined.ours_above.overall",
            ),
            Figure(
                what="`paper` above the last layer, not paired",
                record="benchmark",
                at="systems.paper.overall",
                less="systems.last-hidden.overall",
            ),
            Figure(
                what="`refined` above the penultimate layer, also refined",
                record="benchmark-refined",
                at="systems.penultimate-refined.ours_above.overall",
            ),
            Figure(
                what="`guided` above x_0 alone, without the sum",
                record="benchmark-parts",
                at="systems.x0-alone.ours_above.overall",
            ),
        ),
        note="That the sum is of scores, u_l - v_l, is not shown by this: a plain mean of all layers does as well "
        "([below](#how-far-this-reaches)).",
    ),
)


def claims_text(results: Path) -> str:
    """Return a section for each claim: what it says, the figures with their intervals, the verdict, the commands."""
    return "\n".join(line for claim in CLAIMS for line in _section(claim, results))


def verdict(intervals: Sequence[Mapping[str, float]]) -> str:
    """Return whether a claim holds, by the 95 % intervals of differences that speak for it above zero."""
    above = [one["low"] > 0 for one in intervals]
    return "Holds." if all(above) else "Holds in part." if any(above) else "Does not hold here."


def difference(ours: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return the difference of two means and its interval from theirs, as if they were independent.

    Systems that draw the same prompts vary together, which makes this interval too wide rather than too narrow.

    Source: Zou and Donner 2008 (method of variance estimates recovery).
    """
    mean = ours["mean"] - other["mean"]
    below = math.hypot(ours["mean"] - ours["low"], other["high"] - other["mean"])
    above = math.hypot(ours["high"] - ours["mean"], other["mean"] - other["low"])
    return {"mean": mean, "low": mean - below, "high": mean + above, "how": "unpaired"}


def _section(claim: Claim, results: Path) -> list[str]:
    lines = [f"### {claim.title}", "", f"*{claim.says}*", ""]
    records: dict[str, Any] = {}
    intervals = []
    for figure in claim.figures:
        if figure.record not in records:
            records[figure.record] = json.loads(
                (results / f"{figure.record}.json").read_text(encoding="utf-8")
            )
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
            f"[record](../generated/results-{figure.record}.md)",
        ]
        for figure, one in zip(claim.figures, intervals, strict=True)
    ]
    lines += [markdown_table([["difference", "mean [95 % interval]", "from"], *rows]), ""]
    lines += [" ".join(filter(None, (f"**{verdict(intervals)}**", claim.note))), ""]
    for record in records.values():
        lines += [f"    {record['command']}", ""]
    return lines


def _at(record: Any, place: str) -> Any:
    for key in place.split("."):
        record = record[key]
    return record
