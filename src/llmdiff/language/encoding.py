"""The text encoding: a weighted sum of the updates of an LLM's blocks."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from llmdiff.checks.validation import keywords_of, settings_from
from llmdiff.errors import AdapterMismatchError, ConfigError
from llmdiff.language.blocks import Lone, run_rows
from llmdiff.language.calibration import measure_scales, scale_factors
from llmdiff.language.captured import captured_sum
from llmdiff.language.finite import FiniteWatch
from llmdiff.language.llm import DecoderLLM
from llmdiff.language.routing import RoutedGains
from llmdiff.language.rows import TokenRows
from llmdiff.language.settings import Encoding, EncodingSettings
from llmdiff.types import BlockStates, TextEncoding

# Initial noise of each block, as a fraction of the median norm of x_0.
_INITIAL_NOISE = 0.01


class ContextEncoding(nn.Module):
    """The text encoding c: x_0 plus every block's weighted score, with learned weights.

        paper:   c = x_0 + sum_l ( g_l * s_l             + sqrt(2 h_l) * eps_l ),   s_l = u_l - v_l
        guided:  c = x_0 + sum_l ( g_l * s_l + k_l * v_l + sqrt(2 h_l) * eps_l )

    u_l is block l's update of a token in its context, v_l the same block's update of the token alone. "guided" is
    ours and has the form of classifier-free guidance: v_l is the unguided part and g_l the guidance weight. k = 0
    gives the paper's sum, k = g the plain states. The paper's sum drops the meaning of a token without its context
    (v_l makes "automobile" resemble "car"); "guided" keeps it.

    The paper leaves the form of g(t) open. Ours is g_l = gamma_l / score_scale_l and k_l = kappa_l / lone_scale_l
    with learned gamma, kappa and fixed scales: the median norms of s_l and v_l over tokens, measured once per LLM.
    Norms of block updates differ by orders of magnitude (30 to 700 in SmolLM2, where x_0 has 2.7), so without scales
    the last blocks dominate the sum and every gain needs another learning rate. A few attention sinks reach 25,000, so
    the scale is a median instead of an rms, and s_l or v_l above `clip` scales are shortened. c has the unit of x_0's
    median norm. h_l = h_raw_l^2 / (2 D): h_raw_l is the norm of the block's noise on a token, in the same unit.

    A prompt weight, `(word:1.3)`, multiplies the clipped scores of its tokens:

        c_t = x_0 + sum_l ( w_t * g_l * s_l + k_l * v_l )

    w = 1 gives the same bits as no weight; w = 0 gives the token without its context. Tokens without context have
    s = 0 and ignore weights: BOS (c = x_0 in "paper", a constant vector in "guided"), and a prompt's first word with
    `lone="token+bos"` and no template.

    With `routing` above 1, each group d of the denoiser's attention layers has an encoding c_d with its own gains, see
    `RoutedGains`. One pass of the LLM sums all of them, (B, T, d, D); they share one draw of noise.

    Shapes:
        gamma, kappa (guided only), h_raw, score_scale, lone_scale: (L,); x0_scale: ().
    Source: Dong et al. 2024 (arXiv 2502.04412), the text encoding as a sum of score functions; guided, the
        scales and the clipping are ours.
    """

    x0_scale: Tensor
    score_scale: Tensor
    lone_scale: Tensor

    @keywords_of(EncodingSettings)
    def __init__(
        self,
        num_blocks: int,
        hidden_size: int,
        settings: EncodingSettings | None = None,
        **fields: Any,
    ) -> None:
        """Create an encoding from `settings` or its fields; all gains and scales are 1 until `calibrate`.

        Raises:
            ConfigError: a setting is not valid.
        """
        super().__init__()
        settings = settings_from(EncodingSettings, settings, fields)
        if settings.encoding is None:
            raise ConfigError('encoding is None, expected "guided" or "paper"')
        self.settings = settings
        self.num_blocks, self.hidden_size = num_blocks, hidden_size
        self.encoding: Encoding = settings.encoding
        self.lone: Lone = settings.lone
        self.template = settings.template
        self.max_length = settings.max_length
        self.clip = settings.clip
        self.gamma = nn.Parameter(torch.ones(num_blocks))
        self.kappa = nn.Parameter(torch.ones(num_blocks)) if self.encoding == "guided" else None
        self.routed: RoutedGains | None = None
        if settings.routing > 1:
            self.routed = RoutedGains(
                num_blocks, settings.routing, form=settings.routing_form, guided=self.encoding == "guided"
            )
        self.h_raw = nn.Parameter(torch.full((num_blocks,), _INITIAL_NOISE))
        self.register_buffer("x0_scale", torch.ones(()))
        self.register_buffer("score_scale", torch.ones(num_blocks))
        self.register_buffer("lone_scale", torch.ones(num_blocks))

    @property
    def h(self) -> Float[Tensor, " L"]:
        """Return h_l >= 0 in units of x_0's median norm squared, (L,)."""
        return self.h_raw.square() / (2 * self.hidden_size)

    def gains(self) -> tuple[Float[Tensor, "L ..."], Float[Tensor, "L ..."] | None]:
        """Return gamma and kappa (None in "paper"): (L,), with routing (L, d)."""
        return (self.gamma, self.kappa) if self.routed is None else self.routed(self.gamma, self.kappa)

    @torch.no_grad()
    def calibrate(self, llm: DecoderLLM, prompts: Sequence[str]) -> None:
        """Set the scales to median token norms over these prompts, without BOS. Call it once per LLM.

        Raises:
            PromptError: the prompts contain no token besides BOS.
            AdapterMismatchError: the LLM has another number or width of blocks.
        """
        self.check_llm(llm)
        scales = measure_scales(
            llm, prompts, lone=self.lone, template=self.template, max_length=self.max_length
        )
        self.x0_scale.copy_(scales.x0)
        self.score_scale.copy_(scales.scores)
        self.lone_scale.copy_(scales.lone)

    def sum(
        self,
        states: BlockStates,
        *,
        generator: torch.Generator | None = None,
        token_weights: Float[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T *d D"]:
        """Return c of stored block states, differentiable in gamma, kappa and h_raw.

        Noise is drawn only if a generator is given. The result equals `encode` on the same prompts if
        `token_weights` are those of `PromptTokens`.

        Shapes:
            result: (B, T, D) float32, with routing (B, T, d, D); padding rows are exactly 0.
        Raises:
            AdapterMismatchError: the states are of an LLM with another number or width of blocks.
        """
        self._check_sizes(states.context.shape[0], states.x0.shape[-1], "the block states")
        device = states.x0.device
        alone = states.lone.float()
        per_block = (..., None, None, None)
        scores = self.in_scales(states.context.float() - alone, self.score_scale.to(device)[per_block])
        if token_weights is not None:
            scores = scores * token_weights.to(device)[..., None]
        gamma, kappa = self.gains()
        weighted = "l,lbtd->btd" if self.routed is None else "lg,lbtd->btgd"
        c = self.for_groups(states.x0.float() / self.x0_scale.to(device))
        c = c + torch.einsum(weighted, gamma.to(device), scores)
        if kappa is not None:
            alone = self.in_scales(alone, self.lone_scale.to(device)[per_block])
            c = c + torch.einsum(weighted, kappa.to(device), alone)
        return self.add_noise(c, states.token_mask, generator)

    def encode(
        self,
        llm: DecoderLLM,
        prompts: str | Sequence[str],
        *,
        generator: torch.Generator | None = None,
        weighted: bool = False,
        contexts: Sequence[str] | None = None,
        block_gains: Mapping[int, float] | None = None,
        gradients: bool = False,
    ) -> TextEncoding:
        """Return c of the prompts, summed block by block while the LLM runs: O(B*T*D) memory, not times L.

        Without a generator there is no noise, and the result is repeatable bit for bit. With `weighted`,
        `(word:1.3)` in a prompt is a weight, see `parse_weights`; otherwise it is text. `contexts`, one for each
        prompt, are put before it and not encoded. `block_gains` maps blocks to factors of their contribution.
        `gradients` enables gradients for trainable parts of the LLM; the constant prefix gets none.

        Shapes:
            states: (B, T, D) float32, with routing (B, T, d, D); padding rows are exactly 0.
        Raises:
            PromptError: there are no prompts, one is not a string, or a weight is out of range.
            AdapterMismatchError: the LLM has another number or width of blocks.
            CorruptWeightsError, ConfigError: the LLM's states are not finite, see `run_blocks`.
        """
        self.check_llm(llm)
        tokens = llm.tokenize(
            prompts,
            template=self.template,
            max_length=self.max_length,
            weighted=weighted,
            contexts=contexts,
        )
        rows = TokenRows.of(tokens, llm.device)
        weights = None if tokens.weights is None else rows.of_tokens(tokens.weights)[:, None]
        with torch.set_grad_enabled(gradients):
            eager = gradients or bool(block_gains)
            c = None if eager else captured_sum(self, llm, rows, tokens.prefix_ids, weights)
            if c is None:
                c = self.sum_rows(llm, rows, tokens.prefix_ids, weights, block_gains=block_gains)
            mask = tokens.token_mask.to(c.device)
            return TextEncoding(states=self.add_noise(rows.padded(c), mask, generator), token_mask=mask)

    def sum_rows(
        self,
        llm: DecoderLLM,
        rows: TokenRows,
        prefix_ids: tuple[int, ...],
        weights: Float[Tensor, "N 1"] | None,
        watch: FiniteWatch | None = None,
        *,
        block_gains: Mapping[int, float] | None = None,
    ) -> Float[Tensor, "N *d D"]:
        """Return c of every token of a pass without noise, summed while the LLM runs; see `run_rows`.

        Shapes:
            weights: (N + 1, 1); result: (N + 1, D) float32, with routing (N + 1, d, D).
        """
        total: list[Tensor] = []
        factors = block_gains or {}

        def add(index: int, x: Tensor, u: Tensor, v: Tensor) -> None:
            if index == 0:
                total.append(self.for_groups(x / self.x0_scale.to(x.device)))
            total[0] += self.contribution(index, u, v, weights=weights, factor=factors.get(index))

        run_rows(llm, rows, prefix_ids, lone=self.lone, visit=add, watch=watch)
        return total[0]

    def contribution(
        self,
        index: int,
        u: Float[Tensor, "*tokens D"],
        v: Float[Tensor, "*tokens D"],
        *,
        weights: Float[Tensor, "*tokens 1"] | None = None,
        factor: float | None = None,
    ) -> Float[Tensor, "*tokens_d D"]:
        """Return one block's contribution to c without noise: g_l * s_l, and in "guided" + k_l * v_l, times a factor.

        Shapes:
            u, v: (..., D), weights: (..., 1) => (..., D), with routing (..., d, D).
        """
        gamma, kappa = self.gains()
        score = u - v
        factors = scale_factors(score, self.score_scale[index].to(u.device), self.clip)
        gain = gamma[index].to(u.device) * factors
        if weights is not None:
            gain = gain * weights.to(gain.device)
        if self.routed is not None:
            gain, score = gain[..., None], score[..., None, :]
        added = gain * score
        if kappa is not None:
            factors = scale_factors(v, self.lone_scale[index].to(v.device), self.clip)
            gain = kappa[index].to(v.device) * factors
            if self.routed is not None:
                gain, v = gain[..., None], v[..., None, :]
            added = torch.addcmul(added, gain, v)
        return added if factor is None else added * factor

    def for_groups(self, states: Float[Tensor, "*tokens D"]) -> Float[Tensor, "*tokens_d D"]:
        """Return states repeated for every group: (..., D) => (..., d, D); unchanged without routing."""
        if self.routed is None:
            return states
        return states[..., None, :].repeat(*(1,) * (states.ndim - 1), self.routed.groups, 1)

    def add_noise(
        self, c: Float[Tensor, "B T *d D"], token_mask: Bool[Tensor, "B T"], generator: torch.Generator | None
    ) -> Float[Tensor, "B T *d D"]:
        """Return c with a draw of all blocks' noise if a generator is given, and padding rows exactly 0.

            sum_l sqrt(2 h_l) eps_l  ~  sqrt(2 sum_l h_l) eps       (independent noises: their variances add up)

        Shapes:
            c: (B, T, D), with routing (B, T, d, D); token_mask: (B, T).
        """
        if generator is not None:
            amplitude = torch.linalg.vector_norm(self.h_raw.to(c.device)) / math.sqrt(self.hidden_size)
            # Drawn for real tokens in order, so that padding does not change it.
            shape = (int(token_mask.sum()), self.hidden_size)
            eps = torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float32)
            noise = c.new_zeros(*token_mask.shape, self.hidden_size)
            noise[token_mask] = eps.to(c)
            c = c + amplitude.to(c.dtype) * (noise if self.routed is None else noise[..., None, :])
        return torch.where(token_mask[(...,) + (None,) * (c.ndim - 2)], c, 0.0)

    def in_scales(self, update: Float[Tensor, "*tokens D"], scale: Tensor) -> Float[Tensor, "*tokens D"]:
        """Return update / scale with norms clipped to `clip`; update (..., D)."""
        return update * scale_factors(update, scale, self.clip)

    def check_llm(self, llm: DecoderLLM) -> None:
        """Raise an AdapterMismatchError unless the LLM has the number and width of blocks of this encoding."""
        self._check_sizes(llm.num_blocks, llm.hidden_size, f"llm {llm.id!r}")

    def _check_sizes(self, num_blocks: int, hidden_size: int, what: str) -> None:
        if (num_blocks, hidden_size) != (self.num_blocks, self.hidden_size):
            raise AdapterMismatchError(
                f"{what} has {num_blocks} blocks of width {hidden_size}, but this encoding was made for "
                f"{self.num_blocks} blocks of width {self.hidden_size}; use the LLM it was made for"
            )
