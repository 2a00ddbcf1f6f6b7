"""SigLIP of scenes: near misses differ in one respect, and a caption is true of what it says."""

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from llmdiff.evaluation.metrics.alignment import SigLIPScore
from llmdiff.evaluation.metrics.loading import load_metric
from llmdiff.evaluation.metrics.models import ImageTextModel
from llmdiff.world.captions import Caption
from llmdiff.world.expected import Expected, ExpectedThing
from llmdiff.world.packaged import WEIGHTS
from llmdiff.world.reading import expected_of, matches, reading_of
from llmdiff.world.rendering import render
from llmdiff.world.scenes import Placed, Scene, any_scene, laid_out
from llmdiff_lab.world_build.near_misses import near_miss
from llmdiff_lab.world_build.presets import CPU, TEST
from llmdiff_lab.world_build.siglip import (
    CaptionedScenes,
    captioned_scenes,
    create_siglip,
    fits,
    held_out_order,
    scene_facts,
    sigmoid_loss,
    to_pixels,
    train_siglip,
)
from llmdiff_lab.world_build.text_encoder import create_tokenizer

WORLD = CPU.world
BUILT = Path.home() / ".cache" / "llmdiff" / "builds" / "cpu" / "siglip" / "model"


def test_a_near_miss_differs_in_one_respect_that_a_caption_could_ask_for():
    rng, faults = random.Random(0), Counter()
    for _ in range(200):
        scene = laid_out(any_scene(WORLD, rng), rng)
        other = near_miss(scene, WORLD, rng)
        verdict = matches(expected_of(scene), reading_of(other))
        assert not verdict.exact
        faults.update(verdict.faults)
        assert matches(expected_of(other), reading_of(other)).exact
    # Every kind of change occurs; a missing thing is an extra one too.
    for fault in (
        "thing missing",
        "wrong colour",
        "wrong count",
        "wrong relation",
        "wrong background",
        "wrong place",
    ):
        assert faults[fault] > 2, faults


def test_captions_are_true_of_every_scene_that_shows_what_they_say():
    cat = Scene(things=(Placed(name="cat"),), relation="alone", background="white")
    beach = replace(cat, background=None, place="beach")
    two = replace(cat, things=cat.things * 2, relation="group")
    asked = Caption(text="a cat", expected=Expected(things=(ExpectedThing(name="cat"),)))
    before_the_sea = replace(asked, expected=replace(asked.expected, place="beach"))
    shown = CaptionedScenes(scenes=(cat, beach, two), captions=(asked, before_the_sea, asked))
    # Each is true of its own scene by definition, the third too.
    assert fits(shown).tolist() == [[True, True, False], [False, True, False], [True, True, True]]


def test_facts_are_things_with_their_number_or_their_side():
    left = Scene(things=(Placed(name="cat"), Placed(name="dog")), relation="left", background="white")
    right = Scene(things=left.things[::-1], relation="right", background="white")
    three = Scene(things=(Placed(name="cat"),) * 3, relation="group", background="white")
    facts = scene_facts([left, right, three], WORLD)
    assert facts.sum(1).tolist() == [2, 2, 1]
    assert torch.equal(facts[0], facts[1])
    assert (facts[0] * facts[2]).sum() == 0


def test_batches_are_pairs_in_all_voices():
    shown = captioned_scenes(WORLD, random.Random(3), 64)
    assert len(shown.scenes) == len(set(shown.texts)) == 64
    true = fits(shown)
    assert true.diagonal().all()
    assert true[np.arange(64), np.arange(64) ^ 1].mean() < 0.5  # a caption need not say what differs


def test_pixels_are_those_of_the_image_processor(tmp_path: Path) -> None:
    tokenizer = create_tokenizer(TEST, tmp_path / "tokenizer")
    created = create_siglip(TEST, tokenizer)
    images = np.stack([render(laid_out(any_scene(WORLD, random.Random(2)), random.Random(2)))])
    processed = created.image_processor(images=list(images), return_tensors="pt").pixel_values
    assert torch.allclose(processed, to_pixels(images), atol=1e-5)


def test_the_shipped_size_fits_the_package(tmp_path: Path) -> None:
    model = create_siglip(CPU, create_tokenizer(TEST, tmp_path / "tokenizer")).model
    assert 2 * sum(parameter.numel() for parameter in model.parameters()) < 3_000_000


def test_training_lowers_the_loss_resumes_and_scores_by_name(tmp_path: Path) -> None:
    tokenizer = create_tokenizer(TEST, tmp_path / "tokenizer")
    trained = train_siglip(TEST, tokenizer, tmp_path / "run", torch.device("cpu"))
    again = train_siglip(TEST, tokenizer, tmp_path / "run", torch.device("cpu"))
    for name, value in trained.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name
    figures = held_out_order(trained, TEST, count=120)
    assert set(figures) == {"near_miss", "shuffled", "blurred", "noised", "renders"}
    assert all(0 <= figures[name] <= 1 for name in figures if name != "renders")
    trained.model.half()
    trained.save_pretrained(tmp_path / "saved")
    assert not list((tmp_path / "saved").glob("*.bin"))
    metric = load_metric("siglip", tmp_path / "saved")
    assert isinstance(metric, SigLIPScore)
    assert metric.model.model.dtype == torch.float32
    images = np.zeros((2, 128, 128, 3), dtype=np.uint8)
    assert metric.score(images, ["a car", "two cars"])["siglip"].shape == (2,)


def test_the_loss_is_that_of_the_model_itself_where_only_pairs_match(tmp_path: Path) -> None:
    """transformers' own SigLIP loss takes the diagonal as right; ours has to agree where nothing else fits."""
    tokenizer = create_tokenizer(TEST, tmp_path / "tokenizer")
    created = create_siglip(TEST, tokenizer)
    model = created.model.eval()
    ids = tokenizer(["a car", "a cat"], padding="max_length", return_tensors="pt").input_ids
    pixels = torch.rand(2, 3, 128, 128) * 2 - 1
    with torch.no_grad():
        own = model(input_ids=ids, pixel_values=pixels, return_loss=True)
    ours = sigmoid_loss(own.logits_per_text, torch.eye(2, dtype=torch.bool))
    assert ours.item() == pytest.approx(own.loss.item(), rel=1e-5)


@pytest.fixture(scope="module")
def real_siglip() -> ImageTextModel:
    for folder in (WEIGHTS / "siglip", BUILT):
        if folder.is_dir():
            return ImageTextModel.from_pretrained(folder)
    pytest.skip("no trained SigLIP: neither in the package nor built (llmdiff-lab build --only siglip)")


def test_a_trained_one_prefers_clean_pictures_and_true_captions(real_siglip: ImageTextModel) -> None:
    shares = held_out_order(real_siglip, CPU, count=240)
    assert shares["shuffled"] > 0.9
    assert shares["near_miss"] > 0.65
    assert shares["blurred"] > 0.8
    assert shares["noised"] > 0.8
