"""LLMController: an LLM and an adapter together, the front door of the library."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, Self

import torch
from safetensors import SafetensorError

from llmdiff.adapter.adapter import LLMDiffAdapter
from llmdiff.adapter.attach import attach, check_fits, check_llm, detach
from llmdiff.adapter.manifest import MANIFEST_NAME, check_manifest
from llmdiff.adapter.prompts import encode_texts
from llmdiff.errors import (
    AdapterNotFoundError,
    ConfigError,
    CorruptWeightsError,
    LLMDiffError,
    PipelineNotFoundError,
)
from llmdiff.language.llm import DecoderLLM
from llmdiff.types import TextEncoding

EMBEDDED_NAME = "openmoji"

# The scales of an LLM's blocks are medians over a few hundred tokens of ordinary captions.
_CALIBRATION_PROMPTS = (
    "a photo of a cat sitting on a red sofa",
    "two apples to the left of a blue bicycle",
    "an oil painting of a harbour at sunset, with three small boats and a lighthouse",
    "a green triangle above a large yellow circle on a grey background",
    "portrait of an old fisherman with a white beard, soft light from the window",
    "a bowl of noodles beside a cup of tea on a wooden table, seen from above",
    "four children play football in the rain while a dog watches them",
    "the animal that gives us milk, standing in front of a barn",
    "a city street at night with neon signs reflected in the puddles",
    "an astronaut riding a horse on the moon",
    "a quiet forest path in autumn, fog between the trees, a wooden bridge in the distance",
    "logo of a bakery: a smiling loaf of bread that wears a chef's hat",
    "a small house under a big tree, clouds in the sky, simple drawing",
    "one orange cat and two black dogs sleeping next to each other",
    "a train that crosses a stone bridge over a river in the mountains in winter",
    "a vase with five tulips, watercolour",
)


class LLMController:
    """An LLM in control of diffusers pipelines, through an adapter made for both.

    Fields:
        llm: the frozen `DecoderLLM`.
        adapter: the `LLMDiffAdapter`, the only part that is trained and saved.

    An LLM of the right sizes but another name than the adapter's would draw, from states that the adapter has
    never seen. So it is refused; with `strict=False` it is taken, with a warning.

    Raises:
        AdapterMismatchError: the adapter was made for another LLM.
    """

    def __init__(self, llm: DecoderLLM, adapter: LLMDiffAdapter, *, strict: bool = True) -> None:
        check_llm(llm, adapter, strict=strict)
        self.llm = llm
        self.adapter = adapter
        self._strict = strict

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        llm: DecoderLLM | None = None,
        strict: bool = True,
        revision: str | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """Return a trained controller: "openmoji" (shipped with the package), a folder or a Hub id.

        The LLM is the one the adapter was trained with, loaded in `dtype` on `device`, unless `llm` is given;
        `strict=False` takes one of another name, when it is the same model. The adapter stays in float32;
        attaching brings it to the pipeline's device and dtype.

        Raises:
            AdapterNotFoundError: no such folder, or no such Hub id to be had.
            CorruptWeightsError: a file of the adapter is missing or damaged.
            ConfigError: the adapter's config has an unknown key or a value out of range.
            LLMNotFoundError: the adapter's LLM is not to be had.
            AdapterMismatchError: `llm` is not what the adapter was made for.
        """
        folder = name_or_path
        if name_or_path == EMBEDDED_NAME:
            folder = _packaged("adapter", AdapterNotFoundError)
        adapter = LLMDiffAdapter.from_pretrained(folder, revision=revision, device=device)
        if llm is None:
            llm = DecoderLLM.from_pretrained(adapter.config.llm_id, device=device, dtype=dtype)
        return cls(llm, adapter, strict=strict)

    @classmethod
    def create(
        cls,
        llm: DecoderLLM,
        pipe: Any,
        *,
        encoding: Literal["guided", "paper"] = "guided",
        lone: Literal["token", "token+bos"] = "token+bos",
        template: str | None = None,
        max_length: int = 512,
        clip: float = 3.0,
        base_model_id: str | None = None,
        calibration_prompts: Sequence[str] = _CALIBRATION_PROMPTS,
    ) -> Self:
        """Return a controller with a fresh, untrained adapter for this LLM and this pipeline.

        `calibration_prompts` set the scales of the LLM's blocks, see `ContextEncoding`; captions like those
        of the training are best. `base_model_id` (default: where the pipeline was loaded from) is what
        `load_pipeline` loads.

        Raises:
            UnsupportedPipelineError: the pipeline belongs to no known family.
        """
        adapter = LLMDiffAdapter.create(
            pipe,
            llm_id=llm.id,
            hidden_size=llm.hidden_size,
            num_blocks=llm.num_blocks,
            encoding=encoding,
            lone=lone,
            template=template,
            max_length=max_length,
            clip=clip,
            base_model_id=base_model_id,
        )
        if adapter.context is not None:
            adapter.context.calibrate(llm, list(calibration_prompts))
        return cls(llm, adapter)

    def encode(self, prompts: str | Sequence[str], *, noise_seed: int | None = None) -> TextEncoding:
        """Return the text encoding c of the prompts; repeatable bit for bit, also with the same `noise_seed`.

        Shapes:
            states (B, T, D), token_mask (B, T).

        Raises:
            PromptError: a prompt is no text.

        Source: Dong et al. 2024 (arXiv 2502.04412); the noise eps is drawn only when a seed is given.
        """
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        if noise_seed is None:
            return encode_texts(self.adapter, self.llm, texts)
        if self.adapter.context is None:
            raise ConfigError(
                "noise_seed is given, but the adapter's states have no noise: leave noise_seed out"
            )
        # Drawn on the CPU, so that a seed means the same on every machine.
        generator = torch.Generator().manual_seed(noise_seed)
        return self.adapter.context.encode(self.llm, texts, generator=generator)

    def load_pipeline(
        self,
        source: str | Path | None = None,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Any:
        """Return the base pipeline that the adapter was trained for, with nothing attached.

        `source`, a folder or a Hub id, is another base of the same family, a fine-tuned one for example;
        whether it fits is checked before it is returned. A folder with a manifest is checked against it.

        Raises:
            PipelineNotFoundError: the pipeline is neither a folder nor to be had from the Hub.
            CorruptWeightsError: its folder lacks a file or has a damaged one.
            AdapterMismatchError, UnsupportedPipelineError: `source` is no pipeline for this adapter.
        """
        from diffusers import AutoPipelineForText2Image

        config: Any = self.adapter.config
        base = str(config.base_model_id if source is None else source)
        if not base:
            raise PipelineNotFoundError(
                "base_model_id of the adapter is empty: load its pipeline yourself and attach to it"
            )
        place = _packaged("pipeline", PipelineNotFoundError) if base == EMBEDDED_NAME else Path(base)
        if (place / MANIFEST_NAME).is_file():
            check_manifest(place, ["model_index.json"])
        load: Any = AutoPipelineForText2Image.from_pretrained
        try:
            pipe: Any = load(place if place.is_dir() else base, dtype=dtype, use_safetensors=True)
        except SafetensorError as error:
            raise CorruptWeightsError(
                f"pipeline {base!r} has a weight file that is truncated or damaged ({error}): download it again"
            ) from error
        except (OSError, ValueError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            if place.is_dir():
                raise CorruptWeightsError(
                    f"base pipeline {base!r} is a folder that diffusers cannot read ({reason}): download or "
                    "save it again"
                ) from error
            raise PipelineNotFoundError(
                f"base pipeline {base!r} is neither a folder nor to be had from the Hub ({reason}): get it "
                f'once with "hf download {base}", or load a pipeline yourself and attach to it'
            ) from error
        check_fits(pipe, self.adapter)
        return pipe.to(device)

    def attach(self, pipe: Any, scale: float = 1.0, *, keep_base_text: bool = False) -> None:
        """Put the LLM in control of the pipeline; returns nothing. See `llmdiff.adapter.attach`."""
        attach(pipe, self.llm, self.adapter, scale=scale, keep_base_text=keep_base_text, strict=self._strict)

    def detach(self, pipe: Any) -> None:
        """Make the pipeline exactly what it was before `attach`; returns nothing."""
        detach(pipe)

    @contextmanager
    def attached(self, pipe: Any, scale: float = 1.0, *, keep_base_text: bool = False) -> Iterator[Any]:
        """Return a context where the LLM controls the pipeline; detached at its end, even after an error."""
        self.attach(pipe, scale, keep_base_text=keep_base_text)
        try:
            yield pipe
        finally:
            self.detach(pipe)

    def save_pretrained(self, save_directory: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write the adapter (not the LLM, not the pipeline) with its manifest; returns nothing.

        Raises:
            OutputError: the folder cannot be written; nothing half written is left in it.
        """
        self.adapter.save_pretrained(save_directory, dtype=dtype)

    def push_to_hub(self, repo_id: str, *, private: bool = False, dtype: torch.dtype | None = None) -> str:
        """Upload the adapter to the Hub, creating its repository if needed; return the commit's address."""
        from huggingface_hub import HfApi

        api = HfApi()
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, dtype=dtype)
            api.create_repo(repo_id, private=private, exist_ok=True)
            return str(
                api.upload_folder(
                    repo_id=repo_id, folder_path=folder, commit_message="LLMDiff adapter"
                ).commit_url
            )


def _packaged(part: str, error: type[LLMDiffError]) -> Path:
    folder = Path(str(files("llmdiff"))) / "openmoji" / "weights" / part
    if not folder.is_dir():
        raise error(
            f"{EMBEDDED_NAME!r} has no {part} here: this is a source tree without the trained weights; install "
            "the released package, or train them with `python -m llmdiff.openmoji.build`"
        )
    return folder
