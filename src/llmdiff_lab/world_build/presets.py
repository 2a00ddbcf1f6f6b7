"""The sizes of the embedded default: `cpu` (2 cores, hours), `gpu` (one GPU, minutes) and `test` (seconds)."""

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from llmdiff.errors import ConfigError
from llmdiff.world.scenes import World
from llmdiff.world.things import STYLES, Style

# Its words help a linear reader to find synonyms and descriptions: speed/templates.py.
SIMPLE_WORDS = (
    "Describe the picture in simple words: which object is where, and what is it called? Picture: {prompt}"
)


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The settings of a build of the world.

    Units: `image_size_px` in pixels; `*_steps` in optimiser steps; `*_lr` is the maximum learning rate.

    Fields:
        things, styles: number of things and the styles of the world; None takes all things.
        precision: precision of forward and backward passes; weights are float32. A CPU without bfloat16
            instructions trains in float32, where bfloat16 is up to 60 times slower.
        vae_images: number of pictures that train the VAE.
        vae_crop_px: side of the random crops of these pictures in each batch.
        vae_scale_weight: weight of the loss on latents averaged over 2 x 2 cells against pictures of half the size.
            Denoisers learn latents that scale like pictures in fewer steps (EQ-VAE, arXiv 2502.09509).
        scenes, captions_each: number of scenes that train text encoder and denoiser, and of captions for each.
        portraits, portrait_batch: number of pictures of one thing with a quarter of the area, and how many of them a
            step of the denoiser has besides its scenes; 0 leaves them out. They cost a quarter of a scene and teach
            what a thing looks like. The last quarter of the steps has none.
        map_weight: initial weight of the auxiliary loss on maps; decays to 0 over the training.
        unet_noise_power: exponent of the timesteps' random shares; below 1, most steps train at high noise, where
            content and layout are decided.
        sample_every, sample_count: interval in steps between sample pictures, and their number.
        text_captions: number of captions that train the tokenizer.
        text_scenes: number of scenes whose captions and maps train the text encoder, before the denoiser does.
        checker_renders, siglip_renders: number of renders that measure the checker and the SigLIP.
        text_lr_share: learning rate of the text encoder while the denoiser is trained, as a share of `unet_lr`.
    """

    name: str
    things: int | None = 72
    styles: tuple[Style, ...] = ("flat", "line")
    image_size_px: int = 128
    seed: int = 0
    precision: Literal["no", "bf16"] = "bf16"
    compile: bool = False

    vae_channels: tuple[int, ...] = (16, 32, 64, 128)
    vae_latent_channels: int = 16
    vae_images: int = 12_000
    vae_crop_px: int = 64
    vae_scale_weight: float = 0.25
    vae_steps: int = 3_000
    vae_batch: int = 8
    vae_lr: float = 3e-3
    decoder_steps: int = 3_000
    decoder_lr: float = 2e-3

    scenes: int = 32_000
    captions_each: int = 4
    portraits: int = 16_000
    portrait_batch: int = 48

    text_width: int = 160
    text_layers: int = 4
    text_vocabulary: int = 2_000
    text_captions: int = 20_000
    text_max_tokens: int = 77
    text_scenes: int = 128_000
    text_reader_layers: int = 3
    text_steps: int = 1_700
    text_batch: int = 128
    text_lr: float = 1e-3

    unet_channels: tuple[int, ...] = (64, 128, 192)
    unet_layers_per_block: int = 1
    unet_head_width: int = 32
    unet_steps: int = 6_000
    unet_batch: int = 24
    unet_lr: float = 3.5e-3
    unet_ema_horizon: int = 300
    unet_noise_power: float = 0.5
    sample_every: int = 500
    sample_count: int = 24
    text_lr_share: float = 0.15
    map_weight: float = 1.2
    caption_dropout: float = 0.1

    checker_channels: int = 64
    checker_steps: int = 2_200
    checker_batch: int = 32
    checker_lr: float = 3e-3
    checker_renders: int = 2_000

    siglip_width: int = 128
    siglip_layers: int = 4
    siglip_steps: int = 1_200
    siglip_batch: int = 96
    siglip_lr: float = 2e-3
    siglip_renders: int = 1_200

    llm: str = "smollm2-135m"
    adapter_encoding: Literal["guided", "paper"] = "guided"
    adapter_lone: Literal["token", "token+bos"] = "token+bos"
    adapter_template: str | None = SIMPLE_WORDS
    adapter_refiner_layers: int = 2
    adapter_refiner_width: int | None = None
    adapter_captions: int = 16_000
    adapter_gain_steps: int = 140
    adapter_warm_steps: int = 4_800
    adapter_steps: int = 400
    adapter_lr_share_after_text: float = 0.3
    adapter_batch: int = 96
    adapter_muon: bool = True
    adapter_lr: float = 2e-3
    adapter_lr_warmup_steps: int = 100
    adapter_scalar_lr: float = 3e-3

    @property
    def adapter_data(self) -> dict[str, Any]:
        """Return the settings of the adapter's data, without the number of scenes."""
        return {"kind": "scenes", "things": self.things, "styles": self.styles, "wording": "reworded"}

    @property
    def world(self) -> World:
        """Return the world that scenes are sampled from."""
        return World(thing_count=self.things, styles=self.styles)


# The shipped adapter is older than the default refiner.
CPU = Preset(name="cpu", adapter_refiner_layers=4, adapter_refiner_width=160)
GPU = Preset(
    name="gpu",
    things=None,
    styles=STYLES,
    compile=True,
    vae_channels=(24, 48, 96, 128),
    vae_images=60_000,
    vae_crop_px=128,
    vae_steps=8_000,
    vae_batch=48,
    decoder_steps=4_000,
    scenes=400_000,
    captions_each=2,
    portraits=100_000,
    portrait_batch=256,
    text_width=160,
    text_layers=6,
    text_vocabulary=4_000,
    text_captions=60_000,
    text_scenes=400_000,
    text_steps=6_000,
    text_batch=512,
    unet_channels=(96, 192, 256),
    unet_steps=4_000,
    unet_batch=256,
    checker_steps=6_000,
    checker_batch=128,
    siglip_width=256,
    siglip_layers=6,
    siglip_steps=4_000,
    siglip_batch=256,
    siglip_lr=1e-3,
    adapter_captions=100_000,
    adapter_warm_steps=8_000,
    adapter_steps=3_000,
    adapter_batch=128,
)
TEST = Preset(
    name="test",
    things=20,
    styles=("flat", "line"),
    precision="no",
    vae_channels=(8, 8, 8, 8),
    vae_latent_channels=4,
    vae_images=16,
    vae_crop_px=64,
    vae_steps=4,
    vae_batch=2,
    decoder_steps=4,
    scenes=64,
    captions_each=2,
    portraits=32,
    portrait_batch=4,
    text_width=32,
    text_layers=2,
    text_vocabulary=600,
    text_captions=200,
    text_scenes=96,
    text_steps=4,
    text_batch=8,
    unet_channels=(16, 16, 32),
    unet_head_width=8,
    unet_steps=4,
    unet_batch=4,
    sample_count=4,
    checker_channels=16,
    checker_steps=4,
    checker_batch=4,
    checker_renders=22,
    siglip_width=32,
    siglip_layers=2,
    siglip_steps=4,
    siglip_batch=8,
    siglip_renders=120,
    adapter_template=None,
    adapter_captions=24,
    adapter_refiner_layers=1,
    adapter_gain_steps=2,
    adapter_warm_steps=2,
    adapter_steps=2,
    adapter_batch=4,
)
PRESETS: dict[str, Preset] = {preset.name: preset for preset in (CPU, GPU, TEST)}


def find_preset(name: str, **changes: Any) -> Preset:
    """Return the preset of this name with some values changed.

    Raises:
        ConfigError: no such preset, or no such value.
    """
    if name not in PRESETS:
        raise ConfigError(f"preset: got {name!r}, expected one of {', '.join(PRESETS)}")
    known = {field.name for field in fields(Preset)}
    unknown = sorted(set(changes) - known)
    if unknown:
        raise ConfigError(f"preset {name}: unknown value {unknown[0]!r}; known: {', '.join(sorted(known))}")
    return replace(PRESETS[name], **changes)
