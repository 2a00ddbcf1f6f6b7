"""A study's pictures tell nothing of who drew them but what is seen; pictures of any kind are shown as they are."""

import io
import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo
from starlette.testclient import TestClient

from llmdiff.drawing.pictures import png_bytes
from llmdiff.errors import ConfigError, OutputError
from llmdiff.evaluation.metrics.reference import read_reference
from llmdiff_lab.study import study
from llmdiff_lab.study.api import create_study_app
from llmdiff_lab.study.study import create_study, open_study, read_source

pytestmark = pytest.mark.hostile("user pictures")

PROMPTS = 24


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Path]:
    """Pictures of two systems that differ in all that a file can say beside its pixels."""
    rng = np.random.default_rng(0)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    found = {}
    for system, options in {"base": {}, "llm": {"icc_profile": srgb, "dpi": (300, 300)}}.items():
        found[system] = tmp_path / system
        found[system].mkdir()
        for number in range(PROMPTS):
            image = Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8))
            chunks = PngInfo()
            for name, value in {"prompt": f"prompt {number}", "seed": "1", "llm": system}.items():
                chunks.add_text(name, value)
            exif = Image.Exif()
            exif[0x010E] = system
            path = found[system] / f"{number:02d}.png"
            image.save(path, pnginfo=chunks, exif=exif, **options)
            os.utime(path, (number, number))
    return found


def chunks(path: Path) -> list[bytes]:
    content, at, names = path.read_bytes(), 8, []
    while at < len(content):
        (length,) = struct.unpack(">I", content[at : at + 4])
        names.append(content[at + 4 : at + 8])
        at += length + 12
    return names


def systems(folder: Path) -> dict[str, str]:
    store = open_study(folder)
    found = {name: system for (_, system), name in store.pictures().items()}
    store.close()
    return found


def test_a_picture_file_holds_pixels_and_no_time_of_its_own(sources: dict[str, Path], tmp_path: Path) -> None:
    create_study(tmp_path / "study", sources, check_every=2)
    paths = list((tmp_path / "study" / "pictures").iterdir())
    assert len(paths) == 2 * PROMPTS + PROMPTS / 2
    assert {tuple(dict.fromkeys(chunks(path))) for path in paths} == {(b"IHDR", b"IDAT", b"IEND")}
    assert len({path.stat().st_mtime_ns for path in paths}) == 1


def test_pictures_are_written_in_no_order_of_systems(
    sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[bytes] = []

    def keep(image: Image.Image, metadata: Any) -> bytes:
        written.append(image.tobytes())
        return png_bytes(image, metadata)

    monkeypatch.setattr(study, "png_bytes", keep)
    create_study(tmp_path / "study", sources, check_every=0)
    of = systems(tmp_path / "study")
    pixels = {
        Image.open(tmp_path / "study" / "pictures" / f"{name}.png").tobytes(): system
        for name, system in of.items()
    }
    order = [pixels[one] for one in written]
    assert sorted(order) == ["base"] * PROMPTS + ["llm"] * PROMPTS
    assert order != ["base", "llm"] * PROMPTS
    pairs = set(zip(order[::2], order[1::2], strict=True))
    assert len(pairs) > 1  # no brute force over pairs of neighbours


def test_a_check_shows_either_systems_picture(sources: dict[str, Path], tmp_path: Path) -> None:
    create_study(tmp_path / "study", sources, check_every=1)
    of = systems(tmp_path / "study")
    store = open_study(tmp_path / "study")
    token = store.new_rater(max_raters=1)
    shown = [store.shown(token, position) for position in range(store.progress(token).total)]
    store.close()
    intact = {
        of[name]
        for pair in shown
        if not {pair.left_picture, pair.right_picture} <= of.keys()
        for name in (pair.left_picture, pair.right_picture)
        if name in of
    }
    assert intact == {"base", "llm"}


def test_no_header_tells_when_a_picture_was_written(sources: dict[str, Path], tmp_path: Path) -> None:
    create_study(tmp_path / "study", sources, check_every=0)
    app = create_study_app(tmp_path / "study")
    with TestClient(app) as http:
        replies = [http.get(f"/pictures/{name}.png") for name in systems(tmp_path / "study")]
    app.state.store.close()
    assert {reply.status_code for reply in replies} == {200}
    assert not {"etag", "last-modified", "accept-ranges"} & {
        name for reply in replies for name in reply.headers
    }
    assert len({tuple(reply.headers) for reply in replies}) == 1
    assert {reply.headers["cache-control"] for reply in replies} == {"private, max-age=86400, immutable"}


def listed(tmp_path: Path, content: bytes) -> dict[str, Path]:
    found = {}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(content)
        found[name] = tmp_path / name / "list.jsonl"
        found[name].write_text(json.dumps({"prompt": "a", "image": "a.png"}))
    return found


def test_pictures_are_shown_upright_and_on_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (8, 4), (9, 9, 9, 0))
    image.putpixel((0, 0), (200, 0, 0, 255))
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif)
    create_study(tmp_path / "study", listed(tmp_path, file.getvalue()), check_every=0)
    path = next((tmp_path / "study" / "pictures").iterdir())
    with Image.open(path) as shown:
        assert shown.size == (4, 8)
        assert shown.getpixel((3, 0)) == (200, 0, 0)
        assert shown.getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["EPS", "QOI", "cut off"])
def test_other_formats_are_refused_by_name(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = io.BytesIO()
    Image.effect_noise((32, 32), 80).save(file, "PNG")
    content = {
        "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "QOI": b"qoif" + bytes(20),
        "cut off": file.getvalue()[:400],
    }[kind]
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", None)  # a call of it would be another error
    with pytest.raises(OutputError, match=r"a\.png cannot be read as a picture") as refused:
        create_study(tmp_path / "study", listed(tmp_path, content))
    assert len(str(refused.value).splitlines()) == 1
    assert not (tmp_path / "study").exists()
    (tmp_path / "one" / "b.png").write_bytes(content)
    with pytest.raises(ConfigError, match=r"reference .*\.png: cannot be read as a picture"):
        read_reference(tmp_path / "one")


@pytest.mark.timeout(60)
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    sources = listed(tmp_path, b"")
    (tmp_path / "one" / "a.png").unlink()
    os.mkfifo(tmp_path / "one" / "a.png")
    for given in (sources, {"one": tmp_path / "one", "two": tmp_path / "two"}):
        with pytest.raises(OutputError, match="cannot be read as a"):
            create_study(tmp_path / "study", given)


@pytest.mark.parametrize("seed", ["²", "9" * 5000, "-1", "1e9", "٣"])
def test_a_seed_that_is_no_number_is_refused(tmp_path: Path, seed: str) -> None:
    chunks = PngInfo()
    chunks.add_itxt("prompt", "a")
    chunks.add_itxt("seed", seed)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=chunks)
    with pytest.raises(ConfigError, match=r"has the seed .* expected a whole number"):
        read_source("one", tmp_path)


def test_reference_pictures_are_read_as_a_viewer_shows_them(tmp_path: Path) -> None:
    levels = np.linspace(0, 65535, 32).astype(np.uint16)[None].repeat(32, 0)
    Image.fromarray(levels).save(tmp_path / "a.png")
    Image.new("RGBA", (32, 32), (0, 0, 0, 0)).save(tmp_path / "b.png")
    ramp, clear = read_reference(tmp_path)
    assert ramp[0, 0].max() == 0
    assert ramp[0, 15].max() in range(120, 130)
    assert (clear == 255).all()
