"""The studio: the bits of drawing alone for base and LLM, told step by step, stopped when nobody looks."""

import io
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llmdiff.drawing.draw import DrawingSettings, draw
from llmdiff.drawing.models import Models, load
from llmdiff.errors import AdapterNotFoundError, LLMDiffError
from llmdiff.serving.studio import Drawn, Loading, Notice, Step, Studio
from llmdiff.world.packaged import save_world
from llmdiff.world.scenes import World

ORDER = DrawingSettings(prompt="a red cat", negative_prompt="a dog", seed=7, number=2, steps=3)


@pytest.fixture
def studio() -> Iterator[Studio]:
    studio = Studio()
    yield studio
    studio.close()


def test_base_and_llm_draw_the_bits_of_drawing_alone(studio: Studio, adapter: Path) -> None:
    models = Models(adapter=str(adapter))
    events = list(studio.draw(ORDER, models))
    assert isinstance(events[0], Loading)
    drawn = [event for event in events if isinstance(event, Drawn)]
    assert [(one.system, one.seed) for one in drawn] == [("base", 7), ("base", 8), ("llm", 7), ("llm", 8)]

    controller, pipe = load(models)
    expected = [np.asarray(draw(pipe, ORDER, seed)) for seed in ORDER.seeds]
    with controller.attached(pipe):
        expected += [np.asarray(draw(pipe, ORDER, seed)) for seed in ORDER.seeds]
    for one, pixels in zip(drawn, expected, strict=True):
        picture = Image.open(io.BytesIO(one.png))
        assert (np.asarray(picture) == pixels).all()
        assert picture.text == one.metadata
        assert one.metadata.items() >= {"prompt": "a red cat", "seed": str(one.seed)}.items()
        # What a picture says of itself draws it again: the base is scale 0.
        assert float(one.metadata["scale"]) == (0.0 if one.system == "base" else 1.0)
        # The LLM's pictures come with a map for every word; looking changes no bit of them.
        words = ["a", "red", "cat"] if one.system == "llm" else []
        assert [word for word, _ in one.heat] == words
        for word, png in one.heat:
            heat = Image.open(io.BytesIO(png))
            assert heat.size == (160, 160)
            assert heat.text["word"] == word
    assert (expected[0] != expected[2]).any()


def test_steps_are_told_in_order_and_with_previews(studio: Studio, adapter: Path) -> None:
    order = replace(ORDER, number=1, steps=40)
    events = list(studio.draw(order, Models(adapter=str(adapter))))
    for system in ("base", "llm"):
        steps = [event for event in events if isinstance(event, Step) and event.system == system]
        assert [one.step for one in steps] == sorted({one.step for one in steps})
        assert all(one.steps == 40 and one.seed == 7 for one in steps)
        previews = [one.preview for one in steps if one.preview is not None]
        assert previews
        assert Image.open(io.BytesIO(previews[0])).size == (16, 16)


def test_a_prompt_without_a_word_of_the_pipelines_world_is_told_so_once(
    studio: Studio, adapter: Path
) -> None:
    models = Models(adapter=str(adapter))
    base = Path(json.loads((adapter / "config.json").read_text())["base_model_id"])
    orders = [replace(ORDER, number=2, steps=1, prompt=prompt) for prompt in ("a red cat", "submarines")]
    save_world(World(thing_count=40, styles=("flat",)), base)
    try:
        notices = [[one for one in studio.draw(order, models) if isinstance(one, Notice)] for order in orders]
    finally:
        (base / "world.json").unlink()
    assert [len(found) for found in notices] == [0, 1]
    assert "llmdiff world" in notices[1][0].text


def test_models_are_loaded_once_and_again_when_others_are_chosen(studio: Studio, adapter: Path) -> None:
    order = replace(ORDER, number=1, steps=1)
    own, named = Models(adapter=str(adapter)), Models(adapter=str(adapter), llm=str(adapter.parent / "llm"))
    studio.load(own)
    loads = [
        sum(isinstance(event, Loading) for event in studio.draw(order, models))
        for models in (own, replace(own, scale=0.5), named, named, own)
    ]
    assert loads == [0, 0, 1, 0, 1]


def test_what_cannot_be_loaded_is_said_and_the_rest_goes_on(
    studio: Studio, adapter: Path, tmp_path: Path
) -> None:
    with pytest.raises(AdapterNotFoundError, match="none"):
        studio.load(Models(adapter=str(tmp_path / "none")))
    order = replace(ORDER, number=1, steps=1)
    with pytest.raises(AdapterNotFoundError, match="none"):
        list(studio.draw(order, Models(adapter=str(tmp_path / "none"))))
    assert len(list(studio.draw(order, Models(adapter=str(adapter))))) >= 3


def test_nobody_looks_so_nothing_is_drawn(studio: Studio, adapter: Path) -> None:
    models = Models(adapter=str(adapter))
    studio.load(models)
    endless = replace(ORDER, number=1, steps=999)
    events = studio.draw(endless, models)
    assert isinstance(next(events), Step)
    events.close()
    # The thread is free again long before 999 steps of two pictures.
    began = time.process_time()
    short = list(studio.draw(replace(ORDER, number=1, steps=1), models))
    assert time.process_time() - began < 5
    assert sum(isinstance(event, Drawn) for event in short) == 2


def test_stopping_the_studio_ends_what_is_drawn(studio: Studio, adapter: Path) -> None:
    models = Models(adapter=str(adapter))
    events = studio.draw(replace(ORDER, steps=999), models)
    while not isinstance(next(events), Step):
        pass
    studio.stop()
    assert not any(isinstance(event, Drawn) for event in events)


def test_a_pipeline_that_does_not_fit(studio: Studio, adapter: Path, sdxl_pipe: Any, tmp_path: Path) -> None:
    sdxl_pipe.save_pretrained(tmp_path / "sdxl")
    with pytest.raises(LLMDiffError, match="family"):
        studio.load(Models(adapter=str(adapter), pipeline=str(tmp_path / "sdxl")))
