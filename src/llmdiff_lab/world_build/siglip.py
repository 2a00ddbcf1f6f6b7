"""A small SigLIP of scenes and captions, trained on real renders: the SigLIP score of the embedded default."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTokenizer

from llmdiff.evaluation.metrics.models import ImageTextModel
from llmdiff.evaluation.suites.verdicts import scene_as_seen, verdict
from llmdiff.openmoji.captions import caption
from llmdiff.openmoji.contents import SPLITS, World
from llmdiff.openmoji.scenes import Content, Item, Scene, draw, lay_out
from llmdiff.openmoji.world import OPPOSITE, RELATIONS
from llmdiff.training.loop import StepPart, train
from llmdiff.training.loop_config import LoopConfig
from llmdiff_lab.world_build.checker import spoil
from llmdiff_lab.world_build.dataset import near_miss
from llmdiff_lab.world_build.maps import MAP_SIDE, map_classes, map_loss, scene_maps
from llmdiff_lab.world_build.presets import Preset
from llmdiff_lab.world_build.spoiling import blur, to_uint8
from llmdiff_lab.world_build.text_encoder import token_ids
from llmdiff_lab.world_build.world_siglip import create_siglip, sigmoid_loss, to_pixels

_MAP_WEIGHT, _FACT_WEIGHT = 1.0, 0.5
# Where a thing may be said to be: alone or one of several, or on a side of another thing.
_PLACES = ("1", "2", "3", "4", *RELATIONS)


@dataclass(frozen=True, kw_only=True)
class CaptionedRenders:
    """Scenes in pairs of near misses, each with a caption. Shapes: pixels (N, 3, H, W) in -1..1."""

    captions: tuple[str, ...]
    contents: tuple[Content, ...]
    scenes: tuple[Scene, ...]
    pixels: Tensor


def captioned_renders(
    world: World, rng: np.random.Generator, count: int, image_size_px: int
) -> CaptionedRenders:
    """Real renders of every split in turn, each followed by a near miss of it, with captions in the split's words.

    What judges pictures has to know held-out contents and words too, like the checker.
    """
    contents: list[Content] = []
    captions: list[str] = []
    for index in range(count // 2):
        split = SPLITS[index % len(SPLITS)]
        content = world.content(split, rng)
        other = near_miss(content, world, rng, held_out=True)
        contents += [content, other]
        # Not every thing has synonyms and held-out descriptions, so a near miss is named in other words.
        captions += [
            caption(content, world, rng, split),
            caption(other, world, rng, ("seen", "phrasings")[index % 2]),
        ]
    scenes = [lay_out(content, rng) for content in contents]
    images = np.stack([draw(scene, image_size_px=image_size_px) for scene in scenes])
    return CaptionedRenders(
        captions=tuple(captions), contents=tuple(contents), scenes=tuple(scenes), pixels=to_pixels(images)
    )


def fits(renders: CaptionedRenders) -> NDArray[np.bool_]:
    """Which captions are true of which scenes: "a cat" is true of every picture of one cat.

    Shapes: (N, N), captions by scenes.
    """
    seen = [scene_as_seen(scene) for scene in renders.scenes]
    names = [sorted(thing.name for thing in one.things) for one in seen]
    true = np.eye(len(seen), dtype=bool)
    for i, content in enumerate(renders.contents):
        for j, one in enumerate(seen):
            if i != j and names[i] == names[j]:
                true[i, j] = verdict(content, one).exact
    return true


def scene_facts(contents: Sequence[Content], world: World) -> Tensor:
    """What is stated of things, each fact a class: a thing with its number alone, or with its side of a pair.

    "A cat left of a car" and "a car right of a cat" state the same two facts. Shapes: (N, facts), 0 or 1.
    """
    things = [shown for shown in map_classes(world) if isinstance(shown, Item)]
    facts = torch.zeros(len(contents), len(things), len(_PLACES))
    for row, content in zip(facts, contents, strict=True):
        places = (
            [str(content.count)]
            if content.relation is None
            else [content.relation, OPPOSITE[content.relation]]
        )
        for item, place in zip(content.items, places, strict=True):
            row[things.index(item), _PLACES.index(place)] = 1
    return facts.flatten(1)


def train_siglip(
    preset: Preset, tokenizer: CLIPTokenizer, folder: Path, device: torch.device
) -> ImageTextModel:
    """A trained SigLIP of scenes; run again after a kill, the training resumes.

    Source: Zhai et al. 2023 (arXiv 2303.15343), its sigmoid loss over all pairs of a batch. Deviations: a caption is
    right for every scene that shows what it says, not for its own alone; the patches are asked what lies where, and
    both embeddings, through one linear layer, which thing is where, because small transformers learn that slowly
    from captions; and pictures are spoilt a little, as drawn ones are.
    """
    torch.manual_seed(preset.seed + 4)
    created = create_siglip(preset, tokenizer)
    model = created.model.to(device).train()
    world = World(objects=preset.objects)
    mapping = nn.Linear(preset.siglip_width, len(map_classes(world))).to(device)
    telling = nn.Linear(preset.siglip_width, scene_facts([], world).shape[1]).to(device)
    nn.init.constant_(telling.bias, -math.log(telling.out_features))  # a fact is rare: one or two of all

    def step_loss(part: StepPart) -> tuple[Tensor, dict[str, float]]:
        rng = part.rng(preset.seed, 12)
        renders = captioned_renders(world, rng, preset.siglip_batch, preset.image_size_px)
        vision = model.vision_model(pixel_values=spoil(renders.pixels, rng).to(device))
        ids = token_ids(tokenizer, list(renders.captions)).to(device)
        read = model.text_model(input_ids=ids).pooler_output
        texts = F.normalize(read, dim=-1)
        images = F.normalize(vision.pooler_output, dim=-1)
        logits = model.logit_scale.exp() * texts @ images.T + model.logit_bias
        matching = sigmoid_loss(logits, torch.from_numpy(fits(renders)).to(device))
        cells = mapping(vision.last_hidden_state).transpose(1, 2).unflatten(2, (MAP_SIDE, MAP_SIDE))
        mapped = map_loss(cells, torch.from_numpy(scene_maps(renders.scenes, world)))
        stated = scene_facts(renders.contents, world).to(device)
        told = torch.stack(
            [
                F.binary_cross_entropy_with_logits(telling(one), stated, reduction="sum") / len(stated)
                for one in (vision.pooler_output, read)
            ]
        ).mean()
        right = (logits.argmax(0) == torch.arange(len(ids), device=device)).float().mean()
        losses = {"matching": matching, "map": mapped, "facts": told}
        figures = {name: float(loss.detach()) for name, loss in losses.items()} | {"accuracy": float(right)}
        return matching + _MAP_WEIGHT * mapped + _FACT_WEIGHT * told, figures

    config = LoopConfig(
        steps=preset.siglip_steps,
        learning_rate=preset.siglip_lr,
        seed=preset.seed,
        lr_warmup_steps=min(50, preset.siglip_steps),
        ema_horizon=60,
    )
    train(
        {"siglip": model, "map": mapping, "facts": telling},
        step_loss,
        config,
        folder,
        title="siglip",
        # Two single numbers, which have far to go in few steps.
        lr_scale=lambda name: (5.0, 0.0) if "logit_" in name else (1.0, 1.0),
        muon=lambda name: ".layers." in name and name.endswith(".weight") and "norm" not in name,
    )
    return ImageTextModel(model, created.image_processor, tokenizer)


def held_out_order(trained: ImageTextModel, preset: Preset, count: int = 1200) -> dict[str, float]:
    """Shares of fresh renders and captions that the model puts in the right order; one half is chance.

    Of a render and a caption that is true of it, the cosine has to be higher than that of: `near_miss`, the caption of
    a scene that differs in one respect; `shuffled`, the caption of some other scene; `blurred` and `noised`, the
    spoilt render.
    """
    world, rng = World(objects=preset.objects), np.random.default_rng([preset.seed, 13])
    right: dict[str, list[NDArray[np.bool_]]] = {
        name: [] for name in ("near_miss", "shuffled", "blurred", "noised")
    }
    for _ in range(0, count, 120):
        renders = captioned_renders(world, rng, 120, preset.image_size_px)
        true, texts = fits(renders), trained.embed_texts(renders.captions)
        kernel = torch.exp(-(torch.arange(-8, 9).float() ** 2) / (2 * 3.0**2))
        noise = torch.from_numpy(rng.normal(0, 0.6, renders.pixels.shape).astype(np.float32))
        spoilt = {"blurred": blur(renders.pixels, kernel / kernel.sum()), "noised": renders.pixels + noise}
        cosines = (texts @ trained.embed_pictures(to_uint8(renders.pixels)).T).numpy()
        itself = cosines.diagonal()
        places = np.arange(len(texts))
        for name, others in (("near_miss", places ^ 1), ("shuffled", np.roll(places, 7))):
            counts = ~true[others, places]
            right[name].append((itself > cosines[others, places])[counts])
        for name, pixels in spoilt.items():
            worse = (texts * trained.embed_pictures(to_uint8(pixels))).sum(1).numpy()
            right[name].append(itself > worse)
    shares = {name: round(float(np.concatenate(values).mean()), 4) for name, values in right.items()}
    return shares | {"renders": count}
