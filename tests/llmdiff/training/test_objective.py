"""Objectives against diffusers' own schedulers, and min-SNR against its paper."""

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from llmdiff.errors import ConfigError
from llmdiff.training.objective import Objective, validation_losses

_LATENTS = torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def _generator():
    return torch.Generator().manual_seed(2)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_diffusion_objectives_are_what_diffusers_schedulers_say(kind, zero_snr):
    scheduler = DDIMScheduler(prediction_type=kind, rescale_betas_zero_snr=zero_snr)
    noised = Objective.of(scheduler).noised(_LATENTS, _generator())
    noise = torch.randn(_LATENTS.shape, generator=_generator())
    assert torch.equal(noised.latents, scheduler.add_noise(_LATENTS, noise, noised.timesteps))
    expected = {
        "epsilon": noise,
        "sample": _LATENTS,
        "v_prediction": scheduler.get_velocity(_LATENTS, noise, noised.timesteps),
    }[kind]
    assert torch.equal(noised.target, expected)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_a_perfect_prediction_leads_the_sampler_to_the_clean_latents(kind):
    scheduler = DDIMScheduler(prediction_type=kind, clip_sample=False)
    objective = Objective.of(scheduler)
    noised = objective.noised_at(_LATENTS[:1], torch.randn_like(_LATENTS[:1]), torch.tensor([0.6]))
    scheduler.set_timesteps(1000)
    clean = scheduler.step(noised.target, int(noised.timesteps), noised.latents).pred_original_sample
    assert torch.allclose(clean, _LATENTS[:1], atol=1e-4)
    assert objective.loss(noised.target, noised) == 0


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_flow_is_the_one_of_diffusers_scheduler(shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    objective = Objective.of(scheduler)
    assert (objective.kind, objective.shift) == ("flow", shift)
    level = (scheduler.timesteps[300] / 1000).reshape(1)  # as the scheduler shifted it
    share = level / (shift - (shift - 1) * level)
    noise = torch.randn_like(_LATENTS[:1])
    noised = objective.noised_at(_LATENTS[:1], noise, share)
    assert torch.allclose(noised.timesteps, scheduler.timesteps[300:301], rtol=1e-5)
    expected = scheduler.scale_noise(_LATENTS[:1], scheduler.timesteps[300:301], noise)
    assert torch.allclose(noised.latents, expected, atol=1e-5)
    # One Euler step from there to s = 0 along the target arrives at the clean latents.
    assert torch.allclose(noised.latents - level * noised.target, _LATENTS[:1], atol=1e-5)


@pytest.mark.parametrize(
    ("scheduler", "kind"),
    [
        (DDPMScheduler(), "epsilon"),
        (EulerDiscreteScheduler(prediction_type="v_prediction"), "v_prediction"),
        (
            DPMSolverMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
            ),
            "flow",
        ),
    ],
)
def test_the_kind_comes_from_the_scheduler(scheduler, kind):
    assert Objective.of(scheduler).kind == kind


def test_min_snr_weighs_every_kind_alike_in_terms_of_the_clean_latents():
    # An error of x_0 by d is one of eps by sqrt(A/(1-A)) d and of v by d / sqrt(1-A): the same loss for each.
    losses = []
    for kind in ("epsilon", "sample", "v_prediction"):
        objective = Objective.of(DDIMScheduler(prediction_type=kind), min_snr_gamma=5.0)
        noised = objective.noised(_LATENTS, _generator())
        alphas = objective.alphas_cumprod[noised.timesteps][:, None, None, None]
        per_unit = {
            "epsilon": (alphas / (1 - alphas)).sqrt(),
            "sample": torch.ones_like(alphas),
            "v_prediction": (1 - alphas).rsqrt(),
        }
        losses.append(float(objective.loss(noised.target + 0.1 * per_unit[kind], noised)))
        snr = alphas.flatten() / (1 - alphas.flatten())
        assert losses[-1] == pytest.approx(0.01 * float(snr.clamp(max=5).mean()), rel=1e-3)


def test_min_snr_is_finite_where_there_is_no_signal():
    objective = Objective.of(DDIMScheduler(rescale_betas_zero_snr=True), min_snr_gamma=5.0)
    noised = objective.noised_at(_LATENTS[:1], _LATENTS[:1], torch.ones(1))
    assert noised.weights.tolist() == [1.0]
    with pytest.raises(ConfigError, match="min_snr_gamma is 5"):
        Objective.of(FlowMatchEulerDiscreteScheduler(), min_snr_gamma=5.0)


def test_every_quarter_of_the_timesteps_is_reached_and_logged():
    objective = Objective.of(DDIMScheduler())
    noised = objective.noised(_LATENTS, _generator())
    figures = objective.figures(noised.target + 1, noised)
    assert figures == pytest.approx({f"loss_quarter_{i}": 1.0 for i in (1, 2, 3, 4)})


def test_a_power_below_one_prefers_high_noise():
    objective, latents = Objective.of(DDIMScheduler()), torch.zeros(4000, 1, 1, 1)
    even = objective.noised(latents, _generator())
    noisy = objective.noised(latents, _generator(), power=0.45)
    torch.testing.assert_close(noisy.shares, even.shares**0.45)
    # The mean of u ** p is 1 / (1 + p).
    assert float(noisy.timesteps.float().mean()) == pytest.approx(1000 / 1.45, abs=2)


def test_validation_does_not_depend_on_batches_or_processes():
    objective = Objective.of(DDIMScheduler())

    def over(*batches):
        prepared = [(_LATENTS[numbers], numbers, lambda noised: 0.5 * noised.latents) for numbers in batches]
        return validation_losses(objective, prepared)

    whole = over([0, 1, 2, 3, 4, 5])
    first, second = over([1, 3, 5]), over([0], [2, 4])
    assert whole[1] == first[1] + second[1] == 48
    assert whole[0] == pytest.approx(first[0] + second[0], rel=1e-5)
