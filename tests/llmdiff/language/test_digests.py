"""Digests differ where what is computed differs, and nowhere else."""

import copy

import pytest
import torch
from torch import nn

from llmdiff.language.digests import config_json, pipeline_digest, tokenizer_digest, weights_digest
from llmdiff.language.llm import DecoderLLM


def test_one_bit_of_the_last_weight_is_another_digest(tiny_llm):
    before = weights_digest(tiny_llm.model)
    other = copy.deepcopy(tiny_llm.model)
    assert weights_digest(other) == before
    last = list(other.parameters())[-1]
    with torch.no_grad():
        last.view(-1)[-1] = torch.nextafter(last.view(-1)[-1], torch.tensor(9.0))
    assert weights_digest(other) != before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_type_counts_and_every_type_can_be_read(dtype):
    layer = nn.Linear(3, 2)
    assert weights_digest(layer) != weights_digest(copy.deepcopy(layer).to(dtype))


def test_names_and_shapes_count():
    one, two = nn.Linear(2, 3, bias=False), nn.Linear(3, 2, bias=False)
    two.weight.data = one.weight.data.reshape(2, 3)
    assert weights_digest(one) != weights_digest(two)
    assert weights_digest(nn.Sequential(one)) != weights_digest(nn.Sequential(nn.Identity(), one))


def test_where_the_weights_are_kept_does_not_count(make_llm):
    llm = make_llm()
    plain = weights_digest(llm.model)
    moved = DecoderLLM(copy.deepcopy(llm.model), llm.tokenizer, id=llm.id)
    moved.placement.offload_blocks(torch.device("cpu"))
    assert any(parameter.is_meta for parameter in moved.model.parameters())
    assert weights_digest(moved.model) == plain


def test_weights_that_are_nowhere_are_no_digest():
    with pytest.raises(ValueError, match="the weight weight is on the meta device"):
        weights_digest(nn.Linear(2, 2, device="meta", bias=False))


def test_a_tokenizer_with_one_more_word_is_another(tiny_llm):
    before = tokenizer_digest(tiny_llm.tokenizer)
    other = copy.deepcopy(tiny_llm.tokenizer)
    assert tokenizer_digest(other) == before
    other(["a cat", "a"], padding="max_length", truncation=True, max_length=7)
    assert tokenizer_digest(other) == before
    other.add_tokens(["zebra"])
    assert tokenizer_digest(other) != before


def test_a_pipeline_is_its_weights_and_its_scheduler(sd_pipe):
    from diffusers import DDIMScheduler

    before = pipeline_digest(sd_pipe)
    assert pipeline_digest(sd_pipe) == before
    sd_pipe.scheduler = DDIMScheduler.from_config(sd_pipe.scheduler.config, beta_end=0.02)
    assert pipeline_digest(sd_pipe) != before


def test_a_saved_pipeline_has_the_digest_of_the_one_it_was_saved_from(sd_pipe, tmp_path):
    sd_pipe.save_pretrained(tmp_path / "one")
    sd_pipe.save_pretrained(tmp_path / "two")
    one, two = (type(sd_pipe).from_pretrained(tmp_path / name) for name in ("one", "two"))
    assert pipeline_digest(one) == pipeline_digest(two)
    assert config_json(one.unet) == config_json(two.unet)
