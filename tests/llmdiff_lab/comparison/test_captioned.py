"""What is kept of the base's own text encoder is what it says."""

import pytest
import torch

from llmdiff.adapter import families
from llmdiff.adapter.base_encoder import encode_with_base
from llmdiff_lab.world_build.captioned import CaptionedScenes, Teacher, create_teacher


def test_the_base_is_kept_in_any_order_and_each_caption_once(sd_pipe):
    captions = ["a red cat", "two dogs", "a red cat", ""]
    teacher = Teacher(sd_pipe, captions, seed=0)
    asked = ["", "two dogs", "a red cat", ""]
    base = encode_with_base(sd_pipe, families.family_of(sd_pipe), asked).states
    assert torch.allclose(teacher.texts(asked).states, base, rtol=2e-3, atol=1e-3)
    assert len(teacher._states) == 3
    with pytest.raises(KeyError, match="a green cat"):
        teacher.texts(["a green cat"])


def test_a_teacher_knows_the_plain_wording_of_every_caption_of_a_training(built):
    pipe, data = built.pipeline(), built.scenes()
    captioned = CaptionedScenes.draw(
        data, built.preset.adapter_captions, built.preset.seed, built.preset.adapter_wording
    )
    states = create_teacher(built.preset, data, pipe).texts(captioned.plain).states
    assert states.shape[0] == built.preset.adapter_captions + 1
