"""Write and read a checker's folder: weights in half precision, and a config."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from llmdiff.errors import ConfigError, CorruptWeightsError, OutputError, first_line
from llmdiff.files import read_json, whole_file, write_whole

CONFIG_NAME, WEIGHTS_NAME = "config.json", "model.safetensors"

_Checker = TypeVar("_Checker", bound=nn.Module)


def save_checker(checker: nn.Module, folder: Path, config: dict[str, Any]) -> None:
    """Write weights (half precision) and config into a folder, each file whole or not at all.

    Raises:
        OutputError: the folder cannot be written.
    """
    weights = {name: value.half().contiguous().cpu() for name, value in checker.state_dict().items()}
    try:
        with whole_file(folder / WEIGHTS_NAME) as partial:
            save_file(weights, partial)
            partial.chmod(0o644)
        write_whole(folder / CONFIG_NAME, json.dumps(config, indent=1) + "\n")
    except SafetensorError as error:
        raise OutputError(
            f"save_directory {folder} cannot be written ({error}): choose another folder"
        ) from error


def load_checker(folder: Path, make: Callable[[Any], _Checker], *, title: str, hint: str) -> _Checker:
    """Return a saved checker in eval mode. `make` returns an untrained one for a config.

    Raises:
        CorruptWeightsError: the folder has no checker, or a damaged one.
        ConfigError: `make` rejects the config.
    """
    try:
        config = read_json(folder / CONFIG_NAME)
        checker = make(config)
        weights = load_file(folder / WEIGHTS_NAME)
        checker.load_state_dict({name: value.float() for name, value in weights.items()})
    except ConfigError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise CorruptWeightsError(
            f"checker {folder}: not a readable {title} ({first_line(error)}); {hint}"
        ) from error
    return checker.eval()
