"""The table of supported families of diffusers pipelines. To add a family, add a row here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn


@dataclass(frozen=True, kw_only=True)
class Family:
    """The properties of one family of pipelines; what its pipeline classes add, their `PromptContract` says.

    Fields:
        name: the name that adapters store.
        title: the family's name for people.
        denoisers: class names of its U-Nets or transformers; subclasses of them count too.
        config: what the denoiser's config holds in this family, by key.
        objective: the training target. "scheduler": the `prediction_type` (epsilon, v_prediction or sample) of the
            pipeline's scheduler; "flow": flow matching; None: `llmdiff train` does not train the family.
        text_width: the key of the denoiser's config with the width of its text states.
        pooled_width: the key for the width of the pooled vector; None if the denoiser takes none.
        text_channel: how the attention layers read the text. "states": cross-attention, which gets the text states
            unchanged. "projected": cross-attention to text states that the denoiser projects first. "joint": text and
            image share their attention.
        carrier: the denoiser's argument that carries c to the layers, if the text is projected: a mask, or keyword
            arguments of the layers. None: no argument reaches every layer, so `SplitText` hands c to them.
        text_argument: the denoiser's argument for the text states.
        text_projections: modules of the denoiser that project text states before the attention layers.
        branches: names (with wildcards) of the layers that get a new branch, where their kind does not tell.
        single_stream: names (with wildcards) of joint layers that read text and image as one stream.
        text_first: whether joint attention has the text's rows before the image's.
        text_rows_multiple: the number that a single stream pads the rows of each text to a multiple of.
        mixing: where a scale below 1 mixes LLM and base: in the "attention", or their "prediction", for denoisers
            that give text rows a position or let them attend to each other; these take twice the time.
        base_reads_padding: whether the base reads the padding of its text, whatever mask `encode_prompt` returns.
        ragged: whether text states are a list of tensors, one for each prompt.
        side_divisor_px: the divisor that its pipelines require of height and width, besides the VAE's factor.
        latent_patch: the side of a patch in latents: a number, or a key of the denoiser's config. 1 for PixArt,
            whose pipelines draw the nearest size that fits and resize it to the requested one.
    """

    name: str
    title: str
    denoisers: tuple[str, ...]
    config: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    objective: Literal["scheduler", "flow"] | None
    text_width: str
    pooled_width: str | None = None
    text_channel: Literal["states", "projected", "joint"] = "states"
    carrier: str | None = None
    text_argument: str = "encoder_hidden_states"
    text_projections: tuple[str, ...] = ()
    branches: tuple[str, ...] = ()
    single_stream: tuple[str, ...] = ()
    text_first: bool = True
    text_rows_multiple: int = 1
    mixing: Literal["attention", "prediction"] = "attention"
    base_reads_padding: bool = False
    ragged: bool = False
    side_divisor_px: int = 8
    latent_patch: int | Literal["patch_size"] = 1

    def is_of_class(self, denoiser: nn.Module) -> bool:
        """Return whether the denoiser's class is one of the family's."""
        return bool({parent.__name__ for parent in type(denoiser).__mro__} & set(self.denoisers))

    def unlike(self, denoiser: nn.Module) -> list[str]:
        """Return what the denoiser's config has that the family has not; empty if it is one of the family."""
        config: Any = denoiser.config
        return [
            f"{key}={config.get(key)!r}"
            for key, values in self.config.items()
            if config.get(key) not in values
        ]


_UNETS = ("UNet2DConditionModel", "UNetMotionModel", "UNetControlNetXSModel")
_NO_PROJECTION = (None, "ip_image_proj")

FAMILIES: tuple[Family, ...] = (
    Family(
        name="sd",
        title="Stable Diffusion 1.x/2.x",
        denoisers=_UNETS,
        config={"encoder_hid_dim_type": _NO_PROJECTION, "addition_embed_type": (None,)},
        objective="scheduler",
        text_width="cross_attention_dim",
    ),
    Family(
        name="sdxl",
        title="Stable Diffusion XL",
        denoisers=_UNETS,
        config={"encoder_hid_dim_type": _NO_PROJECTION, "addition_embed_type": ("text_time",)},
        objective="scheduler",
        text_width="cross_attention_dim",
        pooled_width="projection_class_embeddings_input_dim",
    ),
    Family(
        name="pixart",
        title="PixArt-alpha/Sigma",
        denoisers=("PixArtTransformer2DModel",),
        objective="scheduler",
        text_width="caption_channels",
        text_channel="projected",
        carrier="encoder_attention_mask",
        text_projections=("caption_projection",),
    ),
    Family(
        name="latte",
        title="Latte",
        denoisers=("LatteTransformer3DModel",),
        objective=None,
        text_width="caption_channels",
        text_channel="projected",
        text_projections=("caption_projection",),
    ),
    Family(
        name="sana",
        title="Sana",
        denoisers=("SanaTransformer2DModel",),
        config={"guidance_embeds": (None, False)},
        objective="flow",
        text_width="caption_channels",
        text_channel="projected",
        carrier="encoder_attention_mask",
        text_projections=("caption_projection", "caption_norm"),
        side_divisor_px=32,
    ),
    Family(
        name="sana-sprint",
        title="Sana-Sprint",
        denoisers=("SanaTransformer2DModel",),
        config={"guidance_embeds": (True,)},
        objective=None,
        text_width="caption_channels",
        text_channel="projected",
        carrier="encoder_attention_mask",
        text_projections=("caption_projection", "caption_norm"),
        side_divisor_px=32,
    ),
    Family(
        name="sana-video",
        title="Sana-Video",
        denoisers=("SanaVideoTransformer3DModel",),
        objective=None,
        text_width="caption_channels",
        text_channel="projected",
        carrier="encoder_attention_mask",
        text_projections=("caption_projection", "caption_norm"),
        side_divisor_px=32,
    ),
    Family(
        name="wan",
        title="Wan",
        denoisers=("WanTransformer3DModel",),
        config={"added_kv_proj_dim": (None,)},
        objective=None,
        text_width="text_dim",
        text_channel="projected",
        text_projections=("condition_embedder.text_embedder",),
        side_divisor_px=16,
    ),
    Family(
        name="ltx",
        title="LTX-Video",
        denoisers=("LTXVideoTransformer3DModel",),
        objective=None,
        text_width="caption_channels",
        text_channel="projected",
        carrier="encoder_attention_mask",
        text_projections=("caption_projection",),
        branches=("transformer_blocks.*.attn2",),
        side_divisor_px=32,
    ),
    Family(
        name="sd3",
        title="Stable Diffusion 3",
        denoisers=("SD3Transformer2DModel",),
        objective="flow",
        text_width="joint_attention_dim",
        pooled_width="pooled_projection_dim",
        text_channel="joint",
        carrier="joint_attention_kwargs",
        text_projections=("context_embedder",),
        text_first=False,
        side_divisor_px=1,
        latent_patch="patch_size",
    ),
    Family(
        name="flux",
        title="Flux",
        denoisers=("FluxTransformer2DModel",),
        objective="flow",
        text_width="joint_attention_dim",
        pooled_width="pooled_projection_dim",
        text_channel="joint",
        carrier="joint_attention_kwargs",
        text_projections=("context_embedder",),
        single_stream=("single_transformer_blocks.*.attn",),
        side_divisor_px=1,
        latent_patch=2,
    ),
    Family(
        name="auraflow",
        title="AuraFlow",
        denoisers=("AuraFlowTransformer2DModel",),
        objective=None,
        text_width="joint_attention_dim",
        text_channel="joint",
        text_projections=("context_embedder",),
        single_stream=("single_transformer_blocks.*.attn",),
        base_reads_padding=True,
        latent_patch="patch_size",
    ),
    Family(
        name="cogview4",
        title="CogView4",
        denoisers=("CogView4Transformer2DModel",),
        objective=None,
        text_width="text_embed_dim",
        text_channel="joint",
        carrier="attention_kwargs",
        text_projections=("patch_embed.text_proj",),
        branches=("transformer_blocks.*.attn1",),
        latent_patch="patch_size",
    ),
    Family(
        name="qwen-image",
        title="Qwen-Image",
        denoisers=("QwenImageTransformer2DModel",),
        objective=None,
        text_width="joint_attention_dim",
        text_channel="joint",
        carrier="attention_kwargs",
        text_projections=("txt_norm", "txt_in"),
        mixing="prediction",
        side_divisor_px=1,
        latent_patch=2,
    ),
    Family(
        name="flux2",
        title="FLUX.2",
        denoisers=("Flux2Transformer2DModel",),
        objective=None,
        text_width="joint_attention_dim",
        text_channel="joint",
        carrier="joint_attention_kwargs",
        text_projections=("context_embedder",),
        single_stream=("single_transformer_blocks.*.attn",),
        side_divisor_px=1,
        latent_patch=2,
    ),
    Family(
        name="hunyuan-image",
        title="HunyuanImage 2.1",
        denoisers=("HunyuanImageTransformer2DModel",),
        objective=None,
        text_width="text_embed_dim",
        text_channel="joint",
        text_projections=("context_embedder.proj_in",),
        text_first=False,
        mixing="prediction",
        side_divisor_px=1,
    ),
    Family(
        name="lumina2",
        title="Lumina-Image 2",
        denoisers=("Lumina2Transformer2DModel",),
        objective=None,
        text_width="cap_feat_dim",
        text_channel="joint",
        text_projections=("time_caption_embed.caption_embedder",),
        branches=("layers.*.attn",),
        single_stream=("layers.*.attn",),
        mixing="prediction",
        side_divisor_px=1,
        latent_patch="patch_size",
    ),
    Family(
        name="z-image",
        title="Z-Image",
        denoisers=("ZImageTransformer2DModel",),
        objective=None,
        text_width="cap_feat_dim",
        text_channel="joint",
        text_argument="cap_feats",
        text_projections=("cap_embedder",),
        branches=("layers.*.attention",),
        single_stream=("layers.*.attention",),
        text_first=False,
        text_rows_multiple=32,
        mixing="prediction",
        ragged=True,
        side_divisor_px=1,
        latent_patch=2,
    ),
)
