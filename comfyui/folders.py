"""The files that the nodes list, in ComfyUI's own model folders, and saved encodings."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import folder_paths

from llmdiff.adapter.base_pipeline import EMBEDDED_NAME
from llmdiff.errors import AttachError, InputFileError, PromptError
from llmdiff.language.digests import tensor_digest
from llmdiff.language.encoding_files import read_encoding, write_encoding
from llmdiff.language.packaged import PACKAGED
from llmdiff.language.saved_encodings import SavedEncodings

from .encoding import ENCODED_KEY, LoadedAdapter, conditioned, joined
from .model import ADAPTER_KEY, BASE_POOLED_KEY

ADAPTERS = "llmdiff"
ENCODINGS = "llmdiff"
"""The folder of saved encodings below ComfyUI's output folder."""

_KEPT = {ADAPTER_KEY, ENCODED_KEY, "pooled_output", "cross_attn_controlnet", BASE_POOLED_KEY}
# Additional tensors of a file: the base's own text, which only these nodes read.
_BASE = ("base_states", "base_pooled")

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
    """Return the path of a listed name, or the name itself if it is packaged.

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
        LLMDiffError: the LLM is not loaded any more and cannot be.
        OutputError: the folder cannot be written.
    """
    folder = _encodings_folder()
    path = folder / f"{name.removesuffix('.safetensors')}.safetensors"
    if not name.strip() or not _is_below(name):
        raise PromptError(f"name is {name!r}, expected a file name inside the folder {folder}")
    encoded = conditioning[0][1].get(ENCODED_KEY) if len(conditioning) == 1 else None
    if encoded is None:
        raise AttachError(
            "the conditioning is not one encoding: connect Save Encoding to LLMDiff Encode itself"
        )
    states, options = conditioning[0]
    lost = sorted(set(options) - _KEPT)
    if lost:
        raise AttachError(
            f"the conditioning carries {lost[0]!r}, which a file does not keep: save it before that node"
        )
    if tensor_digest(states) != encoded.rows_digest:
        raise AttachError(
            "another node has changed the encoding: connect Save Encoding to LLMDiff Encode itself"
        )
    base = {key: tensor for key, tensor in zip(_BASE, encoded.base, strict=True) if tensor is not None}
    mask = encoded.encoding.token_mask[0]
    write_encoding(path, encoded.text, encoded.origin(), encoded.encoding.states[0][mask], base)
    return path


def load_encoding(name: str, loaded: LoadedAdapter) -> Any:
    """Return a saved conditioning: a file of Save Encoding, of `llmdiff encode` or of `LLMController.encode`.

    Raises:
        InputFileError: there is no such file.
        CorruptWeightsError: it is not a saved encoding.
        AdapterMismatchError: it was encoded with another adapter.
    """
    path = _encodings_folder() / name
    if not _is_below(name) or not path.is_file():
        raise InputFileError(f"{path} does not exist: save an encoding first, then reload the page")
    saved = SavedEncodings.load(path)
    saved.check_adapter(loaded.adapter)
    tensors = read_encoding(path)
    base_states, base_pooled = (tensors.get(key) for key in _BASE)
    return joined(loaded, conditioned(loaded, saved.encode(saved.prompts)), (base_states, base_pooled))


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
