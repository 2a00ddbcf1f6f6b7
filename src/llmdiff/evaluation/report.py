"""An evaluation: systems draw one suite, the checker reads the pictures, figures and grids are written."""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from llmdiff.drawing.grids import save_grid
from llmdiff.drawing.models import models_digests
from llmdiff.environment import command_line, versions
from llmdiff.errors import ConfigError
from llmdiff.evaluation.drawn import (
    DRAWN_NAME,
    DrawnPictures,
    PictureJob,
    Shard,
    draw_missing,
    stored_system,
    try_each,
    with_black,
)
from llmdiff.evaluation.kept_pictures import Keep, keep_in
from llmdiff.evaluation.metrics.kinds import Metric
from llmdiff.evaluation.metrics.tally import Tally
from llmdiff.evaluation.scenes_check import SceneChecker
from llmdiff.evaluation.scenes_metrics import add_metrics
from llmdiff.evaluation.suites import ScenePrompt, scenes_suite
from llmdiff.evaluation.summary import summarise
from llmdiff.evaluation.systems import System, controller_systems
from llmdiff.evaluation.tables import report_tables
from llmdiff.evaluation.verdicts import SeenScene, Verdict, verdict
from llmdiff.files import writable_folder, write_whole
from llmdiff.openmoji.contents import SPLIT_MEANINGS, World

PICTURES_NAME = "pictures"
_log = logging.getLogger(__name__)
_GRID_PICTURES, _GRID_COLUMNS = 24, 6


@dataclass(frozen=True, kw_only=True)
class SystemRun:
    """What one system drew for a suite: what was seen, the verdicts, and the first pictures of every split.

    Fields:
        failed: how many could not be drawn; they are black, and so not as asked for.
    Units: `seconds_per_image` in seconds of wall-clock time.
    """

    seen: tuple[SeenScene, ...]
    verdicts: tuple[Verdict, ...]
    pictures: Mapping[str, NDArray[np.uint8]]
    seconds_per_image: float
    failed: int = 0


def evaluate_scenes(
    controller: Any,
    prompts_per_split: int,
    out: str | Path,
    *,
    scale: float | None = None,
    steps: int = 20,
    guidance_scale: float = 3.0,
    batch: int = 16,
    seed: int = 0,
    device: str = "cpu",
    checker: SceneChecker | str | Path = "openmoji",
    more_systems: Mapping[str, System] | None = None,
    metrics: Sequence[Metric] = (),
    shard: Shard | None = None,
    keep_pictures: bool = False,
    command: str | None = None,
) -> dict[str, Any]:
    """The report of a controller's base pipeline (`base`) against the same one with the LLM attached (`llm`).

    `scale` is that of `attach`; None: the adapter's own. With a shard, pictures are kept in `out`, and one that is
    there is not drawn again; one of several only draws its share, and its report is empty. Without one, what shards
    have drawn there is used, and missing pictures are drawn.

    Raises:
        OutputError: `out` cannot be written; nothing is drawn then.
        CorruptWeightsError: the checker, the base pipeline or the adapter cannot be read.
        ConfigError: `prompts_per_split` is below 1.
    """
    folder = writable_folder(out)
    if not isinstance(checker, SceneChecker):
        checker = SceneChecker.from_pretrained(checker)
    checker.to(device)
    suite = scenes_suite(prompts_per_split, seed, World(objects=checker.objects))
    pipe = controller.load_pipeline(device=device)
    systems = controller_systems(
        controller, pipe, scale=scale, steps=steps, guidance_scale=guidance_scale, batch=batch
    ) | dict(more_systems or {})
    settings: dict[str, Any] = {
        "steps": steps,
        "guidance_scale": guidance_scale,
        "suite_seed": seed,
        "device": device,
        "scale": controller.scale if scale is None else scale,
        "llm": controller.llm.id,
        **_asked(controller),
        "base_model": controller.adapter.config.base_model_id,
    }
    failed, seconds = None, None
    if shard is not None or (folder / DRAWN_NAME).is_dir():
        store, jobs = DrawnPictures(folder), _jobs(suite)
        made_with = settings | {"prompts": prompts_per_split, **models_digests(controller, pipe)}
        del made_with["device"]  # shards may run on different ones
        store.check_settings(made_with | {"suite": "scenes"})
        draw_missing(systems, [[job] for job in jobs], store, batch=batch, shard=shard)
        if shard is not None and shard.count > 1:
            return {}
        failed = {name: len(store.failed(name, jobs)) for name in systems}
        seconds = {name: store.seconds_per_image(name, jobs) for name in systems}
        systems = {name: stored_system(store, name, jobs) for name in systems}
    return evaluate_systems(
        systems,
        suite,
        checker,
        folder,
        batch=batch,
        settings=settings,
        metrics=metrics,
        failed=failed,
        seconds_per_image=seconds,
        keep_pictures=keep_pictures,
        command=command,
    )


def evaluate_systems(
    systems: Mapping[str, System],
    suite: Sequence[ScenePrompt],
    checker: SceneChecker,
    out: str | Path,
    *,
    batch: int = 16,
    settings: Mapping[str, Any] | None = None,
    metrics: Sequence[Metric] = (),
    failed: Mapping[str, int] | None = None,
    seconds_per_image: Mapping[str, float] | None = None,
    keep_pictures: bool = False,
    command: str | None = None,
) -> dict[str, Any]:
    """The report of these systems over a suite, with prompts and seeds the same for all.

    `metrics` are measured besides; those of sets against renders of the suite's own scenes. `failed` and
    `seconds_per_image` are for systems whose pictures were drawn before.

    Also written to `out`: report.json, report.md, verdicts.jsonl and grids/SPLIT-SYSTEM.png; with
    `keep_pictures` every picture too, as pictures/SYSTEM/NUMBER.png, for `llmdiff-lab study create`.

    Raises:
        OutputError: `out` cannot be written; nothing is drawn then.
        ConfigError: no systems or no prompts.
        LLMDiffError: a system gave something else than one picture for every prompt.
    """
    if not systems or not suite:
        raise ConfigError(
            f"systems, suite: got {len(systems)} and {len(suite)}, expected at least one of each"
        )
    folder = writable_folder(out)
    tallies = {name: Tally(metrics) for name in systems}
    runs: dict[str, SystemRun] = {}
    for name, system in systems.items():
        facts = {"system": name, **(settings or {})}
        keep = keep_in(folder / PICTURES_NAME / name, facts) if keep_pictures else None
        watch: list[Keep] = [tallies[name], keep] if keep else [tallies[name]]
        runs[name] = run_system(name, system, suite, checker, batch=batch, watch=watch)
        _save_grids(folder / "grids", name, suite, runs[name])
    report: dict[str, Any] = {
        "systems": summarise(suite, {name: run.verdicts for name, run in runs.items()}),
        "suite": {
            "name": "scenes",
            "prompts": len(suite),
            "splits": {split: SPLIT_MEANINGS[split] for split in dict.fromkeys(row.split for row in suite)},
        },
        "settings": dict(settings or {}),
        "checker": dict(checker.figures),
        "seconds_per_image": {
            name: round((seconds_per_image or {}).get(name, run.seconds_per_image), 4)
            for name, run in runs.items()
        },
        "failed_pictures": dict(failed or {name: run.failed for name, run in runs.items()}),
        "versions": versions(),
        "command": command or command_line(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if metrics:
        report["metrics"] = {metric.name: metric.model_id for metric in metrics}
        add_metrics(report["systems"], tallies, suite)
    write_whole(folder / "verdicts.jsonl", "".join(f"{line}\n" for line in _verdict_lines(suite, runs)))
    write_whole(folder / "report.md", report_tables(report, markdown=True))
    write_whole(folder / "report.json", json.dumps(report, indent=1) + "\n")
    return report


def run_system(
    name: str,
    system: System,
    suite: Sequence[ScenePrompt],
    checker: SceneChecker,
    *,
    batch: int = 16,
    watch: Sequence[Keep] = (),
) -> SystemRun:
    """What a system draws for a suite, read by the checker; shows a progress bar. `watch` are given every picture.

    A picture that cannot be drawn is black, counted and logged. Where none can from the start, that is an error.

    Raises:
        LLMDiffError: the system gave something else than one picture for every prompt.
        Exception: what the system raised, where it could draw nothing.
    """
    failures: list[Exception] = []
    shape: tuple[int, ...] | None = None
    seen: list[SeenScene] = []
    kept: dict[str, list[NDArray[np.uint8]]] = {}
    drawing_s = 0.0
    with tqdm(total=len(suite), desc=name, unit="image", mininterval=1) as bar:
        for start in range(0, len(suite), batch):
            rows = suite[start : start + batch]
            began = time.monotonic()
            drawn = try_each(name, system, [row.prompt for row in rows], [row.seed for row in rows])
            drawing_s += time.monotonic() - began
            for row, one in zip(rows, drawn, strict=True):
                if isinstance(one, Exception):
                    failures.append(one)
                    _log.warning("system %s: %r could not be drawn: %s", name, row.prompt, one)
            if len(failures) == len(seen) + len(rows):
                raise failures[0]
            images = with_black([None if isinstance(one, Exception) else one for one in drawn], shape=shape)
            shape = images.shape[1:]
            for look in watch:
                look(rows, images)
            seen += checker.read(images)
            for row, image in zip(rows, images, strict=True):
                pictures = kept.setdefault(row.split, [])
                if len(pictures) < _GRID_PICTURES:
                    pictures.append(image)
            bar.update(len(rows))
    return SystemRun(
        seen=tuple(seen),
        verdicts=tuple(verdict(row.content, one) for row, one in zip(suite, seen, strict=True)),
        pictures={split: np.stack(pictures) for split, pictures in kept.items()},
        seconds_per_image=drawing_s / len(suite),
        failed=len(failures),
    )


def _jobs(suite: Sequence[ScenePrompt]) -> list[PictureJob]:
    return [
        PictureJob(name=f"{index:05d}", prompt=row.prompt, seed=row.seed, facts={"split": row.split})
        for index, row in enumerate(suite)
    ]


def _verdict_lines(suite: Sequence[ScenePrompt], runs: Mapping[str, SystemRun]) -> list[str]:
    return [
        json.dumps(
            {
                "system": name,
                **asdict(row),
                "seen": asdict(seen),
                "verdict": asdict(result) | {"exact": result.exact},
            }
        )
        for name, run in runs.items()
        for row, seen, result in zip(suite, run.seen, run.verdicts, strict=True)
    ]


def _save_grids(folder: Path, name: str, suite: Sequence[ScenePrompt], run: SystemRun) -> None:
    for split, pictures in run.pictures.items():
        labels = [
            f"{'RIGHT' if result.exact else 'WRONG'}: {row.prompt}"
            for row, result in zip(suite, run.verdicts, strict=True)
            if row.split == split
        ][: len(pictures)]
        save_grid(pictures, labels, folder / f"{split}-{name}.png", columns=_GRID_COLUMNS)


def _asked(controller: Any) -> dict[str, Any]:
    """What a closed LLM that is asked about every prompt adds to the settings; nothing where none is."""
    advice = controller.llm.advice
    if advice is None:
        return {}
    settings = advice.closed.settings
    return {"via": settings.model, "via_answers": settings.answers, "via_keep": advice.keep}
