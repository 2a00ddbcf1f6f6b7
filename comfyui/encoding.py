"""Load the LLM and the adapter, and encode prompts into ComfyUI's CONDITIONING."""

from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import comfy.model_management as memory
import torch
from torch import Tensor

from llmdiff import DecoderLLM
from llmdiff.adapter import LLMDiffAdapter
from llmdiff.adapter.attach import check_llm
from llmdiff.adapter.layout import beside_base
from llmdiff.adapter.settings import Control
from llmdiff.adapter.texts import encode_texts
from llmdiff.controller import adapter_source
from llmdiff.errors import AttachError
from llmdiff.files import clean_text
from llmdiff.language.digests import adapter_digest, tensor_digest
from llmdiff.language.encoding_files import EncodingOrigin
from llmdiff.language.saved_encodings import origin_of
from llmdiff.types import TextEncoding

from .model import ADAPTER_KEY, BASE_POOLED_KEY

ENCODED_KEY = "llmdiff_encoded"
"""The option of a conditioning with the `Encoded` that it was made from."""

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DTYPES = ("auto", *_DTYPES)

Rows = tuple[Tensor | None, Tensor | None]
"""Text states (1, T, width) and a pooled vector (1, width)."""

_MAX_ENCODINGS = 64
_encodings: "OrderedDict[tuple[Any, ...], tuple[TextEncoding, Rows]]" = OrderedDict()


@dataclass
class LLMSource:
    """An LLM that is loaded when the first prompt needs it.

    Fields:
        name: a packaged name, a folder or a GGUF file.
    """

    name: str
    dtype: torch.dtype
    loaded: DecoderLLM | None = field(default=None, repr=False)

    @property
    def key(self) -> tuple[Any, ...]:
        """Return a key of its weights: names, sizes and modification times of the files."""
        path = Path(self.name)
        files = sorted(path.glob("*")) if path.is_dir() else [path] if path.is_file() else []
        stamps = [
            (file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()
        ]
        return self.name, str(self.dtype), tuple(stamps)

    def get(self) -> DecoderLLM:
        """Return the LLM. Its weights are on the CPU, and on ComfyUI's device only while it encodes.

        Raises:
            LLMDiffError: it cannot be loaded.
        """
        if self.loaded is None:
            self.loaded = DecoderLLM.from_pretrained(
                self.name, device=memory.text_encoder_device(), dtype=self.dtype, free_after_encoding=True
            )
        return self.loaded


@dataclass(frozen=True)
class LoadedAdapter:
    """An adapter and its digest."""

    adapter: LLMDiffAdapter
    digest: str


@dataclass(frozen=True)
class Encoded:
    """The inputs of a conditioning: text, models and settings.

    Fields:
        base: the base's own text states and pooled vector, or None.
        rows_digest: digest of the conditioning's rows, to see whether another node has changed them.
    """

    text: str
    encoding: TextEncoding
    source: LLMSource
    loaded: LoadedAdapter
    weighted: bool
    base: Rows
    rows_digest: str

    def origin(self) -> EncodingOrigin:
        """Return the origin of the encoding for a file. This computes the digest of the LLM and loads it if needed."""
        return origin_of(self.source.get(), self.loaded.adapter, weighted=self.weighted)


def llm_source(name: str, dtype: str) -> LLMSource:
    """Return an LLM to load; "auto" is bfloat16 where the device computes in it quickly, else float32."""
    fast = memory.should_use_bf16(memory.text_encoder_device())
    chosen = _DTYPES.get(dtype) or (torch.bfloat16 if fast else torch.float32)
    return LLMSource(name, chosen)


def load_adapter(name_or_path: str) -> LoadedAdapter:
    """Return the adapter of this folder, or the embedded default's, on the CPU.

    Raises:
        LLMDiffError: it cannot be loaded.
    """
    adapter = LLMDiffAdapter.from_pretrained(adapter_source(name_or_path))
    return LoadedAdapter(adapter, adapter_digest(adapter))


def encode(
    source: LLMSource, loaded: LoadedAdapter, text: str, *, weighted: bool, strict: bool, base: Any = None
) -> Any:
    """Return the CONDITIONING of a prompt: rows of [phi(c) ; c], with the base's text appended if it is given.

    A prompt that was encoded before with the same files and settings is not encoded again. ControlNets read phi(c).

    Shapes:
        (1, T, W + D), or (1, T, W + D + W + 1) with `base`.

    Raises:
        PromptError: the text cannot be encoded.
        AdapterMismatchError: the adapter was made for another LLM.
        AttachError: `base` is not one conditioning of the model's own text encoder.
    """
    text = clean_text("text", text)
    key = (source.key, loaded.digest, text, weighted, strict)
    if key not in _encodings:
        _encodings[key] = _encoded(source, loaded, text, weighted=weighted, strict=strict)
        if len(_encodings) > _MAX_ENCODINGS:
            _encodings.popitem(last=False)
    _encodings.move_to_end(key)
    encoding, ours = _encodings[key]
    theirs: Rows = (None, None) if base is None else _base_text(base, loaded.adapter.phi.out_features)
    conditioning = joined(loaded, ours, theirs)
    rows, options = conditioning[0]
    options[ENCODED_KEY] = Encoded(text, encoding, source, loaded, weighted, theirs, tensor_digest(rows))
    return conditioning


def joined(loaded: LoadedAdapter, ours: Rows, theirs: Rows) -> Any:
    """Return the CONDITIONING of the LLM's rows and of the base's, which may be None."""
    (states, pooled), (base_states, base_pooled) = ours, theirs
    assert states is not None
    width = loaded.adapter.phi.out_features
    options: dict[str, Any] = {ADAPTER_KEY: loaded.digest, "cross_attn_controlnet": states[..., :width]}
    if pooled is not None:
        options["pooled_output"] = pooled
    if base_states is None:
        return [[states, options]]
    if pooled is not None and base_pooled is not None:
        options[BASE_POOLED_KEY] = base_pooled.to(pooled)
    return [[beside_base(states, base_states.to(states), None), options]]


@torch.inference_mode()
def conditioned(loaded: LoadedAdapter, encoding: TextEncoding) -> Rows:
    """Return the rows [phi(c) ; c] of an encoding, and the pooled vector."""
    states, pooled = loaded.adapter.condition(encoding)
    device = memory.intermediate_device()
    return states.to(device), None if pooled is None else pooled.to(device)


@torch.inference_mode()
def _encoded(
    source: LLMSource, loaded: LoadedAdapter, text: str, *, weighted: bool, strict: bool
) -> tuple[TextEncoding, Rows]:
    llm = source.get()
    check_llm(llm, loaded.adapter, strict=strict)
    memory.free_memory(memory.module_size(llm.model), llm.device)
    encoding = encode_texts(loaded.adapter, llm, [text], Control(weighted=weighted))
    return encoding, conditioned(loaded, encoding)


def _base_text(base: Any, width: int) -> Rows:
    if len(base) != 1:
        raise AttachError(
            f"base has {len(base)} conditionings, expected one: connect CLIP Text Encode to it directly"
        )
    states, options = base[0]
    if ADAPTER_KEY in options or states.shape[-1] != width:
        raise AttachError(
            f"base has text of width {states.shape[-1]}, expected {width} from the model's own text encoder: connect "
            "CLIP Text Encode of the same checkpoint to it"
        )
    return states, options.get("pooled_output")
