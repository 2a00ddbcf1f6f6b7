"""Packed weights, GGUF and code that a model brings along: what is loaded and what is refused."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny import llm_kinds

from llmdiff.errors import ConfigError, UnsupportedLLMError
from llmdiff.language import ContextEncoding, DecoderLLM

from .conftest import PROMPTS, tiny_model, tiny_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny Llama whose layers are wide enough for blocks of 64 packed weights."""
    config = llm_kinds.tiny_config(llm_kinds.kind("llama"))
    config.hidden_size, config.intermediate_size, config.head_dim = 64, 128, 16
    tiny_model(config).save_pretrained(tmp_path / "llm")
    tiny_tokenizer().save_pretrained(tmp_path / "llm")
    return tmp_path / "llm"


def quantization(name: str) -> Any:
    """One of transformers' configurations; skips where its package is missing."""
    if name.startswith("bitsandbytes"):
        pytest.importorskip("bitsandbytes")
        return transformers.BitsAndBytesConfig(**{f"load_in_{name[-4:]}": True})
    torchao = pytest.importorskip("torchao.quantization")
    if name == "torchao-8bit":
        return transformers.TorchAoConfig(torchao.Int8WeightOnlyConfig())
    packing = torchao.IntxWeightOnlyConfig(
        weight_dtype=torch.int4, granularity=torchao.granularity.PerGroup(16)
    )
    return transformers.TorchAoConfig(packing)


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("bitsandbytes-8bit", 0.1),
        ("bitsandbytes-4bit", 0.5),
        ("torchao-8bit", 0.1),
        ("torchao-4bit", 0.5),
    ],
)
def test_packed_weights_encode_the_same_alone_and_batched(folder: Path, name: str, tolerance: float) -> None:
    llm = DecoderLLM.from_pretrained(folder, quantization_config=quantization(name))
    weight = llm.blocks[0].get_submodule("self_attn.q_proj").weight
    assert type(weight) is not torch.nn.Parameter  # it is packed
    exact = DecoderLLM.from_pretrained(folder).block_updates(PROMPTS, lone="token+bos")
    batch = llm.block_updates(PROMPTS, lone="token+bos")
    assert 0 < float((batch.context - exact.context).norm() / exact.context.norm()) < tolerance
    context = ContextEncoding(llm.num_blocks, llm.hidden_size)
    together = context.encode(llm, PROMPTS)
    alone = context.encode(llm, PROMPTS[1]).states[0]
    torch.testing.assert_close(together.states[1, : len(alone)], alone, atol=1e-3, rtol=1e-3)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is there")
@pytest.mark.parametrize("bits", ["load_in_8bit", "load_in_4bit"])
def test_a_missing_package_for_packed_weights_is_named(folder: Path, bits: str) -> None:
    with pytest.raises(
        ConfigError, match=r"not installed \(.*bitsandbytes.*without quantization_config"
    ) as it:
        DecoderLLM.from_pretrained(
            folder, quantization_config=transformers.BitsAndBytesConfig(**{bits: True})
        )
    assert "\n" not in str(it.value)


@pytest.mark.skipif(importlib.util.find_spec("gptqmodel") is not None, reason="gptqmodel is there")
def test_a_packed_checkpoint_names_its_missing_package(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    path.write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"its quantised weights need a package that is not installed"):
        DecoderLLM.from_pretrained(folder)


def test_gguf_is_not_packed_again(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="whose weights are unpacked when it is converted"):
        DecoderLLM.from_pretrained(
            tmp_path / "llm.gguf", quantization_config=transformers.BitsAndBytesConfig(load_in_8bit=True)
        )


CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
Path({marker!r}).write_text("ran")
class OwnConfig(LlamaConfig):
    model_type = "own-kind"
class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def own_code(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with code of its own; the file `ran` beside it appears when that code runs."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    (folder / "own.py").write_text(CODE.format(marker=str(tmp_path / "ran")))
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["model_type"] = "own-kind"
    config["architectures"] = ["OwnForCausalLM"]
    config["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    path.write_text(json.dumps(config))
    return folder


def test_code_of_a_model_is_not_run_unless_asked_for(own_code: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UnsupportedLLMError, match=r"none of it was run.*pass trust_remote_code=True"
    ) as caught:
        DecoderLLM.from_pretrained(own_code)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()
    llm = DecoderLLM.from_pretrained(own_code, trust_remote_code=True)
    assert (tmp_path / "ran").exists()
    assert type(llm.model).__name__ == "OwnForCausalLM"
    assert bool(llm.block_updates(PROMPTS).context.isfinite().all())


def test_a_tokenizer_needs_no_pad_token(folder: Path) -> None:
    llm = DecoderLLM.from_pretrained(folder)
    assert llm.tokenizer.pad_token is None
    assert llm.tokenize(PROMPTS).token_mask.sum() < llm.tokenize(PROMPTS).token_mask.numel()
    padded = DecoderLLM.from_pretrained(folder)
    padded.tokenizer.pad_token, padded.tokenizer.padding_side = "</s>", "left"
    assert torch.equal(padded.tokenize(PROMPTS).input_ids, llm.tokenize(PROMPTS).input_ids)
