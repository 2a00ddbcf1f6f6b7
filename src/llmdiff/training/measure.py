"""Time a few real training steps on the current device."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from llmdiff.training.adapter_training import WARM_START
from llmdiff.training.config import TrainConfig
from llmdiff.training.log import read_log
from llmdiff.training.trainer import train_adapter

# Steps that are not timed: they include work that is done once.
_WARM_UP = 2
# Number of batches of samples to read, so that enough of them have the same shape for whole batches.
_BATCHES = 16


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Median time of real training steps of one process, and the extrapolated time of the whole training.

    Units: seconds, samples, hours, 10^9 bytes. `peak_memory_gb`: of the GPU, or of the process on a CPU.
    """

    steps: int
    device: str
    step_s: float
    samples_per_s: float
    training_hours: float
    peak_memory_gb: float

    def text(self) -> str:
        """Return the result in two sentences."""
        hours = self.training_hours
        time = f"{hours:.3g} hours" if hours >= 1 else f"{60 * hours:.3g} minutes"
        return (
            f"measured on {self.device}, {self.steps} steps of one process: {self.step_s:.3g} s a step, "
            f"{self.samples_per_s:.3g} samples/s, {self.peak_memory_gb:.3g} GB at the peak.\n"
            f"All steps at that rate take {time}, without validation, sample pictures, "
            "filling the store, and communication between processes."
        )


def measure(config: TrainConfig, *, steps: int = 10) -> Measured:
    """Return the time of real training steps on whole batches of one shape; the trained weights are discarded.

    Missing entries of the first samples are added to the store. Without steps on pictures, those from captions are
    timed.

    Raises:
        LLMDiffError: see `train_adapter`.
    """
    import torch

    training, from_captions = config.training, not config.training.steps
    per_step = training.batch_size * training.accumulation_steps
    with tempfile.TemporaryDirectory() as folder:
        short = config.model_copy(
            update={
                "out": Path(folder) / "run",
                "store": config.store_folder,
                "training": training.model_copy(
                    update={
                        "steps": 0 if from_captions else steps + _WARM_UP,
                        "log_every": 1,
                        "warm_start_steps": steps + _WARM_UP if from_captions else 0,
                        # Steps on pictures after the stage of gains have fixed gains.
                        "gains": "frozen" if training.gains == "first" else training.gains,
                        "gain_steps": 0,
                        "score_groups": None if training.gains == "first" else training.score_groups,
                        "checkpoint_every_s": 1e9,
                    }
                ),
                "watch": config.watch.model_copy(
                    update={"validation_samples": None if from_captions else 0, "prompts": (), "trackers": ()}
                ),
            }
        )
        train_adapter(short, samples=_BATCHES * training.batch_size)
        lines = read_log((short.out / WARM_START if from_captions else short.out) / "log.jsonl")
    step_s = median(1 / line["steps_per_s"] for line in lines[_WARM_UP:])
    gpu = config.device != "cpu" and torch.cuda.is_available()
    return Measured(
        steps=steps,
        device=torch.cuda.get_device_name() if gpu else "the CPU",
        step_s=step_s,
        samples_per_s=per_step / step_s,
        training_hours=step_s * (training.steps or training.warm_start_steps) / 3600,
        peak_memory_gb=max(line["memory_gb"] for line in lines),
    )
