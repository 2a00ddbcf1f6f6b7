"""The checks of `llmdiff doctor`: versions, devices, the embedded default, caches and extras of this machine."""

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from llmdiff.environment import memory_bytes
from llmdiff.errors import LLMDiffError, first_line

# torch and modules that import it are imported inside the checks, so that a failing import becomes a finding.

DISTRIBUTION = "llmdiff-adapter"
# Extras with tools for developing LLMDiff, not for its commands.
_NOT_LISTED = ("all",)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of one check.

    `broken`: drawing does not work without it. `remedy`: what to do if something is missing.
    """

    about: str
    found: str
    broken: bool = False
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.about}: {self.found}" + (f"; {self.remedy}" if self.remedy else "")


def examine() -> dict[str, list[Finding]]:
    """Run all checks and return the findings by heading, without downloads or changes. A failure is a finding."""
    return {
        "versions": list(versions()),
        "devices": _guarded("torch", devices),
        "embedded default": _guarded("weights", embedded_default),
        "caches": _guarded("caches", caches),
        "extras": list(extras()),
    }


def versions() -> Iterator[Finding]:
    """Return the versions of Python and of every required package, compared with the package's requirements."""
    yield Finding(about="python", found=f"{platform.python_version()} on {platform.platform()}")
    try:
        yield Finding(about=DISTRIBUTION, found=importlib.metadata.version(DISTRIBUTION))
    except importlib.metadata.PackageNotFoundError:
        yield Finding(
            about=DISTRIBUTION, found="not installed", broken=True, remedy=f"pip install {DISTRIBUTION}"
        )
        return
    for requirement in requirements_of(None):
        yield _installed(requirement)


def requirements_of(extra: str | None) -> list[Requirement]:
    """Return the requirements of an extra on this machine, with nested extras resolved; None: without an extra."""
    wanted: list[Requirement] = []
    for line in importlib.metadata.requires(DISTRIBUTION) or []:
        requirement = Requirement(line)
        marker = requirement.marker
        if extra is None:
            chosen = marker is None or marker.evaluate({"extra": ""})
        else:
            chosen = (
                marker is not None
                and marker.evaluate({"extra": extra})
                and not marker.evaluate({"extra": ""})
            )
        if not chosen:
            continue
        if requirement.name == DISTRIBUTION:
            for inner in sorted(requirement.extras):
                wanted += requirements_of(inner)
        else:
            wanted.append(requirement)
    return wanted


def devices() -> Iterator[Finding]:
    """Return the processor and every accelerator, each tested with one tensor."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding(
        about="cpu",
        found=f"{cores} cores, {torch.get_num_threads()} threads for torch, {_size(memory_bytes())} of memory",
    )
    kind = torch.accelerator.current_accelerator(check_available=True)
    if kind is None:
        yield Finding(
            about="accelerator",
            found="none that this build of torch can use",
            remedy="with a GPU in the machine: install its driver and the build of torch for it",
        )
        return
    for index in range(torch.accelerator.device_count()):
        name = f"{kind.type}:{index}"
        try:
            torch.zeros(1, device=name)
        except RuntimeError as error:
            yield Finding(
                about=name,
                found=f"present, but cannot be used ({first_line(error)})",
                broken=True,
                remedy="free its memory or repair its driver; until then draw with --device cpu",
            )
        else:
            yield Finding(about=name, found=_described(kind.type, index))
    graphs = "by a CUDA graph from the third batch of a size on, where that is faster (the log says)"
    yield Finding(about="reading prompts", found=graphs if kind.type == "cuda" else "eagerly: no CUDA device")


def embedded_default(weights: Path | None = None) -> Iterator[Finding]:
    """Check the shipped models against their manifests, and that the LLM is installed."""
    from llmdiff.adapter.manifest import check_manifest
    from llmdiff.world.packaged import WEIGHTS

    folder = weights or WEIGHTS
    needed = {
        "pipeline": "model_index.json",
        "adapter": "config.json",
        "checker": "config.json",
        "siglip": "config.json",
    }
    for part, file in needed.items():
        try:
            check_manifest(folder / part, [file])
        except LLMDiffError as error:
            yield Finding(
                about=part,
                found=str(error),
                broken=True,
                remedy=f"pip install --force-reinstall --no-deps {DISTRIBUTION}",
            )
        else:
            size, count = _folder_size(folder / part)
            yield Finding(about=part, found=f"{count} files, {_size(size)}, all equal to their manifest")
    yield from _packaged_llms()


def caches() -> Iterator[Finding]:
    """Return the cache folders of models and encodings, their sizes, and whether they are writable."""
    from huggingface_hub import constants

    from llmdiff.language.gguf import llmdiff_home

    yield _cache("LLMDIFF_HOME", llmdiff_home(), broken_if_closed=True)
    hub = _cache("Hub models", Path(constants.HF_HUB_CACHE), broken_if_closed=False)
    offline = ", offline (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else ""
    yield Finding(about=hub.about, found=hub.found + offline, remedy=hub.remedy)


def extras() -> Iterator[Finding]:
    """Return every extra and its missing packages."""
    try:
        known = importlib.metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or []
    except importlib.metadata.PackageNotFoundError:
        return
    for extra in sorted(set(known) - set(_NOT_LISTED)):
        missing = [finding.about for finding in map(_installed, requirements_of(extra)) if finding.broken]
        yield Finding(
            about=extra,
            found="not here: " + ", ".join(missing) if missing else "installed",
            remedy=f"pip install '{DISTRIBUTION}[{extra}]'" if missing else "",
        )


def _installed(requirement: Requirement) -> Finding:
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        found = "not installed"
    else:
        if requirement.specifier.contains(version, prereleases=True):
            return Finding(about=requirement.name, found=version)
        found = f"{version}, expected {requirement.specifier}"
    return Finding(
        about=requirement.name,
        found=found,
        broken=True,
        remedy=f"pip install '{requirement.name}{requirement.specifier}'",
    )


def _packaged_llms() -> Iterator[Finding]:
    """Return whether each packaged LLM is installed; drawing needs only the embedded default."""
    from llmdiff.language.packaged import EMBEDDED_NAME, PACKAGED

    for row in PACKAGED.values():
        about, terms = f"llm {row.name}", f"({row.terms})"
        if row.is_ready():
            yield Finding(about=about, found=f"ready in {row.folder} {terms}")
            continue
        try:
            file = row.files()[0]
        except LLMDiffError:
            needed = row.name == EMBEDDED_NAME
            found = "not installed" if needed else "not installed, not needed"
            yield Finding(about=about, found=f"{found} {terms}", broken=needed, remedy=row.install)
        else:
            yield Finding(about=about, found=f"in {file.parent}, unpacked when it is first used {terms}")


def _cache(about: str, folder: Path, *, broken_if_closed: bool) -> Finding:
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(there).free
    if not os.access(there, os.W_OK):
        return Finding(
            about=about,
            found=f"{folder} cannot be written",
            broken=broken_if_closed,
            remedy="make it writable, or point LLMDIFF_HOME or HF_HOME elsewhere",
        )
    if not folder.is_dir():
        return Finding(about=about, found=f"{folder}, not created yet, {_size(free)} free")
    size, count = _folder_size(folder)
    return Finding(about=about, found=f"{folder}, {count} files, {_size(size)}, {_size(free)} free")


def _guarded(about: str, look: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """Return the findings of `look`; an exception in it is a finding too."""
    found: list[Finding] = []
    try:
        for finding in look():
            found.append(finding)
    except (ImportError, OSError, RuntimeError) as error:
        found.append(
            Finding(
                about=about,
                found=f"cannot be examined ({type(error).__name__}: {first_line(error)})",
                broken=True,
                remedy=f"pip install --force-reinstall {DISTRIBUTION}",
            )
        )
    return found


def _described(kind: str, index: int) -> str:
    import torch

    if kind != "cuda":
        return "ready"
    facts: Any = torch.cuda.get_device_properties(index)
    bf16 = "with" if torch.cuda.is_bf16_supported() else "without"
    return f"{facts.name}, {_size(facts.total_memory)}, {bf16} bfloat16"


def _folder_size(folder: Path) -> tuple[int, int]:
    """Return the total bytes and the number of files below a folder; linked files count once."""
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return sum(sizes), len(sizes)


def _size(size_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} TiB"
