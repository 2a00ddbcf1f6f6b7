"""Rebuilds the embedded default from nothing: `llmdiff-lab build --preset openmoji-cpu`.

Stages, each resumable after a kill and skipped once done: vae, scenes, text, denoiser, decoder, checker, adapter,
siglip. `--only STAGE` runs one, and before it only those that it takes something from.
Every stage keeps its log, its loss curve and its samples beside its weights; `--ship FOLDER` then writes what the
package carries. `--from shipped` begins with the base and the checker that the package carries, so that only
scenes are drawn and an adapter trained: minutes instead of hours.
"""

from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from transformers import CLIPTextModel

from llmdiff.adapter.adapter import LLMDiffAdapter
from llmdiff.adapter.base_pipeline import load_base_pipeline
from llmdiff.drawing.models import usable_device
from llmdiff.evaluation.metrics.models import ImageTextModel
from llmdiff.evaluation.suites.scenes_check import SceneChecker
from llmdiff.language.gguf import llmdiff_home
from llmdiff.training.trainer import train_adapter
from llmdiff_lab.world_build import autoencoder, checker, dataset, denoiser, llm_adapter, siglip, text_encoder
from llmdiff_lab.world_build.presets import Preset, preset
from llmdiff_lab.world_build.ship import ship
from llmdiff_lab.world_build.stages import StagedBuild, save_model

# Which values of a preset make a stage what it is, by how their names begin; beside those that all stages share.
_SHARED_VALUES = ("objects", "image_size_px", "seed")
_OWN_VALUES = {"denoiser": ("unet_",), "scenes": ("scenes",), "adapter": ("adapter_", "llm")}

STAGES = ("vae", "scenes", "text", "denoiser", "decoder", "checker", "adapter", "siglip")


class Build(StagedBuild):
    """One build of the embedded default in a folder; each finished stage records the settings it was made with."""

    shared_values = _SHARED_VALUES
    own_values = _OWN_VALUES
    checker_class = SceneChecker

    def __init__(self, settings: Preset, folder: Path, device: torch.device) -> None:
        super().__init__(settings, folder)
        self.preset, self.device = settings, device

    def run(self, until: str = STAGES[-1]) -> None:
        """Run every stage up to and including `until`."""
        for stage in STAGES[: STAGES.index(until) + 1]:
            getattr(self, stage)()

    def vae(self) -> AutoencoderKL:
        """Return the autoencoder."""

        def make() -> dict[str, Any]:
            model = autoencoder.train_vae(self.preset, self.folder / "vae", self.device)
            psnr = autoencoder.held_out_psnr_db(model, self.preset)
            save_model(model, self.folder / "vae" / "model")
            return {"held_out_psnr_db": psnr}

        self.stage("vae", make)
        return self.load(AutoencoderKL, "vae").to(self.device)

    def scenes(self) -> dataset.SceneData:
        """Return the training scenes with their latents."""

        def make() -> dict[str, Any]:
            data = dataset.load_or_make(self.preset, self.vae(), self.folder / "scenes")
            return {"scenes": len(data.contents), "latent_std": float(data.latents.float().std())}

        self.stage("scenes", make)
        return dataset.load_or_make(self.preset, self.vae(), self.folder / "scenes")

    def text(self) -> CLIPTextModel:
        """Return the base's text encoder, as trained on captions and latents alone."""

        def make() -> dict[str, Any]:
            model = text_encoder.train_text_encoder(
                self.preset, self.scenes(), self.tokenizer(), self.folder / "text", self.device
            )
            save_model(model, self.folder / "text" / "model")
            return {}

        self.stage("text", make)
        model: CLIPTextModel = self.load(CLIPTextModel, "text")
        return model

    def tokenizer(self) -> Any:
        """Return the base's tokenizer."""
        return text_encoder.create_tokenizer(self.preset, self.folder / "tokenizer")

    def denoiser(self) -> StableDiffusionPipeline:
        """Return the base pipeline before its decoder is refined."""

        def make() -> dict[str, Any]:
            pipe = denoiser.train_denoiser(
                self.preset,
                self.scenes(),
                self.vae(),
                self.text(),
                self.tokenizer(),
                self.folder / "denoiser",
                self.device,
            )
            save_model(pipe, self.folder / "denoiser" / "pipeline")
            return {}

        self.stage("denoiser", make)
        pipe: StableDiffusionPipeline = load_base_pipeline(
            str(self.folder / "denoiser" / "pipeline"), dtype=torch.float32
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe.to(self.device)

    def checker(self) -> SceneChecker:
        """Return what reads pictures back."""

        def make() -> dict[str, Any]:
            model = checker.train_checker(self.preset, self.folder / "checker", self.device)
            model.figures = checker.held_out_exact(model, self.preset)
            save_model(model, self.folder / "checker" / "model")
            return {"held_out": model.figures}

        self.stage("checker", make)
        return SceneChecker.from_pretrained(self.folder / "checker" / "model").to(self.device)

    def siglip(self) -> ImageTextModel:
        """Return the SigLIP of scenes and captions, trained first if it is not there."""

        def make() -> dict[str, Any]:
            model = siglip.train_siglip(self.preset, self.tokenizer(), self.folder / "siglip", self.device)
            figures = siglip.held_out_order(model, self.preset)
            model.model.half()
            save_model(model, self.folder / "siglip" / "model")
            return {"held_out": figures}

        self.stage("siglip", make)
        return ImageTextModel.from_pretrained(self.folder / "siglip" / "model", device=str(self.device))

    def decoder(self) -> AutoencoderKL:
        """Return the autoencoder with its decoder trained on."""

        def make() -> dict[str, Any]:
            model = autoencoder.refine_decoder(self.vae(), self.preset, self.folder / "decoder", self.device)
            psnr = autoencoder.held_out_psnr_db(model, self.preset)
            save_model(model, self.folder / "decoder" / "model")
            return {"held_out_psnr_db": psnr}

        self.stage("decoder", make)
        return self.load(AutoencoderKL, "decoder").to(self.device)

    def adapter(self) -> LLMDiffAdapter:
        """Return the trained adapter."""

        def make() -> dict[str, Any]:
            self.denoiser()
            folder, base = self.folder / "adapter", str(self.folder / "denoiser" / "pipeline")
            config = llm_adapter.adapter_config(self.preset, folder, base=base, device=self.device)
            model = LLMDiffAdapter.from_pretrained(train_adapter(config))
            model.register_to_config(base_model_id="openmoji")
            save_model(model, folder / "model")
            return {}

        self.stage("adapter", make)
        adapter: LLMDiffAdapter = LLMDiffAdapter.from_pretrained(
            self.folder / "adapter" / "model", device=self.device
        )
        return adapter

    def pipeline(self) -> StableDiffusionPipeline:
        """The base pipeline as it ships: the trained denoiser with the refined decoder."""
        pipe = self.denoiser()
        pipe.register_modules(vae=self.decoder(), scheduler=denoiser.create_scheduler())
        return pipe

    def prepare_longer(self) -> None:
        """Make what `train_longer` needs, unless it is there."""
        self.scenes()

    def train_longer(
        self, pipe: StableDiffusionPipeline, folder: Path, *, steps: int, batch: int, seed: int
    ) -> None:
        """Train the base's denoiser and text encoder on, on the captions that adapters are trained on."""
        settings = replace(self.preset, seed=self.preset.seed + seed, unet_steps=steps, unet_batch=batch)
        denoiser.train_on(settings, self.scenes(), pipe, folder, wording=settings.adapter_wording)


def run_build(
    preset_name: str,
    out: Path | None,
    *,
    until: str = STAGES[-1],
    only: str | None = None,
    begin: str | None = None,
    ship_to: Path | None = None,
    device: str | None = None,
) -> None:
    """Run the stages of a build, each unless it is done; then write what the package carries to `ship_to`, if given.

    `begin` is "shipped" or a folder that an earlier build shipped to: base and checker are taken from there.

    Raises:
        ConfigError: no such preset or device, or a stage was made with other values.
    """
    settings = preset(preset_name)
    folder = out or llmdiff_home() / "builds" / settings.name
    build = Build(settings, folder, torch.device(usable_device(device)))
    if begin is not None:
        shipped = Path(str(files("llmdiff"))) / "openmoji" / "weights"
        build.begin_from(shipped if begin == "shipped" else Path(begin))
    if only is not None:
        getattr(build, only)()
    else:
        build.run(until)
    if ship_to is not None:
        parts = build.pipeline(), build.adapter(), build.checker()
        ship(*parts, ship_to, preset=settings, siglip=build.siglip())
