"""The table of supported families of diffusers pipelines. To add a family, add a row here."""

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from llmdiff.errors import UnsupportedPipelineError

Part = Literal[
    "positive",
    "negative",
    "positive_pooled",
    "negative_pooled",
    "positive_mask",
    "negative_mask",
    "text_ids",
]


@dataclass(frozen=True, kw_only=True)
class Family:
    """The properties of one family of pipelines.

    Fields:
        name: the name that adapters store.
        title: the family's name for people.
        pipelines: class names of diffusers pipelines; subclasses of them count too.
        denoiser: the pipeline's attribute that holds the U-Net or transformer.
        objective: the training target. "scheduler": the `prediction_type` (epsilon, v_prediction or sample) of the
            pipeline's scheduler; "flow": flow matching.
        encode_prompt_returns: what the pipeline's `encode_prompt` returns, in order.
        text_width: the key of the denoiser's config with the width of its text states.
        pooled_width: the key for the width of the pooled vector; None for U-Nets, which compute it, or for none.
        second_prompts: arguments of `encode_prompt` for further text encoders, all replaced by the LLM.
        text_channel: how c reaches the attention layers. "states": beside phi(c), in the same tensor, which
            the denoiser passes on unchanged. "mask": the denoiser projects the text states first, so c is
            passed in `encoder_attention_mask`, the one argument that reaches every block unchanged.
            "joint": text and image share their attention; c is passed in `joint_attention_kwargs`.
        text_projections: modules of the denoiser that project text states before the attention layers.
        side_divisor_px: the divisor that its pipelines require of height and width, besides the VAE's factor.
        latent_patch: the side of a patch in latents: a number, or a key of the denoiser's config. 1 for PixArt,
            whose pipelines draw the nearest size that fits and resize it to the requested one.
    """

    name: str
    title: str
    pipelines: tuple[str, ...]
    denoiser: str
    objective: Literal["scheduler", "flow"]
    encode_prompt_returns: tuple[Part, ...]
    text_width: str
    pooled_width: str | None = None
    second_prompts: tuple[str, ...] = ()
    text_channel: Literal["states", "mask", "joint"] = "states"
    text_projections: tuple[str, ...] = ()
    side_divisor_px: int = 8
    latent_patch: int | Literal["patch_size"] = 1

    @property
    def text_to_image(self) -> tuple[str, ...]:
        """Return the names of its text-to-image pipelines."""
        others = ("Img2Img", "Inpaint", "ControlNet")
        return tuple(name for name in self.pipelines if not any(other in name for other in others))

    @property
    def has_pooled(self) -> bool:
        """Return whether the pipeline also takes one pooled vector per prompt."""
        return "positive_pooled" in self.encode_prompt_returns

    @property
    def encodes_negative(self) -> bool:
        """Return whether one `encode_prompt` call encodes prompt and negative prompt; else each has its own call."""
        return "negative" in self.encode_prompt_returns


_BOTH: tuple[Part, ...] = ("positive", "negative")
_BOTH_POOLED: tuple[Part, ...] = ("positive", "negative", "positive_pooled", "negative_pooled")
_BOTH_MASKED: tuple[Part, ...] = ("positive", "positive_mask", "negative", "negative_mask")

FAMILIES: tuple[Family, ...] = (
    Family(
        name="sd",
        title="Stable Diffusion 1.x/2.x",
        pipelines=(
            "StableDiffusionPipeline",
            "StableDiffusionImg2ImgPipeline",
            "StableDiffusionInpaintPipeline",
            "StableDiffusionControlNetPipeline",
            "StableDiffusionControlNetImg2ImgPipeline",
            "StableDiffusionControlNetInpaintPipeline",
        ),
        denoiser="unet",
        objective="scheduler",
        encode_prompt_returns=_BOTH,
        text_width="cross_attention_dim",
    ),
    Family(
        name="sdxl",
        title="Stable Diffusion XL",
        pipelines=(
            "StableDiffusionXLPipeline",
            "StableDiffusionXLImg2ImgPipeline",
            "StableDiffusionXLInpaintPipeline",
            "StableDiffusionXLControlNetPipeline",
            "StableDiffusionXLControlNetImg2ImgPipeline",
            "StableDiffusionXLControlNetInpaintPipeline",
        ),
        denoiser="unet",
        objective="scheduler",
        encode_prompt_returns=_BOTH_POOLED,
        text_width="cross_attention_dim",
        second_prompts=("prompt_2", "negative_prompt_2"),
    ),
    Family(
        name="pixart",
        title="PixArt-alpha/Sigma",
        pipelines=("PixArtAlphaPipeline", "PixArtSigmaPipeline"),
        denoiser="transformer",
        objective="scheduler",
        encode_prompt_returns=_BOTH_MASKED,
        text_width="caption_channels",
        text_channel="mask",
        text_projections=("caption_projection",),
    ),
    Family(
        name="sana",
        title="Sana",
        pipelines=("SanaPipeline",),
        denoiser="transformer",
        objective="flow",
        encode_prompt_returns=_BOTH_MASKED,
        text_width="caption_channels",
        text_channel="mask",
        text_projections=("caption_projection", "caption_norm"),
        side_divisor_px=32,
    ),
    Family(
        name="sd3",
        title="Stable Diffusion 3",
        pipelines=(
            "StableDiffusion3Pipeline",
            "StableDiffusion3Img2ImgPipeline",
            "StableDiffusion3InpaintPipeline",
        ),
        denoiser="transformer",
        objective="flow",
        encode_prompt_returns=_BOTH_POOLED,
        text_width="joint_attention_dim",
        pooled_width="pooled_projection_dim",
        second_prompts=("prompt_2", "prompt_3", "negative_prompt_2", "negative_prompt_3"),
        text_channel="joint",
        text_projections=("context_embedder",),
        side_divisor_px=1,
        latent_patch="patch_size",
    ),
    Family(
        name="flux",
        title="Flux",
        pipelines=("FluxPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline"),
        denoiser="transformer",
        objective="flow",
        encode_prompt_returns=("positive", "positive_pooled", "text_ids"),
        text_width="joint_attention_dim",
        pooled_width="pooled_projection_dim",
        second_prompts=("prompt_2",),
        text_channel="joint",
        text_projections=("context_embedder",),
        side_divisor_px=1,
        latent_patch=2,
    ),
)


def family_of(pipe: Any) -> Family:
    """Return the family that a pipeline belongs to.

    Raises:
        UnsupportedPipelineError: no row of `FAMILIES` names the pipeline's class or a parent of it.
    """
    names = {parent.__name__ for parent in type(pipe).__mro__}
    for family in FAMILIES:
        if names & set(family.pipelines):
            return family
    known = "; ".join(f"{family.title} ({', '.join(family.pipelines)})" for family in FAMILIES)
    raise UnsupportedPipelineError(
        f"pipe is a {type(pipe).__name__}, which LLMDiff cannot control; use one of: {known}"
    )


def family_named(name: str) -> Family:
    """Return the family with this name, as adapters store it."""
    return next(family for family in FAMILIES if family.name == name)


def denoiser_of(pipe: Any) -> nn.Module:
    """Return the pipeline's U-Net or transformer.

    Raises:
        UnsupportedPipelineError: the pipeline's class is unknown, or its denoiser changes the text states in a
            way that its family does not.
    """
    family = family_of(pipe)
    denoiser: Any = getattr(pipe, family.denoiser, None)
    if not isinstance(denoiser, nn.Module):
        raise UnsupportedPipelineError(
            f"pipe.{family.denoiser} is {type(denoiser).__name__}, expected the pipeline's denoiser: load "
            f"the pipeline with its {family.denoiser}"
        )
    # torch.compile wraps the module and prefixes every layer's name; return the wrapped module.
    inner: nn.Module = getattr(denoiser, "_orig_mod", denoiser)
    config: Any = inner.config
    # A U-Net that projects or pools the text itself would fail on the LLM's wider rows.
    for key, fine in (
        ("encoder_hid_dim_type", (None, "ip_image_proj")),
        ("addition_embed_type", (None, "text_time")),
    ):
        if config.get(key) not in fine:
            raise UnsupportedPipelineError(
                f"pipe.{family.denoiser} has {key}={config.get(key)!r}, so it changes the text states before "
                f"cross-attention; supported values are {', '.join(map(repr, fine))}"
            )
    for name in family.text_projections:
        if getattr(inner, name, None) is None:
            raise UnsupportedPipelineError(
                f"pipe.{family.denoiser} has no {name}, which every {family.title} has: load one that has it"
            )
    return inner


def text_width(denoiser: nn.Module, family: Family) -> int:
    """Return W, the width of the text states that the denoiser expects."""
    config: Any = denoiser.config
    width = config.get(family.text_width)
    if width is None:
        raise UnsupportedPipelineError(
            f"the denoiser is no {family.title}: its config has no {family.text_width}; use a pipeline of that "
            "family"
        )
    if not isinstance(width, int):
        widths = set(width)
        if len(widths) != 1:
            raise UnsupportedPipelineError(
                f"the denoiser's {family.text_width} is {width}, expected one width for all blocks"
            )
        width = widths.pop()
    return int(width)


def pooled_width(denoiser: nn.Module, family: Family, pipe: Any = None) -> int | None:
    """Return the width of the pooled text vector that the denoiser expects, None if it expects none.

    `pipe` tells which other inputs it takes; None: those of a text-to-image pipeline.
    """
    config: Any = denoiser.config
    if not family.has_pooled:
        return None
    if family.pooled_width is not None:
        return int(config[family.pooled_width])
    if config.get("addition_embed_type") != "text_time":
        return None
    # SDXL's added embedding is [pooled text ; numbers as sinusoids]: six sizes and crops, or, in its refiner, four and
    # a score for aesthetics.
    scored = pipe is not None and pipe.config.get("requires_aesthetics_score")
    return int(
        config.projection_class_embeddings_input_dim - (5 if scored else 6) * config.addition_time_embed_dim
    )
