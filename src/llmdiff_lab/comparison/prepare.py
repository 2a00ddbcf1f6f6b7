"""Prepare a benchmark: a build with a base and a checker, and the available rivals."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from llmdiff.adapter.base_pipeline import packaged
from llmdiff.errors import ConfigError, MetricError, PipelineNotFoundError
from llmdiff.evaluation.metrics.kinds import Metric
from llmdiff.evaluation.metrics.loading import EMBEDDED_NAME, load_metric
from llmdiff.language.gguf import llmdiff_home
from llmdiff_lab.comparison.names import SYSTEMS, SystemName, check_names
from llmdiff_lab.comparison.run import Benchmark
from llmdiff_lab.comparison.settings import BenchmarkSettings
from llmdiff_lab.rivals.encoder import chosen_encoder
from llmdiff_lab.rivals.registry import RIVALS
from llmdiff_lab.world_build.build import Build
from llmdiff_lab.world_build.presets import CPU, preset

SHIPPED = "shipped"
_OWN_METRICS = ("siglip", "fid", "cmmd")


def prepare_build(name: str, folder: Path | None, begin: str | None, device: torch.device) -> Build:
    """Return a build with a base and a checker; build them if necessary.

    `begin` takes base and checker from "shipped" or from a folder written by the build's `--ship`. With None, the
    shipped ones are used for their own preset, and those of other presets are built.

    Raises:
        ConfigError: the preset is unknown.
        PipelineNotFoundError: `begin` is "shipped", but the package has no weights.
    """
    settings = preset(name)
    build = Build(settings, folder or llmdiff_home() / "builds" / f"openmoji-{settings.name}", device)
    if begin is None and settings.name == CPU.name and not (build.folder / "checker" / "done.json").exists():
        begin = SHIPPED
    if begin is not None:
        shipped = begin == SHIPPED
        build.begin_from(packaged("pipeline", PipelineNotFoundError).parent if shipped else Path(begin))
    build.run("checker")
    return build


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The systems to compare, their readers, and the reasons why others are left out."""

    rivals: tuple[str, ...]
    encoder: str | None
    t5: str | None
    left_out: dict[str, str]


def choose_rivals(rivals: Sequence[str] = (), *, encoder: str | None = None, t5: str | None = None) -> Choice:
    """Return the named systems, or all that can be run. `encoder` None: MiniLM if its package is installed.

    Raises:
        ConfigError: a named system is unknown or cannot be run.
    """
    check_names(rivals)
    encoder = chosen_encoder(encoder)
    missing = {
        name: f"no {row.needs} was given"
        for name, row in RIVALS.items()
        if {"encoder": encoder, "t5": t5}.get(row.needs or "", "") is None
    }
    for name in rivals:
        read = SystemName.of(name).rival
        if read in missing:
            raise ConfigError(
                f"rival {name!r} cannot be run: {missing[read]}; give one, or leave the rival out"
            )
    chosen = tuple(dict.fromkeys(rivals)) or tuple(name for name in SYSTEMS if name not in missing)
    return Choice(
        rivals=chosen,
        encoder=encoder,
        t5=t5,
        left_out={name: missing.get(name, "not selected") for name in SYSTEMS if name not in chosen},
    )


def own_metrics(build: Build) -> list[Metric]:
    """Return SigLIP score, FID and CMMD on the SigLIP of the build's scenes; empty if the build has none."""
    device = str(build.device)
    if build.preset.name == CPU.name:
        with suppress(MetricError):  # a source tree without weights
            return [load_metric(name, EMBEDDED_NAME, device=device) for name in _OWN_METRICS]
    if (build.folder / "siglip" / "done.json").exists():
        return [load_metric(name, build.folder / "siglip" / "model", device=device) for name in _OWN_METRICS]
    return []


def prepare_benchmark(
    build: Build,
    out: Path,
    choice: Choice,
    *,
    seeds: int = 3,
    llm: str | None = None,
    steps: int | None = None,
    text_steps: int = 0,
    batch: int | None = None,
    captions: int | None = None,
    learning_rates: Sequence[float] = (),
    search_steps: int = 0,
    prompts_per_split: int = 100,
    drawing_steps: int = 20,
    guidance_scale: float = 3.0,
    guidance_scales: Sequence[float] = (),
    validation_prompts: int = 20,
    metrics: Sequence[Metric] | None = None,
) -> Benchmark:
    """Return the benchmark, to run or resume. None means the preset's value, for metrics `own_metrics`.

    Raises:
        ConfigError: a number is out of range, or the folder's benchmark has other settings.
        OutputError: `out` cannot be written.
    """
    made_with = build.preset
    settings = BenchmarkSettings(
        rivals=choice.rivals,
        seeds=seeds,
        preset=made_with.name,
        llm=llm or made_with.llm,
        encoder=choice.encoder,
        t5=choice.t5,
        steps=steps or made_with.adapter_gain_steps + made_with.adapter_warm_steps + made_with.adapter_steps,
        text_steps=text_steps,
        batch=batch or made_with.adapter_batch,
        captions=captions or made_with.adapter_captions,
        learning_rates=tuple(learning_rates) or (made_with.adapter_lr,),
        search_steps=search_steps,
        prompts_per_split=prompts_per_split,
        drawing_steps=drawing_steps,
        guidance_scale=guidance_scale,
        guidance_scales=tuple(guidance_scales),
        validation_prompts=validation_prompts,
    )
    chosen = own_metrics(build) if metrics is None else metrics
    return Benchmark(build, settings, out, left_out=choice.left_out, metrics=chosen)
