"""Training data of strangers: one bad sample is set aside with its reason, the others are used, nothing hangs."""

import io
import json
import os
import tarfile

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from typer.testing import CliRunner

from llmdiff.cli.main import app
from llmdiff.errors import DataError, LLMDiffError
from llmdiff.training.data import Shapes, check_samples
from llmdiff.training.folders import folder_source
from llmdiff.training.shards import shards_source
from llmdiff.training.sources import TableSource, hub_source

SHAPES = Shapes(resolution_px=32, multiple_px=8, min_side_px=16)
SURROGATE = "has half a character (a lone surrogate)"


def png(size=(32, 32), colour=(200, 30, 30), **options):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, options.pop("kind", "PNG"), **options)
    return file.getvalue()


def checked(source, tmp_path):
    """The captions of the good samples, and the reasons of the others by their keys."""
    samples = check_samples(source, SHAPES, tmp_path / "checked", max_bad_share=0.9)
    [listed] = (tmp_path / "checked").glob("*/quarantine.jsonl")
    bad = [json.loads(line) for line in listed.read_text().split("\n")[:-1]]
    texts = [samples.texts(index) for index in range(len(samples))]
    for index in range(len(samples)):
        samples.load(index, np.random.default_rng(0))
    return texts, {line["key"]: line["reason"] for line in bad}


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


def table(**columns):
    import datasets

    return datasets.Dataset(pa.table(columns))


PICTURES = pa.array(
    [{"bytes": png(), "path": None}] * 2, pa.struct({"bytes": pa.binary(), "path": pa.string()})
)


@pytest.mark.hostile("texts")
def test_a_caption_in_a_second_column_counts_where_the_first_has_none(tmp_path):
    source = TableSource(
        table(image=PICTURES, one=[None, "a"], two=["b", None], three=pa.nulls(2, pa.string())),
        image="image",
        captions=["one", "two", "three"],
    )
    assert checked(source, tmp_path) == ([["b"], ["a"]], {})


@pytest.mark.hostile("texts")
@pytest.mark.parametrize("spoilt", ["latin-1", "null picture", "null caption", "picture of another kind"])
def test_one_bad_row_of_a_table_is_set_aside(tmp_path, spoilt):
    texts = pa.array(["a cat", "a dog"])
    pictures = PICTURES
    if spoilt == "latin-1":  # which files may hold and Arrow does not check
        raw = pa.array(["caf\xe9".encode("latin-1"), b"a dog"])
        texts = pa.Array.from_buffers(pa.string(), 2, raw.buffers())
    elif spoilt == "null caption":
        texts = pa.array([None, "a dog"])
    elif spoilt == "null picture":
        pictures = pa.array([None, PICTURES[1].as_py()], PICTURES.type)
    else:
        pictures = pa.array([{"bytes": b"GIF89a", "path": None}, PICTURES[1].as_py()], PICTURES.type)
    found, bad = checked(
        TableSource(table(image=pictures, text=texts), image="image", captions=["text"]), tmp_path
    )
    assert found == [["a dog"]]
    reasons = {
        "latin-1": "the row cannot be read",
        "null picture": "no picture",
        "null caption": "caption is not a text",
        "picture of another kind": "not a picture",
    }
    assert bad["row 0"].startswith(reasons[spoilt])


@pytest.mark.hostile("user pictures")
def test_the_datasets_library_decodes_no_picture_itself(tmp_path, monkeypatch):
    """Neither that of the column that is read nor those of others, which it would do with any of Pillow's decoders."""
    import datasets

    features = datasets.Features(
        {"image": datasets.Image(), "mask": datasets.Image(), "text": datasets.Value("string")}
    )
    cell = {"bytes": png(), "path": None}
    rows = {"image": [cell], "mask": [{"bytes": b"%!PS-Adobe-3.0 EPSF-3.0\n", "path": None}], "text": ["a"]}
    (tmp_path / "set").mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "set" / "train.parquet")

    def refuse(*_, **__):
        raise AssertionError("decoded by the library")

    monkeypatch.setattr(datasets.Image, "decode_example", refuse)
    source = hub_source(
        str(tmp_path / "set"),
        split="train",
        image_column="image",
        caption_columns=["text"],
        cache=tmp_path / "cache",
    )
    assert checked(source, tmp_path) == ([["a"]], {})


def test_a_column_of_several_pictures_is_refused():
    import datasets

    features = datasets.Features({"image": datasets.List(datasets.Image()), "text": datasets.Value("string")})
    rows = {"image": [[{"bytes": png(), "path": None}]], "text": ["a"]}
    with pytest.raises(DataError, match=r"column 'image' holds .*, expected one picture"):
        TableSource(datasets.Dataset.from_dict(rows, features=features), image="image", captions=["text"])


def shard(path, samples):
    with tarfile.open(path, "w") as tar:
        for key, parts in samples:
            for suffix, content in parts.items():
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def three(*, key="1", parts=None):
    """Three samples, of which the second has another name or other parts."""
    samples = {
        name: {"png": png(colour=(n, 9, 9)), "txt": f"caption {n}".encode()}
        for n, name in enumerate(("0", key, "2"))
    }
    samples[key] |= parts or {}
    return samples.items()


@pytest.mark.hostile("texts")
@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"txt": "café".encode("latin-1")}, "caption is not UTF-8"),
        ({"txt": b"\xff\xfea\0"}, "caption is not UTF-8"),
        ({"txt": b""}, "empty caption"),
        ({"png": b"GIF89a"}, "not a picture"),
        ({"png": b""}, "not a picture"),
    ],
)
def test_one_bad_sample_of_a_shard_is_set_aside(tmp_path, parts, reason):
    shard(tmp_path / "a.tar", three(parts=parts))
    source = shards_source(str(tmp_path / "*.tar"), cache=tmp_path / "cache")
    assert checked(source, tmp_path) == ([["caption 0"], ["caption 2"]], {"1": reason})


@pytest.mark.hostile("files and folders")
@pytest.mark.parametrize("spoilt", ["bad checksum", "cut off in a picture", "cut off in a header", "no end"])
def test_a_damaged_shard_says_where_it_ends(tmp_path, spoilt):
    path = tmp_path / "a.tar"
    shard(path, three())
    with tarfile.open(path) as tar:
        places = {member.name: (member.offset, member.offset_data) for member in tar}
        end = tar.offset
    content = bytearray(path.read_bytes())
    if spoilt == "bad checksum":
        content[places["2.png"][0]] ^= 1
    elif spoilt == "cut off in a picture":
        del content[places["2.png"][1] + 20 :]
    elif spoilt == "cut off in a header":
        del content[places["2.png"][0] + 100 :]
    else:
        del content[end:]
    path.write_bytes(content)
    texts, bad = checked(shards_source(str(path), cache=tmp_path / "cache"), tmp_path)
    whole = [["caption 0"], ["caption 1"], ["caption 2"]]
    assert texts == (whole if spoilt == "no end" else whole[:2])
    assert "the shard is cut off or damaged at byte" in bad[str(path)]


@pytest.mark.hostile("files and folders")
@pytest.mark.parametrize("name", ["b\udcff", "a/../../b", "n" * 300, "new\nline"])
def test_odd_names_in_a_shard_are_only_names(tmp_path, name):
    shard(tmp_path / "a.tar", three(key=name))
    texts, bad = checked(shards_source(str(tmp_path / "a.tar"), cache=tmp_path / "cache"), tmp_path)
    assert len(texts) == 3
    assert bad == {}


@pytest.mark.hostile("files and folders")
@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["a pipe", "compressed", "empty", "no such files"])
def test_a_shard_that_cannot_be_read_is_one_line(tmp_path, kind):
    path = tmp_path / "a.tar"
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "compressed":
        with tarfile.open(path, "w:gz") as tar:
            tar.addfile(tarfile.TarInfo("a.txt"))
    elif kind == "empty":
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"a\.tar' cannot be read") as refused:
        shards_source(str(path), cache=tmp_path / "cache")
    assert len(str(refused.value).splitlines()) == 1
    assert "while generating" not in str(refused.value)


@pytest.mark.hostile("texts")
def test_the_command_goes_on_without_the_bad_rows_and_says_how_many(config, folder, tmp_path):
    for number in (1, 2, 3):
        (folder / f"{number}.png").write_bytes(png())
    (folder / "metadata.jsonl").write_bytes(
        b'{"file_name": "1.png", "text": "a cat \\ud83d"}\n{"file_name": "2.png", "text": null}\n'
        b'{"file_name": "3.png", "text": "a dog"}\n'
    )
    settings = config(data__path=str(folder), data__max_bad_share=0.9)
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
