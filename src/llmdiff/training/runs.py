"""Identify a run when it resumes, and lock its folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from llmdiff.errors import LLMDiffError
from llmdiff.files import not_writable, sweep
from llmdiff.language.digests import model_digest
from llmdiff.training.config import TrainConfig, WatchConfig
from llmdiff.training.loop_config import LoopConfig
from llmdiff.training.prepare import TrainingModels
from llmdiff.training.resume import flat

# Settings outside the loop that may change when a run resumes: paths, threads, logs. All others, also new ones, are
# compared.
_HARMLESS = {"out", "store", "device", "data.path", "data.threads", "data.max_bad_share"}
_HARMLESS |= {"training.prefetch", "training.gradient_checkpointing", "training.compile"}
_HARMLESS |= {f"watch.{name}" for name in WatchConfig.model_fields if name != "validation_samples"}
# The loop compares these itself, except the optimiser, for which it has one name for two.
_OF_THE_LOOP = {f"training.{name}" for name in LoopConfig.__dataclass_fields__ if name != "optimizer"}


def identity(config: TrainConfig, models: TrainingModels) -> dict[str, Any]:
    """Return the values that must be equal when a run resumes: settings, samples, and models behind its stores."""
    told = flat(config.model_dump(mode="json"))
    found = {name: value for name, value in told.items() if name not in _HARMLESS | _OF_THE_LOOP}
    found["samples"] = models.samples.fingerprint
    if config.training.stores_encodings:
        found["weights of the LLM"] = model_digest(models.llm.model)
    if config.data.store_latents:
        found["weights of the VAE"] = model_digest(models.pipe.vae)
    return found


@contextmanager
def only_run(out: Path) -> Iterator[None]:
    """Return a context that locks the folder for one run and removes temporary files of killed ones.

    Raises:
        LLMDiffError: another run uses the folder.
        OutputError: the folder cannot be written.
    """
    lock = FileLock(out / ".lock", timeout=0)
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise LLMDiffError(
            f"out {out} is in use by another run: wait for it, or choose another folder"
        ) from error
    except OSError as error:
        raise not_writable(out, error) from error
    try:
        sweep(out)
        yield
    finally:
        lock.release()
