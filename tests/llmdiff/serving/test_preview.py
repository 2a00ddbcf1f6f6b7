"""Previews: the estimate against the scheduler's own, and when there is none."""

import io
from itertools import count
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from PIL import Image

from llmdiff.serving.preview import Previewer, clean_estimate


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("steps", [3, 20])
def test_the_estimate_is_what_ddim_expects_at_the_end(prediction: str, steps: int) -> None:
    scheduler = DDIMScheduler(prediction_type=prediction, clip_sample=False, steps_offset=1)
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(2, 4, 3, 5, generator=generator)
    for timestep in scheduler.timesteps[:-1]:
        output = torch.randn(before.shape, generator=generator)
        step = scheduler.step(output, timestep, before)
        estimate = clean_estimate(scheduler, timestep, before, step.prev_sample)
        torch.testing.assert_close(estimate, step.pred_original_sample, rtol=1e-3, atol=1e-3)
        before = step.prev_sample
    last = scheduler.step(output, scheduler.timesteps[-1], before).prev_sample
    assert clean_estimate(scheduler, scheduler.timesteps[-1], before, last) is last


def test_other_schedulers_show_the_latents_as_they_are() -> None:
    scheduler = EulerDiscreteScheduler()
    scheduler.set_timesteps(4)
    before, after = torch.zeros(1, 4, 2, 2), torch.ones(1, 4, 2, 2)
    assert clean_estimate(scheduler, scheduler.timesteps[0], before, after) is after


def test_a_preview_is_what_the_vae_makes_of_the_estimate(sd_pipe: Any) -> None:
    # The tiny pipeline is random, so the last steps but one already expect nearly what they end with. By this clock all
    # earlier times are short, so that no preview comes too early.
    seen: list[bytes] = []
    previewer = Previewer(sd_pipe, clock=(2.0**tick for tick in count()).__next__)

    def look(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        png = previewer.after_step(timestep, tensors["latents"])
        assert (png is None) == (step == 0)
        seen.extend([png] if png else [])
        return tensors

    generator = torch.Generator().manual_seed(0)
    options = {"generator": generator, "num_inference_steps": 4, "callback_on_step_end": look}
    final = sd_pipe("a cat", **options).images[0]
    assert len(seen) == 3
    previews = [Image.open(io.BytesIO(png)) for png in seen]
    assert all(image.size == final.size for image in previews)
    # After the last step there is nothing left to expect: the preview is the picture.
    assert previews[-1].tobytes() == final.tobytes()
    assert previews[0].tobytes() != final.tobytes()


def test_previews_wait_until_they_cost_little(sd_pipe: Any) -> None:
    now = 0.0
    sd_pipe.scheduler.set_timesteps(50)
    previewer = Previewer(sd_pipe, clock=lambda: now)
    decode = sd_pipe.vae.decode

    def slow(*given: Any, **options: Any) -> Any:
        nonlocal now
        now += 1.0
        return decode(*given, **options)

    sd_pipe.vae.decode = slow
    made = []
    for timestep in sd_pipe.scheduler.timesteps[:40]:
        now += 0.5
        made.append(previewer.after_step(timestep, torch.randn(1, 4, 8, 8)) is not None)
    # One second of decoding for every four of drawing; none before two latents are known.
    assert not made[0]
    assert made[1]
    assert sum(made) == 5


def test_packed_latents_have_no_preview(sd_pipe: Any) -> None:
    previewer = Previewer(sd_pipe)
    for _ in range(3):
        assert previewer.after_step(1, torch.zeros(1, 16, 64)) is None
