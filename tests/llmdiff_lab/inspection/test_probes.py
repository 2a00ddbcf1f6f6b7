"""Probes read what is there, nothing that is not, and are scored on what each caption has."""

import numpy as np
import torch

from llmdiff.openmoji.contents import World
from llmdiff.openmoji.scenes import Content, Item
from llmdiff.openmoji.world import SHAPE_COLOURS
from llmdiff.types import TextEncoding
from llmdiff_lab.inspection.probes import HEADS, Targets, correct_answers, probe_answers, train_probe

WORLD = World(objects=6)


def _contents(count, seed=0):
    rng = np.random.default_rng(seed)
    return [WORLD.training_content(rng) for _ in range(count)]


def _told(targets, *, noise=0.0):
    """Encodings that spell the answers out: a token for each head."""
    width = sum(targets.sizes)
    states = torch.zeros(len(targets), len(HEADS) + 1, width)
    for head, (size, start) in enumerate(zip(targets.sizes, np.cumsum([0, *targets.sizes]), strict=False)):
        assert targets.table[:, head].max() < size
        states[torch.arange(len(targets)), head, int(start) + targets.table[:, head]] = 5
    states += noise * torch.randn(states.shape)
    mask = torch.ones(states.shape[:2], dtype=torch.bool)
    mask[:, -1] = False

    def batch(indices):
        chosen = torch.as_tensor(indices)
        return TextEncoding(states=states[chosen], token_mask=mask[chosen])

    return batch, width


def test_what_is_spelled_out_is_read_and_noise_is_not():
    train, test = Targets.of(_contents(600), WORLD), Targets.of(_contents(100, seed=1), WORLD)
    told, width = _told(train)
    probe = train_probe(told, train, width, steps=300)
    right = correct_answers(probe_answers(probe, _told(test)[0], test), test)
    assert all(float(values.double().mean()) > 0.95 for values in right.values())
    deaf = correct_answers(probe_answers(probe, _told(test, noise=200)[0], test), test)
    assert float(deaf["all"].double().mean()) < 0.1


def test_answers_are_scored_on_the_captions_that_have_them():
    star = Item(name="star", colour="red")
    names = [thing.name for thing in WORLD.things]
    contents = [
        Content(items=(Item(name=names[0]), star), relation="right"),
        Content(items=(Item(name=names[1]),), count=3),
    ]
    targets = Targets.of(contents, WORLD)
    # "Right" turns the order round: the star stands first.
    assert targets.table[0, 1] == 0
    assert targets.table[0, 2] == list(SHAPE_COLOURS).index("red")
    assert targets.table[0, 3] == len(SHAPE_COLOURS)
    assert targets.table[1].tolist()[4:] == [2, 0]

    answers = targets.table.clone()
    right = correct_answers(answers, targets)
    assert {name: len(values) for name, values in right.items()} == {
        "objects": 2, "named": 2, "colours": 1, "count": 1, "relation": 1, "all": 2,
    }  # fmt: skip
    assert all(bool(values.all()) for values in right.values())

    answers[0, [0, 1]] = answers[0, [1, 0]]  # the other way round
    right = correct_answers(answers, targets)
    assert right["objects"].tolist() == [False, True]
    assert right["named"].tolist() == [True, True]
    assert right["relation"].tolist() == [False]
    answers = targets.table.clone()
    answers[1, 4] = 1
    right = correct_answers(answers, targets)
    assert right["count"].tolist() == [False]
    assert right["all"].tolist() == [True, False]


def test_gains_learn_with_the_probe():
    targets = Targets.of(_contents(200), WORLD)
    told, width = _told(targets)
    gain = torch.nn.Parameter(torch.full((), 0.01))

    def batch(indices):
        encoding = told(indices)
        noise = torch.randn(encoding.states.shape, generator=torch.Generator().manual_seed(3))
        return TextEncoding(states=gain * encoding.states + 0.1 * noise, token_mask=encoding.token_mask)

    train_probe(batch, targets, width, gains=[gain], steps=50)
    assert float(gain) > 0.05
