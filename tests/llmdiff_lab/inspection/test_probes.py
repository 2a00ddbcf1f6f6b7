"""Probes read what is there, nothing that is not, and are scored on what each caption has."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from llmdiff.types import TextEncoding
from llmdiff.world.expected import Expected, ExpectedThing
from llmdiff.world.layouts import RELATIONS
from llmdiff.world.places import places
from llmdiff.world.scenes import World
from llmdiff.world.splits import sample_scene, training_caption
from llmdiff.world.things import COLOURS
from llmdiff_lab.inspection.probes import HEADS, Targets, correct_answers, probe_answers, train_probe

WORLD = World(thing_count=20, styles=("flat", "line"))


def _captions(count, seed=0):
    return [training_caption(sample_scene(seed, i, WORLD), seed, i, "plain").expected for i in range(count)]


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


@pytest.mark.slow
def test_what_is_spelled_out_is_read_and_noise_is_not():
    train, test = Targets.of(_captions(1500), WORLD), Targets.of(_captions(100, seed=1), WORLD)
    told, width = _told(train)
    probe = train_probe(told, train, width, steps=500)
    right = correct_answers(probe_answers(probe, _told(test)[0], test), test)
    assert all(float(values.double().mean()) > 0.85 for values in right.values())
    deaf = correct_answers(probe_answers(probe, _told(test, noise=200)[0], test), test)
    assert float(deaf["all"].double().mean()) < 0.1


def test_answers_are_scored_on_the_captions_that_have_them():
    dog, circle = ExpectedThing(name="dog"), ExpectedThing(name="circle", colour="red")
    corner = replace(dog, spot="bottom left"), replace(circle, spot="top left")
    captions = [
        Expected(things=(dog, circle), relation="right", style="line"),
        Expected(things=(replace(dog, count=3), circle), place="beach"),
        Expected(things=corner, relation="spots"),
    ]
    targets = Targets.of(captions, WORLD)
    names = [*(thing.name for thing in WORLD.things), None]
    column = {head: targets.table[:, index].tolist() for index, head in enumerate(HEADS)}
    # "Right" is "left" with the order reversed; things in corners are in the order of the corners.
    assert column["name 1"] == [names.index("circle"), names.index("dog"), names.index("circle")]
    assert column["name 2"] == [names.index("dog"), names.index("circle"), len(names) - 1]
    assert column["name 3"][2] == names.index("dog")
    assert column["colour 1"] == [list(COLOURS).index("red"), len(COLOURS), list(COLOURS).index("red")]
    assert column["count 1"] == [0, 2, 0]
    assert column["relation"] == [RELATIONS.index("left"), len(RELATIONS), RELATIONS.index("spots")]
    assert column["place"][1] == list(places()).index("beach")

    answers = targets.table.clone()
    right = correct_answers(answers, targets)
    assert {name: len(values) for name, values in right.items()} == {
        "objects": 3, "named": 3, "colours": 3, "count": 1, "relation": 2, "place": 1, "style": 1, "all": 3,
    }  # fmt: skip
    assert all(bool(values.all()) for values in right.values())

    answers[0, [0, 1]] = answers[0, [1, 0]]  # the other way round
    right = correct_answers(answers, targets)
    assert right["objects"].tolist() == [False, True, True]
    assert right["named"].tolist() == [True, True, True]
    assert right["relation"].tolist() == [False, True]
    answers = targets.table.clone()
    answers[1, HEADS.index("count 1")] = 1
    right = correct_answers(answers, targets)
    assert right["count"].tolist() == [False]
    assert right["all"].tolist() == [True, False, True]


def test_gains_learn_with_the_probe():
    targets = Targets.of(_captions(200), WORLD)
    told, width = _told(targets)
    gain = torch.nn.Parameter(torch.full((), 0.01))

    def batch(indices):
        encoding = told(indices)
        noise = torch.randn(encoding.states.shape, generator=torch.Generator().manual_seed(3))
        return TextEncoding(states=gain * encoding.states + 0.1 * noise, token_mask=encoding.token_mask)

    train_probe(batch, targets, width, gains=[gain], steps=50)
    assert float(gain) > 0.05
