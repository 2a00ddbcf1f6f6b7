"""Counts what would make the host wait for a GPU, on the CPU."""

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Operations that read values back from the device.
_WAIT = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique2", "_unique2"}


class Waits(TorchDispatchMode):
    """Counts the operations that would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        indices = args[1] if name.startswith("index") and len(args) > 1 and isinstance(args[1], list) else []
        by_mask = any(one is not None and one.dtype == torch.bool for one in indices)
        if name in _WAIT or by_mask:
            self.found[name] += 1
        return func(*args, **(kwargs or {}))
