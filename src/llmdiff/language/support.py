"""Which models are decoder-only LLMs whose blocks can be called on a lone token."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from llmdiff.errors import LLMDiffError, UnsupportedLLMError, first_line

EXPECTED = "expected a decoder-only LLM with causal attention in every block, each callable on a token alone"
_ALIBI_TYPES = ("bloom", "mpt")


def check_supported(config: Any, *, id: str) -> None:
    """Returns None for the configuration of a decoder-only LLM without ALiBi or recurrence.

    Raises:
        UnsupportedLLMError: anything else, by name.
    """
    kind = getattr(config, "model_type", type(config).__name__)
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedLLMError(f"{id} is an encoder-decoder model ({kind}); expected a decoder-only LLM")
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        raise UnsupportedLLMError(f"{id} is an encoder-only model ({kind}); expected a decoder-only LLM")
    # Known from the class alone, so that nothing large is loaded in vain; models with code of their own are
    # asked once they are there.
    check_stateless(MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None), id=id)
    text = config.get_text_config(decoder=True)
    if (
        kind in _ALIBI_TYPES
        or getattr(text, "alibi", False)
        or getattr(text, "position_embedding_type", "") == "alibi"
    ):
        raise UnsupportedLLMError(
            f"{id} ({kind}) uses ALiBi positions, which a call on a lone token cannot reproduce; "
            "expected rotary or learned positions"
        )
    if getattr(text, "num_kv_shared_layers", 0):
        raise UnsupportedLLMError(
            f"{id} ({kind}) shares keys and values between blocks; "
            "expected blocks that can be called on their own"
        )


def check_stateless(model_class: Any, *, id: str) -> None:
    """Returns None for a class of models without a recurrent state.

    Raises:
        UnsupportedLLMError: it has one.
    """
    if getattr(model_class, "_is_stateful", False):
        raise UnsupportedLLMError(
            f"{id} ({model_class.__name__}) carries a recurrent state from token to token; expected a "
            "decoder-only LLM with attention in every block"
        )


@contextmanager
def whatever_fails_is_unsupported(model: Any, *, id: str) -> Iterator[None]:
    """Names the model in any error of its own class, which trips in its own way over what it does not know.

    Raises:
        UnsupportedLLMError: something failed that is no error of ours and no lack of memory.
    """
    try:
        yield
    except (LLMDiffError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        raise UnsupportedLLMError(
            f"{id} ({type(model).__name__}) cannot be read block by block ({type(error).__name__}: "
            f"{first_line(error)}); {EXPECTED}"
        ) from error


def decoder_blocks(model: nn.Module, *, id: str) -> nn.ModuleList:
    """Returns the model's decoder blocks: the largest list of `num_hidden_layers` modules of one class.

    Raises:
        UnsupportedLLMError: there is no such list, or no base model that runs the blocks without the head.
    """
    whole: Any = model
    if whole.base_model is whole and whole.get_output_embeddings() is not None:
        raise UnsupportedLLMError(
            f"{id} ({type(model).__name__}) has no base model apart from the one with the head; {EXPECTED}"
        )
    config: Any = model.config
    count = config.get_text_config(decoder=True).num_hidden_layers
    lists = [
        module
        for module in model.modules()
        if isinstance(module, nn.ModuleList)
        and len(module) == count
        and len({type(block) for block in module}) == 1
    ]
    if not lists:
        raise UnsupportedLLMError(
            f"{id} ({type(model).__name__}) has no list of {count} decoder blocks of one class; expected a "
            "decoder-only LLM"
        )
    return max(lists, key=lambda blocks: sum(p.numel() for p in blocks.parameters()))
