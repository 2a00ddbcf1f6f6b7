"""LLMController: an LLM together with its adapter, the main entry point of the library."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch

from llmdiff.adapter.adapter import LLMDiffAdapter
from llmdiff.adapter.attach import attach, check_fits, check_llm, detach, own_scale
from llmdiff.adapter.base_pipeline import EMBEDDED_NAME, load_base_pipeline, packaged
from llmdiff.adapter.card import adapter_card
from llmdiff.adapter.settings import AdapterSettings, Control, as_control
from llmdiff.adapter.sharing import upload_adapter
from llmdiff.adapter.texts import encode_texts, prompt_texts
from llmdiff.checks.validation import keywords_of, settings_from
from llmdiff.errors import (
    AdapterNotFoundError,
    ConfigError,
    PipelineNotFoundError,
    UnsupportedLLMError,
)
from llmdiff.language.calibration import CALIBRATION_PROMPTS
from llmdiff.language.llm import DecoderLLM
from llmdiff.language.rewording import Rewording
from llmdiff.language.saved_encodings import EncodedPrompts, SavedEncodings

# The first ones of the calibration prompts set the size of new weights.
_SAMPLE_PROMPTS = 16


def adapter_source(name_or_path: str | Path) -> str | Path:
    """Return the folder of the embedded default's adapter for its name, and any other name unchanged.

    Raises:
        AdapterNotFoundError: the package contains no weights.
    """
    return packaged("adapter", AdapterNotFoundError) if name_or_path == EMBEDDED_NAME else name_or_path


class LLMController:
    """An LLM that controls diffusers pipelines through an adapter trained for both.

    Fields:
        llm: the frozen `DecoderLLM`, or `SavedEncodings` that one has made.
        adapter: the `LLMDiffAdapter`, the only part that is trained and saved.

    An LLM of the right sizes but another name than the adapter's would draw from states that the adapter was not
    trained on. It raises an error, or with `strict=False` a warning.

    Raises:
        AdapterMismatchError: the adapter was made for another LLM.
    """

    def __init__(
        self, llm: DecoderLLM | SavedEncodings, adapter: LLMDiffAdapter, *, strict: bool = True
    ) -> None:
        check_llm(llm, adapter, strict=strict)
        self.llm = llm
        self.adapter = adapter
        self._strict = strict

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        llm: DecoderLLM | SavedEncodings | None = None,
        strict: bool = True,
        revision: str | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        trust_remote_code: bool = False,
        quantization_config: Any = None,
        free_llm_after_encoding: bool = False,
        offload_llm_blocks: bool = False,
    ) -> Self:
        """Return a trained controller: "openmoji" (shipped with the package), a folder or a Hub id.

        The LLM is the one the adapter was trained with, loaded in `dtype` on `device`, unless `llm` is given;
        `strict=False` accepts an LLM of another name, if it is the same model. With `llm=SavedEncodings.load(folder)`
        no LLM is in memory, and prompts are found among the saved ones. The adapter stays in float32; attaching
        copies it to the pipeline's device and dtype.

        The last four arguments are for loading the LLM, see `DecoderLLM.from_pretrained`. With
        `free_llm_after_encoding` its weights are on `device` only while a prompt is encoded, which frees the memory
        for the denoiser.

        Raises:
            AdapterNotFoundError: neither a folder nor an available Hub id.
            CorruptWeightsError: a file of the adapter is missing or damaged.
            ConfigError: the adapter's config has an unknown key or a value out of range, or an argument for
                loading the LLM is given together with `llm` or cannot be combined with the others.
            LLMNotFoundError: the adapter's LLM is not available.
            UnsupportedLLMError: the LLM is not supported, or brings code and `trust_remote_code` is False.
            AdapterMismatchError: the adapter was made for another LLM than `llm`, or the encodings for another
                adapter.
        """
        loading: dict[str, Any] = {
            "trust_remote_code": trust_remote_code,
            "quantization_config": quantization_config,
            "free_after_encoding": free_llm_after_encoding,
            "offload_blocks": offload_llm_blocks,
        }
        given = [name for name, value in loading.items() if value]
        if llm is not None and given:
            raise ConfigError(
                f"llm {llm.id!r} is given together with arguments for loading an LLM: pass "
                f"{', '.join(given)} to DecoderLLM.from_pretrained instead"
            )
        source = adapter_source(name_or_path)
        adapter = LLMDiffAdapter.from_pretrained(source, revision=revision, device=device)
        if llm is None:
            llm = DecoderLLM.from_pretrained(adapter.config.llm_id, device=device, dtype=dtype, **loading)
        return cls(llm, adapter, strict=strict)

    @classmethod
    @keywords_of(AdapterSettings)
    def create(
        cls,
        llm: DecoderLLM,
        pipe: Any,
        settings: AdapterSettings | None = None,
        *,
        base_model_id: str | None = None,
        calibration_prompts: Sequence[str] = CALIBRATION_PROMPTS,
        **fields: Any,
    ) -> Self:
        """Return a controller with a new, untrained adapter for this LLM and this pipeline.

        Pass an `AdapterSettings`, or its fields as keyword arguments: `refiner_layers=0, encoding="paper"` is the
        paper's adapter. `calibration_prompts` set the scales of the LLM's blocks, see `ContextEncoding`, and, the
        first 16 of them, the size of new weights, see `LLMDiffAdapter.create`; use captions like those of the
        training. `base_model_id` (default: where the pipeline was loaded from) is the pipeline that
        `load_pipeline` loads.

        Raises:
            UnsupportedLLMError: `llm` is not a `DecoderLLM`.
            UnsupportedPipelineError: the pipeline belongs to no known family.
        """
        if not isinstance(llm, DecoderLLM):
            raise UnsupportedLLMError(
                f"llm is a {type(llm).__name__}, expected a DecoderLLM: load it with DecoderLLM.from_pretrained"
            )
        adapter = LLMDiffAdapter.create(
            pipe,
            llm_id=llm.id,
            hidden_size=llm.hidden_size,
            num_blocks=llm.num_blocks,
            settings=settings_from(AdapterSettings, settings, fields),
            base_model_id=base_model_id,
            sample_prompts=list(calibration_prompts)[:_SAMPLE_PROMPTS],
        )
        if adapter.context is not None:
            adapter.context.calibrate(llm, list(calibration_prompts))
        return cls(llm, adapter)

    def encode(
        self,
        prompts: str | Sequence[str],
        *,
        weighted: bool = False,
        rewording: Rewording | None = None,
        noise_seed: int | None = None,
    ) -> EncodedPrompts:
        """Return the text encoding c of the prompts; deterministic, also with a given `noise_seed`.

        With `weighted`, `(word:1.3)` in a prompt weighs a word, see `ContextEncoding`; otherwise it is plain text.
        With `rewording`, a closed LLM rewords every prompt first. The result's `save(folder)` writes it to files, from
        which `SavedEncodings` draws without the LLM; drawing with guidance also needs the negative prompt, mostly "".

        Shapes:
            states (B, T, D), token_mask (B, T).

        Raises:
            PromptError: a prompt is not a string or not among saved encodings, or a weight is out of range.
            ConfigError: `weighted`, `rewording` or `noise_seed` is given for an adapter without a context encoding.

        Source: Dong et al. 2024 (arXiv 2502.04412); the noise eps is drawn only when a seed is given.
        """
        texts = prompt_texts("prompts", prompts, may_be_blank=True, weighted=weighted)
        # On the CPU, so that a seed gives the same noise on every machine.
        generator = None if noise_seed is None else torch.Generator().manual_seed(noise_seed)
        control = Control(weighted=weighted, rewording=rewording)
        encoding = encode_texts(self.adapter, self.llm, texts, control, generator=generator)
        return EncodedPrompts.of(
            encoding,
            texts,
            self.llm,
            self.adapter,
            weighted=weighted,
            rewording="" if rewording is None else rewording.title,
            noise_seed="" if noise_seed is None else str(noise_seed),
        )

    def load_pipeline(
        self,
        source: str | Path | None = None,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        text_encoders: bool = True,
    ) -> Any:
        """Return the base pipeline that the adapter was trained for, not attached yet.

        `text_encoders=False` does not load the base's own text encoders (up to 10 GB), which are not used at scale 1
        without `keep_base_text`; the base then cannot draw without the LLM.

        `source` is the folder or Hub id of another base of the same family, for example a fine-tuned one; it is
        checked against the adapter. A folder with a manifest is checked against it.

        Raises:
            PipelineNotFoundError: the pipeline is neither a folder nor available on the Hub.
            CorruptWeightsError: a file is missing or damaged.
            AdapterMismatchError, UnsupportedPipelineError: `source` does not match the adapter, or brings Python
                code.
        """
        config: Any = self.adapter.config
        base = str(config.base_model_id if source is None else source)
        if not base:
            raise PipelineNotFoundError(
                "base_model_id of the adapter is empty: load its pipeline yourself and attach to it"
            )
        pipe = load_base_pipeline(base, dtype=dtype, text_encoders=text_encoders)
        check_fits(pipe, self.adapter)
        return pipe.to(device)

    @property
    def scale(self) -> float:
        """Return the default scale of `attach`: the adapter's own."""
        return own_scale(self.adapter)

    @keywords_of(Control)
    def attach(self, pipe: Any, control: Control | float | None = None, **fields: Any) -> None:
        """Put the LLM in control of the pipeline. See `llmdiff.adapter.attach`; `strict` is the controller's own."""
        chosen = as_control(control, fields)
        attach(pipe, self.llm, self.adapter, replace(chosen, strict=chosen.strict and self._strict))

    def detach(self, pipe: Any) -> None:
        """Restore the pipeline exactly as it was before `attach`."""
        detach(pipe)

    @keywords_of(Control)
    @contextmanager
    def attached(self, pipe: Any, control: Control | float | None = None, **fields: Any) -> Iterator[Any]:
        """Return a context in which the LLM controls the pipeline; detaches on exit, even after an error."""
        self.attach(pipe, control, **fields)
        try:
            yield pipe
        finally:
            self.detach(pipe)

    def save_pretrained(self, save_directory: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write the adapter (not the LLM, not the pipeline) with its manifest and card.

        The card, README.md, is generated; an existing one is kept.

        Raises:
            OutputError: the folder cannot be written; no partial files are left in it.
        """
        card = adapter_card(self.adapter, repo_id=Path(save_directory).absolute().name)
        self.adapter.save_pretrained(save_directory, dtype=dtype, card=card)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        license: str | None = None,
        dtype: torch.dtype | None = None,
        llm_id: str | None = None,
        base_model_id: str | None = None,
    ) -> str:
        """Upload the adapter to the Hub, creating its repository if needed; return the commit's address.

        A generated card is uploaded too, unless the repository already has one. `license` is an identifier of the Hub
        such as "apache-2.0" for the card; None omits it. `llm_id` and `base_model_id` replace names of local folders
        in the uploaded config; "" omits the name, and whoever loads the adapter has to pass the LLM or the pipeline.

        Raises:
            ConfigError: one of the two is a local path.
            OutputError: the upload failed: no network, no permission, or an invalid name.
        """
        return upload_adapter(
            self.adapter,
            repo_id,
            private=private,
            license=license,
            dtype=dtype,
            llm_id=llm_id,
            base_model_id=base_model_id,
        )
