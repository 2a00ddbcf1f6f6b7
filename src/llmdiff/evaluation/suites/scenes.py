"""The scenes suite: prompts of the embedded default with known content, and the scorer that reads their pictures."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmdiff.adapter.base_pipeline import EMBEDDED_NAME, packaged
from llmdiff.errors import ConfigError, MetricError, PipelineNotFoundError
from llmdiff.evaluation.metrics.kinds import Pictures
from llmdiff.evaluation.suites.suite import PromptSuite, SuitePrompt
from llmdiff.language.digests import weights_digest
from llmdiff.world.checker import WorldChecker
from llmdiff.world.expected import Expected
from llmdiff.world.packaged import packaged_world, world_of
from llmdiff.world.reading import FAULTS_OF, Reading, matches
from llmdiff.world.rendering import render
from llmdiff.world.scenes import Scene, World
from llmdiff.world.splits import SPLIT_MEANINGS, SPLITS, Split, prompts

NAME = "scenes"
PARTS = ("things", "colours", "count", "size", "background", "way up", "person", "place", "style", "absent")
"""The parts that a prompt can request, except relations, which are right, swapped or wrong."""
_RELATION = "relation"
assert {*PARTS, _RELATION} == FAULTS_OF.keys()


@dataclass(frozen=True, kw_only=True)
class ScenePrompt(SuitePrompt):
    """A prompt whose only tag is its split, what it requests, and a scene that shows it."""

    expected: Expected
    scene: Scene

    @property
    def split(self) -> str:
        """Return its only tag."""
        return self.tags[0]

    def render(self) -> NDArray[np.uint8]:
        """Return a real picture of the scene. Shapes: (128, 128, 3)."""
        return render(self.scene)

    def compare(self, seen: Reading) -> dict[str, Any]:
        """Return the result of a picture with this content."""
        found = matches(self.expected, seen)
        parts = {part: float(right) for part, right in found.parts.items() if part != _RELATION}
        if _RELATION in found.parts:
            shown = "right" if found.parts[_RELATION] else "swapped" if found.swapped else "wrong"
            parts |= {f"{_RELATION} {kind}": float(shown == kind) for kind in ("right", "swapped", "wrong")}
        faults = {"faults": list(found.faults), "seen": asdict(seen)}
        return {"score": float(found.exact), "parts": parts, **faults}


def load_checker(name_or_path: str | Path) -> WorldChecker:
    """Return the checker of a folder, or the packaged one for "openmoji".

    Raises:
        MetricError: the package has no checker.
        CorruptWeightsError: the folder has no checker, or a damaged one.
        ConfigError: the checker was trained on another world than this version's.
    """
    is_packaged = name_or_path == EMBEDDED_NAME
    return WorldChecker.from_pretrained(packaged("checker", MetricError) if is_packaged else name_or_path)


def world_of_pipeline(base: str, checker: WorldChecker) -> World:
    """Return the world of a pipeline's prompts: the one that its folder names, else the checker's.

    Raises:
        ConfigError: the checker cannot read all that the pipeline can draw.
    """
    own = world_of(packaged("pipeline", PipelineNotFoundError) if base == EMBEDDED_NAME else base)
    if own is None:
        return checker.world
    unread = own.names - checker.world.names
    if unread:
        raise ConfigError(
            f"checker: got one that cannot read {len(unread)} of the {len(own.names)} things that {base} was trained "
            "on, expected the checker of the same build: pass its folder with --checker"
        )
    return own


def scene_prompts(
    prompts_per_split: int,
    seed: int = 0,
    world: World | None = None,
    *,
    splits: Sequence[Split] = SPLITS,
) -> list[ScenePrompt]:
    """Return the suite's prompts, split by split; more prompts per split extend a smaller suite.

    `world` is the packaged one by default.

    Raises:
        ConfigError: `prompts_per_split` is below 1, or a split is unknown.
    """
    if prompts_per_split < 1:
        raise ConfigError(f"prompts_per_split: got {prompts_per_split}, expected at least 1")
    unknown = [split for split in splits if split not in SPLITS]
    if unknown:
        raise ConfigError(f"splits: got {unknown[0]!r}, expected some of {', '.join(SPLITS)}")
    world = world or packaged_world()
    return [
        ScenePrompt(
            id=f"{split}-{index:05d}",
            prompt=found.text,
            tags=(split,),
            expected=found.expected,
            scene=found.scene,
        )
        for split in splits
        for index, found in enumerate(prompts(split, prompts_per_split, seed=seed, world=world))
    ]


def suite_of_pipeline(base: str, checker: WorldChecker, prompts_per_split: int, seed: int) -> PromptSuite:
    """Return the suite of the world that a pipeline was trained on.

    Raises:
        ConfigError: the checker cannot read all that the pipeline can draw.
    """
    return scenes_suite(scene_prompts(prompts_per_split, seed, world_of_pipeline(base, checker)))


def scenes_suite(rows: Sequence[ScenePrompt]) -> PromptSuite:
    """Return the suite of these prompts; set metrics compare with renders of their scenes."""
    record = json.dumps([[row.id, row.prompt, row.seed, asdict(row.expected)] for row in rows])
    splits = {row.split for row in rows}
    return PromptSuite(
        name=NAME,
        prompts=tuple(rows),
        sha256=hashlib.sha256(record.encode()).hexdigest(),
        meanings={split: meaning for split, meaning in SPLIT_MEANINGS.items() if split in splits},
        reference=lambda: np.stack([row.render() for row in rows]),
    )


class SceneScorer:
    """Scores whether a picture shows exactly what its prompt requests, and each part of it, with a checker.

    Fields:
        figures: the checker's accuracy on real renders.
    """

    name = NAME

    def __init__(self, checker: WorldChecker) -> None:
        # Named by its weights: the same on every machine, and different after another training.
        self.checker, self.model_id = checker, f"checker {weights_digest(checker)[:16]}"
        self.figures: dict[str, Any] = dict(checker.figures)

    def judge(self, pictures: Pictures, rows: Sequence[SuitePrompt]) -> list[dict[str, Any]]:
        """Return the result of each picture: score 1 if exactly right, else 0; its parts, and what was seen."""
        seen = self.checker.read(pictures)
        return [_scene(row).compare(one) for row, one in zip(rows, seen, strict=True)]

    def failed(self, row: SuitePrompt) -> dict[str, Any]:
        """Return the result of a picture that could not be drawn: it shows nothing."""
        return _scene(row).compare(Reading(things=()))


def _scene(row: SuitePrompt) -> ScenePrompt:
    assert isinstance(row, ScenePrompt)
    return row
