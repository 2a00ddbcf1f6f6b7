"""Which models are decoder-only LLMs whose blocks can be called on a lone token."""

from typing import Any

from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from llmdiff.errors import UnsupportedLLMError

_ALIBI_TYPES = ("bloom", "mpt")


def check_supported(config: Any, *, id: str) -> None:
    """Returns None for the configuration of a decoder-only LLM without ALiBi.

    Raises:
        UnsupportedLLMError: anything else, by name.
    """
    kind = getattr(config, "model_type", type(config).__name__)
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedLLMError(f"{id} is an encoder-decoder model ({kind}); expected a decoder-only LLM")
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        raise UnsupportedLLMError(f"{id} is an encoder-only model ({kind}); expected a decoder-only LLM")
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


def decoder_blocks(model: nn.Module, *, id: str) -> nn.ModuleList:
    """Returns the model's decoder blocks: the largest list of `num_hidden_layers` modules of one class.

    Raises:
        UnsupportedLLMError: there is no such list.
    """
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
