"""The text encoder learns from hidden cells of maps, which only the captions can tell."""

import pytest
import torch
from torch.nn import functional as F

from llmdiff_lab.world_build.maps import MAP_SIDE, map_loss, map_sizes
from llmdiff_lab.world_build.presets import find_preset
from llmdiff_lab.world_build.text_encoder import MapReader

SIZES = map_sizes(find_preset("test").world)


def random_maps(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    layers = [torch.randint(size, (count, MAP_SIDE, MAP_SIDE), generator=generator) for size in SIZES]
    return torch.stack(layers, 1).short()


def test_the_reader_sees_the_cells_that_are_not_hidden_and_no_others():
    torch.manual_seed(0)
    reader, states = MapReader(SIZES, 32, 2).eval(), torch.randn(2, 5, 32)
    maps, others = random_maps(2), random_maps(2, seed=1)
    hidden = torch.rand(2, MAP_SIDE, MAP_SIDE) < 0.5
    changed = torch.where(hidden[:, None], others, maps)
    logits = reader(maps, hidden, states)
    assert logits.shape == (2, sum(SIZES), MAP_SIDE, MAP_SIDE)
    torch.testing.assert_close(reader(changed, hidden, states), logits)
    assert not torch.allclose(reader(torch.where(hidden[:, None], maps, others), hidden, states), logits)
    assert not torch.allclose(reader(maps, hidden, states.flip(1) + 1), logits)


def test_only_hidden_cells_count():
    maps = random_maps(2)
    logits = torch.randn(2, sum(SIZES), MAP_SIDE, MAP_SIDE)
    hidden = torch.zeros(2, MAP_SIDE, MAP_SIDE, dtype=torch.bool)
    hidden[0, 1, 2] = hidden[1, 5, 0] = True
    expected = 0.0
    for index, row, column in ((0, 1, 2), (1, 5, 0)):
        layers = logits[index, :, row, column].split(list(SIZES))
        for layer, target in zip(layers, maps[index, :, row, column].long(), strict=True):
            expected += float(F.cross_entropy(layer, target)) / 2
    assert float(map_loss(logits, maps, SIZES, hidden)) == pytest.approx(expected, rel=1e-5)
