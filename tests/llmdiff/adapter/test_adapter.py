"""condition, create, and what a saved adapter is checked for."""

import json
import math
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmdiff.adapter import LLMDiffAdapter, attach, detach
from llmdiff.adapter.layers import text_layers
from llmdiff.adapter.manifest import MANIFEST_NAME, write_manifest
from llmdiff.adapter.storage import CONFIG_NAME, WEIGHTS_NAME
from llmdiff.errors import (
    AdapterMismatchError,
    ConfigError,
    CorruptWeightsError,
    OutputError,
)
from llmdiff.types import TextEncoding


@pytest.fixture
def adapter(pipe: Any, tiny_llm: Any) -> LLMDiffAdapter:
    made = LLMDiffAdapter.create(
        pipe,
        llm_id=tiny_llm.id,
        hidden_size=tiny_llm.hidden_size,
        num_blocks=tiny_llm.num_blocks,
        template="the photo {prompt}",
    )
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return made.eval()


@pytest.fixture
def saved(adapter: LLMDiffAdapter, tmp_path: Path) -> Path:
    adapter.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def encoding(*lengths: int, tokens: int, width: int = 16) -> TextEncoding:
    mask = torch.arange(tokens)[None] < torch.tensor(lengths)[:, None]
    return TextEncoding(states=torch.randn(len(lengths), tokens, width) * mask[..., None], token_mask=mask)


def test_condition_is_phi_beside_the_normalised_states(adapter: LLMDiffAdapter) -> None:
    adapter.refiner = None  # which has its own test
    given = encoding(4, 2, tokens=5)
    states, pooled = adapter.condition(given)
    c = given.states[1, 1]
    normed = (c - c.mean()) / (c.var(unbiased=False) + 1e-5).sqrt() * adapter.norm.weight + adapter.norm.bias
    assert states.shape == (2, 5, 24 + 16)
    assert torch.allclose(states[1, 1, 24:], normed, atol=1e-5)
    assert torch.allclose(states[1, 1, :24], adapter.phi.weight @ normed + adapter.phi.bias, atol=1e-5)
    # Not merely small: a padding row is what it is read as by being zero.
    assert bool((states[~given.token_mask] == 0).all())
    assert bool((states[given.token_mask] != 0).any(-1).all())
    if adapter.pooled is not None:
        assert pooled is not None
        assert torch.allclose(pooled[1], adapter.pooled.weight @ normed + adapter.pooled.bias, atol=1e-5)
    else:
        assert pooled is None


def test_condition_does_not_depend_on_the_side_of_the_padding(adapter: LLMDiffAdapter) -> None:
    right = encoding(3, tokens=5)
    left = TextEncoding(states=right.states.roll(2, dims=1), token_mask=right.token_mask.roll(2, dims=1))
    (states, pooled), (left_states, left_pooled) = adapter.condition(right), adapter.condition(left)
    assert torch.allclose(states.roll(2, dims=1), left_states, atol=1e-6)
    if pooled is not None and left_pooled is not None:
        assert torch.allclose(pooled, left_pooled, atol=1e-6)


def test_condition_trains_on_states_made_in_inference_mode(adapter: LLMDiffAdapter) -> None:
    with torch.inference_mode():
        given = encoding(3, tokens=4)
    adapter.condition(given)[0].sum().backward()
    assert adapter.phi.weight.grad is not None


def test_condition_refuses_another_width(adapter: LLMDiffAdapter) -> None:
    with pytest.raises(AdapterMismatchError, match="width 20, the adapter was made for 16"):
        adapter.condition(encoding(3, tokens=4, width=20))


def test_create_starts_from_the_pretrained_layers(pipe: Any, tiny_llm: Any) -> None:
    sizes = {"hidden_size": tiny_llm.hidden_size, "num_blocks": tiny_llm.num_blocks}
    with torch.no_grad():
        # Text states far from size 1 show whether phi follows them.
        for name, parameter in pipe.text_encoder.named_parameters():
            if name.endswith(("final_layer_norm.weight", "fc2.weight")):
                parameter.mul_(20)
    fresh = LLMDiffAdapter.create(pipe, llm_id=tiny_llm.id, **sizes)
    layers = text_layers(pipe.unet)
    assert list(fresh.config.cross_attention) == list(layers)
    assert len(fresh.branches) == len(layers)
    for name, layer in layers.items():
        attn: Any = layer
        branch = fresh.branch(name)
        assert torch.equal(branch.to_q.weight, attn.to_q.weight)
        assert torch.equal(branch.to_out.weight, attn.to_out[0].weight)
        assert torch.equal(branch.to_out.bias, attn.to_out[0].bias)
        assert branch.to_q.weight.data_ptr() != attn.to_q.weight.data_ptr()
        assert [gate.item() for gate in branch.gates()] == [1.0, 1.0]
    base = type(pipe).encode_prompt(
        pipe, "a photo of a cat", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )[0]
    ours = fresh.condition(encoding(*[40] * 8, tokens=40))[0][..., :24].detach()
    assert base.square().mean() > 4
    assert 0.5 < float(ours.square().mean().sqrt() / base.detach().square().mean().sqrt()) < 2


def test_create_without_a_text_encoder(sd_pipe: Any) -> None:
    sd_pipe.register_modules(text_encoder=None, tokenizer=None)
    fresh = LLMDiffAdapter.create(sd_pipe, llm_id="x", hidden_size=64, num_blocks=2)
    ours = fresh.condition(encoding(*[40] * 8, tokens=40, width=64))[0][..., :24].detach()
    assert 0.8 < float(ours.square().mean().sqrt()) < 1.25


def test_save_and_load_are_inverses(
    adapter: LLMDiffAdapter, saved: Path, pipe: Any, tiny_llm: Any, draw: Any
) -> None:
    loaded = LLMDiffAdapter.from_pretrained(saved)
    assert dict(loaded.config) | {"_class_name": None} == dict(adapter.config) | {"_class_name": None}
    expected, found = adapter.state_dict(), loaded.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert not loaded.training
    attach(pipe, tiny_llm, adapter)
    ours = draw(pipe)
    detach(pipe)
    attach(pipe, tiny_llm, loaded)
    assert torch.equal(draw(pipe), ours)
    assert sorted(path.name for path in saved.iterdir()) == [CONFIG_NAME, WEIGHTS_NAME, MANIFEST_NAME]


def test_gates_that_were_saved_without_dimensions_are_loaded(adapter: LLMDiffAdapter, saved: Path) -> None:
    change = {
        name: tensor.reshape(()) if name.endswith((".a1", ".b1", ".a2", ".b2")) else tensor
        for name, tensor in load_file(saved / WEIGHTS_NAME).items()
    }
    assert any(tensor.ndim == 0 for tensor in change.values())
    save_file(change, saved / WEIGHTS_NAME)
    write_manifest(saved, [CONFIG_NAME, WEIGHTS_NAME])
    loaded = LLMDiffAdapter.from_pretrained(saved).state_dict()
    for name, tensor in adapter.state_dict().items():
        assert torch.equal(loaded[name], tensor)
    save_file(change | {"phi.bias": change["phi.bias"][0].reshape(())}, saved / WEIGHTS_NAME)
    write_manifest(saved, [CONFIG_NAME, WEIGHTS_NAME])
    with pytest.raises(CorruptWeightsError, match=r"'phi.bias' of shape \(\)"):
        LLMDiffAdapter.from_pretrained(saved)


def test_the_scale_is_saved_and_folders_without_one_have_one(
    pipe: Any, tiny_llm: Any, tmp_path: Path
) -> None:
    sizes = {"llm_id": "tiny", "hidden_size": tiny_llm.hidden_size, "num_blocks": tiny_llm.num_blocks}
    made: Any = LLMDiffAdapter.create(pipe, **sizes, scale=0.6)
    made.save_pretrained(tmp_path)
    loaded: Any = LLMDiffAdapter.from_pretrained(tmp_path)
    assert loaded.config.scale == 0.6
    config = json.loads((tmp_path / CONFIG_NAME).read_text())
    del config["scale"]
    (tmp_path / CONFIG_NAME).write_text(json.dumps(config))
    write_manifest(tmp_path, [CONFIG_NAME, WEIGHTS_NAME])
    loaded = LLMDiffAdapter.from_pretrained(tmp_path)
    assert loaded.config.scale == 1.0
    for wrong in (0, -1, 1.1, "half", math.nan):
        with pytest.raises(ConfigError, match="scale is"):
            LLMDiffAdapter.create(pipe, **sizes, scale=wrong)


def test_half_precision_keeps_the_block_scales(adapter: LLMDiffAdapter, tmp_path: Path) -> None:
    assert adapter.context is not None
    adapter.context.score_scale.fill_(123456.0)
    adapter.save_pretrained(tmp_path, dtype=torch.float16)
    stored = load_file(tmp_path / WEIGHTS_NAME)
    assert stored["phi.weight"].dtype == torch.float16
    assert stored["context.gamma"].dtype == torch.float32
    loaded = LLMDiffAdapter.from_pretrained(tmp_path)
    assert loaded.phi.weight.dtype == torch.float32
    assert loaded.context is not None
    assert torch.equal(loaded.context.score_scale, adapter.context.score_scale)
    assert torch.allclose(loaded.phi.weight, adapter.phi.weight, atol=1e-3)
    assert LLMDiffAdapter.from_pretrained(tmp_path, dtype=None).phi.weight.dtype == torch.float16


def test_saving_again_replaces_the_files(adapter: LLMDiffAdapter, saved: Path) -> None:
    (saved / "notes.txt").write_text("mine")
    with torch.no_grad():
        adapter.phi.weight.zero_()
    adapter.save_pretrained(saved)
    assert not LLMDiffAdapter.from_pretrained(saved).phi.weight.any()
    assert (saved / "notes.txt").read_text() == "mine"


def damage_bit(folder: Path) -> None:
    content = bytearray((folder / WEIGHTS_NAME).read_bytes())
    content[-3] ^= 1
    (folder / WEIGHTS_NAME).write_bytes(content)


def truncate(folder: Path) -> None:
    content = (folder / WEIGHTS_NAME).read_bytes()
    (folder / WEIGHTS_NAME).write_bytes(content[: len(content) // 2])


def change_config(folder: Path) -> None:
    (folder / CONFIG_NAME).write_text((folder / CONFIG_NAME).read_text().replace("tiny-llama", "tiny-lambda"))


def drop_entry(folder: Path) -> None:
    write_manifest(folder, [CONFIG_NAME])


def drop_weights(folder: Path) -> None:
    (folder / WEIGHTS_NAME).unlink()


def drop_manifest(folder: Path) -> None:
    (folder / MANIFEST_NAME).unlink()


def scramble_manifest(folder: Path) -> None:
    (folder / MANIFEST_NAME).write_text('{"sha256": [1]}')


def point_outside(folder: Path) -> None:
    path = folder / MANIFEST_NAME
    stored = json.loads(path.read_text())
    stored["sha256"]["../secret"] = "0" * 64
    path.write_text(json.dumps(stored))


def truncate_knowingly(folder: Path) -> None:
    truncate(folder)
    write_manifest(folder, [CONFIG_NAME, WEIGHTS_NAME])


def change_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS_NAME)
        change(tensors)
        save_file(tensors, folder / WEIGHTS_NAME)
        write_manifest(folder, [CONFIG_NAME, WEIGHTS_NAME])

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_bit, f"{WEIGHTS_NAME} has SHA-256"),
        (truncate, f"{WEIGHTS_NAME} has SHA-256"),
        (change_config, f"{CONFIG_NAME} has SHA-256"),
        (drop_entry, f"no entry for {WEIGHTS_NAME}"),
        (drop_weights, f"{WEIGHTS_NAME} is missing"),
        (drop_manifest, f"has no {MANIFEST_NAME}"),
        (scramble_manifest, "is not a manifest"),
        (point_outside, "names inside the folder"),
        (truncate_knowingly, "not a readable safetensors file"),
        (change_tensors(lambda t: t["phi.weight"].fill_(float("nan"))), "not finite in 'phi.weight'"),
        (change_tensors(lambda t: t.pop("phi.bias")), "lacks the tensor 'phi.bias'"),
        (change_tensors(lambda t: t.update(more=torch.zeros(1))), "unexpected tensor 'more'"),
        (change_tensors(lambda t: t.update({"phi.bias": torch.zeros(3)})), "'phi.bias' of shape \\(3,\\)"),
    ],
)
def test_damaged_folders_are_refused_by_name(
    saved: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(saved)
    with pytest.raises(CorruptWeightsError, match=message) as caught:
        LLMDiffAdapter.from_pretrained(saved)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": "red"}, "unknown key 'colour'"),
        ({"family": "dalle"}, "family is 'dalle'"),
        ({"encoding": "magic"}, "encoding is 'magic'"),
        ({"lone": "both"}, "lone is 'both'"),
        (
            {"lone": "vocabulary"},
            r"\A[^\n]*lone is 'vocabulary': [^\n]*expected 'token' or 'token\+bos'\Z",
        ),
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"num_blocks": -1}, "num_blocks is -1"),
        ({"clip": -1.0}, "clip is -1.0"),
        ({"llm_id": None}, "lacks the key 'llm_id'"),
        ({"cross_attention": {"a": {"colour": 1}}}, "unknown key 'cross_attention.a.colour'"),
    ],
)
def test_bad_configs_are_refused_by_key(saved: Path, change: dict[str, Any], message: str) -> None:
    stored = json.loads((saved / CONFIG_NAME).read_text()) | change
    stored = {key: value for key, value in stored.items() if key != "llm_id" or value is not None}
    (saved / CONFIG_NAME).write_text(json.dumps(stored))
    write_manifest(saved, [CONFIG_NAME, WEIGHTS_NAME])
    with pytest.raises(ConfigError, match=message):
        LLMDiffAdapter.from_pretrained(saved)


def test_a_place_that_cannot_be_made(adapter: LLMDiffAdapter, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot be written"):
        adapter.save_pretrained(tmp_path / "file" / "adapter")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.fixture
def full_disk() -> Iterator[Callable[[], None]]:
    """A call that lets no file grow beyond 2,000 bytes: the weights stop half-way, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_nothing_new(adapter: LLMDiffAdapter, tmp_path: Path, full_disk: Any) -> None:
    full_disk()
    with pytest.raises(OutputError, match="cannot be written"):
        adapter.save_pretrained(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_adapter(adapter: LLMDiffAdapter, saved: Path, full_disk: Any) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    with torch.no_grad():
        adapter.phi.weight.zero_()
    full_disk()
    with pytest.raises(OutputError):
        adapter.save_pretrained(saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
