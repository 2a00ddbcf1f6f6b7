"""Measure how the states of a transformer approach the final states, block by block.

It uses only hidden states, so it works for decoder-only LLMs, encoder-only models and the encoders of encoder-decoder
models.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from llmdiff.errors import ConfigError, PromptError
from llmdiff.evaluation.statistics import Interval, bootstrap_mean
from llmdiff.language.control_tokens import plain_options
from llmdiff.language.packaged import PACKAGED, packaged_llm_folder
from llmdiff_lab.rivals.encoder import MINILM_NAME, load_transformer, minilm_folder

Kind = Literal["decoder-only", "encoder-only", "encoder-decoder"]
_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class BlockReading:
    """Properties of a model's states before block `depth`; the last depth is after the last block.

    Means over the tokens of held-out texts, without first tokens (BOS, attention sinks), with 95 % intervals.

    Fields:
        distance: |x_l - x_L| / |x_L|; it decreases steadily to 0 if blocks are steps to a target.
        cosine: cosine of x_l and x_L.
        final_r2: share of x_L's variance that a linear reader (ridge regression) predicts from x_l.
        next_token: accuracy of a linear reader for the next token, among the tokens that occur in the texts.
        own_token: the same for the token itself.
    """

    depth: int
    distance: Interval
    cosine: Interval
    final_r2: float
    next_token: Interval
    own_token: Interval


@dataclass(frozen=True, kw_only=True)
class DenoisingReport:
    """The result of `read_denoising` for one model.

    Fields:
        monotone: share of tokens, 0..1, whose distance to the final state decreases in every block.
        steps_back: number of blocks that increase the distance, mean over tokens.
    """

    model: str
    kind: Kind
    texts: int
    tokens: int
    vocabulary: int
    blocks: tuple[BlockReading, ...]
    monotone: float
    steps_back: float

    def to_json(self) -> dict[str, Any]:
        """Return the report as a JSON object."""
        return asdict(self)


def load_encoder(name_or_path: str) -> tuple[Any, Any, Kind]:
    """Return a model with hidden states, its tokenizer and its kind; for an encoder-decoder model, the encoder.

    Raises:
        LLMNotFoundError: the name is neither a folder nor an available Hub id.
        CorruptWeightsError: a weight is missing, unread or of another shape.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    model, tokenizer = load_transformer(
        _folder_of(name_or_path), what=f"model {name_or_path!r}", name=name_or_path
    )
    model, config = model.eval(), model.config
    if getattr(config, "is_encoder_decoder", False):
        return model.get_encoder(), tokenizer, "encoder-decoder"
    kind: Kind = "encoder-only" if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES else "decoder-only"
    return model, tokenizer, kind


def _folder_of(name_or_path: str) -> str:
    """Return the folder of a packaged model, and other names unchanged."""
    if name_or_path == MINILM_NAME:
        return minilm_folder()
    return str(packaged_llm_folder(name_or_path)) if name_or_path in PACKAGED else name_or_path


@torch.no_grad()
def read_denoising(
    model: Any, tokenizer: Any, texts: Sequence[str], *, name: str, kind: Kind, ridge: float = 1e-3
) -> DenoisingReport:
    """Return the report of a model on these texts; half of them train the linear readers, the other half tests them.

    `ridge`: the readers' penalty as a share of the mean variance of a channel.

    Raises:
        PromptError: there are fewer than 20 texts, or texts have one token.

    Source: Dong et al. 2024 (arXiv 2502.04412), blocks as denoising steps; Alain and Bengio 2016 (arXiv 1610.01644),
        linear readers.
    """
    if len(texts) < 20:
        raise PromptError(f"texts: got {len(texts)}, expected at least 20: half of them train the readers")
    half = len(texts) // 2
    train, test = _states(model, tokenizer, texts[:half]), _states(model, tokenizer, texts[half:])
    vocabulary = torch.unique(torch.cat([train.ids, train.next_ids, test.ids, test.next_ids]))
    blocks: list[BlockReading] = []
    distances: list[Tensor] = []
    final, train_final = test.layers[-1], train.layers[-1]
    has_next, train_has_next = test.next_ids >= 0, train.next_ids >= 0
    for depth, (x, train_x) in enumerate(zip(test.layers, train.layers, strict=True)):
        distances.append((x - final).norm(dim=-1) / final.norm(dim=-1).clamp(min=1e-9))
        reader = _Reader(train_x, ridge)
        guess = reader.predict(x, train_final)
        residual = (guess - final).square().sum() / (final - train_final.mean(0)).square().sum()
        own = reader.predict(x, _one_hot(train.ids, vocabulary)).argmax(1)
        next_one_hot = _one_hot(train.next_ids, vocabulary)
        following = reader.predict(x[has_next], next_one_hot, train_has_next).argmax(1)
        blocks.append(
            BlockReading(
                depth=depth,
                distance=bootstrap_mean(distances[-1].numpy(), resamples=1000),
                cosine=bootstrap_mean(F.cosine_similarity(x, final, dim=-1).numpy(), resamples=1000),
                final_r2=1 - float(residual),
                next_token=_right(vocabulary[following], test.next_ids[has_next]),
                own_token=_right(vocabulary[own], test.ids),
            )
        )
    falling = torch.stack(distances).diff(dim=0) < 0
    return DenoisingReport(
        model=name,
        kind=kind,
        texts=len(texts),
        tokens=len(test.ids),
        vocabulary=len(vocabulary),
        blocks=tuple(blocks),
        monotone=float(falling.all(0).float().mean()),
        steps_back=float((~falling).float().sum(0).mean()),
    )


@dataclass(frozen=True)
class _States:
    """States of all tokens. Shapes: layers L + 1 times (N, D); ids (N,); next_ids (N,), -1 at the end of a text."""

    layers: list[Tensor]
    ids: Tensor
    next_ids: Tensor


class _Reader:
    """Ridge regression on standardised states, for any number of targets: W = (X'X + r I)^-1 X'Y."""

    def __init__(self, x: Tensor, ridge: float) -> None:
        # Give every channel unit variance, since the penalty would act mostly on massive channels.
        self._mean, self._scale = x.mean(0), x.std(0).clamp(min=1e-6)
        self._x, self._ridge = self._standardised(x), ridge

    def predict(self, new: Tensor, y: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return the predictions for new states of a reader that is fitted on y, or on some rows."""
        x, y = (self._x, y) if rows is None else (self._x[rows], y[rows])
        gram = x.T @ x + self._ridge * len(x) * torch.eye(x.shape[1])
        weight: Tensor = torch.linalg.solve(gram, x.T @ (y - y.mean(0)))
        return self._standardised(new) @ weight + y.mean(0)

    def _standardised(self, x: Tensor) -> Tensor:
        return (x - self._mean) / self._scale


def _states(model: Any, tokenizer: Any, texts: Sequence[str]) -> _States:
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    layers: list[list[Tensor]] = []
    ids: list[Tensor] = []
    next_ids: list[Tensor] = []
    ordered = sorted(texts, key=len)
    for start in range(0, len(ordered), _BATCH):
        some = ordered[start : start + _BATCH]
        plain = plain_options(tokenizer, some)
        batch = tokenizer(some, padding=True, padding_side="right", return_tensors="pt", **plain)
        mask = batch["attention_mask"].bool()
        output = model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True
        )
        # The next token is -1 at the end of a text; first tokens are left out.
        following = F.pad(batch["input_ids"].masked_fill(~mask, -1)[:, 1:], (0, 1), value=-1)
        real = mask.clone()
        real[:, 0] = False
        if not real.any():
            raise PromptError("texts: got texts of one token each, expected sentences")
        layers.append([state[real].float() for state in output.hidden_states])
        ids.append(batch["input_ids"][real])
        next_ids.append(following[real])
    if len({len(row) for row in layers}) != 1:
        raise ConfigError("the model has a different number of hidden states for every batch")
    return _States(
        [torch.cat([row[depth] for row in layers]) for depth in range(len(layers[0]))],
        torch.cat(ids),
        torch.cat(next_ids),
    )


def _one_hot(ids: Tensor, vocabulary: Tensor) -> Tensor:
    return (ids[:, None] == vocabulary[None]).float()


def _right(guessed: Tensor, true: Tensor) -> Interval:
    return bootstrap_mean((guessed == true).double().numpy(), resamples=1000)
