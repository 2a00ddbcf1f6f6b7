"""Training of the checker on a tiny world: targets against the scenes' own centres, spoiling, resuming."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from llmdiff.evaluation.suites.scenes_check import CELL_PX, SceneChecker, to_checker_input
from llmdiff.openmoji.contents import World, is_training_content
from llmdiff_lab.world_build.checker import _targets, held_out_exact, real_renders, spoil, train_checker
from llmdiff_lab.world_build.presets import TEST

WORLD = World(objects=TEST.objects)


def test_targets_name_the_thing_at_its_centre_and_nothing_far_from_all() -> None:
    checker = SceneChecker(TEST.objects)
    _, scenes, _ = real_renders(WORLD, np.random.default_rng(0), 60, 64)
    targets = _targets(checker, scenes, np.zeros(60, dtype=bool))
    for i, scene in enumerate(scenes):
        for placed in scene.placed:
            cell = targets.things[i, int(placed.y_px // CELL_PX), int(placed.x_px // CELL_PX)]
            assert checker.class_names[cell - 1] == placed.item.name
        assert targets.things[i, 0, 0] == 0
        assert (targets.things[i] > 0).sum() <= 5 * len(scene.placed)
    mush = _targets(checker, scenes, np.ones(60, dtype=bool))
    assert not mush.things.any()
    assert (mush.background == -1).all()


def test_renders_hold_what_is_held_out_from_the_base() -> None:
    contents, _, images = real_renders(WORLD, np.random.default_rng(1), 60, 64)
    assert images.shape == (60, 64, 64, 3)
    assert not all(is_training_content(content) for content in contents)


def test_spoiling_is_light_and_leaves_some_pictures_clean() -> None:
    _, _, images = real_renders(WORLD, np.random.default_rng(2), 40, 64)
    pixels = to_checker_input(images)
    spoilt = spoil(pixels, np.random.default_rng(3))
    error = (spoilt - pixels).square().mean((1, 2, 3))
    assert spoilt.shape == pixels.shape
    assert float(spoilt.abs().max()) <= 1
    assert 0 < float(error.max()) < 0.1
    assert torch.equal(spoil(pixels, np.random.default_rng(3), clean_share=1.0), pixels)


def test_a_finished_training_is_loaded_and_can_be_prolonged(tmp_path: Path) -> None:
    trained = train_checker(TEST, tmp_path, torch.device("cpu"))
    again = train_checker(TEST, tmp_path, torch.device("cpu"))
    for name, value in trained.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    longer = train_checker(replace(TEST, checker_steps=6), tmp_path, torch.device("cpu"))
    assert any(not torch.equal(v, longer.state_dict()[k]) for k, v in trained.state_dict().items())
    figures = held_out_exact(longer, TEST, count=24)
    assert {"exact", "things", "relation", "background", "spoilt", "shuffled", "mush"} <= set(figures)
    assert all(0 <= value <= 1 for name, value in figures.items() if name != "renders")
