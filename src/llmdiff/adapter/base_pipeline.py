"""Loads the pipeline that an adapter was trained for; every failure gets a name and a remedy."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from llmdiff.adapter.families import FAMILIES
from llmdiff.adapter.manifest import MANIFEST_NAME, check_manifest
from llmdiff.errors import (
    CorruptWeightsError,
    LLMDiffError,
    PipelineNotFoundError,
    UnsupportedPipelineError,
    first_line,
)

EMBEDDED_NAME = "openmoji"


def load_base_pipeline(base: str, *, dtype: torch.dtype) -> Any:
    """Return a text-to-image pipeline on the CPU: "openmoji" (shipped with the package), a folder or a Hub id.

    A folder with a manifest is checked against it. Weights are read from safetensors only, and no Python code
    that comes with a pipeline is run.

    Raises:
        PipelineNotFoundError: the pipeline is neither a folder nor to be had from the Hub.
        CorruptWeightsError: its folder lacks a file or has a damaged one.
        UnsupportedPipelineError: it is no text-to-image pipeline of diffusers' own, or brings code.
    """
    place = packaged("pipeline", PipelineNotFoundError) if base == EMBEDDED_NAME else Path(base)
    if (place / MANIFEST_NAME).is_file():
        check_manifest(place, ["model_index.json"])
    try:
        return _loader(place)(place if place.is_dir() else base, dtype=dtype, use_safetensors=True)
    except SafetensorError as error:
        raise CorruptWeightsError(
            f"pipeline {base!r} has a weight file that is truncated or damaged ({error}): download it again"
        ) from error
    except (OSError, ValueError) as error:
        reason = first_line(error)
        # diffusers has no classes of errors for these two.
        if "custom code" in str(error):
            raise UnsupportedPipelineError(
                f"base pipeline {base!r} brings Python code of its own, and none of it was run ({reason}): read "
                "it, and if you trust it, load the pipeline yourself and attach to it"
            ) from error
        if "can't find a pipeline linked to" in reason:
            raise UnsupportedPipelineError(
                f"base pipeline {base!r} is no text-to-image pipeline that diffusers knows ({reason}): use one "
                "of the adapter's family"
            ) from error
        if place.is_dir():
            raise CorruptWeightsError(
                f"base pipeline {base!r} is a folder that diffusers cannot read ({reason}): download or save "
                "it again"
            ) from error
        raise PipelineNotFoundError(
            f"base pipeline {base!r} is neither a folder nor to be had from the Hub ({reason}): get it once "
            f'with "hf download {base}", or load a pipeline yourself and attach to it'
        ) from error


def _loader(place: Path) -> Any:
    """Diffusers' function that loads a pipeline: of the class that a folder names, where it is one of ours.

    The automatic one imports every pipeline that there is, which takes seconds.
    """
    import diffusers

    try:
        name = json.loads((place / "model_index.json").read_text(encoding="utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError):
        name = None
    known = name in [pipeline for family in FAMILIES for pipeline in family.text_to_image]
    return getattr(diffusers, name if known else "AutoPipelineForText2Image").from_pretrained


def packaged(part: str, error: type[LLMDiffError]) -> Path:
    """Return the folder of a part of the embedded default.

    Raises:
        error: the package has none; says how to get one.
    """
    folder = Path(str(files("llmdiff"))) / "openmoji" / "weights" / part
    if not folder.is_dir():
        raise error(
            f"{EMBEDDED_NAME!r} has no {part} here: this is a source tree without the trained weights; install "
            "the released package, or train them with `llmdiff-lab build`"
        )
    return folder
