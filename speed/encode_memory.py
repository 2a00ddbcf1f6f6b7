"""The memory that encoding takes, for LLMs of more and more blocks: python speed/encode_memory.py

Every row is a process of its own. Its peak is the highest resident size (the kernel's VmHWM) while prompts are
encoded, less the resident size before: the LLM's weights, which do grow, are there already. Beside it the peak
of keeping every block's updates (`block_updates`), which has to grow if the measurement is any good. A tiny
random Llama: the sizes of the states count, not what is in them.
"""

import argparse
import json
import multiprocessing
from pathlib import Path
from typing import Any

from measuring import resident_mib


def measure(what: str, blocks: int, width: int, prompts: int, tokens: int) -> float:
    """Return the peak memory of one way of encoding, in MiB above the memory before."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from llmdiff.language import ContextEncoding, DecoderLLM

    torch.set_num_threads(1)
    words = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "a": 2}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>")
    config = LlamaConfig(
        vocab_size=8,
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=blocks,
        num_attention_heads=4,
        max_position_embeddings=2 * tokens,
    )
    llm = DecoderLLM(LlamaForCausalLM(config), tokenizer, id="tiny-llama")
    context = ContextEncoding(blocks, width)
    texts = [" ".join(["a"] * tokens)] * prompts
    context.encode(llm, "a")  # libraries and the prefix are loaded
    # Forgets the peak that building the model has left.
    Path("/proc/self/clear_refs").write_text("5")
    before = resident_mib("VmRSS")
    if what == "encode":
        context.encode(llm, texts)
    else:
        llm.block_updates(texts)
    return resident_mib("VmHWM") - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--out", type=Path, default=Path("out/encode_memory.json"))
    options = parser.parse_args()
    sizes = (options.width, options.prompts, options.tokens)
    one_state = options.width * options.prompts * options.tokens * 4 / 2**20
    rows: list[dict[str, Any]] = []
    print(f"one state of all tokens (B*T*D float32): {one_state:.1f} MiB")
    print("| blocks | encode: peak MiB | block_updates: peak MiB |\n|---|---|---|")
    # A fresh interpreter per figure: an allocator keeps what an earlier row has used.
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for blocks in options.blocks:
            row = {what: pool.apply(measure, (what, blocks, *sizes)) for what in ("encode", "block_updates")}
            rows.append({"blocks": blocks, **row})
            print(f"| {blocks} | {row['encode']:.1f} | {row['block_updates']:.1f} |", flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"sizes": sizes, "one_state_mib": one_state, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
