"""Prepare a benchmark: a build with a base and a checker, and the available rivals."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from llmdiff.adapter.base_pipeline import EMBEDDED_NAME
from llmdiff.errors import ConfigError, MetricError
from llmdiff.evaluation.metrics.kinds import Metric
from llmdiff.evaluation.metrics.loading import load_metric
from llmdiff_lab.comparison.run import Benchmark
from llmdiff_lab.comparison.settings import settings_like
from llmdiff_lab.comparison.systems import SYSTEMS, Variant, system_of
from llmdiff_lab.rivals.encoder import chosen_encoder
from llmdiff_lab.rivals.registry import RIVALS, reader_of
from llmdiff_lab.world_build.build import Build
from llmdiff_lab.world_build.presets import CPU, find_preset
from llmdiff_lab.world_build.slices import build_folder, shipped_folder, take_fluent
from llmdiff_lab.world_build.stages import is_done

_OWN_METRICS = ("siglip", "fid", "cmmd")


def prepare_build(
    name: str, folder: Path | None, begin: str | None, device: torch.device, *, fluent: Path | None = None
) -> Build:
    """Return a build with a base and a checker; build them if necessary.

    `begin` takes base and checker from "shipped" or from a folder written by the build's `--ship`. With None, the
    shipped ones are used for their own preset, and those of other presets are built. `fluent` is the folder of the 3D
    drawings, for worlds with that style.

    Raises:
        ConfigError: the preset is unknown.
        PipelineNotFoundError: `begin` is "shipped", but the package has no weights.
    """
    preset = find_preset(name)
    take_fluent(preset, fluent)
    build = Build(preset, build_folder(preset, folder), device)
    if begin is None and preset.name == CPU.name and not is_done(build.folder / "checker"):
        begin = "shipped"
    if begin is not None:
        build.begin_from(shipped_folder(begin))
    build.pipeline()
    build.checker()
    return build


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The systems to compare, their readers, and the reasons why others are left out."""

    rivals: tuple[str, ...]
    encoder: str | None
    t5: str | None
    left_out: dict[str, str]
    variants: Mapping[str, Variant] = field(default_factory=dict)


def choose_rivals(
    rivals: Sequence[str] = (),
    *,
    encoder: str | None = None,
    t5: str | None = None,
    variants: Mapping[str, Variant] | None = None,
) -> Choice:
    """Return the named systems, or all that can be run. `encoder` None: MiniLM if its package is installed.

    `variants` may be named too; without names all of them are taken, besides the rivals.

    Raises:
        ConfigError: a named system is unknown or cannot be run.
    """
    variants = dict(variants or {})
    systems = [system_of(name, variants) for name in rivals]
    encoder = chosen_encoder(encoder)
    missing = {
        name: f"no {reader_of(name)} was given"
        for name in RIVALS
        if {"encoder": encoder, "t5": t5}.get(reader_of(name) or "", "") is None
    }
    for one in systems:
        if one.rival in missing:
            raise ConfigError(
                f"rival {one.name!r} cannot be run: {missing[one.rival]}; give one, or leave the rival out"
            )
    chosen = tuple(dict.fromkeys(rivals)) or (
        *(name for name in SYSTEMS if name not in missing),
        *(name for name, one in variants.items() if one.rival not in missing),
    )
    return Choice(
        rivals=chosen,
        encoder=encoder,
        t5=t5,
        variants={name: one for name, one in variants.items() if name in chosen},
        left_out={name: missing.get(name, "not selected") for name in SYSTEMS if name not in chosen},
    )


def own_metrics(build: Build) -> list[Metric]:
    """Return SigLIP score, FID and CMMD on the SigLIP of the build's scenes; none where it has none."""
    device = str(build.device)
    if build.preset.name == CPU.name:
        with suppress(MetricError):  # a source tree without weights
            return [load_metric(name, EMBEDDED_NAME, device=device) for name in _OWN_METRICS]
    if is_done(build.folder / "siglip"):
        return [load_metric(name, build.folder / "siglip" / "model", device=device) for name in _OWN_METRICS]
    return []


def prepare_benchmark(
    build: Build,
    out: Path,
    choice: Choice,
    *,
    steps: int | None = None,
    metrics: Sequence[Metric] | None = None,
    **settings: Any,
) -> Benchmark:
    """Return the benchmark, to run or resume. None means the preset's value, for metrics `own_metrics`.

    `settings` are those of `settings_like`.

    Raises:
        ConfigError: a number is out of range, or the folder's benchmark has other settings.
        OutputError: `out` cannot be written.
    """
    preset = build.preset
    chosen_settings = settings_like(
        preset,
        rivals=choice.rivals,
        variants=choice.variants,
        encoder=choice.encoder,
        t5=choice.t5,
        steps=steps or preset.adapter_gain_steps + preset.adapter_warm_steps + preset.adapter_steps,
        **settings,
    )
    chosen = own_metrics(build) if metrics is None else metrics
    return Benchmark(build, chosen_settings, out, left_out=choice.left_out, metrics=chosen)
