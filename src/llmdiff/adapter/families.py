"""One row of facts per family of diffusers pipelines. Adding a family is adding a row here."""

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from llmdiff.errors import UnsupportedPipelineError

Part = Literal["positive", "negative", "positive_pooled", "negative_pooled"]


@dataclass(frozen=True, kw_only=True)
class Family:
    """What the adapter has to know about one family of pipelines.

    Fields:
        name: what adapters store as their family.
        title: the family's name for people.
        pipelines: class names of diffusers pipelines; subclasses of them count too.
        denoiser: the pipeline's attribute that holds the U-Net or transformer.
        objective: where the training target comes from. "scheduler" reads `prediction_type`
            (epsilon, v_prediction or sample) off the pipeline's scheduler; "flow" is velocity matching.
        encode_prompt_returns: what the pipeline's `encode_prompt` returns, in order.
        second_prompts: arguments of `encode_prompt` for further text encoders, which one LLM replaces.
    """

    name: str
    title: str
    pipelines: tuple[str, ...]
    denoiser: str
    objective: Literal["scheduler", "flow"]
    encode_prompt_returns: tuple[Part, ...]
    second_prompts: tuple[str, ...] = ()

    @property
    def has_pooled(self) -> bool:
        """True where the pipeline also wants one pooled vector per prompt."""
        return "positive_pooled" in self.encode_prompt_returns


FAMILIES: tuple[Family, ...] = (
    Family(
        name="sd",
        title="Stable Diffusion 1.x/2.x",
        pipelines=(
            "StableDiffusionPipeline",
            "StableDiffusionImg2ImgPipeline",
            "StableDiffusionInpaintPipeline",
        ),
        denoiser="unet",
        objective="scheduler",
        encode_prompt_returns=("positive", "negative"),
    ),
    Family(
        name="sdxl",
        title="Stable Diffusion XL",
        pipelines=(
            "StableDiffusionXLPipeline",
            "StableDiffusionXLImg2ImgPipeline",
            "StableDiffusionXLInpaintPipeline",
        ),
        denoiser="unet",
        objective="scheduler",
        encode_prompt_returns=("positive", "negative", "positive_pooled", "negative_pooled"),
        second_prompts=("prompt_2", "negative_prompt_2"),
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


def denoiser_of(pipe: Any) -> nn.Module:
    """Return the pipeline's U-Net or transformer.

    Raises:
        UnsupportedPipelineError: the pipeline's class is unknown, or its denoiser reshapes the text states
            before its cross-attention layers see them.
    """
    family = family_of(pipe)
    denoiser: Any = getattr(pipe, family.denoiser, None)
    if not isinstance(denoiser, nn.Module):
        raise UnsupportedPipelineError(
            f"pipe.{family.denoiser} is {type(denoiser).__name__}, expected the pipeline's denoiser: load "
            f"the pipeline with its {family.denoiser}"
        )
    # Compiled modules prefix every layer's name; the module inside them is the one to work on.
    inner: nn.Module = getattr(denoiser, "_orig_mod", denoiser)
    config: Any = inner.config
    # A denoiser that projects or pools the text itself would meet the LLM's wider rows there and fail.
    for key, fine in (
        ("encoder_hid_dim_type", (None, "ip_image_proj")),
        ("addition_embed_type", (None, "text_time")),
    ):
        if config.get(key) not in fine:
            raise UnsupportedPipelineError(
                f"pipe.{family.denoiser} has {key}={config.get(key)!r}, so it changes the text states before "
                f"cross-attention; supported values are {', '.join(map(repr, fine))}"
            )
    return inner


def text_width(denoiser: nn.Module) -> int:
    """Return W, the width of the text states that the denoiser expects."""
    config: Any = denoiser.config
    width = config.cross_attention_dim
    if not isinstance(width, int):
        widths = set(width)
        if len(widths) != 1:
            raise UnsupportedPipelineError(
                f"the denoiser's cross_attention_dim is {width}, expected one width for all blocks"
            )
        width = widths.pop()
    return int(width)


def pooled_width(denoiser: nn.Module) -> int | None:
    """Return the width of the pooled text vector that the denoiser expects, None where it expects none."""
    config: Any = denoiser.config
    if config.get("addition_embed_type") != "text_time":
        return None
    # SDXL's added embedding is [pooled text ; six sizes and crops, each as a sinusoid].
    return int(config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim)


def cross_attention_layers(denoiser: nn.Module) -> dict[str, nn.Module]:
    """Return every attention layer that reads the text, by its module name and in module order."""
    return {
        name: module
        for name, module in denoiser.named_modules()
        if getattr(module, "is_cross_attention", False) and hasattr(module, "set_processor")
    }


def layer_table(denoiser: nn.Module) -> dict[str, dict[str, int | bool]]:
    """Return the facts that a second branch needs about every cross-attention layer, ready for JSON.

    Shapes:
        query_dim: width of the image states; inner_dim: heads times head width; out_dim: width that leaves.
    """
    return {
        name: {
            "query_dim": attn.to_q.in_features,
            "inner_dim": attn.to_q.out_features,
            "heads": attn.heads,
            "out_dim": attn.to_out[0].out_features,
            "query_bias": attn.to_q.bias is not None,
            "out_bias": attn.to_out[0].bias is not None,
        }
        for name, attn in _typed(cross_attention_layers(denoiser))
    }


def _typed(layers: dict[str, nn.Module]) -> list[tuple[str, Any]]:
    # diffusers sets these attributes in ways that nn.Module's type does not show.
    return list(layers.items())
