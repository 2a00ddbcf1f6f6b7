"""Load the pipeline that an adapter was trained for; every error names the cause and a remedy."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from llmdiff.adapter.manifest import MANIFEST_NAME, check_manifest
from llmdiff.errors import (
    CorruptWeightsError,
    LLMDiffError,
    PipelineNotFoundError,
    UnsupportedPipelineError,
    first_line,
)
from llmdiff.language.whole_weights import damage_named, hide_loading_bars, load_whole
from llmdiff.world.packaged import NO_WEIGHTS, WEIGHTS

EMBEDDED_NAME = "openmoji"
# diffusion_pytorch_model.fp16.safetensors, model.fp16-00001-of-00002.safetensors
_VARIANT = re.compile(r"\w+\.(\w+?)(?:-\d+-of-\d+)?\.safetensors")
_TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3", "text_encoder_4")
_OTHER_TASK = re.compile("Img2Img|Inpaint|ControlNet|Fill|Edit|Upscale|Pix2Pix")


def load_base_pipeline(base: str, *, dtype: torch.dtype, text_encoders: bool = True) -> Any:
    """Return a text-to-image pipeline on the CPU: "openmoji" (shipped with the package), a folder or a Hub id.

    A folder with a manifest is checked against it. Every weight is read, from safetensors only, and no Python code
    that comes with a pipeline is run. `text_encoders=False` leaves text encoders out, neither loaded nor downloaded.

    Raises:
        PipelineNotFoundError: the pipeline is neither a folder nor available on the Hub.
        CorruptWeightsError: a file is missing or damaged, or a model lacks a weight.
        UnsupportedPipelineError: it is not one of diffusers' text-to-image pipelines, or brings code.
    """
    is_packaged = base == EMBEDDED_NAME
    place = packaged("pipeline", PipelineNotFoundError) if is_packaged else Path(base)
    if not is_packaged and (place / MANIFEST_NAME).is_file():
        check_manifest(place, ["model_index.json"])
    if place.is_file():
        raise PipelineNotFoundError(
            f"base pipeline {base!r} is a single file, expected a folder or a Hub id: load it with diffusers' "
            "from_single_file and attach to that, or save it with save_pretrained"
        )
    try:
        load, source = _loader(_index(place)), place if place.is_dir() else base
        parts = _whole_parts(
            _folder(source, text_encoders=text_encoders), dtype=dtype, base=base, text_encoders=text_encoders
        )
        hide_loading_bars()
        with damage_named(f"pipeline {base!r}"):
            pipe = load(source, dtype=dtype, use_safetensors=True, **parts)
    except CorruptWeightsError:
        raise
    except (OSError, ValueError) as error:
        reason = first_line(error)
        # diffusers has no exception classes for these two.
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
            f"base pipeline {base!r} is neither a folder nor available on the Hub ({reason}): get it once "
            f'with "hf download {base}", or load a pipeline yourself and attach to it'
        ) from error
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module) and name not in parts:
            raise UnsupportedPipelineError(
                f"base pipeline {base!r} has a {name} of its own kind ({type(part).__name__}), whose weights cannot be "
                "checked: load the pipeline yourself and attach to it"
            )
    return pipe


def _folder(source: Path | str, *, text_encoders: bool) -> Path:
    """Return the folder of a pipeline, downloading a Hub id first."""
    import diffusers

    if isinstance(source, Path):
        return source
    left_out = {} if text_encoders else dict.fromkeys(_TEXT_ENCODERS)
    return Path(diffusers.DiffusionPipeline.download(source, use_safetensors=True, **left_out))


def _whole_parts(folder: Path, *, dtype: torch.dtype, base: str, text_encoders: bool) -> dict[str, Any]:
    """Return the models of a pipeline by name, loaded by `load_whole`, which checks that no weight is missing.

    Models that the pipeline was saved without, or that are left out, are None.
    """
    parts: dict[str, Any] = {}
    for name, pair in _index(folder).items():
        if name.startswith("_") or not isinstance(pair, list) or len(pair) != 2:
            continue
        library, class_name = pair
        kind = model_class(library, class_name)
        if class_name is None or (name in _TEXT_ENCODERS and not text_encoders):
            parts[name] = None
        elif kind is not None:
            own = folder / name
            parts[name] = load_whole(
                kind,
                own if own.is_dir() else folder,
                what=f"{name} of pipeline {base!r}",
                dtype=dtype,
                use_safetensors=True,
                **_variant(own),
            )
    return parts


def _variant(folder: Path) -> dict[str, Any]:
    """Return the argument for weights that were saved with a variant's name alone, such as fp16."""
    names = [path.name for path in folder.glob("*.safetensors")]
    found = {match[1] for name in names if (match := _VARIANT.fullmatch(name))}
    alone = len(found) == 1 and all(_VARIANT.fullmatch(name) for name in names)
    return {"variant": found.pop()} if alone else {}


def model_class(library: Any, name: Any) -> Any:
    """Return the class of a pipeline's component if it is a model, else None; diffusers reports invalid names."""
    import diffusers
    import transformers

    if not isinstance(library, str) or not isinstance(name, str):
        return None
    places = {"diffusers": diffusers, "transformers": transformers}
    kind = getattr(places.get(library) or getattr(diffusers.pipelines, library, None), name, None)
    models = (diffusers.ModelMixin, transformers.PreTrainedModel)
    return kind if isinstance(kind, type) and issubclass(kind, models) else None


def _index(folder: Path) -> dict[str, Any]:
    """Return the index of a pipeline folder: [library, class] of each component; empty if it cannot be read."""
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return index if isinstance(index, dict) else {}


def _loader(index: Mapping[str, Any]) -> Any:
    """Return the `from_pretrained` of the class that the index names if it is a text-to-image pipeline.

    Otherwise return that of `AutoPipelineForText2Image`, whose import of all pipelines takes seconds.
    """
    import diffusers

    name = index.get("_class_name")
    kind = getattr(diffusers, name, None) if isinstance(name, str) and not _OTHER_TASK.search(name) else None
    chosen: Any = kind if hasattr(kind, "encode_prompt") else diffusers.AutoPipelineForText2Image
    return chosen.from_pretrained


def packaged(part: str, error: type[LLMDiffError]) -> Path:
    """Return the folder of a part of the embedded default, checked against its manifest.

    Raises:
        error: the package does not contain it; the message says how to get it.
        CorruptWeightsError: a file is missing or damaged.
    """
    folder = WEIGHTS / part
    if not folder.is_dir():
        raise error(f"{EMBEDDED_NAME!r} has no {part} here: {NO_WEIGHTS}")
    check_manifest(folder, [])
    return folder
