"""Compare how systems of a benchmark draw: under guidance, and where their attention to nouns lies.

    python -m llmdiff_lab.comparison.behaviour FOLDER OUT lavi-bridge refined-wide

FOLDER is the folder of a benchmark with the base's pictures and the trained models of these systems (seed 0).
Writes OUT/behaviour.json, OUT/behaviour.md and OUT/behaviour.png. Pictures of the validation prompts are kept in
FOLDER/runs/SYSTEM/guidance/, so that a second call draws only what is missing.
"""

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llmdiff.environment import check_extra, provenance
from llmdiff.errors import ConfigError, LLMDiffError
from llmdiff.evaluation.statistics import bootstrap_mean, paired_difference
from llmdiff.evaluation.suites.scenes import ScenePrompt
from llmdiff.evaluation.tables import figure_text, markdown_table, percent
from llmdiff.files import writable_folder
from llmdiff_lab.comparison import attention, guidance
from llmdiff_lab.comparison.attention import NounMaps, draw_noun_maps, read_noun_figures, two_nouns
from llmdiff_lab.comparison.guidance import guidance_figures, predictions
from llmdiff_lab.comparison.prepare import prepare_build
from llmdiff_lab.comparison.run import Benchmark
from llmdiff_lab.comparison.runs import EXACT, read_run
from llmdiff_lab.comparison.settings import read_settings
from llmdiff_lab.comparison.systems import BASE
from llmdiff_lab.inspection.figure_files import save_record

SCALES = (1.0, 2.0, 3.0, 5.0, 8.0)
"""Guidance scales at which every system draws the validation prompts."""
_SHOWN = 2  # prompts in the figure
_PERCENT = ("exact", "words", "order", "caption gap", "blank gap", "guidance gap")

Values = Mapping[str, Mapping[str, NDArray[np.float64]]]
"""Figures of every prompt or scene: system (and kind of map), then figure => (prompts,)."""


def load_benchmark(folder: Path) -> Benchmark:
    """Return the benchmark of a folder on the base that its settings name.

    Raises:
        ConfigError: the folder has no benchmark, or one of another protocol.
    """
    settings = read_settings(folder)
    build = prepare_build(settings.preset, None, None, torch.device("cpu"))
    return Benchmark(build, settings, folder, left_out={})


def compare_behaviour(benchmark: Benchmark, systems: Sequence[str]) -> tuple[dict[str, Any], list[NounMaps]]:
    """Return the record of the base and the systems, and the maps of the prompts in the figure.

    Differences are those of the first system to each other one, on the same prompts.

    Raises:
        ConfigError: a system is not evaluated in the folder, or too few of its validation prompts have two nouns.
        LLMDiffError: a system has no trained model in the folder.
    """
    rows = [row for row in benchmark.validation.prompts if isinstance(row, ScenePrompt)]
    nouns = two_nouns(rows)
    if len(nouns) < _SHOWN:
        raise ConfigError(
            f"validation_prompts is {benchmark.settings.validation_prompts}: {len(nouns)} of these prompts have two "
            f"nouns, expected at least {_SHOWN}; use a benchmark with more"
        )
    suite: dict[str, dict[str, NDArray[np.float64]]] = {}
    exact: dict[str, dict[str, NDArray[np.float64]]] = {}
    told: dict[str, dict[str, NDArray[np.float64]]] = {}
    seen: dict[str, dict[str, NDArray[np.float64]]] = {}
    shown: list[NounMaps] = []
    from_base = None
    names = list(dict.fromkeys((BASE, *systems)))
    for name in names:
        if not benchmark.is_drawn(name, 0):
            raise ConfigError(
                f"{benchmark.folder} has no evaluation of {name!r} with seed 0: run llmdiff-lab benchmark with "
                f"--rivals {name} first"
            )
    drawers = {name: benchmark.drawer(name, 0) for name in names}
    for name, drawer in drawers.items():
        suite[name] = {"exact": read_run(benchmark.trainings.place(name, 0), name, 0).figure(EXACT)}
        exact[name] = {f"{scale:g}": benchmark.validation_exact(name, scale) for scale in SCALES}
        found = predictions(drawer.pipe, drawer.attached, rows)
        from_base = found if from_base is None else from_base
        told[name] = guidance_figures(found, from_base)
        settings = benchmark.settings
        with drawer.attached():
            maps = [
                draw_noun_maps(
                    drawer.pipe,
                    drawer.conditioning,
                    row,
                    steps=settings.drawing_steps,
                    guidance_scale=settings.guidance_scale,
                )
                for row in nouns
            ]
        for kind in maps[0].maps:
            label = name if kind == "its own" else f"{name}, {kind}"
            seen[label] = read_noun_figures(benchmark.scorer.checker, maps, kind)
        shown += maps[:_SHOWN]
    record = {
        "scenes": len(rows),
        "prompts of two nouns": len(nouns),
        "settings": {name: getattr(settings, name) for name in ("drawing_steps", "guidance_scale")},
        "suite": _summary(suite, systems[0]),
        "exact by guidance scale": _summary(exact, systems[0]),
        "guidance": _summary(told, systems[0]),
        "attention": _summary(seen, systems[0] if systems[0] in seen else f"{systems[0]}, both"),
    }
    return record, shown


def _summary(values: Values, first: str) -> dict[str, Any]:
    """Return means, and differences of the first system to the others, with intervals over prompts."""
    means = {
        label: {name: _interval(figure) for name, figure in figures.items()}
        for label, figures in values.items()
    }
    differences = {
        label: {name: _difference(values[first][name], figure) for name, figure in figures.items()}
        for label, figures in values.items()
        if label != first
    }
    return {"means": means, f"{first} minus": differences}


def _interval(values: NDArray[np.float64]) -> dict[str, Any] | None:
    known = values[~np.isnan(values)]
    return asdict(bootstrap_mean(known)) if len(known) else None


def _difference(ours: NDArray[np.float64], other: NDArray[np.float64]) -> dict[str, Any] | None:
    known = ~np.isnan(ours) & ~np.isnan(other)
    return asdict(paired_difference(ours[known], other[known])) if known.any() else None


def behaviour_tables(record: Mapping[str, Any]) -> str:
    """Return the record's means as Markdown."""
    heads = {
        "exact": "exact match",
        **{f"{scale:g}": f"guidance {scale:g}" for scale in SCALES},
        **guidance.FIGURES,
        **attention.FIGURES,
    }
    picture = "![Pictures of the base and of each system, with their attention to two nouns](behaviour.png)"
    parts = [f"Made with `{record['command']}`", picture]
    for title, about in _SECTIONS.items():
        means = record[title]["means"]
        names = list(next(iter(means.values())))
        rows = [["system", *(heads[name] for name in names)]]
        rows += [
            [label, *(_cell(figures[name], name, title) for name in names)]
            for label, figures in means.items()
        ]
        parts += [about.format(**record), markdown_table(rows)]
    return "\n\n".join(parts) + "\n"


_SECTIONS = {
    "suite": (
        "Prompts of the benchmark's suite drawn exactly right, %. All intervals here are 95 % bootstrap intervals over "
        "prompts."
    ),
    "exact by guidance scale": (
        "Prompts drawn exactly right, %, by guidance scale: {scenes} prompts that are not in the suite."
    ),
    "guidance": (
        "The denoiser's predictions for the noisy scenes of these prompts, at 8 noise levels, compared with those "
        "under the base's own text encoder. Guidance is the prediction under the caption minus that under the blank "
        "prompt; each difference is squared and divided by the base's squared guidance."
    ),
    "attention": (
        "Attention maps, means over heads, layers and steps, while {prompts of two nouns} prompts of two things are "
        "drawn. Attention at a thing is that inside its square divided by the mean of the picture, where both things "
        "are seen once; overlap is 1 for equal maps; order is right if the maps' centres lie as the prompt says."
    ),
}


def _cell(figures: Mapping[str, Any] | None, name: str, title: str) -> str:
    if figures is None:
        return "-"
    return percent(figures) if name in _PERCENT or title.startswith("exact") else figure_text(figures)


def behaviour_figure(systems: Sequence[str], shown: Sequence[NounMaps]) -> Any:
    """Return a matplotlib figure: for each system and prompt the picture and the maps of its two nouns."""
    from matplotlib.figure import Figure

    names = dict.fromkeys((BASE, *systems))
    width = 3 * _SHOWN
    figure = Figure(figsize=(1.9 * width, 2.1 * len(names)), layout="constrained")
    axes = figure.subplots(len(names), width, squeeze=False)
    for row, name in enumerate(names):
        for column in range(_SHOWN):
            one = shown[_SHOWN * row + column]
            maps = one.maps.get("both", next(iter(one.maps.values())))
            cells = axes[row, 3 * column : 3 * column + 3]
            cells[0].imshow(one.picture)
            cells[0].set_title(name if row else f"{one.row.prompt}\n{name}", fontsize=7, loc="left")
            for cell, thing in zip(cells[1:], one.row.expected.things, strict=True):
                place = one.noun(thing.name)
                if place is not None:
                    cell.imshow(maps[place], cmap="magma")
                cell.set_title(thing.name, fontsize=8)
    for cell in axes.flat:
        cell.set_axis_off()
    return figure


def main(arguments: Sequence[str]) -> str:
    """Compare the systems, write the files, and return the tables as Markdown.

    Raises:
        ConfigError: there are not at least three arguments, or the folder has no benchmark.
        LLMDiffError: a system has no trained model in the folder.
    """
    if len(arguments) < 3:
        raise ConfigError(f"got {len(arguments)} arguments, expected FOLDER OUT SYSTEM [SYSTEM ...]")
    check_extra("benchmark", "matplotlib", "peft")
    out = writable_folder(Path(arguments[1]))
    benchmark, systems = load_benchmark(Path(arguments[0])), list(arguments[2:])
    found, shown = compare_behaviour(benchmark, systems)
    record = provenance(shlex.join(["python", "-m", "llmdiff_lab.comparison.behaviour", *arguments])) | found
    tables = behaviour_tables(record)
    save_record("behaviour", record, tables, behaviour_figure(systems, shown), out)
    return tables


if __name__ == "__main__":
    try:
        print(main(sys.argv[1:]))
    except LLMDiffError as error:
        raise SystemExit(f"error: {error}") from None
