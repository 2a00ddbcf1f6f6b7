"""The scenes' SigLIP: which captions are true of which scenes, its loss, its size, and what a trained one prefers."""

from pathlib import Path

import numpy as np
import pytest
import torch

from llmdiff.evaluation.metrics.alignment import SigLIPScore
from llmdiff.evaluation.metrics.loading import load_metric
from llmdiff.evaluation.metrics.models import ImageTextModel
from llmdiff.openmoji.contents import World
from llmdiff.openmoji.scenes import Content, Item, draw, lay_out
from llmdiff_lab.world_build.presets import CPU, TEST
from llmdiff_lab.world_build.siglip import (
    CaptionedRenders,
    captioned_renders,
    fits,
    held_out_order,
    scene_facts,
    train_siglip,
)
from llmdiff_lab.world_build.text_encoder import create_tokenizer
from llmdiff_lab.world_build.world_siglip import create_siglip, sigmoid_loss, to_pixels

WORLD = World(objects=TEST.objects)
PACKAGED = Path(__file__).parents[3] / "src" / "llmdiff" / "openmoji" / "weights" / "siglip"
BUILT = Path.home() / ".cache" / "llmdiff" / "builds" / "openmoji-cpu" / "siglip" / "model"


def test_a_caption_is_true_of_every_scene_that_shows_what_it_says() -> None:
    first, second = (Item(name=thing.name) for thing in WORLD.things[:2])
    contents = (
        Content(items=(first,)),
        Content(items=(first,), size="small", background="blue"),
        Content(items=(first, second), relation="left"),
        Content(items=(first, second), relation="right"),
        Content(items=(second,), count=2),
    )
    rng = np.random.default_rng(0)
    scenes = tuple(lay_out(content, rng) for content in contents)
    renders = CaptionedRenders(
        captions=("",) * 5, contents=contents, scenes=scenes, pixels=torch.zeros(5, 3, 64, 64)
    )
    expected = np.eye(5, dtype=bool)
    expected[0, 1] = True  # "a cat" is true of a small cat on blue, not the other way round
    assert (fits(renders) == expected).all()


def test_facts_are_what_is_stated_whichever_thing_is_named_first() -> None:
    first, second = (Item(name=thing.name) for thing in WORLD.things[:2])
    left = Content(items=(first, second), relation="left", background="blue")
    same = Content(items=(second, first), relation="right")
    turned = Content(items=(first, second), relation="right")
    three = Content(items=(first,), count=3)
    facts = scene_facts([left, same, turned, three], WORLD)
    assert facts.sum(1).tolist() == [2, 2, 2, 1]
    assert torch.equal(facts[0], facts[1])
    assert (facts[0] * facts[2]).sum() == (facts[0] * facts[3]).sum() == 0


def test_renders_are_pairs_of_near_misses_that_hold_what_is_held_out() -> None:
    renders = captioned_renders(World(objects=24), np.random.default_rng(1), 48, 64)
    assert renders.pixels.shape == (48, 3, 64, 64)
    assert len(set(renders.captions)) > 40
    true = fits(renders)
    for i in range(0, 48, 2):
        a, b = renders.contents[i], renders.contents[i + 1]
        assert a != b
        assert a.items[0] == b.items[0] or a.relation is None or a.relation == b.relation
    assert true.sum() < 60


def test_pixels_are_those_of_the_image_processor(tmp_path: Path) -> None:
    tokenizer = create_tokenizer(TEST, tmp_path / "tokenizer")
    created = create_siglip(TEST, tokenizer)
    images = np.stack(
        [draw(lay_out(Content(items=(Item(name=WORLD.things[0].name),)), np.random.default_rng(2)))]
    )
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
    images = np.zeros((2, 64, 64, 3), dtype=np.uint8)
    assert metric.score(images, ["a car", "two cars"])["siglip"].shape == (2,)


def test_the_loss_is_that_of_the_model_itself_where_only_pairs_match(tmp_path: Path) -> None:
    """transformers' own SigLIP loss takes the diagonal as right; ours has to agree where nothing else fits."""
    tokenizer = create_tokenizer(TEST, tmp_path / "tokenizer")
    created = create_siglip(TEST, tokenizer)
    model = created.model.eval()
    ids = tokenizer(["a car", "a cat"], padding="max_length", return_tensors="pt").input_ids
    pixels = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        own = model(input_ids=ids, pixel_values=pixels, return_loss=True)
    ours = sigmoid_loss(own.logits_per_text, torch.eye(2, dtype=torch.bool))
    assert ours.item() == pytest.approx(own.loss.item(), rel=1e-5)


@pytest.fixture(scope="module")
def real_siglip() -> ImageTextModel:
    for folder in (PACKAGED, BUILT):
        if folder.is_dir():
            return ImageTextModel.from_pretrained(folder)
    pytest.skip("no trained SigLIP: neither in the package nor built (openmoji.build --only siglip)")


def test_a_trained_one_prefers_clean_pictures_and_true_captions(real_siglip: ImageTextModel) -> None:
    shares = held_out_order(real_siglip, CPU, count=240)
    assert shares["shuffled"] > 0.9
    assert shares["near_miss"] > 0.65
    assert shares["blurred"] > 0.8
    assert shares["noised"] > 0.8
