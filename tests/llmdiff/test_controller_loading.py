"""What from_pretrained passes on to the LLM, what it refuses, and that a refusal leaves the pipeline alone."""

import gc
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from llmdiff import LLMController
from llmdiff.adapter import attach, is_attached
from llmdiff.drawing import models as loading
from llmdiff.errors import AdapterMismatchError, ConfigError, CorruptWeightsError, UnsupportedLLMError


@pytest.fixture
def folders(sd_pipe: Any, make_llm: Any, tmp_path: Path) -> tuple[Path, Path]:
    """An adapter and the LLM that its config names."""
    adapter, place = tmp_path / "adapter", tmp_path / "llm"
    llm = make_llm(id=str(place))
    llm.model.save_pretrained(place)
    llm.tokenizer.save_pretrained(place)
    LLMController.create(llm, sd_pipe).save_pretrained(adapter)
    return adapter, place


def refuses(tmp_path: Path, error: type[Exception], message: str, **options: Any) -> None:
    with pytest.raises(error, match=message) as caught:
        LLMController.from_pretrained(tmp_path / "adapter", **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [{"dtype": torch.bfloat16}, {"free_llm_after_encoding": True}, {"offload_llm_blocks": True}],
    ids=lambda options: next(iter(options)),
)
def test_how_the_llm_is_loaded(
    folders: tuple[Path, Path], sd_pipe: Any, draw: Any, options: dict[str, Any]
) -> None:
    usual = LLMController.from_pretrained(folders[0])
    with usual.attached(sd_pipe):
        expected = draw(sd_pipe, "a red cat")
    controller = LLMController.from_pretrained(folders[0], **options)
    llm = controller.llm
    assert llm.dtype == options.get("dtype", torch.float32)
    assert llm.free_after_encoding is ("free_llm_after_encoding" in options)
    assert all(p.is_meta for p in llm.model.parameters()) is ("offload_llm_blocks" in options)
    with controller.attached(sd_pipe):
        assert (draw(sd_pipe, "a red cat") - expected).abs().max() < (0.1 if "dtype" in options else 1e-4)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is there")
def test_a_quantisation_is_passed_on(folders: tuple[Path, Path], tmp_path: Path) -> None:
    config = transformers.BitsAndBytesConfig(load_in_4bit=True)
    refuses(tmp_path, ConfigError, "bitsandbytes.*without quantization_config", quantization_config=config)
    refuses(tmp_path, ConfigError, "pass one of the two", quantization_config=config, offload_llm_blocks=True)


def test_arguments_for_loading_beside_a_loaded_llm_are_refused(
    folders: tuple[Path, Path], make_llm: Any, tmp_path: Path
) -> None:
    llm = make_llm(id=str(folders[1]))
    for name in ("trust_remote_code", "free_llm_after_encoding", "offload_llm_blocks"):
        refuses(tmp_path, ConfigError, "to DecoderLLM.from_pretrained instead", llm=llm, **{name: True})


def test_code_of_the_llm_runs_only_when_asked_for(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    ran, place = tmp_path / "ran", folders[1]
    (place / "own.py").write_text(
        f"from pathlib import Path\nPath({str(ran)!r}).touch()\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own-kind'\n"
        "class OwnForCausalLM(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    config = json.loads((place / "config.json").read_text())
    config |= {"model_type": "own-kind", "architectures": ["OwnForCausalLM"]}
    config["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    (place / "config.json").write_text(json.dumps(config))
    refuses(tmp_path, UnsupportedLLMError, "none of it was run.*trust_remote_code=True")
    assert not ran.exists()
    controller = LLMController.from_pretrained(folders[0], trust_remote_code=True)
    assert ran.exists()
    assert bool(controller.encode("a red cat").states.isfinite().all())


@pytest.mark.parametrize("kind", ["Bert", "T5"])
def test_encoders_are_no_llm(folders: tuple[Path, Path], sd_pipe: Any, tmp_path: Path, kind: str) -> None:
    sizes = (
        {"hidden_size": 16, "num_attention_heads": 2} if kind == "Bert" else {"d_model": 16, "num_heads": 2}
    )
    config = getattr(transformers, f"{kind}Config")(vocab_size=32, **sizes)
    adapter = LLMController.from_pretrained(folders[0]).adapter
    config.save_pretrained(folders[1])
    refuses(tmp_path, UnsupportedLLMError, "expected a decoder-only LLM")
    model = getattr(transformers, f"{kind}Model")(config)
    with pytest.raises(UnsupportedLLMError, match=f"llm is a {kind}Model, expected a DecoderLLM"):
        LLMController.create(model, sd_pipe)
    with pytest.raises(AdapterMismatchError, match=f"llm is a {kind}Model, expected a DecoderLLM"):
        attach(sd_pipe, model, adapter)
    assert not is_attached(sd_pipe)


def test_an_llm_with_a_nan_attaches_nothing_and_leaves_the_base(
    pipe: Any, tiny_llm: Any, make_llm: Any, draw: Any
) -> None:
    base = draw(pipe)
    controller = LLMController.create(tiny_llm, pipe)
    with torch.no_grad():
        tiny_llm.model.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
        tiny_llm.forget_prefixes()
    with pytest.raises(CorruptWeightsError, match=r"layers\.1\.mlp\.up_proj\.weight"):
        LLMController.create(tiny_llm, pipe)
    assert not is_attached(pipe)
    with pytest.raises(CorruptWeightsError, match="NaN or infinite"), controller.attached(pipe):
        draw(pipe)
    assert not is_attached(pipe)
    assert torch.equal(draw(pipe), base)


@pytest.mark.parametrize("collects", [True, False])
def test_the_garbage_collector_is_as_it_was_after_loading_even_in_vain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, collects: bool
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(loading, "load_controller", lambda *_, **__: asked.append(gc.isenabled()) or 1 / 0)
    (gc.enable if collects else gc.disable)()
    try:
        with pytest.raises(ZeroDivisionError):
            loading.load(loading.Models(adapter=str(tmp_path), device="cpu"))
        assert gc.isenabled() is collects
    finally:
        gc.enable()
    assert asked == [False]
