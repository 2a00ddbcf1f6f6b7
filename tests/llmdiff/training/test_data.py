"""Samples: every bad one listed with its reason, every good one once per epoch, pictures cut as asked."""

import io
import json
import tarfile
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from llmdiff.errors import DataError
from llmdiff.training.batches import Epochs, Prefetcher
from llmdiff.training.data import check_samples
from llmdiff.training.folders import folder_source
from llmdiff.training.shapes import Shapes
from llmdiff.training.shards import shards_source
from llmdiff.training.sources import hub_source

SHAPES = Shapes(resolution_px=32, multiple_px=8, min_side_px=16)


def _picture(rng, width=32, height=32, kind="JPEG"):
    file = io.BytesIO()
    pixels = rng.integers(0, 256, size=(height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def _spoilt(way, path, line, rng):
    """Writes a bad sample in one of ten ways; gives its metadata line and the reason it should be listed with."""
    good = _picture(rng)
    if way == 0:
        return line, "picture is missing"
    if way == 1:
        path.write_bytes(b"")
        return line, "not a picture"
    if way == 2:
        path.write_bytes(b"<html>404 not found</html>")
        return line, "not a picture"
    if way == 3:
        path.write_bytes(good[: len(good) // 2])
        return line, "picture is damaged"
    if way == 4:
        path.write_bytes(_picture(rng, kind="PNG")[:-400])
        return line, "picture is damaged"
    if way == 5:
        path.write_bytes(_picture(rng, 12, 12))
        return line, "picture is too small"
    if way == 6:
        path.write_bytes(_picture(rng, 160, 20))
        return line, "picture is too long"
    path.write_bytes(good)
    if way == 7:
        return json.dumps({"file_name": path.name, "text": "  "}), "empty caption"
    if way == 8:
        return json.dumps({"file_name": path.name, "text": 7}), "caption is not a text"
    return line[:-5], "metadata: not a JSON object with file_name"


def _make_folder(folder, count, bad_every):
    folder.mkdir()
    rng = np.random.default_rng(0)
    sizes = [(32, 32), (48, 32), (32, 48), (40, 32)]
    pictures = {size: _picture(rng, *size) for size in sizes}
    lines, expected, good = [], {}, set()
    for index in range(count):
        path = folder / f"{index:05d}.jpg"
        line = json.dumps({"file_name": path.name, "captions": [f"a cat {index}", f"one cat {index}"]})
        if index % bad_every == 7:
            way = index // bad_every % 10
            line, reason = _spoilt(way, path, line, rng)
            expected[f"line {index + 1}" if way == 9 else path.name] = reason
        else:
            path.write_bytes(pictures[sizes[index % 4]])
            good.add(index)
        lines.append(line)
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return expected, good


def _check_folder(tmp_path, count):
    expected, good = _make_folder(tmp_path / "data", count, bad_every=33)
    assert set(expected.values()) == {
        "picture is missing",
        "not a picture",
        "picture is damaged",
        "picture is too small",
        "picture is too long",
        "empty caption",
        "caption is not a text",
        "metadata: not a JSON object with file_name",
    }
    samples = check_samples(folder_source(tmp_path / "data"), SHAPES, tmp_path / "checked")
    [listed] = (tmp_path / "checked").glob("*/quarantine.jsonl")
    found = [json.loads(line) for line in listed.read_text().splitlines()]
    assert {line["key"]: line["reason"] for line in found} == expected
    assert samples.quarantined == len(expected) == len(found)

    epochs = Epochs(rows=samples.rows, batch_size=16, seed=3)
    for epoch in (0, 1):
        used = Counter()
        for number in range(epochs.batches_per_epoch):
            batch = epochs.batch(epoch * epochs.batches_per_epoch + number)
            assert len({int(samples.rows[index, 3]) for index in batch}) == 1
            used.update(int(samples.rows[index, 0]) for index in batch)
        assert used == Counter(dict.fromkeys(good, 1))


def test_bad_samples_are_listed_and_good_ones_used_once_per_epoch(tmp_path):
    _check_folder(tmp_path, 700)


@pytest.mark.soak
def test_ten_thousand_samples_of_which_three_in_a_hundred_are_bad(tmp_path):
    _check_folder(tmp_path, 10_000)


def test_too_many_bad_samples_stop_the_run(tmp_path):
    _make_folder(tmp_path / "data", 400, bad_every=9)
    with pytest.raises(DataError, match=r"of 400 samples are bad, more than max_bad_share 0\.05 allows"):
        check_samples(folder_source(tmp_path / "data"), SHAPES, tmp_path / "checked")
    assert len(check_samples(folder_source(tmp_path / "data"), SHAPES, tmp_path, max_bad_share=0.2)) > 300


def test_what_was_checked_is_not_checked_again_unless_something_changed(tmp_path, monkeypatch):
    _make_folder(tmp_path / "data", 60, bad_every=50)
    first = check_samples(folder_source(tmp_path / "data"), SHAPES, tmp_path / "checked")
    with monkeypatch.context() as patched:
        patched.setattr("llmdiff.training.data.check", None)
        again = check_samples(folder_source(tmp_path / "data"), SHAPES, tmp_path / "checked")
        other = Shapes(resolution_px=64, multiple_px=8)
        with pytest.raises(TypeError):  # it looks again
            check_samples(folder_source(tmp_path / "data"), other, tmp_path / "checked")
    assert torch.equal(first.rows, again.rows)
    assert first.fingerprint == again.fingerprint
    for path in (tmp_path / "data").glob("*.jpg"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="has changed since it was checked"):
        again.load(0, np.random.default_rng(0))
    with pytest.raises(DataError, match="60 of 60 samples are bad"):
        check_samples(folder_source(tmp_path / "data"), SHAPES, tmp_path / "checked")


def test_epochs_differ_and_seeds_differ():
    rows = torch.zeros(50, 4, dtype=torch.int64)
    epochs = Epochs(rows=rows, batch_size=8, seed=0)
    first = [epochs.batch(number) for number in range(7)]
    assert first == [Epochs(rows=rows, batch_size=8, seed=0).batch(number) for number in range(7)]
    assert first != [epochs.batch(number) for number in range(7, 14)]
    assert first != [Epochs(rows=rows, batch_size=8, seed=1).batch(number) for number in range(7)]


def test_buckets_have_about_the_same_area_and_pictures_go_to_the_nearest(tmp_path):
    shapes = Shapes(resolution_px=512, multiple_px=64)
    buckets = shapes.buckets()
    assert (512, 512) in buckets
    assert (704, 384) in buckets
    for height, width in buckets:
        assert height % 64 == width % 64 == 0
        assert 0.8 < height * width / 512**2 < 1.2
        assert max(height / width, width / height) <= 2
    assert Shapes(resolution_px=512, aspect_buckets=False).buckets() == [(512, 512)]
    (tmp_path / "d").mkdir()
    for name, size in (("wide", (64, 32)), ("square", (40, 40)), ("upright", (30, 60))):
        (tmp_path / "d" / f"{name}.jpg").write_bytes(_picture(np.random.default_rng(0), *size))
        (tmp_path / "d" / f"{name}.txt").write_text("a cat\n")
    samples = check_samples(folder_source(tmp_path / "d"), SHAPES, tmp_path / "checked")
    found = [SHAPES.buckets()[row[3]] for row in samples.rows.tolist()]
    square, upright, wide = found  # in the order of their names
    assert square == (32, 32)
    assert upright[0] > 32 > upright[1]
    assert wide[0] < 32 < wide[1]
    for index, (height, width) in enumerate(found):
        pixels, text, sizes = samples.load(index, np.random.default_rng(0))
        assert pixels.shape == (3, height, width)
        assert text == "a cat"
        assert sizes.target == (height, width)
        assert -1 <= pixels.min() < pixels.max() <= 1


def _one_picture(tmp_path, captions, **more):
    gradient = np.zeros((32, 64, 3), dtype=np.uint8)
    gradient[:, :, 0] = np.arange(64) * 4  # red grows to the right
    folder = tmp_path / "one"
    folder.mkdir()
    Image.fromarray(gradient).save(folder / "a.png")
    (folder / "a.txt").write_text("\n".join(captions))
    shapes = Shapes(resolution_px=32, multiple_px=32, aspect_buckets=False, min_side_px=8, **more)
    return check_samples(folder_source(folder), shapes, tmp_path / "checked")


def test_pictures_are_mirrored_unless_the_caption_names_a_side(tmp_path):
    samples = _one_picture(tmp_path, ["a cat", "a cat on the left", "Rightmost dog"], flip=True)
    mirrored = Counter()
    for seed in range(60):
        pixels, text, _ = samples.load(0, np.random.default_rng(seed))
        mirrored[text, bool(pixels[0, 0, 0] > pixels[0, 0, -1])] += 1
    assert mirrored["a cat", True] > 3
    assert mirrored["a cat", False] > 3
    assert mirrored["a cat on the left", True] == mirrored["Rightmost dog", True] == 0
    assert mirrored["a cat on the left", False] > 3  # every caption is used


@pytest.mark.parametrize(("crop", "corners"), [("centre", {16}), ("random", set(range(33)))])
def test_crops(tmp_path, crop, corners):
    samples = _one_picture(tmp_path, ["a cat"], crop=crop)
    seen = {samples.load(0, np.random.default_rng(seed))[2].crop for seed in range(40)}
    assert {top for top, _ in seen} == {0}
    assert {left for _, left in seen} <= corners
    assert (len(seen) > 10) == (crop == "random")


def _make_shard(path, samples):
    with tarfile.open(path, "w") as tar:
        for key, parts in samples:
            for suffix, content in parts.items():
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def test_tar_shards_as_img2dataset_writes_them(tmp_path):
    rng = np.random.default_rng(0)
    whole = {"json": json.dumps({"caption": "x", "status": "success"}).encode()}
    for shard in (0, 1):
        samples = [
            (f"{shard:05d}{i:04d}", {"jpg": _picture(rng), "txt": f"cat {shard} {i}".encode(), **whole})
            for i in range(6)
        ]
        samples += [
            (f"{shard:05d}0006", {"jpg": _picture(rng)[:200], "txt": b"cut off", **whole}),
            (f"{shard:05d}0007", {"jpg": _picture(rng), **whole}),
            (f"{shard:05d}0008", {"txt": b"no picture", **whole}),
            (f"{shard:05d}0009", {"webp": _picture(rng, kind="WEBP"), "txt": b"another kind", **whole}),
        ]
        _make_shard(tmp_path / f"{shard:05d}.tar", samples)
    source = shards_source(str(tmp_path / "*.tar"), cache=tmp_path / "cache")
    samples = check_samples(source, SHAPES, tmp_path / "checked", max_bad_share=0.5)
    texts = {samples.load(index, rng)[1] for index in range(len(samples))}
    assert texts == {f"cat {s} {i}" for s in (0, 1) for i in range(6)} | {"another kind", "x"}
    assert len(samples) == 16
    [listed] = (tmp_path / "checked").glob("*/quarantine.jsonl")
    reasons = Counter(json.loads(line)["reason"] for line in listed.read_text().splitlines())
    assert reasons == {"picture is damaged": 2, "no picture in the shard": 2}


@pytest.mark.parametrize(
    ("parts", "captions"),
    [
        ({"caption": b"beside"}, ["beside"]),
        ({"txt": b"first", "caption": b"beside", "json": b'{"caption": "inside"}'}, ["first"]),
        ({"json": b'{"text": "inside"}'}, ["inside"]),
        ({"json": b'{"captions": ["one", "two"]}'}, ["one", "two"]),
    ],
)
def test_captions_of_a_shard_are_beside_the_picture_or_in_its_json(tmp_path, parts, captions):
    _make_shard(tmp_path / "a.tar", [("0", {"jpg": _picture(np.random.default_rng(0)), **parts})])
    source = shards_source(str(tmp_path / "a.tar"), cache=tmp_path / "cache")
    assert source.row(0).texts == captions


def test_shards_are_named_by_a_brace_range(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(9, 12):
        sample = (f"{number}", {"jpg": _picture(rng), "txt": f"cat {number}".encode()})
        _make_shard(tmp_path / f"{number:05d}.tar", [sample])
    source = shards_source(str(tmp_path / "{00009..00010}.tar"), cache=tmp_path / "cache")
    assert [source.row(index).texts for index in range(len(source))] == [["cat 9"], ["cat 10"]]
    with pytest.raises(DataError, match=r"00012\.tar is missing"):
        shards_source(str(tmp_path / "{00009..00012}.tar"), cache=tmp_path / "cache")
    with pytest.raises(DataError, match="more than 100,000 files"):
        shards_source(str(tmp_path / "{1..99999999}.tar"), cache=tmp_path / "cache")


def test_a_shard_that_is_no_tar_is_an_error(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"rubbish")
    with pytest.raises(DataError, match=r"a\.tar' cannot be read"):
        shards_source(str(tmp_path / "a.tar"), cache=tmp_path / "cache")


def test_a_data_set_of_the_librarys_own(tmp_path):
    import datasets

    rng = np.random.default_rng(0)
    rows = {
        "picture": [{"bytes": _picture(rng), "path": None} for _ in range(3)],
        "short": ["a", "b", "c"],
        "long": [["a cat", "the cat"], ["b"], ["c"]],
    }
    features = datasets.Features(
        {
            "picture": datasets.Image(),
            "short": datasets.Value("string"),
            "long": datasets.List(datasets.Value("string")),
        }
    )
    (tmp_path / "set").mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "set" / "train.parquet")
    arguments = {"split": "train", "image_column": "picture", "cache": tmp_path / "cache"}
    source = hub_source(str(tmp_path / "set"), caption_columns=["short", "long"], **arguments)
    samples = check_samples(source, SHAPES, tmp_path / "checked")
    assert len(samples) == 3
    assert {samples.load(0, np.random.default_rng(seed))[1] for seed in range(30)} == {
        "a",
        "a cat",
        "the cat",
    }
    with pytest.raises(DataError, match="no column 'text', it has picture, short, long"):
        hub_source(str(tmp_path / "set"), caption_columns=["text"], **arguments)


def test_values_are_made_ahead():
    made = []
    prefetcher = Prefetcher(lambda number: made.append(number) or number * 10, stride=2, ahead=2)
    assert [prefetcher.get(number) for number in (1, 3, 5)] == [10, 30, 50]
    assert prefetcher.get(100) == 1000  # a jump, as after a resume
    assert len(made) == len(set(made))
