"""The checker's decoding and its files."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from llmdiff.errors import ConfigError, CorruptWeightsError, OutputError
from llmdiff.world.checker import CELL_PX, GRID, CellOutput, CheckerOutput, WorldChecker
from llmdiff.world.places import places
from llmdiff.world.reading import UNCLEAR, SeenThing
from llmdiff.world.rendering import sprite_box
from llmdiff.world.scenes import Placed, World
from llmdiff.world.things import BACKGROUNDS, STYLES
from llmdiff_lab.world_build.checker import inked_shares

WORLD = World(thing_count=20)
KINDS = [(thing.name, who) for thing in WORLD.things for who in thing.who or (None,)]


def kind(*likely: tuple[str, str | None], logit: float = 9.0) -> list[float]:
    """Logits of classes, those named alike and likelier than the others."""
    return [logit * (one in likely) for one in KINDS]


class Told(WorldChecker):
    """A checker that is told what each cell says, to test what is made of that."""

    def __init__(self, **said: Tensor) -> None:
        super().__init__(WORLD, channels=8)
        self.said = said

    def describe(self, features: Tensor) -> CellOutput:
        index = features[:, 0].long()
        return CellOutput(**{name: values[index] for name, values in self.said.items()})


def told(cells: list[tuple[int, int, float]], **said: list[list[float]]) -> list[SeenThing]:
    """What is read of presence in these cells (row, column, logit), the i-th described by the i-th row."""
    count = len(cells)
    widths = {"kinds": len(KINDS), "colours": 9, "styles": len(STYLES), "box": 4}
    values = {name: torch.tensor(said.get(name, [[0.0] * width] * count)) for name, width in widths.items()}
    values["turned"] = torch.tensor(said.get("turned", [-1.0] * count))
    presence, features = torch.full((1, GRID, GRID), -9.0), torch.zeros(1, 32, GRID, GRID)
    for index, (row, column, logit) in enumerate(cells):
        presence[0, row, column], features[0, 0, row, column] = logit, index
    behind = torch.eye(len(places()) + len(BACKGROUNDS))[:1]
    (reading,) = Told(**values).readings(CheckerOutput(presence=presence, features=features, behind=behind))
    assert reading.place == next(iter(places()))
    assert reading.background is None
    return list(reading.things)


def shown(things: Sequence[SeenThing]) -> list[tuple[object, ...]]:
    return [(t.name, t.who, t.colour, t.style, t.upside_down, round(t.x, 3), round(t.y, 3)) for t in things]


def test_decoding_finds_each_thing_once_and_names_only_what_is_clear() -> None:
    painted = [0.0] * 8 + [5.0]
    cat, running = kind(("cat", None)), kind(("running", "man"), ("running", "woman"))
    running[KINDS.index(("running", "woman"))] += 0.1
    unclear = kind(("cat", None), ("car", None), ("dog", None))
    kinds = [cat, cat, kind(("car", None)), running, unclear]
    colours = [painted, painted, [0, 0, 5.0, *[0.0] * 6], painted, painted]
    turned = [3.0, 3.0, 3.0, 3.0, 3.0]
    styles = [[5.0, 0, 0]] * 4 + [[0, 5.0, 0]]
    box = [[0.25, -0.25, 0.0, 0.0]] * 5
    # Two neighbouring cells are one cat. Who runs is uncertain, that somebody does is not.
    cells = [(2, 2, 4.0), (2, 3, 3.0), (2, 12, 5.0), (12, 2, 2.0), (12, 12, 1.0)]
    found = told(cells, kinds=kinds, colours=colours, turned=turned, styles=styles, box=box)
    assert shown(found) == [
        ("car", None, "yellow", "flat", True, 0.797, 0.141),
        ("cat", None, None, "flat", True, 0.172, 0.141),
        ("running", "woman", None, "flat", False, 0.172, 0.766),
        (UNCLEAR, None, None, "line", False, 0.797, 0.766),
    ]


def test_a_shape_always_has_a_colour_and_a_line_drawing_never_has_one() -> None:
    own, circle, car = [[0, 3.0, *[0.0] * 6, 5.0]], kind(("circle", None)), kind(("car", None))
    assert [t.colour for t in told([(3, 3, 5.0)], kinds=[circle], colours=own)] == ["orange"]
    assert [t.colour for t in told([(3, 3, 5.0)], kinds=[car], colours=own)] == [None]
    painted = [[0, 5.0, *[0.0] * 7]]
    assert [t.colour for t in told([(3, 3, 5.0)], kinds=[car], colours=painted)] == ["orange"]
    line = [[0, 5.0, 0]]
    assert [t.colour for t in told([(3, 3, 5.0)], kinds=[car], colours=painted, styles=line)] == [None]


def test_nothing_is_read_where_nothing_is_present() -> None:
    assert told([(3, 3, -0.1)]) == []


def test_neighbours_are_two_things_unless_one_is_large() -> None:
    cells = [(8, 6, 5.0), (8, 9, 4.0)]
    assert len(told(cells, kinds=[kind(("cat", None))] * 2)) == 2
    large = float(np.log(0.8 / 0.3))
    assert len(told(cells, kinds=[kind(("cat", None))] * 2, box=[[0, 0, large, large]] * 2)) == 1


@pytest.mark.parametrize("name", ["cat", "car", "running"])
def test_the_side_is_the_scenes_own_whatever_the_drawings_shape(name: str) -> None:
    placed = Placed(name=name, who="man" if name == "running" else None, side=0.45)
    _, _, side_px = sprite_box(placed)
    width, height = (share * side_px / (CELL_PX * GRID) for share in inked_shares(placed))
    box = [0.0, 0.0, float(np.log(width / 0.3)), float(np.log(height / 0.3))]
    (thing,) = told([(8, 8, 5.0)], kinds=[kind((name, placed.who))], box=[box])
    assert thing.name == name
    assert thing.side == pytest.approx(0.45, abs=0.012)


def test_pictures_of_any_size_are_read() -> None:
    checker = WorldChecker(WORLD, channels=8)
    for side in (64, 128, 200):
        assert len(checker.read(np.zeros((3, side, side, 3), dtype=np.uint8), batch=2)) == 3


def test_actions_are_a_class_for_everyone_who_does_them() -> None:
    kinds = WorldChecker(WORLD, channels=8).kinds
    assert {who for name, who in kinds if name == "running"} == {"man", "woman"}
    assert {name for name, _ in kinds} == WORLD.names


def test_saved_and_loaded_it_reads_the_same(tmp_path: Path) -> None:
    checker = WorldChecker(WORLD, channels=8)
    checker.figures = {"exact": 0.5, "confusions": [["cat", "car", 2]]}
    checker.save_pretrained(tmp_path / "checker")
    again = WorldChecker.from_pretrained(tmp_path / "checker")
    assert again.world == WORLD
    assert again.figures == checker.figures
    for name, value in again.state_dict().items():
        assert torch.equal(value, checker.state_dict()[name].half().float())


def _cut(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def _with_config(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return change


@pytest.mark.hostile("weights")
@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (_cut, CorruptWeightsError, "not a readable checker"),
        (lambda folder: (folder / "config.json").unlink(), CorruptWeightsError, "not a readable checker"),
        (_with_config(channels="wide"), CorruptWeightsError, "not a readable checker"),
        (_with_config(channels=16), CorruptWeightsError, "not a readable checker"),
        (_with_config(world={"thing_count": 3}), CorruptWeightsError, "thing_count"),
        (_with_config(world={"thing_count": 30}), ConfigError, "kinds"),
        (_with_config(colours=["mauve"]), ConfigError, "colours"),
        (_with_config(places=["moon base"]), ConfigError, "places"),
    ],
)
def test_damaged_and_foreign_files_are_refused(
    tmp_path: Path, damage: Callable[[Path], None], error: type[Exception], message: str
) -> None:
    WorldChecker(WORLD, channels=8).save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(error, match=message):
        WorldChecker.from_pretrained(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        WorldChecker(WORLD, channels=8).save_pretrained(tmp_path / "file" / "below")
