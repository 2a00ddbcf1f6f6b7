"""Folders of strangers: one bad sample is set aside with its reason, the others are used, nothing hangs."""

import json
import os

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from llmdiff.cli.main import app
from llmdiff.errors import LLMDiffError
from llmdiff.training.data import check_samples
from llmdiff.training.folders import folder_source

from .odd_samples import SHAPES, SURROGATE, checked, png


@pytest.fixture
def folder(tmp_path):
    """A folder with one good sample, a.png, and its line of metadata.jsonl where a test writes one."""
    place = tmp_path / "data"
    place.mkdir()
    (place / "a.png").write_bytes(png())
    return place


GOOD = b'{"file_name": "a.png", "text": "a dog"}'


@pytest.mark.hostile("texts")
@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"file_name": "a.png", "text": "a cat \\ud83d"}', f"caption {SURROGATE}"),
        (b'{"file_name": "a.png", "captions": ["a", "b\\udfff"]}', f"caption {SURROGATE}"),
        (b'{"file_name": "a.png", "text": null}', "no caption"),
        (b'{"file_name": "a.png", "captions": [null]}', "no caption"),
        (b'{"file_name": "a.png"}', "no caption"),
        (b'{"file_name": "a.png", "text": "\\ufeff \\u200b"}', "empty caption"),
        (b'{"file_name": "a.png", "text": {"a": 1}}', "caption is not a text"),
        ('{"file_name": "a.png", "text": "café"}'.encode("latin-1"), "metadata: not UTF-8"),
        (b"[" * 5000, "metadata: not a JSON object with file_name"),
        (b'{"a":' * 5000, "metadata: not a JSON object with file_name"),
        (b'{"file_name": null, "text": "a"}', "metadata: not a JSON object with file_name"),
        (b'{"file_name": ["a.png"], "text": "a"}', "metadata: not a JSON object with file_name"),
        (b'{"n": ' + b"9" * 5000 + b"}", "metadata: not a JSON object with file_name"),
        (b'"a.png"', "metadata: not a JSON object with file_name"),
        (b"\x00", "metadata: not a JSON object with file_name"),
    ],
)
def test_a_bad_line_of_metadata_is_set_aside(folder, tmp_path, line, reason):
    (folder / "metadata.jsonl").write_bytes(line + b"\n" + GOOD + b"\n")
    texts, bad = checked(folder_source(folder), tmp_path)
    assert texts == [["a dog"]]
    assert list(bad.values()) == [reason]


@pytest.mark.parametrize(
    "written",
    [
        b"file_name,text\na.png,a dog\n",
        b"\xef\xbb\xbffile_name,caption,score\r\na.png,a dog,3\r\n\r\n",
        b'text,file_name\n"a dog",a.png\n',
    ],
)
def test_captions_in_a_csv_file(folder, tmp_path, written):
    (folder / "metadata.csv").write_bytes(written)
    assert checked(folder_source(folder), tmp_path) == ([["a dog"]], {})


def test_a_caption_in_csv_may_have_commas_quotes_and_lines(folder, tmp_path):
    (folder / "metadata.csv").write_text('file_name,text\na.png,"a ""dog"", a cat\nand a hat"\n')
    assert checked(folder_source(folder), tmp_path)[0] == [['a "dog", a cat\nand a hat']]


@pytest.mark.hostile("texts")
@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("b.png,café".encode("latin-1"), "metadata: not UTF-8"),
        (b"b.png,", "no caption"),
        (b"b.png", "metadata: 1 values for 2 columns"),
        (b"b.png,a,b", "metadata: 3 values for 2 columns"),
        (b",a cat", "metadata: no file_name"),
        (b'b.png,"a" cat', "metadata: not CSV (',' expected after '\"')"),
        (b"../b.png,a cat", "metadata: file_name lies outside of the folder"),
        (b"b.png," + b"a" * 200_000, "metadata: not CSV (field larger than field limit (131072))"),
    ],
)
def test_a_bad_row_of_csv_is_set_aside(folder, tmp_path, line, reason):
    (folder / "b.png").write_bytes(png())
    (folder / "metadata.csv").write_bytes(b"file_name,text\n" + line + b"\na.png,a dog\n")
    texts, bad = checked(folder_source(folder), tmp_path)
    assert (texts, list(bad.values())) == ([["a dog"]], [reason])


@pytest.mark.hostile("texts")
@pytest.mark.parametrize(
    ("written", "message"),
    [
        (b"", "has the columns of an empty file"),
        (b"a.png,a dog\n", "has the columns a.png, a dog; expected file_name"),
        (b"file_name,score\na.png,3\n", "expected file_name and text or caption or captions"),
        (b"file_name,text,text\na.png,a,b\n", "each once"),
        (b'"file_name" x,text\n', "its first line is not CSV"),
    ],
)
def test_a_csv_file_without_its_columns_is_refused(folder, written, message):
    (folder / "metadata.csv").write_bytes(written)
    with pytest.raises(LLMDiffError, match=message):
        folder_source(folder)


def test_captions_may_lie_in_caption_files(folder, tmp_path):
    (folder / "a.caption").write_text("a dog\na hound\n")
    assert checked(folder_source(folder), tmp_path) == ([["a dog", "a hound"]], {})


@pytest.mark.hostile("files and folders")
def test_two_places_for_captions_are_refused(folder, tmp_path):
    (folder / "b.png").write_bytes(png())
    for name in ("a.txt", "a.caption", "b.txt"):
        (folder / name).write_text("a dog")
    assert checked(folder_source(folder), tmp_path) == (
        [["a dog"]],
        {"a.png": "two caption files (.txt and .caption): keep one"},
    )
    for name in ("metadata.csv", "metadata.jsonl"):
        (folder / name).write_bytes(GOOD)
    with pytest.raises(LLMDiffError, match=r"has both metadata\.jsonl and metadata\.csv: keep one"):
        folder_source(folder)


@pytest.mark.hostile("files and folders")
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../outside.png", "metadata: file_name lies outside of the folder"),
        ("sub/../../outside.png", "metadata: file_name lies outside of the folder"),
        ("/etc/passwd", "metadata: file_name lies outside of the folder"),
        ("a\ud800.png", f"metadata: file_name {SURROGATE}"),
        ("a\0.png", "cannot be read (embedded null byte)"),
        ("n" * 5000 + ".png", "cannot be read (File name too long)"),
        ("", "cannot be read (Is a directory)"),
        ("pipe.png", "not a regular file"),
        ("sub", "cannot be read (Is a directory)"),
        ("none.png", "picture is missing"),
        ("line\nbreak.png", "picture is missing"),
    ],
)
def test_a_line_that_names_no_picture_of_the_folder_is_set_aside(folder, tmp_path, name, reason):
    (tmp_path / "outside.png").write_bytes(png())
    (folder / "sub").mkdir()
    os.mkfifo(folder / "pipe.png")
    lines = [json.dumps({"file_name": name, "text": "a"}).encode(), GOOD]
    (folder / "metadata.jsonl").write_bytes(b"\n".join(lines))
    texts, bad = checked(folder_source(folder), tmp_path)
    assert texts == [["a dog"]]
    [found] = bad.values()
    assert reason in found
    assert "\n" not in found


@pytest.mark.hostile("texts")
@pytest.mark.parametrize(
    ("content", "captions"),
    [
        (b"\xef\xbb\xbfone\ntwo\n", ["one", "two"]),
        (b"one\r\ntwo\rthree", ["one", "two", "three"]),
        (
            "one\u2028two\nthree\x0cfour\u0085five\x1csix".encode(),
            ["one\u2028two", "three\x0cfour\u0085five\x1csix"],
        ),
        ("\ufeff\n\u200b\n \none\n".encode(), ["one"]),
        ("café\n".encode("latin-1"), "caption is not UTF-8"),
        ("one\n".encode("utf-16"), "caption is not UTF-8"),
        (b"a \xed\xa0\x80 b", "caption is not UTF-8"),
        (b"\n \n", "no caption"),
        (None, "no text file with a caption"),
    ],
)
def test_the_captions_of_a_text_file(folder, tmp_path, content, captions):
    (folder / "b.png").write_bytes(png(colour=(1, 2, 3)))
    (folder / "b.txt").write_text("the other")
    if content is not None:
        (folder / "a.txt").write_bytes(content)
    texts, bad = checked(folder_source(folder), tmp_path)
    if isinstance(captions, str):
        assert (texts, bad) == ([["the other"]], {"a.png": captions})
    else:
        assert (texts, bad) == ([captions, ["the other"]], {})


@pytest.mark.hostile("texts")
def test_a_byte_order_mark_changes_no_metadata(folder, tmp_path):
    (folder / "metadata.jsonl").write_bytes(
        b"\xef\xbb\xbf" + GOOD + b"\r\n" + '{"file_name": "a.png", "text": "x\u2028y"}'.encode()
    )
    assert checked(folder_source(folder), tmp_path) == ([["a dog"], ["x\u2028y"]], {})


@pytest.mark.hostile("files and folders")
@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "spoilt", ["picture is a pipe", "caption is a pipe", "picture is a folder", "name is no UTF-8"]
)
def test_what_is_no_file_is_set_aside(folder, tmp_path, spoilt):
    (folder / "a.txt").write_text("a dog")
    (folder / "b.txt").write_text("a cat")
    bad_name = folder / "b.png"
    if spoilt == "picture is a pipe":
        os.mkfifo(folder / "b.png")
    elif spoilt == "caption is a pipe":
        (folder / "b.png").write_bytes(png())
        (folder / "b.txt").unlink()
        os.mkfifo(folder / "b.txt")
    elif spoilt == "picture is a folder":
        (folder / "b.png").mkdir()
    else:
        bad_name = os.path.join(os.fsencode(folder), b"b\xff.png")
        with open(bad_name, "wb") as file:
            file.write(png())
        with open(bad_name.replace(b".png", b".txt"), "wb") as file:
            file.write(b"a cat")
    texts, bad = checked(folder_source(folder), tmp_path)
    assert texts == [["a dog"]]
    [reason] = bad.values()
    assert any(
        words in reason for words in ("not a regular file", "Is a directory", "file name is not UTF-8")
    )


@pytest.mark.hostile("files and folders")
@pytest.mark.timeout(60)
def test_metadata_that_is_a_pipe_is_an_error(folder):
    os.mkfifo(folder / "metadata.jsonl")
    with pytest.raises(LLMDiffError, match=r"metadata\.jsonl is not a regular file"):
        folder_source(folder)


@pytest.mark.hostile("user pictures")
@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
@pytest.mark.parametrize("turned", [3, 6, 8])
def test_turned_pictures_train_upright_in_their_bucket_with_their_sizes(folder, tmp_path, kind, turned):
    """An upright picture is 64 wide and 96 high, however it is stored."""
    pixels = np.zeros((96, 64, 3), np.uint8)
    pixels[:32] = 255
    exif = Image.Exif()
    exif[0x0112] = turned
    degrees = {3: 180, 6: 90, 8: 270}[turned]
    stored = Image.fromarray(pixels).rotate(degrees, expand=True)
    (folder / "a.png").unlink()
    stored.save(folder / f"a.{kind}", exif=exif.tobytes())
    (folder / "a.txt").write_text("a cat")
    samples = check_samples(folder_source(folder), SHAPES, tmp_path / "checked")
    _, width, height, bucket = samples.rows[0].tolist()
    assert (width, height) == (64, 96)
    loaded, _, sizes = samples.load(0, np.random.default_rng(0))
    assert sizes.original == (96, 64)
    assert sizes.target == SHAPES.buckets()[bucket]
    assert sizes.target[0] > sizes.target[1]
    assert loaded[:, 4].min() > 0.8
    assert loaded[:, -4:].max() < -0.8


@pytest.mark.hostile("user pictures")
@pytest.mark.parametrize(
    "content",
    [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EOF\n",
        b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf\0\0\0\x10meta",
        b"qoif\0\0\0\x08\0\0\0\x08\x09\0\0\0",
        b"FTEX" + bytes(20),
        b"DDS |\0\0\0" + bytes(30),
        b"\0\0\0\x0cjP  \r\n\x87\n",
        png()[:50] + b"\xff" * 30,
        png(kind="WEBP")[:40],
    ],
)
def test_one_damaged_picture_of_any_format_ends_no_run(folder, tmp_path, content):
    (folder / "b.png").write_bytes(content)
    for name in ("a", "b"):
        (folder / f"{name}.txt").write_text(name)
    texts, bad = checked(folder_source(folder), tmp_path)
    assert texts == [["a"]]
    assert bad["b.png"] in ("not a picture", "picture is damaged")


@pytest.mark.hostile("texts")
def test_the_command_goes_on_without_the_bad_rows_and_says_how_many(config, folder, tmp_path):
    for number in (1, 2, 3):
        (folder / f"{number}.png").write_bytes(png())
    (folder / "metadata.jsonl").write_bytes(
        b'{"file_name": "1.png", "text": "a cat \\ud83d"}\n{"file_name": "2.png", "text": null}\n'
        b'{"file_name": "3.png", "text": "a dog"}\n'
    )
    settings = config(
        data__path=str(folder),
        data__max_bad_share=0.9,
        training__batch_size=1,
        watch__validation_samples=None,
    )
    path = tmp_path / "c.yaml"
    path.write_text(settings.as_yaml())
    ran = CliRunner().invoke(app, ["prepare", str(path)])
    assert ran.exit_code == 0, ran.output
    assert "1 good samples, 2 in quarantine" in ran.output
    assert "2 captions, 1 pictures" in ran.output
    [listed] = (tmp_path / "store" / "samples").glob("*/quarantine.jsonl")
    assert [json.loads(line)["reason"] for line in listed.read_text().splitlines()] == [
        f"caption {SURROGATE}",
        "no caption",
    ]
