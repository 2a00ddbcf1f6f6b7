"""Features from transformers' vision and image-text models, loaded from a folder or the Hub."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from llmdiff.errors import CorruptWeightsError, MetricError, first_line
from llmdiff.evaluation.metrics.kinds import Pictures
from llmdiff.language.control_tokens import plain_options
from llmdiff.language.whole_weights import check_faults, load_whole

_BATCH = 64
# SigLIP 2 reads Gemma's vocabulary and was trained on lower-case text; models of one fixed size are stored as SigLIP
# with Gemma's tokenizer, which does not lower-case.
_GEMMA_VOCABULARY = 256_000


class VisionModel:
    """A vision model of transformers with its image processor.

    Fields:
        id: the folder or Hub id that it was loaded from.
    """

    def __init__(self, model: Any, image_processor: Any, *, id: str = "given") -> None:
        self.model, self.image_processor, self.id = model.eval(), image_processor, id

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, *, device: str = "cpu") -> Self:
        """Return the model of a folder or Hub id, in float32; its weights are read from safetensors only.

        Raises:
            MetricError: the model is not available, or not of this kind.
        """
        name = str(name_or_path)
        model = load_model(AutoModel, name)
        # Always resize with Pillow, so that figures do not depend on other installed packages.
        processor = load_part(AutoImageProcessor, name, backend="pil")
        return cls(model.to(device), processor, id=name)

    @torch.no_grad()
    def features(self, pictures: Pictures) -> Tensor:
        """Return one vector per picture, on the CPU: the projected embedding, the pooled state or the mean state.

        Shapes: (N, D) float32.
        """
        found = []
        for start in range(0, len(pictures), _BATCH):
            inputs = self._inputs(pictures[start : start + _BATCH])
            embed = getattr(self.model, "get_image_features", None)
            output = self.model(**inputs) if embed is None else embed(**inputs)
            pooled = getattr(output, "pooler_output", None)
            if pooled is None:
                states = output.last_hidden_state
                pooled = states.mean(1) if states.ndim == 3 else states.mean((2, 3))
            found.append(pooled.flatten(1).float().cpu())
        return torch.cat(found)

    @torch.no_grad()
    def layers(self, pictures: Pictures) -> list[Tensor]:
        """Return the states of all layers at every position of the pictures.

        Shapes: one (N, places, channels) float32 for each layer.
        """
        vision = getattr(self.model, "vision_model", self.model)
        states = vision(**self._inputs(pictures), output_hidden_states=True).hidden_states
        # Convolutional models give (N, channels, h, w), transformers (N, places, channels).
        return [(s.flatten(2).transpose(1, 2) if s.ndim == 4 else s).float() for s in states]

    def _inputs(self, pictures: Pictures) -> dict[str, Any]:
        images = [Image.fromarray(picture) for picture in pictures]
        return dict(self.image_processor(images=images, return_tensors="pt").to(self.model.device))


class ModelMetric:
    """Base of metrics on one model.

    Fields:
        model_kind: the class of the model.
    """

    model_kind: ClassVar[Any]

    def __init__(self, model: Any) -> None:
        self.model, self.model_id = model, model.id

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, *, device: str = "cpu") -> Self:
        """Return the metric with the model of a folder or Hub id, see `VisionModel.from_pretrained`."""
        return cls(cls.model_kind.from_pretrained(name_or_path, device=device))


class ImageTextModel(VisionModel):
    """A CLIP, SigLIP or SigLIP 2 model that embeds pictures and texts as unit vectors.

    Fields:
        scale: the learned factor of their cosine, `exp(logit_scale)`.
        bias: SigLIP's logit bias; None for CLIP.
    """

    def __init__(self, model: Any, image_processor: Any, tokenizer: Any, *, id: str = "given") -> None:
        super().__init__(model, image_processor, id=id)
        _check_reads_texts(model, id)
        self.tokenizer = tokenizer
        self.scale = float(model.logit_scale.detach().exp())
        bias = getattr(model, "logit_bias", None)
        self.bias = None if bias is None else float(bias.detach())

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, *, device: str = "cpu") -> Self:
        """See `VisionModel.from_pretrained`."""
        vision = VisionModel.from_pretrained(name_or_path, device=device)
        _check_reads_texts(vision.model, vision.id)
        tokenizer = load_part(AutoTokenizer, vision.id)
        return cls(vision.model, vision.image_processor, tokenizer, id=vision.id)

    def save_pretrained(self, folder: str | Path) -> None:
        """Save the model, its image processor and its tokenizer to a folder."""
        for part in (self.model, self.image_processor, self.tokenizer):
            part.save_pretrained(folder)

    def embed_pictures(self, pictures: Pictures) -> Tensor:
        """Return unit vectors of pictures, on the CPU. Shapes: (N, E)."""
        return F.normalize(self.features(pictures), dim=-1)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Return unit vectors of texts, on the CPU; long texts are truncated. Shapes: (N, E)."""
        found = []
        for start in range(0, len(texts), _BATCH):
            some = [self._as_trained(text) for text in texts[start : start + _BATCH]]
            # SigLIP reads its padding too and was trained on full length, without a mask.
            inputs = self.tokenizer(
                some,
                padding=True if self.bias is None else "max_length",
                truncation=True,
                max_length=self.model.config.text_config.max_position_embeddings,
                return_tensors="pt",
                **plain_options(self.tokenizer, some),
            ).to(self.model.device)
            kept = ("input_ids", "attention_mask") if self.bias is None else ("input_ids",)
            output = self.model.get_text_features(**{name: inputs[name] for name in kept})
            found.append(output.pooler_output.float().cpu())
        return F.normalize(torch.cat(found), dim=-1)

    def _as_trained(self, text: str) -> str:
        config = self.model.config
        is_siglip_2 = config.model_type == "siglip2" or (
            config.model_type == "siglip" and config.text_config.vocab_size == _GEMMA_VOCABULARY
        )
        return text.lower() if is_siglip_2 else text

    def cosines(self, pictures: Pictures, prompts: Sequence[str]) -> NDArray[np.float64]:
        """Return the cosine of every picture with its own prompt. Shapes: (N,).

        Raises:
            MetricError: the numbers of prompts and pictures differ.
        """
        if len(pictures) != len(prompts):
            raise MetricError(
                f"pictures, prompts: got {len(pictures)} and {len(prompts)}, expected one prompt for every picture"
            )
        if not len(prompts):
            return np.zeros(0)
        products = self.embed_pictures(pictures) * self.embed_texts(prompts)
        return products.double().sum(1).numpy()


def _check_reads_texts(model: Any, id: str) -> None:
    if not hasattr(model, "get_text_features") or not hasattr(model, "logit_scale"):
        raise MetricError(
            f"metric model {id!r} is a {type(model).__name__}, expected a model of pictures and texts: give a CLIP, "
            "SigLIP or SigLIP 2 model"
        )


def load_model(kind: Any, name: str, *, dtype: Any = torch.float32) -> Any:
    """Return a transformers model of class `kind`, in float32 by default, with all weights from safetensors.

    Raises:
        MetricError: the model cannot be loaded.
        CorruptWeightsError: a weight is missing, unread, of another shape or not finite.
    """
    what = f"metric model {name!r}"
    with _failure_named(kind, name):
        model = load_whole(kind, name, what=what, use_safetensors=True, dtype=dtype)
    broken = [key for key, weight in model.named_parameters() if not bool(weight.sum().isfinite())]
    check_faults({"NaN or infinite": broken}, what=what)
    return model


def load_part(kind: Any, name: str, **options: Any) -> Any:
    """Return a processor or tokenizer of class `kind` from a folder or Hub id.

    Raises:
        MetricError: the model cannot be loaded.
    """
    with _failure_named(kind, name):
        return kind.from_pretrained(name, **options)


@contextmanager
def _failure_named(kind: Any, name: str) -> Iterator[None]:
    try:
        yield
    except CorruptWeightsError:
        raise
    except (OSError, ValueError, RuntimeError, ImportError, KeyError, SafetensorError) as error:
        raise MetricError(
            f"metric model {name!r}: {kind.__name__} cannot load it ({first_line(error)}); give a folder of "
            f'transformers with safetensors weights, or get it once with "hf download {name}"'
        ) from error
