"""The scenes suite: prompts of the embedded default with known content, and the scorer that reads their pictures.

There are two worlds: `llmdiff.openmoji`, which the shipped models draw and `SceneChecker` reads at 64 pixels, and the
larger `llmdiff.world`, which `WorldChecker` reads at 128.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
"""The parts that a prompt can request, except relations, which are right, swapped or wrong."""
_STREAM = 11
_RELATION = "relation"
assert {*PARTS, _RELATION} == FAULTS_OF.keys()


@dataclass(frozen=True, kw_only=True)
class _SplitPrompt(SuitePrompt):
    """A prompt whose only tag is its split."""

    @property
    def split(self) -> str:
        """Return its only tag."""
        return self.tags[0]


@dataclass(frozen=True, kw_only=True)
class ScenePrompt(_SplitPrompt):
    """A prompt of the smaller world, its content, and the seed that every system draws it with."""

    content: Content
    seed: int

    @property
    def requested(self) -> Content:
        """Return the content that the prompt requests."""
        return self.content

    def render(self) -> NDArray[np.uint8]:
        """Return a real picture of the content. Shapes: (64, 64, 3)."""
        return draw(lay_out(self.content, np.random.default_rng(self.seed)))

    def compare(self, seen: SeenScene | None) -> dict[str, Any]:
        """Return the result of a picture that shows this; None: no picture."""
        seen = seen or SeenScene(things=(), background="")
        compared = verdict(self.content, seen)
        found = {part: getattr(compared, part, None) for part in PARTS}
        parts = {part: float(right) for part, right in found.items() if right is not None}
        if compared.relation is not None:
            parts |= _relation_parts(compared.relation)
        return {"score": float(compared.exact), "parts": parts, "seen": asdict(seen)}


@dataclass(frozen=True, kw_only=True)
class WorldPrompt(_SplitPrompt):
    """A prompt of the world, what it requests, and a scene that shows it."""

    expected: Expected
    scene: Scene

    @property
    def requested(self) -> Expected:
        """Return what the prompt requests."""
        return self.expected

    def render(self) -> NDArray[np.uint8]:
        """Return a real picture of the scene. Shapes: (128, 128, 3)."""
        return render(self.scene)

    def compare(self, seen: Reading | None) -> dict[str, Any]:
        """Return the result of a picture that shows this; None: no picture."""
        seen = seen or Reading(things=())
        found = matches(self.expected, seen)
        parts = {part: float(right) for part, right in found.parts.items() if part != _RELATION}
        if _RELATION in found.parts:
            shown = "right" if found.parts[_RELATION] else "swapped" if found.swapped else "wrong"
            parts |= _relation_parts(shown)
        faults = {"faults": list(found.faults), "seen": asdict(seen)}
        return {"score": float(found.exact), "parts": parts, **faults}


def _relation_parts(shown: str) -> dict[str, float]:
    return {f"{_RELATION} {kind}": float(shown == kind) for kind in ("right", "swapped", "wrong")}


def load_checker(name_or_path: str | Path) -> SceneChecker | WorldChecker:
    """Return the checker of a folder, or the packaged one for "openmoji".

    Raises:
        CorruptWeightsError: the folder holds no checker, or a damaged one.
        ConfigError: the checker was trained on another world than this version's.
    """
    folder = checker_folder(name_or_path)
    try:
        is_whole = "world" in read_json(folder / "config.json")
    except (OSError, ValueError, TypeError):
        is_whole = False  # SceneChecker then reports the error
    return WorldChecker.from_pretrained(folder) if is_whole else SceneChecker.from_pretrained(folder)


def world_of(checker: SceneChecker | WorldChecker) -> small.World | World:
    """Return the world whose pictures a checker reads."""
    return checker.world if isinstance(checker, WorldChecker) else small.World(objects=checker.objects)


def world_of_pipeline(base: str, checker: SceneChecker | WorldChecker) -> small.World | World:
    """Return the world of a pipeline's prompts: the one that its folder names, else the checker's.

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


def scene_prompts(
    prompts_per_split: int,
    seed: int = 0,
    world: small.World | World | None = None,
    *,
    splits: Sequence[Any] | None = None,
) -> list[ScenePrompt] | list[WorldPrompt]:
    """Return the suite's prompts, split by split; more prompts per split extend a smaller suite.

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


def suite_of_pipeline(
    base: str, checker: SceneChecker | WorldChecker, prompts_per_split: int, seed: int
) -> PromptSuite:
    """Return the suite of the world that a pipeline was trained on.

    Raises:
        ConfigError: the checker cannot read all that the pipeline can draw.
    """
    return scenes_suite(scene_prompts(prompts_per_split, seed, world_of_pipeline(base, checker)))


def scenes_suite(rows: Sequence[ScenePrompt] | Sequence[WorldPrompt]) -> PromptSuite:
    """Return the suite of these prompts; set metrics compare with renders of what they request."""
    record = json.dumps([[row.id, row.prompt, row.seed, asdict(row.requested)] for row in rows])
    is_world = bool(rows) and isinstance(rows[0], WorldPrompt)
    meanings: dict[Any, str] = {**(whole.SPLIT_MEANINGS if is_world else small.SPLIT_MEANINGS)}
    splits = {row.split for row in rows}
    return PromptSuite(
        name=NAME,
        prompts=tuple(rows),
        sha256=hashlib.sha256(record.encode()).hexdigest(),
        meanings={split: meaning for split, meaning in meanings.items() if split in splits},
        reference=lambda: np.stack([row.render() for row in rows]),
    )


class SceneScorer:
    """Scores whether a picture shows exactly what its prompt requests, and each part of it, with a checker.

    Fields:
        figures: the checker's accuracy on real renders.
    """

    name = NAME

    def __init__(self, checker: SceneChecker | WorldChecker) -> None:
        # Named by its weights: the same on every machine, and different after another training.
        self.checker, self.model_id = checker, f"checker {weights_digest(checker)[:16]}"
        self.figures: dict[str, Any] = dict(checker.figures)

    def judge(self, pictures: Pictures, rows: Sequence[SuitePrompt]) -> list[dict[str, Any]]:
        """Return the result of each picture: score 1 if exactly right, else 0; its parts, and what was seen."""
        seen: list[Any] = list(self.checker.read(pictures))
        return [_scene(row).compare(one) for row, one in zip(rows, seen, strict=True)]

    def failed(self, row: SuitePrompt) -> dict[str, Any]:
        """Return the result of a picture that could not be drawn: it shows nothing."""
        result: dict[str, Any] = _scene(row).compare(None)
        return result


def _scene(row: SuitePrompt) -> Any:
    assert isinstance(row, ScenePrompt | WorldPrompt)
    return row


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
