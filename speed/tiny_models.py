"""Models for `--quick`: real classes, random weights, small enough to run in a blink."""

from typing import Any

import torch

from llmdiff.language import DecoderLLM


def word_tokenizer() -> Any:
    """Return a tokenizer that knows the words of the benchmarks' prompts: <s> is 0, </s> is 1, <unk> is 2."""
    from measuring import PROMPTS
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = sorted({word for prompt in PROMPTS for word in prompt.replace(",", " , ").split()})
    vocabulary = {word: place for place, word in enumerate(["<s>", "</s>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def tiny_llm() -> DecoderLLM:
    """Return a tiny random Llama with that tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = word_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=1,
    )
    return DecoderLLM(LlamaForCausalLM(config), tokenizer, id="tiny-llama")


def llm(options: Any, *, dtype: torch.dtype = torch.float32) -> DecoderLLM:
    """Return the LLM that a benchmark's options ask for; with `--quick` the tiny one."""
    if options.quick:
        tiny = tiny_llm()
        tiny.model.to(dtype)
        return tiny.to(options.device)
    return DecoderLLM.from_pretrained(options.llm, device=options.device, dtype=dtype)


def sd15_shaped(width: int, height: int, *, small: bool) -> Any:
    """Return a random Stable Diffusion pipeline of 1.5's shape; `small` has a tenth of its widths."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    channels = (32, 64, 128, 128) if small else (320, 640, 1280, 1280)
    text_width = 64 if small else 768
    unet = UNet2DConditionModel(
        sample_size=height // 8,
        block_out_channels=channels,
        cross_attention_dim=text_width,
        attention_head_dim=8,
    )
    vae = AutoencoderKL(
        block_out_channels=(32, 32, 32, 32) if small else (128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1 if small else 2,
        latent_channels=4,
        sample_size=width,
    )
    words = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "a": 2}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        unk_token="a",
        model_max_length=77,
    )
    text = CLIPTextConfig(
        vocab_size=8 if small else 49408,
        hidden_size=text_width,
        intermediate_size=4 * text_width,
        num_hidden_layers=2 if small else 12,
        num_attention_heads=4 if small else 12,
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
