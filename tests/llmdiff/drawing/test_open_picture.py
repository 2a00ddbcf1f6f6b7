"""Users' pictures: every way of storing one picture is read as that picture, and nothing else is opened."""

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, ImageCms

from llmdiff.drawing.pictures import open_picture, read_metadata
from llmdiff.errors import InputFileError, OutputError

pytestmark = pytest.mark.hostile("user pictures")

RED, BLUE = (220, 40, 40), (40, 80, 220)
# What a viewer has to do is the inverse of what these do to the stored picture.
STORED_AS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def upright() -> Image.Image:
    pixels = np.zeros((96, 64, 3), np.uint8)
    pixels[:32], pixels[32:, :16] = RED, BLUE
    return Image.fromarray(pixels)


def stored(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def levels(content: bytes) -> np.ndarray:
    image = open_picture(content)
    assert (image.mode, image.info) == ("RGB", {})
    return np.asarray(image)


def chunk(kind: bytes, content: bytes) -> bytes:
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def raw_png(width: int, height: int, depth: int, colours: int, rows: bytes, more: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0)
    parts = (chunk(b"IHDR", header), more, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_upright(orientation: int, kind: str) -> None:
    turn = STORED_AS[orientation]
    image = upright() if turn is None else upright().transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {
        "JPEG": {"quality": 95, "subsampling": 0},
        "PNG": {},
        "WEBP": {"lossless": True},
    }[kind]
    found = levels(stored(image, kind, exif=exif.tobytes(), **options)).astype(int)
    assert np.abs(found - np.asarray(upright())).max() <= (12 if kind == "JPEG" else 0)


def test_malformed_exif_is_passed_over() -> None:
    content = stored(upright(), exif=b"Exif\x00\x00MM\x00\x2a\xff\xff\xff\xff rubbish")
    assert (levels(content) == np.asarray(upright())).all()


def disc() -> tuple[np.ndarray, np.ndarray]:
    """Where a red disc is, and the disc on white."""
    inside = np.hypot(*np.mgrid[-32:32, -32:32]) < 20
    return inside, np.where(inside[..., None], RED, 255).astype(np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("hidden", [(0, 0, 0), (255, 255, 255), RED])
def test_what_is_transparent_is_white_whatever_lies_under_it(hidden: tuple[int, int, int], kind: str) -> None:
    inside, expected = disc()
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[..., :3] = hidden
    pixels[inside] = (*RED, 255)
    options = {} if kind == "PNG" else {"lossless": True, "exact": True}
    assert (levels(stored(Image.fromarray(pixels), kind, **options)) == expected).all()


def test_half_transparent_is_half_white() -> None:
    assert (levels(stored(Image.new("RGBA", (4, 4), (0, 0, 0, 51)))) == 204).all()
    assert (levels(stored(Image.new("LA", (4, 4), (0, 51)))) == 204).all()


@pytest.mark.parametrize("mode", ["P", "RGB", "L", "1", "LA", "PA", "I;16", "RGB of 16 bits"])
def test_one_colour_that_is_not_seen_is_white(mode: str) -> None:
    inside, expected = disc()
    grey = np.where(inside[..., None], 0, 255).astype(np.uint8).repeat(3, 2)
    if mode == "P":
        image = Image.fromarray(np.where(inside, 1, 0).astype(np.uint8), "P")
        image.putpalette([0, 0, 0, *RED])
        content = stored(image, transparency=0)
    elif mode == "PA":
        image = Image.fromarray(np.where(inside, 1, 0).astype(np.uint8), "P")
        image.putpalette([0, 0, 0, *RED])
        content = stored(image, transparency=b"\x00\xff")
    elif mode == "RGB":
        pixels = np.where(inside[..., None], RED, (1, 2, 3)).astype(np.uint8)
        content = stored(Image.fromarray(pixels), transparency=(1, 2, 3))
    elif mode == "RGB of 16 bits":
        pixels = np.where(inside[..., None], np.array(RED) * 257, (513, 514, 515)).astype(">u2")
        rows = b"".join(b"\0" + row.tobytes() for row in pixels)
        content = raw_png(64, 64, 16, 2, rows, chunk(b"tRNS", struct.pack(">3H", 513, 514, 515)))
    elif mode == "LA":
        pixels = np.stack([np.zeros((64, 64)), np.where(inside, 255, 0)], -1).astype(np.uint8)
        content, expected = stored(Image.fromarray(pixels, "LA")), grey
    elif mode == "I;16":
        pixels = np.where(inside, 0, 777).astype(np.uint16)
        content, expected = stored(Image.fromarray(pixels), transparency=777), grey
    else:
        image = Image.fromarray(np.where(inside, 255, 0).astype(np.uint8)).convert(mode)
        content, expected = stored(image, transparency=0), np.full_like(grey, 255)
    assert (levels(content) == expected).all()


def test_sixteen_bits_of_grey_are_a_ramp() -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(4, 0)
    assert (levels(stored(Image.fromarray(ramp))) == np.arange(256)[None, :, None]).all()


def test_cmyk_is_its_colours() -> None:
    found = levels(stored(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100))
    assert np.abs(found.astype(int) - (255, 0, 0)).max() <= 3


def profile(*, swapped: bool) -> bytes:
    """An ICC profile with sRGB's primaries, red and green swapped if so asked, and a gamma of 2.2."""
    primaries = [(0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141)]
    if swapped:
        primaries[:2] = primaries[1::-1]

    def xyz(values: tuple[float, ...]) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    name = b"swapped sRGB\0"
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(name)) + name + bytes(78),
        b"cprt": b"text\0\0\0\0none\0",
        b"wtpt": xyz((0.9642, 1.0, 0.8249)),
        b"rXYZ": xyz(primaries[0]),
        b"gXYZ": xyz(primaries[1]),
        b"bXYZ": xyz(primaries[2]),
        **dict.fromkeys(
            (b"rTRC", b"gTRC", b"bTRC"), b"curv\0\0\0\0" + struct.pack(">IH", 1, round(2.2 * 256)) + bytes(2)
        ),
    }
    table, body, start = b"", b"", 128 + 4 + 12 * len(tags)
    for tag, content in tags.items():
        content += bytes(-len(content) % 4)
        table += tag + struct.pack(">II", start + len(body), len(content))
        body += content
    header = struct.pack(">I4sI4s4s4s", start + len(body), b"lcms", 0x02400000, b"mntr", b"RGB ", b"XYZ ")
    header += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061) + bytes(48)
    return header + struct.pack(">I", len(tags)) + table + body


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_an_embedded_colour_profile_counts(kind: str, mode: str) -> None:
    if kind == "JPEG" and mode != "RGB":
        mode = "L"  # which an RGB profile does not fit: it is ignored
    image = Image.new("RGB", (16, 16), (255, 0, 0)).convert(mode)
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100} if kind == "JPEG" else {}
    found = levels(stored(image, kind, icc_profile=profile(swapped=True), **options)).astype(int)
    expected = np.asarray(image.convert("RGB"))[0, 0] if mode == "L" else (0, 255, 0)
    assert np.abs(found - expected).max() <= 6
    if mode != "L":
        same = levels(stored(image, kind, icc_profile=profile(swapped=False), **options)).astype(int)
        assert np.abs(same - (255, 0, 0)).max() <= 6


def test_a_profile_that_is_srgb_changes_no_level_and_a_malformed_one_is_ignored() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for embedded in (srgb, b"rubbish", profile(swapped=True)[:200]):
        assert (levels(stored(Image.fromarray(pixels), icc_profile=embedded)) == pixels).all()


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_of_a_picture_that_moves_the_first_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE, BLUE)]
    options = {"lossless": True} if kind == "WEBP" else {}
    content = stored(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert (levels(content) == RED).all()


@pytest.fixture
def ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that a `gs` on the path writes once it is started."""
    started, program = tmp_path / "started", tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {started}\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    monkeypatch.setattr(EpsImagePlugin, "gs_windows_binary", None)
    return started


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
OTHERS = {
    "EPS": EPS,
    "AVIF": b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf\0\0\0\x10meta",
    "QOI": b"qoif" + struct.pack(">IIBB", 8, 8, 9, 0) + bytes(3),
    "FTEX": b"FTEX" + bytes(20),
    "DDS": b"DDS " + struct.pack("<I", 124) + bytes(30),
    "SPIDER": struct.pack(">27f", *([1.0] * 27)),
    "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x14ftypjp2 ",
    "TIFF": b"II*\0\x08\0\0\0",
    "GIF": b"GIF89a" + bytes(5),
    "nothing": b"",
    "half a PNG": stored(upright())[:60],
    "half a JPEG": stored(upright(), "JPEG")[:300],
    "half a WebP": stored(upright(), "WEBP")[:60],
    "PNG of 30,000 x 30,000": raw_png(30_000, 30_000, 8, 2, b""),
    "PNG with a text bomb": raw_png(
        8, 8, 8, 0, bytes(72), chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(80_000_000), 9))
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_nothing_else_is_opened_and_no_program_started(kind: str, ghostscript: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(OTHERS[kind])
    with pytest.raises(InputFileError, match=r"a\.png") as refused:
        open_picture(path)
    assert len(str(refused.value).splitlines()) == 1
    with pytest.raises(OutputError, match="cannot be read as a PNG"):
        read_metadata(path)
    assert not ghostscript.exists()


@pytest.mark.parametrize("kind", ["a pipe", "a folder", "a device", "nothing", "a name with a NUL"])
def test_only_regular_files_are_opened(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a folder":
        path.mkdir()
    elif kind == "a device":
        path = Path("/dev/zero")
    elif kind == "a name with a NUL":
        path = tmp_path / "a\0.png"
    with pytest.raises(InputFileError):
        open_picture(path)
    with pytest.raises(OutputError):
        read_metadata(path)
