"""Tiny random CLIP, SigLIP, SigLIP 2, vision and chat models of the real classes, in folders with their processors."""

from pathlib import Path
from typing import Any

import torch
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    ResNetConfig,
    ResNetModel,
    Siglip2Config,
    Siglip2ImageProcessorPil,
    Siglip2Model,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

from tiny.pipelines import WORDS, word_tokenizer

SIDE_PX = 32
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
_TEXT = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 12,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 8,
}


def save_image_text(kind: str, folder: Path) -> Path:
    """A folder with a random model of pictures and texts: "clip", "siglip" or "siglip2"."""
    torch.manual_seed(3)
    sized = {"size": {"height": SIDE_PX, "width": SIDE_PX}, "image_mean": MEAN, "image_std": STD}
    if kind == "clip":
        vision = {**_VISION, "image_size": SIDE_PX}
        model: Any = CLIPModel(CLIPConfig(text_config=_TEXT, vision_config=vision, projection_dim=8))
        processor: Any = CLIPImageProcessorPil(crop_size=sized["size"], **sized)
    elif kind == "siglip":
        vision = {**_VISION, "image_size": SIDE_PX}
        model = SiglipModel(SiglipConfig(text_config=_TEXT, vision_config=vision))
        processor = SiglipImageProcessorPil(**sized)
    else:
        model = Siglip2Model(Siglip2Config(text_config=_TEXT, vision_config={**_VISION, "num_patches": 16}))
        processor = Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16)
    with torch.no_grad():  # as trained models have them, so that scores spread
        model.logit_scale.fill_(2.0)
        if kind != "clip":
            model.logit_bias.fill_(-0.5)
    tokenizer = word_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 2)]
    )
    for part in (model, processor, tokenizer):
        part.save_pretrained(folder)
    return folder


def save_vision(kind: str, folder: Path) -> Path:
    """A folder with a random vision model: "vit", or "resnet" for a convolutional one."""
    torch.manual_seed(4)
    if kind == "vit":
        model: Any = ViTModel(ViTConfig(image_size=SIDE_PX, **_VISION))
    else:
        model = ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]))
    model.save_pretrained(folder)
    ViTImageProcessorPil(
        size={"height": SIDE_PX, "width": SIDE_PX}, image_mean=MEAN, image_std=STD
    ).save_pretrained(folder)
    return folder


CHAT_WORDS = [*WORDS, "<image>", "yes", "Yes", "no", "2", "Answer", "one", "word", "?", "."]
_CHAT = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}"
    "{% endfor %}{% endfor %}"
)


def save_chat(folder: Path) -> Path:
    """A folder with a random LLaVA, a chat model that reads pictures; its tokenizer knows CHAT_WORDS."""
    torch.manual_seed(5)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(image_size=SIDE_PX, patch_size=8, **sizes),
            text_config=LlamaConfig(
                vocab_size=len(CHAT_WORDS), bos_token_id=1, eos_token_id=2, pad_token_id=0, **sizes
            ),
            image_token_index=CHAT_WORDS.index("<image>"),
        )
    )
    with torch.no_grad():  # random weights as they are made hardly tell inputs apart
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(10)
    model.save_pretrained(folder)
    size = {"height": SIDE_PX, "width": SIDE_PX}
    LlavaProcessor(
        CLIPImageProcessorPil(size=size, crop_size=size, image_mean=MEAN, image_std=STD),
        word_tokenizer(CHAT_WORDS),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_CHAT,
    ).save_pretrained(folder)
    return folder
