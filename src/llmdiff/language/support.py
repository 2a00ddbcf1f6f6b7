"""Check that a model is a decoder-only LLM, and find its decoder blocks."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
)

from llmdiff.errors import LLMDiffError, UnsupportedLLMError, first_line

EXPECTED = "expected a decoder-only LLM with causal blocks, each callable on a token alone"


def check_supported(config: Any, *, id: str) -> None:
    """Raise an UnsupportedLLMError if the configuration is that of an encoder or encoder-decoder model."""
    kind = getattr(config, "model_type", type(config).__name__)
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedLLMError(f"{id} is an encoder-decoder model ({kind}); expected a decoder-only LLM")
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        raise UnsupportedLLMError(
            f"{id} is an encoder-only model ({kind}): its tokens see what follows them; expected a decoder-only LLM "
            "(a decoder of this kind says so with is_decoder in its config.json)"
        )


def model_kind(config: Any) -> Any:
    """Return the transformers auto class for a configuration: for causal LMs, else for multimodal models."""
    texts = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or type(config) not in MODEL_FOR_MULTIMODAL_LM_MAPPING
    return AutoModelForCausalLM if texts else AutoModelForMultimodalLM


@contextmanager
def whatever_fails_is_unsupported(model: Any, *, id: str) -> Iterator[None]:
    """Turn errors inside the `with`, but not lack of memory, into an UnsupportedLLMError that names the model."""
    try:
        yield
    except (LLMDiffError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        raise UnsupportedLLMError(
            f"{id} ({type(model).__name__}) cannot be read block by block ({type(error).__name__}: "
            f"{first_line(error)}); {EXPECTED}"
        ) from error


def decoder_blocks(model: Any, *, id: str) -> nn.ModuleList:
    """Return the decoder blocks: the module list with the most parameters in the model that has the token embeddings.

    Lists of `num_hidden_layers` modules are preferred.

    Raises:
        UnsupportedLLMError: the model has no such list or no token embeddings.
    """
    embeddings = model.get_input_embeddings()
    if not isinstance(getattr(embeddings, "weight", None), torch.Tensor):
        raise UnsupportedLLMError(
            f"{id} ({type(model).__name__}) has no embeddings of text tokens; {EXPECTED}"
        )
    # An image or audio tower may have the same number of layers.
    beside = [
        part
        for part in model.modules()
        if isinstance(part, nn.ModuleList) and embeddings in set(_innermost_model(model, part).modules())
    ]
    count = getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", None)
    lists = [blocks for blocks in beside if len(blocks) == count] or beside
    if not lists:
        raise UnsupportedLLMError(f"{id} ({type(model).__name__}) has no list of decoder blocks; {EXPECTED}")
    return max(lists, key=lambda blocks: sum(p.numel() for p in blocks.parameters()))


def text_model(model: Any, blocks: nn.ModuleList) -> Any:
    """Return the part of a model without head that runs the blocks on text."""
    base = model.base_model
    # A few classes define no base model; `base_model` is then the model with its head.
    return (
        base
        if base is not model or model.get_output_embeddings() is None
        else _innermost_model(model, blocks)
    )


def max_positions(config: Any) -> int | None:
    """Return the largest number of tokens that all blocks attend to fully; None if there is no limit."""
    # With more than index_topk keys, sparse attention may drop the token itself.
    names = ("max_position_embeddings", "max_seq_len", "index_topk")
    found = [getattr(config, name, None) for name in names]
    return min((limit for limit in found if limit), default=None)


def _innermost_model(model: nn.Module, blocks: nn.ModuleList) -> nn.Module:
    """Return the innermost transformers model that contains the blocks."""
    holding = [
        part for part in model.modules() if isinstance(part, PreTrainedModel) and blocks in part.modules()
    ]
    return holding[-1]
