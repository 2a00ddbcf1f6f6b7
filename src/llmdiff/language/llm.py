"""Loads a decoder-only LLM and turns prompts into its states."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from llmdiff.errors import CorruptWeightsError, LLMNotFoundError, UnsupportedLLMError
from llmdiff.language.blocks import Lone, run_blocks, run_prefix
from llmdiff.language.gguf import EMBEDDED_NAME, embedded_llm_folder, gguf_llm_folder
from llmdiff.language.prefix import PrefixStates
from llmdiff.language.support import check_supported, decoder_blocks
from llmdiff.language.tokens import PromptTokens, first_token_id, tokenize
from llmdiff.types import BlockStates, TextEncoding

_MAX_REMEMBERED_PREFIXES = 8


class DecoderLLM:
    """A frozen decoder-only LLM with its tokenizer.

    `model` is a transformers causal language model, `id` what `from_pretrained` takes to load it again,
    `blocks` its decoder blocks. The language-model head is never run.
    """

    def __init__(self, model: Any, tokenizer: Any, *, id: str) -> None:
        """Wraps a loaded model; freezes it.

        Raises:
            UnsupportedLLMError: not decoder-only, or its blocks cannot be called on a lone token.
        """
        check_supported(model.config, id=id)
        if getattr(model, "_is_stateful", False):
            raise UnsupportedLLMError(
                f"{id} ({type(model).__name__}) carries a recurrent state from token to token; expected a "
                "decoder-only LLM with attention in every block"
            )
        first_token_id(tokenizer)
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.id = id
        self.blocks = decoder_blocks(model, id=id)
        self.num_blocks = len(self.blocks)
        config = model.config.get_text_config(decoder=True)
        self.hidden_size = int(config.hidden_size)
        self.max_positions: int | None = getattr(config, "max_position_embeddings", None)
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
    ) -> "DecoderLLM":
        """Returns the LLM: `"smollm2-135m"`, a folder, a `.gguf` file, a Hub id or its `org/name/file.gguf`.

        GGUF files are converted once to safetensors under `$LLMDIFF_HOME` (default ~/.cache/llmdiff). Weights
        are read from safetensors only.

        Raises:
            LLMNotFoundError: no such folder, file or Hub model, or no network to get it.
            CorruptWeightsError: a weight file is truncated or damaged.
            UnsupportedLLMError: encoder-only, encoder-decoder, ALiBi or recurrent models.
        """
        name = os.fspath(name_or_path)
        llm_id = name if gguf_file is None else f"{name.rstrip('/')}/{gguf_file}"
        source = str(_local_source(llm_id, revision=revision))
        at_hub = {"revision": revision} if revision is not None and source == name else {}
        options: dict[str, Any] = {"trust_remote_code": trust_remote_code, **at_hub}
        if Path(source).is_dir():
            if not (Path(source) / "config.json").is_file():
                raise LLMNotFoundError(_not_found(llm_id, "no config.json"))
        elif source.count("/") > 1:
            raise LLMNotFoundError(_not_found(llm_id, "no such folder"))
        try:
            check_supported(AutoConfig.from_pretrained(source, **options), id=llm_id)
            tokenizer = AutoTokenizer.from_pretrained(source, **options)
            placed: dict[str, Any] = {} if quantization_config is None else {"device_map": {"": device}}
            model: Any = AutoModelForCausalLM.from_pretrained(
                source,
                dtype=dtype,
                use_safetensors=True,
                quantization_config=quantization_config,
                **placed,
                **options,
            )
        except SafetensorError as error:
            raise CorruptWeightsError(
                f"{llm_id}: a weight file is truncated or damaged ({error}); download or convert it again"
            ) from error
        except OSError as error:
            raise LLMNotFoundError(_not_found(llm_id, str(error).strip().splitlines()[0])) from error
        except UnsupportedLLMError:
            raise
        except ValueError as error:
            raise UnsupportedLLMError(
                f"{llm_id}: transformers cannot load it as a causal language model "
                f"({str(error).strip().splitlines()[0]}); expected a decoder-only LLM"
            ) from error
        if quantization_config is None:
            model = model.to(device)
        return cls(model, tokenizer, id=llm_id)

    @property
    def device(self) -> torch.device:
        """The device that token ids go to."""
        device: torch.device = self.model.get_input_embeddings().weight.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """The type the LLM computes in; encodings are float32 all the same."""
        dtype: torch.dtype = self.model.dtype
        return dtype

    def tokenize(
        self, prompts: str | Sequence[str], *, template: str | None = None, max_length: int = 512
    ) -> PromptTokens:
        """Returns the tokens of the prompts, BOS first, padded on the right; see `PromptTokens`.

        `template` holds `{prompt}` once or twice. What stands before the last `{prompt}` is context only: its
        tokens are seen by the prompt's and dropped. What stands after it is kept. Prompts longer than
        `max_length` tokens are cut with a warning.

        Raises:
            PromptError: no prompts, or one that is not a string. (An empty one is fine here: BOS alone.)
            ConfigError: a template without `{prompt}`, or `max_length` below 1.
        """
        return tokenize(
            self.tokenizer,
            prompts,
            template=template,
            max_length=max_length,
            max_positions=self.max_positions,
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

    def prefix_states(self, prefix_ids: tuple[int, ...]) -> PrefixStates:
        """Returns the states of a constant start of text, computed on first use and remembered."""
        if prefix_ids not in self._prefixes:
            if len(self._prefixes) >= _MAX_REMEMBERED_PREFIXES:
                del self._prefixes[next(iter(self._prefixes))]
            self._prefixes[prefix_ids] = run_prefix(self, prefix_ids)
        return self._prefixes[prefix_ids]


def _local_source(llm_id: str, *, revision: str | None) -> str | Path:
    """Returns the folder to load from, or the Hub id itself."""
    if llm_id == EMBEDDED_NAME:
        return embedded_llm_folder()
    if not llm_id.endswith(".gguf"):
        return llm_id
    path = Path(llm_id)
    if path.is_file():
        return gguf_llm_folder(path)
    repository, _, file = llm_id.rpartition("/")
    if repository.count("/") != 1 or Path(repository).is_dir():
        raise LLMNotFoundError(_not_found(llm_id, "no such file"))
    from huggingface_hub import hf_hub_download

    try:
        path = Path(hf_hub_download(repository, file, revision=revision))
    except OSError as error:
        raise LLMNotFoundError(_not_found(llm_id, str(error).strip().splitlines()[0])) from error
    return gguf_llm_folder(path)


def _not_found(llm_id: str, reason: str) -> str:
    reason = reason.rstrip(".")
    if Path(llm_id).is_dir():
        return (
            f"llm {llm_id!r} is a folder without a whole safetensors model ({reason}); pass one that has it"
        )
    offline = os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "TRUE", "YES")
    where = " (HF_HUB_OFFLINE is set)" if offline else ""
    parts = llm_id.split("/")
    if len(parts) == 3 and llm_id.endswith(".gguf"):
        get = f'get it once with network with "hf download {parts[0]}/{parts[1]} {parts[2]}"'
    elif len(parts) <= 2 and not llm_id.endswith(".gguf"):
        get = f'get it once with network with "hf download {llm_id}"'
    else:
        get = "check the path"
    return (
        f"llm {llm_id!r} was not found{where}: {reason}; {get}, or pass a folder, a .gguf file, a Hub id or "
        f'"{EMBEDDED_NAME}"'
    )
