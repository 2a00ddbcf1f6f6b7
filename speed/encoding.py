"""All block updates and their sum against one plain forward of the same LLM: python speed/encoding.py

Ours is `ContextEncoding.encode`: tokens, both updates of every block, the weighted sum. The other is the LLM's own
pass over the same prompts as anybody would run it: BOS in front, padded to the longest, no language-model head. Beside
the ratio stand the counted FLOPs of both sides, which bound it where arithmetic is the cost, and on a GPU what share of
the machine's ceilings (a large product, a large copy) our side reaches.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from measuring import PROMPTS, Aim, Record, ceilings, dtypes, finish, interleaved, parser, record
from tiny_models import llm as load_llm

from llmdiff.language import ContextEncoding, DecoderLLM, Lone
from llmdiff.language.blocks import LONES
from llmdiff.training.counting import flop_counter


def plain_forward(llm: DecoderLLM, prompts: list[str]) -> Callable[[], object]:
    """Return the LLM's own pass over padded prompts, tokens included."""

    @torch.no_grad()
    def act() -> object:
        tokens = llm.tokenize(prompts)
        return llm.model.base_model(
            input_ids=tokens.input_ids.to(llm.device),
            attention_mask=tokens.token_mask.long().to(llm.device),
            use_cache=False,
        )

    return act


def flops(act: Callable[[], object]) -> int:
    """Return the counted FLOPs of an act."""
    with flop_counter() as counted:
        act()
    return int(counted.get_total_flops())


def aim_of(lone: Lone, batch: int, device: str) -> Aim | None:
    if lone != "token+bos":  # the default's aim; the other is shown beside it
        return None
    if torch.device(device).type == "cpu":
        return Aim(value=2.0)
    return Aim(value=1.3) if batch == 1 else None


def measure(
    llm: DecoderLLM, batch: int, options: Any, dtype: torch.dtype, ceiling: dict[str, float]
) -> list[Record]:
    prompts = list(PROMPTS[:batch])
    acts: dict[str, Callable[[], object]] = {"plain": plain_forward(llm, prompts)}
    for lone in LONES:
        context = ContextEncoding(llm.num_blocks, llm.hidden_size, lone=lone).to(llm.device)
        acts[lone] = lambda context=context: context.encode(llm, prompts)
    seconds = interleaved(acts, repeats=options.repeats, device=options.device, warm_up=2)
    counted = {name: flops(act) for name, act in acts.items()}
    weights = sum(one.numel() * one.element_size() for one in llm.blocks.parameters())
    records = []
    for lone in LONES:
        records.append(
            record(
                f"encode, {batch} prompt{'s' * (batch > 1)}, lone={lone}, {str(dtype).removeprefix('torch.')}",
                ours=seconds[lone],
                other=seconds["plain"],
                unit="s",
                device=options.device,
                aim=aim_of(lone, batch, options.device),
                limit_by_flops=counted[lone] / counted["plain"],
                share_of_flop_ceiling=counted[lone] / seconds[lone] / ceiling["flops_per_s"],
                # At the least, all weights of the blocks are read once.
                share_of_bandwidth_ceiling=weights / seconds[lone] / ceiling["bytes_per_s"],
                tokens=int(llm.tokenize(prompts).token_mask.sum()),
                llm=llm.id,
            )
        )
    return records


def main(arguments: Sequence[str] | None = None) -> list[Record]:
    options_of = parser(__doc__)
    options_of.add_argument("--llm", default="smollm2-135m")
    options = options_of.parse_args(arguments)
    records: list[Record] = []
    for dtype in dtypes(options.device):
        llm = load_llm(options, dtype=dtype)
        ceiling = ceilings(options.device, dtype, quick=options.quick)
        for batch in (len(PROMPTS), 1):
            records += measure(llm, batch, options, dtype, ceiling)
    return finish(records, options)


if __name__ == "__main__":
    main()
