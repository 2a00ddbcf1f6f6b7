"""The scenes that text encoder, denoiser and adapter are trained on: contents beside the VAE's latents."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from llmdiff.files import whole_file
from llmdiff.openmoji.captions import Wording, caption
from llmdiff.openmoji.contents import World, is_training_content
from llmdiff.openmoji.scenes import Content, Item, draw, lay_out
from llmdiff.openmoji.world import OPPOSITE, SIZE_WORDS
from llmdiff_lab.world_build.autoencoder import encode_images
from llmdiff_lab.world_build.maps import scene_maps
from llmdiff_lab.world_build.presets import Preset

_CHUNK = 4096


@dataclass(frozen=True, kw_only=True)
class SceneData:
    """Training scenes: what each shows, and its scaled latents.

    Scenes 2i and 2i+1 are near misses of each other (the relation turned round, another count, another thing),
    so that a contrastive batch of neighbours asks for more than a bag of words.

    Shapes: latents (N, C, h, w) float16; maps (N, MAP_SIDE, MAP_SIDE) uint8, as `maps.scene_maps` gives them.
    """

    world: World
    contents: tuple[Content, ...]
    latents: Tensor
    maps: Tensor

    def captions(
        self, indices: np.ndarray, rng: np.random.Generator, wording: Wording = "training"
    ) -> list[str]:
        """A fresh training caption for each scene."""
        return [caption(self.contents[i], self.world, rng, wording=wording) for i in indices]

    def near_misses(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Indices of `count` scenes in neighbouring pairs."""
        firsts = rng.choice(len(self.contents) // 2, count // 2, replace=False) * 2
        return np.stack([firsts, firsts + 1], 1).reshape(-1)


def load_or_make(preset: Preset, vae: AutoencoderKL, folder: Path) -> SceneData:
    """The preset's training scenes: drawn and encoded once, then read from `folder`."""
    world, path = World(objects=preset.objects), folder / "scenes.safetensors"
    if not path.exists():
        chunks = [
            _chunk(preset, world, vae, start, folder)
            for start in tqdm(range(0, preset.scenes, _CHUNK), desc="scenes", mininterval=5)
        ]
        _save_whole(
            path,
            latents=torch.cat([chunk["latents"] for chunk in chunks]),
            maps=torch.cat([chunk["maps"] for chunk in chunks]),
            contents=_as_bytes([content for chunk in chunks for content in _listed(chunk["contents"])]),
        )
        for chunk_path in folder.glob("chunk-*.safetensors"):
            chunk_path.unlink()
    saved = load_file(path)
    return SceneData(
        world=world,
        contents=tuple(map(_content, _listed(saved["contents"]))),
        latents=saved["latents"],
        maps=saved["maps"],
    )


def near_miss(content: Content, world: World, rng: np.random.Generator, *, held_out: bool = False) -> Content:
    """A content that differs from this one in a single respect; with `held_out`, also one that training never shows."""
    while True:
        other = world.training_content(rng)
        kind = rng.random()
        if content.relation is not None and kind < 0.6:
            changed = replace(content, relation=OPPOSITE[content.relation])  # type: ignore[arg-type]
        elif content.relation is not None:
            changed = replace(content, items=(content.items[0], other.items[0]))
        elif content.count > 1 and kind < 0.6:
            changed = replace(content, count=int(rng.integers(2, 5)))
        elif content.count == 1 and kind < 0.5:
            changed = replace(content, size=[None, *SIZE_WORDS][int(rng.integers(3))])
        else:
            changed = replace(content, items=other.items[:1])
        allowed = len(set(changed.items)) == len(changed.items) if held_out else is_training_content(changed)
        if changed != content and allowed:
            return changed


def _chunk(preset: Preset, world: World, vae: AutoencoderKL, start: int, folder: Path) -> dict[str, Tensor]:
    """Scenes start to start + _CHUNK, kept on disk until all are done: a killed build loses one chunk at most."""
    path = folder / f"chunk-{start:08d}.safetensors"
    if not path.exists():
        rng = np.random.default_rng([preset.seed, 4, start])
        drawn: list[Content] = []
        while len(drawn) < min(_CHUNK, preset.scenes - start):
            first = world.training_content(rng)
            drawn += [first, near_miss(first, world, rng)]
        scenes = [lay_out(content, rng) for content in drawn]
        images = np.stack([draw(scene, image_size_px=preset.image_size_px) for scene in scenes])
        _save_whole(
            path,
            latents=encode_images(vae, images),
            maps=torch.from_numpy(scene_maps(scenes, world)),
            contents=_as_bytes([asdict(content) for content in drawn]),
        )
    return load_file(path)


def _save_whole(path: Path, **tensors: Tensor) -> None:
    with whole_file(path) as partial:
        save_file(tensors, partial)


def _as_bytes(listed: list[dict[str, object]]) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(listed).encode()), dtype=torch.uint8)


def _listed(tensor: Tensor) -> list[dict[str, object]]:
    listed: list[dict[str, object]] = json.loads(tensor.numpy().tobytes().decode())
    return listed


def _content(saved: dict[str, object]) -> Content:
    items = tuple(Item(**item) for item in saved.pop("items"))  # type: ignore[attr-defined]
    return Content(items=items, **saved)  # type: ignore[arg-type]
