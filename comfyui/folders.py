"""The files that the nodes list, in ComfyUI's own model folders, and saved encodings."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import folder_paths
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from llmdiff.adapter.base_pipeline import EMBEDDED_NAME
from llmdiff.errors import AttachError, CorruptWeightsError, InputFileError, OutputError, PromptError
from llmdiff.language.packaged import PACKAGED

from .model import ADAPTER_KEY, BASE_POOLED_KEY

ADAPTERS = "llmdiff"
ENCODINGS = "llmdiff"
"""The folder of saved encodings below ComfyUI's output folder."""

_FORMAT = {"format": "llmdiff-encoding", "version": "1"}
_TENSORS = ("pooled_output", "cross_attn_controlnet", BASE_POOLED_KEY)

# The default place; extra_model_paths.yaml may name more.
folder_paths.add_model_folder_path(ADAPTERS, os.path.join(folder_paths.models_dir, ADAPTERS))


def llm_names() -> list[str]:
    """Return the LLMs in `text_encoders`: folders with a config.json, GGUF files, and the packaged ones by name."""
    found = _below("text_encoders", lambda path: path.suffix == ".gguf" or _is_model(path))
    return [*PACKAGED, *found]


def adapter_names() -> list[str]:
    """Return the adapters: folders with a config.json in `models/llmdiff`, and the embedded default."""
    return [EMBEDDED_NAME, *_below(ADAPTERS, _is_model)]


def base_names() -> list[str]:
    """Return the diffusers pipelines in `models/diffusers`, and the embedded default."""
    return [EMBEDDED_NAME, *_below("diffusers", lambda path: (path / "model_index.json").is_file())]


def located(kind: str, name: str) -> str:
    """Return the path of a listed name, or the name itself for what comes with a package.

    Raises:
        InputFileError: it is in none of the folders any more.
    """
    if name == EMBEDDED_NAME or (kind == "text_encoders" and name in PACKAGED):
        return name
    places = folder_paths.get_folder_paths(kind)
    for place in places:
        path = Path(place) / name
        if _is_below(name) and path.exists():
            return str(path)
    raise InputFileError(f"{name!r} is in none of {', '.join(places)}: put it there, then reload the page")


def encoding_names() -> list[str]:
    """Return the saved encodings."""
    folder = _encodings_folder()
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors"))


def save_encoding(conditioning: Any, name: str) -> Path:
    """Write a conditioning of LLMDiff Encode to the output folder, replacing one of the same name.

    Raises:
        PromptError: the name is no file name.
        AttachError: the conditioning is not one encoding of LLMDiff, or carries what a file does not keep.
        OutputError: the folder cannot be written.
    """
    folder = _encodings_folder()
    path = folder / f"{name.removesuffix('.safetensors')}.safetensors"
    if not name.strip() or not _is_below(name):
        raise PromptError(f"name is {name!r}, expected a file name inside the folder {folder}")
    if len(conditioning) != 1 or ADAPTER_KEY not in conditioning[0][1]:
        raise AttachError(
            "the conditioning is not one encoding: connect Save Encoding to LLMDiff Encode itself"
        )
    states, options = conditioning[0]
    lost = sorted(set(options) - {ADAPTER_KEY, *_TENSORS})
    if lost:
        raise AttachError(
            f"the conditioning carries {lost[0]!r}, which a file does not keep: save it before that node"
        )
    tensors = {"states": states, **{key: options[key] for key in _TENSORS if key in options}}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        save_file(
            {key: tensor.contiguous().clone() for key, tensor in tensors.items()},
            partial,
            metadata={**_FORMAT, "adapter": options[ADAPTER_KEY]},
        )
        partial.replace(path)
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written ({error}): choose another name or free some space"
        ) from error
    return path


def load_encoding(name: str, digest: str) -> Any:
    """Return a saved conditioning.

    Raises:
        InputFileError: there is no such file.
        CorruptWeightsError: it is not a saved encoding.
        AttachError: it was encoded with another adapter.
    """
    path = _encodings_folder() / name
    if not _is_below(name) or not path.is_file():
        raise InputFileError(f"{path} does not exist: save an encoding first, then reload the page")
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            tensors: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CorruptWeightsError(
            f"{path} is not a readable safetensors file ({error}): save it again"
        ) from error
    if {key: metadata.get(key) for key in _FORMAT} != _FORMAT or "states" not in tensors:
        raise CorruptWeightsError(
            f"{path} is no encoding of version {_FORMAT['version']} (it says {metadata.get('version')!r}): save again"
        )
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise CorruptWeightsError(f"{path} has values that are not finite: save it again")
    if metadata.get("adapter") != digest:
        raise AttachError(
            f"{path} was encoded with another adapter: load that one, or encode the prompt again"
        )
    states = tensors.pop("states")
    return [[states, {**tensors, ADAPTER_KEY: digest}]]


def encoding_changed(name: str) -> float:
    """Return when a saved encoding was written, 0 if it does not exist."""
    path = _encodings_folder() / name
    return path.stat().st_mtime if path.is_file() else 0.0


def _encodings_folder() -> Path:
    return Path(folder_paths.get_output_directory()) / ENCODINGS


def _is_below(name: str) -> bool:
    # By the name alone: people link models into ComfyUI's folders.
    return not Path(name).is_absolute() and ".." not in Path(name).parts


def _is_model(path: Path) -> bool:
    return (path / "config.json").is_file()


def _below(kind: str, wanted: Callable[[Path], bool]) -> list[str]:
    """Return what is wanted in and one folder below ComfyUI's folders of this kind, relative to them."""
    found = []
    for place in map(Path, folder_paths.get_folder_paths(kind)):
        for path in [*sorted(place.glob("*")), *sorted(place.glob("*/*"))]:
            if wanted(path):
                found.append(path.relative_to(place).as_posix())
    return list(dict.fromkeys(found))
