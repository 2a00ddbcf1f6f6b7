"""What an LLM has to show when it is loaded: read alike alone, batched and continued, whatever its class is."""

import copy
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from llmdiff.errors import CorruptWeightsError, UnsupportedLLMError
from llmdiff.language import DecoderLLM, Lone, run_blocks

from .conftest import PROMPTS, tiny_config, tiny_llm, tiny_model, tiny_tokenizer
from .test_blocks import LONES, full_ids, kept_places, padded_left, real
from .truth import assert_relative, lone_updates, own_updates
from .tiny_configs import causal_configs, tiny_config_of, tiny_model_of

TEMPLATE = "{prompt}\nAgain: {prompt}"
TOLERANCE = 2e-5
EVERY_LONE = frozenset({"token", "token+bos"})
# One of every way in which a class cannot be read block by block.
REPRESENTATIVES = (
    "BeamConfig",
    "BertGenerationConfig",
    "BltConfig",
    "CpmAntConfig",
    "DeepseekV32Config",
    "GitConfig",
    "GlmMoeDsaConfig",
    "HYV4Config",
    "InklingTextConfig",
    "Lfm2Config",
    "Lfm2MoeConfig",
    "Lfm3Config",
    "Llama4TextConfig",
    "MiniMaxConfig",
    "OpenAIGPTConfig",
    "ProphetNetConfig",
    "XLNetConfig",
)
# And of classes that have no line in the table of kinds and are read all the same.
UNLISTED = (
    "CTRLConfig",
    "CodeGenConfig",
    "DeepseekV3Config",
    "GPTNeoConfig",
    "GptOssConfig",
    "StableLmConfig",
    "XGLMConfig",
)


def outcome(model: Any, name: str) -> str:
    """How a model is read: "refused", or "exact" after a comparison with the model's own pass and explicit masks."""
    try:
        llm = DecoderLLM(model, tiny_tokenizer(), id=name)
    except UnsupportedLLMError as error:
        message = str(error)
    else:
        check_exact(llm)
        return "exact"
    assert name in message
    assert "\n" not in message
    return "refused"


def check_exact(llm: DecoderLLM) -> None:
    """Compare every prompt's updates with the model's own pass and an independent computation of tokens alone.

    Prompts are read in a batch, padded on either side, behind a template, and in many calls.
    """
    for template in (None, TEMPLATE):
        tokens = llm.tokenize(PROMPTS, template=template)
        for lone in LONES:
            batch = llm.block_updates(PROMPTS, lone=lone, template=template)
            left: list[Tensor] = []
            run_blocks(llm, padded_left(tokens), lone=lone, visit=lambda _, x, u, v, to=left: to.append(v))
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("llmdiff.language.lone_calls._MAX_TOKENS", 0)
                separate = llm.block_updates(PROMPTS, lone=lone, template=template)
            for row in range(len(PROMPTS)):
                ids, places = full_ids(tokens, row), kept_places(tokens, row)
                expected = lone_updates(llm, ids, lone)[:, places]
                for states in (batch, separate):
                    found = real(states, row)
                    assert_relative(found.context, own_updates(llm, ids)[1][:, places], TOLERANCE)
                    assert_relative(found.lone, expected, TOLERANCE)
                assert_relative(torch.stack(left)[:, row, -len(places) :], expected, TOLERANCE)


def test_every_kind_may_join_its_calls_in_every_precision(any_llm: DecoderLLM) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        llm = DecoderLLM(copy.deepcopy(any_llm.model).to(dtype), any_llm.tokenizer, id="half")
        assert llm.reading.joined == EVERY_LONE


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
    assert "causal attention" in str(caught.value)
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
@pytest.mark.parametrize("name", ["Llama4TextConfig", "Lfm2Config", "HYV4Config", "ProphetNetConfig"])
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
    assert outcome(model, name) == "refused"


@pytest.mark.parametrize("name", UNLISTED)
def test_unlisted_classes_are_read_exactly(name: str) -> None:
    assert outcome(tiny_model_of(tiny_config_of(getattr(transformers, name))), name) == "exact"


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
@pytest.mark.timeout(1800)
def test_every_causal_language_model_is_read_exactly_or_refused(capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[tuple[str, str]] = []
    for kind in causal_configs():
        try:
            model = tiny_model_of(tiny_config_of(kind))
            with torch.no_grad():
                model.base_model(torch.tensor([[0, 5, 6, 7]]), use_cache=False)
        except Exception as error:  # a configuration whose values do not go together
            rows.append(("no tiny model", f"{kind.__name__}: {type(error).__name__}"))
            continue
        try:
            rows.append((outcome(model, kind.__name__), kind.__name__))
        except Exception as error:
            rows.append(("wrong", f"{kind.__name__}: {type(error).__name__}: {error}"))
    counts = Counter(result for result, _ in rows)
    with capsys.disabled():
        for result in sorted(counts):
            print(
                f"\n{counts[result]} {result}: {', '.join(name for found, name in rows if found == result)}"
            )
    assert not [name for result, name in rows if result == "wrong"]
    assert counts["exact"] + counts["refused"] > 150


@pytest.mark.hostile("llm kinds")
def test_a_model_without_a_base_model_is_refused_though_its_blocks_are_all_alike() -> None:
    config = transformers.Llama4TextConfig(
        vocab_size=320, hidden_size=64, intermediate_size=64, intermediate_size_mlp=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, num_local_experts=2,
    )  # fmt: skip
    model = transformers.Llama4ForCausalLM(config).eval()
    with pytest.raises(UnsupportedLLMError, match="no base model apart from the one with the head"):
        DecoderLLM(model, tiny_tokenizer(), id="llama4")
