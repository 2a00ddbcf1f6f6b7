"""Maps of scenes: what each cell of a picture shows, the target of auxiliary losses."""

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from llmdiff.world.places import places
from llmdiff.world.rendering import sprite_box
from llmdiff.world.scenes import Scene, World
from llmdiff.world.things import BACKGROUNDS, COLOURS, STYLES

MAP_SIDE = 8


@lru_cache
def map_classes(world: World) -> tuple[tuple[str, str | None], ...]:
    """Return the classes of a map's cells: things (actions with their person), places and backgrounds."""
    things = [(thing.name, who) for thing in world.things for who in (thing.who or (None,))]
    return (*things, *((name, "place") for name in places()), *((name, "background") for name in BACKGROUNDS))


def map_sizes(world: World) -> tuple[int, int, int]:
    """Return the number of values of each of the three layers of a map."""
    return len(map_classes(world)), len(COLOURS) + 1, 2 * len(STYLES) + 1


def scene_map(scene: Scene, world: World, size_px: int) -> NDArray[np.int16]:
    """Return class, colour and style of each cell of a scene.

    Shapes: (3, MAP_SIDE, MAP_SIDE): indices into `map_classes`; 0 for natural colours, else the number of the colour;
        0 for the background, else a number for the style, odd for upright things and even for those upside down.
    """
    index_of = _index_of(world)
    centres = (np.arange(MAP_SIDE) + 0.5) * size_px / MAP_SIDE
    cells = np.zeros((3, MAP_SIDE, MAP_SIDE), dtype=np.int16)
    behind = (scene.place, "place") if scene.place else (scene.background or "white", "background")
    cells[0] = index_of[behind]
    for placed in scene.things:
        left, top, side = sprite_box(placed, size_px)
        rows, columns = ((low < centres) & (centres < low + side) for low in (top, left))
        cells[:, rows[:, None] & columns[None]] = np.array(
            [
                index_of[placed.name, placed.who],
                tuple(COLOURS).index(placed.colour) + 1 if placed.colour else 0,
                2 * STYLES.index(placed.style) + 1 + placed.upside_down,
            ]
        )[:, None]
    return cells


@lru_cache
def _index_of(world: World) -> dict[tuple[str, str | None], int]:
    return {shown: index for index, shown in enumerate(map_classes(world))}


class MappingUNet(nn.Module):
    """A U-Net that also predicts the map from the middle features of its decoder; only for training.

    A denoiser learns slowly which word means which thing, because a wrong thing of the right colour increases its
    squared error only a little. Predicting the thing from its features makes it faster.

    Source: after Yu et al. 2024 (REPA, arXiv 2410.06940), with the scene's known content in place of another
    network's features.
    """

    def __init__(self, unet: UNet2DConditionModel, classes: int) -> None:
        super().__init__()
        self.unet = unet
        block = unet.up_blocks[-2]
        channels = block.resnets[-1].out_channels
        self.head = nn.Sequential(nn.GroupNorm(16, channels), nn.SiLU(), nn.Conv2d(channels, classes, 1))
        self._features: Tensor | None = None
        self.hook = block.attentions[-1].register_forward_hook(self._keep)

    def forward(
        self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the U-Net's output, and logits of the map.

        Shapes: sample and output (B, C, h, w); logits (B, classes, MAP_SIDE, MAP_SIDE).
        """
        output = self.unet(sample, timestep, encoder_hidden_states, return_dict=False)[0]
        assert self._features is not None
        return output, self.head(F.adaptive_avg_pool2d(self._features, MAP_SIDE))

    def _keep(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._features = output[0]


def map_loss(logits: Tensor, maps: Tensor, sizes: tuple[int, ...], cells: Tensor | None = None) -> Tensor:
    """Return the cross-entropy of maps, averaged over cells and summed over layers.

    Shapes: logits (B, sum of sizes, S, S); maps (B, layers, S, S) integers; cells, those that count (default: all),
        (B, S, S) booleans; result ().
    """
    layers = torch.split(logits.float(), list(sizes), dim=1)
    losses = [F.cross_entropy(layer, maps[:, i].long(), reduction="none") for i, layer in enumerate(layers)]
    loss = torch.stack(losses).sum(0)
    return (loss if cells is None else loss[cells]).mean()
