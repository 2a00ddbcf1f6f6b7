"""A contact sheet of the world: every thing and place with its name."""

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from llmdiff.world.artwork import picture
from llmdiff.world.places import places
from llmdiff.world.rendering import backdrop
from llmdiff.world.things import COLOURS, Style, Thing

_TEXT_PX, _GAP_PX, _LINES = 11, 6, 2
_COLOUR_NAMES = tuple(COLOURS)


def contact_sheet(
    things: Sequence[Thing], *, style: Style = "flat", tile_px: int = 56, columns: int = 16
) -> Image.Image:
    """Return a picture of these things in one style, each with its name, followed by all places.

    Things without a drawing in this style are left out; an action is drawn for man and woman.

    Raises:
        LLMDiffError: the artwork or its renderer is not installed.
    """
    tiles: list[tuple[Image.Image, str]] = []
    for thing in things:
        if style not in thing.styles:
            continue
        colour = _COLOUR_NAMES[len(tiles) % len(_COLOUR_NAMES)] if thing.is_shape else None
        for who in thing.who or (None,):
            drawn = Image.fromarray(picture(thing.name, style, colour, who))
            name = f"{who} {thing.name}" if who else thing.name
            tiles.append((drawn.resize((tile_px, tile_px), Image.Resampling.LANCZOS), name))
    for name in places():
        tiles.append((Image.fromarray(backdrop(name, None, tile_px)).convert("RGBA"), name))

    width, height = tile_px + _GAP_PX, tile_px + _GAP_PX + _LINES * _TEXT_PX
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * width + _GAP_PX, rows * height + _GAP_PX), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(_TEXT_PX - 2)
    letters = max(round(width / (_TEXT_PX * 0.5)), 8)
    for index, (tile, text) in enumerate(tiles):
        x, y = index % columns * width + _GAP_PX, index // columns * height + _GAP_PX
        sheet.paste(tile, (x, y), tile)
        wrapped = textwrap.wrap(text, letters)[:_LINES]
        draw.multiline_text((x, y + tile_px), "\n".join(wrapped), fill="black", font=font, spacing=1)
    return sheet
