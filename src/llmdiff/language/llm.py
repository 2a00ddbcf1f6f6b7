"""Load a decoder-only LLM and turn prompts into its states."""

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llmdiff.errors import ConfigError
from llmdiff.language.blocks import Lone, run_blocks, run_prefix
from llmdiff.language.loading import load_llm
from llmdiff.language.lone_calls import Reading
from llmdiff.language.placement import Placement
from llmdiff.language.prefix import PrefixStates
from llmdiff.language.self_check import check_reading
from llmdiff.language.support import (
    check_supported,
    decoder_blocks,
    max_positions,
    text_model,
    whatever_fails_is_unsupported,
)
from llmdiff.language.tokens import PLACEHOLDER, PromptTokens, first_token_id, tokenize
from llmdiff.types import BlockStates, TextEncoding

INSTRUCTION = "Describe the picture in simple words: which object is where, and what is it called? Picture: "
_MAX_REMEMBERED_PREFIXES = 8


class DecoderLLM:
    """A frozen decoder-only LLM with its tokenizer.

    `model` is a transformers causal language model; `id` is the name that `from_pretrained` takes to load it again;
    `text_model` is the part of the model that runs the decoder `blocks`. The language-model head is never run.
    `reading` says how the blocks are called, see `Reading`. With `captures`, batches of repeated sizes run as CUDA
    graphs on a CUDA device, see `llmdiff.language.captured`; False runs every batch eagerly.
    """

    reading: Reading
    captures: bool = True

    def __init__(self, model: Any, tokenizer: Any, *, id: str) -> None:
        """Wrap a loaded model and freeze it.

        Raises:
            UnsupportedLLMError: the model is not decoder-only or not causal, or its blocks cannot be called on a
                single token.
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
        """Load an LLM: `"smollm2-135m"`, a folder, a `.gguf` file, a Hub id or its `org/name/file.gguf`.

        GGUF files are converted once to safetensors under `$LLMDIFF_HOME` (default ~/.cache/llmdiff). Weights
        are read from safetensors only.

        The LLM computes on `device`. `free_after_encoding` keeps its weights on the CPU and moves them to `device`
        only while it encodes. `offload_blocks` moves them one module at a time, for an LLM larger than the device.
        `quantization_config` is a transformers quantisation config (8 or 4 bits); packed weights stay on `device`.

        Raises:
            LLMNotFoundError: the folder, file or Hub model does not exist or cannot be downloaded.
            CorruptWeightsError: a weight file is truncated or damaged, or a weight is missing, unread or of
                another shape.
            UnsupportedLLMError: the model is an encoder or encoder-decoder; it gives different states for the same
                tokens alone, in a batch and with more text after them; or it needs its own code and
                `trust_remote_code` is False.
            ConfigError: the quantisation package is missing, or the options cannot be combined.
        """
        if offload_blocks and quantization_config is not None:
            raise ConfigError(
                "offload_blocks and quantization_config are given, and packed weights cannot be moved one "
                "module at a time; pass one of the two"
            )
        # Load directly to where the weights are kept: they may not fit on the device beside other models.
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
        # Check on the device that will compute: results differ between devices.
        llm.reading = check_reading(llm)
        return llm

    @property
    def device(self) -> torch.device:
        """Return the device that the LLM computes on; encodings are on it too."""
        return self.placement.device

    def to(self, device: str | torch.device) -> "DecoderLLM":
        """Move the LLM to `device` and return it."""
        self.placement.to(torch.device(device))
        return self

    @property
    def free_after_encoding(self) -> bool:
        """Return whether the weights are kept on the CPU and moved to `device` only while the LLM encodes.

        Setting it to True frees the device at once. If `device` is the CPU, nothing moves.
        """
        return self.placement.free_after_encoding

    @free_after_encoding.setter
    def free_after_encoding(self, free: bool) -> None:
        self.placement.free_after_encoding = free

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype the LLM computes in; encodings are always float32."""
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
        """Return the tokens of the prompts, BOS first, padded on the right; see `PromptTokens`.

        `template` contains `{prompt}` once or twice. Text before the last `{prompt}` is context only: the prompt's
        tokens attend to it, and its own tokens are dropped. Text after it is kept. Prompts longer than `max_length`
        tokens are cut with a warning. `weighted` reads `(word:1.3)` as a weight instead of text. `contexts` gives
        each prompt a text that its tokens attend to and that is dropped.

        Raises:
            PromptError: there are no prompts, one is not a string, the number of contexts differs, or a weight is
                out of range. An empty prompt is allowed and gives BOS alone.
            ConfigError: the template lacks `{prompt}` or is too long for the LLM, or `max_length` is below 1.
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
        """Return x_0 and every block's context and lone update.

        All of them are in memory at once. Use it for training the gains and for analysis;
        `ContextEncoding.encode` sums them block by block.

        Shapes:
            See `BlockStates`; float32, padding rows are 0.
        Source: Dong et al. 2024 (arXiv 2502.04412); `lone="token+bos"` is ours, see `run_blocks`.
        """
        tokens = self.tokenize(prompts, template=template, max_length=max_length)
        context: list[Tensor] = []
        alone: list[Tensor] = []

        def keep(index: int, x: Tensor, u: Tensor, v: Tensor) -> None:
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
        """Return the states after the LLM's final norm for the same tokens that `block_updates` keeps.

        Shapes:
            states: (B, T, D) float32, padding rows are 0.
        """
        tokens = self.tokenize(prompts, template=template, max_length=max_length)
        last: list[Tensor] = []
        run_blocks(self, tokens, lone=None, visit=lambda *_: None, on_last_hidden_state=last.append)
        return TextEncoding(states=last[0], token_mask=tokens.token_mask.to(last[0].device))

    def instruction_template(self, instruction: str = INSTRUCTION) -> str:
        """Return the instruction and `{prompt}` as a user's turn in the LLM's chat format, up to `{prompt}`.

        Pass the result as `template`; it is stored with the adapter. An LLM without a chat format gets the
        instruction alone. Text that the format puts after the user's words is left out, because its tokens would be
        kept and say nothing about the prompt. A date in the format (Llama 3) stays the day of this call.

        Raises:
            ConfigError: the instruction contains `{prompt}`, or the chat format changes the user's words.
        """
        if PLACEHOLDER in instruction:
            raise ConfigError(
                f"instruction {instruction!r} contains {PLACEHOLDER}, expected only the text before it; pass the "
                "whole text as the template instead"
            )
        words, tokenizer = f"{instruction}{PLACEHOLDER}", self.tokenizer
        if not getattr(tokenizer, "chat_template", None):
            return words
        chat = str(tokenizer.apply_chat_template([{"role": "user", "content": words}], tokenize=False))
        before, found, _ = chat.partition(PLACEHOLDER)
        if not found or chat.count(PLACEHOLDER) != 1 or not before.endswith(instruction):
            raise ConfigError(
                f"the chat format of {getattr(tokenizer, 'name_or_path', '')!r} does not show the user's words as "
                "they are; write the template by hand"
            )
        return f"{before}{PLACEHOLDER}"

    def forget_prefixes(self) -> None:
        """Drop the cached states of prefixes; call it after weights or device change."""
        self._prefixes.clear()

    def prefix_states(self, prefix_ids: tuple[int, ...]) -> PrefixStates:
        """Return the states of a constant prefix, computed on first use and cached."""
        if prefix_ids not in self._prefixes:
            if len(self._prefixes) >= _MAX_REMEMBERED_PREFIXES:
                del self._prefixes[next(iter(self._prefixes))]
            self._prefixes[prefix_ids] = run_prefix(self, prefix_ids)
        return self._prefixes[prefix_ids]
