"""Names and sizes of the files that drawn pictures become."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llmdiff.drawing.pictures import read_metadata
from llmdiff.drawing.saving import Filter, SaveSize, picture_name, save_drawn
from llmdiff.errors import ConfigError


def picture(width: int, height: int) -> Image.Image:
    levels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(levels)


def test_nearest_repeats_pixels_and_the_file_says_so(tmp_path: Path) -> None:
    small, path = picture(4, 3), tmp_path / "a.png"
    save_drawn(small, path, SaveSize(9, "nearest"), {"seed": 1})
    assert np.array_equal(np.asarray(Image.open(path)), np.asarray(small).repeat(3, 0).repeat(3, 1))
    assert read_metadata(path) == {
        "seed": "1",
        "save_size": "9",
        "save_filter": "nearest",
        "drawn_size": "4 x 3",
    }


def test_lanczos_keeps_the_shape_and_the_mean(tmp_path: Path) -> None:
    small, path = picture(24, 16), tmp_path / "a.png"
    save_drawn(small, path, SaveSize(64), {})
    large = np.asarray(Image.open(path)).astype(float)
    assert large.shape == (64, 96, 3)
    assert large.mean() == pytest.approx(np.asarray(small).mean(), abs=1.5)
    assert len(np.unique(large)) > 200  # interpolated, not repeated
    assert read_metadata(path)["save_filter"] == "lanczos"


@pytest.mark.parametrize("save_filter", ["lanczos", "nearest"])
def test_a_picture_that_is_large_enough_stays(tmp_path: Path, save_filter: Filter) -> None:
    own, path = picture(20, 16), tmp_path / "a.png"
    save_drawn(own, path, SaveSize(16, save_filter), {})
    assert np.array_equal(np.asarray(Image.open(path)), np.asarray(own))
    save_drawn(own, path, None, {})
    assert np.array_equal(np.asarray(Image.open(path)), np.asarray(own))
    assert read_metadata(path) == {}


def test_a_size_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigError, match="save_size"):
        SaveSize(0)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("A cat, to the LEFT of ../a dog!", "a-cat-to-the-left-of-a-dog-7.png"),
        ("ein Kätzchen", "ein-kätzchen-7.png"),
        ("!?", "picture-7.png"),
        ("w" * 300, "w" * 48 + "-7.png"),
    ],
)
def test_a_name_comes_from_prompt_and_seed(prompt: str, expected: str) -> None:
    assert picture_name(prompt, 7) == Path(expected)
    assert picture_name(prompt, 7, "compare").name == expected.replace(".png", "-compare.png")
