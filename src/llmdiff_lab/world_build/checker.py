"""Training of the scene checker: real renders of every split, spoilt a little as drawn pictures are."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from llmdiff.evaluation.suites.scenes_check import (
    CELL_PX,
    GRID,
    SIZES,
    CheckerOutput,
    SceneChecker,
    to_checker_input,
)
from llmdiff.evaluation.suites.verdicts import SIZE_OF_PX, verdict
from llmdiff.openmoji.contents import SPLITS, World
from llmdiff.openmoji.scenes import Content, Scene, content_of, draw, lay_out
from llmdiff.openmoji.world import BACKGROUNDS, SHAPE_COLOURS
from llmdiff.training.loop import StepPart, train
from llmdiff.training.loop_config import LoopConfig
from llmdiff_lab.world_build import spoiling
from llmdiff_lab.world_build.presets import Preset

_REACH_PX, _MARGIN_PX = 3.2, 5.5
_IGNORE = -1
_MUSH_SHARE, _CLEAN_SHARE = 0.08, 0.25


def train_checker(preset: Preset, folder: Path, device: torch.device) -> SceneChecker:
    """A trained checker; run again after a kill, the training resumes.

    The checker learns held-out pairs and colours too: it must know what the evaluation may show.
    """
    torch.manual_seed(preset.seed + 3)
    checker = SceneChecker(preset.objects).to(device)
    world = World(objects=preset.objects)

    def step_loss(part: StepPart) -> tuple[Tensor, dict[str, float]]:
        rng = part.rng(preset.seed, 9)
        _, scenes, images = real_renders(world, rng, preset.checker_batch, preset.image_size_px)
        pixels = spoil(to_checker_input(images), rng)
        mush = rng.random(len(scenes)) < _MUSH_SHARE
        if mush.any():
            nothing = spoiling.mush(pixels, pixels.roll(1, dims=0), rng)
            pixels[torch.from_numpy(mush)] = nothing[torch.from_numpy(mush)]
        output = checker(pixels.to(device))
        losses = _losses(
            output, _targets(checker, scenes, mush).to(device), torch.from_numpy(mush).to(device)
        )
        return torch.stack(list(losses.values())).sum(), {k: float(v.detach()) for k, v in losses.items()}

    config = LoopConfig(
        steps=preset.checker_steps, learning_rate=preset.checker_lr, seed=preset.seed, ema_horizon=100
    )
    train({"checker": checker}, step_loss, config, folder, title="checker")
    return checker.eval()


def held_out_exact(checker: SceneChecker, preset: Preset, count: int = 2000) -> dict[str, float]:
    """Shares of fresh renders that the checker reads exactly: in all, by part, spoilt, and by chance.

    `exact` compares everything that a render shows, background and size included; `spoilt` does so on renders
    with the blur, noise and colour shift of training; `shuffled` compares each with what the next render's
    caption asks for, the chance level; `mush` is the share of pictures of nothing in which a thing is seen.
    """
    world, rng = World(objects=preset.objects), np.random.default_rng([preset.seed, 10])
    tally: Counter[str] = Counter()
    asked_of: Counter[str] = Counter()
    for start in range(0, count, 200):
        contents, scenes, images = real_renders(world, rng, min(200, count - start), preset.image_size_px)
        asked = [full_content(content, scene) for content, scene in zip(contents, scenes, strict=True)]
        seen = checker.read(images)
        for content, one in zip(asked, seen, strict=True):
            result = verdict(content, one)
            parts = {
                name: getattr(result, name) for name in ("things", "colours", "count", "size", "background")
            }
            parts |= {"exact": result.exact, "relation": result.relation and result.relation == "right"}
            asked_of.update(name for name, part in parts.items() if part is not None)
            tally.update(name for name, part in parts.items() if part)
        pixels = to_checker_input(images)
        nothing = spoiling.mush(pixels, pixels.roll(1, dims=0), rng)
        for name, changed in (("spoilt", spoil(pixels, rng, clean_share=0.0)), ("mush", nothing)):
            again = checker.read(spoiling.to_uint8(changed))
            asked_of[name] += len(again)
            if name == "mush":
                tally[name] += sum(bool(one.things) for one in again)
            else:
                tally[name] += sum(verdict(c, one).exact for c, one in zip(asked, again, strict=True))
        asked_of["shuffled"] += len(seen)
        tally["shuffled"] += sum(
            verdict(content, one).exact for content, one in zip(contents, seen[-1:] + seen[:-1], strict=True)
        )
    return {name: round(tally[name] / asked_of[name], 4) for name in sorted(asked_of)} | {"renders": count}


def real_renders(
    world: World, rng: np.random.Generator, count: int, image_size_px: int
) -> tuple[list[Content], list[Scene], NDArray[np.uint8]]:
    """Contents from every split in turn, their layouts and pictures. Shapes: (count, H, W, 3) uint8."""
    contents = [world.content(SPLITS[i % len(SPLITS)], rng) for i in range(count)]
    scenes = [lay_out(content, rng) for content in contents]
    return contents, scenes, np.stack([draw(scene, image_size_px=image_size_px) for scene in scenes])


def spoil(pixels: Tensor, rng: np.random.Generator, *, clean_share: float = _CLEAN_SHARE) -> Tensor:
    """Pictures with the faults of drawn ones: light blur, noise, a shift of the colours; some stay clean.

    Shapes: (N, 3, H, W) in -1..1, as the result.
    """
    count = len(pixels)

    def strength(most: float) -> Tensor:
        values = rng.uniform(0, most, size=(count, 1, 1, 1)) * (rng.random((count, 1, 1, 1)) >= clean_share)
        return torch.from_numpy(values.astype(np.float32))

    # The picture and its (1, 2, 1) / 4 blur, mixed: a standard deviation of 0 to 0.7 pixels, often the most.
    soft = spoiling.blur(pixels, torch.tensor([1.0, 2.0, 1.0]) / 4)
    pixels = torch.lerp(pixels, soft, strength(1.2).clamp(max=1.0))
    noise = torch.from_numpy(rng.standard_normal(tuple(pixels.shape), dtype=np.float32))
    shift = torch.from_numpy(rng.uniform(-1, 1, size=(count, 3, 1, 1)).astype(np.float32))
    gain = 1 + strength(0.08) * torch.from_numpy(
        rng.choice([-1.0, 1.0], size=(count, 1, 1, 1)).astype(np.float32)
    )
    return (pixels * gain + strength(0.08) * shift + strength(0.1) * noise).clamp(-1, 1)


class _Targets:
    """Indices of the right classes per cell; -1 where a cell does not count. Shapes: (B, 16, 16), (B,)."""

    def __init__(self, things: Tensor, colours: Tensor, sizes: Tensor, background: Tensor) -> None:
        self.things, self.colours, self.sizes, self.background = things, colours, sizes, background

    def to(self, device: torch.device) -> "_Targets":
        return _Targets(
            self.things.to(device), self.colours.to(device), self.sizes.to(device), self.background.to(device)
        )


def _targets(checker: SceneChecker, scenes: list[Scene], mush: NDArray[np.bool_]) -> _Targets:
    shape = (len(scenes), GRID, GRID)
    things = np.zeros(shape, dtype=np.int64)
    colours, sizes = np.full(shape, _IGNORE, dtype=np.int64), np.full(shape, _IGNORE, dtype=np.int64)
    centres = (np.arange(GRID) + 0.5) * CELL_PX
    index_of = {name: i + 1 for i, name in enumerate(checker.class_names)}
    for i, scene in enumerate(scenes):
        if mush[i]:
            continue
        for placed in scene.placed:
            distance = np.hypot(centres[None, :] - placed.x_px, centres[:, None] - placed.y_px)
            # Between the two radii either answer would do.
            things[i][distance < _MARGIN_PX] = _IGNORE
            here = distance < _REACH_PX
            things[i][here] = index_of[placed.item.name]
            sizes[i][here] = SIZES.index(SIZE_OF_PX.get(placed.size_px, "other"))
            if placed.item.colour is not None:
                colours[i][here] = list(SHAPE_COLOURS).index(placed.item.colour)
    names = list(BACKGROUNDS)
    backgrounds = [_IGNORE if mush[i] else names.index(scene.background) for i, scene in enumerate(scenes)]
    return _Targets(
        torch.from_numpy(things),
        torch.from_numpy(colours),
        torch.from_numpy(sizes),
        torch.tensor(backgrounds),
    )


def _losses(output: CheckerOutput, targets: _Targets, mush: Tensor) -> dict[str, Tensor]:
    filled = (targets.things > 0).sum().clamp(min=1)

    def summed(logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(logits, target, ignore_index=_IGNORE, reduction="sum")

    return {
        "things": summed(output.things, targets.things) / filled,
        "colours": 0.5 * summed(output.colours, targets.colours) / filled,
        "sizes": 0.2 * summed(output.sizes, targets.sizes) / filled,
        "background": 0.5 * summed(output.background, targets.background) / max(1, int((~mush).sum())),
    }


def full_content(content: Content, scene: Scene) -> Content:
    """Everything that a scene shows: the background and a single thing's size filled in."""
    full = content_of(scene, content)
    if content.relation is None and content.count == 1 and content.size is None:
        return replace(full, size=SIZE_OF_PX.get(scene.placed[0].size_px))
    return full
