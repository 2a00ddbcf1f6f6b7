"""Find and load an LLM's weights and tokenizer; every error names its cause and a remedy."""

import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer

from llmdiff.errors import (
    ConfigError,
    CorruptWeightsError,
    LLMDiffError,
    LLMNotFoundError,
    UnsupportedLLMError,
    first_line,
)
from llmdiff.language.gguf import gguf_llm_folder
from llmdiff.language.packaged import PACKAGED, packaged_llm_folder
from llmdiff.language.support import check_supported, model_kind
from llmdiff.language.whole_weights import load_whole


def load_llm(
    name_or_path: str | os.PathLike[str],
    *,
    gguf_file: str | None,
    revision: str | None,
    device: str | torch.device,
    dtype: torch.dtype,
    trust_remote_code: bool,
    quantization_config: Any,
) -> tuple[Any, Any, str]:
    """Return the model, its tokenizer and the id to load both again; see `DecoderLLM.from_pretrained`."""
    name = os.fspath(name_or_path)
    llm_id = name if gguf_file is None else f"{name.rstrip('/')}/{gguf_file}"
    if quantization_config is not None and llm_id.endswith(".gguf"):
        raise ConfigError(
            f"quantization_config is given for the GGUF file {llm_id!r}, whose weights are unpacked when it is "
            "converted; pass the LLM's safetensors folder or Hub id instead"
        )
    source = str(_local_source(llm_id, revision=revision))
    at_hub = {"revision": revision} if revision is not None and source == name else {}
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, **at_hub}
    if Path(source).is_dir():
        if not (Path(source) / "config.json").is_file():
            raise LLMNotFoundError(_not_found(llm_id, "no config.json"))
    elif source.count("/") > 1:
        raise LLMNotFoundError(_not_found(llm_id, "no such folder"))
    quantized = quantization_config is not None
    try:
        config: Any = AutoConfig.from_pretrained(source, **options)
        check_supported(config, id=llm_id)
        tokenizer = AutoTokenizer.from_pretrained(_tokenizer_source(source, llm_id), **options)
        quantized = quantized or getattr(config, "quantization_config", None) is not None
        # Pack weights on their final device: not every kind can be moved.
        packing: dict[str, Any] = {"device_map": {"": device}} if quantized else {}
        if quantization_config is not None:  # None would overwrite the config of a packed checkpoint
            packing["quantization_config"] = quantization_config
        model = load_whole(
            model_kind(config),
            source,
            what=f"llm {llm_id!r}",
            head_runs=False,
            dtype=dtype,
            use_safetensors=True,
            **packing,
            **options,
        )
    except (LLMDiffError, torch.OutOfMemoryError):
        raise
    except OSError as error:
        raise LLMNotFoundError(_not_found(llm_id, first_line(error))) from error
    except ImportError as error:
        what = "its quantised weights need" if quantized else "it needs"
        raise ConfigError(
            f"{llm_id}: {what} a package that is not installed ({first_line(error)}); install it"
            + (", or load the LLM without quantization_config" if quantization_config is not None else "")
        ) from error
    except Exception as error:  # invalid configurations fail anywhere in the model class
        if "trust_remote_code" in str(error):
            raise UnsupportedLLMError(
                f"{llm_id} brings Python code of its own, and none of it was run; read it, and if you trust it "
                "pass trust_remote_code=True"
            ) from error
        if quantization_config is not None:
            raise ConfigError(
                f"quantization_config {type(quantization_config).__name__} cannot be used for {llm_id} on "
                f"{device} ({first_line(error)}); use another one, or none"
            ) from error
        if isinstance(error, RuntimeError) and not isinstance(error, NotImplementedError):
            raise CorruptWeightsError(
                f"{llm_id}: its weights cannot be read ({first_line(error)}); download or convert it again"
            ) from error
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        reason = kind + first_line(error)
        raise UnsupportedLLMError(
            f"{llm_id}: transformers cannot load it as a causal language model ({reason}); "
            "expected a decoder-only LLM"
        ) from error
    return (model if quantized else model.to(device)), tokenizer, llm_id


def _tokenizer_source(source: str, llm_id: str) -> str:
    """Return where the tokenizer is: with the model or, for a pipeline's text encoder, in the folder beside it."""
    folder, beside = Path(source), Path(source).parent / "tokenizer"
    # Without tokenizer files transformers would create an empty tokenizer.
    if not folder.is_dir() or any(any(folder.glob(name)) for name in ("*token*", "*vocab*", "*.model")):
        return source
    if not beside.is_dir():
        raise LLMNotFoundError(_not_found(llm_id, 'no tokenizer in it or in a folder "tokenizer" beside it'))
    return str(beside)


def _local_source(llm_id: str, *, revision: str | None) -> str | Path:
    """Return the folder to load from, or the Hub id itself."""
    if llm_id in PACKAGED:
        return packaged_llm_folder(llm_id)
    if not llm_id.endswith(".gguf"):
        return llm_id
    path = Path(llm_id)
    if path.is_file():
        return gguf_llm_folder(path)
    repository, _, file = llm_id.rpartition("/")
    if repository.count("/") != 1 or Path(repository).is_dir():
        raise LLMNotFoundError(_not_found(llm_id, "no such file"))
    from huggingface_hub import hf_hub_download

    try:
        path = Path(hf_hub_download(repository, file, revision=revision))
    except OSError as error:
        raise LLMNotFoundError(_not_found(llm_id, first_line(error))) from error
    return gguf_llm_folder(path)


def _not_found(llm_id: str, reason: str) -> str:
    reason = reason.rstrip(".")
    if Path(llm_id).is_dir():
        return (
            f"llm {llm_id!r} is a folder without a whole safetensors model ({reason}); pass one that has it"
        )
    offline = os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "TRUE", "YES")
    where = " (HF_HUB_OFFLINE is set)" if offline else ""
    parts = llm_id.split("/")
    if len(parts) == 3 and llm_id.endswith(".gguf"):
        get = f'get it once with network with "hf download {parts[0]}/{parts[1]} {parts[2]}"'
    elif len(parts) <= 2 and not llm_id.endswith(".gguf"):
        get = f'get it once with network with "hf download {llm_id}"'
    else:
        get = "check the path"
    return (
        f"llm {llm_id!r} was not found{where}: {reason}; {get}, or pass a folder, a .gguf file, a Hub id or "
        + " or ".join(f'"{name}"' for name in PACKAGED)
    )


def same_model_name(one: str, other: str) -> bool:
    """Return whether two names of models have the same last part: "owner/SmolLM2" and "models/smollm2"."""
    first, second = (name.rstrip("/").rpartition("/")[2].casefold() for name in (one, other))
    return first == second
