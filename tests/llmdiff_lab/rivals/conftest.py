"""All that rivals are made from, tiny."""

import pytest
from tiny.pipelines import build_llm, build_sd
from tiny.readers import PROMPTS, build_bert, build_t5

from llmdiff_lab.rivals.encoder import EncoderStates
from llmdiff_lab.rivals.readings import RivalInputs


@pytest.fixture
def bert() -> EncoderStates:
    return build_bert()


@pytest.fixture
def t5() -> EncoderStates:
    return build_t5()


@pytest.fixture
def parts() -> RivalInputs:
    return RivalInputs(
        pipe=build_sd(),
        llm=build_llm(),
        encoder=build_bert(),
        t5=build_t5(),
        captions=[*PROMPTS[:2], "a blue car above the apple", "the photo of a green dog"],
        base_model_id="tiny-sd",
    )
