"""Overlay an attention map on its picture, without a plotting library."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# From low to high: black, purple, orange, pale yellow. Lightness increases evenly, so it is readable in grey too.
_COLOURS = np.array(
    [[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]], dtype=np.float64
)
_SIDE_PX = 160


def heat_picture(picture: Image.Image, heat: NDArray[np.floating]) -> Image.Image:
    """Return the picture in grey with the map in colour over it, at least 160 pixels wide.

    The colours are scaled to the map's minimum and maximum, so they show where attention is, not how much.

    Shapes:
        heat: (rows, columns), finite.
    """
    width = max(_SIDE_PX, picture.width)
    size = (width, round(width * picture.height / picture.width))
    least, most = float(heat.min()), float(heat.max())
    share = (heat - least) / max(most - least, 1e-12)
    smooth = Image.fromarray((share * 255).astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)
    values = np.asarray(smooth, dtype=np.float64) / 255
    places = np.linspace(0, 1, len(_COLOURS))
    colours = np.stack([np.interp(values, places, _COLOURS[:, channel]) for channel in range(3)], axis=-1)
    grey = np.asarray(picture.convert("L").resize(size, Image.Resampling.NEAREST), dtype=np.float64)
    mixed = 0.4 * grey[..., None] + 0.6 * colours
    return Image.fromarray(mixed.round().clip(0, 255).astype(np.uint8))
