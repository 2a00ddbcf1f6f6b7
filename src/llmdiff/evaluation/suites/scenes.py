"""The scenes suite: prompts of the embedded default with known content, and the scorer that reads their pictures.

There are two worlds as long as the shipped models draw the smaller one: `llmdiff.openmoji`, read by `SceneChecker`
at 64 pixels, and `llmdiff.world`, read by `WorldChecker` at 128.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np

from llmdiff.adapter.base_pipeline import EMBEDDED_NAME, packaged
from llmdiff.errors import ConfigError, PipelineNotFoundError
from llmdiff.evaluation.metrics.kinds import Pictures
from llmdiff.evaluation.suites.scenes_check import SceneChecker, checker_folder
from llmdiff.evaluation.suites.suite import PromptSuite, SuitePrompt
from llmdiff.evaluation.suites.verdicts import SeenScene, verdict
from llmdiff.files import read_json
from llmdiff.language.digests import weights_digest
from llmdiff.openmoji import contents as small
from llmdiff.openmoji.captions import caption
from llmdiff.openmoji.scenes import Content, draw, lay_out
from llmdiff.world import splits as whole
from llmdiff.world.checker import WorldChecker
from llmdiff.world.expected import Expected
from llmdiff.world.reading import FAULTS_OF, Reading, matches
from llmdiff.world.rendering import render
from llmdiff.world.scenes import Scene, World
from llmdiff.world.vocabulary import world_of as pipeline_world

NAME = "scenes"
PARTS = ("things", "colours", "count", "size", "background", "way up", "person", "place", "style", "absent")
"""What a prompt can ask for, besides relations, which are right, swapped or wrong."""
_STREAM = 11
_RELATION = "relation"
assert {*PARTS, _RELATION} == FAULTS_OF.keys()


@dataclass(frozen=True, kw_only=True)
class ScenePrompt(SuitePrompt):
    """A prompt of the smaller world, what it asks for, and the seed that every system draws it with."""

    content: Content
    seed: int

    @property
    def split(self) -> str:
        """Return its only tag."""
        return self.tags[0]


@dataclass(frozen=True, kw_only=True)
class WorldPrompt(SuitePrompt):
    """A prompt of the world, what it asks for, and a scene that shows it."""

    expected: Expected
    scene: Scene

    @property
    def split(self) -> str:
        """Return its only tag."""
        return self.tags[0]


def load_checker(name_or_path: str | Path) -> SceneChecker | WorldChecker:
    """Return what reads the pictures of scenes: a folder, or "openmoji" for the packaged one.

    Raises:
        CorruptWeightsError: the folder holds no checker, or a damaged one.
        ConfigError: the checker was trained on another world than this version's.
    """
    folder = checker_folder(name_or_path)
    try:
        is_whole = "world" in read_json(folder / "config.json")
    except (OSError, ValueError, TypeError):
        is_whole = False  # which the other then says of its folder
    return WorldChecker.from_pretrained(folder) if is_whole else SceneChecker.from_pretrained(folder)


def world_of(checker: SceneChecker | WorldChecker) -> small.World | World:
    """Return the world whose pictures a checker reads."""
    return checker.world if isinstance(checker, WorldChecker) else small.World(objects=checker.objects)


def world_of_pipeline(base: str, checker: SceneChecker | WorldChecker) -> small.World | World:
    """Return the world whose prompts a pipeline is asked: its own where its folder says it, else the checker's.

    Raises:
        ConfigError: the checker cannot read all that the pipeline can draw.
    """
    own = pipeline_world(packaged("pipeline", PipelineNotFoundError) if base == EMBEDDED_NAME else base)
    if own is None:
        return world_of(checker)
    unread = own.names - (checker.world.names if isinstance(checker, WorldChecker) else set())
    if unread or not isinstance(checker, WorldChecker):
        raise ConfigError(
            f"checker: got one that cannot read {len(unread)} of the {len(own.names)} things that {base} was trained "
            "on, expected the checker of the same build: pass its folder with --checker"
        )
    return own


@overload
def scene_prompts(
    prompts_per_split: int, seed: int, world: World, *, splits: Sequence[whole.Split] | None = None
) -> list[WorldPrompt]: ...
@overload
def scene_prompts(
    prompts_per_split: int,
    seed: int = 0,
    world: small.World | None = None,
    *,
    splits: Sequence[small.Split] | None = None,
) -> list[ScenePrompt]: ...
@overload
def scene_prompts(
    prompts_per_split: int, seed: int, world: small.World | World
) -> list[ScenePrompt] | list[WorldPrompt]: ...
def scene_prompts(
    prompts_per_split: int,
    seed: int = 0,
    world: small.World | World | None = None,
    *,
    splits: Sequence[Any] | None = None,
) -> list[ScenePrompt] | list[WorldPrompt]:
    """Return the suite's prompts, split after split; a longer suite begins, in every split, with the shorter one.

    Raises:
        ConfigError: `prompts_per_split` is below 1, or a split is unknown.
    """
    if prompts_per_split < 1:
        raise ConfigError(f"prompts_per_split: got {prompts_per_split}, expected at least 1")
    known: tuple[str, ...] = whole.SPLITS if isinstance(world, World) else small.SPLITS
    unknown = [split for split in splits or () if split not in known]
    if unknown:
        raise ConfigError(f"splits: got {unknown[0]!r}, expected some of {', '.join(known)}")
    chosen = known if splits is None else tuple(splits)
    if isinstance(world, World):
        return [
            WorldPrompt(
                id=f"{split}-{index:05d}",
                prompt=found.text,
                tags=(split,),
                expected=found.expected,
                scene=found.scene,
            )
            for split in chosen
            for index, found in enumerate(
                whole.prompts(split, prompts_per_split, seed=seed, world=world)  # type: ignore[arg-type]
            )
        ]
    return _small_prompts(prompts_per_split, seed, world or small.World(), chosen)


def scenes_suite(rows: Sequence[ScenePrompt] | Sequence[WorldPrompt]) -> PromptSuite:
    """Return the suite of these prompts; metrics of sets compare with renders of what they ask for."""
    said = json.dumps([[row.id, row.prompt, row.seed, asdict(_asked(row))] for row in rows])
    splits = {row.split for row in rows}
    meanings: dict[Any, str] = {**small.SPLIT_MEANINGS}
    if rows and isinstance(rows[0], WorldPrompt):
        meanings = {**whole.SPLIT_MEANINGS}
    return PromptSuite(
        name=NAME,
        prompts=tuple(rows),
        sha256=hashlib.sha256(said.encode()).hexdigest(),
        meanings={split: meaning for split, meaning in meanings.items() if split in splits},
        reference=lambda: renders(rows),
    )


def renders(rows: Sequence[ScenePrompt] | Sequence[WorldPrompt]) -> Pictures:
    """Return real pictures of what the prompts ask for. Shapes: (N, side, side, 3)."""
    return np.stack([
        draw(lay_out(row.content, np.random.default_rng(row.seed)))
        if isinstance(row, ScenePrompt)
        else render(row.scene)
        for row in rows
    ])  # fmt: skip


class SceneScorer:
    """Scores whether a picture shows exactly the content of its prompt, and which parts of it, by the checker.

    Fields:
        figures: the checker's accuracy on real renders.
    """

    name = NAME

    def __init__(self, checker: SceneChecker | WorldChecker) -> None:
        # By its weights: the same on every machine, and another one where it was trained again.
        self.checker, self.model_id = checker, f"checker {weights_digest(checker)[:16]}"
        self.figures: dict[str, Any] = dict(checker.figures)

    def judge(self, pictures: Pictures, rows: Sequence[SuitePrompt]) -> list[dict[str, Any]]:
        """Return the score of each picture: 1 if exactly right, else 0; its parts, its faults and what was read."""
        read: list[Any] = list(self.checker.read(pictures))
        return [_judged(row, seen) for row, seen in zip(rows, read, strict=True)]

    def failed(self, row: SuitePrompt) -> dict[str, Any]:
        """Return the score of a picture that could not be drawn: nothing of what was asked for."""
        return _judged(row, Reading(things=()) if isinstance(row, WorldPrompt) else _NOTHING)


_NOTHING = SeenScene(things=(), background="")


def _judged(row: SuitePrompt, seen: Reading | SeenScene) -> dict[str, Any]:
    if isinstance(row, WorldPrompt):
        assert isinstance(seen, Reading)
        found = matches(row.expected, seen)
        parts = {part: float(right) for part, right in found.parts.items() if part != _RELATION}
        if _RELATION in found.parts:
            shown = "right" if found.parts[_RELATION] else "swapped" if found.swapped else "wrong"
            parts |= _relation_parts(shown)
        return {
            "score": float(found.exact), "parts": parts, "faults": list(found.faults), "seen": asdict(seen)
        }  # fmt: skip
    assert isinstance(row, ScenePrompt)
    assert isinstance(seen, SeenScene)
    compared = verdict(row.content, seen)
    parts = {
        part: float(getattr(compared, part)) for part in PARTS if getattr(compared, part, None) is not None
    }
    if compared.relation is not None:
        parts |= _relation_parts(compared.relation)
    return {"score": float(compared.exact), "parts": parts, "seen": asdict(seen)}


def _relation_parts(shown: str) -> dict[str, float]:
    return {f"{_RELATION} {kind}": float(shown == kind) for kind in ("right", "swapped", "wrong")}


def _asked(row: ScenePrompt | WorldPrompt) -> Any:
    return row.content if isinstance(row, ScenePrompt) else row.expected


def _small_prompts(
    prompts_per_split: int, seed: int, world: small.World, splits: Sequence[Any]
) -> list[ScenePrompt]:
    rows: list[ScenePrompt] = []
    for split in splits:
        for index in range(prompts_per_split):
            rng = np.random.default_rng([seed, _STREAM, small.SPLITS.index(split), index])
            content = world.content(split, rng)
            prompt = caption(content, world, rng, split)
            name, its_seed = f"{split}-{index:05d}", int(rng.integers(2**31))
            rows.append(ScenePrompt(id=name, prompt=prompt, tags=(split,), content=content, seed=its_seed))
    return rows
