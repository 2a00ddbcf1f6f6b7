"""Where the time of a training step goes, in `llmdiff train` itself: python speed/training_step.py

The loop's own functions are timed from outside, each without those that it calls: data (reading, waiting for what is
read ahead), the LLM, the VAE, the denoiser's forward, backward, and the optimiser with clipping and averaging. Once
with encodings and latents from the store, as configured by default, and once with neither: then every step reads its
captions and encodes its pictures, and nothing is read ahead, so that no part hides behind another. A GPU is waited for
at every border, which costs a little. The first step is not timed.
"""

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import get_ident
from typing import Any
from unittest.mock import patch

from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from measuring import Aim, Record, finish, parser, record, wait
from tiny_models import tiny_llm

from llmdiff.language.encoding import ContextEncoding
from llmdiff.language.llm import DecoderLLM
from llmdiff.training import batches, loop, trainer
from llmdiff.training.batches import Prefetcher
from llmdiff.training.config import load_config

_CONFIG = Path(__file__).parents[1] / "configs" / "openmoji-smollm2.yaml"


class Clock:
    """Seconds by part in the thread that made it; of a part inside another, only the inner one counts."""

    def __init__(self, device: str) -> None:
        self.device, self._thread = device, get_ident()
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._parts: list[str] = []
        self._since = self.began = time.perf_counter()
        self.steps = -1

    def timed(self, part: str, act: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with its time counted for a part."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            if get_ident() != self._thread:
                return act(*args, **kwargs)
            self._border()
            self._parts.append(part)
            try:
                return act(*args, **kwargs)
            finally:
                self._border()
                self._parts.pop()

        return counted

    def end_step(self) -> None:
        """End a step; times before the end of the first step are discarded."""
        self._border()
        self.steps += 1
        if self.steps == 0:
            self.seconds.clear()
            self.began = self._since

    @property
    def total(self) -> float:
        """Return the seconds from the end of the first step to that of the last."""
        return self._since - self.began

    def _border(self) -> None:
        wait(self.device)
        now = time.perf_counter()
        self.seconds[self._parts[-1] if self._parts else "rest"] += now - self._since
        self._since = now


@contextmanager
def every_part_timed(clock: Clock) -> Iterator[None]:
    """Return a context that times the parts of a step."""
    update, create = EMAModel.step, loop.create_optimizer

    def last(self: EMAModel, parameters: Any) -> None:
        clock.timed("optimiser", update)(self, parameters)
        clock.end_step()

    def created(*args: Any, **kwargs: Any) -> Any:
        optimizer = create(*args, **kwargs)
        optimizer.step = clock.timed("optimiser", optimizer.step)
        return optimizer

    parts = [
        (loop._Loss, "forward", "forward"),
        (Accelerator, "backward", "backward"),
        (loop, "clipped_norm", "optimiser"),
        (Prefetcher, "get", "data"),
        (ContextEncoding, "encode", "LLM"),
        (DecoderLLM, "block_updates", "LLM"),
        (batches, "encode_pictures", "VAE"),
    ]
    patches = [
        patch.object(owner, name, clock.timed(part, getattr(owner, name))) for owner, name, part in parts
    ]
    patches += [patch.object(EMAModel, "step", last), patch.object(loop, "create_optimizer", created)]
    for one in patches:
        one.start()
    try:
        yield
    finally:
        for one in reversed(patches):
            one.stop()


def tiny_llm_folder(folder: Path) -> str:
    """Return the folder that a tiny LLM was saved to."""
    llm = tiny_llm()
    llm.model.save_pretrained(folder / "tiny-llm")
    llm.tokenizer.save_pretrained(folder / "tiny-llm")
    return str(folder / "tiny-llm")


def train(options: Any, folder: Path, *, stored: bool) -> Clock:
    """Return the clock of a short run."""
    changes = {
        "out": folder / "run",
        "store": folder / "store",
        "models.llm": tiny_llm_folder(folder) if options.quick else options.llm,
        "data.scenes": max(2 * options.batch, 4),
        "data.store_latents": stored,
        "training.steps": options.steps + 1,
        "training.batch_size": options.batch,
        "training.lr_warmup_steps": 1,
        "training.warm_start_steps": 0,
        "training.gains": "frozen",
        "training.gain_steps": 0,
        "training.score_groups": "null",
        "training.encodings": "store" if stored else "online",
        "training.prefetch": 2 if stored else 0,
        "training.log_every": 1,
        "watch.validation_samples": 0,
        "watch.prompts": "[]",
        "watch.trackers": "[]",
    }
    if options.device == "cpu":
        changes["device"] = "cpu"
    config = load_config(_CONFIG, [f"{key}={value}" for key, value in changes.items()])
    clock = Clock(options.device)
    with every_part_timed(clock):
        trainer.train_adapter(config)
    return clock


def main(arguments: Sequence[str] | None = None) -> list[Record]:
    options_of = parser(__doc__)
    options_of.add_argument("--llm", default="smollm2-135m")
    options_of.add_argument("--batch", type=int, default=48)
    options_of.add_argument("--steps", type=int, default=20)
    options = options_of.parse_args(arguments)
    if options.quick:
        options.batch, options.steps = 2, 2
    records: list[Record] = []
    for stored in (True, False):
        with tempfile.TemporaryDirectory() as folder:
            clock = train(options, Path(folder), stored=stored)
        total = clock.total
        neither = total - clock.seconds["forward"] - clock.seconds["backward"]
        records.append(
            record(
                f"training step, {'encodings and latents from the store' if stored else 'nothing stored'}: "
                "neither forward nor backward",
                ours=neither / clock.steps,
                other=total / clock.steps,
                unit="s per step",
                device=options.device,
                aim=Aim(value=0.1) if stored else None,
                shares={part: seconds / total for part, seconds in sorted(clock.seconds.items())},
                batch_size=options.batch,
            )
        )
        for part, seconds in sorted(clock.seconds.items(), key=lambda item: -item[1]):
            print(f"{part}: {100 * seconds / total:.1f} %")
    return finish(records, options)


if __name__ == "__main__":
    main()
