"""The kinds of model that are refused as LLMs, one row each: the tests and a table of the docs are made from it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_ALIBI = "ALiBi: distances enter the attention from outside the block, so a lone token's call is not defined"


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
        name="bloom",
        title="Bloom",
        reason=_ALIBI,
        config_class="BloomConfig",
        message=r"\(bloom\) uses ALiBi",
        config={"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    ),
    RefusedKind(
        name="mpt",
        title="MPT",
        reason=_ALIBI,
        config_class="MptConfig",
        message=r"\(mpt\) uses ALiBi",
        config={"vocab_size": 64, "d_model": 32, "n_layers": 2, "n_heads": 4},
    ),
    RefusedKind(
        name="falcon_alibi",
        title="Falcon with ALiBi (RefinedWeb models)",
        reason=_ALIBI,
        config_class="FalconConfig",
        message=r"\(falcon\) uses ALiBi",
        config={
            "vocab_size": 64,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "alibi": True,
        },
    ),
    RefusedKind(
        name="mamba",
        title="Mamba and other recurrent models",
        reason="a state runs from token to token, so no token can be taken out of its context",
        config_class="MambaConfig",
        message=r"carries a recurrent state",
        config={"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2},
    ),
    RefusedKind(
        name="bert",
        title="BERT",
        reason="encoder-only: its tokens see what follows them",
        config_class="BertConfig",
        message=r"encoder-only model \(bert\)",
        config=_SMALL,
    ),
    RefusedKind(
        name="roberta",
        title="RoBERTa",
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
