"""PNG files: metadata comes back, a failure leaves nothing, sheets show every pixel."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llmdiff.drawing.pictures import Panel, check_writable, numbered, read_metadata, save_png, sheet
from llmdiff.errors import OutputError


def picture(colour: str = "red", size: tuple[int, int] = (8, 8)) -> Image.Image:
    return Image.new("RGB", size, colour)


def test_metadata_comes_back_as_text(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.png"
    facts = {
        "prompt": "ein Apfel, 苹果, 🍎\nsecond line",
        "negative_prompt": None,
        "seed": 3,
        "guidance_scale": 4.0,
        "long": "word " * 50_000,
    }
    save_png(picture(), path, facts)
    assert read_metadata(path) == {name: str(value) for name, value in facts.items() if value is not None}
    assert Image.open(path).getpixel((0, 0)) == (255, 0, 0)
    assert [file.name for file in path.parent.iterdir()] == ["a.png"]


def test_an_older_picture_is_replaced_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    save_png(picture("red"), path, {"seed": 1})
    save_png(picture("blue"), path, {"seed": 2})
    assert read_metadata(path) == {"seed": "2"}

    write = Path.write_bytes

    def full_disk(path: Path, content: bytes) -> int:
        write(path, content[:20])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OutputError, match=r"a\.png cannot be written \(No space left on device\)"):
        save_png(picture("green"), path, {"seed": 3})
    assert read_metadata(path) == {"seed": "2"}
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_read_metadata_refuses_what_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    for name in ("a.png", "missing.png"):
        with pytest.raises(OutputError, match="cannot be read as a PNG"):
            read_metadata(tmp_path / name)


def test_check_writable_leaves_no_trace(tmp_path: Path) -> None:
    check_writable(tmp_path / "a.png")
    check_writable(tmp_path / "new" / "folder" / "a.PNG")
    assert list(tmp_path.iterdir()) == []


def test_check_writable_names_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    for path, reason in (
        (tmp_path / "a.jpg", r"does not end in \.png"),
        (tmp_path / "a", r"does not end in \.png"),
        (tmp_path / "folder.png", "is a folder"),
        (tmp_path / "file" / "a.png", "cannot be written"),
        (Path("/proc/nowhere/a.png"), "cannot be written"),
    ):
        with pytest.raises(OutputError, match=reason):
            check_writable(path)


def test_numbered_names_sort_beside_each_other() -> None:
    assert numbered(Path("out/a.png"), 1) == [Path("out/a.png")]
    assert numbered(Path("out/a.png"), 3) == [Path(f"out/a-{index}.png") for index in range(3)]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_sheet_holds_every_picture_enlarged_pixel_by_pixel(count: int) -> None:
    rng = np.random.default_rng(count)
    images = [Image.fromarray(rng.integers(256, size=(64, 64, 3), dtype=np.uint8)) for _ in range(2 * count)]
    captions = [f"seed {seed}" for seed in range(count)]
    panels = [
        Panel(title="base", images=images[:count], captions=captions),
        Panel(title="LLM", images=images[count:], captions=captions),
    ]
    page = np.asarray(sheet("a cat to the left of a dog, " * 20, panels))
    tiles = [np.asarray(image).repeat(3, axis=0).repeat(3, axis=1) for image in images]
    found = [_places(page, tile) for tile in tiles]
    assert all(len(places) == 1 for places in found)
    left, right = ([places[0][1] for places in found[part]] for part in (slice(count), slice(count, None)))
    assert max(left) < min(right)


def _places(page: np.ndarray, tile: np.ndarray) -> list[tuple[int, int]]:
    rows, columns = page.shape[0] - tile.shape[0], page.shape[1] - tile.shape[1]
    corners = (page[: rows + 1, : columns + 1] == tile[0, 0]).all(-1)
    return [
        (y, x)
        for y, x in np.argwhere(corners)
        if (page[y : y + tile.shape[0], x : x + tile.shape[1]] == tile).all()
    ]


def test_large_pictures_keep_their_size_on_a_sheet() -> None:
    panel = Panel(title="a title far too long for it " * 5, images=[picture(size=(640, 512))], captions=[""])
    width, height = sheet("prompt", [panel]).size
    assert 640 < width < 700
    assert 512 < height < 640


def test_sheet_refuses_panels_that_cannot_be_compared() -> None:
    one = Panel(title="", images=[picture()], captions=[""])
    other = Panel(title="", images=[picture(size=(16, 8))], captions=[""])
    with pytest.raises(ValueError, match="not alike"):
        sheet("prompt", [one, other])
