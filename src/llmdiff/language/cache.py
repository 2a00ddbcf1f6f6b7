"""Store text encodings on disk: each caption is encoded once for one LLM, dtype, template and set of gains."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor

from llmdiff.language.digests import model_digest, tokenizer_digest
from llmdiff.language.encoding import ContextEncoding
from llmdiff.language.llm import DecoderLLM
from llmdiff.language.rows import padded_batch
from llmdiff.language.score_groups import GroupedScores, encode_groups
from llmdiff.language.tensor_store import TensorStore
from llmdiff.types import TextEncoding

_CHUNK = 512
_Reading = TypeVar("_Reading", TextEncoding, GroupedScores)


class CaptionStore(ABC, Generic[_Reading]):
    """A disk store of the outputs of a frozen reader for captions.

    The folder's name is a digest of everything that an entry depends on besides its caption; an entry's name is the
    digest of its caption. `read` computes entries that are missing.
    """

    def __init__(self, folder: Path, read: Callable[[list[str]], _Reading]) -> None:
        self.store = TensorStore(folder)
        self._read: Callable[[list[str]], _Reading] = read

    @property
    def key(self) -> str:
        """Return the name of the store's folder."""
        return self.store.folder.name

    @torch.no_grad()
    def fill(
        self,
        captions: Sequence[str],
        *,
        batch_size: int = 32,
        progress: Callable[[int], object] = lambda done: None,
    ) -> int:
        """Read the captions that are missing and return how many were read.

        Entries are written every 512 captions, so an interrupted run resumes from there. `progress` is called
        after each batch with its number of captions.
        """
        chunks = self.missing_chunks(captions)
        for texts in chunks:
            chunk: dict[str, Tensor] = {}
            for first in range(0, len(texts), batch_size):
                part = texts[first : first + batch_size]
                rows = self._split(self._read(part))
                chunk.update({_name(text): row.half().cpu() for text, row in zip(part, rows, strict=True)})
                progress(len(part))
            self.store.put(chunk)
        return sum(map(len, chunks))

    def missing_chunks(self, captions: Sequence[str]) -> list[list[str]]:
        """Return the missing captions without duplicates, in chunks that are written together."""
        wanted = {_name(text): text for text in captions}
        missing = [wanted[name] for name in self.store.missing(wanted)]
        missing.sort(key=len)  # batches of similar lengths need less padding
        return [missing[start : start + _CHUNK] for start in range(0, len(missing), _CHUNK)]

    def batch(self, captions: Sequence[str]) -> _Reading:
        """Return the entries of captions as one batch, padded on the right; read missing ones first."""
        self.fill(captions)
        return self._join([self.store.get(_name(text)) for text in captions])

    @abstractmethod
    def _split(self, reading: _Reading) -> Sequence[Tensor]:
        """Return one tensor for each caption, (tokens, ...)."""

    @abstractmethod
    def _join(self, rows: list[Tensor]) -> _Reading:
        """Return the batch of one tensor for each caption."""


class EncodingStore(CaptionStore[TextEncoding]):
    """A store of text encodings in float16, about three decimal digits.

    Shapes: an entry is (tokens, D) float16; a batch has states (B, T, D) float32; with routing (..., d, D).
    """

    def _split(self, reading: TextEncoding) -> Sequence[Tensor]:
        return [states[mask] for states, mask in zip(reading.states, reading.token_mask, strict=True)]

    def _join(self, rows: list[Tensor]) -> TextEncoding:
        states, mask = padded_batch(rows)
        return TextEncoding(states=states.float(), token_mask=mask)


class ScoreStore(CaptionStore[GroupedScores]):
    """A store of grouped scores, used while the gains are trained.

    Shapes: an entry is (tokens, P, D) float16, see `GroupedScores`.
    """

    def _split(self, reading: GroupedScores) -> Sequence[Tensor]:
        return torch.split(reading.parts, reading.token_mask.sum(1).tolist())

    def _join(self, rows: list[Tensor]) -> GroupedScores:
        mask = padded_batch([row[:, 0, 0] for row in rows])[1]
        return GroupedScores(parts=torch.cat(rows), token_mask=mask)


class EncodingCache(EncodingStore):
    """The store of an LLM's encodings under `root`; each LLM, dtype, template, set of gains and scales has a folder."""

    def __init__(self, root: Path, llm: DecoderLLM, context: ContextEncoding) -> None:
        super().__init__(
            root / "encodings" / encoding_key(llm, context), lambda texts: context.encode(llm, texts)
        )


class ScoreCache(ScoreStore):
    """The store of an LLM's grouped scores under `root`; its folder depends on the scales, not on the gains."""

    def __init__(self, root: Path, llm: DecoderLLM, context: ContextEncoding, *, groups: int) -> None:
        super().__init__(
            root / "scores" / encoding_key(llm, context, groups=groups),
            lambda texts: encode_groups(context, llm, texts, groups=groups),
        )


def encoding_key(llm: DecoderLLM, context: ContextEncoding, *, groups: int | None = None) -> str:
    """Return a digest of everything that encodings, or grouped scores, depend on besides captions: 32 hex digits."""
    settings: dict[str, object] = {
        "llm": llm.id.rstrip("/").rpartition("/")[2],
        "dtype": str(llm.dtype),
        "encoding": context.encoding,
        "lone": context.lone,
        "template": context.template,
        "max_length": context.max_length,
        "clip": str(context.clip),
    }
    if groups is not None:
        settings["score_groups"] = groups
    elif context.routed is not None:
        settings["routing_form"] = context.routed.form
    digest = sha256(json.dumps(settings, sort_keys=True).encode())
    # Stored encodings have no noise, and stored scores are not multiplied with gains.
    left_out = ("h_raw",) if groups is None else ("h_raw", "gamma", "kappa", "routed.gamma", "routed.kappa")
    for name, tensor in sorted(context.state_dict().items()):
        if name not in left_out:
            digest.update(name.encode() + tensor.detach().float().cpu().numpy().tobytes())
    # A folder of the same name may contain other weights or another tokenizer.
    digest.update(f"{model_digest(llm.model)} {tokenizer_digest(llm.tokenizer)}".encode())
    return digest.hexdigest()[:32]


def _name(caption: str) -> str:
    return sha256(caption.encode()).hexdigest()[:32]
