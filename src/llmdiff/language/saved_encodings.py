"""Save text encodings, so that a prompt is encoded once and drawn without the LLM in memory."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any
from weakref import ReferenceType, ref

from llmdiff.checks.bounds import short
from llmdiff.errors import AdapterMismatchError, ConfigError, InputFileError, PromptError
from llmdiff.language.digests import adapter_digest, llm_digest
from llmdiff.language.encoding_files import EncodingOrigin, read_encoding, read_header, write_encoding
from llmdiff.language.rows import padded_batch
from llmdiff.types import TextEncoding

_SUFFIX = ".safetensors"
_MAX_SLUG = 40


@dataclass(frozen=True, kw_only=True)
class EncodedPrompts(TextEncoding):
    """The result of `LLMController.encode`; `save` writes it to files.

    Fields:
        prompts: the B texts.
        weighted, rewording, noise_seed: see `EncodingOrigin`.
        models: weak references to the LLM and the adapter; `save` computes their digests.
    """

    prompts: tuple[str, ...]
    weighted: bool = False
    rewording: str = ""
    noise_seed: str = ""
    models: "tuple[ReferenceType[Any], ReferenceType[Any]]" = field(repr=False, compare=False)

    @classmethod
    def of(
        cls, encoding: TextEncoding, prompts: Sequence[str], llm: Any, adapter: Any, **how: Any
    ) -> "EncodedPrompts":
        """Return the encoding with its prompts and models; `how` sets the remaining fields."""
        return cls(
            states=encoding.states,
            token_mask=encoding.token_mask,
            prompts=tuple(prompts),
            models=(ref(llm), ref(adapter)),
            **how,
        )

    def origin(self) -> EncodingOrigin:
        """Return the models and settings of the encoding. The digest of a large LLM takes seconds, once.

        Raises:
            ConfigError: the LLM or the adapter is no longer in memory.
        """
        llm, adapter = (model() for model in self.models)
        if llm is None or adapter is None:
            raise ConfigError(
                "the LLM or the adapter of this encoding is no longer in memory, and saving stores their digests: "
                "keep the controller until the encoding is saved"
            )
        return origin_of(
            llm, adapter, weighted=self.weighted, rewording=self.rewording, noise_seed=self.noise_seed
        )

    def save(self, folder: str | Path) -> list[Path]:
        """Write a file for each prompt to a folder and return the paths; replace files of the same prompts.

        Raises:
            ConfigError: the folder has encodings of another origin, or the models are no longer in memory.
            OutputError: the folder cannot be written.
        """
        origin, place = self.origin(), Path(folder)
        present = next(place.rglob(f"*{_SUFFIX}"), None)
        if present is not None:  # all files in a folder have one origin, so one file is enough
            SavedEncodings.load(present).check_origin(origin)
        paths = []
        for prompt, states, mask in zip(self.prompts, self.states, self.token_mask, strict=True):
            paths.append(place / f"{_file_name(prompt)}{_SUFFIX}")
            write_encoding(paths[-1], prompt, origin, states[mask])
        return paths


class SavedEncodings:
    """Saved encodings by prompt, used in place of the LLM that made them.

    Pass them as the LLM: `LLMController.from_pretrained(adapter, llm=SavedEncodings.load(folder))`. A file is read
    when its prompt is drawn.
    """

    def __init__(self, paths: Mapping[str, Path], origin: EncodingOrigin, *, place: Path) -> None:
        self._paths = dict(paths)
        self._place = place
        self.origin = origin
        # The attributes of the LLM that adapters are checked against.
        self.id, self.hidden_size, self.num_blocks = origin.llm, origin.hidden_size, origin.num_blocks

    @classmethod
    def load(cls, place: str | Path) -> "SavedEncodings":
        """Return the encodings of a file, or of all files in a folder.

        Raises:
            InputFileError: there is no such file, or the folder has no encoding.
            CorruptWeightsError: a file is damaged or is not an encoding.
            ConfigError: the folder has encodings of several origins.
        """
        place = Path(place)
        files = sorted(place.rglob(f"*{_SUFFIX}")) if place.is_dir() else [place]
        if not files or not files[0].is_file():
            raise InputFileError(
                f"encodings {str(place)!r} is neither a saved encoding nor a folder with some: write them with "
                "`llmdiff encode` or LLMController.encode(...).save(folder)"
            )
        first: EncodingOrigin | None = None
        paths = {}
        for path in files:
            prompt, origin = read_header(path)
            if first is not None and (different := first.difference(origin)) is not None:
                raise ConfigError(
                    f"{files[0]} and {path} have different origins ({different}): keep them in different folders"
                )
            first = origin
            paths[prompt] = path
        assert first is not None
        return cls(paths, first, place=place)

    @property
    def prompts(self) -> list[str]:
        """Return the prompts in the order of their files."""
        return list(self._paths)

    def __contains__(self, prompt: object) -> bool:
        return prompt in self._paths

    def __len__(self) -> int:
        return len(self._paths)

    def encode(self, prompts: Sequence[str]) -> TextEncoding:
        """Return the encoding of prompts, padded on the right.

        Shapes:
            states (B, T, D) float32 or as they were saved, token_mask (B, T).
        Raises:
            PromptError: a prompt has no saved encoding.
            CorruptWeightsError: a file is damaged.
        """
        lacking = [prompt for prompt in prompts if prompt not in self._paths]
        if lacking:
            hint = "" if lacking[0] else " (guided drawing needs the negative prompt, '' if there is none)"
            raise PromptError(
                f"{short(lacking[0])} is not among the {len(self)} saved encodings of {self._place}, and no LLM is "
                f"loaded{hint}: encode it first, or load the LLM"
            )
        rows = [read_encoding(self._paths[prompt], self.origin)["states"] for prompt in prompts]
        states, mask = padded_batch(rows)
        return TextEncoding(states=states, token_mask=mask)

    def check_adapter(self, adapter: Any) -> None:
        """Raise an AdapterMismatchError unless the encodings were made for this adapter."""
        template = template_of(adapter)
        if self.origin.template != template:
            raise AdapterMismatchError(
                f"encodings {self._place} were made with the template {short(self.origin.template)}, the adapter has "
                f"{short(template)}: encode the prompts again with this adapter"
            )
        if self.origin.adapter_sha256 != adapter_digest(adapter):
            raise AdapterMismatchError(
                f"encodings {self._place} were made for another adapter (SHA-256 {self.origin.adapter_sha256[:12]}...)"
                ": use that one, or encode the prompts again with this adapter"
            )

    def check_origin(self, origin: EncodingOrigin) -> None:
        """Raise a ConfigError unless the encodings are of this LLM, dtype, adapter and settings."""
        different = self.origin.difference(origin)
        if different is not None:
            raise ConfigError(
                f"{self._place} has encodings of another origin ({different}): use another folder"
            )


def has_encodings(folder: Path) -> bool:
    """Return whether a folder contains saved encodings."""
    return any(folder.rglob(f"*{_SUFFIX}"))


def origin_of(
    llm: Any, adapter: Any, *, weighted: bool = False, rewording: str = "", noise_seed: str = ""
) -> EncodingOrigin:
    """Return the origin of encodings by this LLM and this adapter."""
    return EncodingOrigin(
        llm=llm.id,
        hidden_size=llm.hidden_size,
        num_blocks=llm.num_blocks,
        llm_dtype=str(llm.dtype).removeprefix("torch."),
        llm_sha256=llm_digest(llm),
        adapter_sha256=adapter_digest(adapter),
        template=template_of(adapter),
        weighted=weighted,
        rewording=rewording,
        noise_seed=noise_seed,
    )


def template_of(adapter: Any) -> str:
    """Return the adapter's template, "" if it has none."""
    return str(getattr(adapter.context, "template", None) or "")


def _file_name(prompt: str) -> str:
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:_MAX_SLUG].strip("-")
    return f"{words or 'empty'}-{sha256(prompt.encode()).hexdigest()[:12]}"
