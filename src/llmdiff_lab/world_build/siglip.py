"""Train a small SigLIP on renders of scenes and their captions, for the SigLIP score of the embedded default."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTokenizer, SiglipConfig, SiglipImageProcessorPil, SiglipModel

from llmdiff.evaluation.metrics.models import ImageTextModel
from llmdiff.training.loop import StepPart, train
from llmdiff.training.loop_config import LoopConfig
from llmdiff.world.captions import Caption, caption
from llmdiff.world.layouts import OPPOSITE, SPOTS
from llmdiff.world.reading import matches, reading_of
from llmdiff.world.rendering import render
from llmdiff.world.scenes import Scene, World, any_scene, laid_out
from llmdiff.world.voices import RICH, SPLIT_VOICES
from llmdiff_lab.world_build.maps import MAP_SIDE, map_classes, map_loss, map_sizes, scene_map
from llmdiff_lab.world_build.near_misses import near_miss
from llmdiff_lab.world_build.presets import Preset
from llmdiff_lab.world_build.spoiling import blur, spoil, to_uint8

_MAP_WEIGHT, _FACT_WEIGHT = 1.0, 0.5
_STREAM = "siglip"
_VOICES = (RICH, *SPLIT_VOICES.values())
# Numbers and positions of things in captions.
_PLACES = (*map(str, range(1, 7)), *OPPOSITE, *SPOTS)


@dataclass(frozen=True, kw_only=True)
class CaptionedScenes:
    """Scenes in pairs that differ in one respect, each with a caption."""

    scenes: tuple[Scene, ...]
    captions: tuple[Caption, ...]

    @property
    def texts(self) -> list[str]:
        """Return the texts of the captions."""
        return [one.text for one in self.captions]


def captioned_scenes(world: World, rng: random.Random, count: int) -> CaptionedScenes:
    """Return scenes of all kinds, each followed by a near miss of it, with captions in all voices.

    Held-out contents and words are included, as for the checker, because the model has to judge them.
    """
    scenes: list[Scene] = []
    captions: list[Caption] = []
    while len(scenes) < count:
        first = laid_out(any_scene(world, rng), rng)
        for scene in (first, near_miss(first, world, rng)):
            scenes.append(scene)
            captions.append(caption(scene, rng.choice(_VOICES), rng))
    return CaptionedScenes(scenes=tuple(scenes[:count]), captions=tuple(captions[:count]))


def fits(shown: CaptionedScenes) -> NDArray[np.bool_]:
    """Return which captions are true for which scenes: "a cat" is true for every picture of one cat.

    Shapes: (N, N), captions by scenes.
    """
    readings = [reading_of(scene) for scene in shown.scenes]
    names = [sorted(thing.name for thing in reading.things) for reading in readings]
    true = np.eye(len(readings), dtype=bool)
    for i, text in enumerate(shown.captions):
        asked = sorted(text.expected.counts.elements())
        for j, reading in enumerate(readings):
            if i != j and asked == names[j]:
                true[i, j] = matches(text.expected, reading).exact
    return true


def scene_facts(scenes: Sequence[Scene], world: World) -> Tensor:
    """Return the facts of scenes as classes: a thing with its number, its side of a pair, or its spot.

    Shapes: (N, facts), 0 or 1.
    """
    kinds = [kind for kind in map_classes(world) if kind[1] not in ("place", "background")]
    facts = torch.zeros(len(scenes), len(kinds), len(_PLACES))
    for row, scene in zip(facts, scenes, strict=True):
        sides = {0: scene.relation, 1: OPPOSITE.get(scene.relation, "")}
        for index, (placed, count) in enumerate(scene.groups):
            side = placed.spot or (sides.get(index) if scene.relation in OPPOSITE else str(count))
            row[kinds.index((placed.name, placed.who)), _PLACES.index(str(side))] = 1
    return facts.flatten(1)


def create_siglip(preset: Preset, tokenizer: CLIPTokenizer) -> ImageTextModel:
    """Return an untrained SigLIP of the preset's size, with its image processor and this tokenizer."""
    size = {
        "hidden_size": preset.siglip_width,
        "intermediate_size": 2 * preset.siglip_width,
        "num_hidden_layers": preset.siglip_layers,
        "num_attention_heads": max(2, preset.siglip_width // 32),
    }
    text = size | {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": preset.text_max_tokens,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    # One patch for every cell of the maps in training.
    vision = size | {"image_size": preset.image_size_px, "patch_size": preset.image_size_px // MAP_SIDE}
    model: Any = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
    with torch.no_grad():  # SigLIP's initialisation, with the bias for this batch size
        model.logit_scale.fill_(math.log(10))
        model.logit_bias.fill_(-math.log(preset.siglip_batch))
    side = {"height": preset.image_size_px, "width": preset.image_size_px}
    return ImageTextModel(model, SiglipImageProcessorPil(size=side), tokenizer)


def train_siglip(
    preset: Preset, tokenizer: CLIPTokenizer, folder: Path, device: torch.device
) -> ImageTextModel:
    """Return a trained SigLIP of scenes; an interrupted training resumes in the next call.

    Source: Zhai et al. 2023 (arXiv 2303.15343), its sigmoid loss over all pairs of a batch. Deviations: a caption is
    positive for every scene for which it is true, not only for its own; auxiliary losses predict the map from the
    patches, and the facts from both embeddings through one linear layer, because small transformers learn positions
    slowly from captions; and pictures are distorted like generated ones.
    """
    torch.manual_seed(preset.seed + 4)
    created = create_siglip(preset, tokenizer)
    model = created.model.to(device).train()
    world = preset.world
    sizes = map_sizes(world)
    mapping = nn.Linear(preset.siglip_width, sum(sizes)).to(device)
    telling = nn.Linear(preset.siglip_width, scene_facts([], world).shape[1]).to(device)
    nn.init.constant_(telling.bias, -math.log(telling.out_features))  # a scene has one to five of all facts

    def step_loss(part: StepPart) -> tuple[Tensor, dict[str, float]]:
        shown = captioned_scenes(
            world, random.Random(f"{_STREAM} {preset.seed} {part.step}"), preset.siglip_batch
        )
        images = np.stack([render(scene, preset.image_size_px) for scene in shown.scenes])
        vision = model.vision_model(pixel_values=spoil(images, part.rng(preset.seed, 12)).to(device))
        ids = tokenizer(shown.texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        read = model.text_model(input_ids=ids.to(device)).pooler_output
        pictures, texts = F.normalize(vision.pooler_output, dim=-1), F.normalize(read, dim=-1)
        logits = model.logit_scale.exp() * texts @ pictures.T + model.logit_bias
        matching = sigmoid_loss(logits, torch.from_numpy(fits(shown)).to(device))
        cells = mapping(vision.last_hidden_state).transpose(1, 2).unflatten(2, (MAP_SIDE, MAP_SIDE))
        maps = np.stack([scene_map(scene, world, preset.image_size_px) for scene in shown.scenes])
        mapped = map_loss(cells, torch.from_numpy(maps).to(device), sizes)
        facts = scene_facts(shown.scenes, world).to(device)
        told = torch.stack(
            [
                F.binary_cross_entropy_with_logits(telling(one), facts, reduction="sum") / len(facts)
                for one in (vision.pooler_output, read)
            ]
        ).mean()
        right = (logits.argmax(0) == torch.arange(len(logits), device=device)).float().mean()
        losses = {"matching": matching, "map": mapped, "facts": told}
        figures = {name: float(loss.detach()) for name, loss in losses.items()} | {"accuracy": float(right)}
        return matching + _MAP_WEIGHT * mapped + _FACT_WEIGHT * told, figures

    config = LoopConfig(
        steps=preset.siglip_steps,
        learning_rate=preset.siglip_lr,
        seed=preset.seed,
        lr_warmup_steps=min(50, preset.siglip_steps),
        ema_horizon=60,
        precision=preset.precision,
        checkpoint_every_s=180,
    )
    train(
        {"siglip": model, "map": mapping, "facts": telling},
        step_loss,
        config,
        folder,
        title="siglip",
        # A higher rate for the two scalars, which have to change much in few steps.
        lr_scale=lambda name: (5.0, 0.0) if "logit_" in name else (1.0, 1.0),
        muon=lambda name: ".layers." in name and name.endswith(".weight") and "norm" not in name,
    )
    return ImageTextModel(model, created.image_processor, tokenizer)


def sigmoid_loss(logits: Tensor, true: Tensor) -> Tensor:
    """Return SigLIP's loss of a batch.

    Shapes: logits and true (N, N), captions by scenes; result ().
    Source: Zhai et al. 2023, section 3.2, with `true` in place of the diagonal.
    """
    # -1 / N sum_i sum_j log sigmoid(z_ij (t x_i . y_j + b)),  z_ij = 1 where true, else -1
    return -F.logsigmoid(torch.where(true, logits, -logits)).sum(1).mean()


def held_out_order(trained: ImageTextModel, preset: Preset, count: int = 1200) -> dict[str, float]:
    """Return the accuracy of the model in comparisons on held-out renders and captions; chance is one half.

    The cosine of a render and a true caption has to be higher than that with: `near_miss`, the caption of a scene that
    differs in one respect; `shuffled`, the caption of another scene; `blurred` and `noised`, the distorted render.
    """
    rng = np.random.default_rng([preset.seed, 13])
    right: dict[str, list[NDArray[np.bool_]]] = {}
    for start in range(0, count, 120):
        shown = captioned_scenes(preset.world, random.Random(f"{_STREAM} held out {start}"), 120)
        images = np.stack([render(scene, preset.image_size_px) for scene in shown.scenes])
        true, texts, pixels = fits(shown), trained.embed_texts(shown.texts), to_pixels(images)
        kernel = torch.exp(-(torch.arange(-16, 17).float() ** 2) / (2 * 6.0**2))
        noise = torch.from_numpy(rng.normal(0, 0.6, pixels.shape).astype(np.float32))
        spoilt = {"blurred": blur(pixels, kernel / kernel.sum()), "noised": pixels + noise}
        cosines = (texts @ trained.embed_pictures(images).T).numpy()
        itself, rows = cosines.diagonal(), np.arange(len(texts))
        for name, others in (("near_miss", rows ^ 1), ("shuffled", np.roll(rows, 7))):
            counts = ~true[others, rows]
            right.setdefault(name, []).append((itself > cosines[others, rows])[counts])
        for name, worse in spoilt.items():
            cosine = (texts * trained.embed_pictures(to_uint8(worse))).sum(1).numpy()
            right.setdefault(name, []).append(itself > cosine)
    shares = {name: round(float(np.concatenate(values).mean()), 4) for name, values in right.items()}
    return shares | {"renders": count}


def to_pixels(images: NDArray[np.uint8]) -> Tensor:
    """Return the image processor's output for pictures of its size: (N, H, W, 3) => (N, 3, H, W) in -1..1."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
