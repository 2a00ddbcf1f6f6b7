"""Training of the checker: targets against rendered pixels, faults of pictures, resuming, its figures."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from llmdiff.world.checker import CELL_PX, GRID, WorldChecker, to_checker_input
from llmdiff.world.places import places
from llmdiff.world.reading import Reading, reading_of
from llmdiff.world.rendering import SCENE_SIZE_PX, backdrop, render, renderers
from llmdiff.world.scenes import Placed, Scene, World
from llmdiff.world.splits import SPLITS, held_out_parts
from llmdiff.world.things import BACKGROUNDS, COLOURS, STYLES
from llmdiff_lab.world_build.checker import (
    StepBatches,
    Targets,
    targets_of,
    train_checker,
    training_scenes,
)
from llmdiff_lab.world_build.checker_figures import (
    checker_figures,
    figures_tables,
    held_out_scenes,
    pairs_read,
)
from llmdiff_lab.world_build.spoiling import mush, spoil, to_uint8

WORLD = World(thing_count=40, styles=("flat", "line"))
CPU = torch.device("cpu")


def scenes_of(count: int, seed: int = 0) -> list[Scene]:
    return training_scenes(WORLD, random.Random(seed), count)


def cell_of(targets: Targets, picture: int, x_px: float, y_px: float) -> int:
    """Which of the targets' cells is the one at this place of this picture."""
    where = torch.tensor([picture, int(y_px // CELL_PX), int(x_px // CELL_PX)])
    return int((targets.cells == where[:, None]).all(0).nonzero()[0])


def test_targets_are_the_box_of_the_pixels_that_a_thing_changes() -> None:
    checker = WorldChecker(WORLD, channels=8)
    alone = [scene for scene in scenes_of(400) if len(scene.things) == 1][:60]
    assert len(alone) == 60
    targets = targets_of(checker, alone, CPU)
    for i, scene in enumerate(alone):
        placed = scene.things[0]
        behind = backdrop(scene.place, scene.background, SCENE_SIZE_PX).astype(int)
        changed = np.abs(render(scene) - behind).max(-1) > 24  # less is the resampling's ringing
        if placed.style == "line" and scene.background == "white":
            continue  # white on white: the pixels say less
        rows, columns = (np.flatnonzero(changed.any(axis)) for axis in (1, 0))
        x, y = (columns[0] + columns[-1] + 1) / 2, (rows[0] + rows[-1] + 1) / 2
        at = cell_of(targets, i, x, y)
        kind = checker.kinds[int(targets.kinds[at])]
        assert kind == (placed.name, placed.who)
        _, row, column = targets.cells[:, at].tolist()
        dx, dy, width, height = targets.box[at].tolist()
        assert (column + 0.5 + dx) * CELL_PX == pytest.approx(x, abs=2)
        assert (row + 0.5 + dy) * CELL_PX == pytest.approx(y, abs=2)
        # A thin white border may lie around the drawing.
        assert -1.5 < np.ptp(columns) + 1 - 0.3 * np.exp(width) * SCENE_SIZE_PX < 4
        assert -1.5 < np.ptp(rows) + 1 - 0.3 * np.exp(height) * SCENE_SIZE_PX < 4


def test_targets_name_colours_styles_and_what_is_behind_and_nothing_far_from_all_things() -> None:
    checker = WorldChecker(WORLD, channels=8)
    scenes = scenes_of(200, seed=1)
    targets = targets_of(checker, scenes, CPU)
    behind = [*places(), *BACKGROUNDS]
    for i, scene in enumerate(scenes):
        assert behind[int(targets.behind[i])] == (scene.place or scene.background)
        of_picture = targets.cells[0] == i
        assert {checker.kinds[kind] for kind in targets.kinds[of_picture].tolist()} == {
            (placed.name, placed.who) for placed in scene.things
        }
        assert int((targets.presence[i] == 1).sum()) == int(of_picture.sum()) <= 4 * len(scene.things)
        assert set(targets.styles[of_picture].tolist()) == {STYLES.index(scene.style)}
        said = {[*COLOURS, None][colour] for colour in targets.colours[of_picture].tolist() if colour >= 0}
        coloured = [placed for placed in scene.things if placed.thing.colours and placed.style != "line"]
        assert said == {placed.colour for placed in coloured}
        assert targets.presence[i].min() <= 0
    nothing = targets_of(checker, [None] * 3, CPU)
    assert not nothing.presence.any()
    assert nothing.cells.shape == (3, 0)
    assert (nothing.behind == -1).all()


def test_the_checker_is_shown_what_is_held_out_from_the_models() -> None:
    scenes = scenes_of(600)
    shown = set().union(*(held_out_parts(scene) for scene in scenes))
    assert {"pairs", "colours", "counts", "styles"} <= shown
    assert {scene.style for scene in scenes} == set(WORLD.styles)
    assert sum(placed.upside_down for scene in scenes for placed in scene.things) > 20


def test_a_pool_makes_the_pictures_that_the_training_would_make_itself() -> None:
    alone = StepBatches(WORLD, 3, 4, None)
    with renderers(1) as pool:
        together = StepBatches(WORLD, 3, 4, pool)
        for step in (5, 6):
            scenes, images = alone.of_step(step)
            others, pictures = together.of_step(step)
            assert scenes == others
            assert images.shape == (4, SCENE_SIZE_PX, SCENE_SIZE_PX, 3)
            assert np.array_equal(images, pictures)
        pool.shutdown(cancel_futures=True)
    assert not np.array_equal(alone.of_step(5)[1], alone.of_step(6)[1])


def test_spoiling_is_light_is_the_same_for_the_same_chance_and_leaves_some_pictures_clean() -> None:
    images = np.stack([render(scene) for scene in scenes_of(40)])
    clean = to_checker_input(images)
    spoilt = spoil(images, np.random.default_rng(3))
    error = (spoilt - clean).square().mean((1, 2, 3))
    assert spoilt.shape == clean.shape
    assert float(spoilt.abs().max()) <= 1
    assert 0.05 < float((error == 0).float().mean()) < 0.5
    assert 0 < float(error.max()) < 0.3
    assert torch.equal(spoil(images, np.random.default_rng(3)), spoilt)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(spoil(images, np.random.default_rng(3)), spoilt)
    assert torch.equal(spoil(images, np.random.default_rng(4), clean_share=1.0), clean)
    gone = mush(clean, clean.roll(1, dims=0), np.random.default_rng(5))
    assert gone.shape == clean.shape
    assert float((gone - clean).square().mean()) > 4 * float(error.mean())


@pytest.mark.slow
def test_a_short_training_reads_above_chance_and_a_finished_one_is_loaded(tmp_path: Path) -> None:
    world = World(thing_count=20, styles=("flat",))

    def trained() -> WorldChecker:
        return train_checker(world, steps=60, batch=8, lr=6e-3, folder=tmp_path, device=CPU, channels=16)

    checker = trained()
    scenes = training_scenes(world, random.Random("fresh"), 200)
    read = checker.read(np.stack([render(scene) for scene in scenes]))
    behind = [
        (reading.place, reading.background) == (scene.place, scene.background)
        for reading, scene in zip(read, scenes, strict=True)
    ]
    assert np.mean(behind) > 4 / (len(places()) + len(BACKGROUNDS))
    again = trained()
    for name, value in checker.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])


class Reader(WorldChecker):
    """Reads what it is told, call by call."""

    def __init__(self, calls: Sequence[Sequence[Reading]]) -> None:
        super().__init__(WORLD, channels=8)
        self.calls = list(calls)

    def read(self, images: NDArray[np.uint8], *, batch: int = 64) -> list[Reading]:
        assert images.shape[1:] == (SCENE_SIZE_PX, SCENE_SIZE_PX, 3)
        return list(self.calls.pop(0))


def test_figures_count_what_was_read_right_and_what_was_taken_for_what() -> None:
    scenes = [scene for _, scene in held_out_scenes(WORLD, 44, seed=2)]
    truth = [reading_of(scene) for scene in scenes]
    empty = [Reading(things=()) for _ in scenes]
    first = truth[0].things[0]
    other = "cat" if first.name != "cat" else "dog"
    mistaken = replace(truth[0], things=(replace(first, name=other, who=None), *truth[0].things[1:]))
    figures = checker_figures(Reader([[mistaken, *truth[1:]], empty, truth]), renders=44, seed=2)
    assert figures["exact"] == round(43 / 44, 4)
    assert figures["splits"]["seen"] == 0.75
    assert all(share == 1 for name, share in figures["splits"].items() if name != "seen")
    assert figures["parts"]["things"] == round(43 / 44, 4)
    assert figures["spoilt"] == 0
    assert figures["nothing"] == 1
    assert figures["shuffled"] < 0.1
    shown = f"{first.name} ({first.who})" if first.who else first.name
    assert figures["confusions"] == [[shown, other, 1]]
    things = sum(len(scene.things) for scene in scenes)
    assert figures["things read right"] == round(1 - 1 / things, 4)
    table = figures_tables(figures, markdown=True)
    assert f"| {shown} | {other} | 1 |" in " ".join(table.split())
    assert "| all | 97.73 |" in " ".join(table.split())


def test_what_is_missing_or_added_is_paired_with_nothing() -> None:
    scene = Scene(
        things=(Placed(name="cat", x=0.2, side=0.3), Placed(name="dog", x=0.8, side=0.3)), relation="left"
    )
    truth = reading_of(scene)
    assert pairs_read(scene, truth) == [("cat", "cat"), ("dog", "dog")]
    moved = replace(truth, things=(truth.things[0], replace(truth.things[1], y=0.9)))
    assert pairs_read(scene, moved) == [("cat", "cat"), ("dog", "nothing"), ("nothing", "dog")]


def test_splits_that_a_world_cannot_show_are_left_out() -> None:
    of_one_style = held_out_scenes(World(thing_count=40, styles=("flat",)), 40, seed=0)
    assert {split for split, _ in of_one_style} == set(SPLITS) - {"styles"}
    for split, scene in held_out_scenes(WORLD, 110, seed=0):
        assert held_out_parts(scene) == {split} & {"pairs", "colours", "counts", "styles"}


def test_pictures_come_back_as_they_went_in() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    assert np.array_equal(to_uint8(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1), images)


def test_cells_cover_the_picture() -> None:
    assert CELL_PX * GRID == SCENE_SIZE_PX
