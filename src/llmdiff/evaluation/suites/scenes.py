"""The scenes suite: prompts of the embedded default with known content, and the scorer that reads their pictures."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from llmdiff.errors import ConfigError
from llmdiff.evaluation.metrics.kinds import Pictures
from llmdiff.evaluation.suites.scenes_check import SceneChecker
from llmdiff.evaluation.suites.suite import PromptSuite, SuitePrompt
from llmdiff.evaluation.suites.verdicts import SeenScene, verdict
from llmdiff.language.digests import weights_digest
from llmdiff.openmoji.captions import caption
from llmdiff.openmoji.contents import SPLIT_MEANINGS, SPLITS, Split, World
from llmdiff.openmoji.scenes import Content, draw, lay_out

NAME = "scenes"
PARTS = ("things", "colours", "count", "size", "background")
_STREAM = 11


@dataclass(frozen=True, kw_only=True)
class ScenePrompt(SuitePrompt):
    """A prompt of the scenes suite, what it asks for, and the seed that every system draws it with."""

    content: Content
    seed: int

    @property
    def split(self) -> str:
        """Return its only tag."""
        return self.tags[0]


def scene_prompts(
    prompts_per_split: int, seed: int = 0, world: World | None = None, *, splits: Sequence[Split] = SPLITS
) -> list[ScenePrompt]:
    """Return the suite's prompts, split after split; a longer suite begins, in every split, with the shorter one.

    Raises:
        ConfigError: `prompts_per_split` is below 1, or a split is unknown.
    """
    if prompts_per_split < 1:
        raise ConfigError(f"prompts_per_split: got {prompts_per_split}, expected at least 1")
    unknown = [split for split in splits if split not in SPLITS]
    if unknown:
        raise ConfigError(f"splits: got {unknown[0]!r}, expected some of {', '.join(SPLITS)}")
    world = world or World()
    rows: list[ScenePrompt] = []
    for split in splits:
        for index in range(prompts_per_split):
            rng = np.random.default_rng([seed, _STREAM, SPLITS.index(split), index])
            content = world.content(split, rng)
            prompt = caption(content, world, rng, split)
            name, its_seed = f"{split}-{index:05d}", int(rng.integers(2**31))
            rows.append(ScenePrompt(id=name, prompt=prompt, tags=(split,), content=content, seed=its_seed))
    return rows


def scenes_suite(rows: Sequence[ScenePrompt]) -> PromptSuite:
    """Return the suite of these prompts; metrics of sets compare with renders of what they ask for."""
    said = json.dumps([[row.id, row.prompt, row.seed, asdict(row.content)] for row in rows])
    return PromptSuite(
        name=NAME,
        prompts=tuple(rows),
        sha256=hashlib.sha256(said.encode()).hexdigest(),
        meanings={
            split: SPLIT_MEANINGS[split] for split in SPLITS if any(row.split == split for row in rows)
        },
        reference=lambda: renders(rows),
    )


def renders(rows: Sequence[ScenePrompt]) -> Pictures:
    """Return real pictures of what the prompts ask for. Shapes: (N, 64, 64, 3)."""
    return np.stack([draw(lay_out(row.content, np.random.default_rng(row.seed))) for row in rows])


class SceneScorer:
    """Scores whether a picture shows exactly the content of its prompt, and which parts of it, by the checker.

    Fields:
        figures: the checker's accuracy on real renders.
    """

    name = NAME

    def __init__(self, checker: SceneChecker) -> None:
        # By its weights: the same on every machine, and another one where it was trained again.
        self.checker, self.model_id = checker, f"checker {weights_digest(checker)[:16]}"
        self.figures = dict(checker.figures)

    def judge(self, pictures: Pictures, rows: Sequence[SuitePrompt]) -> list[dict[str, Any]]:
        """1 for a picture that is exactly right, else 0; the same of every part that is asked for; what was seen."""
        return [_judged(row, seen) for row, seen in zip(rows, self.checker.read(pictures), strict=True)]

    def failed(self, row: SuitePrompt) -> dict[str, Any]:
        """Nothing of what was asked for."""
        return _judged(row, SeenScene(things=(), background=""))


def _judged(row: SuitePrompt, seen: SeenScene) -> dict[str, Any]:
    assert isinstance(row, ScenePrompt)
    found = verdict(row.content, seen)
    parts = {part: float(getattr(found, part)) for part in PARTS if getattr(found, part) is not None}
    if found.relation is not None:
        parts |= {f"relation {kind}": float(found.relation == kind) for kind in ("right", "swapped", "wrong")}
    return {"score": float(found.exact), "parts": parts, "seen": asdict(seen)}
