"""AdamW with Muon for the matrices inside a network: fewer steps to the same loss, for one tenth more time a step."""

from typing import Any

import torch
from torch import Tensor

# The quintic of the iteration, as published: steepest at zero, so that five rounds bring every singular value near 1.
_A, _B, _C, _ROUNDS = 3.4445, -4.7750, 2.0315, 5
_MOMENTUM = 0.95


class MuonAdamW(torch.optim.AdamW):
    """AdamW, except in parameter groups with `muon=True`, whose updates are orthogonalised momentum.

    Convolutions count as matrices (outputs, inputs x height x width). An update has the root mean square of a
    typical AdamW update, so both kinds of groups share one learning rate. torch's own Muon takes 2-D parameters
    only and computes in bfloat16, which CPUs without its instructions do slowly.

    Source: Jordan et al. 2024 (Muon); Liu et al. 2025 (arXiv 2502.16982) for the scale of updates and for decay.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update of every group; gradients of `muon` groups are used up."""
        assert closure is None, "MuonAdamW takes no closure"
        for group in self.param_groups:
            if not group.get("muon"):
                continue
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.zeros(())  # AdamW expects one when it loads a state
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                state["step"] += 1
                momentum: Tensor = state["momentum_buffer"]
                momentum.lerp_(parameter.grad, 1 - _MOMENTUM)
                update = orthogonalise(parameter.grad.lerp(momentum, _MOMENTUM).flatten(1))
                scale = 0.2 * max(update.shape) ** 0.5
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update.view(parameter.shape), alpha=-group["lr"] * scale)
                parameter.grad = None  # nothing is left for AdamW to do
        return super().step()


def orthogonalise(matrix: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrix, nearly: same singular vectors, all singular values in about 0.7 to 1.2.

    Shapes: (M, N) float32, as the result.
    """
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix if wide else matrix.T
    x = x / x.norm().clamp(min=1e-7)
    # A round is X => (a + b A + c A^2) X with A = X X^T. The rounds' factors are polynomials of the first A, so
    # they are multiplied with each other, small as they are, and only their product with X.
    gram = x @ x.T
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    factors: Tensor | None = None
    for left in reversed(range(_ROUNDS)):
        factor = torch.addmm(torch.add(_A * identity, gram, alpha=_B), gram, gram, alpha=_C)
        factors = factor if factors is None else factor @ factors
        if left:
            gram = factor @ gram @ factor
    assert factors is not None
    nearest: Tensor = factors @ x
    return nearest if wide else nearest.T
