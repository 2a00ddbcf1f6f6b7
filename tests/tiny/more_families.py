"""Tiny random pipelines of the families whose own text encoders are LLMs, and of those for videos."""

from typing import Any

import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    AutoencoderKLFlux2,
    AutoencoderKLHunyuanImage,
    AutoencoderKLLTXVideo,
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
    CogView4Pipeline,
    CogView4Transformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    HunyuanImagePipeline,
    HunyuanImageTransformer2DModel,
    LattePipeline,
    LatteTransformer3DModel,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaVideoPipeline,
    SanaVideoTransformer3DModel,
    SCMScheduler,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from diffusers.guiders import AdaptiveProjectedMixGuidance
from tokenizers.processors import TemplateProcessing
from transformers import (
    ByT5Tokenizer,
    Gemma2Config,
    Gemma2Model,
    GlmConfig,
    GlmModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
)

from tiny.pipelines import WORDS, scheduler, tiny_vae, word_tokenizer

_SMALL: dict[str, Any] = {
    "vocab_size": len(WORDS),
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 12,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LATENTS: dict[str, Any] = {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
_CHAT = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def _bos_tokenizer() -> Any:
    """A tokenizer that begins every text with a token, so that none is empty."""
    tokenizer = word_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", WORDS.index("<s>"))]
    )
    return tokenizer


def _chat_tokenizer() -> Any:
    tokenizer = _bos_tokenizer()
    tokenizer.chat_template = _CHAT
    return tokenizer


def _t5(width: int = 24) -> Any:
    return T5EncoderModel(
        T5Config(vocab_size=len(WORDS), d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    ).eval()


def _qwen_vl() -> Any:
    text = {
        **_SMALL,
        "num_hidden_layers": 3,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 2, 2]},
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 24}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision)).eval()


def _qwen_vae() -> Any:
    return AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    ).eval()


def build_latte() -> LattePipeline:
    torch.manual_seed(8)
    transformer = LatteTransformer3DModel(
        sample_size=8,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        caption_channels=24,
        in_channels=4,
        out_channels=8,
        cross_attention_dim=24,
        attention_bias=True,
        activation_fn="gelu-approximate",
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        num_embeds_ada_norm=1000,
        video_length=1,
    )
    return _quiet(
        LattePipeline(
            transformer=transformer.eval(),
            vae=tiny_vae(),
            text_encoder=_t5(),
            tokenizer=_bos_tokenizer(),
            scheduler=scheduler(),
        )
    )


def build_sana_sprint() -> Any:
    from diffusers import SanaSprintPipeline, SanaTransformer2DModel

    from tiny.families import build_sana

    sana = build_sana()
    torch.manual_seed(9)
    config = {key: value for key, value in sana.transformer.config.items() if not key.startswith("_")}
    transformer = SanaTransformer2DModel(**{**config, "guidance_embeds": True}).eval()
    parts = {**sana.components, "transformer": transformer, "scheduler": SCMScheduler()}
    return _quiet(SanaSprintPipeline(**parts))


def build_sana_video() -> SanaVideoPipeline:
    torch.manual_seed(10)
    transformer = SanaVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=12,
        num_cross_attention_heads=2,
        cross_attention_head_dim=12,
        cross_attention_dim=24,
        caption_channels=24,
        mlp_ratio=2.5,
        sample_size=8,
        patch_size=(1, 2, 2),
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )
    return _quiet(
        SanaVideoPipeline(
            transformer=transformer.eval(),
            vae=_wan_vae(),
            text_encoder=Gemma2Model(Gemma2Config(**_SMALL, num_hidden_layers=1)).eval(),
            tokenizer=_bos_tokenizer(),
            scheduler=FlowMatchEulerDiscreteScheduler(),
        )
    )


def _wan_vae() -> Any:
    return AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    ).eval()


def build_wan() -> WanPipeline:
    torch.manual_seed(11)
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=24,
        freq_dim=32,
        ffn_dim=32,
        num_layers=2,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )
    return _quiet(
        WanPipeline(
            transformer=transformer.eval(),
            vae=_wan_vae(),
            text_encoder=_t5(),
            tokenizer=_bos_tokenizer(),
            scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
        )
    )


def build_ltx() -> LTXPipeline:
    torch.manual_seed(12)
    transformer = LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        patch_size=1,
        patch_size_t=1,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        num_layers=1,
        caption_channels=24,
    )
    vae = AutoencoderKLLTXVideo(
        in_channels=3,
        out_channels=3,
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False, False, False, False, False),
        upsample_residual=(False, False, False, False),
        upsample_factor=(1, 1, 1, 1),
        timestep_conditioning=False,
        patch_size=1,
        patch_size_t=1,
        encoder_causal=True,
        decoder_causal=False,
    )
    vae.use_framewise_encoding = vae.use_framewise_decoding = False
    return _quiet(
        LTXPipeline(
            transformer=transformer.eval(),
            vae=vae.eval(),
            text_encoder=_t5(),
            tokenizer=_bos_tokenizer(),
            scheduler=FlowMatchEulerDiscreteScheduler(),
        )
    )


def build_auraflow() -> AuraFlowPipeline:
    torch.manual_seed(13)
    transformer = AuraFlowTransformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=3,
        caption_projection_dim=24,
        joint_attention_dim=24,
        out_channels=4,
        pos_embed_max_size=64,
    )
    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            if (
                "norm1" in name or "ff.out" in name or "to_out" in name
            ):  # so that the text shows in the pixels
                parameter.mul_(4)
    return _quiet(
        AuraFlowPipeline(
            transformer=transformer.eval(),
            vae=tiny_vae(),
            text_encoder=_t5(),
            tokenizer=_bos_tokenizer(),
            scheduler=FlowMatchEulerDiscreteScheduler(),
        )
    )


def build_cogview4() -> CogView4Pipeline:
    torch.manual_seed(14)
    transformer = CogView4Transformer2DModel(
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        out_channels=4,
        text_embed_dim=24,
        time_embed_dim=8,
        condition_dim=4,
    )
    return _quiet(
        CogView4Pipeline(
            transformer=transformer.eval(),
            vae=tiny_vae(),
            text_encoder=GlmModel(GlmConfig(**_SMALL, num_hidden_layers=2)).eval(),
            tokenizer=_bos_tokenizer(),
            scheduler=FlowMatchEulerDiscreteScheduler(
                base_shift=0.25, max_shift=0.75, use_dynamic_shifting=True, time_shift_type="linear"
            ),
        )
    )


def build_qwen_image() -> QwenImagePipeline:
    torch.manual_seed(15)
    transformer = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        axes_dims_rope=(8, 4, 4),
    )
    pipe = QwenImagePipeline(
        transformer=transformer.eval(),
        vae=_qwen_vae(),
        text_encoder=_qwen_vl(),
        tokenizer=_bos_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )
    # Words stand for tokens here, and the template has fewer of them than its tokenizer makes of it.
    pipe.prompt_template_encode_start_idx = 4
    return _quiet(pipe)


def build_flux2() -> Flux2KleinPipeline:
    torch.manual_seed(16)
    transformer = Flux2Transformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=72,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    vae = AutoencoderKLFlux2(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=32,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    return _quiet(
        Flux2KleinPipeline(
            transformer=transformer.eval(),
            vae=vae.eval(),
            text_encoder=Qwen3ForCausalLM(Qwen3Config(**_SMALL, num_hidden_layers=31)).eval(),
            tokenizer=_chat_tokenizer(),
            scheduler=FlowMatchEulerDiscreteScheduler(),
            is_distilled=False,
        )
    )


def build_hunyuan_image() -> HunyuanImagePipeline:
    torch.manual_seed(17)
    transformer = HunyuanImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=(1, 1),
        guidance_embeds=False,
        text_embed_dim=24,
        text_embed_2_dim=16,
        rope_axes_dim=(8, 8),
    )
    vae = AutoencoderKLHunyuanImage(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        spatial_compression_ratio=2,
        sample_size=16,
        scaling_factor=0.5,
    )
    pipe = HunyuanImagePipeline(
        transformer=transformer.eval(),
        vae=vae.eval(),
        text_encoder=_qwen_vl(),
        tokenizer=_bos_tokenizer(),
        text_encoder_2=_byt5(),
        tokenizer_2=ByT5Tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        guider=AdaptiveProjectedMixGuidance(),
    )
    pipe.tokenizer_max_length, pipe.prompt_template_encode_start_idx = 48, 4
    return _quiet(pipe)


def _byt5() -> Any:
    return T5EncoderModel(
        T5Config(vocab_size=384, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    ).eval()


def build_lumina2() -> Lumina2Pipeline:
    torch.manual_seed(18)
    transformer = Lumina2Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        hidden_size=32,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=4,
        num_kv_heads=2,
        multiple_of=16,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(128, 128, 128),
        cap_feat_dim=24,
    )
    return _quiet(
        Lumina2Pipeline(
            transformer=transformer.eval(),
            vae=tiny_vae(levels=4, shift_factor=0.06, scaling_factor=1.5),
            text_encoder=Gemma2Model(Gemma2Config(**_SMALL, num_hidden_layers=2)).eval(),
            tokenizer=_bos_tokenizer(),
            scheduler=FlowMatchEulerDiscreteScheduler(),
        )
    )


def build_z_image() -> ZImagePipeline:
    torch.manual_seed(19)
    transformer = ZImageTransformer2DModel(
        all_patch_size=(2,),
        all_f_patch_size=(1,),
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        qk_norm=True,
        cap_feat_dim=24,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )
    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            if "pad_token" in name:  # left empty by the class
                parameter.normal_()
    return _quiet(
        ZImagePipeline(
            transformer=transformer.eval(),
            vae=tiny_vae(shift_factor=0.06, scaling_factor=1.5),
            text_encoder=Qwen3ForCausalLM(Qwen3Config(**_SMALL, num_hidden_layers=2)).eval(),
            tokenizer=_chat_tokenizer(),
            scheduler=FlowMatchEulerDiscreteScheduler(),
        )
    )


def _quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


MORE_BUILDERS: dict[str, Any] = {
    "latte": build_latte,
    "sana-sprint": build_sana_sprint,
    "sana-video": build_sana_video,
    "wan": build_wan,
    "ltx": build_ltx,
    "auraflow": build_auraflow,
    "cogview4": build_cogview4,
    "qwen-image": build_qwen_image,
    "flux2": build_flux2,
    "hunyuan-image": build_hunyuan_image,
    "lumina2": build_lumina2,
    "z-image": build_z_image,
}
_SIZE = {"height": 32, "width": 32}
MORE_OPTIONS: dict[str, dict[str, Any]] = {
    "LattePipeline": {**_SIZE, "video_length": 1, "clean_caption": False},
    "SanaSprintPipeline": {
        **_SIZE,
        "use_resolution_binning": False,
        "complex_human_instruction": None,
    },
    "SanaVideoPipeline": {
        **_SIZE,
        "frames": 1,
        "use_resolution_binning": False,
        "complex_human_instruction": None,
    },
    "WanPipeline": {**_SIZE, "num_frames": 1, "max_sequence_length": 16},
    "LTXPipeline": {**_SIZE, "num_frames": 1, "max_sequence_length": 16},
    "AuraFlowPipeline": {**_SIZE, "max_sequence_length": 16},
    "CogView4Pipeline": {**_SIZE, "max_sequence_length": 16},
    "QwenImagePipeline": {"height": 16, "width": 16},
    "Flux2KleinPipeline": {"height": 16, "width": 16, "max_sequence_length": 16},
    "HunyuanImagePipeline": {"height": 16, "width": 16},
    "Lumina2Pipeline": {"height": 64, "width": 64, "max_sequence_length": 64},
    "ZImagePipeline": {**_SIZE, "max_sequence_length": 32},
}
