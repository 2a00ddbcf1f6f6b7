"""The embedded default's own text encoder: CLIP-style, trained contrastively against a small image tower."""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from llmdiff.openmoji.captions import caption
from llmdiff.openmoji.contents import World
from llmdiff.training.loop import StepPart, train
from llmdiff.training.loop_config import LoopConfig
from llmdiff_lab.world_build.dataset import SceneData
from llmdiff_lab.world_build.presets import Preset
from llmdiff_lab.world_build.world_presets import WorldPreset

_VOCABULARY_SIZE = 1_000
_START, _END = "<|startoftext|>", "<|endoftext|>"


class ImageTower(nn.Module):
    """Scene latents (B, C, 16, 16) => embeddings (B, width); it exists to train the text encoder against."""

    def __init__(self, latent_channels: int, width: int, channels: int = 64) -> None:
        super().__init__()

        def level(inputs: int, outputs: int) -> list[nn.Module]:
            return [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.GroupNorm(8, outputs), nn.SiLU()]

        self.layers = nn.Sequential(
            nn.Conv2d(latent_channels, channels, 3, padding=1),
            nn.SiLU(),
            *level(channels, 2 * channels),
            nn.Conv2d(2 * channels, 2 * channels, 3, padding=1),
            nn.SiLU(),
            *level(2 * channels, 3 * channels),
            nn.Flatten(),
            nn.LazyLinear(2 * width),
            nn.SiLU(),
            nn.Linear(2 * width, width),
        )

    def forward(self, latents: Tensor) -> Tensor:
        """Return what the latents show, as one vector each."""
        output: Tensor = self.layers(latents)
        return output


class Projections(nn.Module):
    """The contrastive head: a text projection and the learned temperature, as in CLIP."""

    def __init__(self, text_width: int, width: int) -> None:
        super().__init__()
        self.text = nn.Linear(text_width, width, bias=False)
        self.log_temperature = nn.Parameter(torch.tensor(float(np.log(1 / 0.07))))


def create_tokenizer(preset: Preset, folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer whose merges come from training captions; unseen words fall into pieces."""
    if not (folder / "tokenizer_config.json").exists():
        train_tokenizer(_captions(preset), _VOCABULARY_SIZE, preset.text_max_tokens, folder)
    saved: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder)
    return saved


def train_tokenizer(captions: Iterable[str], vocabulary_size: int, max_tokens: int, folder: Path) -> None:
    """Write a CLIP tokenizer whose merges come from these captions."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=_END))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        min_frequency=2,
        special_tokens=[_START, _END],
        initial_alphabet=sorted(letters),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    bpe.train_from_iterator(captions, trainer)
    bpe.save(str(folder.with_suffix(".partial")))
    vocabulary, merges = _vocabulary(folder.with_suffix(".partial"))
    os.unlink(folder.with_suffix(".partial"))
    CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=max_tokens).save_pretrained(folder)


def create_text_encoder(preset: Preset | WorldPreset, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """An untrained CLIP text encoder of the preset's size."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=preset.text_width,
            intermediate_size=4 * preset.text_width,
            num_hidden_layers=preset.text_layers,
            num_attention_heads=max(2, preset.text_width // 40),
            max_position_embeddings=preset.text_max_tokens,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def token_ids(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Ids padded to the tokenizer's length, as Stable Diffusion pipelines pad them. Shapes: (B, 40) int64."""
    ids: Tensor = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return ids


def train_text_encoder(
    preset: Preset, data: SceneData, tokenizer: CLIPTokenizer, folder: Path, device: torch.device
) -> CLIPTextModel:
    """A text encoder whose end-of-text state finds its scene among the others of a batch.

    Source: Radford et al. 2021 (CLIP), symmetric cross-entropy over the batch; half of every batch are near misses.
    """
    torch.manual_seed(preset.seed + 1)
    encoder: Any = create_text_encoder(preset, tokenizer)
    encoder.to(device)
    tower = ImageTower(data.latents.shape[1], 2 * preset.text_width)
    tower(data.latents[:2].float())  # gives the lazy layer its width
    tower.to(device)
    head = Projections(preset.text_width, 2 * preset.text_width).to(device)

    def step_loss(part: StepPart) -> tuple[Tensor, dict[str, float]]:
        rng = part.rng(preset.seed, 5)
        indices = data.near_misses(preset.text_batch, rng)
        ids = token_ids(tokenizer, data.captions(indices, rng))
        ids = ids[:, : int((ids != tokenizer.eos_token_id).sum(1).max()) + 1].to(device)
        texts = F.normalize(head.text(encoder(ids).pooler_output), dim=-1)
        images = F.normalize(tower(data.latents[indices].float().to(device)), dim=-1)
        logits = head.log_temperature.exp().clamp(max=100) * texts @ images.T
        target = torch.arange(len(indices), device=device)
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        right = (logits.argmax(1) == target).float().mean()
        return loss, {"accuracy": float(right)}

    config = LoopConfig(
        steps=preset.text_steps,
        learning_rate=preset.text_lr,
        seed=preset.seed,
        ema_horizon=100,
        weight_decay=0.05,
    )
    modules = {"text": encoder, "image": tower, "head": head}
    train(modules, step_loss, config, folder, title="text encoder")
    encoder.eval()
    trained: CLIPTextModel = encoder
    return trained


def _captions(preset: Preset) -> Iterator[str]:
    world, rng = World(objects=preset.objects), np.random.default_rng([preset.seed, 6])
    for _ in range(20_000):
        yield caption(world.training_content(rng), world, rng)


def _vocabulary(path: Path) -> tuple[dict[str, int], list[Any]]:
    """Tokens with their ids, and merges; ids are given anew, because training numbers letters in any order."""
    model = json.loads(path.read_text())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    merged = ["".join(merge) for merge in merges]
    specials = [_START, _END]
    letters = sorted(set(model["vocab"]) - set(merged) - set(specials))
    tokens = dict.fromkeys([*specials, *letters, *merged])
    return {token: index for index, token in enumerate(tokens)}, merges
