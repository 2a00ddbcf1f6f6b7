"""Where an LLM's weights are: on its device, there only while it encodes, or there block by block."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from llmdiff.errors import ConfigError, first_line

_CPU = torch.device("cpu")
# One for all LLMs: held only while weights move, never while an LLM computes.
_moving = threading.RLock()


class Placement:
    """Moves one model's weights; `before_move` is called before every move."""

    def __init__(self, model: Any, *, id: str, before_move: Callable[[], None]) -> None:
        self._model = model
        self._id = id
        self._before_move = before_move
        self._device = _embedding_device(model)
        self._free_after_encoding = False
        self._kept_on_cpu: dict[str, Tensor] | None = None
        self._users = 0

    @property
    def device(self) -> torch.device:
        """The device that the LLM computes on."""
        if self._free_after_encoding or self._kept_on_cpu is not None:
            return self._device
        return _embedding_device(self._model)

    @property
    def stays(self) -> bool:
        """Whether the weights stay where they are between passes."""
        return not self._free_after_encoding and self._kept_on_cpu is None

    @property
    def free_after_encoding(self) -> bool:
        """Whether the weights are on `device` only while the LLM encodes."""
        return self._free_after_encoding

    @free_after_encoding.setter
    def free_after_encoding(self, free: bool) -> None:
        with _moving:
            if self._kept_on_cpu is not None and free:
                return  # nothing of it stays on the device as it is
            self._device = self.device
            if free and not self._users:
                self._move(_CPU)
            # After the move: where it is refused, nothing has changed.
            self._free_after_encoding = free

    def to(self, device: torch.device) -> None:
        """Returns None; the LLM computes on `device` from now on."""
        with _moving:
            if self._kept_on_cpu is not None:
                raise ConfigError(
                    f"llm {self._id!r} is offloaded block by block and cannot be moved; load it again with "
                    f"device={str(device)!r}"
                )
            if not self._free_after_encoding or self._users:
                self._move(device)
            self._device = device

    def offload_blocks(self, device: torch.device) -> None:
        """Returns None; from now on every module's weights are on `device` only while that module runs."""
        from accelerate import cpu_offload  # type: ignore[import-untyped]

        with _moving:
            if self._kept_on_cpu is not None:
                return
            self._move(_CPU)
            kept = dict(self._model.state_dict())
            cpu_offload(self._model, execution_device=device, state_dict=kept)
            self._device, self._kept_on_cpu, self._free_after_encoding = device, kept, False

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yields every weight by name, wherever it is kept."""
        if self._kept_on_cpu is not None:
            yield from self._kept_on_cpu.items()
        else:
            yield from self._model.named_parameters()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Brings the weights to `device` for as long as one `with`, of any thread, is open."""
        with _moving:
            self._users += 1
        try:
            with _moving:
                if self._free_after_encoding:
                    self._move(self._device)
            yield
        finally:
            with _moving:
                self._users -= 1
                # After an error, too: a move that ran out of memory leaves nothing behind.
                if self._free_after_encoding and not self._users:
                    self._move(_CPU)

    def _move(self, device: torch.device) -> None:
        """Moves the weights unless they are there already."""
        parameters = [*self._model.parameters(), *self._model.buffers()]
        before = {tensor.device for tensor in parameters}
        if all(_same(device, present) for present in before):
            return
        self._before_move()
        try:
            self._model.to(device)
        except torch.OutOfMemoryError:
            raise
        except (ValueError, RuntimeError) as error:
            raise ConfigError(
                f"llm {self._id!r} cannot be moved to {device} ({first_line(error)}): leave "
                "it where it was loaded, or load it without quantization_config"
            ) from error
        for left in before:
            if left.type != "cpu":
                # The allocator keeps what was freed; other libraries and processes want it back.
                torch.get_device_module(left).empty_cache()


def _embedding_device(model: Any) -> torch.device:
    device: torch.device = model.get_input_embeddings().weight.device
    return device


def _same(wanted: torch.device, present: torch.device) -> bool:
    """Whether both are one device; "cuda" without a number is the current one."""
    return wanted.type == present.type and (wanted.index is None or wanted.index == present.index)
