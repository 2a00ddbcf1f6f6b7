"""Yes-or-no questions about pictures, answered by BLIP, for DPG-Bench and T2I-CompBench."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, BlipForQuestionAnswering

from llmdiff.errors import MetricError
from llmdiff.evaluation.metrics.kinds import Pictures
from llmdiff.evaluation.metrics.models import load_model, load_part

_BATCH = 32


class Answerer(Protocol):
    """A model that answers yes-or-no questions about pictures.

    Fields:
        model_id: the model's folder or Hub id.
    """

    model_id: str

    def yes(self, pictures: Pictures, questions: Sequence[str]) -> NDArray[np.float64]:
        """Return P(yes) / (P(yes) + P(no)) for each picture and its question. Shapes: (N,)."""
        ...


class BlipAnswerer:
    """BLIP's first answer word: P(yes) / (P(yes) + P(no)).

    Source: Li et al. 2022 (BLIP, arXiv 2201.12086), its model for visual question answering.
    """

    def __init__(self, model: Any, image_processor: Any, tokenizer: Any, *, id: str = "given") -> None:
        self.model, self.image_processor, self.tokenizer = model.eval(), image_processor, tokenizer
        self.model_id = id
        words = [tokenizer(word, add_special_tokens=False).input_ids for word in ("yes", "no")]
        if any(len(ids) != 1 for ids in words) or words[0] == words[1]:
            raise MetricError(f"metric model {id!r}: its tokenizer has no single words 'yes' and 'no'")
        self._yes, self._no = (ids[0] for ids in words)

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
    def yes(self, pictures: Pictures, questions: Sequence[str]) -> NDArray[np.float64]:
        """See `Answerer.yes`."""
        lengths = np.array([len(ids) for ids in self.tokenizer(list(questions)).input_ids], dtype=np.int64)
        found = np.zeros(len(questions))
        # Questions of one length at a time: an answer may not depend on what else pads its batch.
        for length in np.unique(lengths):
            (at,) = np.nonzero(lengths == length)
            for start in range(0, len(at), _BATCH):
                some = at[start : start + _BATCH]
                found[some] = self._batch(pictures[some], [questions[index] for index in some])
        return found

    def _batch(self, pictures: Pictures, questions: Sequence[str]) -> NDArray[np.float64]:
        device = self.model.device
        images = [Image.fromarray(picture) for picture in pictures]
        pixels = self.image_processor(images=images, return_tensors="pt").pixel_values.to(device)
        asked = self.tokenizer(list(questions), truncation=True, max_length=64, return_tensors="pt")
        # As the model's own forward does it, which keeps the answer's logits to itself.
        seen = self.model.vision_model(pixel_values=pixels).last_hidden_state
        read = self.model.text_encoder(
            input_ids=asked.input_ids.to(device),
            attention_mask=asked.attention_mask.to(device),
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long, device=device),
        ).last_hidden_state
        begin = torch.full((len(images), 1), self.model.decoder_start_token_id, device=device)
        logits = self.model.text_decoder(
            input_ids=begin,
            encoder_hidden_states=read,
            encoder_attention_mask=asked.attention_mask.to(device),
        ).logits[:, 0]
        chosen = logits[:, [self._yes, self._no]].double().softmax(-1)
        probabilities: NDArray[np.float64] = chosen[:, 0].cpu().numpy()
        return probabilities
