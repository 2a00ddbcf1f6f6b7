"""The kinds of model that are refused as LLMs, one row each: the tests and a table of the docs are made from it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class RefusedKind:
    """One kind of model that is refused: why, a part (regular expression) of the message, a tiny config."""

    name: str
    title: str
    reason: str
    config_class: str
    message: str
    config: Mapping[str, Any] = field(default_factory=dict)


_SMALL: Mapping[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}

REFUSED: tuple[RefusedKind, ...] = (
    RefusedKind(
        name="bert",
        title="BERT, unless it is a decoder (`is_decoder`)",
        reason="encoder-only: its tokens see what follows them",
        config_class="BertConfig",
        message=r"encoder-only model \(bert\)",
        config=_SMALL,
    ),
    RefusedKind(
        name="roberta",
        title="RoBERTa, unless it is a decoder",
        reason="encoder-only: its tokens see what follows them",
        config_class="RobertaConfig",
        message=r"encoder-only model \(roberta\)",
        config=_SMALL,
    ),
    RefusedKind(
        name="t5",
        title="T5",
        reason="encoder-decoder: the prompt goes through the encoder",
        config_class="T5Config",
        message=r"encoder-decoder model \(t5\)",
        config={"vocab_size": 64, "d_model": 32, "d_ff": 64, "num_layers": 2, "num_heads": 4, "d_kv": 8},
    ),
    RefusedKind(
        name="bart",
        title="BART",
        reason="encoder-decoder: the prompt goes through the encoder",
        config_class="BartConfig",
        message=r"encoder-decoder model \(bart\)",
        config={"vocab_size": 64, "d_model": 32},
    ),
    RefusedKind(
        name="clip",
        title="CLIP",
        reason="no language model",
        config_class="CLIPConfig",
        message="cannot load it as a causal language model",
    ),
)
