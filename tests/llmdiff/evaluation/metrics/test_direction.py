"""Metrics move the right way: to a small CLIP, trained on drawn things, blur, noise and wrong captions are worse."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from spoilt_pictures import blurred, check_gets_worse, noised
from tiny.image_text import MEAN, SIDE_PX, STD
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, PreTrainedTokenizerFast

from llmdiff.evaluation.metrics.alignment import CLIPScore
from llmdiff.evaluation.metrics.distribution import CMMD, FID, KID
from llmdiff.evaluation.metrics.kinds import Pictures
from llmdiff.evaluation.metrics.preference import HPSv2, PickScore
from llmdiff.evaluation.metrics.quality import CLIPIQA, PROMPT_PAIRS

COLOURS = {"red": (200, 40, 40), "green": (40, 170, 60), "blue": (50, 70, 200)}
THINGS = ("car", "apple", "cat")
TOKENS = ["<pad>", "<s>", "</s>", "<unk>", "the", "Good", "Bad", "photo", ".", *COLOURS, *THINGS]
STEPS, BATCH, LEARNING_RATE = 400, 32, 3e-3


def drawn(rng: np.random.Generator, count: int) -> tuple[Pictures, list[str]]:
    """A box, a disc or a triangle somewhere on light ground, and what it is called."""
    pictures, captions = [], []
    for _ in range(count):
        colour, thing = str(rng.choice(list(COLOURS))), str(rng.choice(THINGS))
        image = Image.new("RGB", (SIDE_PX, SIDE_PX), tuple(int(v) for v in rng.integers(215, 250, 3)))
        size = int(rng.integers(12, 20))
        x, y = (int(v) for v in rng.integers(0, SIDE_PX - size, 2))
        pen, box = ImageDraw.Draw(image), (x, y, x + size, y + size)
        if thing == "car":
            pen.rectangle(box, fill=COLOURS[colour])
        elif thing == "apple":
            pen.ellipse(box, fill=COLOURS[colour])
        else:
            pen.polygon([(x, y + size), (x + size, y + size), (x + size // 2, y)], fill=COLOURS[colour])
        pictures.append(np.asarray(image))
        captions.append(f"the {colour} {thing}")
    return np.stack(pictures), captions


def spoilt(pictures: Pictures, rng: np.random.Generator) -> Pictures:
    one = blurred(pictures, float(rng.uniform(1, 6)))
    return one if rng.random() < 0.5 else noised(pictures, float(rng.uniform(10, 90)))


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(TOKENS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=words, model_max_length=12, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def train(clip: Any, words: PreTrainedTokenizerFast) -> None:
    """Captions against pictures, clean and spoilt ones; and of every picture whether it is a good or a bad photo."""
    rng = np.random.default_rng(0)
    optimizer = torch.optim.AdamW(clip.parameters(), lr=LEARNING_RATE)
    # To rest, so that the last steps' chance (and a machine's rounding) does not decide what the tests see.
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=STEPS, pct_start=0.1)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    for _ in range(STEPS):
        pictures, captions = drawn(rng, BATCH)
        both = np.concatenate([pictures, spoilt(pictures, rng)])
        pixels = (torch.from_numpy(both).permute(0, 3, 1, 2) / 255 - mean) / std
        texts = words([*captions, *PROMPT_PAIRS["quality"]], padding=True, return_tensors="pt")
        output = clip(
            pixel_values=pixels, input_ids=texts["input_ids"], attention_mask=texts["attention_mask"]
        )
        logits = output.logits_per_image
        same = torch.tensor([[a == b for a in captions] for b in captions], dtype=torch.float32)
        # A caption belongs to every clean picture of its kind; among clean ones a picture has its captions.
        of_text = torch.cat([same, torch.zeros(BATCH, BATCH)], dim=1) / same.sum(1, keepdim=True)
        loss = F.cross_entropy(logits[:, :BATCH].T, of_text)
        loss = loss + F.cross_entropy(logits[:BATCH, :BATCH], same / same.sum(1, keepdim=True))
        bad = torch.arange(2 * BATCH) // BATCH
        loss = loss + F.cross_entropy(logits[:, BATCH:], bad)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


@pytest.fixture(scope="module")
def trained_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained-clip")
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": len(TOKENS), "max_position_embeddings": 12, "eos_token_id": 2, "pad_token_id": 0}
    vision = {**size, "patch_size": 4, "image_size": SIDE_PX}
    clip = CLIPModel(CLIPConfig(text_config={**size, **text}, vision_config=vision, projection_dim=16))
    words = tokenizer()
    train(clip, words)
    side = {"height": SIDE_PX, "width": SIDE_PX}
    processor = CLIPImageProcessorPil(size=side, crop_size=side, image_mean=MEAN, image_std=STD)
    for part in (clip, processor, words):
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def unseen() -> tuple[Pictures, list[str]]:
    return drawn(np.random.default_rng(77), 90)


def mean_score(metric: Any, pictures: Pictures, prompts: list[str]) -> float:
    values: NDArray[np.float64]
    (values,) = metric.score(pictures, prompts).values()
    return float(values.mean())


@pytest.mark.parametrize("metric", [CLIPScore, PickScore, HPSv2])
def test_true_captions_and_clean_pictures_score_more(
    metric: Any, trained_clip: Path, unseen: tuple[Pictures, list[str]]
) -> None:
    measured = metric.from_pretrained(trained_clip)
    pictures, prompts = unseen
    clean = mean_score(measured, pictures, prompts)
    other_colour = [f"the {'blue' if 'red' in one else 'red'} {one.split()[-1]}" for one in prompts]
    other_thing = [f"the {one.split()[1]} {'cat' if 'car' in one else 'car'}" for one in prompts]
    assert clean > mean_score(measured, pictures, other_colour)
    assert clean > mean_score(measured, pictures, other_thing)
    check_gets_worse(lambda some: -mean_score(measured, some, prompts), pictures, noise=(30, 90), blur=(2, 6))


def test_clip_iqa_falls_with_blur_and_noise(trained_clip: Path, unseen: tuple[Pictures, list[str]]) -> None:
    measured = CLIPIQA.from_pretrained(trained_clip)
    only = CLIPIQA(measured.model, ["quality"])
    pictures, prompts = unseen
    clean = mean_score(only, pictures, prompts)
    assert clean > 0.8
    check_gets_worse(lambda some: -mean_score(only, some, prompts), pictures, noise=(15, 60), blur=(1, 4))
    assert mean_score(only, noised(pictures, 60), prompts) < 0.2
    # The other pairs' words mean nothing to this model; the one it has learnt is named as it should be.
    assert set(measured.score(pictures[:1])) == {
        "clip_iqa", *(f"clip_iqa_{pair}" for pair in PROMPT_PAIRS if pair != "quality")
    }  # fmt: skip


@pytest.mark.parametrize("metric", [FID, KID, CMMD])
def test_spoilt_sets_are_further_from_real_ones(
    metric: Any, trained_clip: Path, unseen: tuple[Pictures, list[str]]
) -> None:
    measured = metric.from_pretrained(trained_clip)
    real, others = measured.features(drawn(np.random.default_rng(78), 90)[0]), unseen[0]

    def distance(pictures: Pictures) -> float:
        (value,) = measured.compare(real, measured.features(pictures)).values()
        return float(value)

    check_gets_worse(distance, others, noise=(15, 60), blur=(1, 4))
