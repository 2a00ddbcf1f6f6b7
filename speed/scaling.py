"""How the cost of encoding and drawing grows as the work grows: python speed/scaling.py --plots docs/results

Encoding: prompts a second against the number of prompts in a batch, against a prompt's words, and with one process or
two, which share the cores. Drawing with the embedded default: pictures a second against the number of prompts in one
call, and with one process or two. Each figure is a median; the sizes take turns.
"""

import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from measuring import PROMPTS, Record, finish, interleaved, parser, record
from tiny_models import llm as load_llm

from llmdiff import LLMController
from llmdiff.adapter.base_pipeline import load_base_pipeline
from llmdiff.language import ContextEncoding

Points = list[dict[str, float]]
_WORDS = " ".join(PROMPTS).replace(",", "").split()


def encoder(options: Any) -> Callable[[list[str]], object]:
    llm = load_llm(options)
    context = ContextEncoding(llm.num_blocks, llm.hidden_size).to(llm.device)
    return lambda prompts: context.encode(llm, prompts)


def painter(options: Any) -> Callable[[list[str]], object]:
    pipe = load_base_pipeline("openmoji", dtype=torch.float32).to(options.device)
    pipe.set_progress_bar_config(disable=True)
    if options.quick:
        LLMController.create(load_llm(options), pipe).attach(pipe)
    else:
        llm = load_llm(options)
        LLMController.from_pretrained("openmoji", llm=llm, device=options.device).attach(pipe, 1.0)
    steps = 1 if options.quick else options.steps
    return lambda prompts: pipe(prompts, num_inference_steps=steps)


def prompts_of(count: int) -> list[str]:
    """Return this number of prompts with about 20 tokens each."""
    return [PROMPTS[number % len(PROMPTS)] for number in range(count)]


def grown(act: Callable[[list[str]], object], sizes: dict[int, list[str]], options: Any) -> Points:
    """Return the texts a second at every size; the first size stands for one unit of work."""
    acts = {str(size): lambda texts=texts: act(texts) for size, texts in sizes.items()}
    seconds = interleaved(acts, repeats=options.repeats, device=options.device)
    return [
        {"size": size, "seconds": seconds[str(size)], "per_s": len(texts) / seconds[str(size)]}
        for size, texts in sizes.items()
    ]


def _work(
    make: Callable[[Any], Callable[[list[str]], object]], options: Any, threads: int, barrier: Any
) -> None:
    torch.set_num_threads(threads)
    act, prompts = make(options), prompts_of(2 if options.quick else 8)
    act(prompts)
    barrier.wait()
    for _ in range(options.repeats):
        act(prompts)
    barrier.wait()


def with_processes(make: Callable[[Any], Callable[[list[str]], object]], count: int, options: Any) -> float:
    """Return the texts a second of so many processes together, the cores shared out between them."""
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(count + 1)
    threads = max(1, (os.cpu_count() or 1) // count)
    workers = [spawn.Process(target=_work, args=(make, options, threads, barrier)) for _ in range(count)]
    for worker in workers:
        worker.start()
    barrier.wait(600)
    began = time.perf_counter()
    barrier.wait(3600)
    seconds = time.perf_counter() - began
    for worker in workers:
        worker.join()
    return count * options.repeats * (2 if options.quick else 8) / seconds


def plot(curves: dict[str, Points], folder: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, places = pyplot.subplots(2, 3, figsize=(11, 6), layout="constrained")
    for place, (name, points) in zip(places.flat, curves.items(), strict=False):
        sizes = [one["size"] for one in points]
        place.plot(sizes, [one["per_s"] for one in points], marker="o")
        what, _, against = name.partition(" against ")
        place.set(title=what, xlabel=against, ylabel="a second")
        place.set_ylim(0, 1.1 * max(one["per_s"] for one in points))
        place.set_xscale("log", base=2)
        place.set_xticks(sizes, [f"{size:g}" for size in sizes])
        place.minorticks_off()
    for place in places.flat[len(curves) :]:
        place.axis("off")
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "scaling.png", dpi=120, metadata={"Software": None})
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> list[Record]:
    options_of = parser(__doc__)
    options_of.add_argument("--llm", default="smollm2-135m")
    options_of.add_argument("--steps", type=int, default=10, help="of every picture")
    options_of.add_argument("--plots", type=Path, help="a folder for scaling.png")
    options = options_of.parse_args(arguments)
    small = options.quick
    batches = [1, 2] if small else [1, 2, 4, 8, 16, 32]
    lengths = [4, 8] if small else [5, 10, 20, 40, 80, 160]
    encode, draw = encoder(options), painter(options)
    by_words = {
        words: [" ".join((_WORDS * 2)[start : start + words]) for start in range(8)] for words in lengths
    }
    curves = {
        "prompts encoded against prompts in a batch": grown(
            encode, {count: prompts_of(count) for count in batches}, options
        ),
        "prompts encoded against words in a prompt": grown(encode, by_words, options),
        "pictures drawn against prompts in a call": grown(
            draw, {count: prompts_of(count) for count in batches[:4]}, options
        ),
    }
    for what, make in (("prompts encoded", encoder), ("pictures drawn", painter)):
        curves[f"{what} against processes"] = [
            {"size": count, "per_s": with_processes(make, count, options)} for count in (1, 2)
        ]
    if options.plots is not None:
        plot(curves, options.plots)
    records = [
        record(
            f"{name}: {points[-1]['size']:g} against {points[0]['size']:g}",
            ours=points[-1]["per_s"],
            other=points[0]["per_s"],
            unit="a second",
            device=options.device,
            points=points,
        )
        for name, points in curves.items()
    ]
    return finish(records, options)


if __name__ == "__main__":
    main()
