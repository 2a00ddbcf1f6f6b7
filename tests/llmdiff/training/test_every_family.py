"""Training sees a denoiser of every family as its own pipeline does: its call, its latents, its noise levels."""

import inspect

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.guiders import AdaptiveProjectedMixGuidance
from tiny.every_pipeline import build
from tiny.families import BUILDERS, DRAW_OPTIONS, TRAINABLE, drawn

from llmdiff.adapter import attach, detach, families
from llmdiff.adapter.installation import install
from llmdiff.controller import LLMController
from llmdiff.errors import ConfigError, UnsupportedPipelineError
from llmdiff.training.denoise import (
    Sizes,
    check_trainable,
    denoise,
    encode_pictures,
    latent_side_px,
    scaled,
    side_multiple_px,
)
from llmdiff.training.objective import Objective


class Decoded(Exception):
    """The VAE was asked to decode these latents."""


def _draw(pipe, latents, monkeypatch, **more):
    """Draw from these latents, which no step changes; return the scheduler's calls and what the VAE is to decode."""
    calls = []

    def step(output, timestep, sample, *args, **kwargs):
        calls.append((output, timestep, sample))
        return (sample,)

    def decode(latents, *args, **kwargs):
        raise Decoded(latents)

    monkeypatch.setattr(pipe.scheduler, "step", step)
    monkeypatch.setattr(pipe.vae, "decode", decode)
    side = {
        "height": latents.shape[2] * latent_side_px(pipe.vae),
        "width": latents.shape[3] * latent_side_px(pipe.vae),
    }
    asked = {
        "guidance_scale": families.family_of(pipe).guided_above,
        "enable_temporal_attentions": False,
        **DRAW_OPTIONS.get(type(pipe).__name__, {}),
        **side,
        **more,
    }
    taken = inspect.signature(type(pipe).__call__).parameters
    with pytest.raises(Decoded) as stopped:
        pipe(
            prompt="a red cat",
            latents=_as_pipeline_takes(pipe, latents),
            num_inference_steps=2,
            **{name: value for name, value in asked.items() if name in taken},
        )
    return calls, stopped.value.args[0]


def _as_pipeline_takes(pipe, latents):
    """Latents as diffusers' own methods put them for this pipeline."""
    count, channels, height, width = latents.shape
    name = families.family_of(pipe).name
    if name in ("flux", "chroma", "qwen-image"):
        return pipe._pack_latents(latents, count, channels, height, width)
    if name == "flux2":
        return pipe._patchify_latents(latents)
    if name == "ltx":
        return pipe._pack_latents(latents[:, :, None], 1, 1)
    return latents[:, :, None] if name in ("latte", "wan", "sana-video") else latents


def _as_scheduler_sees(pipe, latents):
    taken = _as_pipeline_takes(pipe, latents)
    return pipe._pack_latents(taken) if families.family_of(pipe).name == "flux2" else taken


def _latents(pipe, count=1):
    """Random latents, not square, of a VAE whose statistics are not trivial."""
    family = families.family_of(pipe)
    generator = torch.Generator().manual_seed(4)
    vae = pipe.vae
    if getattr(vae, "bn", None) is not None:
        vae.bn.running_mean.normal_(generator=generator)
        vae.bn.running_var.uniform_(0.5, 2, generator=generator)
    elif "z_dim" in vae.config:
        mean, deviation = torch.randn(4, generator=generator), torch.rand(4, generator=generator) + 0.5
        vae.register_to_config(latents_mean=mean.tolist(), latents_std=deviation.tolist())
    elif "latents_mean" in dict(vae.named_buffers()):
        vae.latents_mean.normal_(generator=generator)
        vae.latents_std.uniform_(0.5, 2, generator=generator)
    side = side_multiple_px(pipe, family) // latent_side_px(vae)
    channels = vae.config.get("latent_channels") or vae.config.z_dim
    return torch.randn(count, channels, 2 * side, 3 * side, generator=generator)


@pytest.mark.parametrize("name", sorted(TRAINABLE))
def test_the_denoiser_is_called_and_latents_are_scaled_as_the_pipeline_does(name, tiny_llm, monkeypatch):
    pipe = BUILDERS[name]()
    if name == "hunyuan-image":
        pipe.register_modules(guider=AdaptiveProjectedMixGuidance(enabled=False))
    latents = _latents(pipe)
    adapter = LLMController.create(tiny_llm, pipe, calibration_prompts=["a cat", "two dog"]).adapter
    attach(pipe, tiny_llm, adapter)
    calls, decoded = _draw(pipe, latents, monkeypatch)
    detach(pipe)
    assert torch.allclose(scaled(pipe.vae, decoded.reshape(latents.shape)), latents, atol=1e-5)

    family, denoiser = families.family_of(pipe), families.denoiser_of(pipe)
    side = (latents.shape[2] * latent_side_px(pipe.vae), latents.shape[3] * latent_side_px(pipe.vae))
    sizes = [Sizes(original=side, crop=(0, 0), target=side)]
    assert len(calls) == 2
    for output, timestep, sample in calls:
        assert torch.equal(sample, _as_scheduler_sees(pipe, latents))
        with torch.no_grad(), install(denoiser, adapter):
            states, pooled = adapter.condition(adapter.context.encode(tiny_llm, ["a red cat"]))
            ours = denoise(denoiser, family, latents, timestep.reshape(1), states, pooled, sizes)
        assert torch.allclose(_as_scheduler_sees(pipe, ours), output, atol=1e-5)


GROWING = {"max_shift": 0.9, "base_image_seq_len": 16, "max_image_seq_len": 200}


@pytest.mark.parametrize("name", ["cogview4", "flux", "ltx", "qwen-image", "sd3", "z-image"])
def test_the_shift_grows_with_the_picture_as_the_pipelines_does(name, monkeypatch):
    pipe = BUILDERS[name]()
    linear = {"time_shift_type": "linear"} if name == "cogview4" else {}
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.3, **GROWING, **linear
    )
    latents = _latents(pipe)
    shifts, set_timesteps = [], pipe.scheduler.set_timesteps

    def noted(*args, mu=None, **kwargs):
        shifts.append(mu)
        return set_timesteps(*args, mu=mu, **kwargs)

    noted.__signature__ = inspect.signature(set_timesteps)
    monkeypatch.setattr(pipe.scheduler, "set_timesteps", noted)
    _draw(pipe, latents, monkeypatch)
    objective = Objective.of(
        pipe.scheduler, patch=families.family_of(pipe).patch_of(families.denoiser_of(pipe))
    )
    shares = torch.tensor([0.3])
    expected = pipe.scheduler.time_shift(shifts[0], 1.0, shares)
    assert torch.allclose(objective.noised_at(latents, latents, shares).shares, expected, atol=1e-6)


@pytest.mark.parametrize("name", sorted(TRAINABLE))
def test_an_adapter_learns_and_nothing_else(name, tiny_llm):
    pipe = BUILDERS[name]()
    family, denoiser = families.family_of(pipe), families.denoiser_of(pipe).requires_grad_(False)
    check_trainable(pipe)
    adapter = LLMController.create(tiny_llm, pipe, calibration_prompts=["a cat", "two dog"]).adapter
    side = 2 * side_multiple_px(pipe, family)
    pictures = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1
    latents = encode_pictures(pipe.vae, pictures).detach()
    objective = Objective.of(pipe.scheduler, patch=family.patch_of(denoiser))
    noised = objective.noised(latents, torch.Generator().manual_seed(2))
    encoding = adapter.context.encode(tiny_llm, ["a red cat", "a dog"])
    sizes = [Sizes(original=(64, 48), crop=(0, 8), target=(side, side))] * 2
    frozen = {key: value.clone() for key, value in denoiser.state_dict().items()}
    before = {key: value.clone() for key, value in adapter.named_parameters()}
    learns, losses = torch.optim.Adam(adapter.parameters(), lr=3e-3), []
    with install(denoiser, adapter):
        for _ in range(8):
            states, pooled = adapter.condition(encoding)
            output = denoise(denoiser, family, noised.latents, noised.timesteps, states, pooled, sizes)
            assert output.shape == latents.shape
            loss = objective.loss(output, noised)
            learns.zero_grad()
            loss.backward()
            learns.step()
            losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert all(torch.equal(value, frozen[key]) for key, value in denoiser.state_dict().items())
    still = {key for key, value in adapter.named_parameters() if torch.equal(value, before[key])}
    assert not any("branches" in key for key in still), still
    base = drawn(pipe)
    attach(pipe, tiny_llm, adapter)
    assert torch.isfinite(drawn(pipe)).all()
    assert (drawn(pipe) - base).abs().max() > 1e-4


def _wan_of_two():
    pipe = BUILDERS["wan"]()
    pipe.register_modules(transformer_2=pipe.transformer)
    return pipe


def _distilled_hunyuan():
    pipe = BUILDERS["hunyuan-image"]()
    pipe.transformer.register_to_config(use_meanflow=True)
    return pipe


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (BUILDERS["sana-sprint"], "Sana-Sprint: it is distilled from a teacher"),
        (_distilled_hunyuan, r"HunyuanImage 2\.1: it is distilled"),
        (lambda: build("LatentConsistencyModelPipeline", "sd"), "it is distilled"),
        (_wan_of_two, "Wan: it has separate denoisers for high and low noise"),
        (lambda: build("AnimateDiffPipeline", "sd"), "its UNetMotionModel takes 4 channels"),
        (
            lambda: build("StableDiffusionXLInstructPix2PixPipeline", "sdxl"),
            "takes 8 channels, but the VAE gives 4",
        ),
        (lambda: build("FluxFillPipeline", "flux"), "takes 12 channels, but the VAE gives 4"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_by_name(make, message):
    with pytest.raises(UnsupportedPipelineError, match=message):
        check_trainable(make())


@pytest.mark.parametrize("name", sorted(TRAINABLE))
def test_gradient_checkpointing_works_or_is_refused_before_training(name, tiny_llm):
    pipe = BUILDERS[name]()
    family, denoiser = families.family_of(pipe), families.denoiser_of(pipe).requires_grad_(False)
    adapter = LLMController.create(tiny_llm, pipe, calibration_prompts=["a cat", "two dog"]).adapter
    latents = _latents(pipe)
    encoding = adapter.context.encode(tiny_llm, ["a red cat"])
    sizes = [Sizes(original=(64, 48), crop=(0, 8), target=(64, 96))]

    def gradients():
        adapter.zero_grad()
        states, pooled = adapter.condition(encoding)
        denoise(
            denoiser, family, latents, torch.tensor([500.0]), states, pooled, sizes
        ).square().mean().backward()
        return {
            key: value.grad.clone() for key, value in adapter.named_parameters() if value.grad is not None
        }

    with install(denoiser, adapter):
        plain = gradients()
        denoiser.enable_gradient_checkpointing()
        denoiser.train()
        try:
            check_trainable(pipe, checkpointing=True)
        except ConfigError as error:
            assert family.title in str(error)  # noqa: PT017
            return
        again = gradients()
    assert plain.keys() == again.keys()
    assert all(torch.allclose(plain[key], again[key], atol=1e-6) for key in plain)
