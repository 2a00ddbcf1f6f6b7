"""Data beside plain folders: scenes that are drawn on demand, and captions with a plain wording."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from llmdiff.training.data import check_samples
from llmdiff.training.folders import folder_source
from llmdiff.training.scene_sources import SceneSource
from llmdiff.training.shapes import Shapes
from llmdiff.world.rendering import render
from llmdiff.world.scenes import World
from llmdiff.world.splits import sample_scene, training_caption

SMALL = {"things": 20, "styles": ("flat",)}


def test_scenes_need_no_file(tmp_path):
    source = SceneSource(20, **SMALL, image_size_px=64)
    samples = check_samples(source, Shapes(resolution_px=64, multiple_px=16), tmp_path)
    first, again = (samples.load(4, np.random.default_rng(0)) for _ in range(2))
    assert torch.equal(first[0], again[0])
    assert first[1] == again[1]
    assert first[0].shape == (3, 64, 64)
    assert samples.texts(4) == [(first[1], first[1])]
    other = samples.load(5, np.random.default_rng(0))
    assert not torch.equal(first[0], other[0])
    assert samples.picture_name(4) != samples.picture_name(5)


def test_reworded_captions_have_more_words_and_their_plain_wording_has_fewer():
    source = SceneSource(300, **SMALL, image_size_px=32, wording="reworded")
    pairs = [(row.texts[0], row.plain_texts[0]) for row in map(source.row, range(len(source)))]
    rich, plain = (
        len({word for text in texts for word in text.lower().split()}) for texts in zip(*pairs, strict=True)
    )
    assert rich > 1.5 * plain
    assert sum(len(text) > len(short) for text, short in pairs) > 200


@pytest.mark.parametrize("wording", ["training", "reworded"])
def test_a_world_is_drawn_as_it_draws_itself(tmp_path, wording):
    source = SceneSource(12, **SMALL, image_size_px=32, wording=wording)
    samples = check_samples(source, Shapes(resolution_px=32, multiple_px=16), tmp_path)
    assert len(samples) == 12
    scene = sample_scene(0, 3, World(thing_count=20, styles=("flat",)))
    expected = torch.from_numpy(render(scene, 32)).permute(2, 0, 1) / 127.5 - 1
    pixels, text, _ = samples.load(3, np.random.default_rng(0))
    assert torch.allclose(pixels, expected)
    assert samples.texts(3) == [(text, training_caption(scene, 0, 3, "plain").text)]
    assert text == training_caption(scene, 0, 3, "rich" if wording == "reworded" else "plain").text


@pytest.mark.parametrize(("width", "height"), [(48, 32), (32, 100), (33, 47)])
def test_sizes_beside_stored_latents_are_those_of_the_loaded_picture(tmp_path, width, height):
    Image.new("RGB", (width, height)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a cat")
    shapes = Shapes(resolution_px=32, multiple_px=8, min_side_px=16)
    samples = check_samples(folder_source(tmp_path), shapes, tmp_path / "checked")
    assert samples.sizes(0) == samples.load(0, np.random.default_rng(0))[2]


def test_plain_captions_come_from_metadata_and_have_to_be_as_many(tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    lines = [
        {"file_name": "a.png", "captions": ["an automobile", "wheels"], "plain": ["a car", "a wheel"]},
        {"file_name": "a.png", "captions": ["an automobile", "wheels"], "plain": "a car"},
        {"file_name": "a.png", "text": "a bike", "plain": [3]},
        {"file_name": "a.png", "text": "a bike"},
    ]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shapes = Shapes(resolution_px=32)
    samples = check_samples(folder_source(tmp_path), shapes, tmp_path / "checked", max_bad_share=1)
    assert samples.texts(0) == [("an automobile", "a car"), ("wheels", "a wheel")]
    assert samples.texts(1) == [("a bike", "a bike")]
    bad = [json.loads(line) for line in (samples.place / "quarantine.jsonl").read_text().splitlines()]
    assert [line["reason"] for line in bad] == [
        "1 plain captions for 2 captions",
        "plain caption is empty or not a text",
    ]
