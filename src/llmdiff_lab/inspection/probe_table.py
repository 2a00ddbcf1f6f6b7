"""Probe how much of a caption linear readers recover from different text encodings."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from llmdiff.errors import ConfigError
from llmdiff.evaluation.statistics import bootstrap_mean, paired_difference
from llmdiff.evaluation.suites.scenes import scene_prompts
from llmdiff.files import read_json, write_whole
from llmdiff.language.blocks import Lone
from llmdiff.language.llm import DecoderLLM
from llmdiff.world.packaged import packaged_world
from llmdiff.world.scenes import World
from llmdiff.world.splits import SPLITS, Split, sample_scene, training_caption
from llmdiff_lab.inspection.block_sums import BlockSums, Sum
from llmdiff_lab.inspection.caption_bank import EncodingBank, by_length, in_batches
from llmdiff_lab.inspection.probes import Batch, Targets, correct_answers, probe_answers, train_probe
from llmdiff_lab.rivals.encoder import EncoderStates
from llmdiff_lab.rivals.last_hidden import LastHiddenStates
from llmdiff_lab.rivals.norm_average import NormAverageStates

TITLES = {
    "guided": "scores and lone updates, learned gains (ours)",
    "paper": "scores, learned gains (the paper's sum)",
    "last layer": "the LLM's last layer",
    "norm-average": "the mean of all layers, each normalised",
    "encoder": "a bidirectional sentence encoder's last layer",
}
REFERENCE = "last layer"
_SUMS: tuple[Sum, ...] = ("guided", "paper")
_BATCH = 32
_SEED = 13  # plus that of the settings; not that of the shipped models' training


@dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """Settings of a table of probes.

    Fields:
        captions: number of captions that train a probe.
        tests: number of test captions of every split.
        steps, batch: number of training steps, and captions per step.
        template: text around the caption that the LLM reads.
        world: the world of the captions, by default that of the packaged models.
        encoder: a sentence encoder to compare with; None: no encoder.

    Raises:
        ConfigError: a number is below 1, or a split is unknown.
    """

    llm: str = "smollm2-135m"
    encoder: str | None = None
    captions: int = 1500
    tests: int = 150
    steps: int = 600
    batch: int = 64
    lone: Lone = "token+bos"
    template: str | None = None
    world: World = field(default_factory=packaged_world)
    splits: tuple[Split, ...] = SPLITS
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("captions", "tests", "steps", "batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at least 1")
        unknown = [split for split in self.splits if split not in SPLITS]
        if unknown:
            raise ConfigError(f"splits: got {unknown[0]!r}, expected some of {', '.join(SPLITS)}")

    @property
    def encodings(self) -> tuple[str, ...]:
        """Return the names of the table's rows, in order."""
        return tuple(name for name in TITLES if name != "encoder" or self.encoder is not None)


def measure_probes(settings: ProbeSettings, folder: Path) -> dict[str, Any]:
    """Measure the rows that are not yet in `folder`/rows, with progress bars; return the table.

    It has the accuracy of every encoding, split and kind of content (see `correct_answers`), and its difference to the
    LLM's last layer on the same captions, with intervals.

    Raises:
        LLMNotFoundError: the LLM or the encoder is not available.
        OutputError: the folder cannot be written.
    """
    captions = _Captions(settings)
    readers = _Readers(settings, captions.texts)
    right: dict[str, dict[str, dict[str, list[int]]]] = {}
    for encoding in settings.encodings:
        place = folder / "rows" / f"{encoding.replace(' ', '-')}.json"
        kept = _kept(place, settings)
        if kept is None:
            kept = _measure(encoding, settings, captions, readers)
            write_whole(place, json.dumps({"settings": _plain(settings), "right": kept}) + "\n")
        right[encoding] = kept
    return {
        "settings": _plain(settings),
        "titles": {name: TITLES[name] for name in settings.encodings},
        "reference": REFERENCE,
        "table": {
            name: {
                split: {kind: asdict(bootstrap_mean(values)) for kind, values in by_kind.items() if values}
                for split, by_kind in splits.items()
            }
            for name, splits in right.items()
        },
        "differences": {
            name: {
                split: {
                    kind: asdict(paired_difference(values, right[REFERENCE][split][kind]))
                    for kind, values in by_kind.items()
                    if values
                }
                for split, by_kind in splits.items()
            }
            for name, splits in right.items()
            if name != REFERENCE
        },
    }


class _Captions:
    """The captions of training and of every split in one list, and their targets."""

    def __init__(self, settings: ProbeSettings) -> None:
        world, seed = settings.world, settings.seed + _SEED
        scenes = (sample_scene(seed, index, world) for index in range(settings.captions))
        captions = [training_caption(scene, seed, index, "plain") for index, scene in enumerate(scenes)]
        self.texts = [one.text for one in captions]
        self.trained = Targets.of([one.expected for one in captions], world)
        self.tested: dict[str, tuple[int, Targets]] = {}
        for split in settings.splits:
            rows = scene_prompts(settings.tests, settings.seed, world, splits=(split,))
            self.tested[split] = (len(self.texts), Targets.of([row.expected for row in rows], world))
            self.texts += [row.prompt for row in rows]


class _Readers:
    """The models that read captions, each loaded when a row needs it."""

    def __init__(self, settings: ProbeSettings, texts: Sequence[str]) -> None:
        self._settings, self._texts = settings, texts
        self._llm: DecoderLLM | None = None
        self._sums: BlockSums | None = None

    def batch(self, encoding: str) -> tuple[Batch, int, list[nn.Parameter]]:
        """Return a function that encodes captions by index, the width, and the parameters to train."""
        if encoding in _SUMS:
            sums = self._block_sums()
            kind: Sum = "guided" if encoding == "guided" else "paper"
            gains = sums.fresh_gains(kind)
            learned = [gains.gamma] if gains.kappa is None else [gains.gamma, gains.kappa]
            return lambda indices: sums.encode(indices, kind, gains), sums.llm.hidden_size, learned
        self._sums = None  # frees gigabytes that the other rows do not need
        template = self._settings.template
        if encoding == "encoder":
            source: Any = EncoderStates.from_pretrained(str(self._settings.encoder))
        elif encoding == "last layer":
            source = LastHiddenStates(self.llm, template=template)
        else:
            source = NormAverageStates(self.llm, template=template)
        order = by_length(self._texts)
        batches = in_batches([self._texts[index] for index in order], batch=_BATCH, title=encoding)
        bank = EncodingBank((source.encode(part) for part in batches), order)
        return bank.batch, source.hidden_size, []

    @property
    def llm(self) -> DecoderLLM:
        if self._llm is None:
            self._llm = DecoderLLM.from_pretrained(self._settings.llm)
        return self._llm

    def _block_sums(self) -> BlockSums:
        if self._sums is None:
            settings = self._settings
            self._sums = BlockSums(
                self.llm, self._texts, template=settings.template, lone=settings.lone, title="scores"
            )
        return self._sums


def _measure(
    encoding: str, settings: ProbeSettings, captions: _Captions, readers: _Readers
) -> dict[str, dict[str, list[int]]]:
    """Return whether a probe's answers are correct, 0 or 1 per caption, by split and kind of content."""
    batch, width, gains = readers.batch(encoding)
    probe = train_probe(
        batch,
        captions.trained,
        width,
        gains=gains,
        steps=settings.steps,
        batch_size=settings.batch,
        seed=settings.seed,
    )
    found: dict[str, dict[str, list[int]]] = {}
    for split, (start, asked) in captions.tested.items():
        answers = probe_answers(probe, _from(batch, start), asked)
        right = correct_answers(answers, asked)
        found[split] = {kind: values.int().tolist() for kind, values in right.items()}
    return found


def _from(batch: Batch, start: int) -> Callable[[Sequence[int]], Any]:
    return lambda indices: batch([start + index for index in indices])


def _plain(settings: ProbeSettings) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(asdict(settings)))
    return plain


def _kept(place: Path, settings: ProbeSettings) -> dict[str, dict[str, list[int]]] | None:
    """Return a row that was measured with the same settings; None if there is none."""
    try:
        record = read_json(place)
    except (OSError, ValueError):
        return None
    if not isinstance(record, dict) or record.get("settings") != _plain(settings):
        return None
    right: dict[str, dict[str, list[int]]] = record["right"]
    return right
