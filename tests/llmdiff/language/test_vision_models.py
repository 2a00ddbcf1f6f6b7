"""Models of pictures and texts: their folders are loaded, and their language model reads prompts."""

import shutil
from pathlib import Path

import pytest
import torch
import transformers

from llmdiff.errors import LLMNotFoundError
from llmdiff.language import DecoderLLM

from .class_sweep import check_exact
from .conftest import PROMPTS, tiny_tokenizer
from .tiny_configs import tiny_config_of, tiny_model_of

# The last has an encoder for sound.
MODELS = (
    "Glm4vConfig",
    "Idefics3Config",
    "InternVLConfig",
    "LlavaConfig",
    "Lfm2VlConfig",
    "Mistral3Config",
    "Ovis2Config",
    "Qwen2VLConfig",
    "Qwen2_5_VLConfig",
    "Qwen3VLConfig",
    "Qwen3_5Config",
    "SmolVLMConfig",
    "VoxtralConfig",
)


@pytest.mark.parametrize("name", MODELS)
def test_the_language_model_of_a_multimodal_folder_is_read(name: str, tmp_path: Path) -> None:
    model = tiny_model_of(tiny_config_of(getattr(transformers, name)))
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    llm = DecoderLLM.from_pretrained(tmp_path)
    assert type(llm.model) is type(model)
    assert (llm.num_blocks, llm.hidden_size) == (4, 32)
    check_exact(llm)


def test_a_tower_with_as_many_blocks_as_the_text_is_not_taken_for_it() -> None:
    config = tiny_config_of(transformers.LlavaConfig)
    config.vision_config = tiny_config_of(
        transformers.CLIPVisionConfig, hidden_size=64, intermediate_size=256
    )
    model = tiny_model_of(config)
    tower = next(part for part in model.modules() if type(part).__name__ == "CLIPEncoder").layers
    llm = DecoderLLM(model, tiny_tokenizer(), id="llava")
    assert len(tower) == len(llm.blocks)
    assert sum(p.numel() for p in tower.parameters()) > sum(p.numel() for p in llm.blocks.parameters())
    assert llm.blocks is model.get_decoder().layers


def test_a_text_encoder_of_a_pipeline_finds_the_tokenizer_beside_it(tmp_path: Path) -> None:
    model = tiny_model_of(tiny_config_of(transformers.Qwen2_5_VLConfig))
    model.save_pretrained(tmp_path / "text_encoder")
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    found = DecoderLLM.from_pretrained(tmp_path / "text_encoder").block_updates(PROMPTS).context
    expected = DecoderLLM(model, tiny_tokenizer(), id="qwen").block_updates(PROMPTS).context
    torch.testing.assert_close(found, expected)
    shutil.rmtree(tmp_path / "tokenizer")
    with pytest.raises(LLMNotFoundError, match="text_encoder"):
        DecoderLLM.from_pretrained(tmp_path / "text_encoder")


def test_a_folder_of_the_model_without_its_head_is_read(tmp_path: Path) -> None:
    model = tiny_model_of(tiny_config_of(transformers.Qwen3Config))
    model.base_model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    found = DecoderLLM.from_pretrained(tmp_path).block_updates(PROMPTS).context
    expected = DecoderLLM(model, tiny_tokenizer(), id="qwen").block_updates(PROMPTS).context
    torch.testing.assert_close(found, expected)
