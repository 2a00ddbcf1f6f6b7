"""Save and load an adapter: config.json, safetensors and the manifest; never pickle."""

import inspect
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from llmdiff.adapter.manifest import MANIFEST_NAME, check_manifest, write_manifest
from llmdiff.checks.bounds import short
from llmdiff.errors import AdapterNotFoundError, ConfigError, CorruptWeightsError, OutputError, first_line
from llmdiff.files import parse_json, read_text

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
CARD_NAME = "README.md"

ReadTensors = Callable[[Mapping[str, torch.Size]], dict[str, Tensor]]
Check = Callable[[dict[str, Any], Collection[str]], None]

# Typical files have about ten thousand bytes.
_MAX_CONFIG_BYTES = 4 * 2**20
# Supported dtypes, as safetensors names them.
_KINDS = ("F64", "F32", "F16", "BF16")


def save_adapter_files(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], *, card: str | None = None
) -> None:
    """Write the adapter's three files into the folder, creating it if needed.

    The card is written as README.md. Authors edit it, so an existing one is kept, and the manifest does not
    list it.

    Raises:
        OutputError: the folder cannot be written; no partial files are left in it.
    """
    created: list[Path] = []
    partial: Path | None = None
    try:
        for place in [folder, *folder.parents]:
            if place.exists():
                break
            created.append(place)
        folder.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".saving-", dir=folder))
        save_file(dict(tensors), partial / WEIGHTS_NAME, metadata={"format": "pt"})
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        (partial / CONFIG_NAME).write_text(text, encoding="utf-8")
        write_manifest(partial, [CONFIG_NAME, WEIGHTS_NAME])
        names = [WEIGHTS_NAME, CONFIG_NAME, MANIFEST_NAME]
        if card is not None and not (folder / CARD_NAME).exists():
            (partial / CARD_NAME).write_text(card, encoding="utf-8")
            names.insert(0, CARD_NAME)
        # The manifest is moved last: after an interruption, a mix of old and new files fails its check.
        for name in names:
            (partial / name).chmod(0o644)
            os.replace(partial / name, folder / name)
        partial.rmdir()
    except (OSError, SafetensorError) as error:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
        for place in created:
            # Remove only folders created by this call, and only if empty.
            if place.is_dir() and not any(place.iterdir()):
                place.rmdir()
        raise OutputError(
            f"save_directory {folder} cannot be written ({error}): choose a folder you can write, on a disk "
            "with room"
        ) from error


def load_adapter_files(
    name_or_path: str | Path,
    adapter_class: type,
    *,
    revision: str | None = None,
    check: Check = lambda config, names: None,
) -> tuple[dict[str, Any], ReadTensors]:
    """Return the validated config and a function that reads the tensors, given their expected shapes.

    `check` is called with the config and the tensors' names before anything is built from them.

    Raises:
        AdapterNotFoundError, CorruptWeightsError, ConfigError: see `LLMDiffAdapter.from_pretrained`.
    """
    folder = _folder(name_or_path, revision)
    check_manifest(folder, [CONFIG_NAME, WEIGHTS_NAME])
    path = folder / CONFIG_NAME
    try:
        stored = parse_json(read_text(path, max_bytes=_MAX_CONFIG_BYTES))
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON ({error}): save the adapter again") from error
    if not isinstance(stored, dict):
        raise ConfigError(f"{path} holds {short(stored)}, expected keys and values: save the adapter again")
    config = {name: value for name, value in stored.items() if not name.startswith("_")}
    parameters = inspect.signature(adapter_class.__init__).parameters  # type: ignore[misc]
    known = {name: row for name, row in parameters.items() if name != "self"}
    unknown = sorted(set(config) - set(known))
    if unknown:
        raise ConfigError(
            f"{path} has the unknown key {short(unknown[0])}, known are {', '.join(sorted(known))}: "
            "it was made by another version of llmdiff, or by hand"
        )
    for name, row in known.items():
        if name not in config and row.default is inspect.Parameter.empty:
            raise ConfigError(f"{path} lacks the key {name!r}: save the adapter again")
    weights = folder / WEIGHTS_NAME
    try:
        check(config, _headers(weights))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return config, partial(_read_tensors, weights)


def _headers(path: Path) -> dict[str, tuple[torch.Size, str]]:
    """Return every tensor's shape and type, from the file's header alone."""
    with _unreadable_named(path), safe_open(path, framework="pt") as file:
        parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return {name: (torch.Size(part.get_shape()), str(part.get_dtype())) for name, part in parts.items()}


@contextmanager
def _unreadable_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise CorruptWeightsError(
            f"{path} is not a readable safetensors file ({error}): download it again"
        ) from error


def _read_tensors(path: Path, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    headers = _headers(path)
    for name in sorted(set(shapes) ^ set(headers)):
        what = "lacks the tensor" if name in shapes else "has the unexpected tensor"
        raise CorruptWeightsError(
            f"{path} {what} {short(name)}: config.json and weights are of different adapters"
        )
    for name, (shape, kind) in headers.items():
        # Earlier versions stored single numbers without dimensions, as () instead of (1,).
        if shape != shapes[name] and (shape, shapes[name]) != (torch.Size(), torch.Size([1])):
            raise CorruptWeightsError(
                f"{path} has {name!r} of shape {tuple(shape)}, config.json says "
                f"{tuple(shapes[name])}: config.json and weights are of different adapters"
            )
        if kind not in _KINDS:
            raise CorruptWeightsError(
                f"{path} has {name!r} in {kind}, expected one of {', '.join(_KINDS)}: save the adapter again"
            )
    with _unreadable_named(path):
        tensors = load_file(path)
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise CorruptWeightsError(
                f"{path} has values that are not finite in {name!r}: the training diverged"
            )
    return {name: tensor.reshape(shapes[name]) for name, tensor in tensors.items()}


def _folder(name_or_path: str | Path, revision: str | None) -> Path:
    folder = Path(name_or_path)
    if folder.is_dir():
        return folder
    # A name that looks like a path is not looked up on the Hub, whose error would mislead.
    if isinstance(name_or_path, Path) or folder.is_absolute() or str(name_or_path).count("/") != 1:
        raise AdapterNotFoundError(
            f"adapter {str(name_or_path)!r} is no folder, expected a saved adapter or a Hub id like "
            "'owner/name'"
        )
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(
            str(name_or_path), revision=revision, allow_patterns=[CONFIG_NAME, WEIGHTS_NAME, MANIFEST_NAME]
        )
    except Exception as error:  # the Hub client raises a dozen kinds, for network, names, rights and caches
        raise AdapterNotFoundError(
            f"adapter {name_or_path!r} is neither a folder nor available on the Hub ({first_line(error)}): check the "
            "name and the network"
        ) from error
    return Path(found)
