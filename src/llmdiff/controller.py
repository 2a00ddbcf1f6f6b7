"""LLMController: an LLM and an adapter together, the front door of the library."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, Self

import torch

from llmdiff.adapter.adapter import LLMDiffAdapter
from llmdiff.adapter.attach import attach, check_llm, detach
from llmdiff.adapter.prompts import encode_texts
from llmdiff.errors import ConfigError, LLMDiffError
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
    """

    def __init__(self, llm: DecoderLLM, adapter: LLMDiffAdapter) -> None:
        check_llm(llm, adapter)
        self.llm = llm
        self.adapter = adapter

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        llm: DecoderLLM | None = None,
        revision: str | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """Return a trained controller: "openmoji" (shipped with the package), a folder or a Hub id.

        The LLM is the one the adapter was trained with, loaded in `dtype` on `device`, unless `llm` is given.
        The adapter stays in float32; attaching brings it to the pipeline's device and dtype.

        Raises:
            CorruptWeightsError: a file of the adapter is missing or damaged.
            ConfigError: the adapter's config has an unknown key or a value out of range.
            LLMNotFoundError: the adapter's LLM is not to be had.
            AdapterMismatchError: `llm` is not what the adapter was made for.
        """
        folder = _packaged("adapter") if name_or_path == EMBEDDED_NAME else name_or_path
        adapter = LLMDiffAdapter.from_pretrained(folder, revision=revision, device=device)
        if llm is None:
            llm = DecoderLLM.from_pretrained(adapter.config.llm_id, device=device, dtype=dtype)
        return cls(llm, adapter)

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

    def load_pipeline(self, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Any:
        """Return the base pipeline that the adapter was trained for, with nothing attached.

        Raises:
            LLMDiffError: the base pipeline is neither a folder nor to be had from the Hub.
        """
        from diffusers import AutoPipelineForText2Image

        config: Any = self.adapter.config
        base: str = config.base_model_id
        if not base:
            raise LLMDiffError(
                "base_model_id of the adapter is empty: load its pipeline yourself and attach to it"
            )
        load: Any = AutoPipelineForText2Image.from_pretrained
        source = _packaged("pipeline") if base == EMBEDDED_NAME else base
        try:
            pipe: Any = load(source, dtype=dtype, use_safetensors=True)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise LLMDiffError(
                f"base pipeline {base!r} is neither a folder nor to be had from the Hub ({reason}): get it "
                "once with network, or load it yourself and attach to it"
            ) from error
        return pipe.to(device)

    def attach(self, pipe: Any, scale: float = 1.0) -> None:
        """Put the LLM in control of the pipeline; returns nothing. See `llmdiff.adapter.attach`."""
        attach(pipe, self.llm, self.adapter, scale=scale)

    def detach(self, pipe: Any) -> None:
        """Make the pipeline exactly what it was before `attach`; returns nothing."""
        detach(pipe)

    @contextmanager
    def attached(self, pipe: Any, scale: float = 1.0) -> Iterator[Any]:
        """Return a context where the LLM controls the pipeline; detached at its end, even after an error."""
        self.attach(pipe, scale)
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


def _packaged(part: str) -> Path:
    return Path(str(files("llmdiff"))) / "openmoji" / "weights" / part
