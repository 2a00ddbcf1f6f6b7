"""Save the state of a build in a few files of limited size, to resume it on another machine.

A finished stage is saved with its record and its model in half precision. An unfinished training is saved as the
moving average of its weights in half precision; it resumes with new moments of the optimiser. Scenes and latents are
not saved, because they can be recreated in a minute or two.
"""

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load, save, save_file

from llmdiff.errors import ConfigError, LLMDiffError
from llmdiff.files import whole_folder
from llmdiff.training.checkpoint import load_checkpoint, part, save_checkpoint

PART_BYTES, MAX_BYTES = 16 * 2**20, 64 * 2**20
_REMADE = ("scenes", "latents")
_RUN_TENSORS, _RUN_STATE = "run.safetensors", "run.json"


def pack(build: Path, target: Path, stages: Sequence[str]) -> list[Path]:
    """Write the state of these stages of the build in folder `build` to folder `target` and return the files.

    Raises:
        LLMDiffError: there is no state, or it is too large; nothing is written then.
    """
    members = _files(build, build / "tokenizer")
    for stage in stages:
        folder = build / stage
        if stage == "text" and (build / "denoiser" / "done.json").is_file():
            members |= _files(build, folder, "*.json*")  # the pipeline has the further trained model
            continue
        if (folder / "done.json").is_file() and stage not in _REMADE:
            members |= _files(build, folder, "*.json*") | _files(build, folder, "model/*")
            members |= _files(build, folder, "pipeline/**/*")
        elif (found := load_checkpoint(folder)) is not None:
            state, tensors = found
            members |= _files(build, folder, "log.jsonl")
            members[f"{stage}/{_RUN_TENSORS}"] = save(_converted(part(tensors, "ema"), torch.float16))
            # The optimiser's state is not saved.
            state.pop("optimizer", None)
            members[f"{stage}/{_RUN_STATE}"] = json.dumps(state).encode()
    if not members:
        raise LLMDiffError(f"{build} has no state of a build: run `llmdiff-lab build --out {build}` first")
    packed = _archive(members)
    if len(packed) > MAX_BYTES:
        raise LLMDiffError(f"the state takes {len(packed):,} bytes, at most {MAX_BYTES:,} can be carried")
    with whole_folder(target) as partial:
        for index, start in enumerate(range(0, len(packed), PART_BYTES)):
            (partial / f"state-{index:02d}.bin").write_bytes(packed[start : start + PART_BYTES])
    return sorted(target.iterdir())


def unpack(source: Path, build: Path) -> None:
    """Write the state in folder `source` to the build in folder `build`.

    Raises:
        ConfigError: there is a build already, or the state is incomplete.
    """
    if build.exists() and any(build.iterdir()):
        raise ConfigError(f"{build} has a build already: unpack into a new folder")
    parts = sorted(source.glob("state-*.bin"))
    if not parts or [path.name for path in parts] != [f"state-{i:02d}.bin" for i in range(len(parts))]:
        found = ", ".join(path.name for path in parts) or "no part of a state"
        raise ConfigError(f"{source}: got {found}, expected state-00.bin and all that follow it")
    packed = io.BytesIO(b"".join(path.read_bytes() for path in parts))
    try:
        with whole_folder(build) as partial:
            with tarfile.open(fileobj=packed) as archive:
                archive.extractall(partial, filter="data")
            for path in list(partial.rglob("*.safetensors")):
                if path.name == _RUN_TENSORS:
                    _restore_run(path)
                else:
                    # Read all tensors first: a file must not be overwritten while it is memory-mapped.
                    tensors = _converted(load(path.read_bytes()), torch.float32)
                    path.unlink()  # other hard links to the file keep their content
                    save_file(tensors, path, metadata={"format": "pt"})
    except (tarfile.TarError, EOFError) as error:
        raise ConfigError(f"{source}: the state is incomplete or damaged ({error})") from error


def _files(build: Path, folder: Path, pattern: str = "*") -> dict[str, bytes]:
    """Return these files by their path in the build, with weights in half precision."""
    found = {
        str(path.relative_to(build)): path.read_bytes() for path in folder.glob(pattern) if path.is_file()
    }
    return {
        name: save(_converted(load(data), torch.float16), metadata={"format": "pt"})
        if name.endswith(".safetensors")
        else data
        for name, data in found.items()
    }


def _restore_run(path: Path) -> None:
    state_path = path.with_name(_RUN_STATE)
    state = json.loads(state_path.read_text(encoding="utf-8"))
    averages = _converted(load(path.read_bytes()), torch.float32)
    tensors = {
        f"{kind}.{name}": value.clone() for kind in ("weights", "ema") for name, value in averages.items()
    }
    save_checkpoint(path.parent, step=state.pop("step"), tensors=tensors, state=state)
    path.unlink()
    state_path.unlink()


def _converted(tensors: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {
        name: value.to(dtype).contiguous() if value.is_floating_point() else value
        for name, value in tensors.items()
    }


def _archive(members: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    first: dict[bytes, str] = {}
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, data in sorted(members.items()):
            member, same = tarfile.TarInfo(name), first.setdefault(data, name)
            if same != name:  # the pipeline has the VAE of the first stage
                member.type, member.linkname = tarfile.LNKTYPE, same
                archive.addfile(member)
                continue
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return packed.getvalue()
