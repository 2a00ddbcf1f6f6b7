"""Training with several processes through accelerate: collectives, gradient synchronisation and trackers."""

import importlib.util
import logging
import re
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from accelerate.state import AcceleratorState, PartialState  # type: ignore[import-untyped]
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, gather_object  # type: ignore[import-untyped]
from PIL import Image
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from llmdiff.environment import check_extra
from llmdiff.errors import ConfigError, LLMDiffError
from llmdiff.training.loop_config import LoopConfig

# Time-out of collectives: one process may prepare data while the others wait.
_PATIENCE = timedelta(hours=2)
_TENSORBOARD = "tensorboard"


_T = TypeVar("_T")
_log = logging.getLogger(__name__)


def has_bfloat16(device: torch.device) -> bool:
    """Return whether the device computes in bfloat16 faster than in float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        can = torch.cpu.get_capabilities()
        return any(can.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return True


def attention_kernel(device: torch.device) -> AbstractContextManager[None]:
    """Return a context with the kernel that trains attention over few tokens fastest.

    On a CPU the backward pass of the fused kernel is slow in bfloat16: forward and backward over 96 x 9 heads of 45
    tokens take 107 ms of one core with it and 50 ms without, in float32 41 and 45 ms.
    """
    in_bfloat16 = device.type == "cpu" and torch.is_autocast_enabled("cpu")
    return sdpa_kernel(SDPBackend.MATH) if in_bfloat16 else nullcontext()


class Processes:
    """This process and the others started by a launcher (`accelerate launch`, `torch.distributed.run`).

    Without a launcher it is the only process, and results are bit for bit those without this class. `tracking` is the
    folder of the trackers' files.

    Raises:
        ConfigError: the device does not support the precision.
    """

    def __init__(
        self, config: LoopConfig, device: torch.device, tracking: Path, trackers: Sequence[str] = ()
    ) -> None:
        for name in trackers:
            check_extra("train", name)
        if config.precision == "fp16" and device.type == "cpu":  # accelerate would ignore it silently
            raise ConfigError(
                'precision "fp16" needs an accelerator, and the device is cpu: use "bf16" or "no"'
            )
        if config.precision == "bf16" and not has_bfloat16(device):
            _log.warning(
                'precision "bf16": this %s has no bfloat16 instructions, steps can take 60 times as long as with "no"',
                device.type,
            )
        # accelerate keeps the first run's precision for the whole Python process, which may have several runs.
        AcceleratorState._reset_state()
        try:
            self.accelerator = Accelerator(
                mixed_precision=config.precision,
                gradient_accumulation_steps=config.accumulation_steps,
                cpu=device.type == "cpu",
                device_placement=False,
                log_with=list(trackers) or None,
                project_dir=tracking,
                kwargs_handlers=[
                    # Some steps do not use all parameters, for instance those of the noise without noise.
                    DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False),
                    InitProcessGroupKwargs(timeout=_PATIENCE),
                ],
            )
        except ValueError as error:
            raise ConfigError(
                f'precision {config.precision!r} is not available on {device.type} ({error}): use "bf16" or "no"'
            ) from error
        self.device = device
        self.sharded = config.sharded
        self.count: int = self.accelerator.num_processes
        self.rank: int = self.accelerator.process_index
        self.is_main: bool = self.accelerator.is_main_process
        self._trackers = list(trackers)
        self._model: Any = None

    def wrap(self, model: nn.Module) -> Any:
        """Return the model wrapped for DDP, or for FSDP if sharded."""
        self._model = model
        if self.sharded:
            if not torch.distributed.is_initialized():
                raise ConfigError(
                    "sharded is True, but there is one process: start it with `accelerate launch`"
                )
            mesh = init_device_mesh(self.device.type, (self.count,))
            self._model = fully_shard(model, mesh=mesh)
        elif self.count > 1:
            self._model = self.accelerator.prepare_model(model)
        return self._model

    def gradient_sync(self, last: bool) -> AbstractContextManager[Any]:
        """Return a context for one pass; gradients are synchronised only in the `last` pass of a step."""
        if isinstance(self._model, FSDPModule):
            self._model.set_requires_gradient_sync(last)
            return nullcontext()
        return nullcontext() if last or self.count == 1 else self.accelerator.no_sync(self._model)

    def totals(self, values: Sequence[float]) -> list[float]:
        """Return the sums of these figures over all processes."""
        if self.count == 1:
            return list(values)
        summed = torch.tensor(values, dtype=torch.float64, device=self._exchange_device)
        torch.distributed.all_reduce(summed)
        return summed.tolist()

    def gathered(self, value: _T) -> list[_T]:
        """Return the values of all processes in the order of ranks."""
        return list(gather_object([value]))

    def on_main(self, act: Callable[[], None]) -> None:
        """Run `act` on the main process while the others wait.

        Raises:
            LLMDiffError: `act` raised an error; raised on all processes.
        """
        failure: Exception | None = None
        if self.is_main:
            try:
                act()
            except Exception as error:
                failure = error
        failed = self.totals([float(failure is not None)])[0] > 0
        if failure is not None:
            raise failure
        if failed:
            raise LLMDiffError("the main process stopped; its message says why")

    @contextmanager
    def unsharded(self) -> Iterator[None]:
        """Return a context in which every process has all parameters, for sample pictures and validation."""
        if isinstance(self._model, FSDPModule):
            self._model.unshard()
            try:
                yield
            finally:
                self._model.reshard()
        else:
            yield

    def start_tracking(self, title: str, config: Mapping[str, Any]) -> None:
        """Start a run with this name in the trackers."""
        if not self._trackers:
            return
        self.accelerator.init_trackers(re.sub(r"[^\w.-]+", "-", title))
        plain = {
            name: value if isinstance(value, int | float | str | bool) else str(value)
            for name, value in config.items()
        }
        for tracker in self.accelerator.trackers:
            if tracker.name == _TENSORBOARD:  # its store_init_configuration would add a second run
                rows = "\n".join(f"| {name} | {value} |" for name, value in plain.items())
                tracker.log({"settings": f"| setting | value |\n|---|---|\n{rows}"}, step=0)
            else:
                tracker.store_init_configuration(plain)

    def track(self, figures: Mapping[str, float], step: int) -> None:
        """Log figures in the trackers."""
        self.accelerator.log(dict(figures), step=step)

    def track_picture(self, name: str, picture: Image.Image, step: int) -> None:
        """Log a picture in the trackers."""
        for tracker in self.accelerator.trackers:
            form = {"dataformats": "NHWC"} if tracker.name == _TENSORBOARD else {}
            tracker.log_images({name: np.asarray(picture.convert("RGB"))[None]}, step=step, **form)

    def stop_tracking(self) -> None:
        """Close the trackers."""
        for tracker in self.accelerator.trackers:
            tracker.finish()

    @property
    def _exchange_device(self) -> torch.device:
        return self.device if torch.distributed.get_backend() != "gloo" else torch.device("cpu")


def launched_process(device: str | None) -> Any:
    """Return accelerate's state of this process with its device; `device` "cpu" forces the CPU."""
    return PartialState(cpu=device == "cpu", timeout=_PATIENCE)


def full_tensor(tensor: Tensor) -> Tensor:
    """Return a tensor with all its shards; all processes have to call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def clipped_norm(parameters: Iterable[nn.Parameter], max_norm: float) -> float:
    """Clip the norm of all gradients to `max_norm` and return the norm before clipping."""
    return float(full_tensor(nn.utils.clip_grad_norm_(parameters, max_norm)))


def shard_like(value: Tensor, tensor: Tensor) -> Tensor:
    """Return a full tensor, sharded as `tensor` is."""
    if isinstance(tensor, DTensor):
        return distribute_tensor(value.to(tensor.device), tensor.device_mesh, tensor.placements)
    return value


def installed_trackers() -> list[str]:
    """Return the default trackers: tensorboard if it is installed."""
    return [name for name in (_TENSORBOARD,) if importlib.util.find_spec(name) is not None]


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Return a context whose value tells whether SIGTERM was received; outside the main thread it is never set."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
