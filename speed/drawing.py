"""Seconds per picture with the LLM attached and without, same steps and guidance: python speed/drawing.py

Two pipelines: the embedded default with its shipped adapter, and a random U-Net of Stable Diffusion 1.5's shape at
512x512 for a few steps, where the latents are the end (a decoder would hide what the steps cost). Ours includes reading
the prompts with the LLM. Beside it the same mixed with the base's own text, at the shipped adapter's scale, which asks
the base's text encoder too; and ELLA's resampler, untrained, which runs in every step as its authors have it. The
weights' values do not matter to the time. On a GPU also with the U-Net compiled. On a CPU one picture at 512x512 takes
half a minute, so three runs of it are enough.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from measuring import PROMPTS, Aim, Record, dtypes, finish, interleaved, parser, record
from tiny_models import llm as load_llm
from tiny_models import sd15_shaped

from llmdiff import LLMController
from llmdiff.adapter.base_pipeline import load_base_pipeline
from llmdiff.training.counting import flop_counter
from llmdiff_lab.rivals.readings import RivalInputs
from llmdiff_lab.rivals.registry import create

_GUIDANCE, _SCALE = 3.0, 0.7


def drawn(pipe: Any, steps: int, output_type: str, size: dict[str, int]) -> Callable[[], object]:
    """Return the drawing of one picture."""

    def act() -> object:
        generator = torch.Generator().manual_seed(0)
        return pipe(
            PROMPTS[0],
            num_inference_steps=steps,
            guidance_scale=_GUIDANCE,
            output_type=output_type,
            generator=generator,
            **size,
        )

    return act


def measure(
    what: str,
    controller: LLMController,
    pipe: Any,
    act: Callable[[], object],
    options: Any,
    dtype: torch.dtype,
    repeats: int | None = None,
) -> list[Record]:
    pipe.set_progress_bar_config(disable=True)
    ella = create("ella", RivalInputs(pipe=pipe, llm=controller.llm))
    ella.train(False)
    for module in ella.modules.values():
        module.to(device=options.device, dtype=dtype)
    within: dict[str, Callable[[], AbstractContextManager[Any]]] = {
        "llm": lambda: controller.attached(pipe, 1.0),
        "mixed": lambda: controller.attached(pipe, _SCALE),
        "ella": lambda: ella.attached(pipe),
    }
    acts = dict.fromkeys(("base", "llm", "mixed", "ella"), act)
    seconds = interleaved(acts, repeats=repeats or options.repeats, device=options.device, within=within)
    counted: dict[str, int] = {}
    for name in ("base", "llm"):
        with within.get(name, nullcontext)(), flop_counter() as flops:
            act()
        counted[name] = flops.get_total_flops()
    kind = str(dtype).removeprefix("torch.")
    records = [
        record(
            f"draw, {what}, {kind}, LLM attached",
            ours=seconds["llm"],
            other=seconds["base"],
            unit="s per picture",
            device=options.device,
            aim=Aim(value=1.1),
            limit_by_flops=counted["llm"] / counted["base"],
        ),
        *(
            record(
                f"draw, {what}, {kind}, {title}",
                ours=seconds[name],
                other=seconds["base"],
                unit="s per picture",
                device=options.device,
            )
            for name, title in (
                ("mixed", f"LLM attached at scale {_SCALE:g}"),
                ("ella", "ELLA's resampler in every step"),
            )
        ),
    ]
    if torch.device(options.device).type == "cuda" and not options.quick:
        records.append(compiled(what, controller, pipe, act, options, kind))
    return records


def compiled(
    what: str, controller: LLMController, pipe: Any, act: Callable[[], object], options: Any, kind: str
) -> Record:
    """Return the record with a compiled U-Net: all attached runs, then all detached runs, as switching recompiles."""
    pipe.unet.compile()
    with controller.attached(pipe, 1.0):
        ours = interleaved({"llm": act}, repeats=options.repeats, device=options.device, warm_up=3)["llm"]
    torch.compiler.reset()
    other = interleaved({"base": act}, repeats=options.repeats, device=options.device, warm_up=3)["base"]
    return record(
        f"draw, {what}, {kind}, LLM attached, torch.compile",
        ours=ours,
        other=other,
        unit="s per picture",
        device=options.device,
        aim=Aim(value=1.1),
    )


def embedded(options: Any, dtype: torch.dtype) -> list[Record]:
    steps = 2 if options.quick else options.steps
    if options.quick:
        pipe = load_base_pipeline("openmoji", dtype=dtype).to(options.device)
        controller = LLMController.create(load_llm(options, dtype=dtype), pipe)
    else:
        llm = load_llm(options, dtype=dtype)
        controller = LLMController.from_pretrained("openmoji", llm=llm, device=options.device)
        pipe = controller.load_pipeline(device=options.device, dtype=dtype)
    act = drawn(pipe, steps, "pil", {})
    return measure(f"embedded default, {steps} steps", controller, pipe, act, options, dtype)


def shaped(options: Any, dtype: torch.dtype) -> list[Record]:
    small = options.quick or options.small
    side = 64 if options.quick else 512
    pipe = sd15_shaped(side, side, small=small).to(device=options.device, dtype=dtype)
    controller = LLMController.create(load_llm(options, dtype=dtype), pipe)
    act = drawn(pipe, 2, "latent", {"height": side, "width": side})
    name = "a tenth of SD 1.5's widths" if small else "SD 1.5's shape"
    repeats = min(options.repeats, 3) if torch.device(options.device).type == "cpu" else None
    return measure(f"{name}, {side}x{side}, 2 steps", controller, pipe, act, options, dtype, repeats)


def main(arguments: Sequence[str] | None = None) -> list[Record]:
    options_of = parser(__doc__)
    options_of.add_argument("--llm", default="smollm2-135m")
    options_of.add_argument("--steps", type=int, default=30, help="of the embedded default")
    options_of.add_argument("--small", action="store_true", help="a tenth of SD 1.5's widths")
    options = options_of.parse_args(arguments)
    records: list[Record] = []
    for dtype in dtypes(options.device):
        records += embedded(options, dtype)
        records += shaped(options, dtype)
    return finish(records, options)


if __name__ == "__main__":
    main()
