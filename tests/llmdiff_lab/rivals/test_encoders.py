"""Encoder-only and encoder-decoder readers, against transformers called by hand."""

import importlib.util

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny.readers import PROMPTS, build_bert, build_t5
from tokenizers.processors import TemplateProcessing
from transformers import T5Config, T5Model

from llmdiff.errors import ConfigError, LLMNotFoundError
from llmdiff_lab.rivals.base_text import BaseTextStates
from llmdiff_lab.rivals.encoder import MINILM_MODULE, EncoderStates, recorded
from llmdiff_lab.rivals.update_sum import BlockPosterior, DecoderPosterior


@pytest.mark.parametrize(("build", "width", "blocks"), [(build_bert, 20, 3), (build_t5, 16, 2)])
@torch.no_grad()
def test_states_are_the_encoders_last_whatever_the_padding(build, width, blocks):
    reader = build()
    encoding = reader.encode(PROMPTS[:2])
    for b, prompt in enumerate(PROMPTS[:2]):
        ids = torch.tensor([reader.tokenizer(prompt).input_ids])
        expected = reader.model(input_ids=ids).last_hidden_state[0]
        torch.testing.assert_close(encoding.states[b, : ids.shape[1]], expected, atol=1e-5, rtol=1e-4)
        assert not encoding.states[b, ids.shape[1] :].any()
        assert encoding.token_mask[b].sum() == ids.shape[1]
    assert (reader.hidden_size, len(reader.blocks), reader.num_blocks) == (width, blocks, 0)


@pytest.mark.parametrize("build", [build_bert, build_t5])
@torch.no_grad()
def test_updates_lead_from_the_first_state_to_the_last_blocks_output(build):
    reader = build()
    outputs = []
    handle = reader.blocks[-1].register_forward_hook(lambda *a: outputs.append(a[-1]))
    x0, updates, mask = reader.updates(PROMPTS[:2])
    handle.remove()
    last = outputs[0][0] if isinstance(outputs[0], tuple) else outputs[0]
    torch.testing.assert_close((x0 + sum(updates))[mask], last[mask], atol=1e-5, rtol=1e-4)
    assert len(updates) == len(reader.blocks)
    assert not any(part[~mask].any() for part in [x0, *updates])


@torch.no_grad()
def test_the_block_posterior_is_a_weighted_sum_of_updates(t5):
    source = BlockPosterior(t5)
    source.context.gamma.copy_(torch.tensor([0.7, -0.2]))
    source.context.x0_scale.fill_(2.0)
    source.context.score_scale.copy_(torch.tensor([50.0, 60.0]))  # nothing is long enough to be clipped
    x0, updates, mask = t5.updates(PROMPTS[:2])
    expected = x0 / 2 + 0.7 * updates[0] / 50 - 0.2 * updates[1] / 60
    encoding = source.encode(PROMPTS[:2])
    torch.testing.assert_close(encoding.states, expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(encoding.token_mask, mask)
    assert sum(p.numel() for p in source.parameters() if p.requires_grad) == 2


def test_a_missing_encoder_is_named():
    with pytest.raises(LLMNotFoundError, match="no-such-folder"):
        EncoderStates.from_pretrained("no-such-folder/at-all")


@pytest.mark.skipif(
    importlib.util.find_spec(MINILM_MODULE) is None, reason="the optional package is not here"
)
def test_minilm_comes_from_its_package():
    reader = EncoderStates.from_pretrained("minilm")
    encoding = reader.encode(["a car", "an automobile", "the sea"])
    assert encoding.states.shape[-1] == reader.hidden_size == 384
    means = torch.stack([row[real].mean(0) for row, real in zip(*vars(encoding).values(), strict=True)])
    car, automobile, sea = torch.nn.functional.normalize(means, dim=-1)
    assert car @ automobile > car @ sea + 0.2


@torch.no_grad()
def test_the_bases_own_states_are_those_up_to_its_end_token(sd_pipe):
    words = sd_pipe.tokenizer  # as CLIP's: an end token, and padding with end tokens
    words.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    words.pad_token = words.eos_token
    source = BaseTextStates(words, sd_pipe.text_encoder)
    encoding, end = source.encode(PROMPTS), words.eos_token_id
    for b, prompt in enumerate(PROMPTS):
        ids = words(prompt, padding="max_length", return_tensors="pt").input_ids
        length = ids[0].tolist().index(end) + 1
        # A causal encoder: what stands behind changes nothing, so the prompt alone gives the same.
        alone = sd_pipe.text_encoder(ids[:, :length]).last_hidden_state[0]
        torch.testing.assert_close(encoding.states[b, :length], alone, atol=1e-5, rtol=1e-4)
        assert encoding.token_mask[b].tolist() == [i < length for i in range(encoding.token_mask.shape[1])]
        assert not encoding.states[b, length:].any()
    assert (source.hidden_size, source.num_blocks) == (sd_pipe.text_encoder.config.hidden_size, 0)


@torch.no_grad()
def test_the_decoder_posterior_sums_the_decoders_blocks(t5):
    source = DecoderPosterior(t5)
    source.calibrate(PROMPTS)
    source.context.clip = float("inf")
    source.context.gamma.copy_(torch.tensor([0.5, -2.0]))
    got = source.encode(PROMPTS)
    for b, prompt in enumerate(PROMPTS[:2]):
        ids = torch.tensor([t5.tokenizer(prompt).input_ids])
        told = t5.model(input_ids=ids).last_hidden_state
        with recorded(t5.decoder.block) as found:
            result = t5.decoder(
                input_ids=torch.cat([torch.tensor([[0]]), ids], dim=1),
                encoder_hidden_states=told,
                output_hidden_states=True,
            )
        x = [one[0, 1:] for one in result.hidden_states[:-1]]
        x.append(found[-1][1][0, 1:])  # before the decoder's last norm
        expected = x[0] / source.context.x0_scale
        for gain, scale, before, after in zip(
            (0.5, -2.0), source.context.score_scale, x[:-1], x[1:], strict=True
        ):
            expected = expected + gain * (after - before) / scale
        torch.testing.assert_close(got.states[b, : len(expected)], expected, atol=1e-4, rtol=1e-3)


def test_an_encoder_without_its_decoder_is_refused(t5):
    t5.decoder = None
    with pytest.raises(ConfigError, match="has no decoder, or its weights are missing"):
        DecoderPosterior(t5)


def test_a_decoder_is_read_where_its_weights_are(tmp_path):
    made = build_t5()
    config = T5Config.from_dict(
        {**made.model.config.to_dict(), "is_encoder_decoder": True, "use_cache": False}
    )
    T5Model(config).save_pretrained(tmp_path / "whole")
    made.tokenizer.save_pretrained(tmp_path / "whole")
    assert EncoderStates.from_pretrained(str(tmp_path / "whole")).decoder is not None
    weights = load_file(tmp_path / "whole" / "model.safetensors")
    kept = {name: one for name, one in weights.items() if not name.startswith("decoder.")}
    save_file(kept, tmp_path / "whole" / "model.safetensors", metadata={"format": "pt"})
    assert EncoderStates.from_pretrained(str(tmp_path / "whole")).decoder is None
