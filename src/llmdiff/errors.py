"""Exceptions of LLMDiff: one line that names the given value, the expected one and a remedy."""

import re


class LLMDiffError(Exception):
    """Base of all errors that LLMDiff raises; the command line prints them without a traceback."""


class PromptError(LLMDiffError, ValueError):
    """A prompt cannot be encoded (empty, wrong type)."""


class LLMNotFoundError(LLMDiffError, OSError):
    """The LLM is neither a folder, a GGUF file, a cached Hub id nor the embedded default."""


class UnsupportedLLMError(LLMDiffError, ValueError):
    """The model is not a decoder-only LLM whose blocks can process a single token."""


class UnsupportedPipelineError(LLMDiffError, ValueError):
    """The diffusers pipeline belongs to no supported family."""


class AdapterMismatchError(LLMDiffError, ValueError):
    """Adapter, LLM and pipeline do not match (width, family, number of blocks)."""


class AttachError(LLMDiffError, RuntimeError):
    """Attach or detach was called in the wrong state."""


class NonFinitePictureError(LLMDiffError, ArithmeticError):
    """A picture contains NaN or infinity: a part of the pipeline overflowed in its dtype."""


class CorruptWeightsError(LLMDiffError, OSError):
    """A weight file is missing, truncated or differs from its recorded SHA-256."""


class AdapterNotFoundError(LLMDiffError, OSError):
    """The adapter is neither a folder, an available Hub id nor the embedded default."""


class PipelineNotFoundError(LLMDiffError, OSError):
    """The base pipeline is neither a folder, an available Hub id nor the embedded default."""


class ClosedLLMError(LLMDiffError):
    """A closed LLM gave no usable answer."""


class ConfigError(LLMDiffError, ValueError):
    """A configuration has an unknown key or a value out of range."""


class InputFileError(LLMDiffError, OSError):
    """An input file is missing, not a regular file, too large or damaged."""


class OutputError(LLMDiffError, OSError):
    """The output path cannot be written."""


class DataError(LLMDiffError, ValueError):
    """Training data cannot be read, or too many of its samples are bad."""


class DivergedError(LLMDiffError, ArithmeticError):
    """A training's loss is not finite, or its gradient exploded."""


class MetricError(LLMDiffError, ValueError):
    """A metric is unknown, its model cannot be loaded, or it cannot score its input."""


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its class name if it has none."""
    return re.split(r"[\r\n]", str(error).strip() or type(error).__name__, maxsplit=1)[0]
