"""The pack inside ComfyUI: the same numbers as the library, from the U-Net's weights to the samples."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llmdiff import LLMController
from llmdiff.adapter import LLMDiffAdapter, install, layers
from llmdiff.errors import (
    AdapterMismatchError,
    AttachError,
    ConfigError,
    CorruptWeightsError,
    InputFileError,
    NonFinitePictureError,
    PromptError,
    UnsupportedPipelineError,
)
from llmdiff.language.digests import adapter_digest
from llmdiff.language.saved_encodings import SavedEncodings
from tests.llmdiff.adapter.conftest import build_adapter

NO_GAINS: dict[str, float] = {}
PLAIN: dict[str, Any] = {
    "scale": 1.0,
    "keep_base_text": False,
    "start_percent": 0.0,
    "end_percent": 1.0,
    "gains": NO_GAINS,
}


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.no_grad():
        yield


@pytest.fixture
def parts(comfy: Any, sized_pipe: Any, tiny_llm: Any, tmp_path: Path) -> Any:
    """A base in ComfyUI, the same pipeline in diffusers, and an adapter for both."""
    sized_pipe.save_pretrained(tmp_path / "base")
    adapter = build_adapter(sized_pipe, tiny_llm)
    adapter.save_pretrained(tmp_path / "adapter")
    model, vae, latent = comfy.base.load_base(str(tmp_path / "base"))
    source = comfy.encoding.LLMSource(tiny_llm.id, torch.float32, tiny_llm)
    loaded = comfy.encoding.load_adapter(str(tmp_path / "adapter"))
    return model, vae, latent, sized_pipe, source, loaded


def applied(comfy: Any, model: Any, loaded: Any, **settings: Any) -> Any:
    return comfy.model.apply_adapter(model, loaded.adapter, loaded.digest, **{**PLAIN, **settings})


def conditioning(comfy: Any, parts: Any, text: str, **more: Any) -> Any:
    *_, source, loaded = parts
    return comfy.encoding.encode(source, loaded, text, weighted=False, strict=True, **more)


def vector(pipe: Any, count: int) -> Any:
    if pipe.unet.config.addition_embed_type is None:
        return None
    width = pipe.unet.config.projection_class_embeddings_input_dim - 6 * 256
    return torch.randn(count, width, generator=torch.Generator().manual_seed(4))


def label(pooled: Any) -> Any:
    """ComfyUI's vector for a picture of 64 x 64 pixels: pooled text, then six numbers in 256 sinusoids each."""
    from diffusers.models.embeddings import get_timestep_embedding

    sizes = torch.tensor([64, 64, 0, 0, 64, 64] * len(pooled), dtype=torch.float32)
    embedded = get_timestep_embedding(sizes, 256, flip_sin_to_cos=True, downscale_freq_shift=0)
    return torch.cat([pooled, embedded.reshape(len(pooled), -1)], dim=1)


def from_comfy(model: Any, noise: Tensor, states: Tensor, pooled: Any) -> Tensor:
    more = {} if pooled is None else {"y": label(pooled)}
    options = copy.deepcopy(model.model_options["transformer_options"]) | {"sigmas": torch.ones(1)}
    step = torch.full((len(noise),), 500.0)
    result: Tensor = model.model.diffusion_model(
        noise, step, context=states, transformer_options=options, **more
    )
    return result


def from_diffusers(pipe: Any, noise: Tensor, states: Tensor, pooled: Any) -> Tensor:
    more = {}
    if pooled is not None:
        ids = torch.tensor([[64.0, 64, 0, 0, 64, 64]] * len(noise))
        more["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": ids}
    result: Tensor = pipe.unet(noise, 500, encoder_hidden_states=states, **more).sample
    return result


def test_the_unet_predicts_what_that_of_diffusers_does(parts: Any) -> None:
    model, _, _, pipe, _, _ = parts
    noise, states, pooled = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 24), vector(parts[3], 2)
    ours, theirs = from_comfy(model, noise, states, pooled), from_diffusers(pipe, noise, states, pooled)
    assert (ours - theirs).abs().max() < 1e-4


@pytest.mark.parametrize(
    "settings", [{}, {"scale": 0.5}, {"keep_base_text": True}, {"scale": 0.5, "keep_base_text": True}]
)
def test_every_attached_layer_returns_what_the_library_does(
    comfy: Any, parts: Any, settings: dict[str, Any]
) -> None:
    model, _, _, pipe, _, loaded = parts
    patched = applied(comfy, model, loaded, **settings)
    places = comfy.model.check_model(model.model.diffusion_model, loaded.adapter)
    ours: dict[Any, Tensor] = {}
    theirs: dict[str, Tensor] = {}

    def keep(output: Tensor, extra: Any) -> Tensor:
        ours[(*extra["block"], extra["block_index"])] = output
        return output

    patched.set_model_attn2_output_patch(keep)
    base = [[torch.randn(1, 9, 24), {}]]
    states = torch.cat(
        [
            conditioning(comfy, parts, "a red cat on a car", base=base)[0][0],
            conditioning(comfy, parts, "a dog", base=base)[0][0],
        ]
    )
    noise, pooled = torch.randn(2, 4, 8, 8), vector(pipe, 2)
    from_comfy(patched, noise, states, pooled)
    with install(pipe.unet, loaded.adapter, **settings):
        for name, attn in layers.text_layers(pipe.unet).items():
            attn.register_forward_hook(lambda *call, name=name: theirs.update({name: call[2]}))
        from_diffusers(pipe, noise, states, pooled)
    assert places.keys() == theirs.keys()
    for name, place in places.items():
        assert (ours[place] - theirs[name]).abs().max() < 1e-4, name


def draw(
    comfy: Any, patched: Any, latent: Any, positive: Any, negative: Any, *, cfg: float = 4.0, seed: int = 5
) -> Tensor:
    empty = latent["samples"]
    noise = comfy.sample.prepare_noise(empty, seed)
    result: Tensor = comfy.sample.sample(
        patched,
        noise,
        4,
        cfg,
        "euler",
        "sgm_uniform",
        positive,
        negative,
        empty,
        seed=seed,
        disable_pbar=True,
    )
    return result


def test_prompts_of_different_lengths_are_drawn_as_alone(comfy: Any, parts: Any) -> None:
    model, _, latent, _, _, loaded = parts
    patched = applied(comfy, model, loaded)
    positive, negative = (
        conditioning(comfy, parts, "a red cat on car"),
        conditioning(comfy, parts, "a dog on"),
    )
    # ComfyUI repeats both to 12 tokens and computes them in one batch.
    assert [encoded[0][0].shape[1] for encoded in (positive, negative)] == [6, 4]
    together = draw(comfy, patched, latent, positive, negative)
    # A strength of its own keeps ComfyUI from batching the two.
    apart = [[negative[0][0], {**negative[0][1], "strength": 1.0, "area": (8, 8, 0, 0)}]]
    assert (together - draw(comfy, patched, latent, positive, apart)).abs().max() < 1e-3
    other = conditioning(comfy, parts, "a blue apple")
    assert (together - draw(comfy, patched, latent, other, negative)).abs().max() > 1e-2


def test_the_model_itself_stays_as_it_was(comfy: Any, parts: Any) -> None:
    model, _, latent, _, _, loaded = parts
    plain = [[torch.randn(1, 5, 24), {"pooled_output": torch.zeros(1, 20)}]]
    before = draw(comfy, model, latent, plain, plain)
    positive = conditioning(comfy, parts, "a cat")
    draw(comfy, applied(comfy, model, loaded), latent, positive, positive)
    assert torch.equal(draw(comfy, model, latent, plain, plain), before)


def test_a_lora_after_the_adapter_acts_and_the_adapter_stays(comfy: Any, parts: Any) -> None:
    model, _, latent, _, _, loaded = parts
    patched = applied(comfy, model, loaded)
    positive, negative = conditioning(comfy, parts, "a red cat"), conditioning(comfy, parts, "")
    before = draw(comfy, patched, latent, positive, negative)
    name = next(name for name in loaded.adapter.config.cross_attention if name.startswith("up"))
    row = loaded.adapter.config.cross_attention[name]
    key = f"lora_unet_{name.replace('.', '_')}_to_out_0"
    lora = {
        f"{key}.lora_up.weight": torch.randn(row["out_dim"], 4),
        f"{key}.lora_down.weight": torch.randn(4, row["inner_dim"]),
        f"{key}.alpha": torch.tensor(4.0),
    }
    with_lora, _ = comfy.sd.load_lora_for_models(patched, None, lora, 1.0, 0.0)
    assert (draw(comfy, with_lora, latent, positive, negative) - before).abs().max() > 1e-2
    assert (draw(comfy, with_lora, latent, positive, negative, cfg=1.0)).isfinite().all()
    other = conditioning(comfy, parts, "a blue dog")
    changed = draw(comfy, with_lora, latent, other, negative) - draw(
        comfy, with_lora, latent, positive, negative
    )
    assert changed.abs().max() > 1e-2


def test_patches_of_other_packs_see_text_of_the_models_width(comfy: Any, parts: Any) -> None:
    model, _, latent, _, _, loaded = parts
    widths = set()

    def theirs(image: Tensor, context: Tensor, value: Tensor, extra: Any) -> tuple[Tensor, Tensor, Tensor]:
        widths.add(context.shape[-1])
        return image, context, value * 2

    positive = conditioning(comfy, parts, "a red cat")
    plain = draw(comfy, applied(comfy, model, loaded), latent, positive, positive)
    early = model.clone()
    early.set_model_attn2_patch(theirs)
    late = applied(comfy, model, loaded)
    late.set_model_attn2_patch(theirs)
    both = [draw(comfy, made, latent, positive, positive) for made in (applied(comfy, early, loaded), late)]
    assert widths == {24}
    assert torch.equal(*both)
    assert (both[0] - plain).abs().max() > 1e-2


def test_a_linked_model_is_found_and_one_outside_is_not(comfy: Any, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "config.json").write_text("{}")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "linked").symlink_to(tmp_path / "elsewhere")
    comfy.folder_paths.add_model_folder_path(comfy.folders.ADAPTERS, str(tmp_path / "models"))
    assert comfy.folders.adapter_names() == ["openmoji", "linked"]
    assert comfy.folders.located(comfy.folders.ADAPTERS, "linked").endswith("linked")
    for name in ("../elsewhere", str(tmp_path / "elsewhere"), "gone"):
        with pytest.raises(InputFileError, match="is in none of"):
            comfy.folders.located(comfy.folders.ADAPTERS, name)


def test_saved_encodings_draw_the_same(comfy: Any, parts: Any, tmp_path: Path) -> None:
    model, _, latent, _, _, loaded = parts
    comfy.folder_paths.set_output_directory(str(tmp_path / "output"))
    positive, negative = conditioning(comfy, parts, "a red cat"), conditioning(comfy, parts, "")
    path = comfy.folders.save_encoding(positive, "cats/red")
    assert comfy.folders.encoding_names() == ["cats/red.safetensors"]
    again = comfy.folders.load_encoding("cats/red.safetensors", loaded)
    patched = applied(comfy, model, loaded)
    assert torch.equal(
        draw(comfy, patched, latent, again, negative), draw(comfy, patched, latent, positive, negative)
    )
    other = copy.deepcopy(loaded.adapter)
    other.phi.weight[0, 0] += 1
    with pytest.raises(AdapterMismatchError, match="another adapter"):
        comfy.folders.load_encoding(
            "cats/red.safetensors", comfy.encoding.LoadedAdapter(other, adapter_digest(other))
        )
    with pytest.raises(PromptError, match="inside the folder"):
        comfy.folders.save_encoding(positive, "../outside")
    with pytest.raises(AttachError, match="'area'"):
        comfy.folders.save_encoding([[positive[0][0], {**positive[0][1], "area": (1, 1, 0, 0)}]], "x")
    with pytest.raises(AttachError, match="another node has changed"):
        comfy.folders.save_encoding([[positive[0][0] * 2, positive[0][1]]], "x")
    with pytest.raises(AttachError, match="not one encoding"):
        comfy.folders.save_encoding(again, "x")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CorruptWeightsError, match="is damaged"):
        comfy.folders.load_encoding("cats/red.safetensors", loaded)
    with pytest.raises(InputFileError, match="does not exist"):
        comfy.folders.load_encoding("gone.safetensors", loaded)


def test_files_are_those_of_the_library(comfy: Any, parts: Any, tmp_path: Path) -> None:
    *_, source, loaded = parts
    comfy.folder_paths.set_output_directory(str(tmp_path / "output"))
    controller = LLMController(source.get(), loaded.adapter)
    prompt = "a red cat"
    name = controller.encode(prompt).save(tmp_path / "output" / comfy.folders.ENCODINGS)[0].name
    theirs, ours = comfy.folders.load_encoding(name, loaded), conditioning(comfy, parts, prompt)
    torch.testing.assert_close(theirs[0][0], ours[0][0])
    assert set(theirs[0][1]) == set(ours[0][1]) - {comfy.encoding.ENCODED_KEY}
    path = comfy.folders.save_encoding(conditioning(comfy, parts, "two dog"), "dogs")
    torch.testing.assert_close(
        SavedEncodings.load(path).encode(["two dog"]).states, controller.encode("two dog").states
    )


def test_base_text_is_saved_beside_the_encoding(comfy: Any, parts: Any, tmp_path: Path) -> None:
    _, _, _, pipe, _, loaded = parts
    comfy.folder_paths.set_output_directory(str(tmp_path / "output"))
    pooled = vector(pipe, 1)
    base = [
        [
            torch.randn(1, 9, loaded.adapter.phi.out_features),
            {} if pooled is None else {"pooled_output": pooled},
        ]
    ]
    mixed = conditioning(comfy, parts, "a red cat", base=base)
    comfy.folders.save_encoding(mixed, "mixed")
    again = comfy.folders.load_encoding("mixed.safetensors", loaded)
    torch.testing.assert_close(again[0][0], mixed[0][0])
    assert all(torch.equal(again[0][1][key], mixed[0][1][key]) for key in again[0][1] if "pooled" in key)


def test_a_prompt_is_encoded_once(comfy: Any, parts: Any) -> None:
    *_, source, loaded = parts
    first = conditioning(comfy, parts, "a green apple on the left")
    unloaded = comfy.encoding.LLMSource(source.name, torch.float32)  # would look for a file of that name
    again = comfy.encoding.encode(unloaded, loaded, "a green apple on the left", weighted=False, strict=True)
    assert again[0][0] is first[0][0]


def test_models_and_conditionings_that_do_not_match_are_named(comfy: Any, parts: Any) -> None:
    model, _, latent, _, _, loaded = parts
    patched, positive = applied(comfy, model, loaded), conditioning(comfy, parts, "a cat")
    plain = [[torch.randn(1, 5, 24), {"pooled_output": torch.zeros(1, 20)}]]
    with pytest.raises(AttachError, match="no conditioning is from LLMDiff Encode"):
        draw(comfy, patched, latent, plain, plain)
    foreign = [[positive[0][0], {**positive[0][1], comfy.model.ADAPTER_KEY: "0" * 64}]]
    with pytest.raises(AttachError, match="another adapter"):
        draw(comfy, patched, latent, foreign, positive)
    with pytest.raises(AttachError, match="has an LLMDiff adapter already"):
        applied(comfy, patched, loaded)
    with pytest.raises(ConfigError, match="input base of LLMDiff Encode"):
        draw(comfy, applied(comfy, model, loaded, scale=0.5), latent, positive, positive)
    with pytest.raises(ConfigError, match="expected start below end"):
        applied(comfy, model, loaded, start_percent=0.5, end_percent=0.5)
    with pytest.raises(AttachError, match="CLIP Text Encode of the same checkpoint"):
        conditioning(comfy, parts, "a cat", base=[[torch.randn(1, 5, 23), {}]])


def test_an_adapter_for_another_unet_is_refused(comfy: Any, parts: Any, pipe: Any, tiny_llm: Any) -> None:
    model, *_, loaded = parts
    with pytest.raises(AdapterMismatchError, match="the adapter was made for"):
        comfy.model.check_model(model.model.diffusion_model, build_adapter(pipe, tiny_llm))
    with pytest.raises(UnsupportedPipelineError, match="expected a U-Net"):
        comfy.model.check_model(torch.nn.Linear(1, 1), loaded.adapter)


def test_another_llm_is_refused(comfy: Any, parts: Any, make_llm: Any) -> None:
    *_, loaded = parts
    other = comfy.encoding.LLMSource("other", torch.float32, make_llm(id="other"))
    with pytest.raises(AdapterMismatchError, match="strict=False"):
        comfy.encoding.encode(other, loaded, "a cat", weighted=False, strict=True)


def test_a_block_that_another_pack_replaces_later_is_named(comfy: Any, parts: Any) -> None:
    model, _, latent, _, _, loaded = parts
    positive = conditioning(comfy, parts, "a cat")
    patched = applied(comfy, model, loaded)

    def theirs(query: Tensor, key: Tensor, value: Tensor, extra: Any) -> Tensor:
        from comfy.ldm.modules.attention import optimized_attention

        result: Tensor = optimized_attention(query, key, value, extra["n_heads"])
        return result * 2

    side, block, _ = next(iter(comfy.model.check_model(model.model.diffusion_model, loaded.adapter).values()))
    late = patched.clone()
    late.set_model_attn2_replace(theirs, side, block)
    with pytest.raises(AttachError, match="put Apply LLMDiff after that node"):
        draw(comfy, late, latent, positive, positive)
    early = model.clone()
    early.set_model_attn2_replace(theirs, side, block)
    both = draw(comfy, applied(comfy, early, loaded), latent, positive, positive)
    assert (both - draw(comfy, patched, latent, positive, positive)).abs().max() > 1e-3


def test_samples_that_are_not_finite_are_named(comfy: Any, parts: Any) -> None:
    model, _, latent, _, _, loaded = parts
    broken = copy.deepcopy(loaded.adapter)
    next(iter(broken.branches.values())).to_out.weight.fill_(float("inf"))
    patched = comfy.model.apply_adapter(model, broken, loaded.digest, **PLAIN)
    positive = conditioning(comfy, parts, "a cat")
    with pytest.raises(NonFinitePictureError, match="--force-fp32"):
        draw(comfy, patched, latent, positive, positive)


def test_a_half_precision_model_gets_branches_of_its_kind(comfy: Any, parts: Any) -> None:
    model, _, latent, _, _, loaded = parts
    positive, negative = conditioning(comfy, parts, "a red cat"), conditioning(comfy, parts, "")
    full = draw(comfy, applied(comfy, model, loaded), latent, positive, negative)
    model.model.diffusion_model.to(torch.bfloat16)
    model.model.diffusion_model.dtype = torch.bfloat16
    patched = applied(comfy, model, loaded)
    half = draw(comfy, patched, latent, positive, negative)
    assert {weight.dtype for weight in patched.get_additional_models()[0].model.parameters()} == {
        torch.bfloat16
    }
    assert (half - full).abs().mean() < 0.1 * full.abs().mean()


def test_the_embedded_default_draws_the_librarys_picture(comfy: Any) -> None:
    controller = LLMController.from_pretrained("openmoji")
    pipe = controller.load_pipeline()
    pipe.set_progress_bar_config(disable=True)
    prompt, steps = "a red car to the left of a green tree", 10
    with controller.attached(pipe):
        latents = pipe(
            prompt,
            negative_prompt="",
            num_inference_steps=steps,
            guidance_scale=3.0,
            generator=torch.Generator().manual_seed(7),
            output_type="latent",
        ).images
    loaded = comfy.encoding.load_adapter("openmoji")
    source = comfy.encoding.llm_source("smollm2-135m", "float32")
    model, _, latent = comfy.base.load_base("openmoji")
    patched = applied(comfy, model, loaded)
    positive, negative = (
        comfy.encoding.encode(source, loaded, text, weighted=False, strict=True) for text in (prompt, "")
    )
    sampling = patched.get_model_object("model_sampling")
    times = torch.arange(999, 0, -100)
    sigmas = torch.cat([sampling.sigma(times), torch.zeros(1)])
    empty = latent["samples"]
    noise = comfy.sample.prepare_noise(empty, 7)
    samples = comfy.sample.sample_custom(
        patched,
        noise,
        3.0,
        comfy.samplers.sampler_object("euler"),
        sigmas,
        positive,
        negative,
        empty,
        disable_pbar=True,
        seed=7,
    )
    assert (samples * pipe.vae.config.scaling_factor - latents).abs().max() < 1e-3 * latents.abs().max()


def test_adapters_of_other_families_are_named(comfy: Any, parts: Any, tiny_llm: Any) -> None:
    from tiny.families import BUILDERS

    model = parts[0]
    adapter: LLMDiffAdapter = build_adapter(BUILDERS["sd3"](), tiny_llm)
    with pytest.raises(UnsupportedPipelineError, match="the adapter is for the family 'sd3'"):
        comfy.model.check_model(model.model.diffusion_model, adapter)


RELEASED: dict[str, dict[str, Any]] = {
    "SD15": {"cross_attention_dim": 768, "attention_head_dim": 8},
    "SD20": {
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    },
    "SDXL": {
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
        "use_linear_projection": True,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}


@pytest.mark.parametrize("name", RELEASED)
def test_a_unet_of_a_released_models_size_takes_its_adapter(comfy: Any, name: str) -> None:
    """Without memory for weights: the sizes that ComfyUI itself detects, and every layer's place in them."""
    from comfy import model_detection, supported_models
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    from diffusers import UNet2DConditionModel

    from comfyui.names import comfy_config, comfy_state_dict

    with torch.device("meta"):
        theirs = UNet2DConditionModel(**RELEASED[name])
        unet = UNetModel(**comfy_config(theirs.config), device="meta")
        adapter = LLMDiffAdapter(
            llm_id="an-llm",
            num_blocks=4,
            hidden_size=64,
            family="sdxl" if name == "SDXL" else "sd",
            base_model_id="released",
            text_width=theirs.config.cross_attention_dim,
            pooled_width=1280 if name == "SDXL" else None,
            cross_attention=layers.layer_table(theirs),
        )
    weights = unet.state_dict()
    renamed = comfy_state_dict(weights, theirs.state_dict())
    assert {key: weight.shape for key, weight in renamed.items()} == {
        key: weight.shape for key, weight in weights.items()
    }
    detected = model_detection.detect_unet_config(weights, "")
    assert getattr(supported_models, name).matches(detected)
    places = comfy.model.check_model(unet, adapter)
    assert places.keys() == layers.text_layers(theirs).keys()
    assert len(set(places.values())) == len(places) == {"SD15": 16, "SD20": 16, "SDXL": 70}[name]
