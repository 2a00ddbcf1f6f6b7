"""The sizes of the world that ships today: `openmoji-cpu` (2 cores, a few hours), `openmoji-gpu`, `openmoji-test`."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypeVar

from llmdiff.errors import ConfigError
from llmdiff.openmoji.contents import World
from llmdiff.training.scene_sources import Wording

_Preset = TypeVar("_Preset", bound=Any)

# Its words lift what a linear reader finds of synonyms and descriptions: speed/templates.py.
SIMPLE_WORDS = (
    "Describe the picture in simple words: which object is where, and what is it called? Picture: {prompt}"
)


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Everything that sets one build of the embedded default apart from another.

    Units: `image_size_px` in pixels; `*_steps` in optimiser steps; `*_lr` is the maximum learning rate.
    """

    name: str
    objects: int = 24
    image_size_px: int = 64
    seed: int = 0

    vae_channels: tuple[int, ...] = (16, 32, 64)
    vae_latent_channels: int = 8
    vae_steps: int = 2_600
    vae_batch: int = 16
    vae_lr: float = 3e-3
    decoder_steps: int = 3_000
    decoder_lr: float = 1e-3

    scenes: int = 80_000

    text_width: int = 160
    text_layers: int = 4
    text_steps: int = 500
    text_batch: int = 192
    text_lr: float = 1e-3
    text_max_tokens: int = 40

    unet_channels: tuple[int, ...] = (64, 128, 192)
    unet_layers_per_block: int = 1
    unet_head_width: int = 32
    unet_steps: int = 2_400
    unet_batch: int = 48
    unet_lr: float = 8e-4
    unet_text_lr_share: float = 0.3
    unet_map_weight: float = 0.3
    unet_muon: bool = True
    caption_dropout: float = 0.1

    checker_steps: int = 1_500
    checker_batch: int = 32
    checker_lr: float = 2e-3

    siglip_width: int = 128
    siglip_layers: int = 4
    siglip_steps: int = 700
    siglip_batch: int = 128
    siglip_lr: float = 2e-3

    llm: str = "smollm2-135m"
    adapter_encoding: Literal["guided", "paper"] = "guided"
    adapter_lone: Literal["token", "token+bos"] = "token+bos"
    adapter_template: str | None = SIMPLE_WORDS
    adapter_refiner_layers: int = 4
    adapter_wording: Wording = "reworded"
    adapter_captions: int = 24_000
    adapter_gain_steps: int = 140
    adapter_warm_steps: int = 4_000
    adapter_steps: int = 1_500
    adapter_lr_share_after_text: float = 0.3
    adapter_batch: int = 48
    adapter_muon: bool = True
    adapter_lr: float = 2e-3
    adapter_lr_warmup_steps: int = 100
    adapter_scalar_lr: float = 3e-3

    compile: bool = False

    @property
    def world(self) -> World:
        """What scenes are sampled from."""
        return World(objects=self.objects)

    @property
    def adapter_data(self) -> dict[str, Any]:
        """The data of the adapter's training, without their number."""
        return {"kind": "scenes", "objects": self.objects, "wording": self.adapter_wording}


CPU = Preset(name="openmoji-cpu", compile=True)
GPU = Preset(
    name="openmoji-gpu",
    objects=48,
    image_size_px=128,
    vae_channels=(32, 64, 128, 128),
    vae_steps=20_000,
    decoder_steps=10_000,
    scenes=400_000,
    text_width=256,
    text_layers=6,
    text_steps=10_000,
    unet_channels=(128, 256, 384),
    unet_layers_per_block=2,
    unet_steps=60_000,
    unet_batch=256,
    checker_steps=4_000,
    siglip_width=256,
    siglip_layers=6,
    siglip_steps=6_000,
    siglip_batch=256,
    siglip_lr=1e-3,
    adapter_captions=100_000,
    adapter_steps=10_000,
)
TEST = Preset(
    name="openmoji-test",
    objects=6,
    vae_channels=(8, 8, 8),
    vae_steps=4,
    decoder_steps=4,
    vae_batch=4,
    scenes=64,
    text_width=32,
    text_layers=2,
    text_steps=4,
    text_batch=8,
    unet_channels=(16, 16, 32),
    unet_head_width=8,
    unet_steps=4,
    unet_batch=4,
    checker_steps=4,
    checker_batch=4,
    siglip_width=16,
    siglip_layers=1,
    siglip_steps=4,
    siglip_batch=8,
    adapter_template=None,
    adapter_captions=16,
    adapter_gain_steps=2,
    adapter_warm_steps=2,
    adapter_steps=4,
    adapter_batch=4,
)
PRESETS: dict[str, Preset] = {preset.name: preset for preset in (CPU, GPU, TEST)}


def chosen(presets: Mapping[str, _Preset], name: str, changes: Mapping[str, Any]) -> _Preset:
    """Return the preset of this name with some values changed.

    Raises:
        ConfigError: no such preset, or no such value.
    """
    if name not in presets:
        raise ConfigError(f"preset: got {name!r}, expected one of {', '.join(presets)}")
    known = {field.name for field in fields(presets[name])}
    unknown = sorted(set(changes) - known)
    if unknown:
        raise ConfigError(f"preset {name}: unknown value {unknown[0]!r}; known: {', '.join(sorted(known))}")
    return replace(presets[name], **changes)


def preset(name: str, **changes: Any) -> Preset:
    """Return the preset of the first world with this name, see `chosen`."""
    return chosen(PRESETS, name, changes)
