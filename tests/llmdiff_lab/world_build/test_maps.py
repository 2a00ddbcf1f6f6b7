"""The map of a scene says what its picture shows, and a U-Net that is asked for it draws as before."""

import numpy as np
import torch

from llmdiff.openmoji.contents import World
from llmdiff.openmoji.scenes import Content, Item, draw, lay_out
from llmdiff.openmoji.world import BACKGROUNDS
from llmdiff_lab.world_build.denoiser import create_unet
from llmdiff_lab.world_build.maps import MAP_SIDE, MappingUNet, map_classes, map_loss, scene_maps
from llmdiff_lab.world_build.presets import preset

WORLD = World(objects=24)


def test_a_map_names_both_things_on_their_sides_and_the_background_elsewhere():
    content = Content(
        items=(Item(name="cat"), Item(name="star", colour="red")), relation="left", background="pink"
    )
    scene = lay_out(content, np.random.default_rng(0))
    cells = scene_maps([scene], WORLD)[0]
    classes = map_classes(WORLD)
    left = {classes[i] for i in np.unique(cells[:, : MAP_SIDE // 2])}
    right = {classes[i] for i in np.unique(cells[:, MAP_SIDE // 2 :])}
    assert left == {Item(name="cat"), "pink"}
    assert right == {Item(name="star", colour="red"), "pink"}


def test_cells_without_a_thing_look_like_the_background():
    rng = np.random.default_rng(1)
    names = list(BACKGROUNDS)
    first_background = len(map_classes(WORLD)) - len(names)
    wrong = total = 0
    for _ in range(30):
        scene = lay_out(WORLD.training_content(rng), rng)
        cells = scene_maps([scene], WORLD)[0]
        side = 64 // MAP_SIDE
        corner = draw(scene).reshape(MAP_SIDE, side, MAP_SIDE, side, 3)[:, side // 2, :, side // 2]
        colour = BACKGROUNDS[scene.background]
        plain = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
        empty = cells >= first_background
        wrong += int((corner[empty] != plain).any(-1).sum())
        total += int(empty.sum())
        assert set(cells[empty].tolist()) == {first_background + names.index(scene.background)}
    assert wrong < 0.005 * total  # a frame's edge is rounded to whole pixels when it is drawn


def test_the_mapping_u_net_draws_what_the_u_net_draws_and_learns_from_both():
    unet = create_unet(preset("openmoji-test"), 16)
    mapping = MappingUNet(unet, 9)
    sample, timestep = torch.randn(2, 8, 16, 16), torch.tensor([3, 900])
    states = torch.randn(2, 5, 32)
    output, logits = mapping(sample, timestep, states)
    assert torch.equal(output, unet(sample, timestep, states, return_dict=False)[0])
    assert logits.shape == (2, 9, MAP_SIDE, MAP_SIDE)
    map_loss(logits, torch.zeros(2, MAP_SIDE, MAP_SIDE, dtype=torch.uint8)).backward()
    assert unet.mid_block.resnets[0].conv1.weight.grad.abs().sum() > 0
    assert unet.conv_out.weight.grad is None
