"""What an LLM has to show when it is loaded: read alike alone, batched and continued, whatever its class is."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from docs.written import on_page
from torch import Tensor

from docs import llm_classes_table
from llmdiff.errors import CorruptWeightsError, UnsupportedLLMError
from llmdiff.language import DecoderLLM, Lone

from .class_sweep import read, sweep
from .conftest import tiny_config, tiny_llm, tiny_model, tiny_tokenizer
from .test_blocks import full_ids, real
from .tiny_configs import causal_configs, tiny_config_of, tiny_model_of
from .truth import assert_relative, lone_updates, own_updates

EVERY_LONE = frozenset({"token", "token+bos"})
# One of every way in which a class cannot be read block by block.
REPRESENTATIVES = (
    "BltConfig",
    "CpmAntConfig",
    "DeepseekV4Config",
    "Gemma3nTextConfig",
    "HYV4Config",
    "HrmTextConfig",
    "MllamaConfig",
    "MusicgenConfig",
    "ProphetNetConfig",
    "Qwen4ExpTextConfig",
    "ReformerConfig",
    "XLNetConfig",
)
# And of classes that have no line in the table of kinds and are read all the same, in each of the three ways.
UNLISTED = (
    "BambaConfig",
    "BartConfig",
    "BertConfig",
    "CTRLConfig",
    "CodeGenConfig",
    "DeepseekV32Config",
    "DeepseekV3Config",
    "GPTNeoConfig",
    "GitConfig",
    "GptOssConfig",
    "JambaConfig",
    "Llama4TextConfig",
    "LongcatFlashConfig",
    "MambaConfig",
    "MptConfig",
    "OpenAIGPTConfig",
    "RecurrentGemmaConfig",
    "RwkvConfig",
    "StableLmConfig",
    "XGLMConfig",
    "ZambaConfig",
    "ZayaConfig",
)


def test_every_kind_is_read_in_one_way_in_every_precision(any_llm: DecoderLLM) -> None:
    assert any_llm.reading.joined == (frozenset() if any_llm.reading.whole_texts else EVERY_LONE)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        llm = DecoderLLM(copy.deepcopy(any_llm.model).to(dtype), any_llm.tokenizer, id="half")
        assert llm.reading == any_llm.reading


def test_the_check_draws_no_random_number_and_leaves_no_hook(llama: DecoderLLM) -> None:
    before = torch.get_rng_state()
    llm = DecoderLLM(llama.model, llama.tokenizer, id="again")
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in llm.model.modules())


def bidirectional(name: str) -> Any:
    """A tiny model of a causal class whose configuration lets tokens see what follows them."""
    if name == "gemma4":
        return tiny_model_of(tiny_config_of(transformers.Gemma4TextConfig, use_bidirectional_attention="all"))
    config = tiny_config(name)
    config.is_causal = False
    if name == "gemma3":
        config.use_bidirectional_attention = True
    return tiny_model(config)


@pytest.mark.hostile("llm kinds")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "mistral", "gemma3", "gemma4"])
def test_configurations_that_are_not_causal_are_refused(name: str, dtype: torch.dtype) -> None:
    model = bidirectional(name).to(dtype)
    with pytest.raises(
        UnsupportedLLMError, match=rf"{name} \({type(model).__name__}\) reads a text diff"
    ) as caught:
        DecoderLLM(model, tiny_tokenizer(), id=name)
    assert "causal blocks" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.hostile("llm kinds")
def test_a_model_of_pictures_and_texts_that_sees_its_whole_prompt_is_refused() -> None:
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.PaliGemmaConfig(
        text_config=tiny_config_of(transformers.GemmaConfig).to_dict(),
        vision_config={"model_type": "siglip_vision_model", **vision, "image_size": 28, "patch_size": 14},
        image_token_index=319,
        projection_dim=32,
    )
    model = transformers.PaliGemmaForConditionalGeneration(config).eval()
    with pytest.raises(UnsupportedLLMError, match="reads a text differently"):
        DecoderLLM(model, tiny_tokenizer(), id="paligemma")


@pytest.mark.hostile("llm kinds")
@pytest.mark.parametrize("name", ["HYV4Config", "ProphetNetConfig"])
def test_the_refusal_comes_from_loading(name: str, tmp_path: Path) -> None:
    tiny_model_of(tiny_config_of(getattr(transformers, name))).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UnsupportedLLMError, match="expected a decoder-only LLM") as caught:
        DecoderLLM.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.hostile("llm kinds")
@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "RefinedWebModel", "n_layer": 2, "n_head": 4, "hidden_size": 32},
        {
            "model_type": "falcon",
            "multi_query": False,
            "num_kv_heads": 3,
            "num_attention_heads": 4,
            "hidden_size": 32,
        },
        {"model_type": "llama", "num_attention_heads": 0},
        {"model_type": "llama", "hidden_size": "wide"},
        {"model_type": "llama", "rope_parameters": {"rope_type": "unheard-of"}},
    ],
    ids=lambda config: "-".join(map(str, config.values())),
)
def test_a_configuration_that_its_own_class_trips_over_is_refused(
    config: dict[str, Any], tmp_path: Path
) -> None:
    tiny_llm("llama").model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 320, "num_hidden_layers": 2, **config}))
    with pytest.raises((UnsupportedLLMError, CorruptWeightsError)) as caught:
        DecoderLLM.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.hostile("llm kinds")
@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_what_cannot_be_read_block_by_block_is_refused(name: str) -> None:
    model = tiny_model_of(tiny_config_of(getattr(transformers, name)))
    assert read(model, name).result == "refused"


@pytest.mark.parametrize("name", UNLISTED)
def test_unlisted_classes_are_read_exactly(name: str) -> None:
    assert read(tiny_model_of(tiny_config_of(getattr(transformers, name))), name).result == "exact"


@pytest.mark.parametrize(
    ("name", "changes", "lone_calls"),
    [
        ("FalconConfig", {"alibi": True}, "masked"),
        ("MptConfig", {"attn_config": {"alibi": False}}, "masked"),
        ("GraniteMoeHybridConfig", {"layer_types": ["attention"] * 4}, "cached"),
        ("GraniteMoeHybridConfig", {}, "sequences"),
        ("Gemma4TextConfig", {"num_kv_shared_layers": 0}, "cached"),
    ],
)
def test_the_way_is_found_by_trial_and_not_by_the_class(
    name: str, changes: dict[str, Any], lone_calls: str
) -> None:
    found = read(tiny_model_of(tiny_config_of(getattr(transformers, name), **changes)), name)
    assert (found.result, found.how) == ("exact", lone_calls)


def test_the_distance_of_bos_is_right_under_alibi() -> None:
    config = tiny_config_of(transformers.FalconConfig, alibi=True)
    # Eager attention adds the distances twice in transformers 5.23.
    llm = DecoderLLM(tiny_model(config, attention="sdpa"), tiny_tokenizer(), id="falcon")
    prompt = "two blue stars above a big dog in the snow"
    found = real(llm.block_updates(prompt, lone="token+bos"), 0)
    ids = full_ids(llm.tokenize(prompt), 0)
    inputs, context, _ = own_updates(llm, ids)
    assert_relative(found.context, context, 1e-5)
    heads = config.num_attention_heads
    for index, block in enumerate(llm.blocks):
        for place in range(1, len(ids)):
            expected = falcon_alone(block, inputs[index, 0], inputs[index, place], place, heads)
            assert_relative(found.lone[index, place], expected, 1e-5)


@torch.no_grad()
def falcon_alone(block: Any, bos: Tensor, x: Tensor, place: int, heads: int) -> Tensor:
    """What a block of Falcon's adds to a token at this place that sees itself and BOS, written out."""
    normed = block.input_layernorm(torch.stack([bos, x]))
    fused = block.self_attention.query_key_value(normed).unflatten(
        -1, (heads + 2, -1)
    )  # one key for all heads
    query, key, value = fused[1, :heads], fused[:, heads], fused[:, heads + 1]
    slopes = 2.0 ** (-8.0 / heads * torch.arange(1, heads + 1))
    biases = slopes[:, None] * torch.tensor([0.0, float(place)])
    weights = ((query @ key.T + biases) / query.shape[-1] ** 0.5).softmax(-1)
    attended = block.self_attention.dense((weights @ value).flatten())
    if block.config.parallel_attn:
        return attended + block.mlp(normed[1])
    return attended + block.mlp(block.post_attention_layernorm(x + attended))


@pytest.mark.hostile("llm kinds")
@pytest.mark.parametrize("lone", ["token", "token+bos"])
def test_lone_tokens_behind_a_window_of_the_blocks_own_still_see_bos(lone: Lone) -> None:
    config = tiny_config_of(transformers.GPTNeoConfig, window_size=16)
    llm = DecoderLLM(tiny_model_of(config), tiny_tokenizer(), id="gpt-neo")
    prompt = " ".join(["two blue stars above a big dog"] * 3)
    one = llm.block_updates(prompt, lone=lone)
    many = llm.block_updates([prompt] * 16, lone=lone)  # too many for one call with the text
    torch.testing.assert_close(many.lone[:, :1], one.lone, atol=1e-4, rtol=1e-4)
    expected = lone_updates(llm, full_ids(llm.tokenize(prompt), 0)[:12], lone)
    assert_relative(real(one, 0).lone[:, :12], expected, 1e-4)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_every_causal_language_model_is_read_as_the_table_says() -> None:
    rows = list(sweep(causal_configs()))
    assert not [row for row in rows if row.result == "wrong"]
    assert llm_classes_table.parts(rows) == {
        name: on_page(llm_classes_table.PAGE, name) for name in llm_classes_table.parts(rows)
    }, "run python tests/docs/llm_classes_table.py"


def test_the_table_of_classes_has_every_class_once() -> None:
    table = on_page(llm_classes_table.PAGE, "classes")
    if f"transformers {transformers.__version__}" not in on_page(llm_classes_table.PAGE, "counts"):
        pytest.skip("the table is of another version of transformers")
    names = [line.split("`")[1] for line in table.splitlines()[2:]]
    assert names == [kind.__name__ for kind in causal_configs()]
