"""Render scenes: sprites over a background, in well under a millisecond per scene, many scenes on all cores."""

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from llmdiff.world.artwork import aspect, fluent_folder, rasterise, sprite, use_fluent
from llmdiff.world.places import places
from llmdiff.world.scenes import Placed, Scene
from llmdiff.world.things import BACKGROUNDS

SCENE_SIZE_PX = 128
# Largest factor by which flat and thin drawings may exceed `side`, because they look small in a square.
_MOST_STRETCH = 1.2
_CHUNK = 64


def render(scene: Scene, size_px: int = SCENE_SIZE_PX) -> NDArray[np.uint8]:
    """Return the scene as an RGB picture.

    Shapes: (size_px, size_px, 3) uint8.

    Raises:
        LLMDiffError: the artwork or its renderer is not installed.
    """
    canvas = backdrop(scene.place, scene.background, size_px).copy()
    halo = scene.place is not None or scene.background == "black"
    for placed in scene.things:
        left, top, side = sprite_box(placed, size_px)
        drawn = sprite(placed.name, placed.style, placed.colour, placed.who, side, placed.upside_down, halo)
        patch = canvas[top : top + side, left : left + side]
        behind = (patch * (255 - drawn[..., 3:].astype(np.uint16)) + 127) // 255
        patch[:] = drawn[..., :3] + behind
    return canvas


def sprite_box(placed: Placed, size_px: int = SCENE_SIZE_PX) -> tuple[int, int, int]:
    """Return left, top and side of the square in which a thing is drawn. Units: pixels."""
    stretch = min(aspect(placed.name, placed.style, placed.who) ** 0.4, _MOST_STRETCH)
    side = min(round(placed.side * stretch * size_px), size_px)
    left, top = (
        min(max(round(centre * size_px - side / 2), 0), size_px - side) for centre in (placed.x, placed.y)
    )
    return left, top, side


@lru_cache(maxsize=64)
def backdrop(place: str | None, background: str | None, size_px: int) -> NDArray[np.uint8]:
    """Return the picture behind the things. Shapes: (size_px, size_px, 3) uint8."""
    if place is not None:
        return np.ascontiguousarray(rasterise(places()[place].svg, size_px)[..., :3])
    colour = BACKGROUNDS[background or "white"]
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return np.broadcast_to(np.array(rgb, dtype=np.uint8), (size_px, size_px, 3))


def render_many(
    scenes: Sequence[Scene], size_px: int = SCENE_SIZE_PX, *, pool: ProcessPoolExecutor | None = None
) -> NDArray[np.uint8]:
    """Return the pictures of many scenes, rendered on all cores; `pool`, from `renderers`, is used if given.

    Shapes: (len(scenes), size_px, size_px, 3) uint8.
    """
    if pool is None:
        with renderers() as own:
            return render_many(scenes, size_px, pool=own)
    pictures = np.empty((len(scenes), size_px, size_px, 3), dtype=np.uint8)
    starts = range(0, len(scenes), _CHUNK)
    chunks = [scenes[start : start + _CHUNK] for start in starts]
    for start, drawn in zip(starts, pool.map(_render_all, chunks, [size_px] * len(chunks)), strict=True):
        pictures[start : start + len(drawn)] = drawn
    return pictures


def renderers(workers: int | None = None) -> ProcessPoolExecutor:
    """Return a pool of rendering processes, by default one for each core.

    Keep it open for many batches: each process needs about ten seconds to render all sprites once.
    """
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=use_fluent,
        initargs=(fluent_folder(),),
    )


def _render_all(scenes: Sequence[Scene], size_px: int) -> NDArray[np.uint8]:
    return np.stack([render(scene, size_px) for scene in scenes])
