"""AdamW with Muon for hidden matrices: fewer steps to the same loss, at 10 % more time for a step."""

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

# The published quintic iteration: steepest at zero, so that five rounds bring every singular value near 1.
_A, _B, _C, _ROUNDS = 3.4445, -4.7750, 2.0315, 5
_MOMENTUM = 0.95


class MuonAdamW(torch.optim.AdamW):
    """AdamW, except in parameter groups with `muon=True`, whose updates are orthogonalised momentum.

    Convolutions count as matrices (outputs, inputs x height x width). An update has the root mean square of a
    typical AdamW update, so both kinds of groups share one learning rate. torch's Muon takes only 2-D parameters.

    Args:
        muon_dtype: dtype of the orthogonalisation. bfloat16, as in the source, is fast on GPUs and on CPUs with
            bfloat16 instructions.

    Source: Jordan et al. 2024 (Muon); Liu et al. 2025 (arXiv 2502.16982) for the scale of updates and for decay.
    """

    def __init__(self, params: Any, *, muon_dtype: torch.dtype = torch.float32, **options: Any) -> None:
        super().__init__(params, **options)
        self._muon_dtype = muon_dtype

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update all parameter groups; gradients of `muon` groups are set to None."""
        assert closure is None, "MuonAdamW takes no closure"
        for group in self.param_groups:
            if not group.get("muon"):
                continue
            alike: dict[Any, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    # Orthogonalise small matrices of one shape together: on a GPU, launches take longer than the
                    # operations. Sharded matrices are updated one by one.
                    key = id(parameter) if isinstance(parameter, DTensor) else _kind(parameter)
                    alike.setdefault(key, []).append(parameter)
            for parameters in alike.values():
                self._update(parameters, group["lr"], group["weight_decay"])
        return super().step()

    def _update(self, parameters: list[Tensor], lr: float, weight_decay: float) -> None:
        """Update matrices of one shape and set their gradients to None."""
        momenta: list[Tensor] = []
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros(())  # AdamW expects it when it loads a state
                state["momentum_buffer"] = torch.zeros_like(parameter)
            state["step"] += 1
            momenta.append(state["momentum_buffer"])
        grads: list[Any] = [parameter.grad for parameter in parameters]
        torch._foreach_lerp_(momenta, grads, 1 - _MOMENTUM)
        wanted = [
            one.flatten(1).to(self._muon_dtype) for one in torch._foreach_lerp(grads, momenta, _MOMENTUM)
        ]
        if len(wanted) == 1:
            updates: Any = [orthogonalise(wanted[0])]
        else:
            updates = orthogonalise(torch.stack(wanted)).unbind()
        updates = [update.reshape(one.shape).to(one) for update, one in zip(updates, parameters, strict=True)]
        scale = 0.2 * max(wanted[0].shape) ** 0.5
        torch._foreach_mul_(parameters, 1 - lr * weight_decay)
        torch._foreach_add_(parameters, updates, alpha=-lr * scale)
        for parameter in parameters:
            parameter.grad = None  # so that AdamW skips the parameter


def _kind(parameter: Tensor) -> tuple[Any, ...]:
    return (*parameter.shape, parameter.dtype, parameter.device)


def orthogonalise(matrix: Tensor) -> Tensor:
    """Return an approximation of the nearest semi-orthogonal matrix, with singular values of about 0.7 to 1.2.

    Shapes: (M, N) float32 or bfloat16, or several (B, M, N); as the result.
    """
    wide = matrix.shape[-2] <= matrix.shape[-1]
    x = matrix if wide else matrix.mT
    x = x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    add_product = torch.addmm if x.ndim == 2 else torch.baddbmm
    # A round is X => (a + b A + c A^2) X with A = X X^T.
    if x.dtype == torch.bfloat16:
        # A from the X of each round: a product of factors would keep the rounding errors of all of them.
        for _ in range(_ROUNDS):
            gram = x @ x.mT
            x = add_product(x, add_product(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
        return x if wide else x.mT
    # The factors of all rounds are polynomials of the first A and smaller than X, so they are multiplied with each
    # other first, and their product with X at the end.
    gram = x @ x.mT
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    factors: Tensor | None = None
    for left in reversed(range(_ROUNDS)):
        factor = add_product(torch.add(_A * identity, gram, alpha=_B), gram, gram, alpha=_C)
        factors = factor if factors is None else factor @ factors
        if left:
            gram = factor @ gram @ factor
    assert factors is not None
    nearest: Tensor = factors @ x
    return nearest if wide else nearest.mT
