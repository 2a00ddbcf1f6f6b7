"""A study's report: report.json, report.html with the pictures, and answers.csv."""

import csv
import io
import itertools
import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from llmdiff.errors import ConfigError, OutputError
from llmdiff.files import write_whole
from llmdiff.serving.templates import render
from llmdiff_lab.study.model import Answer, StudySettings
from llmdiff_lab.study.statistics import (
    Comparison,
    Resampling,
    bradley_terry_intervals,
    krippendorff_alpha,
    percent_agreement,
    win_rate,
)
from llmdiff_lab.study.study import PICTURES_NAME, open_study

METHOD = (
    "A win rate is the first system's share of the answers, a tie half a win to each. Its 95 % interval is the "
    "wider of the bootstrap over raters and prompts (Owen 2007) and Wilson's.",
    "Strengths are Bradley and Terry's, their mean 0: the first of two systems wins with probability "
    "1 / (1 + exp(second - first)). Half a win either way is added for every two systems.",
    "Agreement is Krippendorff's alpha on nominal values: 1 perfect, 0 as by chance; and the share of pairs of "
    "raters that agree.",
    "A rater fails an attention check by choosing the picture with noise for any question, or by choosing "
    "nothing. Raters who fail more checks than allowed are left out of all figures.",
)


def write_report(study: str | Path, out: str | Path, *, max_failed_checks: int = 0) -> dict[str, Any]:
    """Return the report, also written to the folder `out`: report.json, report.html, answers.csv, pictures/.

    Raises:
        ConfigError: there is no such study.
        OutputError: `out` cannot be written.
    """
    if max_failed_checks < 0:
        raise ConfigError(f"max_failed_checks is {max_failed_checks}, expected 0 or more")
    store = open_study(study)
    try:
        answers, prompts, pictures = store.answers(), store.prompts(), store.pictures()
        began, settings = store.raters(), store.settings
    finally:
        store.close()
    failed = failed_checks(answers)
    report = summarise(settings, prompts, answers, began=began, max_failed_checks=max_failed_checks)
    folder = Path(out)
    try:
        (folder / PICTURES_NAME).mkdir(parents=True, exist_ok=True)
        for name in pictures.values():
            shutil.copyfile(
                Path(study) / PICTURES_NAME / f"{name}.png", folder / PICTURES_NAME / f"{name}.png"
            )
        write_whole(folder / "answers.csv", answers_csv(answers, prompts, failed, max_failed_checks))
        write_whole(folder / "report.html", report_page(report, pictures))
        write_whole(folder / "report.json", json.dumps(report, indent=1) + "\n")
    except OSError as error:
        raise OutputError(
            f"out {folder} cannot be written ({error.strerror or error}): choose a folder you can write"
        ) from error
    return report


def summarise(
    settings: StudySettings,
    prompts: Sequence[str],
    answers: Sequence[Answer],
    *,
    began: int,
    max_failed_checks: int = 0,
) -> dict[str, Any]:
    """Return the report of these answers, without raters who failed more than `max_failed_checks` checks."""
    failed = failed_checks(answers)
    answered = {answer.rater for answer in answers}
    excluded = {rater for rater in answered if failed.get(rater, 0) > max_failed_checks}
    counted = [a for a in answers if a.first is not None and a.rater not in excluded]
    raters = sorted({answer.rater for answer in counted})
    resampling = Resampling(max(1, len(raters)), max(1, len(prompts)))
    return {
        "title": settings.title,
        "systems": list(settings.systems),
        "questions": dict(settings.questions),
        "raters": {
            "began": began,
            "answered": len(answered),
            "excluded": len(excluded),
            "counted": len(raters),
            "max_failed_checks": max_failed_checks,
        },
        "answers": len(counted),
        "sides": {side: sum(a.choice == side for a in counted) for side in ("left", "right", "tie")},
        "results": {
            question: _question(
                settings.systems,
                [a for a in counted if a.question == question],
                raters,
                len(prompts),
                resampling,
            )
            for question in settings.questions
        },
        "prompts": _by_prompt(settings, prompts, counted),
        "method": list(METHOD),
    }


def report_page(report: Mapping[str, Any], pictures: Mapping[tuple[int, str], str]) -> str:
    """Return the HTML page. `pictures`: (index of the prompt, system) => name of the file in `pictures/`."""
    ranked = {
        question: sorted(result["bradley_terry"].items(), key=lambda item: -item[1]["mean"])
        for question, result in report["results"].items()
    }
    return render("study-report.html", package="llmdiff_lab", report=report, pictures=pictures, ranked=ranked)


def failed_checks(answers: Sequence[Answer]) -> dict[int, int]:
    """Return the number of failed attention checks by rater, without raters who failed none."""
    chosen: dict[tuple[int, int], list[str]] = defaultdict(list)
    for answer in answers:
        if answer.first is None:
            chosen[answer.rater, answer.pair].append(answer.chosen)
    failed: Counter[int] = Counter()
    for (rater, _), choices in chosen.items():
        # The first picture of a check is the intact one.
        if "second" in choices or "first" not in choices:
            failed[rater] += 1
    return dict(failed)


def answers_csv(
    answers: Sequence[Answer], prompts: Sequence[str], failed: Mapping[int, int], max_failed_checks: int
) -> str:
    """Return all answers as CSV, one per row. Texts that look like formulas begin with an apostrophe."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(
        ("rater", "counted", "pair", "prompt", "question", "check", "left", "right", "choice", "preferred")
    )
    for one in answers:
        check = one.first is None
        first, second = ("intact", "noise") if check else (str(one.first), str(one.second))
        left, right = (first, second) if one.first_is_left else (second, first)
        preferred = {"first": first, "second": second, "tie": ""}[one.chosen]
        counted = not check and failed.get(one.rater, 0) <= max_failed_checks
        row = (
            one.rater,
            int(counted),
            one.pair,
            prompts[one.prompt],
            one.question,
            int(check),
            left,
            right,
            one.choice,
            preferred,
        )
        writer.writerow([_not_a_formula(cell) if isinstance(cell, str) else cell for cell in row])
    return file.getvalue()


def _question(
    systems: Sequence[str],
    answers: Sequence[Answer],
    raters: Sequence[int],
    prompts: int,
    resampling: Resampling,
) -> dict[str, Any]:
    comparisons: dict[tuple[int, int], Comparison] = {}
    pairs = []
    for first, second in itertools.combinations(range(len(systems)), 2):
        names = (systems[first], systems[second])
        both = [answer for answer in answers if (answer.first, answer.second) == names]
        comparison = comparisons[first, second] = _counts(both, raters, prompts)
        rate = win_rate(comparison, resampling)
        pairs.append(
            {
                "first": names[0],
                "second": names[1],
                "first_wins": int(comparison.first_wins.sum()),
                "second_wins": int(comparison.second_wins.sum()),
                "ties": int(comparison.ties.sum()),
                "win_rate": asdict(rate),
            }
        )
    strengths = bradley_terry_intervals(comparisons, len(systems), resampling)
    units: dict[int, list[str]] = defaultdict(list)
    for answer in answers:
        units[answer.pair].append(answer.chosen)
    judged = list(units.values())
    return {
        "pairs": pairs,
        "bradley_terry": {name: asdict(one) for name, one in zip(systems, strengths, strict=True)},
        "agreement": {
            "alpha": krippendorff_alpha(judged),
            "share": percent_agreement(judged),
            "pairs": sum(len(unit) > 1 for unit in judged),
        },
    }


def _counts(answers: Sequence[Answer], raters: Sequence[int], prompts: int) -> Comparison:
    counts = {kind: np.zeros((max(1, len(raters)), max(1, prompts))) for kind in ("first", "second", "tie")}
    rows = {rater: row for row, rater in enumerate(raters)}
    for answer in answers:
        counts[answer.chosen][rows[answer.rater], answer.prompt] += 1
    return Comparison(first_wins=counts["first"], second_wins=counts["second"], ties=counts["tie"])


def _by_prompt(
    settings: StudySettings, prompts: Sequence[str], answers: Sequence[Answer]
) -> list[dict[str, Any]]:
    wins: dict[tuple[int, str], Counter[str]] = defaultdict(Counter)
    for answer in answers:
        preferred = {"first": str(answer.first), "second": str(answer.second), "tie": ""}[answer.chosen]
        wins[answer.prompt, answer.question][preferred] += 1
    return [
        {
            "prompt": prompt,
            "questions": {
                question: {
                    "wins": {system: wins[index, question][system] for system in settings.systems},
                    "ties": wins[index, question][""],
                }
                for question in settings.questions
            },
        }
        for index, prompt in enumerate(prompts)
    ]


def _not_a_formula(text: str) -> str:
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
