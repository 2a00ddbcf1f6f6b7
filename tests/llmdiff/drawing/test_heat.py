"""A map over its picture: hottest where the map is highest, the picture still to be seen."""

import numpy as np
import pytest
from PIL import Image

from llmdiff.drawing.heat import heat_picture


@pytest.mark.parametrize(("row", "column"), [(1, 6), (6, 1)])
def test_the_lightest_place_is_where_the_map_is_highest(row: int, column: int) -> None:
    heat = np.zeros((8, 8))
    heat[row, column] = 0.01
    lightness = np.asarray(heat_picture(Image.new("RGB", (64, 64), (90, 90, 90)), heat).convert("L"))
    assert lightness.shape == (160, 160)
    y, x = np.unravel_index(lightness.argmax(), lightness.shape)
    assert abs(y / 20 - row - 0.5) < 0.5
    assert abs(x / 20 - column - 0.5) < 0.5


def test_the_picture_shows_through_an_even_map() -> None:
    picture = Image.new("RGB", (200, 100), "black")
    picture.paste("white", (100, 0, 200, 100))
    seen = np.asarray(heat_picture(picture, np.full((4, 8), 0.3)).convert("L")).astype(int)
    assert seen.shape == (100, 200)
    assert (seen[:, 100:] - seen[:, :100] > 80).all()
