"""Probes: how much of a caption's content a linear reader finds in a text encoding."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmdiff.types import TextEncoding
from llmdiff.world.expected import Expected, ExpectedThing
from llmdiff.world.layouts import RELATIONS, SPOTS, Relation
from llmdiff.world.places import places
from llmdiff.world.scenes import World
from llmdiff.world.things import COLOURS, STYLES

Batch = Callable[[Sequence[int]], TextEncoding]
"""Indices of captions => their encodings; may be differentiable in gains."""

_MOST_KINDS, _MOST_COUNT = 5, 6
_KINDS = range(1, _MOST_KINDS + 1)
HEADS = (
    *(f"name {i}" for i in _KINDS),
    *(f"colour {i}" for i in _KINDS),
    *(f"count {i}" for i in _KINDS),
    "relation",
    "place",
    "style",
)
_NAMES, _COLOURS, _COUNTS = (slice(start, start + _MOST_KINDS) for start in range(0, 15, _MOST_KINDS))
_RELATION, _PLACE, _STYLE = range(15, 18)


@dataclass(frozen=True, kw_only=True)
class Targets:
    """The right answers to a probe's questions about captions.

    The questions: the name, colour and number of each kind of thing, their relation, the place and the style. "None" is
    an answer, too. The order of the kinds is that of the relation: from left to right, from top to bottom, or by
    `world.layouts.SPOTS`; else that of the caption. `sizes`: number of possible answers per question.

    Shapes: table (N, 18) int64, in the order of `HEADS`.
    """

    table: Tensor
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, captions: Sequence[Expected], world: World) -> "Targets":
        """Return the targets of captions, given their requirements."""
        names = [*(thing.name for thing in world.things), None]
        colours, numbers = [*COLOURS, None], [*range(1, _MOST_COUNT + 1), None]
        relations, settings = [*RELATIONS, None], [*places(), None]
        styles: list[str | None] = [*STYLES, None]
        rows = []
        for caption in captions:
            relation, things = _in_order(caption)
            rows.append([
                *(names.index(thing.name if thing else None) for thing in things),
                *(colours.index(thing.colour if thing else None) for thing in things),
                *(numbers.index(thing.count if thing else None) for thing in things),
                relations.index(relation),
                settings.index(caption.place),
                styles.index(caption.style),
            ])  # fmt: skip
        per_kind = (len(options) for options in (names, colours, numbers) for _ in range(_MOST_KINDS))
        sizes = (*per_kind, len(relations), len(settings), len(styles))
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
    """Return the probe's answers for captions, (N, 18) int64, as `Targets.table`."""
    rows = []
    for start in range(0, len(targets), 100):
        encoding = batch(list(range(start, min(start + 100, len(targets)))))
        rows.append(
            torch.stack([one.argmax(1) for one in probe(encoding.states, encoding.token_mask)], dim=1)
        )
    return torch.cat(rows)


def correct_answers(answers: Tensor, targets: Targets) -> dict[str, Tensor]:
    """Return whether the answers are correct, by kind of content, for the captions that have such content.

    "objects": every thing by name, in its place; "named": the same in any place; "colours": every colour; "count": the
    numbers of all things, where there are several of a kind; "relation": the relation and its things in order;
    "place"; "style"; "all": every answer.

    Shapes: (N,) bool each, with another N for each kind.
    """
    true = targets.table
    right = answers == true
    none = torch.tensor(targets.sizes) - 1
    given = true != none
    placed = right[:, _NAMES].all(1)
    named = (answers[:, _NAMES].sort(1).values == true[:, _NAMES].sort(1).values).all(1)
    several = (given[:, _COUNTS] & (true[:, _COUNTS] > 0)).any(1)
    return {
        "objects": placed,
        "named": named,
        "colours": right[given[:, _COLOURS].any(1), _COLOURS].all(1),
        "count": right[several, _COUNTS].all(1),
        "relation": (right[:, _RELATION] & placed)[given[:, _RELATION]],
        "place": right[given[:, _PLACE], _PLACE],
        "style": right[given[:, _STYLE], _STYLE],
        "all": right.all(1),
    }


def _in_order(caption: Expected) -> tuple[Relation | None, list[ExpectedThing | None]]:
    """Return a caption's relation and its things in `_MOST_KINDS` slots; "right" is "left" with the order reversed."""
    relation, things = caption.relation, list(caption.things)
    if relation in ("corner", "spots"):
        return relation, [next((thing for thing in things if thing.spot == spot), None) for spot in SPOTS]
    if relation in ("right", "below"):
        relation = "left" if relation == "right" else "above"
        things.reverse()
    return relation, [*things, *[None] * (_MOST_KINDS - len(things))]
