"""Loads a decoder-only LLM and turns prompts into its states."""

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llmdiff.errors import ConfigError
from llmdiff.language.blocks import Lone, run_blocks, run_prefix
from llmdiff.language.loading import load_llm
from llmdiff.language.placement import Placement
from llmdiff.language.prefix import PrefixStates
from llmdiff.language.readings import Reading
from llmdiff.language.self_check import check_reading
from llmdiff.language.support import (
    check_supported,
    decoder_blocks,
    max_positions,
    text_model,
    whatever_fails_is_unsupported,
)
from llmdiff.language.templates import INSTRUCTION, instruction_template
from llmdiff.language.tokens import PromptTokens, first_token_id, tokenize
from llmdiff.types import BlockStates, TextEncoding

_MAX_REMEMBERED_PREFIXES = 8


class DecoderLLM:
    """A frozen decoder-only LLM with its tokenizer.

    `model` is a transformers causal language model, `id` what `from_pretrained` takes to load it again,
    `text_model` the part without a head that runs its decoder `blocks`. The language-model head is never run.
    `reading` is how its blocks are read, see `Reading`. With `captures`, sizes of batches that come again on a CUDA
    device are read by CUDA graphs, see `llmdiff.language.captured`; False reads all of them eagerly.
    """

    reading: Reading
    captures: bool = True

    def __init__(self, model: Any, tokenizer: Any, *, id: str) -> None:
        """Wraps a loaded model; freezes it.

        Raises:
            UnsupportedLLMError: not decoder-only, not causal, or its blocks cannot be called on a lone token.
        """
        self._wrap(model, tokenizer, id=id)
        self.reading = check_reading(self)

    def _wrap(self, model: Any, tokenizer: Any, *, id: str) -> None:
        check_supported(model.config, id=id)
        first_token_id(tokenizer)
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.id = id
        with whatever_fails_is_unsupported(model, id=id):
            self.blocks = decoder_blocks(model, id=id)
            self.text_model = text_model(model, self.blocks)
            config = model.config.get_text_config(decoder=True)
            self.hidden_size = int(config.hidden_size)
            self.placement = Placement(model, id=id, before_move=self.forget_prefixes)
        self.num_blocks = len(self.blocks)
        self.max_positions = max_positions(config)
        self._prefixes: dict[tuple[int, ...], PrefixStates] = {}

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        gguf_file: str | None = None,
        revision: str | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        trust_remote_code: bool = False,
        quantization_config: Any = None,
        free_after_encoding: bool = False,
        offload_blocks: bool = False,
    ) -> "DecoderLLM":
        """Returns the LLM: `"smollm2-135m"`, a folder, a `.gguf` file, a Hub id or its `org/name/file.gguf`.

        GGUF files are converted once to safetensors under `$LLMDIFF_HOME` (default ~/.cache/llmdiff). Weights
        are read from safetensors only.

        The LLM computes on `device`. `free_after_encoding`: its weights rest on the CPU and are there only
        while it encodes. `offload_blocks`: they are there one module at a time, for an LLM larger than the
        device. `quantization_config` is one of transformers' (8 or 4 bits); packed weights stay on `device`.

        Raises:
            LLMNotFoundError: no such folder, file or Hub model, or no network to get it.
            CorruptWeightsError: a weight file is truncated or damaged, or a weight is missing, unread or of
                another shape.
            UnsupportedLLMError: encoder-only and encoder-decoder models, others that do not read a few tokens
                alike alone, batched and continued, and those that bring code of their own unless
                `trust_remote_code` is True.
            ConfigError: the quantisation's package is missing, or it does not go with the rest.
        """
        if offload_blocks and quantization_config is not None:
            raise ConfigError(
                "offload_blocks and quantization_config are given, and packed weights cannot be moved one "
                "module at a time; pass one of the two"
            )
        # Straight to where the weights rest: they need not fit beside what is on the device already.
        rest_on_cpu = offload_blocks or (free_after_encoding and quantization_config is None)
        model, tokenizer, llm_id = load_llm(
            name_or_path,
            gguf_file=gguf_file,
            revision=revision,
            device="cpu" if rest_on_cpu else device,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            quantization_config=quantization_config,
        )
        llm = cls.__new__(cls)
        llm._wrap(model, tokenizer, id=llm_id)
        if offload_blocks:
            llm.placement.offload_blocks(torch.device(device))
        elif free_after_encoding:
            llm.free_after_encoding = True
            llm.to(device)
        # Where it will compute, as not every device computes what another does.
        llm.reading = check_reading(llm)
        return llm

    @property
    def device(self) -> torch.device:
        """The device that the LLM computes on, and that encodings are on."""
        return self.placement.device

    def to(self, device: str | torch.device) -> "DecoderLLM":
        """Returns itself; it computes on `device` from now on."""
        self.placement.to(torch.device(device))
        return self

    @property
    def free_after_encoding(self) -> bool:
        """Whether the weights rest on the CPU and are on `device` only while the LLM encodes.

        Setting it to True frees the device at once. Nothing moves where `device` is the CPU.
        """
        return self.placement.free_after_encoding

    @free_after_encoding.setter
    def free_after_encoding(self, free: bool) -> None:
        self.placement.free_after_encoding = free

    @property
    def dtype(self) -> torch.dtype:
        """The type the LLM computes in; encodings are float32 all the same."""
        dtype: torch.dtype = self.model.dtype
        return dtype

    def tokenize(
        self,
        prompts: str | Sequence[str],
        *,
        template: str | None = None,
        max_length: int = 512,
        weighted: bool = False,
        contexts: Sequence[str] | None = None,
    ) -> PromptTokens:
        """Returns the tokens of the prompts, BOS first, padded on the right; see `PromptTokens`.

        `template` holds `{prompt}` once or twice. What stands before the last `{prompt}` is context only: its
        tokens are seen by the prompt's and dropped. What stands after it is kept. Prompts longer than
        `max_length` tokens are cut with a warning. `weighted`: `(word:1.3)` is a weight, not text. `contexts`: a
        text for each prompt that its tokens see before them and that is dropped.

        Raises:
            PromptError: no prompts, one that is not a string, another number of contexts, or a weight out of
                range. (An empty prompt is fine here: BOS alone.)
            ConfigError: a template without `{prompt}`, or `max_length` below 1.
        """
        return tokenize(
            self.tokenizer,
            prompts,
            template=template,
            max_length=max_length,
            max_positions=self.max_positions,
            weighted=weighted,
            contexts=contexts,
        )

    def block_updates(
        self,
        prompts: str | Sequence[str],
        *,
        lone: Lone = "token",
        template: str | None = None,
        max_length: int = 512,
    ) -> BlockStates:
        """Returns x_0 and every block's context and lone update, all of them in memory at once.

        For training while the gains are learned, and for analysis; `ContextEncoding.encode` streams.

        Shapes:
            See `BlockStates`; float32, padding rows are 0.
        Source: Dong et al. 2024 (arXiv 2502.04412); `lone="token+bos"` is ours, see `run_blocks`.
        """
        tokens = self.tokenize(prompts, template=template, max_length=max_length)
        context: list[Tensor] = []
        alone: list[Tensor] = []

        def keep(index: int, x: Tensor, u: Tensor, v: Tensor | None) -> None:
            assert v is not None
            context.append(u)
            alone.append(v)

        x0 = run_blocks(self, tokens, lone=lone, visit=keep)
        return BlockStates(
            x0=x0,
            context=torch.stack(context),
            lone=torch.stack(alone),
            token_mask=tokens.token_mask.to(x0.device),
            input_ids=tokens.input_ids.to(x0.device),
        )

    def last_hidden_states(
        self, prompts: str | Sequence[str], *, template: str | None = None, max_length: int = 512
    ) -> TextEncoding:
        """Returns the states after the LLM's final norm for the same tokens that `block_updates` keeps.

        Shapes:
            states: (B, T, D) float32, padding rows are 0.
        """
        tokens = self.tokenize(prompts, template=template, max_length=max_length)
        last: list[Tensor] = []
        run_blocks(self, tokens, lone=None, visit=lambda *_: None, on_last_hidden_state=last.append)
        return TextEncoding(states=last[0], token_mask=tokens.token_mask.to(last[0].device))

    def instruction_template(self, instruction: str = INSTRUCTION) -> str:
        """Returns a template with the instruction in the words this LLM was trained on, its chat format.

        An LLM without a chat format gets the instruction alone. Pass it as `template`; it is stored with the
        adapter.
        """
        return instruction_template(self.tokenizer, instruction)

    def forget_prefixes(self) -> None:
        """Forget the states of prefixes, which a change of weights or device makes wrong."""
        self._prefixes.clear()

    def prefix_states(self, prefix_ids: tuple[int, ...]) -> PrefixStates:
        """Returns the states of a constant start of text, computed on first use and remembered."""
        if prefix_ids not in self._prefixes:
            if len(self._prefixes) >= _MAX_REMEMBERED_PREFIXES:
                del self._prefixes[next(iter(self._prefixes))]
            self._prefixes[prefix_ids] = run_prefix(self, prefix_ids)
        return self._prefixes[prefix_ids]
