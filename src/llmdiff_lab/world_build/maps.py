"""What lies where in a scene, cell by cell: what the base's denoiser is asked, in training, to know of a picture."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from llmdiff.openmoji.contents import World
from llmdiff.openmoji.scenes import SCENE_SIZE_PX, Item, Scene
from llmdiff.openmoji.world import BACKGROUNDS, SHAPE_COLOURS, SHAPES

MAP_SIDE = 8
_CELL_PX = SCENE_SIZE_PX // MAP_SIDE


def map_classes(world: World) -> tuple[Item | str, ...]:
    """What a cell can show: an object, a shape in a colour, or else the name of the background."""
    things = [Item(name=thing.name) for thing in world.things]
    shapes = [Item(name=shape, colour=colour) for shape in SHAPES for colour in SHAPE_COLOURS]
    return (*things, *shapes, *BACKGROUNDS)


def scene_maps(scenes: Sequence[Scene], world: World) -> NDArray[np.uint8]:
    """The class of every cell of every scene: that of the thing whose frame covers the cell's middle.

    Shapes: (N, MAP_SIDE, MAP_SIDE) uint8, indices into `map_classes`.
    """
    index_of = {shown: index for index, shown in enumerate(map_classes(world))}
    centres = (np.arange(MAP_SIDE) + 0.5) * _CELL_PX
    maps = np.empty((len(scenes), MAP_SIDE, MAP_SIDE), dtype=np.uint8)
    for cells, scene in zip(maps, scenes, strict=True):
        cells[:] = index_of[scene.background]
        for placed in scene.placed:
            reach = placed.size_px / 2
            rows, columns = np.abs(centres - placed.y_px) < reach, np.abs(centres - placed.x_px) < reach
            cells[np.ix_(rows, columns)] = index_of[placed.item]
    return maps


class MappingUNet(nn.Module):
    """A U-Net that also says what its decoder's middle features believe to lie where; only for training.

    A denoiser learns slowly which word asks for which thing, because a wrong thing of the right colour costs it
    little squared error. Asking its features for the thing itself shortens that.

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
        """The U-Net's output, and logits of the map.

        Shapes: sample and output (B, C, h, w); logits (B, classes, MAP_SIDE, MAP_SIDE).
        """
        output = self.unet(sample, timestep, encoder_hidden_states, return_dict=False)[0]
        assert self._features is not None
        return output, self.head(F.adaptive_avg_pool2d(self._features, MAP_SIDE))

    def _keep(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._features = output[0]


def map_loss(logits: Tensor, maps: Tensor) -> Tensor:
    """The mean cross-entropy over cells.

    Shapes: logits (B, classes, MAP_SIDE, MAP_SIDE); maps (B, MAP_SIDE, MAP_SIDE) integers; result ().
    """
    return F.cross_entropy(logits.float(), maps.to(logits.device, torch.long))
