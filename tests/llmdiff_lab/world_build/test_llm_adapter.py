"""The shipped adapter is what `llmdiff train configs/openmoji-smollm2.yaml` makes, and what the build makes."""

from pathlib import Path

import pytest
import torch

from llmdiff.training.config import load_config
from llmdiff_lab.world_build.llm_adapter import adapter_config
from llmdiff_lab.world_build.presets import CPU, PRESETS, find_preset

CONFIG = Path(__file__).parents[3] / "configs" / "openmoji-smollm2.yaml"


def test_the_builds_configuration_is_the_one_in_the_file():
    in_file = load_config(CONFIG, [])
    built = adapter_config(CPU, in_file.out, base="openmoji")
    assert built.model_dump() == in_file.model_dump()


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("text_steps", [0, 100])
def test_every_preset_has_a_configuration(name, text_steps, tmp_path):
    made_with = find_preset(name, adapter_warm_steps=text_steps)
    config = adapter_config(made_with, tmp_path, base="base", device=torch.device("cpu"), seed=7)
    training = config.training
    gains = made_with.adapter_gain_steps
    assert (training.warm_start_steps, training.steps) == (
        (gains + text_steps, made_with.adapter_steps) if text_steps else (0, made_with.adapter_steps + gains)
    )
    assert training.seed == 7
    assert config.data.scenes - config.watch.validation_samples == made_with.adapter_captions
