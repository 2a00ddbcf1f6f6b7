"""The denoising reading on tiny random models of all three kinds, and its readers on constructed states."""

import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    AutoModel,
    BertConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    T5Config,
)
from typer.testing import CliRunner

from llmdiff.errors import InputFileError, LLMNotFoundError, PromptError
from llmdiff_lab.cli.main import app
from llmdiff_lab.inspection.denoising import load_encoder, read_denoising
from llmdiff_lab.inspection.texts import read_texts

TEXTS = read_texts(None, 60)
SIZES = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
CONFIGS = {
    "decoder-only": LlamaConfig(intermediate_size=48, **SIZES),
    "encoder-only": BertConfig(intermediate_size=48, **SIZES),
    "encoder-decoder": T5Config(vocab_size=300, d_model=32, d_kv=16, d_ff=48, num_layers=3, num_heads=2),
}


@pytest.fixture(scope="module")
def tokenizer():
    backend = Tokenizer(models.WordLevel(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.train_from_iterator(
        TEXTS, trainers.WordLevelTrainer(vocab_size=290, special_tokens=["<unk>", "<s>", "</s>"])
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_every_kind_is_read_by_the_same_code(kind, tokenizer, tmp_path):
    torch.manual_seed(0)
    AutoModel.from_config(CONFIGS[kind]).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, loaded, found = load_encoder(str(tmp_path))
    assert found == kind
    report = read_denoising(model, loaded, TEXTS, name="tiny", kind=found)
    assert len(report.blocks) == 4
    assert report.blocks[-1].distance.mean == 0
    assert report.blocks[-1].cosine.mean == pytest.approx(1, abs=1e-5)
    assert report.blocks[-1].final_r2 > 0.9
    assert report.blocks[0].own_token.mean > 0.6  # 32 channels tell most of 70 words apart; chance is 5 %
    json.dumps(report.to_json())


class _Walk(nn.Module):
    """A "model" whose states go straight from noise to a target, a known share of the way in every block."""

    def __init__(self, shares):
        super().__init__()
        self.shares = shares
        generator = torch.Generator().manual_seed(0)
        self.first, self.last = (nn.Embedding(300, 16) for _ in range(2))
        for table in (self.first, self.last):
            table.weight.data.normal_(generator=generator)

    def forward(self, input_ids, attention_mask, output_hidden_states):
        start, end = self.first(input_ids), self.last(input_ids)
        states = [start + share * (end - start) for share in self.shares]
        return type("Output", (), {"hidden_states": states})()


def test_a_straight_walk_is_monotone_and_its_distance_is_the_share_left(tokenizer):
    report = read_denoising(_Walk([0, 0.25, 0.5, 1]), tokenizer, TEXTS, name="walk", kind="decoder-only")
    assert report.monotone == 1
    assert report.steps_back == 0
    first = report.blocks[0].distance.mean
    for block, left in zip(report.blocks, (1, 0.75, 0.5, 0), strict=True):
        assert block.distance.mean == pytest.approx(left * first, abs=1e-5)


def test_a_detour_is_seen(tokenizer):
    report = read_denoising(_Walk([0, 0.5, 0.25, 1]), tokenizer, TEXTS, name="walk", kind="decoder-only")
    assert report.monotone == 0
    assert report.steps_back == 1


def test_padding_changes_nothing(tokenizer):
    torch.manual_seed(0)
    model = AutoModel.from_config(CONFIGS["encoder-only"]).eval()
    one = read_denoising(model, tokenizer, TEXTS, name="m", kind="encoder-only")
    longer = [*TEXTS[:59], " ".join(TEXTS[:3])]
    other = read_denoising(model, tokenizer, [*longer[:59], TEXTS[59]], name="m", kind="encoder-only")
    assert one.blocks[1].cosine.mean == pytest.approx(other.blocks[1].cosine.mean, abs=1e-5)


def test_bad_input_is_named(tmp_path):
    with pytest.raises(LLMNotFoundError, match="no-such-model"):
        load_encoder("no-such-model-anywhere")
    with pytest.raises(PromptError, match="at least 20"):
        read_denoising(None, None, ["a"], name="m", kind="decoder-only")
    (tmp_path / "few.txt").write_text("one\ntwo\n")
    with pytest.raises(PromptError, match="has 2 texts"):
        read_texts(tmp_path / "few.txt", 20)
    with pytest.raises(InputFileError, match="cannot be read"):
        read_texts(tmp_path / "none.txt", 20)


def test_the_command_writes_a_table_a_figure_and_numbers(tokenizer, tmp_path):
    for kind in ("decoder-only", "encoder-only"):
        AutoModel.from_config(CONFIGS[kind]).save_pretrained(tmp_path / kind)
        tokenizer.save_pretrained(tmp_path / kind)
    given = [word for kind in ("decoder-only", "encoder-only") for word in ("--model", str(tmp_path / kind))]
    arguments = ["inspect", "denoising", *given, "--number", "40", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "| encoder-only | encoder-only | 3 |" in result.output
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["denoising.json", "denoising.md", "denoising.png"]
