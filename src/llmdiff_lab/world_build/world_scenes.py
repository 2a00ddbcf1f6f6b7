"""The world's training scenes as tensors: pictures for the VAE; maps, captions and latents for later stages.

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
from llmdiff.world.places import places
from llmdiff.world.rendering import render, sprite_box
from llmdiff.world.scenes import Scene, World
from llmdiff.world.splits import Split, sample_portrait, sample_scene, split_scene, training_caption
from llmdiff.world.things import BACKGROUNDS, COLOURS, STYLES
from llmdiff.world.voices import Wording
from llmdiff_lab.world_build.world_presets import WorldPreset
from llmdiff_lab.world_build.world_vae import encode_pictures

MAP_SIDE = 8
_PART, _CHUNK = 128, 4096
_HELD_OUT_SPLITS: tuple[Split, ...] = ("pairs", "colours", "counts", "styles")


@dataclass(frozen=True, kw_only=True)
class View:
    """A kind of training pictures: how their scenes are sampled, their number and their side in pixels."""

    name: Literal["scenes", "portraits"]
    sample: Callable[[int, int, World], Scene]
    count: int
    size_px: int


def views(preset: WorldPreset) -> dict[str, View]:
    """Return the kinds of pictures that train a denoiser: scenes and, with half the side, portraits."""
    scenes = View(name="scenes", sample=sample_scene, count=preset.scenes, size_px=preset.image_size_px)
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

    def sample(self, count: int, rng: np.random.Generator) -> Tensor:
        """Return the indices of random scenes. Shapes: (count,) int64."""
        return torch.from_numpy(rng.integers(len(self), size=count)).to(self.maps.device)

    def captions(self, scenes: Tensor, rng: np.random.Generator) -> Tensor:
        """Return the token ids of one caption for each scene. Shapes: (B, T) int64."""
        which = torch.from_numpy(rng.integers(self.ids.shape[1], size=len(scenes))).to(scenes.device)
        return self.ids[scenes, which].long()


@lru_cache
def map_classes(world: World) -> tuple[tuple[str, str | None], ...]:
    """Return the classes of a map's cells: things (actions with their person), places and backgrounds."""
    things = [(thing.name, who) for thing in world.things for who in (thing.who or (None,))]
    return (*things, *((name, "place") for name in places()), *((name, "background") for name in BACKGROUNDS))


def map_sizes(world: World) -> tuple[int, int, int]:
    """Return the number of values of each of the three layers of a map."""
    return len(map_classes(world)), len(COLOURS) + 1, 2 * len(STYLES) + 1


def scene_map(scene: Scene, world: World, size_px: int) -> NDArray[np.int16]:
    """Return class, colour and style of each cell of a scene.

    Shapes: (3, MAP_SIDE, MAP_SIDE): indices into `map_classes`; 0 for natural colours, else the number of the colour;
        0 for the background, else a number for the style, odd for upright things and even for those upside down.
    """
    index_of = _index_of(world)
    centres = (np.arange(MAP_SIDE) + 0.5) * size_px / MAP_SIDE
    cells = np.zeros((3, MAP_SIDE, MAP_SIDE), dtype=np.int16)
    behind = (scene.place, "place") if scene.place else (scene.background or "white", "background")
    cells[0] = index_of[behind]
    for placed in scene.things:
        left, top, side = sprite_box(placed, size_px)
        rows, columns = ((low < centres) & (centres < low + side) for low in (top, left))
        cells[:, rows[:, None] & columns[None]] = np.array(
            [
                index_of[placed.name, placed.who],
                tuple(COLOURS).index(placed.colour) + 1 if placed.colour else 0,
                2 * STYLES.index(placed.style) + 1 + placed.upside_down,
            ]
        )[:, None]
    return cells


@lru_cache
def _index_of(world: World) -> dict[tuple[str, str | None], int]:
    return {shown: index for index, shown in enumerate(map_classes(world))}


def training_pictures(
    preset: WorldPreset, scenes: range, pool: ProcessPoolExecutor, view: View | None = None
) -> NDArray[np.uint8]:
    """Return training scenes as pictures, rendered on all cores; None: full scenes. Shapes: (len(scenes), H, W, 3)."""
    view = view or views(preset)["scenes"]
    return np.concatenate(list(pool.map(partial(_render, preset, view), _parts(scenes))))


def held_out_pictures(preset: WorldPreset, count: int) -> NDArray[np.uint8]:
    """Return pictures of scenes that training never shows. Shapes: (count, H, W, 3)."""
    rng = random.Random(f"held out pictures {preset.seed}")
    splits = _HELD_OUT_SPLITS
    scenes = [split_scene(splits[i % len(splits)], preset.world, rng) for i in range(count)]
    return np.stack([render(scene, preset.image_size_px) for scene in scenes])


def prepare_scenes(
    preset: WorldPreset,
    tokenizer_file: Path,
    pool: ProcessPoolExecutor,
    path: Path,
    view: View,
    wording: Wording = "plain",
) -> None:
    """Write maps and token ids of all training scenes of a kind to a file."""
    parts = pool.map(partial(_describe, preset, view, tokenizer_file, wording), _parts(range(view.count)))
    maps, ids = (torch.from_numpy(np.concatenate(same)) for same in zip(*parts, strict=True))
    with whole_file(path) as partial_path:
        save_file({"maps": maps, "ids": ids}, partial_path)


def load_scenes(path: Path, device: torch.device) -> SceneSet:
    """Return the scenes written by `prepare_scenes`."""
    return SceneSet(**load_file(path, device=str(device)))


def prepare_latents(
    preset: WorldPreset,
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


def _render(preset: WorldPreset, view: View, indices: range) -> NDArray[np.uint8]:
    scenes = [view.sample(preset.seed, index, preset.world) for index in indices]
    return np.stack([render(scene, view.size_px) for scene in scenes])


def _describe(
    preset: WorldPreset, view: View, tokenizer_file: Path, wording: Wording, indices: range
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
