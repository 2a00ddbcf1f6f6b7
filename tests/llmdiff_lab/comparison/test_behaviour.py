"""How systems of a benchmark draw: under guidance, and where their attention to nouns lies."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from llmdiff.drawing.attention_maps import Word
from llmdiff.errors import AdapterNotFoundError, ConfigError
from llmdiff.evaluation.suites.scenes import scene_prompts
from llmdiff.world.reading import Reading, SeenThing
from llmdiff_lab.comparison import behaviour
from llmdiff_lab.comparison.attention import FIGURES, NounMaps, draw_noun_maps, noun_figures, two_nouns
from llmdiff_lab.comparison.behaviour import compare_behaviour, main
from llmdiff_lab.comparison.guidance import guidance_figures, predictions
from llmdiff_lab.comparison.prepare import choose_rivals, prepare_benchmark
from llmdiff_lab.comparison.runs import read_run
from llmdiff_lab.comparison.settings import read_settings
from llmdiff_lab.comparison.systems import Variant

NAMES = ("lavi-bridge", "guided", "ella")


@pytest.fixture(scope="module")
def plan(built, tmp_path_factory):
    plan = prepare_benchmark(
        built,
        tmp_path_factory.mktemp("behaviour"),
        choose_rivals(("base", *NAMES), variants={"guided-x2": Variant(rival="guided", steps=2)}),
        seeds=1,
        steps=6,
        prompts_per_split=1,
        validation_prompts=2,
        drawing_steps=2,
    )
    plan.fill()
    return plan


def test_settings_are_read_from_the_folder(plan, tmp_path):
    assert read_settings(plan.folder) == plan.settings
    with pytest.raises(ConfigError, match="has no benchmark"):
        read_settings(tmp_path)
    stored = json.loads((plan.folder / "settings.json").read_text())
    (tmp_path / "settings.json").write_text(json.dumps({**stored, "protocol": 1}))
    with pytest.raises(ConfigError, match="protocol 1"):
        read_settings(tmp_path)


def test_two_nouns_are_single_and_named_once():
    found = two_nouns(scene_prompts(20, 1))
    assert len(found) > 50
    for row in found:
        assert [thing.count for thing in row.expected.things] == [1, 1]
        assert row.expected.relation in ("left", "right", "above", "below")
        words = row.prompt.lower().replace(".", "").replace(",", "").split()
        assert all(words.count(thing.name.split()[-1]) == 1 for thing in row.expected.things)


@pytest.fixture
def row():
    found = two_nouns(scene_prompts(20, 1))
    return next(row for row in found if row.expected.relation == "left")


def maps_of(row, first, second):
    """Maps of the prompt's words, zero but for the two nouns."""
    words = tuple(
        Word(text=text, start=at, end=at + 1) for at, text in enumerate(row.prompt.rstrip(".").split())
    )
    maps = torch.zeros(len(words), 16, 16)
    found = NounMaps(row=row, picture=Image.new("RGB", (8, 8)), words=words, maps={"both": maps})
    for thing, values in zip(row.expected.things, (first, second), strict=True):
        maps[found.noun(thing.name)] = values
    return found


def test_figures_of_nouns_that_look_at_their_things(row):
    left, right = torch.zeros(16, 16), torch.zeros(16, 16)
    left[4:12, 0:8], right[4:12, 8:16] = 0.5, 0.25
    names = [thing.name for thing in row.expected.things]
    seen = Reading(
        things=tuple(
            SeenThing(name=n, x=x, y=0.5, side=0.5) for n, x in zip(names, (0.25, 0.75), strict=True)
        )
    )
    got = noun_figures(maps_of(row, left, right), "both", seen)
    # Each has all its attention in a quarter of the picture, and a quarter of the picture has a share of 1/4.
    assert got == {"words": 0.75 / 4, "own": 4.0, "other": 0.0, "overlap": 0.0, "order": 1.0}
    swapped = noun_figures(maps_of(row, right, left), "both", seen)
    assert (swapped["own"], swapped["other"], swapped["order"]) == (0.0, 4.0, 0.0)
    same = noun_figures(maps_of(row, left, left), "both", Reading(things=()))
    assert (same["overlap"], same["order"]) == (1.0, 0.0)
    assert np.isnan(same["own"])
    assert np.isnan(same["other"])


def test_figures_without_the_nouns_are_not_numbers(row):
    found = maps_of(row, torch.ones(16, 16), torch.ones(16, 16))
    strangers = tuple(replace(word, text="thing") for word in found.words)
    got = noun_figures(replace(found, words=strangers), "both", Reading(things=()))
    assert got["words"] == 2.0
    assert all(np.isnan(got[name]) for name in FIGURES if name != "words")


@pytest.mark.parametrize("name", ["base", "lavi-bridge", "guided"])
def test_attention_to_all_tokens_adds_up_to_one_and_the_picture_is_unchanged(plan, name):
    drawer = plan.drawer(name, 0)
    row = replace(scene_prompts(1, 1, plan.scorer.checker.world)[0], prompt="a red cat left of the dog")
    with drawer.attached():
        found = draw_noun_maps(drawer.pipe, drawer.conditioning, row, steps=2, guidance_scale=3.0)
        plain = drawer.pipe(
            row.prompt,
            num_inference_steps=2,
            guidance_scale=3.0,
            generator=torch.Generator().manual_seed(row.seeds(1, 0)[0]),
        ).images[0]
    assert np.array_equal(np.asarray(found.picture), np.asarray(plain))
    assert set(found.maps) == ({"both", "pretrained", "new"} if name == "guided" else {"its own"})
    spoken = {word.text.lower() for word in found.words}
    assert {"cat", "dog"} <= spoken
    for maps in found.maps.values():
        total = maps.sum(0)
        assert total.min() > 0
        assert total.max() < 1  # BOS has the rest


def test_maps_of_a_system_whose_tokens_are_not_words_are_refused(plan):
    drawer = plan.drawer("ella", 0)
    row = scene_prompts(1, 1)[0]
    with drawer.attached(), pytest.raises(ConfigError, match="maps of words are known for"):
        draw_noun_maps(drawer.pipe, drawer.conditioning, row, steps=1, guidance_scale=3.0)


def test_predictions_are_those_of_the_pipeline_and_the_base_has_no_gap(plan):
    rows = scene_prompts(1, 1, plan.scorer.checker.world)[:3]
    base = plan.drawer("base", 0)
    found = predictions(base.pipe, base.attached, rows)
    assert found[0].shape[:2] == (8, 3)
    again = predictions(base.pipe, base.attached, rows[:1])
    # The text encoder pads nothing to the longest prompt, so a scene's prediction depends on no other.
    torch.testing.assert_close(again[0][:, 0], found[0][:, 0], atol=1e-4, rtol=1e-4)
    same = guidance_figures(found, found)
    assert all(np.allclose(same[name], 0) for name in ("caption gap", "blank gap", "guidance gap"))
    assert all(np.allclose(same[name], 1) for name in ("cosine", "strength"))
    drawer = plan.drawer("guided", 0)
    other = guidance_figures(predictions(drawer.pipe, drawer.attached, rows), found)
    assert (other["guidance gap"] > 0).all()
    assert (other["loss"] > 0).all()


def test_figures_of_guidance_are_those_of_their_formulas():
    torch.manual_seed(0)
    caption, blank, target = torch.randn(3, 2, 4, 1, 2, 2).unbind(0)
    system = (caption, 2 * blank, target)
    got = guidance_figures(system, (caption, blank, target))
    wanted = (caption - blank).double()
    at = wanted[:, 0]
    assert got["caption gap"][0] == 0
    assert got["blank gap"][0] == pytest.approx(float(blank[:, 0].square().sum() / at.square().sum()))
    assert got["guidance gap"][0] == pytest.approx(got["blank gap"][0])
    given = (caption - 2 * blank)[:, 0].double()
    assert got["strength"][0] == pytest.approx(float(given.norm() / at.norm()))
    assert got["cosine"][0] == pytest.approx(float((given * at).sum() / given.norm() / at.norm()))
    assert got["loss"][0] == pytest.approx(float((caption - target)[:, 0].square().mean()))


def test_the_whole_comparison(plan, monkeypatch, tmp_path):
    monkeypatch.setattr(behaviour, "SCALES", (1.0, 3.0))
    monkeypatch.setattr(behaviour, "load_benchmark", lambda folder: plan)
    tables = main([str(plan.folder), str(tmp_path), "lavi-bridge", "guided"])
    assert (tmp_path / "behaviour.md").read_text() == tables
    record = json.loads((tmp_path / "behaviour.json").read_text())
    assert list(record["exact by guidance scale"]["means"]) == ["base", "lavi-bridge", "guided"]
    assert list(record["exact by guidance scale"]["lavi-bridge minus"]) == ["base", "guided"]
    assert list(record["attention"]["means"]) == [
        "base",
        "lavi-bridge",
        "guided, pretrained",
        "guided, new",
        "guided, both",
    ]
    runs = {name: read_run(plan.trainings.place(name, 0), name, 0).figure("scenes") for name in NAMES}
    assert record["suite"]["means"]["guided"]["exact"]["mean"] == runs["guided"].mean()
    difference = record["suite"]["lavi-bridge minus"]["guided"]["exact"]
    assert difference["mean"] == (runs["lavi-bridge"] - runs["guided"]).mean()
    assert record["guidance"]["means"]["base"]["guidance gap"]["mean"] == 0
    with Image.open(tmp_path / "behaviour.png") as picture:
        assert picture.size[0] > 500


def test_too_few_prompts_of_two_nouns_are_an_error_before_anything_is_drawn(plan, monkeypatch):
    monkeypatch.setattr(behaviour, "two_nouns", lambda rows: rows[:1])
    with pytest.raises(ConfigError, match="validation_prompts is 2: 1 of these prompts"):
        compare_behaviour(plan, ["guided"])


def test_what_is_missing_is_an_error_before_anything_is_drawn(plan, monkeypatch, tmp_path):
    monkeypatch.setattr(type(plan), "validation_exact", lambda *_: pytest.fail("drawn"))
    with pytest.raises(
        ConfigError, match="no evaluation of 'mlp-lora' with seed 0: run llmdiff-lab benchmark"
    ):
        compare_behaviour(plan, ["guided", "mlp-lora"])
    model = plan.trainings.place("ella", 0) / "model"
    model.rename(tmp_path / "model")  # as in the recorded runs, which have no weights
    with pytest.raises(AdapterNotFoundError):
        compare_behaviour(plan, ["guided", "ella"])
    (tmp_path / "model").rename(model)


def test_arguments_are_checked():
    with pytest.raises(ConfigError, match="expected FOLDER OUT SYSTEM"):
        main(["a", "b"])
