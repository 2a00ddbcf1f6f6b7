"""Train the checker on renders of all kinds of scenes with the distortions of generated pictures."""

import random
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from llmdiff.training.loop import StepPart, train
from llmdiff.training.loop_config import LoopConfig
from llmdiff.world.artwork import picture
from llmdiff.world.checker import (
    CELL_PX,
    GRID,
    TYPICAL_SHARE,
    CellOutput,
    CheckerOutput,
    WorldChecker,
    to_checker_input,
)
from llmdiff.world.places import places
from llmdiff.world.rendering import SCENE_SIZE_PX, render, sprite_box
from llmdiff.world.scenes import Placed, Scene, World, any_scene, laid_out
from llmdiff.world.things import BACKGROUNDS, COLOURS, STYLES, Style
from llmdiff_lab.world_build.spoiling import mush, spoil, to_uint8

# Cells within the reach of a centre are positive; those between reach and margin are ignored.
_REACH_PX, _MARGIN_PX = 6.4, 11.0
_IGNORE = -1
_MUSH_SHARE = 0.06
_EVEN_STYLES_SHARE, _TURNED_SHARE = 0.5, 0.12
_STREAM = 9
# Number of steps whose pictures are rendered in advance, enough for many processes.
_AHEAD = 32


def train_checker(
    world: World,
    *,
    steps: int,
    batch: int,
    lr: float,
    folder: Path,
    device: torch.device,
    seed: int = 0,
    channels: int = 64,
    precision: Literal["no", "bf16"] = "bf16",
    pool: ProcessPoolExecutor | None = None,
    checkpoint_every_s: float = 180.0,
) -> WorldChecker:
    """Return a trained checker of this world; an interrupted training resumes in the next call.

    The checker is trained on held-out contents too, because the evaluation may show them. `pool`, from
    `llmdiff.world.rendering.renderers`, renders the next steps in parallel, with the same results.
    """
    torch.manual_seed(seed)
    checker = WorldChecker(world, channels=channels).to(device)
    checker.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    batches = StepBatches(world, seed, batch, pool)

    def step_loss(part: StepPart) -> tuple[Tensor, dict[str, float]]:
        scenes, images = batches.of_step(part.step)
        pixels = to_checker_input(images).to(device)
        losses = _losses(checker, checker(pixels), targets_of(checker, scenes, device))
        return torch.stack(list(losses.values())).sum(), {k: float(v.detach()) for k, v in losses.items()}

    config = LoopConfig(
        steps=steps,
        learning_rate=lr,
        seed=seed,
        lr_schedule="trapezoid",  # so that a run can be prolonged
        ema_horizon=100,
        precision=precision,
        checkpoint_every_s=checkpoint_every_s,
    )
    train({"checker": checker}, step_loss, config, folder, title="checker", muon=_uses_muon)
    return checker.eval()


def training_batch(
    world: World, seed: int, step: int, count: int
) -> tuple[list[Scene | None], NDArray[np.uint8]]:
    """Return the scenes of a step, None for an empty picture, and their distorted pictures.

    Shapes: (count, H, W, 3) uint8.
    """
    rng = np.random.default_rng([seed, _STREAM, step])
    scenes = training_scenes(world, random.Random(int(rng.integers(2**62))), count)
    pixels = spoil(np.stack([render(scene) for scene in scenes]), rng)
    is_mush = torch.from_numpy(rng.random(count) < _MUSH_SHARE)
    pixels[is_mush] = mush(pixels[is_mush], pixels.roll(1, dims=0)[is_mush], rng)
    kept = [None if gone else scene for scene, gone in zip(scenes, is_mush.tolist(), strict=True)]
    return kept, to_uint8(pixels)


class StepBatches:
    """The batches of all steps; a pool renders the next ones in advance."""

    def __init__(self, world: World, seed: int, count: int, pool: ProcessPoolExecutor | None) -> None:
        self._world, self._seed, self._count, self._pool = world, seed, count, pool
        self._coming: dict[int, Future[tuple[list[Scene | None], NDArray[np.uint8]]]] = {}

    def of_step(self, step: int) -> tuple[list[Scene | None], NDArray[np.uint8]]:
        """Return the scenes and pictures of a step, as `training_batch` does."""
        if self._pool is None:
            return training_batch(self._world, self._seed, step, self._count)
        for later in range(step, step + _AHEAD):
            if later not in self._coming:
                self._coming[later] = self._pool.submit(
                    _in_worker, self._world, self._seed, later, self._count
                )
        return self._coming.pop(step).result()


def _in_worker(
    world: World, seed: int, step: int, count: int
) -> tuple[list[Scene | None], NDArray[np.uint8]]:
    torch.set_num_threads(1)  # there is a process for each core
    return training_batch(world, seed, step, count)


def training_scenes(world: World, rng: random.Random, count: int) -> list[Scene]:
    """Return scenes of all kinds, held-out parts included; rare styles and things upside down more often."""
    scenes = []
    for _ in range(count):
        chosen = world
        if rng.random() < _EVEN_STYLES_SHARE:
            chosen = _of_style(world, rng.choice(world.styles))
        scene = any_scene(chosen, rng)
        if scene.relation != "group":
            turned = (rng.random() < _TURNED_SHARE and placed.thing.turns for placed in scene.things)
            things = [
                replace(placed, upside_down=placed.upside_down or turn)
                for placed, turn in zip(scene.things, turned, strict=True)
            ]
            scene = replace(scene, things=tuple(things))
        scenes.append(laid_out(scene, rng))
    return scenes


@dataclass(frozen=True, kw_only=True)
class Targets:
    """The checker's targets for a batch of pictures.

    Shapes: presence (B, 16, 16): 1, 0, or -1 for ignored cells; cells (3, N): picture, row and column of each cell
    with a thing; kinds, colours, styles, turned (N,), -1 if ignored; box (N, 4); behind (B,).
    """

    presence: Tensor
    cells: Tensor
    kinds: Tensor
    colours: Tensor
    styles: Tensor
    turned: Tensor
    box: Tensor
    behind: Tensor


def targets_of(checker: WorldChecker, scenes: Sequence[Scene | None], device: torch.device) -> Targets:
    """Return the targets of renders of these scenes; None is an empty picture."""
    presence = np.zeros((len(scenes), GRID, GRID), dtype=np.int64)
    kind_of = {kind: i for i, kind in enumerate(checker.kinds)}
    colours, behinds = list(COLOURS), [*places(), *BACKGROUNDS]
    centres = (np.arange(GRID) + 0.5) * CELL_PX
    cells: list[tuple[int, int, int]] = []
    rows: list[tuple[int, int, int, int]] = []
    boxes: list[tuple[float, float, float, float]] = []
    for i, scene in enumerate(scenes):
        for placed in scene.things if scene else ():
            left, top, side = sprite_box(placed)
            x, y = left + side / 2, top + side / 2
            width, height = (share * side / SCENE_SIZE_PX for share in inked_shares(placed))
            distance = np.hypot(centres[None, :] - x, centres[:, None] - y)
            presence[i][(distance < _MARGIN_PX) & (presence[i] == 0)] = _IGNORE
            painted = placed.thing.colours and placed.style != "line"
            colour = colours.index(placed.colour) if placed.colour else len(colours)
            for row, column in np.argwhere(distance < _REACH_PX).tolist():
                presence[i, row, column] = 1
                cells.append((i, row, column))
                rows.append((
                    kind_of[placed.name, placed.who],
                    colour if painted else _IGNORE,
                    STYLES.index(placed.style),
                    int(placed.upside_down) if placed.thing.turns else _IGNORE,
                ))  # fmt: skip
                boxes.append((
                    x / CELL_PX - column - 0.5,
                    y / CELL_PX - row - 0.5,
                    float(np.log(width / TYPICAL_SHARE)),
                    float(np.log(height / TYPICAL_SHARE)),
                ))  # fmt: skip
    per_cell = torch.tensor(rows, dtype=torch.long).view(-1, 4).T
    behind = [
        behinds.index(scene.place or scene.background or "white") if scene else _IGNORE for scene in scenes
    ]
    found = Targets(
        presence=torch.from_numpy(presence),
        cells=torch.tensor(cells, dtype=torch.long).view(-1, 3).T,
        kinds=per_cell[0],
        colours=per_cell[1],
        styles=per_cell[2],
        turned=per_cell[3],
        box=torch.tensor(boxes).view(-1, 4),
        behind=torch.tensor(behind),
    )
    return Targets(**{field.name: getattr(found, field.name).to(device) for field in fields(Targets)})


def inked_shares(placed: Placed) -> tuple[float, float]:
    """Return the width and height of a thing's visible part as shares of its square."""
    return _inked(placed.name, placed.style, placed.who)


@lru_cache(maxsize=8192)
def _inked(name: str, style: str, who: str | None) -> tuple[float, float]:
    alpha = picture(name, style, None, who)[..., 3]
    across, down = (int(np.ptp(np.flatnonzero(alpha.max(axis) > 5))) + 1 for axis in (0, 1))
    return across / alpha.shape[1], down / alpha.shape[0]


def _uses_muon(name: str) -> bool:
    """Return whether Muon optimises a matrix: those between the first layer and the heads."""
    return name.split(".")[1] in ("fine", "middle", "coarse", "up", "join")


@lru_cache
def _of_style(world: World, style: Style) -> World:
    return replace(world, styles=(style,))


def _losses(checker: WorldChecker, output: CheckerOutput, targets: Targets) -> dict[str, Tensor]:
    picture, row, column = targets.cells
    said: CellOutput = checker.describe(output.features[picture, :, row, column])
    counts = (targets.presence >= 0).float()
    presence = F.binary_cross_entropy_with_logits(
        output.presence.float(), targets.presence.clamp(min=0).float(), counts, reduction="sum"
    )
    asked_turned = (targets.turned >= 0).float()
    turned = F.binary_cross_entropy_with_logits(
        said.turned.float(), targets.turned.clamp(min=0).float(), asked_turned, reduction="sum"
    )
    filled = max(len(targets.kinds), 1)
    return {
        "presence": presence / filled,
        "kinds": _summed(said.kinds, targets.kinds) / filled,
        "colours": _summed(said.colours, targets.colours) / filled,
        "styles": 0.3 * _summed(said.styles, targets.styles) / filled,
        "turned": 0.5 * turned / filled,
        "box": F.smooth_l1_loss(said.box.float(), targets.box, beta=0.1, reduction="sum") / filled,
        "behind": 0.5 * _summed(output.behind, targets.behind) / len(targets.behind),
    }


def _summed(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), target, ignore_index=_IGNORE, reduction="sum")
