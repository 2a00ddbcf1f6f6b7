"""The figures of an evaluation: exact accuracy by split, by part, and against the base, with intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, get_args

import numpy as np

from llmdiff.evaluation.statistics import bootstrap_mean, paired_difference
from llmdiff.evaluation.suites import ScenePrompt
from llmdiff.evaluation.systems import BASE
from llmdiff.evaluation.verdicts import RelationVerdict, Verdict

_PARTS = ("things", "colours", "count", "size", "background")


def summarise(suite: Sequence[ScenePrompt], verdicts: Mapping[str, Sequence[Verdict]]) -> dict[str, Any]:
    """The figures of every system: exact accuracy overall and by split, by part, and against `base`.

    A part's figures count the prompts that ask for it. Intervals: bootstrap over prompts, 95 %.
    """
    splits = {
        split: [i for i, row in enumerate(suite) if row.split == split]
        for row in suite
        for split in [row.split]
    }
    exact = {name: np.array([v.exact for v in row], dtype=np.float64) for name, row in verdicts.items()}
    systems: dict[str, Any] = {}
    for name, rows in verdicts.items():
        systems[name] = {
            "overall": asdict(bootstrap_mean(exact[name])),
            "splits": {split: asdict(bootstrap_mean(exact[name][at])) for split, at in splits.items()},
            "parts": _parts(rows),
            "parts_by_split": {split: _parts([rows[i] for i in at]) for split, at in splits.items()},
        }
        if BASE in verdicts and name != BASE:
            systems[name]["differences_to_base"] = {
                "overall": asdict(paired_difference(exact[name], exact[BASE])),
                "splits": {
                    split: asdict(paired_difference(exact[name][at], exact[BASE][at]))
                    for split, at in splits.items()
                },
            }
    return systems


def _parts(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    parts: dict[str, Any] = {}
    for name in _PARTS:
        values = [getattr(v, name) for v in verdicts if getattr(v, name) is not None]
        if values:
            parts[name] = asdict(bootstrap_mean(values))
    relations = [v.relation for v in verdicts if v.relation is not None]
    if relations:
        shares = {kind: relations.count(kind) / len(relations) for kind in get_args(RelationVerdict)}
        parts["relation"] = shares | {"n": len(relations)}
    return parts
