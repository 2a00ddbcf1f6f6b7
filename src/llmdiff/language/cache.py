"""Text encodings kept on disk: each caption is encoded once, for one LLM, dtype, template and set of gains."""

import json
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor

from llmdiff.language.digests import model_digest, tokenizer_digest
from llmdiff.language.encoding import ContextEncoding
from llmdiff.language.llm import DecoderLLM
from llmdiff.language.score_groups import GroupedScores, encode_groups
from llmdiff.language.tensor_store import TensorStore
from llmdiff.types import TextEncoding

_CHUNK = 512


class _CaptionStore:
    """What an LLM makes of captions, each read once; entries are (tokens, ...) float16."""

    def __init__(self, root: Path, llm: DecoderLLM, context: ContextEncoding, kind: str, key: str) -> None:
        self._llm, self._context = llm, context
        self.key = key
        self.store = TensorStore(root / kind / key)

    def fill(
        self,
        captions: Sequence[str],
        *,
        batch_size: int = 32,
        progress: Callable[[int], object] = lambda done: None,
    ) -> int:
        """Encode the captions that are not there yet and return how many those were.

        They are put on disk every 512 captions, so that an interrupted run goes on from there. `progress` is
        called with the number of captions that a batch has dealt with.
        """
        chunks = self.missing_chunks(captions)
        for texts in chunks:
            chunk: dict[str, Tensor] = {}
            for first in range(0, len(texts), batch_size):
                part = texts[first : first + batch_size]
                rows = self._encode(part)
                chunk.update({_name(text): row.half().cpu() for text, row in zip(part, rows, strict=True)})
                progress(len(part))
            self.store.put(chunk)
        return sum(map(len, chunks))

    def missing_chunks(self, captions: Sequence[str]) -> list[list[str]]:
        """Return the captions that are not there yet, each once, in the parts that are put on disk together."""
        wanted = {_name(text): text for text in captions}
        missing = [wanted[name] for name in self.store.missing(wanted)]
        missing.sort(key=len)  # similar lengths together: less padding to compute
        return [missing[start : start + _CHUNK] for start in range(0, len(missing), _CHUNK)]

    def _rows(self, captions: Sequence[str]) -> tuple[list[Tensor], Tensor]:
        """The entries of captions, encoded first where they are missing, and their token mask (B, T)."""
        self.fill(captions)
        rows = [self.store.get(_name(text)) for text in captions]
        lengths = torch.tensor([len(row) for row in rows])
        return rows, torch.arange(int(lengths.max())) < lengths[:, None]

    def _encode(self, captions: Sequence[str]) -> Sequence[Tensor]:
        """One tensor for each caption, (tokens, ...)."""
        raise NotImplementedError


class EncodingCache(_CaptionStore):
    """A content-addressed store of text encodings under `root`.

    Its folder's name is a digest of all that an encoding depends on besides the caption; an encoding's name is its
    caption's digest. Another LLM, dtype, template, gain or scale is another folder. float16 keeps a token's state
    to three digits.

    Shapes: an entry is (tokens, D) float16.
    """

    def __init__(self, root: Path, llm: DecoderLLM, context: ContextEncoding) -> None:
        super().__init__(root, llm, context, "encodings", encoding_key(llm, context))

    def batch(self, captions: Sequence[str]) -> TextEncoding:
        """Return the encodings of captions, padded on the right; what is missing is encoded first.

        Shapes: states (B, T, D) float32.
        """
        rows, mask = self._rows(captions)
        states = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).float()
        return TextEncoding(states=states, token_mask=mask)

    def _encode(self, captions: Sequence[str]) -> Sequence[Tensor]:
        encoding = self._context.encode(self._llm, captions)
        return [states[mask] for states, mask in zip(encoding.states, encoding.token_mask, strict=True)]


class ScoreCache(_CaptionStore):
    """The same for grouped scores, while gains still learn: a changed gain changes nothing here, a scale does.

    Shapes: an entry is (tokens, P, D) float16, see `GroupedScores`.
    """

    def __init__(self, root: Path, llm: DecoderLLM, context: ContextEncoding, *, groups: int) -> None:
        super().__init__(root, llm, context, "scores", encoding_key(llm, context, groups=groups))
        self._groups = groups

    def batch(self, captions: Sequence[str]) -> GroupedScores:
        """Return the grouped scores of captions; what is missing is encoded first."""
        rows, mask = self._rows(captions)
        return GroupedScores(parts=torch.cat(rows), token_mask=mask)

    def _encode(self, captions: Sequence[str]) -> Sequence[Tensor]:
        grouped = encode_groups(self._context, self._llm, captions, groups=self._groups)
        return torch.split(grouped.parts, grouped.token_mask.sum(1).tolist())


def encoding_key(llm: DecoderLLM, context: ContextEncoding, *, groups: int | None = None) -> str:
    """Return a digest of all that the encoding of a caption depends on, or its grouped scores: 32 hex digits."""
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
    digest = sha256(json.dumps(settings, sort_keys=True).encode())
    # Noise is drawn anew every time, and scores are stored before gains weigh them.
    left_out = ("h_raw",) if groups is None else ("h_raw", "gamma", "kappa")
    for name, tensor in sorted(context.state_dict().items()):
        if name not in left_out:
            digest.update(name.encode() + tensor.detach().float().cpu().numpy().tobytes())
    # A folder of the same name may hold other weights or another tokenizer.
    digest.update(f"{model_digest(llm.model)} {tokenizer_digest(llm.tokenizer)}".encode())
    return digest.hexdigest()[:32]


def _name(caption: str) -> str:
    return sha256(caption.encode()).hexdigest()[:32]
