"""Run a build, all stages or one, in limited time, with its state moved between machines."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from llmdiff.adapter.base_pipeline import packaged
from llmdiff.drawing.models import usable_device
from llmdiff.errors import ConfigError, PipelineNotFoundError
from llmdiff.language.gguf import llmdiff_home
from llmdiff.training.processes import stop_requests
from llmdiff.world.artwork import use_fluent
from llmdiff_lab.world_build.build import STAGES, Build
from llmdiff_lab.world_build.pack import pack, unpack
from llmdiff_lab.world_build.presets import Preset, find_preset
from llmdiff_lab.world_build.ship import ship


def run_build(
    preset_name: str,
    out: Path | None,
    *,
    until: str | None = None,
    only: str | None = None,
    minutes: float | None = None,
    pack_to: Path | None = None,
    unpack_from: Path | None = None,
    fluent: Path | None = None,
    ship_to: Path | None = None,
    begin: str | None = None,
    device: str | None = None,
) -> None:
    """Run the stages of a build, each unless it is done; after `minutes` it saves what it has and stops.

    The state of the build is taken from `unpack_from` first and written to `pack_to` at the end, also when the time
    was up. `fluent` is the folder of the 3D drawings, which only worlds with that style need. `begin` is "shipped" or a
    folder that an earlier build was shipped to: base, checker and SigLIP are taken from there. A build that is finished
    is written to `ship_to` as the package carries it.

    Raises:
        ConfigError: no such preset, stage or device, or a stage was made with other values.
        SystemExit: the time is up; run again to resume.
    """
    preset = find_preset(preset_name)
    for option, stage in (("--until", until), ("--only", only)):
        if stage is not None and stage not in STAGES:
            raise ConfigError(f"{option}: got {stage!r}, expected one of {', '.join(STAGES)}")
    take_fluent(preset, fluent)
    folder = build_folder(preset, out)
    if unpack_from is not None:
        unpack(unpack_from, folder)
    try:
        with (
            time_limit(minutes) as stopped,
            Build(preset, folder, torch.device(usable_device(device)), stopped=stopped) as build,
        ):
            if begin is not None:
                build.begin_from(shipped_folder(begin))
            if only is not None:
                getattr(build, only)()
            else:
                build.run(until or STAGES[-1])
            if ship_to is not None:
                ship(build.pipeline(), folder, ship_to, preset)
    finally:
        if pack_to is not None:
            pack(folder, pack_to, STAGES)


def build_folder(preset: Preset, out: Path | None) -> Path:
    """Return the folder of a preset's build: `out`, or one in the cache folder."""
    return out or llmdiff_home() / "builds" / preset.name


def shipped_folder(begin: str) -> Path:
    """Return the folder of shipped weights: "shipped" is the packaged one.

    Raises:
        PipelineNotFoundError: the package has no weights.
    """
    return packaged("pipeline", PipelineNotFoundError).parent if begin == "shipped" else Path(begin)


def take_fluent(preset: Preset, folder: Path | None) -> None:
    """Set the folder of the 3D drawings for a preset that has that style.

    Raises:
        ConfigError: it has that style, and there is no folder.
    """
    if "3d" in preset.styles and folder is None:
        raise ConfigError(
            f"--fluent: got none, but preset {preset.name} draws in style 3d: pass the folder of the npm package "
            "@lobehub/fluent-emoji-3d (npm pack @lobehub/fluent-emoji-3d; tar xzf lobehub-*.tgz)"
        )
    use_fluent(folder if "3d" in preset.styles else None)


@contextmanager
def time_limit(minutes: float | None) -> Iterator[Callable[[], bool]]:
    """Return a context that stops this process after so many minutes, like SIGTERM."""
    timer = threading.Timer((minutes or 0) * 60, os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True
    with stop_requests() as stopped:
        if minutes is not None:
            timer.start()
        try:
            yield stopped
        finally:
            timer.cancel()
