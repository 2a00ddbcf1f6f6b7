"""The checker of the world: a small detector of things in a picture."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from llmdiff.errors import ConfigError
from llmdiff.world.checker_files import load_checker, save_checker
from llmdiff.world.places import places
from llmdiff.world.reading import UNCLEAR, Reading, SeenThing
from llmdiff.world.rendering import SCENE_SIZE_PX
from llmdiff.world.scenes import World
from llmdiff.world.things import BACKGROUNDS, COLOURS, STYLES, all_things

CELL_PX = 8
GRID = SCENE_SIZE_PX // CELL_PX
OWN_COLOURS = "own"
TYPICAL_SHARE = 0.3

_PRESENT, _SURE = 0.5, 0.5
# Two centres within this distance, or within this share of a thing's length, are the same thing.
_NEAR_PX, _NEAR_SHARE = 20.0, 0.4
# A drawing's square is a little longer than the drawing, and larger for long drawings.
_INKED_SHARE, _STRETCH_POWER, _MOST_STRETCH = 0.985, 0.4, 1.2
_GROUPS = 8
_HINT = "train it with: llmdiff-lab build --until checker"


@dataclass(frozen=True, kw_only=True)
class CheckerOutput:
    """The network's output for pictures.

    Shapes: presence (B, 16, 16), logits of a thing's centre in each cell; features (B, W, 16, 16), the input of
    `WorldChecker.describe`; behind (B, places + backgrounds), logits of the background.
    """

    presence: Tensor
    features: Tensor
    behind: Tensor


@dataclass(frozen=True, kw_only=True)
class CellOutput:
    """The network's output for the thing in each of N cells: logits and box.

    Shapes: kinds (N, kinds); colours (N, 9), the last is the thing's natural colours; styles (N, 3); turned (N,);
    box (N, 4): offset x and y of the centre from the middle of the cell in cells, width and height as
    log(share of the picture / 0.3).
    """

    kinds: Tensor
    colours: Tensor
    styles: Tensor
    turned: Tensor
    box: Tensor


class WorldChecker(nn.Module):
    """A centre-point detector: it finds the cells of a 16 x 16 grid with the centre of a thing, and classifies it.

    Fields:
        world: the things and styles that it was trained on.
        kinds: its classes: each thing, and each action once for man, woman or both.
        figures: its accuracy on real renders, saved with it.

    Source: Zhou et al. 2019 (CenterNet, arXiv 1904.07850), with one map of presence and the class read at its peaks.
    """

    def __init__(self, world: World, *, channels: int = 64) -> None:
        super().__init__()
        self.world, self.channels = world, channels
        self.kinds = tuple((thing.name, who) for thing in world.things for who in thing.who or (None,))
        self.figures: dict[str, Any] = {}
        wide = 4 * channels
        self.stem = nn.Sequential(nn.PixelUnshuffle(4), *_conv(48, channels))
        self.fine = nn.Sequential(_Residual(channels), _Residual(channels))
        self.middle = nn.Sequential(
            *_conv(channels, 2 * channels, stride=2), _Residual(2 * channels), _Residual(2 * channels)
        )
        self.coarse = nn.Sequential(
            *_conv(2 * channels, 3 * channels, stride=2), _Residual(3 * channels), _Residual(3 * channels)
        )
        self.up = nn.Conv2d(3 * channels, 2 * channels, 1)
        self.join = nn.Sequential(*_conv(2 * channels, 2 * channels), *_conv(2 * channels, wide, kernel=1))
        self.presence = nn.Conv2d(wide, 1, 1)
        self.cells = nn.Linear(wide, len(self.kinds) + len(COLOURS) + 1 + len(STYLES) + 1 + 4)
        self.behind = nn.Linear(wide, len(places()) + len(BACKGROUNDS))
        with torch.no_grad():  # nearly all cells are empty: starting there saves the first hundred steps
            self.presence.bias.fill_(-5.0)  # type: ignore[union-attr]

    def forward(self, images: Tensor) -> CheckerOutput:
        """Return the network's output. Shapes: images (B, 3, 128, 128) in -1..1."""
        middle = self.middle(self.fine(self.stem(images)))
        coarse = self.up(self.coarse(middle))
        features = self.join(middle + F.interpolate(coarse, scale_factor=2.0, mode="nearest"))
        return CheckerOutput(
            presence=self.presence(features)[:, 0],
            features=features,
            behind=self.behind(features.mean((2, 3))),
        )

    def describe(self, features: Tensor) -> CellOutput:
        """Return the description of the things in cells. Shapes: features (N, W)."""
        widths = [len(self.kinds), len(COLOURS) + 1, len(STYLES), 1, 4]
        kinds, colours, styles, turned, box = torch.split(self.cells(features), widths, dim=1)
        return CellOutput(kinds=kinds, colours=colours, styles=styles, turned=turned[:, 0], box=box)

    @torch.no_grad()
    def read(self, images: NDArray[np.uint8], *, batch: int = 64) -> list[Reading]:
        """Return the contents of each picture. Shapes: images (N, H, W, 3) uint8."""
        device = self.presence.weight.device
        found: list[Reading] = []
        for start in range(0, len(images), batch):
            found += self.readings(self(to_checker_input(images[start : start + batch]).to(device)))
        return found

    def readings(self, output: CheckerOutput) -> list[Reading]:
        """Return the contents of each picture from the network's output: one thing at every peak of presence."""
        behind = [[*places(), *BACKGROUNDS][i] for i in output.behind.argmax(1).tolist()]
        is_place = output.behind.argmax(1) < len(places())
        cells = (output.presence.sigmoid() > _PRESENT).nonzero()
        order = output.presence[tuple(cells.T)].argsort(descending=True)
        cells = cells[order]
        described = self.describe(output.features[cells[:, 0], :, cells[:, 1], cells[:, 2]].float())
        things: list[list[tuple[SeenThing, float]]] = [[] for _ in behind]
        for (picture, row, column), said in zip(cells.tolist(), _rows(described), strict=True):
            thing, length = self._thing(row, column, said)
            if not any(_is_near(thing, length, *other) for other in things[picture]):
                things[picture].append((thing, length))
        return [
            Reading(
                things=tuple(thing for thing, _ in found),
                place=name if at_place else None,
                background=None if at_place else name,
            )
            for name, at_place, found in zip(behind, is_place.tolist(), things, strict=True)
        ]

    def save_pretrained(
        self, save_directory: str | Path, *, safe_serialization: Literal[True] = True
    ) -> None:
        """Write weights (half precision) and config into a folder, see `save_checker`."""
        config = {"world": asdict(self.world), "channels": self.channels, **self._config()}
        save_checker(self, Path(save_directory), config | {"figures": self.figures})

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Return a saved checker, ready to read pictures.

        Raises:
            CorruptWeightsError: the folder has no checker, or a damaged one.
            ConfigError: the checker was trained on another world than this version's.
        """

        def make(config: Any) -> Any:
            world = World(**{name: _tuple(value) for name, value in config["world"].items()})
            checker = cls(world, channels=int(config["channels"]))
            for name, expected in checker._config().items():
                if config[name] != expected:
                    raise ConfigError(
                        f"checker {folder}: its {name} are not those of this version's world; {_HINT}"
                    )
            checker.figures = dict(config.get("figures", {}))
            return checker

        checker: Self = load_checker(Path(folder), make, title="checker", hint=_HINT)
        return checker

    def _config(self) -> dict[str, Any]:
        """Return the tables that must be the same when the checker is trained and when it is loaded."""
        return {
            "kinds": [list(kind) for kind in self.kinds],
            "colours": list(COLOURS),
            "styles": list(STYLES),
            "places": list(places()),
            "backgrounds": list(BACKGROUNDS),
            "scene_size_px": SCENE_SIZE_PX,
        }

    def _thing(self, row: int, column: int, said: dict[str, NDArray[np.float32]]) -> tuple[SeenThing, float]:
        """Return the thing with its centre in a cell, and the length of its drawing as a share of the picture."""
        best = int(said["kinds"].argmax())
        name, who = self.kinds[best]
        # Sum over persons: who does an action may be uncertain while the action is not.
        sure = sum(share for share, kind in zip(said["kinds"], self.kinds, strict=True) if kind[0] == name)
        dx, dy, width, height = said["box"].tolist()
        longer, shorter = (TYPICAL_SHARE * float(np.exp(f(width, height))) for f in (max, min))
        side = longer / _INKED_SHARE / min((longer / shorter) ** _STRETCH_POWER, _MOST_STRETCH)
        known = all_things()[name]
        style = STYLES[int(said["styles"].argmax())]
        # A shape always has one of these colours; a line drawing has no colours.
        choices = COLOURS if known.is_shape else (*COLOURS, OWN_COLOURS)
        colour = [*choices][int(said["colours"][: len(choices)].argmax())]
        is_painted = bool(known.colours) and style != "line" and colour != OWN_COLOURS
        is_clear = bool(sure > _SURE)
        seen = SeenThing(
            name=name if is_clear else UNCLEAR,
            x=(column + 0.5 + dx) / GRID,
            y=(row + 0.5 + dy) / GRID,
            side=side,
            style=style,
            colour=colour if is_clear and is_painted else None,
            who=who if is_clear else None,
            upside_down=bool(is_clear and known.turns and said["turned"] > 0),
        )
        return seen, longer


def to_checker_input(images: NDArray[np.uint8]) -> Tensor:
    """Return the checker's input for pictures of any size: (N, H, W, 3) uint8 => (N, 3, 128, 128) in -1..1."""
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
    if pixels.shape[-2:] != (SCENE_SIZE_PX, SCENE_SIZE_PX):
        size = (SCENE_SIZE_PX, SCENE_SIZE_PX)
        pixels = F.interpolate(pixels, size=size, mode="bilinear", antialias=True, align_corners=False)
    return pixels.contiguous(memory_format=torch.channels_last)


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _rows(described: CellOutput) -> list[dict[str, NDArray[np.float32]]]:
    arrays = {field.name: getattr(described, field.name).float().cpu() for field in fields(CellOutput)}
    arrays["kinds"] = arrays["kinds"].softmax(1)
    count = len(arrays["box"])
    return [{name: values[i].numpy() for name, values in arrays.items()} for i in range(count)]


def _is_near(thing: SeenThing, length: float, other: SeenThing, other_length: float) -> bool:
    distance = float(np.hypot(thing.x - other.x, thing.y - other.y))
    return distance < max(_NEAR_PX / SCENE_SIZE_PX, _NEAR_SHARE * max(length, other_length))


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*_conv(channels, channels), *_conv(channels, channels)[:-1])

    def forward(self, states: Tensor) -> Tensor:
        output: Tensor = F.relu(states + self.layers(states), inplace=True)
        return output


def _conv(inputs: int, outputs: int, *, stride: int = 1, kernel: int = 3) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False),
        nn.GroupNorm(_GROUPS, outputs),
        nn.ReLU(inplace=True),
    ]
