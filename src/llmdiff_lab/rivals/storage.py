"""Save and load trained rivals: config.json, safetensors and a manifest, like an adapter's; nothing is unpickled."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmdiff.adapter.storage import load_adapter_files, save_adapter_files
from llmdiff.checks.bounds import short
from llmdiff.errors import AdapterMismatchError, ConfigError
from llmdiff.training.conditioning import Conditioning
from llmdiff_lab.rivals.readings import RivalInputs
from llmdiff_lab.rivals.registry import create


@dataclass(frozen=True, kw_only=True)
class SavedRival:
    """The content of config.json: the row's name and the settings that its weights depend on."""

    rival: str
    source_id: str
    template: str | None
    lone: str
    base_model_id: str


def save_rival(conditioning: Conditioning, name: str, parts: RivalInputs, folder: str | Path) -> None:
    """Write a trained rival's weights, without those of the frozen reader and the pipeline.

    Raises:
        OutputError: the folder cannot be written; no partial file is left in it.
    """
    saved = SavedRival(
        rival=name,
        source_id=conditioning.source_id,
        template=parts.template,
        lone=parts.lone,
        base_model_id=parts.base_model_id or "",
    )
    save_adapter_files(Path(folder), asdict(saved), conditioning.tensors())


def load_rival(folder: str | Path, parts: RivalInputs) -> Conditioning:
    """Return a saved rival for this pipeline and reader, ready to attach.

    Raises:
        AdapterNotFoundError: the folder does not exist.
        CorruptWeightsError: a file is missing or damaged, or the weights are of other shapes: another pipeline's
            or another reader's.
        ConfigError: config.json has an unknown key or lacks one, or `parts` lacks the reader it needs.
        AdapterMismatchError: it was trained with another reader, template or `lone`.
    """
    config, read_tensors = load_adapter_files(folder, SavedRival)
    for key, value in config.items():
        if not isinstance(value, str | None):
            raise ConfigError(
                f"config.json of {folder} has {key} {short(value)}, expected text: save it again"
            )
    saved = SavedRival(**config)
    conditioning = create(saved.rival, parts)
    given: dict[str, Any] = {
        "source_id": conditioning.source_id,
        "template": parts.template,
        "lone": parts.lone,
    }
    for key, value in given.items():
        if config[key] != value:
            raise AdapterMismatchError(
                f"rival {saved.rival!r} in {folder} was trained with {key} {json.dumps(config[key])}, these "
                f"parts have {json.dumps(value)}: pass the same"
            )
    shapes = {name: tensor.shape for name, tensor in conditioning.tensors().items()}
    conditioning.load_tensors(read_tensors(shapes))
    conditioning.train(False)
    return conditioning
