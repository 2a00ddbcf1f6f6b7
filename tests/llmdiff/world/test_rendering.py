"""Scenes as pixels: colours, styles, sizes, speed, and lines for what is missing."""

import os
import time
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from llmdiff.cli.main import app
from llmdiff.errors import LLMDiffError
from llmdiff.world.artwork import aspect, picture, sprite, use_fluent
from llmdiff.world.rendering import backdrop, render, render_many, renderers, sprite_box
from llmdiff.world.scenes import Placed, Scene, World
from llmdiff.world.sheets import contact_sheet
from llmdiff.world.splits import sample_scene
from llmdiff.world.things import BACKGROUNDS, COLOURS, all_things

WORLD = World(thing_count=60, styles=("flat", "line"))


def rgb(colour: str) -> np.ndarray:
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])


def alone(placed: Placed, **other) -> Scene:
    return Scene(things=(placed,), relation="alone", **({"background": "white"} | other))


def share_of(image: np.ndarray, colour: str) -> float:
    return float((np.abs(image.astype(int) - rgb(colour)).sum(-1) < 12).mean())


@pytest.mark.parametrize("name", ["circle", "car", "balloon", "book", "t-shirt", "flower"])
@pytest.mark.parametrize("colour", COLOURS)
def test_a_painted_thing_has_its_colour(name, colour) -> None:
    image = render(alone(Placed(name=name, colour=colour, side=0.8)))
    assert image.shape == (128, 128, 3)
    assert image.dtype == np.uint8
    assert share_of(image, COLOURS[colour]) > 0.02
    others = [share_of(image, COLOURS[other]) for other in COLOURS if other != colour]
    assert share_of(image, COLOURS[colour]) > max(others)


def test_every_recolourable_thing_changes_where_it_is_painted() -> None:
    for thing in all_things().values():
        if thing.fills:
            green = render(alone(Placed(name=thing.name, colour="green", side=0.8)))
            assert share_of(green, COLOURS["green"]) > 0.015, thing.name


def test_every_thing_can_be_drawn_in_flat_colour_and_fills_its_square() -> None:
    for thing in all_things().values():
        for who in thing.who or (None,):
            drawn = picture(thing.name, "flat", "red" if thing.is_shape else None, who)
            alpha = drawn[..., 3]
            assert drawn.shape[0] == drawn.shape[1]
            assert max(np.ptp(np.flatnonzero(alpha.max(axis) > 5)) for axis in (0, 1)) >= drawn.shape[0] - 4
            assert aspect(thing.name, "flat", who) < 12
        if thing.who:
            man, woman = (picture(thing.name, "flat", None, who) for who in thing.who)
            assert man.shape != woman.shape or (man != woman).any(), thing.name


def test_a_line_drawing_is_black_and_white() -> None:
    drawn = picture("cat", "line", None, None).astype(int)
    seen = drawn[drawn[..., 3] > 250][:, :3]
    assert np.ptp(seen, axis=1).max() <= 2
    assert (seen.mean(1) > 240).mean() > 0.4
    assert (seen.mean(1) < 30).mean() > 0.1


def test_upside_down_is_the_mirror_image() -> None:
    upright = sprite("cat", "flat", None, None, 60, False, False)
    assert (sprite("cat", "flat", None, None, 60, True, False) == upright[::-1]).all()


def test_on_a_dark_background_things_have_a_white_border() -> None:
    image = render(alone(Placed(name="bat", side=0.6), background="black"))
    left, top, side = sprite_box(Placed(name="bat", side=0.6))
    assert (image[top : top + side, left : left + side].min(-1) > 200).mean() > 0.01


def test_backgrounds_and_places_fill_the_picture() -> None:
    for name, colour in BACKGROUNDS.items():
        assert share_of(render(alone(Placed(name="cat", side=0.4), background=name)), colour) > 0.75
    beach = backdrop("beach", None, 128)
    image = render(alone(Placed(name="cat", side=0.4), background=None, place="beach"))
    assert (image == beach).all(-1).mean() > 0.75


def test_rendering_is_the_same_in_this_process_and_in_others() -> None:
    scenes = [sample_scene(0, index, WORLD) for index in range(150)]
    with renderers(2) as pool:
        alike = render_many(scenes, pool=pool)
        assert (render_many(scenes[:3], 64, pool=pool)[2] == render(scenes[2], 64)).all()
    assert alike.shape == (150, 128, 128, 3)
    for scene, image in zip(scenes, alike, strict=True):
        assert (image == render(scene)).all()


def test_rendering_is_fast_once_things_have_been_drawn() -> None:
    for scene in [sample_scene(0, index, WORLD) for index in range(400)]:
        render(scene)
    fresh = [sample_scene(1, index, WORLD) for index in range(400)]
    started = time.process_time()
    for scene in fresh:
        render(scene)
    # Measured: 900 fresh scenes a second and core, 4,900 once their sprites are cached in their sizes too.
    assert 400 / (time.process_time() - started) > 300


def test_no_drawing_hides_another() -> None:
    for index in range(400):
        scene = sample_scene(2, index, WORLD)
        inked = []
        for placed in scene.things:
            left, top, side = sprite_box(placed)
            drawn = sprite(
                placed.name, placed.style, placed.colour, placed.who, side, placed.upside_down, False
            )
            ink = np.zeros((128, 128), dtype=bool)
            ink[top : top + side, left : left + side] = drawn[..., 3] > 40
            inked.append(ink)
        for one, other in combinations(inked, 2):
            # Measured over 2,500 scenes of the whole world: 0.13 at most, above 0.03 in one of a hundred.
            assert (one & other).sum() <= 0.15 * min(one.sum(), other.sum()), scene


def test_contact_sheets_show_all(tmp_path) -> None:
    sheet = contact_sheet(WORLD.things, tile_px=32, columns=10)
    assert sheet.width == 10 * 38 + 6
    assert sheet.height > 300


def test_shaded_pictures_come_from_the_folder_of_the_package(tmp_path) -> None:
    with pytest.raises(LLMDiffError, match="fluent-emoji-3d"):
        picture("cat", "3d", None, None)
    with pytest.raises(LLMDiffError, match=r"assets/1f436\.webp"):
        use_fluent(tmp_path)
    assets = tmp_path / "package" / "assets"
    assets.mkdir(parents=True)
    shaded = Image.new("RGBA", (64, 64))
    shaded.paste((200, 10, 90, 255), (8, 16, 56, 48))
    for name in ("1f436", "1f431"):
        shaded.save(assets / f"{name}.webp", lossless=True)
    try:
        use_fluent(tmp_path)
        image = render(alone(Placed(name="cat", style="3d", side=0.8)))
        assert share_of(image, "#c80a5a") > 0.2
        with pytest.raises(LLMDiffError, match="'lion'"):
            picture("lion", "3d", None, None)
    finally:
        use_fluent(None)


def test_the_verb_lists_everything_and_writes_a_sheet(tmp_path) -> None:
    run = CliRunner().invoke
    listed = run(app, ["world"])
    assert listed.exit_code == 0
    for words in (
        "animals (",
        "actions (",
        "cat, dog",
        "beach",
        "styles (2): flat, line",
        "llmdiff world --out",
    ):
        assert words in listed.stdout
    one = run(app, ["world", "--group", "music", "--out", str(tmp_path / "sheet.png")])
    assert one.exit_code == 0
    assert one.stdout.startswith("music (")
    assert Image.open(tmp_path / "sheet.png").width > 500


@pytest.mark.hostile("numbers and options")
@pytest.mark.parametrize(
    ("options", "named"),
    [(["--group", "cars"], "--group: got 'cars'"), (["--style", "oil"], "--style: got 'oil'"),
     (["--style", "3d"], "--style: got '3d', expected one of flat, line"),
     (["--out", "sheet.png", "--fluent", "nowhere"], "nowhere has no pictures"),
     (["--out", "."], "does not end in .png")],
)  # fmt: skip
def test_a_wrong_option_is_named_in_one_line(options, named, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused = CliRunner().invoke(app, ["world", *options])
    assert refused.exit_code == 1
    assert named in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    assert os.listdir() == []
    assert Path("sheet.png").exists() is False


def test_without_the_extra_the_verb_lists_and_says_what_brings_the_sheet(monkeypatch, tmp_path) -> None:
    from llmdiff import environment as extras

    found = extras.importlib.util.find_spec
    monkeypatch.setattr(
        extras.importlib.util, "find_spec", lambda name: None if name == "resvg_py" else found(name)
    )
    listed = CliRunner().invoke(app, ["world", "--group", "sky"])
    assert listed.exit_code == 0
    assert "needs the extra 'train'" in listed.stdout
    refused = CliRunner().invoke(app, ["world", "--out", str(tmp_path / "sheet.png")])
    assert refused.exit_code == 1
    assert "llmdiff-adapter[train]" in refused.stderr


@pytest.mark.hostile("files and folders")
def test_a_pipe_is_not_replaced_by_the_picture(tmp_path) -> None:
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    refused = CliRunner().invoke(app, ["world", "--group", "music", "--out", str(pipe)])
    assert refused.exit_code == 1
    assert "is not a regular file" in refused.stderr
    assert pipe.is_fifo()
