"""Measure the reliability of the scorer: its verdicts on real renders against the ground truth."""

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmdiff.errors import ConfigError
from llmdiff.evaluation.statistics import bootstrap_mean, cohens_kappa
from llmdiff.evaluation.tables import figure_text, text_table
from llmdiff.world.expected import Expected
from llmdiff.world.reading import FAULTS_OF, Reading, expected_of, matches, reading_of
from llmdiff.world.rendering import render
from llmdiff.world.scenes import World
from llmdiff_lab.world_build.checker_figures import held_out_scenes
from llmdiff_lab.world_build.near_misses import near_miss
from llmdiff_lab.world_build.spoiling import spoil, to_uint8

Reader = Callable[[NDArray[np.uint8]], Sequence[Reading]]
"""Pictures (N, H, W, 3) => the content seen in each."""
_PARTS = tuple(FAULTS_OF)


def check_scorer(read: Reader, world: World, *, renders: int = 900, seed: int = 0) -> dict[str, Any]:
    """Measure the reliability of a reader's verdicts on new renders of every split, clean and degraded.

    Every render is compared with the contents of three captions: its own, a near miss (which differs in one respect),
    and that of another render (`shuffled`, the chance level). `score` is the share that the reader calls exactly
    right, `truth` the share that is right, `agreement` the share of verdicts that equal the ground truth, `kappa`
    Cohen's kappa (0 for agreement by chance). `parts` is the agreement on each requested part.

    Raises:
        ConfigError: there are fewer than two renders.
    """
    if renders < 2:
        raise ConfigError(f"renders: got {renders}, expected at least 2")
    rng, others = np.random.default_rng([seed, 14]), random.Random(f"near misses {seed}")
    scenes = [scene for _, scene in held_out_scenes(world, renders, seed)]
    images = np.stack([render(scene) for scene in scenes])
    captions = [expected_of(scene) for scene in scenes]
    asked = {
        "own": captions,
        "near miss": [expected_of(near_miss(scene, world, others)) for scene in scenes],
        # The index plus seven is a scene of another split.
        "shuffled": [captions[(index + 7) % renders] for index in range(renders)],
    }
    truths = [reading_of(scene) for scene in scenes]
    spoilt = to_uint8(spoil(images, rng, clean_share=0.0))
    return {
        "renders": renders,
        "seed": seed,
        "pictures": {
            name: _compared(read(pictures), truths, asked)
            for name, pictures in (("clean", images), ("spoilt", spoilt))
        },
    }


def scorer_tables(report: dict[str, Any], *, markdown: bool = False) -> str:
    """Return the figures in percent: scores and agreement for each kind of caption, and agreement by part."""
    rows = [
        [
            "%",
            "says right",
            "is right",
            "agreement",
            "kappa",
            "verdicts right, is wrong",
            "verdicts wrong, is right",
        ]
    ]
    parts = [["agreement, %", *_PARTS]]
    for pictures, found in report["pictures"].items():
        for caption, row in found["captions"].items():
            shown = [figure_text(row[name], factor=100) for name in ("score", "truth", "agreement")]
            wrong = [f"{100 * row[name]:.2f}" for name in ("false_right", "false_wrong")]
            kappa = "-" if row["kappa"] is None else f"{row['kappa']:.4f}"
            rows.append([f"{pictures}, {caption}", *shown, kappa, *wrong])
        parts.append([pictures, *(f"{100 * found['parts'][part]:.2f}" for part in _PARTS)])
    notes = f"{report['renders']} renders of all splits; 95 % bootstrap intervals over renders.\n"
    return "\n\n".join([text_table(rows, markdown), text_table(parts, markdown), notes])


def _compared(
    seen: Sequence[Reading], truths: Sequence[Reading], asked: dict[str, list[Expected]]
) -> dict[str, Any]:
    captions: dict[str, Any] = {}
    agree: dict[str, list[bool]] = {part: [] for part in _PARTS}
    verdicts_of, true_of = [], []
    for name, requirements in asked.items():
        ours = [matches(expected, one) for expected, one in zip(requirements, seen, strict=True)]
        theirs = [matches(expected, one) for expected, one in zip(requirements, truths, strict=True)]
        verdicts, true = (np.array([one.exact for one in found]) for found in (ours, theirs))
        captions[name] = _row(verdicts, true)
        verdicts_of.append(verdicts)
        true_of.append(true)
        for one, other in zip(ours, theirs, strict=True):
            for part, is_right in other.parts.items():
                agree[part].append(one.parts[part] == is_right)
    captions["all"] = _row(np.concatenate(verdicts_of), np.concatenate(true_of))
    return {
        "captions": captions,
        "parts": {part: float(np.mean(values)) if values else 1.0 for part, values in agree.items()},
    }


def _row(verdicts: NDArray[np.bool_], true: NDArray[np.bool_]) -> dict[str, Any]:
    figures = {"score": verdicts, "truth": true, "agreement": verdicts == true}
    return {
        **{name: asdict(bootstrap_mean(values.astype(np.float64))) for name, values in figures.items()},
        "kappa": cohens_kappa(verdicts, true),
        "false_right": float((verdicts & ~true).mean()),
        "false_wrong": float((~verdicts & true).mean()),
    }
