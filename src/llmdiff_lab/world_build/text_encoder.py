"""Train the text encoder on captions and maps of scenes, before a denoiser reads it."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from llmdiff.training.loop import StepPart, train
from llmdiff.training.loop_config import LoopConfig
from llmdiff.training.processes import attention_kernel
from llmdiff.world.splits import sample_scene, training_caption
from llmdiff_lab.world_build.maps import MAP_SIDE, map_loss, map_sizes
from llmdiff_lab.world_build.presets import Preset
from llmdiff_lab.world_build.scenes import SceneSet
from llmdiff_lab.world_build.stages import save_model

_START, _END = "<|startoftext|>", "<|endoftext|>"


class MapReader(nn.Module):
    """Predicts the hidden cells of a scene's map from its other cells and the states of its caption.

    It reads the states by cross-attention over all of them, as a denoiser does, and so teaches a text encoder what a
    denoiser needs, for a hundredth of the cost: which thing has which number, colour and place.

    Source: masked prediction of discrete cells from text after Chang et al. 2023 (Muse, arXiv 2301.00704).
    """

    def __init__(self, sizes: tuple[int, ...], width: int, layers: int) -> None:
        super().__init__()
        self.sizes = sizes
        # The last row of a table is that of hidden cells.
        self.tables = nn.ModuleList(nn.Embedding(size + 1, width) for size in sizes)
        self.places = nn.Parameter(torch.randn(MAP_SIDE**2, width))
        block = nn.TransformerDecoderLayer(
            width,
            max(2, width // 40),
            4 * width,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.blocks = nn.TransformerDecoder(block, layers, norm=nn.LayerNorm(width))
        self.head = nn.Linear(width, sum(sizes))

    def forward(self, maps: Tensor, hidden: Tensor, states: Tensor) -> Tensor:
        """Return logits of all cells.

        Shapes: maps (B, 3, S, S) integers; hidden (B, S, S) booleans; states (B, T, width) => (B, classes, S, S).
        """
        cells: Tensor = self.places
        for i, (table, size) in enumerate(zip(self.tables, self.sizes, strict=True)):
            cells = cells + table(maps[:, i].long().masked_fill(hidden, size).flatten(1))
        logits: Tensor = self.head(self.blocks(cells, states))
        return logits.transpose(1, 2).reshape(len(maps), sum(self.sizes), *hidden.shape[1:])


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
    model: Any,
    preset: Preset,
    scenes: SceneSet,
    tokenizer: CLIPTokenizer,
    folder: Path,
    device: torch.device,
) -> None:
    """Train a CLIP text encoder together with a `MapReader` that reads its states."""
    model.to(device).train()
    sizes = map_sizes(preset.world)
    reader = MapReader(sizes, preset.text_width, preset.text_reader_layers).to(device)

    def step_loss(part: StepPart) -> tuple[Tensor, dict[str, float]]:
        rng = part.rng(preset.seed, 5)
        chosen = scenes.sample(preset.text_batch, rng)
        ids, maps = scenes.captions(chosen, rng), scenes.maps[chosen]
        # Attention is causal, so padding after the longest caption can be cut off.
        ids = ids[:, : int((ids != tokenizer.eos_token_id).sum(1).max()) + 1]
        # Mostly hidden: what cannot be seen in other cells must come from the caption.
        share = np.sqrt(rng.random((len(chosen), 1, 1)))
        hidden = torch.from_numpy(rng.random((len(chosen), MAP_SIDE, MAP_SIDE)) < share).to(device)
        with attention_kernel(device):
            logits = reader(maps, hidden, model(ids).last_hidden_state)
        loss = map_loss(logits, maps, sizes, hidden)
        right = (logits[:, : sizes[0]].argmax(1) == maps[:, 0])[hidden]
        return loss, {"right_cells": float(right.float().mean())}

    config = LoopConfig(
        steps=preset.text_steps,
        learning_rate=preset.text_lr,
        seed=preset.seed,
        ema_horizon=100,
        weight_decay=0.05,
        precision=preset.precision,
    )
    train({"text": model, "reader": reader}, step_loss, config, folder, title="text encoder")
    model.eval()


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
