"""Attention maps: where in the picture the denoiser attends to each word, in both branches of every attached layer."""

import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from llmdiff.adapter.attach import control_of
from llmdiff.adapter.cross import LayerTexts, TwoBranchAttention
from llmdiff.adapter.families import denoiser_of
from llmdiff.adapter.installation import installation_on
from llmdiff.adapter.layers import heads_of
from llmdiff.adapter.limits import check_steps
from llmdiff.adapter.settings import Control, as_control
from llmdiff.adapter.texts import plain_text
from llmdiff.controller import LLMController
from llmdiff.drawing.any_pipeline import pictures
from llmdiff.drawing.attention_sums import AttentionSums, attention_shares
from llmdiff.errors import ConfigError, PromptError, UnsupportedPipelineError
from llmdiff.language.rewording import readings
from llmdiff.language.saved_encodings import SavedEncodings

Branch = Literal["both", "pretrained", "new"]
_WORD_STARTS = ("\u0120", "\u2581", " ")  # byte-level BPE, SentencePiece, plain


@dataclass(frozen=True, kw_only=True)
class Word:
    """A word of the prompt and its tokens, `start` to `end` (not included) in the encoded prompt."""

    text: str
    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class WordMaps:
    """A picture with its attention maps, one for every denoising step and word.

    A map holds shares of attention: softmax weights averaged over heads and layers, summed over a word's tokens.
    "both" weights each layer's two branches by the size of their gates.

    Shapes:
        pretrained, new, both: (steps, words, side, side).

    Source: Tang et al. 2023 (DAAM, arXiv 2210.04885), for the two branches of an LLMDiff adapter.
    """

    prompt: str
    picture: Image.Image
    words: tuple[Word, ...]
    pretrained: Tensor
    new: Tensor
    both: Tensor

    def summed(self, branch: Branch = "both") -> Tensor:
        """Return the mean over steps, (words, side, side)."""
        maps: Tensor = {"both": self.both, "pretrained": self.pretrained, "new": self.new}[branch]
        return maps.mean(0)

    def peak(self, text: str, branch: Branch = "both") -> tuple[float, float]:
        """Return the maximum of the word's map: (x, y), each as a share of the picture's side from 0 to 1.

        Raises:
            PromptError: the prompt has no such word.
        """
        index = next((i for i, word in enumerate(self.words) if word.text == text), None)
        if index is None:
            raise PromptError(
                f"word {text!r} is not in the prompt; words: {', '.join(w.text for w in self.words)}"
            )
        place = int(self.summed(branch)[index].argmax())
        row, column = divmod(place, self.both.shape[-1])
        return (column + 0.5) / self.both.shape[-1], (row + 0.5) / self.both.shape[-2]


@torch.no_grad()
def draw_with_maps(
    controller: LLMController,
    pipe: Any,
    prompt: str,
    control: Control | float | None = None,
    *,
    seed: int = 0,
    steps: int = 20,
    guidance_scale: float = 3.0,
    side: int = 32,
) -> WordMaps:
    """Attach the controller, draw one picture, detach, and return the picture with every word's maps.

    `control` is that of `attach`; at every scale the maps show the words as the LLM reads them.

    Raises:
        UnsupportedPipelineError: its denoiser has no cross-attention (Stable Diffusion 3, Flux).
        ConfigError: attention slicing is on, which hides the attention, the scale is 0, or the scheduler has
            fewer steps.
        PromptError: the prompt has no words.
    """
    check_steps(pipe, steps)
    control = as_control(control, {})
    if (controller.scale if control.scale is None else control.scale) == 0:
        raise ConfigError(
            "scale is 0: the base alone draws, without attention to the LLM's words; choose a scale above 0"
        )
    with controller.attached(pipe, control), watching_words(controller, pipe, prompt) as watch:
        picture = draw_watched(
            pipe, prompt, watch.next_step, seed=seed, steps=steps, guidance_scale=guidance_scale
        )
    return watch.maps(picture, side=side)


def draw_watched(
    pipe: Any,
    prompt: str,
    next_step: Callable[[], None],
    *,
    seed: int,
    steps: int,
    guidance_scale: float,
) -> Image.Image:
    """Draw one picture with a pipeline as it is, and call `next_step` after every denoising step."""

    def after_step(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        next_step()
        return tensors

    (picture,) = pictures(
        pipe,
        [prompt],
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        generator=torch.Generator().manual_seed(seed),
        callback_on_step_end=after_step,
    )
    return picture


class WordWatch:
    """Attention maps of one picture while it is drawn; call `next_step` after every denoising step."""

    def __init__(self, prompt: str, words: tuple[Word, ...], watcher: AttentionSums) -> None:
        self._prompt, self._words, self._watcher = prompt, words, watcher
        self.next_step = watcher.next_step

    def maps(self, picture: Image.Image, *, side: int = 32) -> WordMaps:
        """Return the maps of the picture that was drawn."""
        maps = self._watcher.maps(picture.height / picture.width, side)
        merged = torch.stack([maps[:, :, word.start : word.end].sum(2) for word in self._words], dim=2)
        return WordMaps(
            prompt=self._prompt,
            picture=picture,
            words=self._words,
            pretrained=merged[0],
            new=merged[1],
            both=merged[2],
        )


@contextmanager
def watching_words(controller: LLMController, pipe: Any, prompt: str) -> Iterator[WordWatch]:
    """Return a context that records the maps while the attached pipeline draws one picture; the picture is unchanged.

    If a closed LLM's answer is encoded in place of the prompt, the words are those of the answer.

    Raises:
        LLMDiffError: see `draw_with_maps`.
    """
    llm, context = controller.llm, controller.adapter.context
    limits: dict[str, Any]
    if isinstance(llm, SavedEncodings):
        raise PromptError(
            "the words of a prompt are found by the LLM's tokenizer, and no LLM is loaded: load it in place of saved "
            "encodings"
        )
    limits = {} if context is None else {"template": context.template, "max_length": context.max_length}
    control = control_of(pipe)
    plain = plain_text(prompt, weighted=control.weighted)
    text = readings(prompt, plain, control.rewording)[0][0]
    tokens = llm.tokenize([text], weighted=control.weighted, **limits)
    text = plain_text(text, weighted=control.weighted)
    words = words_of(llm.tokenizer, tokens.input_ids[0][tokens.token_mask[0]].tolist(), text)
    if not words:
        raise PromptError(f"prompt is {prompt!r}, expected at least one word to look for")
    with watching_layers(pipe, int(tokens.token_mask.sum())) as watcher:
        yield WordWatch(prompt, words, watcher)


def words_of(tokenizer: Any, ids: Sequence[int], prompt: str) -> tuple[Word, ...]:
    """Return the words of an encoded prompt: sub-word tokens joined, without BOS, punctuation and the template."""
    pieces = tokenizer.convert_ids_to_tokens(list(ids))
    words: list[Word] = []
    start = 1  # BOS
    for place in range(1, len(pieces) + 1):
        ends = place == len(pieces) or pieces[place].startswith(_WORD_STARTS) or _is_mark(pieces[place])
        ends = ends or _is_mark(pieces[place - 1])
        # A word-level tokenizer marks no word starts; its words are separated by spaces.
        ends = ends or " " in tokenizer.convert_tokens_to_string(pieces[start : place + 1]).strip()
        if not ends:
            continue
        text = tokenizer.convert_tokens_to_string(pieces[start:place]).strip()
        if place > start and text in prompt and not _is_mark(text):
            words.append(Word(text=text, start=start, end=place))
        start = place
    return tuple(words)


def _is_mark(piece: str) -> bool:
    letters = piece.strip("".join(_WORD_STARTS))
    return all(unicodedata.category(letter)[0] in "PZC" for letter in letters)


class _Watcher(AttentionSums):
    """Sums the attention of attached layers: pretrained, new, both; of the conditional half of the batch only."""

    def __init__(self, token_count: int) -> None:
        super().__init__(kinds=3, token_count=token_count)

    def __call__(self, layer: TwoBranchAttention, hidden_states: Tensor, texts: LayerTexts) -> None:
        attn, branch = layer.attn, layer.branch
        if layer.delegates or branch is None or texts.llm_states is None:
            raise ConfigError(
                f"the attention of a layer is computed by {type(attn.processor).__name__}, which hides it: "
                "turn attention slicing and the like off"
            )
        image = hidden_states[-1:]  # one prompt, one picture: the last row is the conditional one
        pretrained = attention_shares(
            heads_of(attn.to_q(image), attn.heads, attn.norm_q), texts.projected, attn.scale
        )
        new = attention_shares(
            heads_of(branch.to_q(image), branch.heads, attn.norm_q), texts.llm_states, None
        )
        first, second = (gate.abs().float() for gate in branch.gates())
        both = (first * pretrained + second * new) / (first + second).clamp(min=1e-9)
        self.add(torch.stack([pretrained, new, both]))


@contextmanager
def watching_layers(pipe: Any, token_count: int) -> Iterator[AttentionSums]:
    """Return a context that records the attention of the attached layers: pretrained, new, both.

    Raises:
        UnsupportedPipelineError: the denoiser has no attached cross-attention.
    """
    installation = installation_on(denoiser_of(pipe))
    layers = [] if installation is None else list(installation.layers.values())
    watched = [layer for layer in layers if isinstance(layer, TwoBranchAttention)]
    if not watched:
        raise UnsupportedPipelineError(
            f"{type(pipe).__name__} has no cross-attention to watch; expected Stable Diffusion 1, 2, XL, PixArt or Sana"
        )
    watcher = _Watcher(token_count)
    for layer in watched:
        layer.watch = watcher
    try:
        yield watcher
    finally:
        for layer in watched:
            layer.watch = None
