"""This tree against another one, in turns: python speed/paired.py ../other --repeats 5

Each tree's library works in a process of its own, on one thread; the other waits meanwhile. Compared is the
processor's time, which other work on the machine changes little: of a picture of the embedded default under its LLM,
of one mixed with the base's own text, and of eight prompts read. `ours` is this tree, `other` that one.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from measuring import PROMPTS, Record, finish, parser, record

TREE = Path(__file__).parents[1]
_ACTS = ("draw", "draw mixed with the base", "encode 8 prompts")


def work(steps: int) -> None:
    """Answers every line of standard input, the name of an act, with its processor time in seconds."""
    import torch

    from llmdiff import DecoderLLM, LLMController

    torch.set_num_threads(1)
    llm = DecoderLLM.from_pretrained("smollm2-135m")
    controller = LLMController.from_pretrained("openmoji", llm=llm)
    pipe = controller.load_pipeline()
    pipe.set_progress_bar_config(disable=True)
    context = controller.adapter.context
    assert context is not None

    def draw(scale: float) -> None:
        with controller.attached(pipe, scale):
            pipe(PROMPTS[1], num_inference_steps=steps, generator=torch.Generator().manual_seed(0))

    does: dict[str, Callable[[], object]] = dict(
        zip(
            _ACTS,
            (lambda: draw(1.0), lambda: draw(0.7), lambda: context.encode(llm, list(PROMPTS))),
            strict=True,
        )
    )
    for line in sys.stdin:
        began = time.process_time()
        does[line.strip()]()
        print(json.dumps(time.process_time() - began), flush=True)


def worker(tree: Path, steps: int) -> Callable[[str], float]:
    """Starts a process with a tree's library; returns what lets it do an act and gives the seconds."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", __file__, "--work", str(steps)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tree.absolute() / "src"), "OMP_NUM_THREADS": "1"},
    )

    def ask(act: str) -> float:
        assert process.stdin is not None
        assert process.stdout is not None
        print(act, file=process.stdin, flush=True)
        return float(json.loads(process.stdout.readline()))

    return ask


def main(arguments: Sequence[str] | None = None) -> list[Record]:
    options_of = parser(__doc__ or "")
    options_of.add_argument("tree", type=Path, nargs="?", default=TREE, help="the other tree [this one]")
    options_of.add_argument(
        "--work",
        type=int,
        metavar="STEPS",
        help="answer questions on standard input",
    )
    options = options_of.parse_args(arguments)
    if options.work is not None:
        work(options.work)
        return []
    steps = 2 if options.quick else 20
    trees = {"ours": worker(TREE, steps), "other": worker(options.tree, steps)}
    records = []
    for act in _ACTS:
        found: dict[str, list[float]] = {name: [ask(act)][:0] for name, ask in trees.items()}  # warmed up
        for turn in range(options.repeats):
            for name in sorted(trees, reverse=bool(turn % 2)):
                found[name].append(trees[name](act))
        ours, other = median(found["ours"]), median(found["other"])
        spread = [max(times) / min(times) - 1 for times in found.values()]
        records.append(
            record(
                f"{act}, this tree against another",
                ours=ours,
                other=other,
                unit="s of the processor",
                device="cpu",
                largest_spread=max(spread),
            )
        )
    return finish(records, options)


if __name__ == "__main__":
    main()
