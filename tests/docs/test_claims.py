"""The paper's claims: every figure as the record has it, and a verdict that follows from the intervals."""

import json
import re

import numpy as np
import pytest

from llmdiff.evaluation.statistics import bootstrap_mean

from .pages import ROOT
from .test_generated import claims

RESULTS = ROOT / "docs" / "results"


def interval(mean: float, reach: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - reach, "high": mean + reach}


@pytest.mark.parametrize(
    ("gaps", "expected"),
    [
        ([interval(0.2, 0.1), interval(0.1, 0.05)], "Holds."),
        ([interval(0.2, 0.1), interval(0.1, 0.2)], "Holds in part."),
        ([interval(0.2, 0.3), interval(-0.2, 0.1)], "Does not hold here."),
    ],
)
def test_verdicts_follow_from_the_intervals(gaps: list[dict[str, float]], expected: str) -> None:
    assert claims.verdict(gaps) == expected


def test_the_difference_of_independent_means_has_about_the_bootstraps_interval() -> None:
    rng = np.random.default_rng(0)
    ours, other = rng.random(400) ** 3, rng.random(300)
    one, two = ({"mean": i.mean, "low": i.low, "high": i.high} for i in map(bootstrap_mean, (ours, other)))
    found = claims.difference(one, two)
    draws = [rng.choice(ours, len(ours)).mean() - rng.choice(other, len(other)).mean() for _ in range(4000)]
    assert found["mean"] == pytest.approx(ours.mean() - other.mean())
    assert [found["low"], found["high"]] == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=0.004)


def test_every_claim_has_its_figures_and_verdict_or_the_reason_why_not() -> None:
    text = claims.claims_text(RESULTS)
    sections = re.split(r"^### ", text, flags=re.MULTILINE)[1:]
    assert len(sections) == len(claims.CLAIMS) == 8
    for claim, section in zip(claims.CLAIMS, sections, strict=True):
        if claim.figures:
            assert re.search(r"\*\*(Holds\.|Holds in part\.|Does not hold here\.)\*\*", section)
            assert len(re.findall(r"results-[\w-]+\.md", section)) == len(claim.figures)
        else:
            assert f"**Not measured, because** {claim.because}." in section
        assert "    llmdiff" in section
    shipped = json.loads((RESULTS / "scenes.json").read_text())["systems"]["llm"]["differences_to_base"]
    siglip = shipped["metrics"]["siglip"]
    assert f"{siglip['mean']:+.4g} [{siglip['low']:+.4g}, {siglip['high']:+.4g}]" in sections[0]
