"""Where the weights are: nothing moves on the CPU; blocks come and go; on an accelerator it is left empty."""

import copy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from llmdiff.errors import ConfigError
from llmdiff.language import ContextEncoding, DecoderLLM

from .conftest import PROMPTS, tiny_llm

accelerator = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def addresses(llm: DecoderLLM) -> list[int]:
    return [tensor.data_ptr() for tensor in (*llm.model.parameters(), *llm.model.buffers())]


def test_on_the_cpu_freeing_moves_nothing_and_changes_no_bit() -> None:
    llm = tiny_llm("llama")
    before, expected = addresses(llm), llm.block_updates(PROMPTS, lone="token+bos")
    llm.free_after_encoding = True
    assert llm.free_after_encoding
    prefix = llm.prefix_states(llm.tokenize("").prefix_ids)
    found = llm.block_updates(PROMPTS, lone="token+bos")
    assert torch.equal(found.context, expected.context)
    assert torch.equal(found.lone, expected.lone)
    assert addresses(llm) == before
    assert llm.prefix_states(llm.tokenize("").prefix_ids) is prefix  # still remembered: nothing has moved
    assert llm.device == torch.device("cpu")
    assert llm.to("cpu") is llm
    assert addresses(llm) == before
    llm.free_after_encoding = False
    assert torch.equal(llm.block_updates(PROMPTS, lone="token+bos").context, expected.context)


def test_offloaded_blocks_are_there_only_while_they_run() -> None:
    llm = tiny_llm("gemma2")
    expected = llm.block_updates(PROMPTS, lone="token+bos")
    llm.placement.offload_blocks(torch.device("cpu"))
    present: list[int] = []

    def count(*_: object) -> None:
        present.append(sum(not parameter.is_meta for parameter in llm.model.parameters()))

    hooks = [block.register_forward_hook(count) for block in llm.blocks]
    found = llm.block_updates(PROMPTS, lone="token+bos")
    for hook in hooks:
        hook.remove()
    assert torch.equal(found.context, expected.context)
    assert torch.equal(found.lone, expected.lone)
    assert present
    assert max(present) == 0  # between two modules nothing is left
    assert all(parameter.is_meta for parameter in llm.model.parameters())
    assert llm.device == torch.device("cpu")
    llm.placement.offload_blocks(torch.device("cpu"))  # once is enough
    with pytest.raises(ConfigError, match="offloaded block by block and cannot be moved"):
        llm.to("cpu")


def test_loads_offloaded_and_freed(llama: DecoderLLM, tmp_path: Path) -> None:
    llama.model.save_pretrained(tmp_path)
    llama.tokenizer.save_pretrained(tmp_path)
    expected = llama.block_updates(PROMPTS).context
    freed = DecoderLLM.from_pretrained(tmp_path, free_after_encoding=True)
    assert freed.free_after_encoding
    assert torch.equal(freed.block_updates(PROMPTS).context, expected)
    offloaded = DecoderLLM.from_pretrained(tmp_path, offload_blocks=True)
    assert all(parameter.is_meta for parameter in offloaded.model.parameters())
    assert torch.equal(offloaded.block_updates(PROMPTS).context, expected)
    with pytest.raises(ConfigError, match="pass one of the two"):
        DecoderLLM.from_pretrained(tmp_path, offload_blocks=True, quantization_config={"load_in_8bit": True})


def test_damage_is_named_while_offloaded() -> None:
    llm = tiny_llm("llama")
    llm.model.model.layers[1].mlp.up_proj.weight.data[0, 0] = float("nan")
    llm.placement.offload_blocks(torch.device("cpu"))
    with pytest.raises(OSError, match=r"layers\.1\.mlp\.up_proj\.weight"):
        llm.block_updates(PROMPTS)


def test_a_copy_forgets_its_own_prefixes_only() -> None:
    llm = tiny_llm("llama")
    expected = llm.block_updates(PROMPTS).context
    twin = copy.deepcopy(llm)
    twin.forget_prefixes()
    ids = llm.tokenize("").prefix_ids
    assert llm.prefix_states(ids) is llm.prefix_states(ids)
    assert torch.equal(twin.block_updates(PROMPTS).context, expected)


@pytest.mark.gpu
@accelerator
def test_the_accelerator_holds_weights_only_while_encoding() -> None:
    before = torch.cuda.memory_allocated()
    llm = tiny_llm("llama")
    context = ContextEncoding(llm.num_blocks, llm.hidden_size)
    expected = context.encode(llm, PROMPTS).states
    llm.to("cuda")
    held = torch.cuda.memory_allocated()
    llm.free_after_encoding = True
    assert all(parameter.device.type == "cpu" for parameter in llm.model.parameters())
    assert torch.cuda.memory_allocated() < held
    found = context.encode(llm, PROMPTS).states
    assert found.device.type == "cuda"
    torch.testing.assert_close(found.cpu(), expected, atol=1e-3, rtol=1e-3)
    assert all(parameter.device.type == "cpu" for parameter in llm.model.parameters())
    del found
    assert torch.cuda.memory_allocated() == before


@pytest.mark.gpu
@accelerator
def test_threads_share_a_freed_llm() -> None:
    llm = tiny_llm("llama").to("cuda")
    expected = [llm.block_updates(prompt).context for prompt in PROMPTS]
    llm.free_after_encoding = True
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda prompt: llm.block_updates(prompt).context, PROMPTS * 4))
    for a, b in zip(found, expected * 4, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    assert all(parameter.device.type == "cpu" for parameter in llm.model.parameters())
