"""Convert GGUF files to safetensors folders, once."""

import json
import logging
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from llmdiff.errors import CorruptWeightsError, OutputError, UnsupportedLLMError, first_line
from llmdiff.files import IDLE_S, file_sha256, sweep
from llmdiff.language.whole_weights import check_faults, load_whole

MANIFEST = "llmdiff_manifest.json"

_log = logging.getLogger(__name__)


def llmdiff_home() -> Path:
    """Return the folder for files that LLMDiff can recreate: `$LLMDIFF_HOME`, or ~/.cache/llmdiff."""
    return Path(os.environ.get("LLMDIFF_HOME") or "~/.cache/llmdiff").expanduser()


def gguf_llm_folder(path: Path) -> Path:
    """Return the safetensors folder of a GGUF file; convert the file on first use and find it by SHA-256 later.

    Raises:
        CorruptWeightsError: the file is truncated, is not GGUF, or lacks a tensor.
        UnsupportedLLMError: transformers cannot read this architecture or quantisation.
    """
    digest = file_sha256(path)
    folder = llmdiff_home() / "llms" / f"gguf-{digest[:32]}"
    if is_intact(folder, source_sha256=digest) and _is_whole(folder):
        return folder
    return convert_gguf(path, folder, source_sha256=digest)


def _is_whole(folder: Path) -> bool:
    """Return whether missing tensors were checked at conversion; older versions gave them random values."""
    return bool(json.loads((folder / MANIFEST).read_text()).get("whole", False))


def is_intact(folder: Path, *, source_sha256: str) -> bool:
    """Return whether a converted folder is complete, undamaged and made from that source."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        files: dict[str, str] = manifest["files"]
        return manifest["source_sha256"] == source_sha256 and all(
            file_sha256(folder / name) == digest for name, digest in files.items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def convert_gguf(path: Path, folder: Path, *, source_sha256: str) -> Path:
    """Write the GGUF's model and tokenizer to `folder` as safetensors and return it.

    The folder is renamed into place at the end: a killed process leaves no partial folder, and two processes may
    convert at once without a lock (the first to finish wins). A damaged folder is replaced.
    """
    reader = _reader(path)
    _log.info("converting %s to safetensors in %s (once)", path, folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    sweep(folder.parent, idle_s=IDLE_S, patterns=(".gguf-*",))
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _write_safetensors(path, reader, temporary)
        files = {file.name: file_sha256(file) for file in sorted(temporary.iterdir())}
        manifest = {"source": path.name, "source_sha256": source_sha256, "whole": True, "files": files}
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2))
        # mkdtemp and safetensors create private files; a cache may be shared.
        for file in temporary.iterdir():
            file.chmod(0o644)
        temporary.chmod(0o755)
        try:
            os.replace(temporary, folder)
        except OSError:  # the folder exists already
            if not (is_intact(folder, source_sha256=source_sha256) and _is_whole(folder)):
                shutil.rmtree(folder)
                os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _reader(path: Path) -> Any:
    from gguf import GGUFReader

    try:
        return GGUFReader(path)
    except Exception as error:  # damage makes the reader fail with any kind of exception
        raise CorruptWeightsError(
            f"{path} is not a readable GGUF file ({first_line(error)}): it is "
            "truncated or damaged; download it again"
        ) from error


def _write_safetensors(path: Path, reader: Any, folder: Path) -> None:
    where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**where)
        # dequantize: transformers keeps weights packed if their kernels are installed.
        # float16 on disk takes half the space, and its rounding (2^-11) is far below that of quantised weights.
        model = load_whole(
            AutoModelForCausalLM,
            str(path.parent),
            what=f"GGUF file {str(path)!r}",
            head_runs=False,
            gguf_file=path.name,
            dtype=torch.float16,
            quantization_config=GgufConfig(dequantize=True),
        )
        _check_all_read(path, reader, model)
    except (ValueError, NotImplementedError, KeyError) as error:
        raise UnsupportedLLMError(
            f"{path}: transformers cannot read this GGUF ({first_line(error)}); pass the LLM as a "
            "safetensors folder or Hub id instead"
        ) from error
    # transformers saves a model from GGUF as quantised: copy the weights to an unquantised model.
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    weights = {name: value.to(torch.float16) for name, value in model.state_dict().items()}
    if not all(bool(torch.isfinite(value).all()) for value in weights.values()):
        raise UnsupportedLLMError(
            f"{path}: a weight exceeds float16's range; pass the LLM as a safetensors folder"
        )
    config.dtype = torch.float16
    with torch.device("meta"):
        plain = type(model)(config)
    plain.load_state_dict(weights, assign=True)
    plain.tie_weights()
    # In a group of processes, transformers writes weights only in the first one; every process converts for itself.
    plain.should_save_on_this_rank = lambda is_main_process: is_main_process
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if not list(folder.glob("*.safetensors")):
        raise OutputError(
            f"{path}: transformers wrote no weights to {folder}; convert it outside a group of processes"
        )


def _check_all_read(path: Path, reader: Any, model: Any) -> None:
    """Raise CorruptWeightsError if transformers ignored tensors of the file; it drops unknown names silently."""
    from transformers import modeling_gguf_pytorch_utils

    theirs: Any = modeling_gguf_pytorch_utils
    architecture = theirs.read_field(reader, "general.architecture")[0]
    processor = theirs.TENSOR_PROCESSORS.get(architecture, theirs.TensorProcessor)
    known = theirs.get_gguf_hf_weights_map(model, processor(config=model.config.to_dict()))
    # The head is never run, rotary tables are made from the configuration, experts are merged under other names.
    unread = [
        tensor.name
        for tensor in reader.tensors
        if tensor.name not in known and not re.search(r"^output\.|(^|\.)(rope_|attn_rot)|_exps", tensor.name)
    ]
    check_faults({"unread, for which transformers has no place": unread}, what=f"GGUF file {str(path)!r}")
