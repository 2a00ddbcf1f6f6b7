"""Open users' pictures; write PNG files with metadata, and labelled sheets to compare them."""

import io
import json
import tempfile
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageDraw, ImageFont, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from llmdiff.errors import InputFileError, OutputError, first_line
from llmdiff.files import MAX_PICTURE_BYTES, check_replaceable, not_writable, read_bytes, write_whole

PICTURE_FORMATS = ("PNG", "JPEG", "WEBP")
# Accepted formats. Pillow's others run programs (EPS starts Ghostscript) or have fragile decoders.
# The background of transparent pictures.
BACKGROUND_RGB = (255, 255, 255)
MAX_PICTURE_PIXELS = 100_000_000
_SRGB_NAMES = ("sRGB IEC61966-2.1", "sRGB built-in", "sRGB", "c2")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SUFFIX = ".png"
# Smaller pictures are enlarged on sheets by nearest neighbour.
_MIN_TILE_PX = 192
_GAP_PX = 12


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One system's pictures on a sheet, under its title, each with a caption."""

    title: str
    images: Sequence[Image.Image]
    captions: Sequence[str]


def open_picture(source: Path | bytes) -> Image.Image:
    """Return a picture as a viewer shows it, 8-bit RGB without metadata.

    Applies the EXIF orientation, converts from the embedded colour profile to sRGB, composites transparent pixels on
    white, and takes the first frame of an animation.

    Args:
        source: a file, or a file's content.

    Raises:
        InputFileError: the file cannot be read, is not PNG, JPEG or WebP, is damaged, or has over 10^8 pixels.
    """
    name = "the picture" if isinstance(source, bytes) else str(source)
    content = source if isinstance(source, bytes) else read_bytes(source, max_bytes=MAX_PICTURE_BYTES)
    with _opened(content, PICTURE_FORMATS, name) as image:
        seen_through = image.info.get("transparency")
        if image.mode == "RGB" and isinstance(seen_through, tuple) and content[24] == 16:  # bits, of a PNG
            image.info["transparency"] = tuple(level >> 8 for level in seen_through)
        return _as_shown(image)


@contextmanager
def _opened(content: bytes, formats: tuple[str, ...], name: str) -> Iterator[Image.Image]:
    """Return a context with the decoded picture; errors of Pillow in it become InputFileError."""
    try:
        with Image.open(io.BytesIO(content), formats=formats) as image:
            width, height = image.size
            if width * height > MAX_PICTURE_PIXELS:
                raise InputFileError(
                    f"{name} has {width} x {height} pixels, expected at most {MAX_PICTURE_PIXELS:,}: make it smaller"
                )
            image.load()
            yield image
    except InputFileError:
        raise
    # Decoders fail in many ways on damaged files (struct.error, IndexError, SyntaxError, MemoryError, ...).
    except UnidentifiedImageError as error:  # its message has the address of an object
        raise InputFileError(f"{name} is none of {', '.join(formats)}: convert it or leave it out") from error
    except Exception as error:
        raise InputFileError(
            f"{name} cannot be opened as one of {', '.join(formats)} ({type(error).__name__}: "
            f"{first_line(error)}): convert it or leave it out"
        ) from error


def _as_shown(image: Image.Image) -> Image.Image:
    turn, profile = _turn(image), image.info.get("icc_profile")
    alpha: Image.Image | None = None
    if image.mode.startswith("I"):  # 16-bit grey, which `convert` would clip at 255
        levels = np.asarray(image).astype(np.float32)
        if isinstance(hidden := image.info.get("transparency"), int):  # the transparent level
            alpha = Image.fromarray(np.where(levels == hidden, 0, 255).astype(np.uint8))
        image = Image.fromarray((levels / 257 + 0.5).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        image = image.convert("RGB")
    elif image.mode not in ("L", "RGB", "CMYK"):
        image = image.convert("RGB")
    image = _in_srgb(image, profile)
    if alpha is not None:
        page = Image.new("RGB", image.size, BACKGROUND_RGB)
        page.paste(image, mask=alpha)
        image = page
    if turn is not None:
        image = image.transpose(turn)
    image.info.clear()  # describes the file, not the converted pixels
    return image


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Return the transpose of the EXIF orientation; None if there is none, or the EXIF data cannot be read."""
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # malformed, which viewers ignore
        return None


def _in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Return the picture converted from its embedded profile to sRGB; a malformed profile is ignored."""
    if profile:
        with suppress(ImageCms.PyCMSError, OSError, ValueError, TypeError):
            embedded = ImageCms.getOpenProfile(io.BytesIO(profile))
            # Pictures in sRGB are not changed; other profiles with sRGB in their name are linear.
            if ImageCms.getProfileDescription(embedded).strip() not in _SRGB_NAMES:
                srgb = ImageCms.createProfile("sRGB")
                converted = ImageCms.profileToProfile(image, embedded, srgb, outputMode="RGB")
                assert converted is not None  # None only for conversions in place
                return converted
    return image.convert("RGB")


def numbered(path: Path, number: int) -> list[Path]:
    """Return `number` file names: the path itself for one, else NAME-0.png, NAME-1.png and so on."""
    if number == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{index}{path.suffix}") for index in range(number)]


def check_writable(path: Path) -> None:
    """Check that a picture can be written there, without leaving a file. Call it before drawing.

    Raises:
        OutputError: the name does not end in .png, is a folder, or cannot be written.
    """
    if path.suffix.lower() != _SUFFIX:
        raise OutputError(f"out {str(path)!r} does not end in {_SUFFIX}: pictures are written as PNG")
    try:
        if path.is_dir():
            raise OutputError(
                f"out {path} is a folder, expected the name of a file: write {path / 'name.png'}"
            )
        check_replaceable(path)
        existing = next(place for place in path.absolute().parents if place.exists())
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OutputError:
        raise
    except OSError as error:
        raise not_writable(path, error) from error


def png_bytes(image: Image.Image, metadata: Mapping[str, object]) -> bytes:
    """Return the content of a PNG file with the metadata as text chunks; None values are omitted."""
    chunks = PngInfo()
    for key, value in metadata.items():
        if value is not None:
            chunks.add_text(key, str(value))
    file = io.BytesIO()
    image.save(file, format="PNG", pnginfo=chunks)
    return file.getvalue()


def as_format(png: bytes, kind: str, quality: int) -> bytes:
    """Convert a PNG file to "jpeg" or "webp", with its metadata as JSON in the EXIF description.

    `quality` is from 0 to 100, as these formats define it.
    """
    with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
        exif = Image.Exif()
        exif[ExifTags.Base.ImageDescription] = json.dumps(getattr(image, "text", {}))
        # At high quality, no chroma subsampling.
        colours = {"subsampling": 0} if kind == "jpeg" and quality >= 90 else {}
        file = io.BytesIO()
        image.convert("RGB").save(file, format=kind, quality=quality, exif=exif, **colours)
    return file.getvalue()


def save_png(image: Image.Image, path: Path, metadata: Mapping[str, object]) -> None:
    """Write the picture atomically, with its metadata as PNG text chunks.

    Creates missing folders. Values are stored as text, None values are omitted.

    Raises:
        OutputError: the file cannot be written.
    """
    write_whole(path, png_bytes(image, metadata))


def read_metadata(path: Path) -> dict[str, str]:
    """Return the text chunks of a PNG: what `save_png` was given, as text.

    Raises:
        OutputError: the file is missing or not a picture.
    """
    try:
        content = read_bytes(path, max_bytes=MAX_PICTURE_BYTES)
        with _opened(content, ("PNG",), str(path)) as image:
            return {str(key): str(value) for key, value in getattr(image, "text", {}).items()}
    except InputFileError as error:
        raise OutputError(f"{path} cannot be read as a PNG ({error}): pass a picture") from error


def sheet(heading: str, panels: Sequence[Panel]) -> Image.Image:
    """Return one picture with the panels side by side: heading on top, titles above, captions below.

    Each panel's pictures form a grid as square as possible. All panels hold the same number of pictures.
    """
    sizes = {image.size for panel in panels for image in panel.images}
    counts = {len(panel.images) for panel in panels}
    if len(sizes) != 1 or len(counts) != 1:
        raise ValueError(
            f"panels have pictures of sizes {sorted(sizes)}, {sorted(counts)} of them: not alike"
        )
    (width, height), count = sizes.pop(), counts.pop()
    factor = -(-_MIN_TILE_PX // min(width, height))
    width, height = width * factor, height * factor

    columns = next(side for side in range(1, count + 1) if side * side >= count)
    rows = -(-count // columns)
    panel_width = columns * (width + _GAP_PX) - _GAP_PX
    total_width = len(panels) * (panel_width + 2 * _GAP_PX)

    # Pillow's default font: no font file needed, the same on every machine.
    heading_font, title_font, caption_font = (ImageFont.load_default(size) for size in (20, 17, 13))
    title_px, caption_px = 26, 20
    lines = _wrapped(heading, heading_font, total_width - 2 * _GAP_PX)
    top = _GAP_PX + 26 * len(lines) + _GAP_PX
    total_height = top + title_px + rows * (height + caption_px) + _GAP_PX

    page = Image.new("RGB", (total_width, total_height), "white")
    pen = ImageDraw.Draw(page)
    pen.text((_GAP_PX, _GAP_PX), "\n".join(lines), fill="black", font=heading_font, spacing=4)
    for place, panel in enumerate(panels):
        left = _GAP_PX + place * (panel_width + 2 * _GAP_PX)
        if place:
            pen.line(
                [(left - _GAP_PX, top), (left - _GAP_PX, total_height - _GAP_PX)], fill="lightgrey", width=1
            )
        title = _wrapped(panel.title, title_font, panel_width)[0]
        pen.text((left, top), title, fill="black", font=title_font)
        for index, (image, caption) in enumerate(zip(panel.images, panel.captions, strict=True)):
            x = left + index % columns * (width + _GAP_PX)
            y = top + title_px + index // columns * (height + caption_px)
            page.paste(image.convert("RGB").resize((width, height), Image.Resampling.NEAREST), (x, y))
            pen.text((x, y + height + 2), caption, fill="dimgrey", font=caption_font)
    return page


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width_px: int) -> list[str]:
    """Return at most three lines that fit the width; an ellipsis marks truncated text."""
    mean_px = font.getlength("an average word") / len("an average word")
    lines = textwrap.wrap(" ".join(text.split()), max(8, int(width_px / mean_px))) or [""]
    return lines if len(lines) <= 3 else [*lines[:2], f"{lines[2][:-3]}..."]
