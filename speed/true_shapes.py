"""Encoding, drawing and training at published sizes with random weights: python speed/true_shapes.py --device cuda

Six denoisers, each with an LLM of a published size, in bfloat16; values of weights do not matter to the time. The base
draws from random prompt embeddings, as its text encoders are not built; ours includes reading the prompt. Each family
is encoded, drawn in its usual steps and, by a U-Net's few-step scheduler, in 1, 2 and 4; then Stable Diffusion's and
SDXL's adapters are trained; the compiled denoisers come last. Every record is written as soon as it is there, and
`--minutes` ends the run in time: what was not reached is named. `--quick` runs tiny models of the same classes.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import LCMScheduler
from llm_shapes import build_llm
from measuring import PROMPTS, Aim, Record, ceilings, parser, table
from shapes import FAMILIES, Shape, build_pipe, embeddings
from timed_run import Run

from llmdiff import DecoderLLM, LLMController
from llmdiff.adapter import install
from llmdiff.adapter.families import denoiser_of, family_of
from llmdiff.training.denoise import Sizes, denoise
from llmdiff.training.objective import Objective

RESULTS = Path(__file__).parents[1] / "docs" / "results"
_PROMPT = PROMPTS[1]
_FEW_STEPS = (1, 2, 4)
_BATCHES = (1, 4, 16)
_TRAINED = ("SD 1.5", "SDXL")
# By FLOPs a second attention costs a U-Net little, and SD3 16 %.
_DRAWING_AIMS = {"SD 1.5": 1.05, "SDXL": 1.05, "SD3 medium": 1.2}


def encode(run: Run, name: str, llm: DecoderLLM, controller: LLMController) -> None:
    """Time the LLM's plain pass and ours, eagerly and by CUDA graphs, and one reading of its blocks' weights."""
    context = controller.adapter.context
    assert context is not None
    ids = llm.tokenize(_PROMPT).input_ids.to(llm.device)

    @torch.no_grad()
    def plain() -> object:
        return llm.text_model(input_ids=ids, use_cache=False).last_hidden_state

    def ours() -> object:
        return context.encode(llm, _PROMPT)

    llm.captures = False
    eager = run.seconds({"ours": ours, "plain": plain}, warm_up=3)
    read = sum(weight.nbytes for block in llm.blocks for weight in block.parameters())
    limit = read / ceilings(run.device, run.dtype, quick=run.quick)["bytes_per_s"]
    more: dict[str, Any] = {"unit": "s per prompt", "limit_by_bandwidth": limit, "tokens": ids.shape[1]}
    run.add(f"encode, {name}, eager", ours=eager["ours"], other=eager["plain"], **more)
    llm.captures = True
    if not run.on_gpu:
        return
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        plain()
    captured = run.seconds({"ours": ours, "plain": graph.replay}, warm_up=4)
    run.add(
        f"encode, {name}, CUDA graphs",
        ours=captured["ours"],
        other=captured["plain"],
        aim=Aim(value=1.3),
        **more,
    )
    run.add(
        f"encode, {name}, CUDA graphs against the bandwidth limit",
        ours=captured["ours"],
        other=limit,
        unit="s per prompt",
        aim=Aim(value=3.0),
    )


def draw(run: Run, shape: Shape, controller: LLMController, pipe: Any, *, few: bool = False) -> None:
    """Time a picture with the LLM attached and by the base, in the usual number of steps or in few."""
    side = (64 if shape.title != "Sana 1.6B" else 32 * 4) if run.quick else shape.side_px
    usual = pipe.scheduler
    for steps in _FEW_STEPS if few else (2 if run.quick else shape.steps,):
        what = f"draw, {shape.title}, {side} px, {steps} {'LCM steps' if few else 'steps'}"
        acts = drawings(run, shape, pipe, steps, side, guided=shape.guided and not few)
        if few:
            pipe.scheduler = LCMScheduler.from_config(usual.config)
        try:
            seconds = run.seconds(acts, within={"ours": lambda: controller.attached(pipe, 1.0)})
        finally:
            pipe.scheduler = usual
        aim = None if few or shape.title not in _DRAWING_AIMS else Aim(value=_DRAWING_AIMS[shape.title])
        run.add(what, ours=seconds["ours"], other=seconds["base"], unit="s per picture", aim=aim)


def drawings(
    run: Run, shape: Shape, pipe: Any, steps: int, side: int, *, guided: bool
) -> dict[str, Callable[[], object]]:
    """Return the drawing of one picture by the base and with the LLM."""
    given = embeddings(shape, run.device, run.dtype, quick=run.quick)
    if not guided:
        given = {name: value for name, value in given.items() if not name.startswith("negative")}
    call: dict[str, Any] = {
        "num_inference_steps": steps,
        "guidance_scale": 5.0 if guided else 3.5 if shape.title == "Flux dev" else 1.0,
        "height": side,
        "width": side,
        "output_type": "latent",
        **shape.call,
    }
    # Some pipelines read a default negative prompt beside embeddings unless there is none.
    nothing = {"negative_prompt": None} if shape.masked else {}

    def act(**text: Any) -> object:
        return pipe(**text, **call, generator=torch.Generator().manual_seed(0))

    return {"base": lambda: act(**given, **nothing), "ours": lambda: act(prompt=_PROMPT)}


def compiled(run: Run, shape: Shape, controller: LLMController, pipe: Any) -> None:
    """Time the same with the denoiser compiled: base, then ours, as both compile separately."""
    side = (64 if shape.title != "Sana 1.6B" else 32 * 4) if run.quick else shape.side_px
    steps = 2 if run.quick else shape.steps
    acts = drawings(run, shape, pipe, steps, side, guided=shape.guided)
    denoiser_of(pipe).compile(backend=run.backend)
    with controller.attached(pipe, 1.0):
        ours = run.seconds({"ours": acts["ours"]}, warm_up=2)["ours"]
    torch.compiler.reset()
    base = run.seconds({"base": acts["base"]}, warm_up=2)["base"]
    torch.compiler.reset()
    aim = Aim(value=_DRAWING_AIMS[shape.title]) if shape.title in _DRAWING_AIMS else None
    run.add(f"draw, {shape.title}, {side} px, {steps} steps, compiled", ours=ours, other=base,
            unit="s per picture", aim=aim)  # fmt: skip


def train(
    run: Run, shape: Shape, controller: LLMController, pipe: Any, batch: int, *, checkpoints: bool
) -> None:
    """Time a training step from stored encodings, and one that reads the captions in every step."""
    adapter, llm = controller.adapter, controller.llm
    assert isinstance(llm, DecoderLLM)
    assert adapter.context is not None
    denoiser, family = denoiser_of(pipe), family_of(pipe)
    any_denoiser: Any = denoiser
    captions = [PROMPTS[place % len(PROMPTS)] for place in range(batch)]
    stored = adapter.context.encode(llm, captions)
    side = any_denoiser.config.sample_size
    px = side * 8
    latents = torch.randn(batch, shape.latent_channels, side, side, device=run.device)
    sizes = [Sizes(original=(px, px), crop=(0, 0), target=(px, px))] * batch
    objective = Objective.of(pipe.scheduler)
    generator = torch.Generator().manual_seed(0)
    learned = [one for name, one in adapter.named_parameters() if not name.startswith("context.")]
    for parameter in learned:
        parameter.requires_grad_(True)
    optimiser = torch.optim.AdamW(learned, lr=1e-4)

    def step(encoding: Any) -> None:
        noised = objective.noised(latents, generator)
        with torch.autocast(torch.device(run.device).type, torch.bfloat16, enabled=run.on_gpu):
            states, pooled = adapter.condition(encoding)
            output = denoise(denoiser, family, noised.latents, noised.timesteps, states, pooled, sizes)
            loss = objective.loss(output, noised)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        optimiser.zero_grad()

    acts: dict[str, Callable[[], object]] = {
        "ours": lambda: step(stored),
        "usual": lambda: step(adapter.context.encode(llm, captions) if adapter.context else stored),
    }
    if checkpoints:
        any_denoiser.enable_gradient_checkpointing()
    peaks: dict[str, Any] = {}
    try:
        with install(denoiser, adapter):
            seconds = run.seconds(acts)
            if run.on_gpu:
                # The LLM leaves the device once everything is in the store.
                llm.to("cpu")
                torch.cuda.reset_peak_memory_stats()
                step(stored)
                peaks["gpu_mib"] = torch.cuda.max_memory_allocated() / 2**20
                llm.to(run.device)
                torch.cuda.reset_peak_memory_stats()
                acts["usual"]()
                peaks["usual_gpu_mib"] = torch.cuda.max_memory_allocated() / 2**20
    finally:
        any_denoiser.disable_gradient_checkpointing()
        if run.on_gpu:
            llm.to(run.device)
    how = ", gradient checkpointing" if checkpoints else ""
    run.add(
        f"train, {shape.title}, {px} px, batch {batch}{how}",
        ours=seconds["ours"],
        other=seconds["usual"],
        unit="s per step",
        samples_per_s=batch / seconds["ours"],
        **peaks,
    )


def family(run: Run, shape: Shape, read: set[str], *, compile_it: bool) -> None:
    """Run all measurements of one family, or those with its denoiser compiled."""
    torch.manual_seed(0)
    llm = build_llm(shape.llm, run.device, run.dtype, quick=run.quick)
    pipe = build_pipe(shape, run.device, run.dtype, quick=run.quick)
    controller = LLMController.create(llm, pipe)
    if compile_it:
        run.tried(f"draw, {shape.title}, compiled", lambda: compiled(run, shape, controller, pipe))
        return
    if shape.llm not in read:
        read.add(shape.llm)
        run.tried(f"encode, {shape.llm}", lambda: encode(run, shape.llm, llm, controller))
    run.tried(f"draw, {shape.title}", lambda: draw(run, shape, controller, pipe))
    if shape.title in _TRAINED:
        run.tried(f"draw, {shape.title}, few steps", lambda: draw(run, shape, controller, pipe, few=True))
        for batch in _BATCHES[:1] if run.quick else _BATCHES:
            for checkpoints in (False, True):
                run.tried(
                    f"train, {shape.title}, batch {batch}",
                    lambda batch=batch, checkpoints=checkpoints: train(  # type: ignore[misc]
                        run, shape, controller, pipe, batch, checkpoints=checkpoints
                    ),
                )


def main(arguments: Sequence[str] | None = None) -> list[Record]:
    options_of = parser(__doc__ or "")
    options_of.add_argument("--minutes", type=float, default=6.0, help="after these nothing new is begun")
    options_of.add_argument(
        "--family", action="append", help="a title of shapes.FAMILIES; may be repeated [all]"
    )
    options = options_of.parse_args(arguments)
    if options.out is None and torch.device(options.device).type == "cuda" and not options.quick:
        options.out = RESULTS / "performance-gpu.json"
    run = Run(options, __doc__ or "")
    read: set[str] = set()
    for compile_it in (False, True):
        for shape in FAMILIES:
            if options.family is None or shape.title in options.family:
                what = f"{shape.title}{', compiled' if compile_it else ''}"
                run.tried(what, lambda shape=shape, compile_it=compile_it: family(  # type: ignore[misc]
                    run, shape, read, compile_it=compile_it
                ))  # fmt: skip
    print(table(run.records))
    return run.records


if __name__ == "__main__":
    main()
