"""A text step for diffusers' modular pipelines: prompts are encoded by the LLM, guiders work unchanged."""

import copy
from typing import Any

import torch
from diffusers import FluxPipeline, StableDiffusion3Pipeline, StableDiffusionXLPipeline
from diffusers.modular_pipelines import InputParam, ModularPipelineBlocks, OutputParam, PipelineState

from llmdiff.adapter import families
from llmdiff.adapter.adapter import LLMDiffAdapter
from llmdiff.adapter.attach import TextSource, check_llm
from llmdiff.adapter.contract import prompt_contract
from llmdiff.adapter.installation import installation_on
from llmdiff.adapter.settings import Control
from llmdiff.adapter.texts import (
    check_context,
    check_second_prompts,
    encode_parts,
    negative_texts,
    prompt_texts,
)
from llmdiff.errors import AttachError, UnsupportedPipelineError

# By family, the plain pipeline whose `encode_prompt` the step stands for.
_PIPELINES: dict[str, Any] = {
    "sdxl": StableDiffusionXLPipeline,
    "sd3": StableDiffusion3Pipeline,
    "flux": FluxPipeline,
}
_NAMES = {
    "positive": "prompt_embeds",
    "negative": "negative_prompt_embeds",
    "positive_pooled": "pooled_prompt_embeds",
    "negative_pooled": "negative_pooled_prompt_embeds",
}


class LLMTextStep(ModularPipelineBlocks):  # type: ignore[misc, unused-ignore]
    """The text step of a modular pipeline under LLM control; replaces the block "text_encoder".

        blocks = StableDiffusionXLAutoBlocks()
        blocks.sub_blocks["text_encoder"] = LLMTextStep(controller.llm, controller.adapter)
        pipe = blocks.init_pipeline()
        pipe.update_components(unet=..., vae=..., scheduler=..., guider=...)
        with install(pipe.unet, controller.adapter, strict=True):
            image = pipe(prompt="a cat", output="images")[0]

    The adapter has to be installed on the denoiser with its default settings, `scale=1` and no base text: a modular
    pipeline with this step has no text encoder of its own. With `weighted`, `(word:1.3)` in a prompt weighs a word.

    Raises:
        UnsupportedPipelineError: diffusers has no modular pipeline of the adapter's family.
        AdapterMismatchError: the adapter was made for another LLM.
        ConfigError: `weighted` is set for an adapter without a context encoding.
    """

    def __init__(
        self, llm: TextSource, adapter: LLMDiffAdapter, *, weighted: bool = False, strict: bool = True
    ) -> None:
        config: Any = adapter.config
        self.family = families.family_named(config.family)
        if self.family.name not in _PIPELINES:
            known = ", ".join(families.family_named(name).title for name in _PIPELINES)
            raise UnsupportedPipelineError(
                f"the adapter is for {self.family.title}, of which diffusers has no modular pipeline; expected one for "
                f"{known}: attach it to a pipeline instead"
            )
        check_llm(llm, adapter, strict=strict)
        self.control = Control(weighted=weighted)
        check_context(adapter, self.control)
        self.contract = prompt_contract(_PIPELINES[self.family.name])
        self.llm = llm
        self.adapter = adapter
        super().__init__()

    def __deepcopy__(self, memo: dict[int, Any]) -> "LLMTextStep":
        # Pipelines are made from copies of their blocks: a copy reads the same models.
        memo.update({id(shared): shared for shared in (self.llm, self.adapter)})
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin

    @property
    def description(self) -> str:
        """Return what the step does."""
        return "Text step that encodes prompts with a decoder-only LLM"

    @property
    def inputs(self) -> list[Any]:
        """Return the step's inputs: prompts, and those for further text encoders, which are refused if they differ."""
        first = ["prompt", "negative_prompt"] if self.contract.encodes_negative else ["prompt"]
        return [InputParam(name) for name in (*first, *self.contract.second_prompts)]

    @property
    def intermediate_outputs(self) -> list[Any]:
        """Return the step's outputs; `prompt_embeds` are rows of [phi(c) ; c]."""
        return [
            OutputParam(_NAMES[part], type_hint=torch.Tensor, kwargs_type="denoiser_input_fields")
            for part in self.contract.returns
            if part in _NAMES
        ]

    @torch.no_grad()
    def __call__(self, components: Any, state: PipelineState) -> tuple[Any, PipelineState]:
        """Return the pipeline and its state with the prompt embeddings.

        Shapes:
            prompt_embeds, negative_prompt_embeds (B, T, W + D); pooled_prompt_embeds (B, pooled width).

        Raises:
            PromptError: a prompt is blank or not a string, a weight is out of range, the numbers of prompts and
                negative prompts differ, or another prompt for a second text encoder is given.
            AttachError: the adapter is not installed on the pipeline's denoiser, or with settings that need the
                base's text encoder.
        """
        block_state = self.get_block_state(state)
        denoiser = self._checked_denoiser(components)
        given = {name: getattr(block_state, name, None) for name in self.input_names}
        check_second_prompts(self.contract.second_prompts, given)
        positive = prompt_texts(
            "prompt",
            given["prompt"],
            may_be_blank=not self.contract.encodes_negative,
            weighted=self.control.weighted,
        )
        texts = {"positive": positive}
        if self.contract.encodes_negative:
            texts["negative"] = negative_texts(given["negative_prompt"], len(positive))
        parts = encode_parts(self.llm, self.adapter, texts, self.control)
        for part, name in _NAMES.items():
            states = parts.get(part)
            if states is not None:
                setattr(block_state, name, states.to(components._execution_device, denoiser.dtype))
        self.set_block_state(state, block_state)
        return components, state

    def _checked_denoiser(self, components: Any) -> Any:
        """Return the denoiser, with the adapter's branches on the pipeline's device."""
        name = "unet" if self.family.name == "sdxl" else "transformer"
        denoiser = getattr(components, name)
        installation = installation_on(getattr(denoiser, "_orig_mod", denoiser))
        if installation is None or installation.adapter is not self.adapter:
            raise AttachError(
                f"the pipeline's {name} does not carry the adapter of its text step: call the pipeline inside "
                f'"with install(pipe.{name}, adapter, strict=True):"'
            )
        settings = installation.settings
        if settings != {"scale": 1.0, "keep_base_text": False, "layer_scale": {}}:
            raise AttachError(
                f"the adapter is installed with scale={settings['scale']:g} and keep_base_text="
                f"{settings['keep_base_text']}, or with layer_scale, which need the base's text encoder, and this "
                "pipeline has none: install it without them"
            )
        installation.prepare(torch.device(components._execution_device), denoiser.dtype)
        return denoiser
