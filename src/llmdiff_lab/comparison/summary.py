"""Summarise the runs of a benchmark."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llmdiff.environment import provenance
from llmdiff.evaluation.figures import metric_differences, metric_figures
from llmdiff.evaluation.statistics import over_trainings, paired_difference, rank_correlation
from llmdiff.evaluation.suites.scenes import PARTS
from llmdiff_lab.comparison.protocol_notes import protocol_notes
from llmdiff_lab.comparison.runs import EXACT, Exact, Run, exact_by_prompt, metric_names, values_by_prompt
from llmdiff_lab.comparison.settings import BenchmarkSettings, plain_settings
from llmdiff_lab.comparison.systems import BASE, System

_SEEN = "seen"
_FEWEST_SYSTEMS = 4
_RELATIONS = ("right", "swapped", "wrong")
# Our systems. The first of these that a report has is compared with all others, also in metrics; so are, by exact
# match, the rest of them and those that are trained for longer.
_OURS = ("refined-wide", "refined", "guided")
_SHARED = "{} systems at a time shared the machine: seconds are longer than those of one alone."


def summarise_runs(
    runs: Sequence[Run],
    settings: BenchmarkSettings,
    *,
    command: str,
    left_out: Mapping[str, str],
    processes: int = 1,
) -> dict[str, Any]:
    """Return the report: figures by system, costs, curves, and notes on the protocol.

    `processes` is the number of systems that ran at the same time.
    """
    names = list(dict.fromkeys(run.system for run in runs))
    by_name = {name: [run for run in runs if run.system == name] for name in names}
    systems = {name: _system(found, settings.system(name)) for name, found in by_name.items()}
    right = {name: exact_by_prompt(found) for name, found in by_name.items()}
    values = {name: values_by_prompt(found) for name, found in by_name.items()}
    ours = next((name for name in _OURS if name in right), None)
    also = [name for name in names if name != ours and settings.system(name).is_alone(_OURS)]
    for name, system in systems.items():
        if name != BASE and BASE in right:
            system["differences_to_base"] = differences(right[name], right[BASE])
        if ours is not None and name != ours:
            system["ours_above"] = differences(right[ours], right[name])
            above_it = metric_differences(values[ours], values[name])
            system["metrics_ours_above"] = metric_figures(above_it, {})["metrics"]
        above = {one: differences(right[one], right[name]) for one in also if one != name}
        if above:
            system["also_above"] = above
    first = runs[0].report
    return {
        "systems": systems,
        "prediction": predictions(systems),
        "ours": ours,
        "suite": {
            "name": first["suite"]["name"],
            "prompts": first["suite"]["prompts"],
            "splits": first["suite"]["meanings"],
        },
        "checker": first["checker"],
        "metrics": {
            name: model for run in runs for name, model in run.report["metrics"].items() if name != EXACT
        },
        "settings": plain_settings(settings),
        "treatment": protocol_notes(settings) + ([_SHARED.format(processes)] if processes > 1 else []),
        "left_out": dict(left_out),
        "hardware": hardware(),
        **provenance(command),
    }


def differences(ours: Mapping[str, Exact], other: Mapping[str, Exact]) -> dict[str, Any]:
    """Return our accuracy minus the other's: "overall", "held_out" (all splits but seen), and each split.

    Intervals are over prompts, for the mean over seeds. With several seeds, "over_seeds" has the interval over seeds,
    which are paired by index; a system with one seed is compared with every seed.
    """
    chosen = {"overall": list(ours), "held_out": [split for split in ours if split != _SEEN]}
    chosen |= {split: [split] for split in ours}
    return {
        name: _difference(
            np.concatenate([ours[split] for split in splits], axis=1),
            np.concatenate([other[split] for split in splits], axis=1),
        )
        for name, splits in chosen.items()
    }


def _difference(ours: Exact, other: Exact) -> dict[str, Any]:
    found: dict[str, Any] = asdict(paired_difference(ours.mean(0), other.mean(0)))
    seeds = {len(ours), len(other)} - {1}
    if len(seeds) == 1:
        gaps = ours.mean(1) - other.mean(1)
        found["over_seeds"] = asdict(over_trainings(list(gaps[:, None])))
    return found


def predictions(systems: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rank correlation of losses with the held-out accuracy over systems, by the loss.

    Every training counts once: systems that draw mixed with the base are left out. A loss of too few systems is left
    out, too.
    """
    losses: dict[str, dict[str, float]] = {
        "loss from captions alone": {
            name: float(np.mean([curve[-1][1] for curve in system["text_curves"]]))
            for name, system in systems.items()
            if system.get("text_curves") and all(system["text_curves"])
        },
        "loss on held-out scenes, after all steps": {
            name: float(np.mean(system["held_out_loss"]))
            for name, system in systems.items()
            if system.get("held_out_loss")
        },
    }
    found = {}
    for loss, values in losses.items():
        names = [name for name in values if "scale" not in systems[name] and "@" not in name]
        accuracies = [systems[name]["held_out"]["mean"] for name in names]
        if len(names) >= _FEWEST_SYSTEMS and len(set(accuracies)) > 1:
            found[loss] = asdict(rank_correlation([values[name] for name in names], accuracies))
    return found


def hardware() -> dict[str, Any]:
    """Return the hardware of the benchmark."""
    found: dict[str, Any] = {
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def _system(runs: Sequence[Run], system: System) -> dict[str, Any]:
    name, splits = runs[0].system, np.array(runs[0].splits)
    chosen = {split: splits == split for split in dict.fromkeys(runs[0].splits)}
    everywhere, held_out = np.ones(len(splits), dtype=bool), splits != _SEEN
    shares = {part: _over_trainings(runs, f"{EXACT}: {part}", everywhere) for part in PARTS}
    relation = {kind: _over_trainings(runs, f"{EXACT}: relation {kind}", everywhere) for kind in _RELATIONS}
    sets = [run.report["systems"][name]["sets"] for run in runs]
    metrics = metric_names(runs)

    def means(at: NDArray[np.bool_]) -> dict[str, Any]:
        found = {metric: _over_trainings(runs, metric, at) for metric in metrics}
        return {metric: figures for metric, figures in found.items() if figures is not None}

    result: dict[str, Any] = {
        "title": system.title,
        "group": system.group,
        "overall": _over_trainings(runs, EXACT, everywhere),
        "held_out": _over_trainings(runs, EXACT, held_out),
        "splits": {split: _over_trainings(runs, EXACT, at) for split, at in chosen.items()},
        "parts": {part: figures for part, figures in shares.items() if figures is not None},
        "seeds": [float(run.figure(EXACT).mean()) for run in runs],
        "failed_pictures": sum(run.report["systems"][name]["failed"] for run in runs),
        "interval_over": "seeds" if len(runs) > 1 else "prompts",
        "metrics": means(everywhere),
        "metrics_by_split": {split: means(at) for split, at in chosen.items()},
        "sets": {
            one: float(np.mean([row[one] for row in sets]))
            for one in sets[0]
            if all(one in row for row in sets)
        },
        "cost": _cost(runs),
        "curves": [[list(point) for point in run.curve] for run in runs],
        "text_curves": [[list(point) for point in run.text_curve] for run in runs],
    }
    if any(relation.values()):
        result["relation"] = {kind: figures["mean"] for kind, figures in relation.items() if figures}
    drawn_with = runs[0].report.get("settings", {})
    if "guidance_scale" in drawn_with:
        result["guidance_scale"] = drawn_with["guidance_scale"]
    if system.scale is not None:
        result["scale"] = system.scale
    if runs[0].search:
        result["search"] = dict(runs[0].search)
    for key in ("learning_rate", "held_out_loss"):
        found = [run.trained[key] for run in runs if key in run.trained]
        if found:
            result[key] = found if key == "held_out_loss" else found[0]
    return result


def _over_trainings(runs: Sequence[Run], name: str, at: NDArray[np.bool_]) -> dict[str, Any] | None:
    """Return a figure's interval over these prompts, shares clipped to 0..1; None if it applies to no prompt."""
    rows = [run.figure(name)[at] for run in runs]
    if np.isnan(rows).all():
        return None
    limits = {"low": 0.0, "high": 1.0} if name.partition(":")[0] == EXACT else {}
    return asdict(over_trainings(rows, **limits))


def _cost(runs: Sequence[Run]) -> dict[str, Any]:
    cost: dict[str, Any] = {"trained_parameters": runs[0].trained["trained_parameters"]}
    for key in ("seconds_per_step", "peak_memory_gb"):
        found = [run.trained[key] for run in runs if key in run.trained]
        cost[key] = round(float(np.mean(found)), 4) if found else None
    seconds = [run.training_seconds for run in runs if run.training_seconds is not None]
    cost["training_seconds"] = round(float(np.mean(seconds)), 1) if seconds else None
    threads = {run.trained["threads"] for run in runs if "threads" in run.trained}
    if threads:
        cost["threads"] = "/".join(map(str, sorted(threads)))
    drawing = [run.report["seconds_per_image"][run.system] for run in runs]
    cost["seconds_per_image"] = round(float(np.mean(drawing)), 4)
    return cost
