"""Word maps: shares of attention against an independent computation, words out of tokens, nothing left behind."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from llmdiff.adapter.cross import TwoBranchAttention
from llmdiff.adapter.installation import installation_on
from llmdiff.adapter.settings import Control
from llmdiff.controller import LLMController
from llmdiff.drawing.attention_maps import draw_with_maps, words_of
from llmdiff.errors import ConfigError, PromptError
from llmdiff.language.closed_llm import ClosedLLM, ClosedLLMSettings
from llmdiff.language.rewording import Rewording
from llmdiff_lab.cli.main import app
from llmdiff_lab.inspection.attention_plots import save_maps

PROMPT = "a red apple"


@pytest.fixture
def controller(tiny_llm, sd_pipe):
    sd_pipe.set_progress_bar_config(disable=True)
    return LLMController.create(tiny_llm, sd_pipe)


def test_shares_of_all_tokens_add_up_to_one(controller, sd_pipe, monkeypatch):
    seen = []
    real = TwoBranchAttention._two_branches

    def spy(self, hidden_states, texts):
        seen.append((self, hidden_states.detach().clone(), texts))
        return real(self, hidden_states, texts)

    monkeypatch.setattr(TwoBranchAttention, "_two_branches", spy)
    maps = draw_with_maps(controller, sd_pipe, PROMPT, steps=1, side=8)
    # By hand: every layer's softmax, as torch's own attention gives it when the values are one-hot.
    tokens = seen[0][2].llm_states.key.shape[2]
    expected = torch.zeros(tokens, 8, 8)
    for layer, hidden, texts in seen:
        query = layer.branch.to_q(hidden).unflatten(-1, (layer.branch.heads, -1)).transpose(1, 2)
        one_hot = torch.eye(tokens).expand(*query.shape[:2], -1, -1)
        weights = torch.nn.functional.scaled_dot_product_attention(
            query, texts.llm_states.key, one_hot, attn_mask=texts.llm_states.mask
        )
        side = int(hidden.shape[1] ** 0.5)
        grid = weights[-1].mean(0).T.reshape(1, tokens, side, side)
        expected += torch.nn.functional.interpolate(grid, (8, 8), mode="bilinear")[0] / len(seen)
    assert torch.allclose(expected.sum(0), torch.ones(8, 8), atol=1e-4)
    for index, word in enumerate(maps.words):
        assert torch.allclose(maps.new[0, index], expected[word.start : word.end].sum(0), atol=1e-4)


def test_both_lies_between_the_branches_and_follows_the_gates(controller, sd_pipe):
    with torch.no_grad():
        for branch in controller.adapter.branches.values():
            branch.a1.fill_(3.0)
            branch.a2.fill_(-1.0)
    maps = draw_with_maps(controller, sd_pipe, PROMPT, steps=2, side=8)
    assert maps.both.shape == (2, len(maps.words), 8, 8)
    assert torch.allclose(maps.both, 0.75 * maps.pretrained + 0.25 * maps.new, atol=1e-5)


def test_the_picture_is_the_one_drawn_without_looking_and_nothing_stays(controller, sd_pipe, draw):
    before = draw(sd_pipe, PROMPT, seed=3)
    with controller.attached(sd_pipe):
        expected = sd_pipe(
            PROMPT, num_inference_steps=2, guidance_scale=3.0, generator=torch.Generator().manual_seed(3)
        ).images[0]
        assert all(layer.watch is None for layer in installation_on(sd_pipe.unet).layers.values())
    maps = draw_with_maps(controller, sd_pipe, PROMPT, seed=3, steps=2)
    assert maps.picture.tobytes() == expected.tobytes()
    assert torch.equal(draw(sd_pipe, PROMPT, seed=3), before)


def test_pieces_of_a_word_are_joined_and_marks_left_out(smollm2_tokenizer):
    prompt = "An automobile, upside-down: zebrafish!"
    ids = smollm2_tokenizer(prompt)["input_ids"]
    words = words_of(smollm2_tokenizer, [smollm2_tokenizer.bos_token_id, *ids], prompt)
    assert [word.text for word in words] == ["An", "automobile", "upside", "down", "zebrafish"]
    assert any(word.end - word.start > 1 for word in words)


@pytest.fixture
def smollm2_tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=262, special_tokens=["<s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator(["An automobile upside down"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")


def test_peaks_are_where_the_map_is_highest(controller, sd_pipe):
    maps = draw_with_maps(controller, sd_pipe, PROMPT, steps=1, side=8)
    maps.both.zero_()
    maps.both[0, 0, 6, 1] = 1.0
    assert maps.peak(maps.words[0].text) == pytest.approx((1.5 / 8, 6.5 / 8))
    with pytest.raises(PromptError, match="'pear'"):
        maps.peak("pear")


def test_the_words_are_those_that_were_encoded(controller, sd_pipe):
    class Answers(ClosedLLM):
        def answers(self, prompt):
            return ("a red apple",) if prompt == "zebra" else ()

    plain = draw_with_maps(controller, sd_pipe, "a red apple", steps=1)
    closed = Answers(ClosedLLMSettings(url="http://127.0.0.1:9/v1", model="m"))
    maps = draw_with_maps(controller, sd_pipe, "zebra", Control(rewording=Rewording(closed=closed)), steps=1)
    assert maps.prompt == "zebra"
    assert maps.words == plain.words
    kept = Control(rewording=Rewording(closed=closed, keep="prompt"))
    assert [word.text for word in draw_with_maps(controller, sd_pipe, "red", kept, steps=1).words] == ["red"]


def test_weights_are_no_words(controller, sd_pipe):
    plain = draw_with_maps(controller, sd_pipe, "a red apple", steps=1)
    weighted = draw_with_maps(controller, sd_pipe, "a (red:1.5) apple", Control(weighted=True), steps=1)
    assert weighted.words == plain.words
    neutral = draw_with_maps(controller, sd_pipe, "a (red:1) apple", Control(weighted=True), steps=1)
    assert torch.equal(neutral.both, plain.both)


def test_slicing_and_prompts_without_words_are_refused_and_nothing_stays_attached(controller, sd_pipe):
    with pytest.raises(PromptError, match="at least one word"):
        draw_with_maps(controller, sd_pipe, "...", steps=1)
    sd_pipe.enable_attention_slicing()
    with pytest.raises(ConfigError, match="slicing"):
        draw_with_maps(controller, sd_pipe, PROMPT, steps=1)
    assert installation_on(sd_pipe.unet) is None


def test_files_and_command(controller, sd_pipe, tmp_path):
    maps = draw_with_maps(controller, sd_pipe, PROMPT, steps=2, side=8)
    save_maps(maps, tmp_path / "maps")
    mixed = draw_with_maps(controller, sd_pipe, PROMPT, 0.5, steps=2).picture
    record = json.loads((tmp_path / "maps" / "attention.json").read_text())
    assert record["words"] == [word.text for word in maps.words]
    assert torch.allclose(torch.tensor(record["both"]), maps.summed(), atol=1e-5)
    sd_pipe.save_pretrained(tmp_path / "pipe")
    controller.llm.model.save_pretrained(tmp_path / "llm")
    controller.llm.tokenizer.save_pretrained(tmp_path / "llm")
    adapter = controller.adapter
    adapter.register_to_config(llm_id=str(tmp_path / "llm"), base_model_id=str(tmp_path / "pipe"))
    controller.save_pretrained(tmp_path / "adapter")
    out = tmp_path / "out"
    arguments = ["inspect", "attention", PROMPT, "--steps", "2", "--adapter", str(tmp_path / "adapter")]
    result = CliRunner().invoke(app, [*arguments, "--out", str(out), "--device", "cpu"])
    assert result.exit_code == 0, result.output
    names = ["attention-steps.png", "attention.json", "attention.png", "picture.png"]
    assert sorted(path.name for path in out.iterdir()) == names
    half = tmp_path / "half"
    result = CliRunner().invoke(app, [*arguments, "--out", str(half), "--device", "cpu", "--scale", "0.5"])
    assert result.exit_code == 0, result.output
    assert (np.asarray(Image.open(half / "picture.png")) == np.asarray(mixed)).all()
    assert (np.asarray(Image.open(out / "picture.png")) != np.asarray(mixed)).any()
