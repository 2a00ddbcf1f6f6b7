"""Train the text encoder, contrastively like CLIP, against maps of scenes."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from llmdiff.training.loop import StepPart, train
from llmdiff.training.loop_config import LoopConfig
from llmdiff.world.splits import sample_scene, training_caption
from llmdiff_lab.world_build.maps import MAP_SIDE, map_sizes
from llmdiff_lab.world_build.presets import Preset
from llmdiff_lab.world_build.scenes import SceneSet
from llmdiff_lab.world_build.stages import save_model

_START, _END = "<|startoftext|>", "<|endoftext|>"


class MapTower(nn.Module):
    """Maps of scenes => embeddings (B, width), the counterpart of the text encoder in its training.

    It reads maps instead of pictures, so that it does not depend on the VAE.
    """

    def __init__(self, sizes: tuple[int, ...], width: int, channels: int = 96) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(size, channels) for size in sizes)
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 2 * channels, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(2 * channels, 2 * channels, 3, stride=2, padding=1),
            nn.GroupNorm(8, 2 * channels),
            nn.SiLU(),
            nn.Conv2d(2 * channels, channels, 1),
            nn.Flatten(),
            nn.Linear(channels * (MAP_SIDE // 2) ** 2, 2 * width),
            nn.SiLU(),
            nn.Linear(2 * width, width),
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Return one embedding for each map. Shapes: maps (B, 3, MAP_SIDE, MAP_SIDE) integers => (B, width)."""
        layers = [table(maps[:, i].long()) for i, table in enumerate(self.tables)]
        output: Tensor = self.layers(torch.stack(layers).sum(0).permute(0, 3, 1, 2))
        return output


class Projections(nn.Module):
    """The contrastive head: a text projection and the learned temperature, as in CLIP."""

    def __init__(self, text_width: int, width: int) -> None:
        super().__init__()
        self.text = nn.Linear(text_width, width, bias=False)
        self.log_temperature = nn.Parameter(torch.tensor(float(np.log(1 / 0.07))))


def create_tokenizer(preset: Preset, folder: Path) -> CLIPTokenizer:
    """Return the CLIP tokenizer; create it from plain training captions if it does not exist."""
    if not (folder / "tokenizer_config.json").exists():
        scenes = (sample_scene(preset.seed, index, preset.world) for index in range(preset.text_captions))
        captions = (training_caption(scene, preset.seed, i, "plain").text for i, scene in enumerate(scenes))
        train_tokenizer(captions, preset.text_vocabulary, preset.text_max_tokens, folder)
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder)
    return tokenizer


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
    vocabulary, merges = _vocabulary(bpe)
    save_model(CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=max_tokens), folder)


def create_text_encoder(preset: Preset, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Return an untrained CLIP text encoder of the preset's size."""
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


def train_text_encoder(
    preset: Preset, scenes: SceneSet, tokenizer: CLIPTokenizer, folder: Path, device: torch.device
) -> CLIPTextModel:
    """Return a text encoder trained to match its end-of-text state with the scene among those of a batch.

    Source: Radford et al. 2021 (CLIP), symmetric cross-entropy over the batch.
    """
    torch.manual_seed(preset.seed + 1)
    encoder: Any = create_text_encoder(preset, tokenizer)
    encoder.to(device)
    tower = MapTower(map_sizes(preset.world), 2 * preset.text_width).to(device)
    head = Projections(preset.text_width, 2 * preset.text_width).to(device)

    def step_loss(part: StepPart) -> tuple[Tensor, dict[str, float]]:
        rng = part.rng(preset.seed, 5)
        chosen = torch.from_numpy(rng.choice(len(scenes), preset.text_batch, replace=False)).to(device)
        ids = scenes.captions(chosen, rng)
        # Attention is causal, so padding after the longest caption can be cut off.
        ids = ids[:, : int((ids != tokenizer.eos_token_id).sum(1).max()) + 1]
        texts = F.normalize(head.text(encoder(ids).pooler_output).float(), dim=-1)
        shown = F.normalize(tower(scenes.maps[chosen]).float(), dim=-1)
        logits = head.log_temperature.exp().clamp(max=100) * texts @ shown.T
        target = torch.arange(len(chosen), device=device)
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        return loss, {"accuracy": float((logits.argmax(1) == target).float().mean())}

    config = LoopConfig(
        steps=preset.text_steps,
        learning_rate=preset.text_lr,
        seed=preset.seed,
        ema_horizon=100,
        weight_decay=0.05,
        precision=preset.precision,
    )
    train({"text": encoder, "map": tower, "head": head}, step_loss, config, folder, title="text encoder")
    encoder.eval()
    trained: CLIPTextModel = encoder
    return trained


def caption_lengths(scenes: SceneSet, tokenizer: CLIPTokenizer) -> dict[str, float]:
    """Return statistics of the captions' lengths in tokens."""
    lengths = (scenes.ids != tokenizer.eos_token_id).sum(-1).flatten().cpu().numpy() + 1
    return {
        "mean_tokens": float(lengths.mean()),
        "full_share": float((lengths > scenes.ids.shape[-1] - 1).mean()),
        "median_tokens": float(np.median(lengths)),
    }


def _vocabulary(bpe: Tokenizer) -> tuple[dict[str, int], list[Any]]:
    """Return tokens with new ids, and merges; the ids from training are not reproducible."""
    model = json.loads(bpe.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    merged = ["".join(merge) for merge in merges]
    specials = [_START, _END]
    letters = sorted(set(model["vocab"]) - set(merged) - set(specials))
    tokens = dict.fromkeys([*specials, *letters, *merged])
    return {token: index for index, token in enumerate(tokens)}, merges
