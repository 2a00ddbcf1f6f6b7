"""Tables and tar shards of strangers: one bad row is set aside with its reason, the others are used."""

import io
import os
import tarfile

import pyarrow as pa
import pytest

from llmdiff.errors import DataError
from llmdiff.training.shards import shards_source
from llmdiff.training.sources import TableSource, hub_source

from .odd_samples import checked, png


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
    samples[key] = {suffix: content for suffix, content in samples[key].items() if content is not None}
    return samples.items()


@pytest.mark.hostile("texts")
@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"txt": "café".encode("latin-1")}, "caption is not UTF-8"),
        ({"txt": b"\xff\xfea\0"}, "caption is not UTF-8"),
        ({"txt": b""}, "empty caption"),
        ({"txt": None, "json": b"[1]"}, "caption: the JSON beside the picture is not an object"),
        ({"txt": None, "json": b"[" * 5000}, "caption: the JSON beside the picture is not an object"),
        ({"txt": None, "json": b'{"caption": {"a": 1}}'}, "caption is not a text"),
        (
            {"txt": None, "json": b'{"caption": "a\\ud83d"}'},
            "caption has half a character (a lone surrogate)",
        ),
        ({"txt": None, "json": b'{"caption": "\xe9"}'}, "caption is not UTF-8"),
        ({"txt": None, "json": b"{}"}, "no caption"),
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
    assert "the shard is truncated or damaged at byte" in bad[str(path)]


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
