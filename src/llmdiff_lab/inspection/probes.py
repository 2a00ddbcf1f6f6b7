"""Probes: how much of a caption's content a linear reader finds in a text encoding."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmdiff.openmoji.contents import World
from llmdiff.openmoji.scenes import Content
from llmdiff.openmoji.world import SHAPE_COLOURS, SHAPES
from llmdiff.types import TextEncoding

Batch = Callable[[Sequence[int]], TextEncoding]
"""Indices of captions => their encodings; may be differentiable in gains."""

HEADS = ("first", "second", "first_colour", "second_colour", "count", "axis")
_MAX_COUNT, _AXES = 4, 3


@dataclass(frozen=True, kw_only=True)
class Targets:
    """The right answers to a probe's questions.

    The questions: what stands first (left, top, or alone) and second, in which colours, how many, along which axis.
    "None" is an answer, too. `sizes`: number of possible answers per question.

    Shapes: table (N, 6) int64, in the order of `HEADS`.
    """

    table: Tensor
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, contents: Sequence[Content], world: World) -> "Targets":
        """Return the targets of contents."""
        names = [*(thing.name for thing in world.things), *SHAPES, None]
        colours = [*SHAPE_COLOURS, None]
        rows = []
        for content in contents:
            items = [(item.name, item.colour) for item in content.items]
            if content.relation in ("right", "below"):
                items.reverse()
            (first, first_colour), (second, second_colour) = [*items, (None, None)][:2]
            axis = 0 if content.relation is None else 1 + (content.relation in ("above", "below"))
            things = names.index(first), names.index(second)
            its_colours = colours.index(first_colour), colours.index(second_colour)
            rows.append((*things, *its_colours, content.count - 1, axis))
        sizes = (len(names), len(names), len(colours), len(colours), _MAX_COUNT, _AXES)
        return cls(table=torch.tensor(rows), sizes=sizes)

    def __len__(self) -> int:
        return len(self.table)

    def take(self, indices: Tensor) -> "Targets":
        """Return the targets of some captions."""
        return Targets(table=self.table[indices], sizes=self.sizes)


class AttentionProbe(nn.Module):
    """A linear reader: a learned query per question attends to the tokens once, and a linear layer gives the answer.

    A denoiser's cross-attention can do at least this much, so content that the probe cannot find is hard to draw.

    Shapes: states (B, T, D), token_mask (B, T) => logits (B, size) for every head.
    """

    def __init__(self, hidden_size: int, sizes: Sequence[int], *, width: int = 128) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.queries = nn.Parameter(torch.randn(len(sizes), width) / width**0.5)
        self.key, self.value = nn.Linear(hidden_size, width), nn.Linear(hidden_size, width)
        self.heads = nn.ModuleList([nn.Linear(width, size) for size in sizes])

    def forward(self, states: Tensor, token_mask: Tensor) -> list[Tensor]:
        """Return the logits of every question, in the order of `HEADS`."""
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
    *,
    gains: Sequence[nn.Parameter] = (),
    steps: int = 800,
    batch_size: int = 128,
    seed: int = 0,
) -> AttentionProbe:
    """Return a probe trained on captions; `gains` are trained with it, at three times its learning rate."""
    torch.manual_seed(seed)
    probe = AttentionProbe(hidden_size, targets.sizes)
    groups = [
        {"params": list(probe.parameters()), "lr": 1e-3, "weight_decay": 0.05},
        {"params": list(gains), "lr": 3e-3, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        indices = torch.randint(len(targets), (batch_size,))
        encoding = batch(indices.tolist())
        logits = probe(encoding.states, encoding.token_mask)
        answers = targets.take(indices).table
        loss = torch.stack([F.cross_entropy(one, answers[:, i]) for i, one in enumerate(logits)]).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return probe.eval()


@torch.no_grad()
def probe_answers(probe: AttentionProbe, batch: Batch, targets: Targets) -> Tensor:
    """Return the probe's answers for captions, (N, 6) int64, as `Targets.table`."""
    rows = []
    for start in range(0, len(targets), 100):
        encoding = batch(list(range(start, min(start + 100, len(targets)))))
        rows.append(
            torch.stack([one.argmax(1) for one in probe(encoding.states, encoding.token_mask)], dim=1)
        )
    return torch.cat(rows)


def correct_answers(answers: Tensor, targets: Targets) -> dict[str, Tensor]:
    """Return whether the answers are correct, by kind of content, for the captions that have such content.

    "objects": every thing by name, in its place; "named": the same in either place; "colours": the colour of every
    shape; "count": the number of things, from two; "relation": axis and order of a pair; "all": every answer.

    Shapes: (N,) bool each, with another N for each kind.
    """
    true = targets.table
    right = answers == true
    first, second, first_colour, second_colour, count, axis = range(len(HEADS))
    pair = true[:, axis] > 0
    none = targets.sizes[first_colour] - 1
    coloured = (true[:, [first_colour, second_colour]] != none).any(1)
    turned = (answers[:, first] == true[:, second]) & (answers[:, second] == true[:, first])
    placed = right[:, first] & right[:, second]
    return {
        "objects": placed,
        "named": placed | turned,
        "colours": right[coloured][:, [first_colour, second_colour]].all(1),
        "count": right[true[:, count] > 0, count],
        "relation": (right[:, axis] & placed)[pair],
        "all": right.all(1),
    }
