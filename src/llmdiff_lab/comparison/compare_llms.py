"""Train the same adapter on several LLMs to compare accuracy by the LLM's size; resumable.

OUT/base/   the base, measured once        OUT/llms/LLM/   a benchmark of one system each, with its report.html
OUT/llms/LLM/llm.json   the LLM's size and speed
OUT/compare-llms.json  OUT/compare-llms.md  OUT/compare-llms.png  OUT/compare-llms.html
"""

import gc
import json
import re
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from llmdiff.environment import provenance
from llmdiff.errors import ConfigError
from llmdiff.evaluation.suites.scenes import scene_prompts
from llmdiff.files import read_json, writable_folder, write_whole
from llmdiff.language.encoding import ContextEncoding
from llmdiff.language.llm import DecoderLLM
from llmdiff_lab.comparison.protocol_notes import protocol_notes
from llmdiff_lab.comparison.run import Benchmark
from llmdiff_lab.comparison.runs import Exact, exact_by_prompt, read_run
from llmdiff_lab.comparison.settings import BenchmarkSettings, plain_settings, settings_like
from llmdiff_lab.comparison.summary import differences, hardware
from llmdiff_lab.comparison.systems import BASE
from llmdiff_lab.rivals.registry import reader_of
from llmdiff_lab.world_build.build import Build
from llmdiff_lab.world_build.presets import Preset, find_preset

_SEEN: Literal["seen"] = "seen"
_TIMED_PROMPTS = 16


def comparison_settings(
    preset_name: str,
    *,
    system: str = "guided",
    steps: int | None = None,
    text_steps: int | None = None,
    **settings: Any,
) -> BenchmarkSettings:
    """Return the settings of a comparison, see `settings_like`; None means the preset's value.

    Raises:
        ConfigError: the preset or the system is unknown, or a number is out of range.
    """
    preset = find_preset(preset_name)
    from_text = preset.adapter_gain_steps + preset.adapter_warm_steps
    return settings_like(
        preset,
        rivals=(system,),
        steps=steps or preset.adapter_steps,
        text_steps=from_text if text_steps is None else text_steps,
        **{"seeds": 1, **settings},
    )


def compare_llms(
    build: Build,
    out: Path,
    llms: Sequence[str],
    settings: BenchmarkSettings,
    *,
    command: str,
) -> dict[str, Any]:
    """Do the missing trainings and drawings, with progress bars, and return the report.

    `settings` apply to every LLM, except for `llm`; their only rival is trained on each LLM. All LLMs are loaded and
    timed before the first training, so that a missing one raises an error at once.

    Raises:
        ConfigError: there are no LLMs or two of the same name, or `out` has a comparison with other settings.
        LLMNotFoundError, UnsupportedLLMError: an LLM is not available or not supported.
        OutputError: `out` cannot be written.
    """
    folders = _folders(llms, writable_folder(out) / "llms")
    (system,) = settings.rivals
    if reader_of(system) != "llm":
        raise ConfigError(f"system {system!r} does not read an LLM: choose one that does, such as guided")
    sizes = {name: _size_and_speed(name, place, build) for name, place in folders.items()}
    base = Benchmark(build, replace(settings, rivals=(BASE,), seeds=1), out / "base", left_out={})
    base_figures = base.run(command=command)["systems"][BASE]
    base_right = _right(out / "base", BASE, 1)
    rows: dict[str, dict[str, Any]] = {}
    first: dict[str, Exact] | None = None
    for name in sorted(llms, key=lambda one: sizes[one]["parameters"]):
        benchmark = Benchmark(build, replace(settings, llm=name), folders[name], left_out={})
        figures = benchmark.run(command=command)["systems"][system]
        right = _right(folders[name], system, settings.seeds)
        first = right if first is None else first
        rows[name] = {
            **sizes[name],
            **{key: figures[key] for key in ("overall", "held_out", "splits", "parts", "cost", "seeds")},
            "interval_over": figures["interval_over"],
            "held_out_loss": figures["held_out_loss"],
            "differences_to_base": differences(right, base_right),
            "differences_to_smallest": None if right is first else differences(right, first),
        }
        del benchmark
        gc.collect()  # the next LLM needs the memory
    return {
        "system": system,
        "llms": rows,
        "base": {key: base_figures[key] for key in ("overall", "held_out", "splits", "parts")},
        "settings": {key: value for key, value in plain_settings(settings).items() if key != "llm"},
        "treatment": protocol_notes(settings),
        "hardware": hardware(),
        **provenance(command),
    }


def _folders(llms: Sequence[str], parent: Path) -> dict[str, Path]:
    """Return a folder for every LLM, named after the last part of its name or path."""
    if not llms:
        raise ConfigError("llms: got none, expected names, folders or Hub ids, separated by commas")
    folders: dict[str, Path] = {}
    for name in llms:
        short = re.sub(r"[^\w.-]", "-", Path(name).name) or "llm"
        if parent / short in folders.values():
            raise ConfigError(
                f"llms: {name!r} is given twice, or another name has the same end: name each once"
            )
        folders[name] = parent / short
    return folders


def _size_and_speed(name: str, place: Path, build: Build) -> dict[str, Any]:
    """Return an LLM's size, and the seconds that it takes to encode one prompt; measured once."""
    kept = place / "llm.json"
    if kept.exists():
        known: dict[str, Any] = read_json(kept)
        return known
    llm = DecoderLLM.from_pretrained(name, device=build.device)
    model: Any = llm.model
    found = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "block_parameters": sum(p.numel() for block in llm.blocks for p in block.parameters()),
        "blocks": llm.num_blocks,
        "hidden_size": llm.hidden_size,
        "seconds_per_encoding": seconds_per_encoding(llm, build.preset),
    }
    write_whole(kept, json.dumps(found, indent=1) + "\n")
    return found


def seconds_per_encoding(llm: DecoderLLM, made_with: Preset) -> float:
    """Return the median time to encode one prompt alone, under the preset's template, as the adapter reads it."""
    context = ContextEncoding(
        llm.num_blocks, llm.hidden_size, lone=made_with.adapter_lone, template=made_with.adapter_template
    )
    prompts = [row.prompt for row in scene_prompts(_TIMED_PROMPTS, 0, made_with.world, splits=(_SEEN,))]
    context.encode(llm, prompts[:1])  # the template's keys and values are computed once
    seconds: list[float] = []
    for prompt in prompts:
        began = time.perf_counter()
        context.encode(llm, [prompt])
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def _right(folder: Path, system: str, seeds: int) -> dict[str, Exact]:
    places = [folder / "runs" / system / f"seed-{seed}" for seed in range(seeds)]
    return exact_by_prompt([read_run(place, system, seed) for seed, place in enumerate(places)])
