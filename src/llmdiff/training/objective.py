"""The prediction target of a denoiser according to its scheduler: epsilon, x_0, v or the flow's velocity.

    diffusion:  x_t = sqrt(A_t) x_0 + sqrt(1 - A_t) eps        A_t: the scheduler's cumulative product of alphas
                epsilon: eps      sample: x_0      v: sqrt(A_t) eps - sqrt(1 - A_t) x_0
    flow:       x_s = (1 - s) x_0 + s eps,  t = s * T          velocity: eps - x_0

Shape letters: B samples, C h w of a latent.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from llmdiff.errors import ConfigError

Kind = Literal["epsilon", "sample", "v_prediction", "flow"]
BUCKETS = 4
_LEVELS = 8  # noise levels of a sample in a validation


@dataclass(frozen=True, kw_only=True)
class Noised:
    """Noisy latents and the target of their prediction.

    Shapes: latents, target (B, C, h, w); timesteps (B,) as the denoiser takes them; shares (B,), the timesteps as
        shares of the schedule, from 0 (clean) to 1; weights (B,) of the loss, None if all are 1.
    """

    latents: Float[Tensor, "B C h w"]
    timesteps: Float[Tensor, " B"] | Int[Tensor, " B"]
    target: Float[Tensor, "B C h w"]
    shares: Float[Tensor, " B"]
    weights: Float[Tensor, " B"] | None


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The training objective of one base.

    Fields:
        steps: T, the number of training timesteps.
        alphas_cumprod: A_t, (T,); None for flow.
        shift: shift of a flow's noise levels, s => shift s / (1 + (shift - 1) s).
        shift_by_rows: function of the number of rows of patches that returns the shift, if it grows with the picture.
        patch: side of a patch in latents.
        min_snr_gamma: weights timesteps by min(SNR, gamma); None gives all the same weight.

    Source: Ho et al. 2020 (epsilon); Salimans and Ho 2022 (v); Esser et al. 2024 (arXiv 2403.03206) for flow, its
        logit-normal timesteps and shift; Hang et al. 2023 (arXiv 2303.09556) for min-SNR.
    """

    kind: Kind
    steps: int
    alphas_cumprod: Tensor | None
    shift: float = 1.0
    shift_by_rows: Callable[[int], float] | None = None
    patch: int = 1
    min_snr_gamma: float | None = None

    @classmethod
    def of(cls, scheduler: Any, *, patch: int = 1, min_snr_gamma: float | None = None) -> "Objective":
        """Return the objective of a diffusers scheduler; `patch` is the side of the denoiser's patches in latents.

        Raises:
            ConfigError: the prediction type is unknown, or min-SNR is requested for a flow.
        """
        config = scheduler.config
        kind = config.get("prediction_type", "epsilon")
        if type(scheduler).__name__.startswith("FlowMatch") or kind in ("flow_prediction", "flow"):
            if min_snr_gamma is not None:
                raise ConfigError(
                    f"min_snr_gamma is {min_snr_gamma}, but the base is a flow, for which min-SNR is not defined: "
                    "leave it out"
                )
            shift = config.get("shift") or config.get("flow_shift") or 1.0
            return cls(
                kind="flow",
                steps=config.num_train_timesteps,
                alphas_cumprod=None,
                shift=float(shift),
                shift_by_rows=_growing_shift(config) if config.get("use_dynamic_shifting") else None,
                patch=patch,
            )
        if kind not in ("epsilon", "sample", "v_prediction"):
            raise ConfigError(
                f"the base's scheduler has prediction_type {kind!r}, expected epsilon, sample, v_prediction or a flow"
            )
        return cls(
            kind=kind,
            steps=config.num_train_timesteps,
            alphas_cumprod=scheduler.alphas_cumprod,
            min_snr_gamma=min_snr_gamma,
        )

    def noised(
        self, latents: Float[Tensor, "B C h w"], generator: torch.Generator, *, power: float = 1.0
    ) -> Noised:
        """Return latents with fresh noise at random timesteps.

        A `power` below 1 prefers high noise, where a picture's content and layout are decided.
        """
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        # Stratified: one timestep from each of B equal slices of the schedule, for less noise in the gradient.
        count = len(latents)
        shares = ((torch.arange(count) + torch.rand(count, generator=generator)) / count) ** power
        if self.kind == "flow":
            # Logit-normal: more timesteps at medium noise.
            shares = torch.sigmoid(torch.special.ndtri(shares.clamp(1e-4, 1 - 1e-4)))
        return self.noised_at(latents, noise, shares)

    def noised_at(
        self,
        latents: Float[Tensor, "B C h w"],
        noise: Float[Tensor, "B C h w"],
        shares: Float[Tensor, " B"],
    ) -> Noised:
        """Return latents with this noise at these shares of the schedule, (B,) in 0..1."""
        if self.kind == "flow":
            shift = self.shift
            if self.shift_by_rows is not None:
                shift = self.shift_by_rows(latents.shape[-2] * latents.shape[-1] // self.patch**2)
            level = shift * shares / (1 + (shift - 1) * shares)
            sigma = level.to(latents)[:, None, None, None]
            return Noised(
                latents=(1 - sigma) * latents + sigma * noise,
                timesteps=(level * self.steps).to(latents.device),
                target=noise - latents,
                shares=level,
                weights=None,
            )
        assert self.alphas_cumprod is not None
        timesteps = (shares * self.steps).long().clamp(max=self.steps - 1).to(latents.device)
        alphas = self.alphas_cumprod.to(latents)[timesteps]
        kept, added = alphas[:, None, None, None] ** 0.5, (1 - alphas)[:, None, None, None] ** 0.5
        target = {
            "epsilon": lambda: noise,
            "sample": lambda: latents,
            "v_prediction": lambda: kept * noise - added * latents,
        }[self.kind]()
        return Noised(
            latents=kept * latents + added * noise,
            timesteps=timesteps,
            target=target,
            shares=shares,
            weights=self._weights(alphas.float()),
        )

    def loss(self, output: Float[Tensor, "B C h w"], noised: Noised) -> Float[Tensor, ""]:
        """Return the weighted mean squared error of the prediction, ()."""
        if noised.weights is None:
            return F.mse_loss(output.float(), noised.target.float())
        return (self.losses(output, noised) * noised.weights).mean()

    def losses(self, output: Float[Tensor, "B C h w"], noised: Noised) -> Float[Tensor, " B"]:
        """Return every sample's unweighted mean squared error, (B,)."""
        return (output.float() - noised.target.float()).square().flatten(1).mean(1)

    @torch.no_grad()
    def figures(self, output: Tensor, noised: Noised) -> dict[str, float]:
        """Return the unweighted loss of each quarter of the schedule with samples, from low to high noise."""
        losses = self.losses(output, noised).cpu()
        quarters = (noised.shares * BUCKETS).long().clamp(max=BUCKETS - 1)
        return {
            f"loss_quarter_{quarter + 1}": float(losses[quarters == quarter].mean())
            for quarter in range(BUCKETS)
            if bool((quarters == quarter).any())
        }

    def _weights(self, alphas: Float[Tensor, " B"]) -> Float[Tensor, " B"] | None:
        """Return the weights of the prediction's error that weight x_0's error by min(SNR, gamma), (B,)."""
        if self.min_snr_gamma is None:
            return None
        snr = alphas / (1 - alphas)
        capped = snr.clamp(max=self.min_snr_gamma)
        if self.kind == "sample":
            return capped
        if self.kind == "v_prediction":
            return capped / (snr + 1)
        return (self.min_snr_gamma / snr).clamp(max=1)  # min(SNR, gamma) / SNR, also where SNR is 0


def _growing_shift(config: Any) -> Callable[[int], float]:
    """Return the shift of a flow's noise levels as a function of n, a picture's number of rows of patches.

        exponential: exp(mu), mu linear in n, base_shift at base_image_seq_len and max_shift at max_image_seq_len
        linear:      mu = base_shift + max_shift sqrt(n / base_image_seq_len)

    Source: FLUX.1's and CogView4's pipelines in diffusers (`calculate_shift`).
    """
    rows, low, high = config.base_image_seq_len, config.base_shift, config.max_shift
    if config.get("time_shift_type") == "linear":
        return lambda n: low + high * math.sqrt(n / rows)
    return lambda n: math.exp(low + (high - low) * (n - rows) / (config.max_image_seq_len - rows))


@torch.no_grad()
def validation_losses(
    objective: Objective,
    batches: Iterable[tuple[Tensor, list[int], Callable[[Noised], Tensor]]],
) -> tuple[float, float]:
    """Return the sum of losses over samples and noise levels, and their number.

    A batch consists of latents, their indices in the validation set, and a function from noised latents to the
    denoiser's output. Noise and levels of a sample depend only on its index, so runs with any seed, batch size and
    number of processes can be compared.
    """
    total, count = 0.0, 0
    for latents, numbers, denoise in batches:
        generators = [torch.Generator().manual_seed(0x5EED + number) for number in numbers]
        noise = torch.stack([torch.randn(latents.shape[1:], generator=one) for one in generators])
        for level in range(_LEVELS):
            # Every sample has another place in the slice, so all timesteps are covered.
            places = torch.tensor([(level + (number * 0.618034) % 1) / _LEVELS for number in numbers])
            noised = objective.noised_at(latents, noise.to(latents), places)
            losses = objective.losses(denoise(noised), noised)
            total, count = total + float(losses.sum()), count + len(losses)
    return total, float(count)
