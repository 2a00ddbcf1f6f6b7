"""The refiner: blocks between an encoding and all that reads it, against its formula written out."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from llmdiff.adapter import LLMDiffAdapter, attach
from llmdiff.adapter.adapter import uses_muon
from llmdiff.adapter.manifest import write_manifest
from llmdiff.adapter.refiner import LAYERS, TokenRefiner, narrow, wide
from llmdiff.adapter.storage import CONFIG_NAME, WEIGHTS_NAME
from llmdiff.errors import ConfigError
from llmdiff.types import TextEncoding

WIDTH, INSIDE = 16, 64


@pytest.fixture
def refiner() -> TokenRefiner:
    made = TokenRefiner(WIDTH, layers=2, width=INSIDE)
    torch.nn.init.normal_(made.to_outside.weight, std=0.1)
    return made.eval()


def written_out(refiner: TokenRefiner, states: torch.Tensor) -> torch.Tensor:
    """c' of one prompt without padding, (T, D), from the weights alone."""
    x = states @ refiner.to_inside.weight.T + refiner.to_inside.bias
    for block in refiner.blocks:
        y = F.layer_norm(x, (INSIDE,), block.norm_attn.weight, block.norm_attn.bias)
        q, k, v = (y @ part.weight.T for part in (block.to_q, block.to_k, block.to_v))
        attended = []
        for head in range(INSIDE // 32):
            part = slice(32 * head, 32 * (head + 1))
            weights = (q[:, part] @ k[:, part].T / math.sqrt(32)).softmax(dim=-1)
            attended.append(weights @ v[:, part])
        x = x + torch.cat(attended, dim=-1) @ block.to_out.weight.T + block.to_out.bias
        y = F.layer_norm(x, (INSIDE,), block.norm_mlp.weight, block.norm_mlp.bias)
        y = F.gelu(y @ block.widen.weight.T + block.widen.bias)
        x = x + y @ block.narrow.weight.T + block.narrow.bias
    x = F.layer_norm(x, (INSIDE,), refiner.norm.weight, refiner.norm.bias)
    return states + x @ refiner.to_outside.weight.T + refiner.to_outside.bias


def test_it_is_its_formula_and_padding_changes_nothing(refiner: TokenRefiner) -> None:
    short, long = torch.randn(3, WIDTH), torch.randn(5, WIDTH)
    states = torch.full((2, 7, WIDTH), 1e4)
    states[0, :3], states[1, :5] = short, long
    mask = torch.arange(7)[None] < torch.tensor([3, 5])[:, None]
    found = refiner(states, mask)
    torch.testing.assert_close(found[0, :3], written_out(refiner, short), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[1, :5], written_out(refiner, long), atol=1e-5, rtol=1e-5)


def test_a_token_learns_of_what_comes_after_it(refiner: TokenRefiner) -> None:
    states, real = torch.randn(1, 4, WIDTH), torch.ones(1, 4, dtype=torch.bool)
    changed = states.clone()
    changed[:, -1] += 1
    assert not torch.allclose(refiner(states, real)[:, 0], refiner(changed, real)[:, 0], atol=1e-4)


def test_a_prompt_without_a_token_gives_numbers(refiner: TokenRefiner) -> None:
    mask = torch.tensor([[True, True], [False, False]])
    found = refiner(torch.zeros(2, 2, WIDTH), mask)
    assert found.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_is_near(refiner: TokenRefiner, dtype: torch.dtype) -> None:
    states, mask = torch.randn(2, 3, WIDTH), torch.tensor([[True, True, True], [True, False, False]])
    with torch.autocast("cpu", dtype=dtype):
        found = refiner(states, mask)
    torch.testing.assert_close(found[mask].float(), refiner(states, mask)[mask], atol=0.05, rtol=0.05)


def test_a_new_adapter_says_what_it_says_without_its_refiner(
    pipe: Any, tiny_llm: Any, make_adapter: Callable[..., LLMDiffAdapter]
) -> None:
    sizes = {"hidden_size": tiny_llm.hidden_size, "num_blocks": tiny_llm.num_blocks}
    adapter = LLMDiffAdapter.create(pipe, llm_id=tiny_llm.id, **sizes)
    assert adapter.refiner is not None
    assert len(adapter.refiner.blocks) == LAYERS
    assert adapter.refiner.to_inside.out_features == adapter.config.refiner_width == tiny_llm.hidden_size
    plain = make_adapter(pipe, tiny_llm, refiner_layers=0)
    assert plain.refiner is None
    # The random numbers of the refiner come before those of the rest.
    weights = {n: t for n, t in adapter.state_dict().items() if not n.startswith("refiner.")}
    plain.load_state_dict(weights)
    mask = torch.tensor([[True, True, False]])
    given = TextEncoding(states=torch.randn(1, 3, tiny_llm.hidden_size) * mask[..., None], token_mask=mask)
    assert torch.equal(adapter.condition(given)[0], plain.condition(given)[0])


def test_all_that_reads_the_encoding_reads_it_refined(
    pipe: Any, tiny_llm: Any, make_adapter: Callable[..., LLMDiffAdapter]
) -> None:
    adapter = make_adapter(pipe, tiny_llm)
    assert adapter.refiner is not None
    states = torch.randn(1, 3, tiny_llm.hidden_size)
    mask = torch.tensor([[True, True, False]])
    found, _ = adapter.condition(TextEncoding(states=states * mask[..., None], token_mask=mask))
    refined = adapter.refiner(adapter.norm(states * mask[..., None]), mask)[:, :2]
    expected = torch.cat([adapter.phi(refined), refined], dim=-1)
    torch.testing.assert_close(found[:, :2], expected)
    assert not found[:, 2].any()


def test_it_is_saved_and_drawn_with_and_older_adapters_have_none(
    pipe: Any, tiny_llm: Any, make_adapter: Callable[..., LLMDiffAdapter], tmp_path: Path
) -> None:
    adapter = make_adapter(pipe, tiny_llm, refiner_layers=2, refiner_width=32)
    assert adapter.refiner is not None
    adapter.save_pretrained(tmp_path / "new")
    again = LLMDiffAdapter.from_pretrained(tmp_path / "new")
    assert again.refiner is not None
    assert again.refiner.to_inside.out_features == 32
    for name, tensor in adapter.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    attach(pipe, tiny_llm, again)
    image = pipe("a cat", num_inference_steps=1, output_type="np").images
    assert image.shape[0] == 1

    plain = make_adapter(pipe, tiny_llm, refiner_layers=0)
    plain.save_pretrained(tmp_path / "old")
    path = tmp_path / "old" / CONFIG_NAME
    config = {k: v for k, v in json.loads(path.read_text()).items() if not k.startswith("refiner")}
    made: Any = LLMDiffAdapter
    older = made(**{k: v for k, v in config.items() if not k.startswith("_")})
    assert older.refiner is None
    assert older.state_dict().keys() == plain.state_dict().keys()


def test_a_file_without_a_width_has_a_narrow_refiner(pipe: Any, tmp_path: Path) -> None:
    width = pipe.unet.config.cross_attention_dim
    adapter = LLMDiffAdapter.create(
        pipe, llm_id="an llm", hidden_size=2 * width, num_blocks=2, refiner_layers=4, refiner_width=width
    )
    adapter.save_pretrained(tmp_path)
    path = tmp_path / CONFIG_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | {"refiner_width": None}))
    write_manifest(tmp_path, [CONFIG_NAME, WEIGHTS_NAME])
    again = LLMDiffAdapter.from_pretrained(tmp_path)
    for name, tensor in adapter.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


def test_its_size_and_what_muon_takes() -> None:
    assert (wide(576), wide(4096)) == (576, 1024)
    assert (narrow(576, 160), narrow(512, 768), narrow(4096, 4096)) == (160, 512, 1024)
    names = [f"refiner.{name}" for name, _ in TokenRefiner(8, layers=1, width=8).named_parameters()]
    taken = {name for name in names if uses_muon(name)}
    assert "refiner.blocks.0.widen.weight" in taken
    assert "refiner.to_inside.weight" not in taken
    assert uses_muon("adapter.branches.mid.to_k.weight")
    assert not uses_muon("adapter.phi.weight")


def test_what_is_no_size_is_refused(
    pipe: Any, tiny_llm: Any, make_adapter: Callable[..., LLMDiffAdapter]
) -> None:
    with pytest.raises(ConfigError, match="refiner_layers is -1: expected greater than or equal to 0"):
        make_adapter(pipe, tiny_llm, refiner_layers=-1)
    with pytest.raises(ConfigError, match="refiner_width is 0: expected greater than or equal to 1"):
        make_adapter(pipe, tiny_llm, refiner_width=0)
    with pytest.raises(ConfigError, match="2 layers and width 0"):
        TokenRefiner(8, layers=2, width=0)
