"""The map of a scene says what its picture shows, and a U-Net that predicts it draws as before."""

import pytest
import torch
from torch.nn import functional as F

from llmdiff.world.layouts import RELATIONS
from llmdiff.world.rendering import sprite_box
from llmdiff.world.splits import sample_scene
from llmdiff.world.things import COLOURS
from llmdiff_lab.world_build.denoiser import create_unet
from llmdiff_lab.world_build.maps import MAP_SIDE, MappingUNet, map_classes, map_loss, map_sizes, scene_map
from llmdiff_lab.world_build.presets import find_preset


def test_a_map_says_what_lies_in_the_middle_of_each_cell():
    world = find_preset("test").world
    names, seen = map_classes(world), set()
    for index in range(200):
        scene = sample_scene(3, index, world)
        cells = scene_map(scene, world, 128)
        seen.add(scene.relation)
        for row in range(MAP_SIDE):
            for column in range(MAP_SIDE):
                x, y = 16 * column + 8, 16 * row + 8
                there = None
                for placed in scene.things:
                    left, top, side = sprite_box(placed)
                    if left < x < left + side and top < y < top + side:
                        there = placed
                what, colour, look = (int(cells[layer, row, column]) for layer in range(3))
                if there is None:
                    assert names[what] in (
                        (scene.place, "place"),
                        (scene.background, "background"),
                    )
                    assert (colour, look) == (0, 0)
                else:
                    assert names[what] == (there.name, there.who)
                    assert colour == (0 if there.colour is None else list(COLOURS).index(there.colour) + 1)
                    assert (look - 1) % 2 == there.upside_down
                    assert ("flat", "line", "3d")[(look - 1) // 2] == there.style
    assert seen == set(RELATIONS)


def test_the_map_loss_is_the_mean_cross_entropy_of_each_layer():
    sizes = map_sizes(find_preset("test").world)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, sum(sizes), 3, 3, generator=generator)
    maps = torch.stack([torch.randint(size, (2, 3, 3), generator=generator) for size in sizes], 1)
    expected, start = 0.0, 0
    for layer, size in enumerate(sizes):
        shares = F.softmax(logits[:, start : start + size].double(), dim=1)
        picked = shares.gather(1, maps[:, layer : layer + 1]).log()
        expected, start = expected - float(picked.mean()), start + size
    assert float(map_loss(logits, maps.short(), sizes)) == pytest.approx(expected, rel=1e-5)


def test_the_mapping_u_net_draws_what_the_u_net_draws_and_learns_from_both():
    unet = create_unet(find_preset("test"), 16)
    mapping = MappingUNet(unet, 9)
    sample, timestep = torch.randn(2, 4, 16, 16), torch.tensor([3, 900])
    states = torch.randn(2, 5, 32)
    output, logits = mapping(sample, timestep, states)
    assert torch.equal(output, unet(sample, timestep, states, return_dict=False)[0])
    assert logits.shape == (2, 9, MAP_SIDE, MAP_SIDE)
    map_loss(logits, torch.zeros(2, 1, MAP_SIDE, MAP_SIDE, dtype=torch.int16), (9,)).backward()
    assert unet.mid_block.resnets[0].conv1.weight.grad.abs().sum() > 0
    assert unet.conv_out.weight.grad is None
