"""A tiny training run in processes of its own, to be started, stopped and killed by tests.

`python tiny_run.py FOLDER [key=value ...]` is the same run for a launcher. `Runs` forks its processes from the test's
own, which has imported everything already: a start takes a tenth of a second.
"""

import ast
import multiprocessing
import os
import resource
import socket
import sys
import threading
import time
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import nn
from tqdm.auto import tqdm

from llmdiff.training.loop import train
from llmdiff.training.loop_config import LoopConfig


def run(folder, *, steps=12, checkpoint_every_s=0.0, dropout=0.1, slow_s=0.0, full_at=None, **changes):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 64), nn.Dropout(dropout), nn.Tanh(), nn.Linear(64, 1))
    unused = nn.Linear(2, 2)  # a part that no step reaches
    config = LoopConfig(
        steps=steps,
        learning_rate=0.05,
        lr_warmup_steps=3,
        checkpoint_every_s=checkpoint_every_s,
        log_every=4,
        validate_every=6,
        sample_every=6,
        **changes,
    )

    def step_loss(part):
        time.sleep(slow_s)
        if part.step == full_at:
            # The kernel lets no file grow past this any more, as a full disk would.
            resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
        model.train()
        x = torch.randn(8, 4, generator=part.generator)
        return (model(x).squeeze(1) - x.sum(1)).square().mean(), {f"part_{part.index}": 1.0}

    def validate(rank, processes):
        x = torch.linspace(-1, 1, 32).reshape(8, 4)[rank::processes]
        return float((model.eval()(x).squeeze(1) - x.sum(1)).square().sum()), float(len(x))

    def sample(step):
        (Path(folder) / f"sample-{step}.txt").write_text(str(float(model.eval()(torch.ones(1, 4)))))

    train(
        {"model": model, "unused": unused},
        step_loss,
        config,
        Path(folder),
        title="tiny",
        samples_per_part=8,
        validate=validate,
        on_sample=sample,
    )
    if int(os.environ.get("RANK", "0")) == 0:
        (Path(folder) / "finished").touch()


def final_weights(folder):
    """The tensors of the last checkpoint: weights, averages and moments."""
    from llmdiff.training.checkpoint import checkpoints

    return load_file(checkpoints(Path(folder))[-1][1] / "checkpoint.safetensors")


def _rank(work, rank, processes, port, folder, options):
    if processes > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    AcceleratorState._reset_state(reset_partial_state=True)  # the test's process is another
    # A forked process shares the lock of progress bars with all others; one that is killed with it leaves it locked.
    tqdm.set_lock(threading.RLock())
    # A forked process makes torch's pool of threads anew at its first use; two threads that are first at once break it.
    torch.set_num_threads(torch.get_num_threads())
    sys.stderr = open(Path(folder) / f"stderr-{rank}", "w")  # noqa: SIM115
    work(folder, **options)


class Runs:
    """Starts runs of one or more processes: of `run`, or of other work that takes a folder."""

    def __init__(self, work=run):
        self._work = work
        self._context = multiprocessing.get_context("fork")

    def start(self, folder, processes=1, **options):
        Path(folder).mkdir(parents=True, exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        started = [
            self._context.Process(
                target=_rank, args=(self._work, rank, processes, port, str(folder), options)
            )
            for rank in range(processes)
        ]
        for process in started:
            process.start()
        return started

    def finish(self, folder, processes=1, **options):
        """The exit codes of a run that is left alone."""
        started = self.start(folder, processes, **options)
        for process in started:
            process.join(280)
        return [process.exitcode for process in started]


if __name__ == "__main__":
    run(sys.argv[1], **{key: ast.literal_eval(value) for key, value in (a.split("=") for a in sys.argv[2:])})
