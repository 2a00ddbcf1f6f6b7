"""The scene checker: a small detector of the things in a picture of the embedded default."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from llmdiff.adapter.base_pipeline import EMBEDDED_NAME, packaged
from llmdiff.errors import ConfigError, MetricError
from llmdiff.evaluation.suites.verdicts import UNCLEAR, SeenScene, SeenThing
from llmdiff.openmoji.contents import World
from llmdiff.openmoji.scenes import SCENE_SIZE_PX
from llmdiff.openmoji.world import BACKGROUNDS, SHAPE_COLOURS, SHAPES
from llmdiff.world.checker_files import load_checker, save_checker

CELL_PX = 4
GRID = SCENE_SIZE_PX // CELL_PX
SIZES = ("small", "normal", "big", "other")

_PRESENT, _SURE, _NEAR_PX = 0.5, 0.5, 10.0
_GROUPS = 8
_TRAIN = "llmdiff-lab build --preset openmoji-cpu --until checker"


@dataclass(frozen=True, kw_only=True)
class CheckerOutput:
    """Logits of the checker.

    Shapes: things (B, 1 + classes, 16, 16), index 0 is "nothing centred here"; colours (B, 8, 16, 16);
    sizes (B, 4, 16, 16); background (B, 8).
    """

    things: Tensor
    colours: Tensor
    sizes: Tensor
    background: Tensor


class SceneChecker(nn.Module):
    """A centre-point detector: for every cell of a 16 x 16 grid, the thing with its centre there, if any.

    Fields:
        objects: number of objects in the world that it was trained on.
        class_names: the names of its classes, objects first, then the 6 shapes.
        figures: its accuracy on real renders, saved with it.

    Source: Zhou et al. 2019 (CenterNet, arXiv 1904.07850), but a class per cell, not a heat map per class.
    """

    def __init__(self, objects: int, *, channels: int = 48) -> None:
        super().__init__()
        self.objects, self.channels = objects, channels
        self.class_names = tuple(thing.name for thing in World(objects=objects).things) + SHAPES
        self.figures: dict[str, float] = {}
        self.stem = nn.Sequential(
            nn.PixelUnshuffle(2),
            *_conv(12, channels // 2, kernel=3),
            *_conv(channels // 2, channels, stride=2),
        )
        self.fine = nn.Sequential(_Residual(channels), _Residual(channels))
        self.down = nn.Sequential(*_conv(channels, 2 * channels, stride=2))
        self.coarse = nn.Sequential(_Residual(2 * channels), _Residual(2 * channels))
        self.up = nn.Conv2d(2 * channels, channels, 1)
        self.join = nn.Sequential(*_conv(channels, channels, kernel=3))
        self.heads = nn.Conv2d(channels, 1 + len(self.class_names) + len(SHAPE_COLOURS) + len(SIZES), 1)
        self.background = nn.Conv2d(channels, len(BACKGROUNDS), 1)
        with torch.no_grad():  # nearly all cells are empty: starting there saves the first hundred steps
            self.heads.bias[0] = 6.0  # type: ignore[index]

    def forward(self, images: Tensor) -> CheckerOutput:
        """Return the logits of images. Shapes: images (B, 3, 64, 64) in -1..1."""
        fine = self.fine(self.stem(images))
        coarse = self.up(self.coarse(self.down(fine)))
        joined = self.join(fine + F.interpolate(coarse, scale_factor=2.0, mode="nearest"))
        split = [1 + len(self.class_names), len(SHAPE_COLOURS), len(SIZES)]
        things, colours, sizes = torch.split(self.heads(joined), split, dim=1)
        background = self.background(joined).mean((2, 3))
        return CheckerOutput(things=things, colours=colours, sizes=sizes, background=background)

    @torch.no_grad()
    def read(self, images: NDArray[np.uint8], *, batch: int = 64) -> list[SeenScene]:
        """Return what each picture shows. Shapes: images (N, H, W, 3) uint8."""
        device = next(self.parameters()).device
        seen: list[SeenScene] = []
        for start in range(0, len(images), batch):
            output = self(to_checker_input(images[start : start + batch]).to(device))
            seen += self.decode(output)
        return seen

    def save_pretrained(
        self, save_directory: str | Path, *, safe_serialization: Literal[True] = True
    ) -> None:
        """Write weights (half precision) and config into a folder, see `save_checker`."""
        config = {"objects": self.objects, "channels": self.channels, **_world_config(self)}
        save_checker(self, Path(save_directory), config | {"figures": self.figures})

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path) -> Self:
        """Return a saved checker, ready to read pictures: a folder, or "openmoji" for the packaged one.

        Raises:
            CorruptWeightsError: the folder holds no checker, or a damaged one.
            ConfigError: the checker was trained on another world than this version's.
        """
        folder = checker_folder(name_or_path)

        def make(config: Any) -> Any:
            checker = cls(int(config["objects"]), channels=int(config["channels"]))
            for name, expected in _world_config(checker).items():
                if config[name] != expected:
                    raise ConfigError(
                        f"checker {folder}: its {name} are not those of this version's world; train it again: {_TRAIN}"
                    )
            checker.figures = dict(config.get("figures", {}))
            return checker

        checker: Self = load_checker(folder, make, title="scene checker", hint=f"train it with: {_TRAIN}")
        return checker

    def decode(self, output: CheckerOutput) -> list[SeenScene]:
        """Return what each picture shows, from its logits."""
        shares = output.things.softmax(1).cpu().numpy()
        colours, sizes = output.colours.argmax(1).cpu().numpy(), output.sizes.argmax(1).cpu().numpy()
        backgrounds = [list(BACKGROUNDS)[i] for i in output.background.argmax(1).tolist()]
        return [
            SeenScene(things=self._things(shares[i], colours[i], sizes[i]), background=background)
            for i, background in enumerate(backgrounds)
        ]

    def _things(
        self, shares: NDArray[np.float32], colours: NDArray[np.int64], sizes: NDArray[np.int64]
    ) -> tuple[SeenThing, ...]:
        presence = 1 - shares[0]
        found: list[SeenThing] = []
        cells = np.argwhere(presence > _PRESENT)
        for row, column in sorted(cells.tolist(), key=lambda cell: -presence[cell[0], cell[1]]):
            x, y = (column + 0.5) * CELL_PX, (row + 0.5) * CELL_PX
            if any((thing.x_px - x) ** 2 + (thing.y_px - y) ** 2 < _NEAR_PX**2 for thing in found):
                continue
            best = int(shares[1:, row, column].argmax())
            name = self.class_names[best] if shares[1 + best, row, column] > _SURE else UNCLEAR
            colour = list(SHAPE_COLOURS)[colours[row, column]] if name in SHAPES else None
            found.append(SeenThing(name=name, colour=colour, size=SIZES[sizes[row, column]], x_px=x, y_px=y))
        return tuple(found)


def checker_folder(name_or_path: str | Path) -> Path:
    """Return the folder of a checker; "openmoji" is the packaged one."""
    return packaged("checker", MetricError) if name_or_path == EMBEDDED_NAME else Path(name_or_path)


def to_checker_input(images: NDArray[np.uint8]) -> Tensor:
    """Return the checker's input for pictures of any size: (N, H, W, 3) uint8 => (N, 3, 64, 64) in -1..1."""
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
    if pixels.shape[-2:] != (SCENE_SIZE_PX, SCENE_SIZE_PX):
        size = (SCENE_SIZE_PX, SCENE_SIZE_PX)
        pixels = F.interpolate(pixels, size=size, mode="bilinear", antialias=True, align_corners=False)
    return pixels.contiguous(memory_format=torch.channels_last)


def _world_config(checker: SceneChecker) -> dict[str, Any]:
    return {
        "class_names": list(checker.class_names),
        "colours": list(SHAPE_COLOURS),
        "backgrounds": list(BACKGROUNDS),
        "sizes": list(SIZES),
        "scene_size_px": SCENE_SIZE_PX,
    }


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_conv(channels, channels, kernel=3), *_conv(channels, channels, kernel=3)[:-1]
        )

    def forward(self, states: Tensor) -> Tensor:
        output: Tensor = F.relu(states + self.layers(states), inplace=True)
        return output


def _conv(inputs: int, outputs: int, *, stride: int = 1, kernel: int = 3) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False),
        nn.GroupNorm(_GROUPS, outputs),
        nn.ReLU(inplace=True),
    ]
