"""Train the world's text encoder, contrastively like CLIP, against maps of scenes."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from llmdiff.training.loop import StepPart, train
from llmdiff.training.loop_config import LoopConfig
from llmdiff.world.splits import sample_scene, training_caption
from llmdiff_lab.world_build.text_encoder import Projections, create_text_encoder, train_tokenizer
from llmdiff_lab.world_build.world_presets import WorldPreset
from llmdiff_lab.world_build.world_scenes import MAP_SIDE, SceneSet, map_sizes


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


def create_tokenizer(preset: WorldPreset, folder: Path) -> CLIPTokenizer:
    """Return the CLIP tokenizer; create it from plain training captions if it does not exist."""
    if not (folder / "tokenizer_config.json").exists():
        scenes = (sample_scene(preset.seed, index, preset.world) for index in range(preset.text_captions))
        captions = (training_caption(scene, preset.seed, i, "plain").text for i, scene in enumerate(scenes))
        train_tokenizer(captions, preset.text_vocabulary, preset.text_max_tokens, folder)
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder)
    return tokenizer


def train_text_encoder(
    preset: WorldPreset, scenes: SceneSet, tokenizer: CLIPTokenizer, folder: Path, device: torch.device
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
