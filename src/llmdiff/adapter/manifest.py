"""The SHA-256 manifest of a saved folder: written last, and checked before any other file is read."""

import json
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from llmdiff.checks.bounds import short
from llmdiff.errors import CorruptWeightsError, InputFileError
from llmdiff.files import file_sha256, read_json

MANIFEST_NAME = "manifest.json"
_MAX_PART_BYTES = 255
_REMEDY = "save it again or download it again"


def write_manifest(folder: Path, names: Iterable[str]) -> None:
    """Write the manifest of these files of the folder.

    Names are relative to the folder, with "/" between folders below it ("unet/config.json").
    """
    entries = {name: file_sha256(folder / name) for name in sorted(names)}
    text = json.dumps({"sha256": entries}, indent=2, sort_keys=True) + "\n"
    (folder / MANIFEST_NAME).write_text(text, encoding="utf-8")


def write_manifest_of_all(folder: Path) -> None:
    """Write the manifest of every file in the folder and below it."""
    files = (path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST_NAME)
    write_manifest(folder, (path.relative_to(folder).as_posix() for path in files))


def check_manifest(folder: Path, required: Iterable[str]) -> None:
    """Check every file of the manifest against its recorded SHA-256.

    Raises:
        CorruptWeightsError: the manifest is missing or unreadable, a required file has no entry, or a file is
            missing or differs from what was saved.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise CorruptWeightsError(
            f"{folder} has no {MANIFEST_NAME}, expected a folder saved with one: {_REMEDY}"
        )
    try:
        entries = read_json(path)["sha256"]
        known = {str(name): str(digest) for name, digest in entries.items()}
    except (InputFileError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptWeightsError(
            f"{path} is not a manifest of SHA-256 sums ({error!r}): {_REMEDY}"
        ) from error
    for name in required:
        if name not in known:
            raise CorruptWeightsError(f"{path} has no entry for {name}: {_REMEDY}")
    for name, expected in known.items():
        parts = PurePosixPath(name).parts
        long = max((len(part.encode("utf-8", "replace")) for part in parts), default=0) > _MAX_PART_BYTES
        if not parts or parts[0] == "/" or ".." in parts or "\\" in name or ":" in name or long:
            raise CorruptWeightsError(
                f"{path} lists {short(name)}, expected names inside the folder: {_REMEDY}"
            )
        file = folder / name
        if not file.is_file():
            raise CorruptWeightsError(f"{file} is missing, the manifest lists it: {_REMEDY}")
        found = file_sha256(file)
        if found != expected:
            raise CorruptWeightsError(
                f"{file} has SHA-256 {found[:12]}, the manifest says {expected[:12]}: it is damaged or was "
                f"changed; {_REMEDY}"
            )
