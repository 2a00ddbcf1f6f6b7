"""One product for both queries, one for both outputs of an attached layer: python speed/one_product.py

This is not in the library, and here is why. A layer's pretrained attention and the new one read the same image states,
so their query weights could be joined, and the gated output weights too. Shapes are those of Stable Diffusion 1.5's
layers at 512x512, guided, with 24 tokens; one thread, in turns, the processor's time.
"""

import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from measuring import Record, finish, interleaved, parser, record
from torch import Tensor, nn

# Layers, states of the image and their width.
_LAYERS = ((5, 4096, 320), (5, 1024, 640), (5, 256, 1280), (1, 64, 1280))
_HEADS, _TOKENS, _ROWS = 8, 24, 2


def sides(rows: int, width: int) -> dict[str, Callable[[], Tensor]]:
    """Returns both ways to compute a layer, which give the same."""
    torch.manual_seed(0)
    states = torch.randn(_ROWS, rows, width)
    query, new_query = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
    out, new_out = nn.Linear(width, width), nn.Linear(width, width)
    texts = [torch.randn(2, _ROWS, _HEADS, _TOKENS, width // _HEADS) for _ in range(2)]
    gate, new_gate = torch.tensor(1.1), torch.tensor(0.9)
    queries = torch.cat([query.weight, new_query.weight])
    outputs = torch.cat([gate * out.weight, new_gate * new_out.weight], dim=1)
    bias = gate * out.bias + new_gate * new_out.bias

    def attend(queried: Tensor, text: Tensor) -> Tensor:
        heads = queried.view(_ROWS, rows, _HEADS, -1).transpose(1, 2)
        return F.scaled_dot_product_attention(heads, *text).transpose(1, 2).flatten(2)

    def separate() -> Tensor:
        first, second = attend(query(states), texts[0]), attend(new_query(states), texts[1])
        return torch.addcmul(out(first) * gate, new_out(second), new_gate)

    def joined() -> Tensor:
        both = F.linear(states, queries)
        mixed = [attend(both[..., :width], texts[0]), attend(both[..., width:], texts[1])]
        return F.linear(torch.cat(mixed, dim=-1), outputs, bias)

    return {"joined": joined, "separate": separate}


@torch.no_grad()
def measure(rows: int, width: int, repeats: int) -> Record:
    acts = sides(rows, width)
    assert torch.allclose(acts["joined"](), acts["separate"](), atol=1e-4)
    seconds = interleaved(acts, repeats=repeats, clock=time.process_time)
    return record(
        f"one product for both queries and one for both outputs, {rows} states of {width}",
        ours=seconds["joined"],
        other=seconds["separate"],
        unit="s of the processor",
        device="cpu",
    )


def main(arguments: Sequence[str] | None = None) -> list[Record]:
    options = parser(__doc__ or "").parse_args(arguments)
    torch.set_num_threads(1)
    repeats = 1 if options.quick else 4 * options.repeats
    records = [measure(states, width, repeats) for _, states, width in _LAYERS]
    layers = list(zip(records, _LAYERS, strict=True))
    records.append(
        record(
            "one product for both queries and one for both outputs, all 16 layers",
            ours=sum(one["ours"] * count for one, (count, *_) in layers),
            other=sum(one["other"] * count for one, (count, *_) in layers),
            unit="s of the processor",
            device="cpu",
            left_out_because="all these layers are a few hundredths of a step, so a picture gains less than one part "
            "in a hundred; on a GPU 3 launches a layer would go, for copies of frozen weights that LoRAs and "
            "quantisation change",
        )
    )
    return finish(records, options)


if __name__ == "__main__":
    main()
