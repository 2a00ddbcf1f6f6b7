"""The world's SigLIP: near misses differ in one respect, and a caption is true of what it says."""

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import torch

from llmdiff.world.captions import Caption
from llmdiff.world.expected import Expected, ExpectedThing
from llmdiff.world.reading import expected_of, matches, reading_of
from llmdiff.world.scenes import Placed, Scene, any_scene, laid_out
from llmdiff_lab.world_build.near_misses import near_miss
from llmdiff_lab.world_build.world_presets import CPU
from llmdiff_lab.world_build.world_siglip import CaptionedScenes, captioned_scenes, fits, scene_facts

WORLD = CPU.world


def test_a_near_miss_differs_in_one_respect_that_a_caption_could_ask_for():
    rng, faults = random.Random(0), Counter()
    for _ in range(200):
        scene = laid_out(any_scene(WORLD, rng), rng)
        other = near_miss(scene, WORLD, rng)
        verdict = matches(expected_of(scene), reading_of(other))
        assert not verdict.exact
        faults.update(verdict.faults)
        assert matches(expected_of(other), reading_of(other)).exact
    # Every kind of change occurs; a missing thing is an extra one too.
    for fault in (
        "thing missing",
        "wrong colour",
        "wrong count",
        "wrong relation",
        "wrong background",
        "wrong place",
    ):
        assert faults[fault] > 2, faults


def test_captions_are_true_of_every_scene_that_shows_what_they_say():
    cat = Scene(things=(Placed(name="cat"),), relation="alone", background="white")
    beach = replace(cat, background=None, place="beach")
    two = replace(cat, things=cat.things * 2, relation="group")
    asked = Caption(text="a cat", expected=Expected(things=(ExpectedThing(name="cat"),)))
    before_the_sea = replace(asked, expected=replace(asked.expected, place="beach"))
    shown = CaptionedScenes(scenes=(cat, beach, two), captions=(asked, before_the_sea, asked))
    # Each is true of its own scene by definition, the third too.
    assert fits(shown).tolist() == [[True, True, False], [False, True, False], [True, True, True]]


def test_facts_are_things_with_their_number_or_their_side():
    left = Scene(things=(Placed(name="cat"), Placed(name="dog")), relation="left", background="white")
    right = Scene(things=left.things[::-1], relation="right", background="white")
    three = Scene(things=(Placed(name="cat"),) * 3, relation="group", background="white")
    facts = scene_facts([left, right, three], WORLD)
    assert facts.sum(1).tolist() == [2, 2, 1]
    assert torch.equal(facts[0], facts[1])
    assert (facts[0] * facts[2]).sum() == 0


def test_batches_are_pairs_in_all_voices():
    shown = captioned_scenes(WORLD, random.Random(3), 64)
    assert len(shown.scenes) == len(set(shown.texts)) == 64
    true = fits(shown)
    assert true.diagonal().all()
    assert true[np.arange(64), np.arange(64) ^ 1].mean() < 0.5  # a caption need not say what differs
