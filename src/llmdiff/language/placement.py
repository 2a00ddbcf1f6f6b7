"""Move an LLM's weights between CPU and device: always on the device, only while encoding, or block by block."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from llmdiff.errors import ConfigError, first_line

_CPU = torch.device("cpu")
# One lock for all LLMs, held only while weights move, never while an LLM computes.
_moving = threading.RLock()


class Placement:
    """Move the weights of one model; call `before_move` before every move."""

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
        """Return the device that the LLM computes on."""
        return _embedding_device(self._model) if self.stays else self._device

    @property
    def stays(self) -> bool:
        """Return whether the weights stay on their device between passes."""
        return not self._free_after_encoding and self._kept_on_cpu is None

    @property
    def free_after_encoding(self) -> bool:
        """Return whether the weights are on `device` only while the LLM encodes."""
        return self._free_after_encoding

    @free_after_encoding.setter
    def free_after_encoding(self, free: bool) -> None:
        with _moving:
            if self._kept_on_cpu is not None and free:
                return  # block offloading keeps no weights on the device already
            self._device = self.device
            if free and not self._users:
                self._move(_CPU)
            # Set after the move, so that a failed move changes nothing.
            self._free_after_encoding = free

    def to(self, device: torch.device) -> None:
        """Make the LLM compute on `device`.

        Raises:
            ConfigError: the weights are offloaded block by block, or cannot be moved.
        """
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
        """Keep the weights on the CPU and move each module's to `device` only while that module runs."""
        from accelerate import cpu_offload  # type: ignore[import-untyped]

        with _moving:
            if self._kept_on_cpu is not None:
                return
            self._move(_CPU)
            kept = dict(self._model.state_dict())
            cpu_offload(self._model, execution_device=device, state_dict=kept)
            self._device, self._kept_on_cpu, self._free_after_encoding = device, kept, False

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every weight by name, from the device or the CPU."""
        if self._kept_on_cpu is not None:
            yield from self._kept_on_cpu.items()
        else:
            yield from self._model.named_parameters()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep the weights on `device` while at least one `with` block of any thread is open."""
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
                # Also after an error: a move that ran out of memory must leave nothing on the device.
                if self._free_after_encoding and not self._users:
                    self._move(_CPU)

    def _move(self, device: torch.device) -> None:
        """Move the weights unless they are on the device already."""
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
                # The allocator caches freed memory; release it for other libraries and processes.
                torch.get_device_module(left).empty_cache()


def _embedding_device(model: Any) -> torch.device:
    device: torch.device = model.get_input_embeddings().weight.device
    return device


def _same(wanted: torch.device, present: torch.device) -> bool:
    """Return whether both are the same device; "cuda" without an index matches every index."""
    return wanted.type == present.type and (wanted.index is None or wanted.index == present.index)
