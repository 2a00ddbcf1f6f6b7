"""Training scenes as tensors: pictures for the VAE; maps, captions and latents for later stages.

Scenes are not stored: `sample_scene(seed, index)` gives the same one on every machine.
"""

import random
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from tqdm.auto import tqdm

from llmdiff.files import whole_file
from llmdiff.world.rendering import render
from llmdiff.world.scenes import Scene, World
from llmdiff.world.splits import Split, sample_portrait, sample_scene, split_scene, training_caption
from llmdiff.world.voices import Wording
from llmdiff_lab.world_build.maps import scene_map
from llmdiff_lab.world_build.presets import Preset
from llmdiff_lab.world_build.vae import encode_pictures

_PART, _CHUNK = 128, 4096
_HELD_OUT_SPLITS: tuple[Split, ...] = ("pairs", "colours", "counts", "styles")


@dataclass(frozen=True, kw_only=True)
class View:
    """A kind of training pictures: how their scenes are sampled, their number and their side in pixels.

    `more_captions` is the number of further scenes that train the text encoder and have no pictures.
    """

    name: Literal["scenes", "portraits"]
    sample: Callable[[int, int, World], Scene]
    count: int
    size_px: int
    more_captions: int = 0


def views(preset: Preset) -> dict[str, View]:
    """Return the kinds of pictures that train a denoiser: scenes and, with half the side, portraits."""
    scenes = View(
        name="scenes",
        sample=sample_scene,
        count=preset.scenes,
        size_px=preset.image_size_px,
        more_captions=max(0, preset.text_scenes - preset.scenes),
    )
    portraits = View(
        name="portraits",
        sample=sample_portrait,
        count=preset.portraits,
        size_px=preset.image_size_px // 2,
    )
    return {view.name: view for view in (scenes, portraits) if view.count}


@dataclass(frozen=True, kw_only=True)
class SceneSet:
    """Maps and captions of training scenes on the training device.

    Shapes: maps (N, 3, MAP_SIDE, MAP_SIDE) int16, see `scene_map`; ids (N, captions each, T) int16, token ids of
        plain captions.
    """

    maps: Tensor
    ids: Tensor

    def __len__(self) -> int:
        return len(self.maps)

    def sample(self, count: int, rng: np.random.Generator, among: int | None = None) -> Tensor:
        """Return the indices of random scenes, if `among` is given of the first ones. Shapes: (count,) int64."""
        return torch.from_numpy(rng.integers(among or len(self), size=count)).to(self.maps.device)

    def captions(self, scenes: Tensor, rng: np.random.Generator) -> Tensor:
        """Return the token ids of one caption for each scene. Shapes: (B, T) int64."""
        which = torch.from_numpy(rng.integers(self.ids.shape[1], size=len(scenes))).to(scenes.device)
        return self.ids[scenes, which].long()


def training_pictures(
    preset: Preset, scenes: range, pool: ProcessPoolExecutor, view: View | None = None
) -> NDArray[np.uint8]:
    """Return training scenes as pictures, rendered on all cores; None: full scenes. Shapes: (len(scenes), H, W, 3)."""
    view = view or views(preset)["scenes"]
    return np.concatenate(list(pool.map(partial(_render, preset, view), _parts(scenes))))


def held_out_pictures(preset: Preset, count: int) -> NDArray[np.uint8]:
    """Return pictures of scenes that training never shows. Shapes: (count, H, W, 3)."""
    rng = random.Random(f"held out pictures {preset.seed}")
    splits = _HELD_OUT_SPLITS
    scenes = [split_scene(splits[i % len(splits)], preset.world, rng) for i in range(count)]
    return np.stack([render(scene, preset.image_size_px) for scene in scenes])


def prepare_scenes(
    preset: Preset,
    tokenizer_file: Path,
    pool: ProcessPoolExecutor,
    path: Path,
    view: View,
    wording: Wording = "plain",
) -> None:
    """Write maps and token ids of all training scenes of a kind to a file."""
    described = range(view.count + (view.more_captions if wording == "plain" else 0))
    parts = pool.map(partial(_describe, preset, view, tokenizer_file, wording), _parts(described))
    maps, ids = (torch.from_numpy(np.concatenate(same)) for same in zip(*parts, strict=True))
    with whole_file(path) as partial_path:
        save_file({"maps": maps, "ids": ids}, partial_path)


def load_scenes(path: Path, device: torch.device) -> SceneSet:
    """Return the scenes written by `prepare_scenes`."""
    return SceneSet(**load_file(path, device=str(device)))


def prepare_latents(
    preset: Preset,
    vae: AutoencoderKL,
    pool: ProcessPoolExecutor,
    folder: Path,
    view: View,
    stopped: Callable[[], bool],
) -> bool:
    """Write the latents of all training scenes of a kind to `folder` in chunks, and return whether all are finished.

    When `stopped` returns True, finished chunks are kept.
    """
    for start in tqdm(range(0, view.count, _CHUNK), desc=f"latents of {view.name}", mininterval=5):
        path = folder / f"chunk-{start:08d}.safetensors"
        if path.exists():
            continue
        if stopped():
            return False
        pictures = training_pictures(preset, range(start, min(start + _CHUNK, view.count)), pool, view)
        with whole_file(path) as partial_path:
            save_file({"latents": encode_pictures(vae, pictures, preset.precision)}, partial_path)
    return True


def load_latents(folder: Path, device: torch.device) -> Tensor:
    """Return the scaled latents written by `prepare_latents`. Shapes: (N, C, h, w) float16."""
    chunks = [load_file(path, device=str(device)) for path in sorted(folder.glob("chunk-*.safetensors"))]
    return torch.cat([chunk["latents"] for chunk in chunks])


def _parts(scenes: range) -> list[range]:
    return [scenes[start : start + _PART] for start in range(0, len(scenes), _PART)]


def _render(preset: Preset, view: View, indices: range) -> NDArray[np.uint8]:
    scenes = [view.sample(preset.seed, index, preset.world) for index in indices]
    return np.stack([render(scene, view.size_px) for scene in scenes])


def _describe(
    preset: Preset, view: View, tokenizer_file: Path, wording: Wording, indices: range
) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    world, each = preset.world, preset.captions_each
    scenes = [view.sample(preset.seed, index, world) for index in indices]
    texts = [
        training_caption(scene, preset.seed, index * each + i, wording).text
        for scene, index in zip(scenes, indices, strict=True)
        for i in range(each)
    ]
    ids = token_ids(tokenizer_file, texts, preset.text_max_tokens)
    maps = np.stack([scene_map(scene, world, view.size_px) for scene in scenes])
    return maps, ids.reshape(len(scenes), each, -1)


def token_ids(tokenizer_file: Path, texts: Sequence[str], length: int) -> NDArray[np.int16]:
    """Return the ids of CLIPTokenizer, padded and cut to `length`, without importing transformers, which is slow.

    Shapes: (len(texts), length).
    """
    return np.array(
        [encoded.ids for encoded in _tokenizer(tokenizer_file, length).encode_batch(list(texts))],
        dtype=np.int16,
    )


@lru_cache
def _tokenizer(file: Path, length: int) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(file))
    end = "<|endoftext|>"
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=tokenizer.token_to_id(end), pad_token=end)
    return tokenizer
