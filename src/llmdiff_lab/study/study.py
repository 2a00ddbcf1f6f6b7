"""A blinded user study: people choose between two systems' pictures of the same prompt.

A study is a folder: `study.sqlite` with all data, and `pictures/` without metadata.
"""

import itertools
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from llmdiff.checks.bounds import SEED, short
from llmdiff.drawing.pictures import open_picture, png_bytes, read_metadata
from llmdiff.errors import ConfigError, InputFileError, LLMDiffError, OutputError
from llmdiff.files import clean_text, is_blank, parse_json, read_text, text_lines
from llmdiff_lab.study.model import Pair, StudySettings
from llmdiff_lab.study.store import STORE_NAME, StudyStore

QUESTIONS: Mapping[str, str] = {
    "alignment": "Which picture shows better what the text says?",
    "quality": "Which picture is of better quality?",
    "details": "Which picture has the better details?",
}
PICTURES_NAME = "pictures"
# Enough for every rater to see that the picture is damaged.
_NOISE_SHARE = 0.75
_MAX_NAME = 60


@dataclass(frozen=True, kw_only=True)
class SourcePicture:
    """A system's picture of a prompt; `seed` is None if it is unknown."""

    prompt: str
    seed: int | None
    path: Path


def create_study(
    out: str | Path,
    systems: Mapping[str, str | Path],
    *,
    title: str = "Which picture is better?",
    questions: Sequence[str] = tuple(QUESTIONS),
    ties: bool = True,
    pairs_per_rater: int | None = None,
    check_every: int = 10,
    seed: int = 0,
) -> StudySettings:
    """Create a study in the folder `out`, completely or not at all; return its settings.

    `systems`: by name, a folder of PNG files with their prompt as metadata (as `llmdiff generate` writes them), or a
    JSONL file with `prompt` and `image` (and `seed`) in every line. All systems must have the same number of pictures
    of the same prompts; pictures of one prompt are matched in the order of their seeds.
    `pairs_per_rater`: None for all pairs. `check_every`: number of pairs per attention check, 0 for no checks.

    Raises:
        ConfigError: there are fewer than two systems, their prompts differ, a question is unknown, or a number is out
            of range.
        OutputError: `out` is not empty or cannot be written, or a picture cannot be read.
    """
    folder = Path(out)
    _check(folder, systems, questions, pairs_per_rater, check_every)
    found = {name: read_source(name, Path(source)) for name, source in systems.items()}
    prompts, rows = _matched(found)
    rng = np.random.default_rng(seed)
    settings = StudySettings(
        title=title,
        questions={name: QUESTIONS[name] for name in questions},
        ties=ties,
        systems=tuple(systems),
        pairs_per_rater=pairs_per_rater,
    )
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.absolute().parent))
    try:
        (partial / PICTURES_NAME).mkdir()
        names = [{system: secrets.token_hex(8) for system in row} for row in rows]
        # Every picture by its random name: its file, and the noise to add.
        pictures: dict[str, tuple[Path, np.random.Generator | None]] = {
            names[index][system]: (picture.path, None)
            for index, row in enumerate(rows)
            for system, picture in row.items()
        }
        pairs = [
            Pair(prompt=index, first=one, second=two, first_picture=row[one], second_picture=row[two])
            for index, row in enumerate(names)
            for one, two in itertools.combinations(systems, 2)
        ]
        per_rater = min(pairs_per_rater or len(pairs), len(pairs))
        checks = -(-per_rater // check_every) if check_every else 0
        for index in rng.permutation(len(pairs))[: min(checks, len(pairs))]:
            # Choose one at random: a check must not reveal the system.
            intact = secrets.choice((pairs[index].first_picture, pairs[index].second_picture))
            noisy = secrets.token_hex(8)
            pictures[noisy] = pictures[intact][0], np.random.default_rng([seed, index])
            pairs.append(
                replace(pairs[index], first=None, second=None, first_picture=intact, second_picture=noisy)
            )
        _write_pictures(partial / PICTURES_NAME, pictures)
        StudyStore.create(partial / STORE_NAME, settings, prompts, pairs).close()
        os.chmod(partial, 0o755)
        if folder.exists():
            folder.rmdir()
        os.replace(partial, folder)
    except OSError as error:
        if isinstance(error, LLMDiffError):
            raise
        raise OutputError(
            f"out {folder} cannot be written ({error.strerror or error}): choose another"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return settings


def open_study(folder: str | Path) -> StudyStore:
    """Return the store of a study's folder; close it after use.

    Raises:
        ConfigError: the folder holds no study.
    """
    return StudyStore.open(Path(folder) / STORE_NAME)


def read_source(name: str, source: Path) -> list[SourcePicture]:
    """Return a system's pictures, from a folder of PNG files or from a JSONL list.

    Raises:
        ConfigError: there are none, a prompt is missing, or the list names a file outside its folder.
        OutputError: a picture cannot be read.
    """
    if source.is_dir():
        pictures = []
        for path in sorted(source.glob("*.png")):
            metadata = read_metadata(path)
            if is_blank(metadata.get("prompt", "")):
                raise ConfigError(
                    f"system {name}: {path} has no prompt in its metadata: write pictures with `llmdiff generate`, or "
                    "pass a JSONL list"
                )
            seed = _seed(f"system {name}: {path}", metadata.get("seed"))
            pictures.append(SourcePicture(prompt=metadata["prompt"], seed=seed, path=path))
    else:
        pictures = _read_list(name, source)
    if not pictures:
        raise ConfigError(
            f"system {name}: {source} holds no pictures: pass a folder of PNG files or a JSONL list"
        )
    return pictures


def _seed(where: str, text: str | None) -> int | None:
    """Return the seed in a picture's metadata; None if there is none."""
    if not text:
        return None
    # `isdigit` alone accepts superscripts, and `int` rejects thousands of digits.
    if not (text.isascii() and text.isdigit() and len(text) <= 20 and SEED.holds(int(text))):
        raise ConfigError(f"{where} has the seed {short(text)}, expected {SEED}: draw it again")
    return int(text)


def _read_list(name: str, source: Path) -> list[SourcePicture]:
    try:
        lines = text_lines(read_text(source))
    except InputFileError as error:
        raise ConfigError(
            f"system {name}: {source} is neither a folder nor a JSONL list that can be read ({error}): pass one of them"
        ) from error
    folder = source.absolute().parent.resolve()
    pictures = []
    for number, line in enumerate(lines, start=1):
        if is_blank(line):
            continue
        where = f"system {name}: {source}, line {number}"
        try:
            row: Any = parse_json(line)
            prompt, image, seed = row["prompt"], row["image"], row.get("seed")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f'{where}: expected {{"prompt": ..., "image": ...}}') from error
        if not isinstance(prompt, str) or is_blank(prompt) or not isinstance(image, str):
            raise ConfigError(f"{where}: prompt and image must be texts, and prompt not blank")
        if seed is not None:
            SEED.check(f"{where}: seed", seed)
        path = (folder / image).resolve()
        # A list from another source must not publish other files of this machine.
        if not path.is_relative_to(folder):
            raise ConfigError(f"{where}: image {image!r} lies outside the list's folder: move it there")
        pictures.append(SourcePicture(prompt=clean_text(f"{where}: prompt", prompt), seed=seed, path=path))
    return pictures


def _matched(
    found: Mapping[str, Sequence[SourcePicture]],
) -> tuple[list[str], list[dict[str, SourcePicture]]]:
    """Return the prompt of every row and its pictures by system; a prompt drawn n times has n rows."""
    by_prompt: dict[str, dict[str, list[SourcePicture]]] = {}
    for name, pictures in found.items():
        for picture in sorted(pictures, key=lambda one: (one.seed is None, one.seed or 0, one.path.name)):
            by_prompt.setdefault(picture.prompt, {}).setdefault(name, []).append(picture)
    prompts: list[str] = []
    rows: list[dict[str, SourcePicture]] = []
    for prompt, systems in by_prompt.items():
        counts = {name: len(systems.get(name, [])) for name in found}
        if len(set(counts.values())) != 1:
            listed = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise ConfigError(
                f"systems have different numbers of pictures of {prompt[:80]!r} ({listed}): draw the same prompts "
                "equally often with all of them"
            )
        for index in range(next(iter(counts.values()))):
            prompts.append(prompt)
            rows.append({name: systems[name][index] for name in found})
    return prompts, rows


def _write_pictures(folder: Path, pictures: Mapping[str, tuple[Path, np.random.Generator | None]]) -> None:
    """Write the pictures under their names, so that only the pixels depend on the system.

    Metadata and colour profiles are removed; the order on disk is random, and all times are equal.
    """
    order = list(pictures)
    secrets.SystemRandom().shuffle(order)
    for name in order:
        source, noise = pictures[name]
        try:
            image = open_picture(source)
        except InputFileError as error:
            raise OutputError(f"{source} cannot be read as a picture ({error}): draw it again") from error
        if noise is not None:
            values = np.asarray(image, dtype=np.float64)
            values = (1 - _NOISE_SHARE) * values + _NOISE_SHARE * noise.uniform(0, 255, values.shape)
            image = Image.fromarray(values.round().astype(np.uint8))
        (folder / f"{name}.png").write_bytes(png_bytes(image, {}))
    now = time.time()
    for name in order:
        os.utime(folder / f"{name}.png", (now, now))


def _check(
    folder: Path,
    systems: Mapping[str, str | Path],
    questions: Sequence[str],
    pairs_per_rater: int | None,
    check_every: int,
) -> None:
    if len(systems) < 2:
        raise ConfigError(f"systems: got {len(systems)}, expected at least two to compare")
    for name in systems:
        if not name.strip() or len(name) > _MAX_NAME or not name.isprintable():
            raise ConfigError(f"system name {name[:80]!r}: expected 1 to {_MAX_NAME} printable characters")
    unknown = [name for name in questions if name not in QUESTIONS]
    if unknown or not questions or len(set(questions)) != len(questions):
        raise ConfigError(f"questions: got {', '.join(questions)!r}, expected some of {', '.join(QUESTIONS)}")
    if pairs_per_rater is not None and pairs_per_rater < 1:
        raise ConfigError(f"pairs_per_rater is {pairs_per_rater}, expected at least 1")
    if check_every < 0:
        raise ConfigError(f"check_every is {check_every}, expected 0 (no checks) or more")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"out {folder} exists already: choose a new folder")
