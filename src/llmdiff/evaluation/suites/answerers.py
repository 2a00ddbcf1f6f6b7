"""Models that answer questions about pictures: BLIP, and chat models of transformers that read pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    BlipForQuestionAnswering,
)

from llmdiff.errors import MetricError
from llmdiff.evaluation.metrics.kinds import Pictures
from llmdiff.evaluation.metrics.models import load_model, load_part

_BATCH = 32
YES, _NO = (("yes", "Yes", " yes", " Yes"), ("no", "No", " no", " No"))
_ONE_WORD = "Answer in one word."


class Answerer(Protocol):
    """A model that answers yes-or-no questions about pictures.

    Fields:
        model_id: the model's folder or Hub id.
    """

    model_id: str

    def yes(self, pictures: Pictures, questions: Sequence[str]) -> NDArray[np.float64]:
        """Return P(yes) / (P(yes) + P(no)) for each picture and its question. Shapes: (N,)."""
        ...


@runtime_checkable
class WordAnswerer(Answerer, Protocol):
    """An answerer that also gives the probability of other answers."""

    def probability(
        self, pictures: Pictures, questions: Sequence[str], answers: Sequence[Sequence[str]]
    ) -> NDArray[np.float64]:
        """Return the probability that the answer begins with one of the question's words. Shapes: (N,)."""
        ...


@runtime_checkable
class TextReader(Protocol):
    """A model that reads the text in pictures.

    Fields:
        model_id: the model's folder or Hub id.
    """

    model_id: str

    def read(self, pictures: Pictures) -> list[str]:
        """Return the text in each picture."""
        ...


class _FirstToken:
    """Base of answerers that read the distribution of an answer's first token."""

    tokenizer: Any
    model_id: str

    def _distribution(self, pictures: Pictures, questions: Sequence[str]) -> NDArray[np.float64]:
        """Return the probability of every token of the vocabulary. Shapes: (N, vocabulary)."""
        raise NotImplementedError

    def yes(self, pictures: Pictures, questions: Sequence[str]) -> NDArray[np.float64]:
        """See `Answerer.yes`."""
        found = self._distribution(pictures, questions)
        yes, no = (found[:, self._first_tokens(words)].sum(1) for words in (YES, _NO))
        shares: NDArray[np.float64] = yes / (yes + no)
        return shares

    def probability(
        self, pictures: Pictures, questions: Sequence[str], answers: Sequence[Sequence[str]]
    ) -> NDArray[np.float64]:
        """See `WordAnswerer.probability`."""
        found = self._distribution(pictures, questions)
        return np.array(
            [row[self._first_tokens(words)].sum() for row, words in zip(found, answers, strict=True)]
        )

    def _first_tokens(self, words: Sequence[str]) -> list[int]:
        """Return the distinct first tokens of these words, without the blank token that some tokenizers prepend."""
        first = [self.tokenizer(word, add_special_tokens=False).input_ids[:1] for word in words]
        known = {id for ids in first for id in ids if id != self.tokenizer.unk_token_id}
        found = sorted(id for id in known if self.tokenizer.decode([id]).strip())
        if not found:
            raise MetricError(
                f"metric model {self.model_id!r}: its tokenizer has no words {', '.join(words)}"
            )
        return found

    def _check_yes_and_no(self) -> None:
        yes, no = (set(self._first_tokens(words)) for words in (YES, _NO))
        if yes & no:
            raise MetricError(
                f"metric model {self.model_id!r}: its tokenizer does not tell 'yes' from 'no' by their first token"
            )


class BlipAnswerer(_FirstToken):
    """BLIP's first answer word.

    Source: Li et al. 2022 (BLIP, arXiv 2201.12086), its model for visual question answering.
    """

    def __init__(self, model: Any, image_processor: Any, tokenizer: Any, *, id: str = "given") -> None:
        self.model, self.image_processor, self.tokenizer = model.eval(), image_processor, tokenizer
        self.model_id = id
        self._check_yes_and_no()

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, *, device: str = "cpu") -> Self:
        """Return the model of a folder or Hub id, for example Salesforce/blip-vqa-base.

        Raises:
            MetricError: the model is not available, or not a BLIP for question answering.
        """
        name = str(name_or_path)
        model = load_model(BlipForQuestionAnswering, name)
        processor = load_part(AutoImageProcessor, name, backend="pil")
        return cls(model.to(device), processor, load_part(AutoTokenizer, name), id=name)

    @torch.no_grad()
    def _distribution(self, pictures: Pictures, questions: Sequence[str]) -> NDArray[np.float64]:
        lengths = np.array([len(ids) for ids in self.tokenizer(list(questions)).input_ids], dtype=np.int64)
        found: list[NDArray[np.float64]] = [np.empty(0)] * len(questions)
        # Batch questions of equal length, so that answers do not depend on padding.
        for length in np.unique(lengths):
            (at,) = np.nonzero(lengths == length)
            for start in range(0, len(at), _BATCH):
                some = at[start : start + _BATCH]
                rows = self._batch(pictures[some], [questions[index] for index in some])
                for index, row in zip(some, rows, strict=True):
                    found[index] = row
        return np.stack(found)

    def _batch(self, pictures: Pictures, questions: Sequence[str]) -> NDArray[np.float64]:
        images = [Image.fromarray(picture) for picture in pictures]
        pixels = self.image_processor(images=images, return_tensors="pt").pixel_values
        texts = self.tokenizer(list(questions), truncation=True, max_length=64, return_tensors="pt")
        reply = self.model.generate(
            input_ids=texts.input_ids.to(self.model.device),
            attention_mask=texts.attention_mask.to(self.model.device),
            pixel_values=pixels.to(self.model.device),
            max_new_tokens=1,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        probabilities: NDArray[np.float64] = reply.logits[0].double().softmax(-1).cpu().numpy()
        return probabilities


class ChatAnswerer(_FirstToken):
    """The first token of a chat model's reply to a picture and a question, followed by "Answer in one word."

    Fields:
        read_prompt: how the model is asked for the text in a picture.
        read_tokens: the most tokens of that text.

    Source: Soft-TIFA of Kamath et al. 2025 (GenEval 2, arXiv 2512.16853), which asks Qwen3-VL-8B-Instruct this way.
    """

    read_prompt = (
        "Write down the text in this picture, and nothing else. Write each piece of text once. If there is no text, "
        "write nothing."
    )
    read_tokens = 1024

    def __init__(self, model: Any, processor: Any, *, id: str = "given") -> None:
        self.model, self.processor, self.model_id = model.eval(), processor, id
        self.tokenizer = processor.tokenizer
        self._check_yes_and_no()

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, *, device: str = "cpu") -> Self:
        """Return the model of a folder or Hub id, for example Qwen/Qwen3-VL-8B-Instruct, in its own precision.

        Raises:
            MetricError: the model is not available, does not read pictures or has no chat template.
        """
        name = str(name_or_path)
        processor = load_part(AutoProcessor, name)
        if getattr(processor, "chat_template", None) is None or not hasattr(processor, "image_processor"):
            raise MetricError(
                f"metric model {name!r} has no chat template for pictures, expected a BLIP for questions or a chat "
                "model that reads pictures, for example Qwen/Qwen3-VL-8B-Instruct"
            )
        model = load_model(AutoModelForImageTextToText, name, dtype="auto")
        return cls(model.to(device), processor, id=name)

    @torch.no_grad()
    def _distribution(self, pictures: Pictures, questions: Sequence[str]) -> NDArray[np.float64]:
        rows = []
        # One at a time, so that answers do not depend on padding.
        for picture, question in zip(pictures, questions, strict=True):
            logits = self.model(**self._inputs(picture, f"{question.strip()} {_ONE_WORD}")).logits[0, -1]
            rows.append(logits.double().softmax(-1).cpu().numpy())
        return np.stack(rows)

    @torch.no_grad()
    def read(self, pictures: Pictures) -> list[str]:
        """See `TextReader.read`."""
        texts = []
        for picture in pictures:
            inputs = self._inputs(picture, self.read_prompt)
            reply = self.model.generate(**inputs, max_new_tokens=self.read_tokens, do_sample=False)
            new = reply[0, inputs["input_ids"].shape[1] :]
            texts.append(self.tokenizer.decode(new, skip_special_tokens=True).strip())
        return texts

    def _inputs(self, picture: NDArray[np.uint8], text: str) -> dict[str, Any]:
        content = [{"type": "image", "image": Image.fromarray(picture)}, {"type": "text", "text": text}]
        inputs = self.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        )
        return dict(inputs.to(self.model.device, self.model.dtype))


def load_answerer(name_or_path: str | Path, *, device: str = "cpu") -> BlipAnswerer | ChatAnswerer:
    """Return the BLIP for questions, or the chat model, of a folder or Hub id.

    Raises:
        MetricError: the model is not available, or is neither.
    """
    config = load_part(AutoConfig, str(name_or_path))
    kind: Any = BlipAnswerer if config.model_type == "blip" else ChatAnswerer
    answerer: BlipAnswerer | ChatAnswerer = kind.from_pretrained(name_or_path, device=device)
    return answerer
