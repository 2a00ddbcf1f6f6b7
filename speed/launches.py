"""Kernels that one step of a denoiser launches, with the LLM attached and without: python speed/launches.py

Denoisers with as many layers as the published ones and small widths, guided, in their last step: what is computed once
for a picture is not counted. A launch is an operator that is not a view, so the count is the same on a CPU as on a GPU
but for attention, which is one operator here. Small pictures on a GPU take as long as their launches.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from llm_shapes import build_llm
from measuring import PROMPTS, Record, finish, parser, record
from shapes import FAMILIES, Shape, build_pipe, embeddings
from torch.utils._python_dispatch import TorchDispatchMode

from llmdiff import LLMController
from llmdiff.adapter.families import denoiser_of

_STEPS = 3
_LAYERS = ("num_layers", "num_single_layers", "layers_per_block", "transformer_layers_per_block",
           "down_block_types", "up_block_types")  # fmt: skip
_FREE = ("empty", "_unsafe_view", "detach", "lift_fresh", "alias")


class Launches(TorchDispatchMode):
    """Count the launches of each call of a denoiser, by the operator."""

    def __init__(self, denoiser: Any) -> None:
        super().__init__()
        self.calls: list[Counter[str]] = []
        self.handles = [
            denoiser.register_forward_pre_hook(self._begin, prepend=True),
            denoiser.register_forward_hook(self._end),
        ]

    def _begin(self, *_: Any) -> None:
        self.calls.append(Counter())
        self.__enter__()

    def _end(self, *_: Any) -> None:
        self.__exit__(None, None, None)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view and not any(name in str(func) for name in _FREE):
            self.calls[-1][func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def narrow(shape: Shape) -> Shape:
    """Returns the shape with small widths and all its layers."""
    tiny = {name: value for name, value in shape.tiny.items() if name not in _LAYERS}
    if "block_out_channels" in shape.config:
        tiny["block_out_channels"] = (32, 64, 64, 64)[: len(shape.config["block_out_channels"])]
    if shape.title == "SDXL":
        tiny["attention_head_dim"] = (2, 4, 4)
    return replace(shape, tiny=tiny)


def measure(shape: Shape) -> Record:
    pipe = build_pipe(shape, "cpu", torch.float32, quick=True)
    controller = LLMController.create(build_llm(shape.llm, "cpu", torch.float32, quick=True), pipe)
    launches = Launches(denoiser_of(pipe))
    side = 128 if shape.title == "Sana 1.6B" else 64
    call = {"num_inference_steps": _STEPS, "guidance_scale": 5.0, "height": side, "width": side, **shape.call}
    # Some pipelines read a default negative prompt beside embeddings unless there is none.
    nothing = {"negative_prompt": None} if shape.masked else {}
    draw: Callable[..., Any] = lambda **text: pipe(**text, **call, output_type="latent")  # noqa: E731
    draw(**embeddings(shape, "cpu", torch.float32, quick=True), **nothing)
    base = launches.calls[-1].total()
    with controller.attached(pipe, 1.0):
        draw(prompt=PROMPTS[1])
    ours = launches.calls[-1].total()
    return record(f"launches, {shape.title}", ours=ours, other=base, unit="a step", device="cpu")


def main(arguments: Sequence[str] | None = None) -> list[Record]:
    options = parser(__doc__ or "").parse_args(arguments)
    shapes = FAMILIES[:1] + FAMILIES[4:5] if options.quick else FAMILIES
    return finish([measure(narrow(shape)) for shape in shapes], options)


if __name__ == "__main__":
    main()
