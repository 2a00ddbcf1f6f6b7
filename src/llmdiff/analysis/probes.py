"""Probes: how much of a caption's content a linear reader finds in a text encoding."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmdiff.openmoji.contents import World
from llmdiff.openmoji.scenes import Content
from llmdiff.openmoji.world import RELATIONS, SHAPES
from llmdiff.types import TextEncoding

Batch = Callable[[Sequence[int]], TextEncoding]
"""Indices of captions => their encodings; gains that are learned may take part in the gradient."""


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What a probe is asked for pair scenes: which thing stands first (left or top), which second, along which axis.

    Shapes: first, second, axis (N,) int64.
    """

    first: Tensor
    second: Tensor
    axis: Tensor

    @classmethod
    def of(cls, contents: Sequence[Content], world: World) -> "Targets":
        """The targets of contents that are all pairs."""
        names = [thing.name for thing in world.things] + list(SHAPES)
        rows = []
        for content in contents:
            assert content.relation in RELATIONS, "a probe is asked for pairs only"
            pair = [names.index(item.name) for item in content.items]
            if content.relation in ("right", "below"):
                pair.reverse()
            rows.append((*pair, int(content.relation in ("above", "below"))))
        table = torch.tensor(rows)
        return cls(first=table[:, 0], second=table[:, 1], axis=table[:, 2])

    def take(self, indices: Tensor) -> "Targets":
        """Return those of some captions."""
        return Targets(first=self.first[indices], second=self.second[indices], axis=self.axis[indices])


class AttentionProbe(nn.Module):
    """A linear reader: three learned queries look at the tokens once, and a linear layer names what they saw.

    This is the least that a denoiser's cross-attention could do, so what it cannot find is hard to draw.

    Shapes: states (B, T, D), token_mask (B, T) => logits (B, things), (B, things), (B, 2).
    """

    def __init__(self, hidden_size: int, things: int, *, width: int = 128) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.queries = nn.Parameter(torch.randn(3, width) / width**0.5)
        self.key, self.value = nn.Linear(hidden_size, width), nn.Linear(hidden_size, width)
        self.heads = nn.ModuleList([nn.Linear(width, things), nn.Linear(width, things), nn.Linear(width, 2)])

    def forward(self, states: Tensor, token_mask: Tensor) -> list[Tensor]:
        """Return the logits of first thing, second thing and axis."""
        states = self.norm(states)
        seen = F.scaled_dot_product_attention(
            self.queries.expand(len(states), -1, -1),
            self.key(states),
            self.value(states),
            attn_mask=token_mask[:, None, :],
        )
        return [head(seen[:, i]) for i, head in enumerate(self.heads)]


def train_probe(
    batch: Batch,
    targets: Targets,
    hidden_size: int,
    things: int,
    *,
    gains: Sequence[nn.Parameter] = (),
    steps: int = 800,
    batch_size: int = 128,
    seed: int = 0,
) -> AttentionProbe:
    """A probe trained on captions; `gains` are trained with it, at three times its learning rate."""
    torch.manual_seed(seed)
    probe = AttentionProbe(hidden_size, things)
    groups = [
        {"params": list(probe.parameters()), "lr": 1e-3, "weight_decay": 0.05},
        {"params": list(gains), "lr": 3e-3, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        indices = torch.randint(len(targets.first), (batch_size,))
        encoding = batch(indices.tolist())
        chosen = targets.take(indices)
        first, second, axis = probe(encoding.states, encoding.token_mask)
        loss = F.cross_entropy(first, chosen.first) + F.cross_entropy(second, chosen.second)
        loss = loss + F.cross_entropy(axis, chosen.axis)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return probe.eval()


@torch.no_grad()
def probe_accuracy(probe: AttentionProbe, batch: Batch, targets: Targets) -> list[dict[str, bool]]:
    """Return what is right of every caption.

    That is: both things in their places, both things in either place, and the axis.
    """
    results: list[dict[str, bool]] = []
    for start in range(0, len(targets.first), 100):
        indices = torch.arange(start, min(start + 100, len(targets.first)))
        encoding, chosen = batch(indices.tolist()), targets.take(indices)
        first, second, axis = (logits.argmax(1) for logits in probe(encoding.states, encoding.token_mask))
        placed = (first == chosen.first) & (second == chosen.second)
        turned = (first == chosen.second) & (second == chosen.first)
        for row in zip(placed, placed | turned, axis == chosen.axis, strict=True):
            results.append(dict(zip(("placed", "named", "axis"), map(bool, row), strict=True)))
    return results
