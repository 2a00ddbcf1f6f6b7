"""Build the world's models from nothing, for `llmdiff-lab build --preset cpu`.

Stages: vae, scenes, text, latents, denoiser, decoder, checker, siglip, adapter. Each is resumable and skipped once
done. `vae`, `scenes` with `text`, and `checker` are independent of each other; `siglip` needs only the tokenizer,
`adapter` the denoiser. Every stage's folder has its log, loss curve and samples besides its weights.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from llmdiff.adapter.adapter import LLMDiffAdapter
from llmdiff.adapter.base_pipeline import load_base_pipeline
from llmdiff.evaluation.metrics.models import ImageTextModel
from llmdiff.training.processes import has_bfloat16
from llmdiff.training.trainer import train_adapter
from llmdiff.world.checker import WorldChecker
from llmdiff.world.rendering import renderers
from llmdiff.world.voices import Wording
from llmdiff_lab.world_build import (
    checker_figures,
    world_checker,
    world_denoiser,
    world_scenes,
    world_siglip,
    world_text,
    world_vae,
)
from llmdiff_lab.world_build.denoiser import create_pipeline, create_scheduler, create_unet
from llmdiff_lab.world_build.llm_adapter import adapter_config
from llmdiff_lab.world_build.stages import StagedBuild, save_model
from llmdiff_lab.world_build.world_denoiser import PORTRAIT_SHARE, PictureSet
from llmdiff_lab.world_build.world_presets import WorldPreset

STAGES = ("vae", "scenes", "text", "latents", "denoiser", "decoder", "checker", "siglip", "adapter")


class WorldBuild(StagedBuild):
    """One build of the world in a folder.

    `stopped` says whether to stop between the parts of a stage that does not train.
    """

    shared_values = ("image_size_px", "seed", "things", "styles")
    own_values: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "scenes": (
            "scenes",
            "portraits",
            "captions_each",
            "text_vocabulary",
            "text_captions",
            "text_max_tokens",
        ),
        "text": ("text_width", "text_layers", "text_steps", "text_batch", "text_lr", "text_max_tokens"),
        "latents": ("scenes", "portraits"),
        "scenes-rich": ("scenes", "text_vocabulary", "text_captions", "text_max_tokens"),
        "denoiser": ("unet_", "portrait_"),
        "adapter": ("adapter_", "llm"),
    }
    checker_class = WorldChecker

    def __init__(
        self,
        preset: WorldPreset,
        folder: Path,
        device: torch.device,
        *,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        if preset.precision == "bf16" and not has_bfloat16(device):
            preset = replace(preset, precision="no")
        super().__init__(preset, folder)
        self.preset, self.device, self.stopped = preset, device, stopped
        self._open = ExitStack()

    def __enter__(self) -> "WorldBuild":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def run(self, until: str = STAGES[-1]) -> None:
        """Run every stage up to and including `until`.

        Raises:
            SystemExit: the build was stopped; run again to resume.
        """
        for stage in STAGES[: STAGES.index(until) + 1]:
            if self.stopped():
                raise SystemExit(0)
            if not self.is_done(stage):
                getattr(self, stage)()

    def vae(self) -> AutoencoderKL:
        """Return the autoencoder."""

        def make() -> dict[str, Any]:
            folder, pictures = self.folder / "vae", range(self.preset.vae_images)
            model = world_vae.train_vae(
                self.preset,
                world_scenes.training_pictures(self.preset, pictures, self._pool),
                folder,
                self.device,
            )
            save_model(model, folder / "model")
            return {"held_out_psnr_db": self._psnr_db(model, folder)}

        self.stage("vae", make)
        return self.load(AutoencoderKL, "vae").to(self.device)

    def scenes(
        self, wording: Wording = "plain", view: Literal["scenes", "portraits"] = "scenes"
    ) -> world_scenes.SceneSet:
        """Return what the training scenes show, with the base's plain captions or the adapters' rich ones."""
        stage = "scenes" if wording == "plain" else f"scenes-{wording}"
        folder = self.folder / stage

        def make() -> dict[str, Any]:
            self.tokenizer()
            folder.mkdir(exist_ok=True)
            for kind in world_scenes.views(self.preset).values():
                if wording != "plain" and kind.name == "portraits":
                    continue  # only the base is trained on portraits
                path = folder / f"{kind.name}.safetensors"
                tokenizer_file = self.folder / "tokenizer" / "tokenizer.json"
                world_scenes.prepare_scenes(self.preset, tokenizer_file, self._pool, path, kind, wording)
            scenes = world_scenes.load_scenes(folder / "scenes.safetensors", torch.device("cpu"))
            return world_text.caption_lengths(scenes, self.tokenizer())

        self.stage(stage, make)
        return world_scenes.load_scenes(folder / f"{view}.safetensors", self.device)

    def tokenizer(self) -> CLIPTokenizer:
        """Return the base's tokenizer."""
        return world_text.create_tokenizer(self.preset, self.folder / "tokenizer")

    def text(self) -> CLIPTextModel:
        """Return the base's text encoder after its training on captions and maps."""

        def make() -> dict[str, Any]:
            model = world_text.train_text_encoder(
                self.preset, self.scenes(), self.tokenizer(), self.folder / "text", self.device
            )
            save_model(model, self.folder / "text" / "model")
            return {}

        self.stage("text", make)
        model: CLIPTextModel = self.load(CLIPTextModel, "text")
        return model

    def latents(self, view: Literal["scenes", "portraits"] = "scenes") -> Tensor:
        """Return the scaled latents of the training scenes."""
        folder = self.folder / "latents"

        def make() -> dict[str, Any]:
            for kind in world_scenes.views(self.preset).values():
                place = folder / kind.name
                place.mkdir(exist_ok=True, parents=True)
                if not world_scenes.prepare_latents(
                    self.preset, self.vae(), self._pool, place, kind, self.stopped
                ):
                    raise SystemExit(0)
            latents = world_scenes.load_latents(folder / "scenes", torch.device("cpu"))
            return {"scenes": len(latents), "latent_std": float(latents.float().std())}

        self.stage("latents", make)
        return world_scenes.load_latents(folder / view, self.device)

    def denoiser(self) -> StableDiffusionPipeline:
        """Return the base pipeline before its decoder is refined."""

        def make() -> dict[str, Any]:
            folder, latents = self.folder / "denoiser", self.latents()
            torch.manual_seed(self.preset.seed + 2)
            unet = create_unet(self.preset, latents.shape[-1])
            unet.to(self.device, memory_format=torch.channels_last)
            pipe = create_pipeline(self.vae(), self.text(), self.tokenizer(), unet)
            pipe.to(self.device)
            sets = [PictureSet(scenes=self.scenes(), latents=latents, batch=self.preset.unet_batch)]
            if self.preset.portraits:
                portraits = PictureSet(
                    scenes=self.scenes(view="portraits"),
                    latents=self.latents("portraits"),
                    batch=self.preset.portrait_batch,
                    share_of_steps=PORTRAIT_SHARE,
                )
                sets.append(portraits)
            world_denoiser.train_denoiser(self.preset, sets, pipe, folder)
            save_model(pipe, folder / "pipeline")
            return {"parameters": sum(parameter.numel() for parameter in unet.parameters())}

        self.stage("denoiser", make)
        pipe: StableDiffusionPipeline = load_base_pipeline(
            str(self.folder / "denoiser" / "pipeline"), dtype=torch.float32
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe.to(self.device)

    def decoder(self) -> AutoencoderKL:
        """Return the autoencoder after further training of its decoder."""

        def make() -> dict[str, Any]:
            folder, pictures = self.folder / "decoder", range(self.preset.vae_images)
            model = world_vae.refine_decoder(
                self.vae(),
                self.preset,
                world_scenes.training_pictures(self.preset, pictures, self._pool),
                folder,
                self.device,
            )
            save_model(model, folder / "model")
            return {"held_out_psnr_db": self._psnr_db(model, folder)}

        self.stage("decoder", make)
        return self.load(AutoencoderKL, "decoder").to(self.device)

    def checker(self) -> WorldChecker:
        """Return the checker of pictures."""

        def make() -> dict[str, Any]:
            preset, folder = self.preset, self.folder / "checker"
            model = world_checker.train_checker(
                preset.world,
                steps=preset.checker_steps,
                batch=preset.checker_batch,
                lr=preset.checker_lr,
                folder=folder,
                device=self.device,
                seed=preset.seed,
                channels=preset.checker_channels,
                precision=preset.precision,
                # One process renders too slowly for a GPU; on a CPU the cores are busy with training.
                pool=self._pool if self.device.type == "cuda" else None,
            )
            model.figures = checker_figures.checker_figures(model, renders=preset.checker_renders)
            save_model(model, folder / "model")
            return {"held_out": model.figures}

        self.stage("checker", make)
        return WorldChecker.from_pretrained(self.folder / "checker" / "model").to(self.device)

    def siglip(self) -> ImageTextModel:
        """Return the SigLIP of scenes and captions."""

        def make() -> dict[str, Any]:
            preset, folder = self.preset, self.folder / "siglip"
            model = world_siglip.train_siglip(preset, self.tokenizer(), folder, self.device)
            figures = world_siglip.held_out_order(model, preset, preset.siglip_renders)
            model.model.half()
            save_model(model, folder / "model")
            return {"held_out": figures}

        self.stage("siglip", make)
        return ImageTextModel.from_pretrained(self.folder / "siglip" / "model", device=str(self.device))

    def adapter(self) -> LLMDiffAdapter:
        """Return the adapter, trained as `llmdiff train` does."""

        def make() -> dict[str, Any]:
            self.denoiser()
            folder, base = self.folder / "adapter", str(self.folder / "denoiser" / "pipeline")
            config = adapter_config(self.preset, folder, base=base, device=self.device)
            save_model(LLMDiffAdapter.from_pretrained(train_adapter(config)), folder / "model")
            return {}

        self.stage("adapter", make)
        adapter: LLMDiffAdapter = LLMDiffAdapter.from_pretrained(
            self.folder / "adapter" / "model", device=self.device
        )
        return adapter

    def pipeline(self) -> StableDiffusionPipeline:
        """Return the base pipeline as it ships: the trained denoiser with the refined decoder."""
        pipe = self.denoiser()
        pipe.register_modules(vae=self.decoder(), scheduler=create_scheduler())
        return pipe

    def prepare_longer(self) -> None:
        """Make what `train_longer` needs, unless it is there."""
        self.scenes("rich")
        self.latents()

    def train_longer(
        self, pipe: StableDiffusionPipeline, folder: Path, *, steps: int, batch: int, seed: int
    ) -> None:
        """Train the base's denoiser and text encoder on, on the captions that adapters are trained on."""
        settings = replace(
            self.preset, seed=self.preset.seed + seed, unet_steps=steps, unet_batch=batch, map_weight=0.0
        )
        rich = PictureSet(scenes=self.scenes("rich"), latents=self.latents(), batch=batch)
        world_denoiser.train_denoiser(settings, [rich], pipe, folder)

    @cached_property
    def _pool(self) -> ProcessPoolExecutor:
        """Return the rendering processes, started on first use."""
        return self._open.enter_context(renderers())

    def _psnr_db(self, model: AutoencoderKL, folder: Path) -> float:
        return world_vae.psnr_db(
            model, world_scenes.held_out_pictures(self.preset, 512), folder / "held-out.png"
        )
