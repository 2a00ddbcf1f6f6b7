"""Read and write the file of one prompt's text encoding: safetensors with the states and a header with their origin.

The tensor "states" is (tokens, D) without padding. Every tensor's SHA-256 is in the header.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from llmdiff.checks.bounds import short
from llmdiff.errors import ConfigError, CorruptWeightsError, OutputError, first_line
from llmdiff.files import whole_file
from llmdiff.language.digests import tensor_digest

_FORMAT = {"format": "llmdiff-encoding", "version": "2"}


@dataclass(frozen=True, kw_only=True)
class EncodingOrigin:
    """The models and settings that an encoding was made with. Only encodings of the same origin can be combined.

    Fields:
        llm, hidden_size, num_blocks: name (not compared) and sizes of the LLM.
        llm_dtype: dtype that the LLM computed in, such as "float32".
        llm_sha256, adapter_sha256: digests of both models.
        template: the adapter's text around the prompt; "" if it has none.
        weighted: whether `(word:1.3)` was read as a weight.
        rewording: the closed LLM that reworded the prompts; "" if none did.
        noise_seed: the seed of the noise in the states; "" if they have none.
    """

    llm: str = field(compare=False)
    hidden_size: int
    num_blocks: int
    llm_dtype: str
    llm_sha256: str
    adapter_sha256: str
    template: str
    weighted: bool
    rewording: str
    noise_seed: str

    def as_text(self) -> dict[str, str]:
        """Return the fields as strings for a safetensors header."""
        return {name: str(value) for name, value in asdict(self).items()}

    @classmethod
    def of_text(cls, header: Mapping[str, str]) -> "EncodingOrigin":
        """Return the origin in a safetensors header; a missing or invalid field raises a KeyError or ValueError."""
        found: dict[str, Any] = {one.name: header[one.name] for one in fields(cls)}
        found["hidden_size"], found["num_blocks"] = int(found["hidden_size"]), int(found["num_blocks"])
        found["weighted"] = {"True": True, "False": False}[found["weighted"]]
        return cls(**found)

    def difference(self, other: "EncodingOrigin") -> str | None:
        """Return the first field that differs, with both values; None if the origins are equal."""
        ours, theirs = self.as_text(), other.as_text()
        for name in (one.name for one in fields(self) if one.compare):
            if ours[name] != theirs[name]:
                return f"{name} {short(ours[name][:60])} and {short(theirs[name][:60])}"
        return None


def write_encoding(
    path: Path,
    prompt: str,
    origin: EncodingOrigin,
    states: Tensor,
    extra: Mapping[str, Tensor] | None = None,
) -> None:
    """Write one prompt's encoding to a file, whole or not at all.

    `extra` are tensors that another program stores beside the states. NaN and infinite states are never written.

    Raises:
        ConfigError: the states are not finite.
        OutputError: the file cannot be written.
    """
    tensors = {
        name: one.detach().cpu().contiguous() for name, one in {"states": states, **(extra or {})}.items()
    }
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise ConfigError(f"the encoding of {short(prompt)} has values that are not finite: it was not saved")
    digests = {f"sha256 {name}": tensor_digest(tensor) for name, tensor in tensors.items()}
    try:
        with whole_file(path) as partial:
            save_file(tensors, partial, metadata={**_FORMAT, "prompt": prompt, **origin.as_text(), **digests})
    except SafetensorError as error:
        raise OutputError(f"{path} cannot be written ({error}): make room on the disk") from error


def read_encoding(path: Path, origin: EncodingOrigin | None = None) -> dict[str, Tensor]:
    """Return the tensors of a file: "states" (tokens, D) and the extra tensors.

    Raises:
        CorruptWeightsError: the file is damaged, is not an encoding, or has another origin.
    """
    found = read_header(path)[1]
    if origin is not None and found != origin:
        raise CorruptWeightsError(
            f"{path} was replaced by an encoding of another origin: load the folder again"
        )
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata()
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise _damaged(path, first_line(error)) from error
    for name, tensor in tensors.items():
        if header.get(f"sha256 {name}") != tensor_digest(tensor):
            raise _damaged(path, f"{name} differs from its SHA-256")
    return tensors


def read_header(path: Path) -> tuple[str, EncodingOrigin]:
    """Return the prompt of a file and the origin of its encoding.

    Raises:
        CorruptWeightsError: the file is damaged or is not an encoding.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header, names = file.metadata() or {}, set(file.keys())
    except (OSError, SafetensorError) as error:
        raise _damaged(path, first_line(error)) from error
    if {key: header.get(key) for key in _FORMAT} != _FORMAT:
        raise CorruptWeightsError(
            f"{path} is no text encoding of version {_FORMAT['version']} (format {short(header.get('format'))}, "
            f"version {short(header.get('version'))}): move it away, or encode its prompt again"
        )
    try:
        if "states" not in names:
            raise KeyError("states")
        return header["prompt"], EncodingOrigin.of_text(header)
    except (KeyError, ValueError) as error:
        raise _damaged(path, f"its header lacks a valid {first_line(error)}") from error


def _damaged(path: Path, reason: str) -> CorruptWeightsError:
    return CorruptWeightsError(
        f"encoding {path} is damaged ({reason}): delete it and encode its prompt again"
    )
