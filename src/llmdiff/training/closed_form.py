"""Convert an adapter to another LLM without training: fold a linear map between both encodings into its weights.

n and n' are the normalised encodings of the same characters, norm(c), by the old and by the new LLM. With

    n ~ M n' + m                                    ridge regression over the tokens of captions

every layer of the old adapter that reads an encoding reads the new one through M:

    W' = W M        W: the refiner's first projection, phi, keys and values of every branch, the pooled projection
    O' = M+ O       O: the refiner's last projection, which writes into the encoding
    b' = b + W m    b: their biases. Keys have none, and the softmax over tokens ignores a constant added to all keys;
                    for values, W m goes through the branch's output into its bias

M+ is the pseudo-inverse of M in the metric of the readers, sum_W W^T W: if the new encoding is narrower than the old
one, it drops the directions with the least effect on the readers. If n is exactly M n' + m and M has full row rank,
both adapters give the same outputs.

Source: ours. Ridge regression: Hoerl and Kennard 1970.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from llmdiff.adapter import families
from llmdiff.adapter.adapter import LLMDiffAdapter
from llmdiff.adapter.processors import CrossAttentionBranch
from llmdiff.errors import DataError
from llmdiff.language.llm import DecoderLLM

_RIDGES = [10.0**power for power in range(-9, 2)]  # times the mean variance of n'
_SMALLEST = 1e-3  # singular value that M+ inverts, as a share of the largest
_NOTHING = 1e-9  # a variance, as a share of the largest
_TINY = 1e-12


@dataclass(frozen=True, kw_only=True)
class TokenMap:
    """n ~ weight n' + bias.

    Fields:
        unexplained: unexplained share of the readers' variance on held-out captions.
        ridge: the penalty, as a share of the mean variance of n'. tokens: number of tokens in the fit.

    Shapes: weight (D, D'), bias (D,), both float64.
    """

    weight: Tensor
    bias: Tensor
    unexplained: float
    ridge: float
    tokens: int


class Moments:
    """Running sums over aligned tokens for a ridge regression, in constant memory.

    Shapes: x (N, D'), y (N, D).
    """

    def __init__(self, parts: Iterable[tuple[Tensor, Tensor]]) -> None:
        self.count = 0
        self.x: Any = 0.0
        self.y: Any = 0.0
        self.xx: Any = 0.0
        self.xy: Any = 0.0
        self.yy: Any = 0.0
        for x, y in parts:
            x, y = x.double(), y.double()
            self.count += len(x)
            self.x, self.y = self.x + x.sum(0), self.y + y.sum(0)
            self.xx, self.xy, self.yy = self.xx + x.T @ x, self.xy + x.T @ y, self.yy + y.T @ y

    def around(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mean products of x with x, x with y and y with y, centred on these points."""
        n = self.count
        return (
            _around(self.xx / n, self.x / n, self.x / n, x, x),
            _around(self.xy / n, self.x / n, self.y / n, x, y),
            _around(self.yy / n, self.y / n, self.y / n, y, y),
        )

    @property
    def spread(self) -> Tensor:
        """Return the covariance of y, (D, D)."""
        mean = self.y / self.count
        return _around(self.yy / self.count, mean, mean, mean, mean)


def _around(product: Tensor, one: Tensor, other: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return the mean of (a - x)(b - y)^T from the mean of a b^T and the means of a and b."""
    return product - torch.outer(one, y) - torch.outer(x, other) + torch.outer(x, y)


def fit_map(fitted: Moments, held_out: Moments, metric: Tensor) -> TokenMap:
    """Return the ridge regression of y on x with the best penalty on held-out tokens, in the readers' metric.

    Raises:
        DataError: there are no fitted or no held-out tokens.
    """
    if not fitted.count or not held_out.count:
        raise DataError(
            "the captions share no characters that both LLMs read: expected texts in a script that both know"
        )
    x_mean, y_mean = fitted.x / fitted.count, fitted.y / fitted.count
    xx, xy, _ = fitted.around(x_mean, y_mean)
    held_xx, held_xy, held_yy = held_out.around(x_mean, y_mean)
    values, vectors = torch.linalg.eigh(xx)
    values = values.clamp(min=0)
    inside = vectors.T @ xy
    size = float(values.mean().clamp(min=_TINY))
    all_variance = float((metric * held_yy).sum().clamp(min=_TINY))
    found: list[tuple[float, float, Tensor]] = []
    for ridge in _RIDGES:
        weight = (vectors @ (inside / (values + ridge * size)[:, None])).T
        error = held_yy - weight @ held_xy - (weight @ held_xy).T + weight @ held_xx @ weight.T
        found.append((float((metric * error).sum()) / all_variance, ridge, weight))
    unexplained, ridge, weight = min(found, key=lambda one: one[0])
    unread = vectors[:, values < _NOTHING * values.max()]
    weight = _completed(weight, unread, metric)
    return TokenMap(
        weight=weight,
        bias=y_mean - weight @ x_mean,
        unexplained=unexplained,
        ridge=ridge,
        tokens=fitted.count,
    )


def readers_metric(adapter: LLMDiffAdapter, spread: Tensor) -> Tensor:
    """Return sum_W W^T W over all layers that read the normalised encoding, each divided by its output's variance.

    Shapes: spread, the covariance of n (D, D) => (D, D) float64.
    """
    total = torch.zeros_like(spread)
    for layer in _readers(adapter):
        weight = layer.weight.detach().double().cpu()
        square = weight.T @ weight
        total += square / (square * spread).sum().clamp(min=_TINY)
    return total


@torch.no_grad()
def fold_map(old: LLMDiffAdapter, new: LLMDiffAdapter, found: TokenMap, metric: Tensor) -> None:
    """Set the weights of `new` so that it reads its LLM through the map as the old adapter reads its own."""
    device = next(old.parameters()).device
    weight, bias = found.weight.to(device), found.bias.to(device)
    inverse = _inverse(weight, metric.to(device))
    new.norm.weight.fill_(1.0)
    new.norm.bias.zero_()
    written: Tensor = torch.zeros_like(bias)
    if old.refiner is not None:
        assert new.refiner is not None
        _read_through(new.refiner.to_inside, old.refiner.to_inside, weight, bias)
        new.refiner.to_outside.weight.copy_(inverse @ old.refiner.to_outside.weight.double())
        written = old.refiner.to_outside.bias.double()
        for part in ("blocks", "norm"):
            getattr(new.refiner, part).load_state_dict(getattr(old.refiner, part).state_dict())
    constant = bias + written  # the constant part of the states after the refiner
    if not _shifts_alike(old):
        shift = inverse @ constant
        (new.norm if new.refiner is None else new.refiner.to_outside).bias.copy_(shift)
        constant = constant - weight @ shift
    elif new.refiner is not None:
        new.refiner.to_outside.bias.zero_()
    _read_through(new.phi, old.phi, weight, constant)
    if old.pooled is not None:
        assert new.pooled is not None
        _read_through(new.pooled, old.pooled, weight, constant)
    for name, module in old.branches.items():
        one, twin = cast(CrossAttentionBranch, module), cast(CrossAttentionBranch, new.branches[name])
        kept = {key: value for key, value in one.state_dict().items() if key[:5] not in ("to_k.", "to_v.")}
        twin.load_state_dict(kept, strict=False)
        _read_through(twin.to_k, one.to_k, weight, constant)
        _read_through(twin.to_v, one.to_v, weight, constant)
        if one.to_out.bias is not None:
            # All values are shifted by the same vector, and attention weights sum to 1.
            value = one.to_v.weight.double() @ constant
            twin.to_out.bias.copy_(one.to_out.bias.double() + one.to_out.weight.double() @ value)


def _read_through(new: nn.Linear, old: nn.Linear, weight: Tensor, constant: Tensor) -> None:
    """Set a layer so that its output for n' is the old layer's for weight n' + constant (weight n' without bias)."""
    new.weight.copy_(old.weight.double() @ weight)
    if old.bias is not None:
        new.bias.copy_(old.bias.double() + old.weight.double() @ constant)


def _shifts_alike(adapter: LLMDiffAdapter) -> bool:
    """Return whether a constant in the encoding shifts all keys of a branch equally, so that its softmax is unchanged.

    This is so for branches that attend only to text; their output bias takes the shift of the values.
    """
    config: Any = adapter.config
    is_cross = families.family_named(config.family).text_channel == "states"
    return is_cross and all(row["out_bias"] for row in config.cross_attention.values())


def empty_adapter(old: LLMDiffAdapter, llm: DecoderLLM) -> LLMDiffAdapter:
    """Return an adapter with the old one's settings and this LLM's sizes.

    A block's gains are those of the old LLM's blocks at the same depth; scales are 1, see `ContextEncoding.calibrate`.
    The other weights are random.
    """
    config = old.arguments | {
        "llm_id": llm.id,
        "num_blocks": llm.num_blocks,
        "hidden_size": llm.hidden_size,
    }
    make: Any = LLMDiffAdapter
    new: LLMDiffAdapter = make(**config).to(next(old.parameters()).device)
    assert old.context is not None
    assert new.context is not None
    with torch.no_grad():
        for name, parameter in new.context.named_parameters():
            parameter.copy_(_at_same_depth(old.context.get_parameter(name), llm.num_blocks))
    new.eval()
    return new


def _at_same_depth(gains: Tensor, count: int) -> Tensor:
    """Return gains of `count` blocks from those at the same relative depth, with the same sum."""
    known, wanted = ((np.arange(blocks) + 0.5) / blocks for blocks in (len(gains), count))
    values = np.interp(wanted, known, gains.detach().double().cpu().numpy()) * len(gains) / count
    return torch.from_numpy(values).to(gains)


def _completed(weight: Tensor, unread: Tensor, metric: Tensor) -> Tensor:
    """Return the map with its unreachable outputs added, as images of input directions that n' never has.

    LayerNorm leaves one such input direction. The refiner may write into it.

    Shapes: weight (D, D'), unread (D', K) orthonormal.
    """
    root = _root(metric)
    left, sizes, _ = torch.linalg.svd(root @ weight)
    count = min(unread.shape[1], left.shape[1])
    lost = torch.linalg.pinv(root) @ left[:, left.shape[1] - count :]
    added: Tensor = sizes.median() * lost @ unread[:, :count].T
    return weight + added


def _inverse(weight: Tensor, metric: Tensor) -> Tensor:
    """Return the pseudo-inverse of the map in the readers' metric, which drops the least important directions."""
    root = _root(metric)
    inverse: Tensor = torch.linalg.pinv(root @ weight, rtol=_SMALLEST) @ root
    return inverse


def _root(metric: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(metric)
    root: Tensor = vectors * values.clamp(min=_TINY * float(values.max())).sqrt() @ vectors.T
    return root


def _readers(adapter: LLMDiffAdapter) -> Iterator[nn.Linear]:
    """Yield the layers that read the normalised encoding or the refiner's output."""
    yield adapter.phi
    if adapter.refiner is not None:
        yield adapter.refiner.to_inside
    if adapter.pooled is not None:
        yield adapter.pooled
    for branch in adapter.branches.values():
        yield cast(CrossAttentionBranch, branch).to_k
        yield cast(CrossAttentionBranch, branch).to_v
