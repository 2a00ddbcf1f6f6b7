"""A map of attention laid over its picture, without a plotting library: what the page shows."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# From nothing to most: black, purple, orange, pale yellow. Lightness grows evenly, so it reads in grey too.
_COLOURS = np.array(
    [[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]], dtype=np.float64
)
_SIDE_PX = 160


def heat_picture(picture: Image.Image, heat: NDArray[np.floating]) -> Image.Image:
    """Return the picture in grey with the map in colour over it, at least 160 pixels wide.

    The map's own least and most are the ends of the colours, so pictures show where, not how much.

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
