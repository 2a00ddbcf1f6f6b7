"""Where the denoiser attends to the nouns of a prompt, for systems of a benchmark with different text states."""

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers.models.attention_processor import Attention
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from llmdiff.adapter.families import denoiser_of
from llmdiff.adapter.layers import heads_of, text_keys_values
from llmdiff.adapter.processors import KeysValues
from llmdiff.drawing.attention_maps import Word, draw_watched, watching_layers, words_of
from llmdiff.drawing.attention_sums import AttentionSums, attention_shares
from llmdiff.errors import ConfigError
from llmdiff.evaluation.suites.scenes import ScenePrompt
from llmdiff.training.conditioning import Conditioning
from llmdiff.world.checker import WorldChecker
from llmdiff.world.reading import Reading
from llmdiff_lab.rivals.connector import ConnectorConditioning
from llmdiff_lab.rivals.lavi_bridge import LaviBridgeConnector
from llmdiff_lab.rivals.two_branch import AdapterConditioning

FIGURES = {
    "words": "attention to the prompt's words, %",
    "own": "attention to a noun at its own thing",
    "other": "at the other thing",
    "overlap": "overlap of two nouns",
    "order": "order of two nouns, %",
}
"""What `noun_figures` returns, with the heads of a table's columns."""
_SIDE = 16  # of a map; the largest feature map with cross-attention in the shipped base
_AXES = {"left": (0, -1), "right": (0, 1), "above": (1, -1), "below": (1, 1)}


@dataclass(frozen=True, kw_only=True)
class NounMaps:
    """One picture with the maps of its prompt's words. Shapes: maps of each kind (words, side, side)."""

    row: ScenePrompt
    picture: Image.Image
    words: tuple[Word, ...]
    maps: dict[str, Tensor]

    def noun(self, name: str) -> int | None:
        """Return the index of a thing's noun among the words; None if it does not occur exactly once."""
        last = name.split()[-1]
        found = [index for index, word in enumerate(self.words) if word.text.lower() == last]
        return found[0] if len(found) == 1 else None


def two_nouns(rows: Sequence[ScenePrompt]) -> list[ScenePrompt]:
    """Return the prompts with two single things, one beside or above the other, each named by one word."""
    return [
        row
        for row in rows
        if row.expected.relation in _AXES
        and [thing.count for thing in row.expected.things] == [1, 1]
        and all(_occurrences(thing.name, row.prompt) == 1 for thing in row.expected.things)
    ]


def _occurrences(name: str, prompt: str) -> int:
    return re.findall(r"\w+", prompt.lower()).count(name.split()[-1])


@torch.no_grad()
def draw_noun_maps(
    pipe: Any,
    conditioning: Conditioning | None,
    row: ScenePrompt,
    *,
    steps: int,
    guidance_scale: float,
) -> NounMaps:
    """Draw one picture with a system that is attached (None: the base) and return its maps, means over steps.

    The kinds are "both", "pretrained" and "new" for ours, and "its own" for a denoiser's own cross-attention.

    Raises:
        ConfigError: it is unknown which of the system's text states belong to which word.
    """
    count, words = _words(pipe, conditioning, row.prompt)
    watching = watching_layers if isinstance(conditioning, AdapterConditioning) else _watching_own
    with watching(pipe, count) as sums:
        picture = draw_watched(
            pipe,
            row.prompt,
            sums.next_step,
            seed=row.seeds(1, 0)[0],
            steps=steps,
            guidance_scale=guidance_scale,
        )
    means = sums.maps(1.0, _SIDE).mean(1)
    of_words = [means[:, word.start : word.end].sum(1) for word in words]
    merged = torch.stack(of_words, dim=1) if words else means[:, :0]
    kinds = ("pretrained", "new", "both") if len(merged) == 3 else ("its own",)
    return NounMaps(row=row, picture=picture, words=words, maps=dict(zip(kinds, merged, strict=True)))


def noun_figures(found: NounMaps, kind: str, seen: Reading) -> dict[str, float]:
    """Return the figures of one picture's maps of a kind; NaN where they cannot be measured.

    Fields:
        words: share of attention that all words of the prompt get; the rest is that of BOS, padding and marks.
        own: mean attention to a noun inside the square of its thing, divided by that in the whole picture, mean over
            two nouns; `other`: the same inside the other noun's thing. NaN unless each is seen exactly once.
        overlap: of the two nouns' maps, each with sum 1: sum of the smaller values; 1 for equal maps.
        order: 1 if the centres of mass of the nouns' maps are as the prompt requests, else 0.
    """
    maps = found.maps[kind].double().numpy()
    figures = {"words": float(maps.sum(0).mean())} | dict.fromkeys(
        ("own", "other", "overlap", "order"), np.nan
    )
    things = found.row.expected.things
    places = [found.noun(thing.name) for thing in things]
    if any(place is None for place in places):
        return figures
    nouns = [maps[place] / maps[place].sum() for place in places if place is not None]
    figures["overlap"] = float(np.minimum(*nouns).sum())
    axis, sign = _AXES[str(found.row.expected.relation)]
    first, second = (_centre(noun)[axis] for noun in nouns)
    figures["order"] = float(sign * (first - second) > 0)
    squares = [_square(seen, thing.name) for thing in things]
    if all(square is not None for square in squares):
        inside = np.array([[noun[square].mean() / noun.mean() for square in squares] for noun in nouns])
        figures["own"], figures["other"] = (
            float(np.diag(inside).mean()),
            float(np.diag(inside[::-1]).mean()),
        )
    return figures


def read_noun_figures(
    checker: WorldChecker, found: Sequence[NounMaps], kind: str
) -> dict[str, NDArray[np.float64]]:
    """Return every figure of every picture. Shapes: (pictures,) each."""
    seen = checker.read(np.stack([np.asarray(one.picture) for one in found]))
    rows = [noun_figures(one, kind, reading) for one, reading in zip(found, seen, strict=True)]
    return {name: np.array([row[name] for row in rows]) for name in FIGURES}


def _words(pipe: Any, conditioning: Conditioning | None, prompt: str) -> tuple[int, tuple[Word, ...]]:
    """Return the number of the prompt's text states, without padding, and its words with their places in them."""
    if conditioning is None:
        pieces = pipe.tokenizer.convert_ids_to_tokens(pipe.tokenizer(prompt, truncation=True).input_ids)
        return len(pieces), _clip_words(pieces)
    if isinstance(conditioning, AdapterConditioning) and conditioning.adapter.context is not None:
        llm, template = conditioning.source, conditioning.adapter.context.template
    elif isinstance(conditioning, ConnectorConditioning) and isinstance(
        conditioning.connector, LaviBridgeConnector
    ):
        source = conditioning.connector.source
        llm, template = source.llm, source.template
    else:
        raise ConfigError(
            f"system of {conditioning.source_id!r}: maps of words are known for the base, for LaVi-Bridge's MLP and "
            "for ours; leave the others out"
        )
    tokens = llm.tokenize([prompt], template=template)
    ids = tokens.input_ids[0][tokens.token_mask[0]].tolist()
    return len(ids), words_of(llm.tokenizer, ids, prompt)


def _clip_words(pieces: Sequence[str]) -> tuple[Word, ...]:
    """Return the words of CLIP's tokens, whose last piece ends with </w>, without BOS, EOS and punctuation."""
    words: list[Word] = []
    start = 1
    for place in range(1, len(pieces) - 1):
        if not pieces[place].endswith("</w>"):
            continue
        text = "".join(pieces[start : place + 1]).replace("</w>", "")
        if any(letter.isalnum() for letter in text):
            words.append(Word(text=text, start=start, end=place + 1))
        start = place + 1
    return tuple(words)


@contextmanager
def _watching_own(pipe: Any, token_count: int) -> Iterator[AttentionSums]:
    """Return a context that records a U-Net's own cross-attention, of the conditional half of the batch."""
    sums = AttentionSums(kinds=1, token_count=token_count)
    with ExitStack() as stack:
        for layer in denoiser_of(pipe).modules():
            if isinstance(layer, Attention) and layer.is_cross_attention:
                hook = layer.register_forward_pre_hook(partial(_add_own, sums), with_kwargs=True)
                stack.callback(hook.remove)
        yield sums


def _add_own(sums: AttentionSums, attn: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    layer: Any = attn
    image, states, mask = args[0][-1:], kwargs["encoder_hidden_states"][-1:], kwargs.get("attention_mask")
    text = KeysValues(*text_keys_values(layer, states), None if mask is None else mask[-1:])
    query = heads_of(layer.to_q(image), layer.heads, layer.norm_q)
    sums.add(attention_shares(query, text, layer.scale)[None])


def _centre(shares: NDArray[np.float64]) -> tuple[float, float]:
    """Return the centre of mass (x, y), in pixels of the map. Shapes: (side, side) with sum 1."""
    rows, columns = np.indices(shares.shape)
    return float((shares * columns).sum()), float((shares * rows).sum())


def _square(seen: Reading, name: str) -> NDArray[np.bool_] | None:
    """Return the places of a map inside a thing's square; None unless it is seen exactly once."""
    things = [thing for thing in seen.things if thing.name == name]
    if len(things) != 1:
        return None
    rows, columns = (np.indices((_SIDE, _SIDE)) + 0.5) / _SIDE
    reach = max(things[0].side / 2, 0.5 / _SIDE)
    inside: NDArray[np.bool_] = (abs(columns - things[0].x) <= reach) & (abs(rows - things[0].y) <= reach)
    return inside
