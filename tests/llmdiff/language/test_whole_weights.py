"""Every model is read whole or refused by name: missing, renamed, scaled, unread and mis-shaped weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny.families import BUILDERS
from tiny.image_text import save_image_text
from tiny.pipelines import build_llm, build_sd, word_tokenizer
from transformers import BertConfig, BertForMaskedLM, BertModel, T5Config, T5Model

from llmdiff.adapter.base_pipeline import load_base_pipeline
from llmdiff.errors import CorruptWeightsError
from llmdiff.evaluation.metrics.alignment import CLIPScore
from llmdiff.evaluation.metrics.models import VisionModel
from llmdiff.language.llm import DecoderLLM
from llmdiff_lab.inspection.denoising import load_encoder
from llmdiff_lab.rivals.encoder import EncoderStates

Weights = dict[str, torch.Tensor]
Change = Callable[[Weights], Weights]


def rewrite(folder: Path, change: Change) -> Path:
    """Change the weights in a folder's one safetensors file."""
    (file,) = folder.glob("*.safetensors")
    save_file(
        {name: w.contiguous() for name, w in change(load_file(file)).items()}, file, metadata={"format": "pt"}
    )
    return folder


def without(word: str) -> Change:
    return lambda weights: {name: weight for name, weight in weights.items() if word not in name}


def renamed(prefix: str) -> Change:
    return lambda weights: {prefix + name: weight for name, weight in weights.items()}


def beside(name: str, value: torch.Tensor) -> Change:
    return lambda weights: {**weights, name: value}


def cut(name: str) -> Change:
    return lambda weights: {**weights, name: weights[name][:-1]}


def scaled(weights: Weights) -> Weights:
    """In 8 bits with a scale beside each, as some tools save without a word in the configuration."""
    packed = {
        name: (w / w.abs().max() * 448).to(torch.float8_e4m3fn) if name.endswith("proj.weight") else w
        for name, w in weights.items()
    }
    scales = {
        f"{name}_scale": w.abs().max() / 448 for name, w in weights.items() if name.endswith("proj.weight")
    }
    return {**packed, **scales}


def refused(load: Callable[[], Any], *words: str) -> None:
    with pytest.raises(CorruptWeightsError) as caught:
        load()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.fixture
def llm_folder(tmp_path: Path) -> Path:
    llm = build_llm()
    llm.model.save_pretrained(tmp_path / "llm")
    llm.tokenizer.save_pretrained(tmp_path / "llm")
    return tmp_path / "llm"


@pytest.mark.hostile("weights")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (renamed("_orig_mod."), ["missing", "model.embed_tokens.weight"]),
        (without(".layers.1."), ["9 missing", "model.layers.1.input_layernorm.weight", "..."]),
        (without("model.norm"), ["1 missing (model.norm.weight)"]),
        (scaled, ["unread", "model.layers.0.mlp.down_proj.weight_scale"]),
        (
            cut("model.layers.0.mlp.up_proj.weight"),
            ["of another shape", "up_proj.weight: 31 x 16 instead of 32 x 16"],
        ),
        (beside("model.layers.0.self_attn.q_proj.bias", torch.ones(16)), ["1 unread", "q_proj.bias"]),
        (beside("model.layers.3.input_layernorm.weight", torch.ones(16)), ["1 unread", "layers.3"]),
        (beside("model.layers.0.self_attn.q_proj.lora_A.weight", torch.ones(2, 16)), ["1 unread", "lora_A"]),
    ],
    ids=["renamed", "a-block", "the-norm", "scaled", "cut", "a-bias", "one-more-block", "a-lora"],
)
def test_an_llm_whose_file_is_not_its_own_is_refused(
    llm_folder: Path, change: Change, words: list[str]
) -> None:
    rewrite(llm_folder, change)
    refused(
        lambda: DecoderLLM.from_pretrained(llm_folder),
        f"llm {str(llm_folder)!r} cannot be read completely",
        *words,
    )


@pytest.mark.parametrize(
    "change",
    [without("lm_head"), beside("v_head.summary.weight", torch.ones(1, 16)), cut("lm_head.weight")],
    ids=["no-head", "another-head", "a-cut-head"],
)
def test_a_head_that_is_never_run_may_be_missing_or_unread(llm_folder: Path, change: Change) -> None:
    expected = DecoderLLM.from_pretrained(llm_folder).block_updates("a red cat").context
    rewrite(llm_folder, change)
    found = DecoderLLM.from_pretrained(llm_folder).block_updates("a red cat").context
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)  # weights lie elsewhere in memory


def test_tables_that_old_files_carry_are_no_weights(llm_folder: Path) -> None:
    rewrite(llm_folder, beside("model.layers.0.self_attn.rotary_emb.inv_freq", torch.ones(4)))
    DecoderLLM.from_pretrained(llm_folder)


@pytest.mark.parametrize("family", BUILDERS)
def test_pipelines_of_every_family_are_read_whole_as_they_were_saved(family: str, tmp_path: Path) -> None:
    pipe = BUILDERS[family]()
    pipe.save_pretrained(tmp_path)
    found = load_base_pipeline(str(tmp_path), dtype=torch.float32)
    assert type(found) is type(pipe)
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module):
            for key, weight in part.state_dict().items():
                assert torch.equal(found.components[name].state_dict()[key], weight), (name, key)


@pytest.mark.hostile("weights")
@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("unet", without("conv_norm_out"), ["2 missing (conv_norm_out.bias, conv_norm_out.weight)"]),
        ("unet", renamed("_orig_mod."), ["missing"]),
        ("unet", cut("conv_out.bias"), ["conv_out.bias", "of another shape"]),
        ("unet", beside("conv_out.weight_scale", torch.ones(1)), ["1 unread", "conv_out.weight_scale"]),
        ("vae", without("post_quant_conv"), ["2 missing (post_quant_conv.bias"]),
        ("vae", cut("decoder.conv_in.bias"), ["decoder.conv_in.bias", "of another shape"]),
        ("text_encoder", without("final_layer_norm"), ["2 missing", "final_layer_norm.bias"]),
        ("text_encoder", cut("final_layer_norm.bias"), ["final_layer_norm.bias", "of another shape"]),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_pipeline_with_a_part_that_is_not_whole_is_refused(
    part: str, change: Change, words: list[str], tmp_path: Path
) -> None:
    build_sd().save_pretrained(tmp_path)
    rewrite(tmp_path / part, change)
    load = lambda: load_base_pipeline(str(tmp_path), dtype=torch.float32)  # noqa: E731
    refused(load, f"{part} of pipeline {str(tmp_path)!r}", *words)


@pytest.mark.hostile("weights")
@pytest.mark.parametrize("family", [name for name in BUILDERS if name not in ("sd",)])
def test_every_part_of_every_family_is_asked_for_its_report(family: str, tmp_path: Path) -> None:
    pipe = BUILDERS[family]()
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module):
            pipe.save_pretrained(tmp_path)
            (file,) = (tmp_path / name).glob("*.safetensors")
            lost = sorted(load_file(file))[-1]
            rewrite(tmp_path / name, without(lost))
            refused(
                lambda: load_base_pipeline(str(tmp_path), dtype=torch.float32), f"{name} of pipeline", lost
            )


@pytest.mark.hostile("weights")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("text_projection"), ["1 missing (text_projection.weight)"]),
        (without("visual_projection"), ["1 missing (visual_projection.weight)"]),
        (renamed("module."), ["missing"]),
        (cut("visual_projection.weight"), ["7 x 16 instead of 8 x 16"]),
        (beside("logit_scale", torch.tensor(float("nan"))), ["NaN or infinite (logit_scale)"]),
    ],
    ids=["no-text-projection", "no-picture-projection", "renamed", "cut", "nan"],
)
def test_a_metric_model_that_is_not_whole_is_refused(
    change: Change, words: list[str], tmp_path: Path
) -> None:
    folder = rewrite(save_image_text("clip", tmp_path), change)
    refused(lambda: CLIPScore.from_pretrained(folder), f"metric model {str(folder)!r}", *words)


@pytest.mark.parametrize("kind", ["clip", "siglip", "siglip2"])
def test_metric_models_are_read_whole_as_they_were_saved(kind: str, tmp_path: Path) -> None:
    VisionModel.from_pretrained(save_image_text(kind, tmp_path))


def save_encoder(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def bert() -> BertConfig:
    return BertConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )


@pytest.mark.hostile("weights")
@pytest.mark.parametrize("load", [lambda place: EncoderStates.from_pretrained(str(place)), load_encoder])
def test_an_encoder_that_is_not_whole_is_refused(load: Any, bert: BertConfig, tmp_path: Path) -> None:
    folder = rewrite(save_encoder(BertModel(bert), tmp_path), without("layer.1.attention.self.query"))
    refused(lambda: load(folder), "2 missing (encoder.layer.1.attention.self.query.bias")


def test_an_encoder_needs_no_pooler_no_head_and_no_decoder(bert: BertConfig, tmp_path: Path) -> None:
    EncoderStates.from_pretrained(str(save_encoder(BertForMaskedLM(bert), tmp_path / "masked")))
    small = T5Config(
        vocab_size=64, d_model=16, d_ff=32, num_layers=2, num_heads=2, d_kv=8, decoder_start_token_id=0
    )
    EncoderStates.from_pretrained(str(save_encoder(T5Model(small), tmp_path / "both")))
    half = rewrite(save_encoder(T5Model(small), tmp_path / "half"), without("decoder."))
    EncoderStates.from_pretrained(str(half))
    rewrite(half, without("encoder.block.1.layer.1.layer_norm"))
    refused(
        lambda: EncoderStates.from_pretrained(str(half)),
        "1 missing (encoder.block.1.layer.1.layer_norm.weight)",
    )
