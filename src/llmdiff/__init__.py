"""LLMDiff: a decoder-only LLM in control of a pretrained diffusers text-to-image pipeline."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmdiff.adapter.adapter import LLMDiffAdapter
    from llmdiff.adapter.settings import AdapterSettings, Control
    from llmdiff.controller import LLMController
    from llmdiff.language.llm import DecoderLLM
    from llmdiff.language.saved_encodings import SavedEncodings
    from llmdiff.types import BlockStates, TextEncoding

try:
    __version__ = version("llmdiff-adapter")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"

# Names come from their modules on first use: `import llmdiff` and `llmdiff --help` do not wait for torch.
_HOMES = {
    "AdapterSettings": "llmdiff.adapter.settings",
    "BlockStates": "llmdiff.types",
    "Control": "llmdiff.adapter.settings",
    "DecoderLLM": "llmdiff.language.llm",
    "LLMController": "llmdiff.controller",
    "LLMDiffAdapter": "llmdiff.adapter.adapter",
    "SavedEncodings": "llmdiff.language.saved_encodings",
    "TextEncoding": "llmdiff.types",
}

__all__ = [
    "AdapterSettings",
    "BlockStates",
    "Control",
    "DecoderLLM",
    "LLMController",
    "LLMDiffAdapter",
    "SavedEncodings",
    "TextEncoding",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'llmdiff' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
