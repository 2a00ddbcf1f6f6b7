"""Build the models of the embedded default from nothing, for `llmdiff-lab build --preset cpu`.

Stages: vae, scenes, text, latents, denoiser, decoder, checker, siglip, adapter. Each is resumable and skipped once
done. `vae`, `scenes` with `text`, and `checker` are independent of each other; `siglip` needs only the tokenizer,
`adapter` the denoiser. Every stage's folder has its log, loss curve and samples besides its weights.
"""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from llmdiff.adapter.adapter import LLMDiffAdapter
from llmdiff.adapter.base_pipeline import load_base_pipeline
from llmdiff.adapter.manifest import check_manifest
from llmdiff.errors import ConfigError
from llmdiff.evaluation.metrics.models import ImageTextModel
from llmdiff.language.whole_weights import load_whole
from llmdiff.training.processes import has_bfloat16
from llmdiff.training.trainer import train_adapter
from llmdiff.world.checker import WorldChecker
from llmdiff.world.packaged import world_of
from llmdiff.world.rendering import renderers
from llmdiff.world.voices import Wording
from llmdiff_lab.world_build import checker, checker_figures, denoiser, scenes, siglip, text_encoder, vae
from llmdiff_lab.world_build.denoiser import PORTRAIT_SHARE, PictureSet
from llmdiff_lab.world_build.llm_adapter import adapter_config
from llmdiff_lab.world_build.presets import Preset
from llmdiff_lab.world_build.scenes import SceneSet
from llmdiff_lab.world_build.stages import is_done, run_stage, save_model

STAGES = ("vae", "scenes", "text", "latents", "denoiser", "decoder", "checker", "siglip", "adapter")
# Stages whose results only the denoiser's training needs.
_INPUTS = ("scenes", "latents")


class Build:
    """One build of the embedded default in a folder; each finished stage has a `done.json`.

    `stopped` says whether to stop between the parts of a stage that does not train.
    """

    def __init__(
        self,
        preset: Preset,
        folder: Path,
        device: torch.device,
        *,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        if preset.precision == "bf16" and not has_bfloat16(device):
            preset = replace(preset, precision="no")
        self.preset, self.folder, self.device, self.stopped = preset, folder, device, stopped
        self._open = ExitStack()
        folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> "Build":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def run(self, until: str = STAGES[-1]) -> None:
        """Run every stage up to and including `until`, without the inputs of a denoiser that is trained.

        Raises:
            SystemExit: the build was stopped; run again to resume.
        """
        for stage in STAGES[: STAGES.index(until) + 1]:
            if self.stopped():
                raise SystemExit(0)
            if stage in _INPUTS and is_done(self.folder / "denoiser"):
                continue
            if not is_done(self.folder / stage):
                getattr(self, stage)()

    def begin_from(self, weights: Path) -> None:
        """Take base, checker and SigLIP from a folder that `--ship` wrote; stages already done in this build stay.

        Raises:
            ConfigError: the models there are of another world than the preset's.
            LLMDiffError: the folder lacks a part, or its weights are damaged.
        """
        for part in ("pipeline", "checker", "siglip"):
            check_manifest(weights / part, [])
        if (world := world_of(weights / "pipeline")) != self.preset.world:
            raise ConfigError(f"--from {weights}: got models of {world}, expected {self.preset.world}")
        pipe = load_base_pipeline(str(weights / "pipeline"), dtype=torch.float32)
        siglip = ImageTextModel.from_pretrained(weights / "siglip")
        siglip.model.half()  # as its stage saves it
        if not (self.folder / "tokenizer").exists():
            save_model(pipe.tokenizer, self.folder / "tokenizer")
        parts = {
            "vae/model": pipe.vae,
            "text/model": pipe.text_encoder,
            "denoiser/pipeline": pipe,
            "decoder/model": pipe.vae,
            "checker/model": WorldChecker.from_pretrained(weights / "checker"),
            "siglip/model": siglip,
        }
        for place, model in parts.items():

            def take(model: Any = model, place: Path = self.folder / place) -> dict[str, Any]:
                save_model(model, place)
                return {"from": "weights that were trained before"}

            self._stage(place.partition("/")[0], take)

    def vae(self) -> AutoencoderKL:
        """Return the autoencoder."""
        return self._autoencoder("vae", vae.train_vae)

    def scenes(self, wording: Wording = "plain", view: Literal["scenes", "portraits"] = "scenes") -> SceneSet:
        """Return what the training scenes show, with the base's plain captions or the adapters' rich ones."""
        stage = "scenes" if wording == "plain" else f"scenes-{wording}"
        folder = self.folder / stage

        def make() -> dict[str, Any]:
            self.tokenizer()
            folder.mkdir(exist_ok=True)
            for kind in scenes.views(self.preset).values():
                if wording != "plain" and kind.name == "portraits":
                    continue  # only the base is trained on portraits
                path = folder / f"{kind.name}.safetensors"
                tokenizer_file = self.folder / "tokenizer" / "tokenizer.json"
                scenes.prepare_scenes(self.preset, tokenizer_file, self._pool, path, kind, wording)
            made = scenes.load_scenes(folder / "scenes.safetensors", torch.device("cpu"))
            return text_encoder.caption_lengths(made, self.tokenizer())

        self._stage(stage, make)
        return scenes.load_scenes(folder / f"{view}.safetensors", self.device)

    def tokenizer(self) -> CLIPTokenizer:
        """Return the base's tokenizer."""
        return text_encoder.create_tokenizer(self.preset, self.folder / "tokenizer")

    def text(self) -> CLIPTextModel:
        """Return the base's text encoder after its training on captions and maps."""

        def make() -> dict[str, Any]:
            torch.manual_seed(self.preset.seed + 1)
            model = text_encoder.create_text_encoder(self.preset, self.tokenizer())
            text_encoder.train_text_encoder(
                model, self.preset, self.scenes(), self.tokenizer(), self.folder / "text", self.device
            )
            save_model(model, self.folder / "text" / "model")
            return {}

        self._stage("text", make)
        model: CLIPTextModel = self._load(CLIPTextModel, "text")
        return model

    def latents(self, view: Literal["scenes", "portraits"] = "scenes") -> Tensor:
        """Return the scaled latents of the training scenes."""
        folder = self.folder / "latents"

        def make() -> dict[str, Any]:
            for kind in scenes.views(self.preset).values():
                place = folder / kind.name
                place.mkdir(exist_ok=True, parents=True)
                if not scenes.prepare_latents(self.preset, self.vae(), self._pool, place, kind, self.stopped):
                    raise SystemExit(0)
            latents = scenes.load_latents(folder / "scenes", torch.device("cpu"))
            return {"scenes": len(latents), "latent_std": float(latents.float().std())}

        self._stage("latents", make)
        return scenes.load_latents(folder / view, self.device)

    def denoiser(self) -> StableDiffusionPipeline:
        """Return the base pipeline before its decoder is refined."""

        def make() -> dict[str, Any]:
            folder, latents = self.folder / "denoiser", self.latents()
            torch.manual_seed(self.preset.seed + 2)
            unet = denoiser.create_unet(self.preset, latents.shape[-1])
            unet.to(self.device, memory_format=torch.channels_last)
            pipe = denoiser.create_pipeline(self.vae(), self.text(), self.tokenizer(), unet)
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
            denoiser.train_denoiser(self.preset, sets, pipe, folder)
            save_model(pipe, folder / "pipeline")
            return {"parameters": sum(parameter.numel() for parameter in unet.parameters())}

        self._stage("denoiser", make)
        pipe: StableDiffusionPipeline = load_base_pipeline(
            str(self.folder / "denoiser" / "pipeline"), dtype=torch.float32
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe.to(self.device)

    def decoder(self) -> AutoencoderKL:
        """Return the autoencoder after further training of its decoder."""
        return self._autoencoder("decoder", lambda *given: vae.refine_decoder(self.vae(), *given))

    def checker(self) -> WorldChecker:
        """Return the checker of pictures."""

        def make() -> dict[str, Any]:
            preset, folder = self.preset, self.folder / "checker"
            model = checker.train_checker(
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

        self._stage("checker", make)
        return WorldChecker.from_pretrained(self.folder / "checker" / "model").to(self.device)

    def siglip(self) -> ImageTextModel:
        """Return the SigLIP of scenes and captions."""

        def make() -> dict[str, Any]:
            preset, folder = self.preset, self.folder / "siglip"
            model = siglip.train_siglip(preset, self.tokenizer(), folder, self.device)
            figures = siglip.held_out_order(model, preset, preset.siglip_renders)
            model.model.half()
            save_model(model, folder / "model")
            return {"held_out": figures}

        self._stage("siglip", make)
        return ImageTextModel.from_pretrained(self.folder / "siglip" / "model", device=str(self.device))

    def adapter(self) -> LLMDiffAdapter:
        """Return the adapter, trained as `llmdiff train` does."""

        def make() -> dict[str, Any]:
            self.denoiser()
            folder, base = self.folder / "adapter", str(self.folder / "denoiser" / "pipeline")
            config = adapter_config(
                self.preset, folder, base=base, device=self.device, precision=self.preset.precision
            )
            save_model(LLMDiffAdapter.from_pretrained(train_adapter(config)), folder / "model")
            return {}

        self._stage("adapter", make)
        adapter: LLMDiffAdapter = LLMDiffAdapter.from_pretrained(
            self.folder / "adapter" / "model", device=self.device
        )
        return adapter

    def pipeline(self) -> StableDiffusionPipeline:
        """Return the base pipeline as it ships: the trained denoiser with the refined decoder."""
        pipe = self.denoiser()
        pipe.register_modules(vae=self.decoder(), scheduler=denoiser.create_scheduler())
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
        denoiser.train_denoiser(settings, [rich], pipe, folder)

    def _stage(self, name: str, make: Callable[[], dict[str, Any]]) -> None:
        run_stage(self.folder / name, self.preset, make)

    def _autoencoder(self, stage: str, train: Callable[..., AutoencoderKL]) -> AutoencoderKL:
        """Return the autoencoder of a stage that trains it on pictures."""

        def make() -> dict[str, Any]:
            folder, pictures = self.folder / stage, range(self.preset.vae_images)
            made = scenes.training_pictures(self.preset, pictures, self._pool)
            model = train(self.preset, made, folder, self.device)
            save_model(model, folder / "model")
            held_out = scenes.held_out_pictures(self.preset, 512)
            return {"held_out_psnr_db": vae.psnr_db(model, held_out, folder / "held-out.png")}

        self._stage(stage, make)
        return self._load(AutoencoderKL, stage).to(self.device)

    def _load(self, kind: Any, stage: str) -> Any:
        """Return the model saved by a stage."""
        place = self.folder / stage / "model"
        return load_whole(kind, place, what=str(place), use_safetensors=True)

    @cached_property
    def _pool(self) -> ProcessPoolExecutor:
        """Return the rendering processes, started on first use."""
        return self._open.enter_context(renderers())
