"""Object detection and GenEval's rules for objects, counts, colours and positions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F
from transformers import AutoImageProcessor, AutoModelForObjectDetection

from llmdiff.errors import MetricError
from llmdiff.evaluation.metrics.models import ImageTextModel, ModelMetric, load_model, load_part

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
_COLOUR_FORMS = ("a photo of a {c} {name}", "a photo of a {c}-colored {name}", "a photo of a {c} object")
# GenEval's names of objects => COCO's.
_OTHER_NAMES = {"computer mouse": "mouse", "tv remote": "remote", "computer keyboard": "keyboard"}
_MOST_OBJECTS, _REACH = 16, 0.1


@dataclass(frozen=True, kw_only=True)
class Detection:
    """An object in a picture. Units: box as left, top, right, bottom in pixels; score in 0..1."""

    box: tuple[float, float, float, float]
    score: float


Detections = Mapping[str, Sequence[Detection]]
"""Detections by the object's name, highest score first."""
ReadColour = Callable[[Detection, str], str]
"""A detection and its name => its colour."""


class Detector(Protocol):
    """An object detector.

    Fields:
        model_id: the model's folder or Hub id.
    """

    model_id: str

    def detect(self, picture: NDArray[np.uint8], threshold: float) -> dict[str, list[Detection]]:
        """Return all detections with a score above the threshold. Shapes: (H, W, 3)."""
        ...


class TransformersDetector:
    """An object detector of transformers, with GenEval's names of objects."""

    def __init__(self, model: Any, image_processor: Any, *, id: str = "given") -> None:
        self.model, self.image_processor, self.model_id = model.eval(), image_processor, id
        theirs = {name: ours for ours, name in _OTHER_NAMES.items()}
        self.names = {index: theirs.get(name, name) for index, name in model.config.id2label.items()}

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, *, device: str = "cpu") -> Self:
        """Return the model of a folder or Hub id, for example facebook/detr-resnet-50.

        Raises:
            MetricError: the model is not available, or not an object detector.
        """
        name = str(name_or_path)
        model = load_model(AutoModelForObjectDetection, name)
        return cls(model.to(device), load_part(AutoImageProcessor, name, backend="pil"), id=name)

    @torch.no_grad()
    def detect(self, picture: NDArray[np.uint8], threshold: float) -> dict[str, list[Detection]]:
        """See `Detector.detect`; the 16 highest scores of every name."""
        inputs = self.image_processor(images=[Image.fromarray(picture)], return_tensors="pt")
        output = self.model(**inputs.to(self.model.device))
        (found,) = self.image_processor.post_process_object_detection(
            output, threshold=threshold, target_sizes=[picture.shape[:2]]
        )
        detections: dict[str, list[Detection]] = {}
        order = found["scores"].argsort(descending=True).tolist()
        for index in order:
            box = tuple(float(edge) for edge in found["boxes"][index])
            kind = detections.setdefault(self.names[int(found["labels"][index])], [])
            if len(kind) < _MOST_OBJECTS:
                kind.append(Detection(box=box, score=float(found["scores"][index])))  # type: ignore[arg-type]
        return detections


class ColourReader(ModelMetric):
    """Classifies the colour of an object, one of ten, with a CLIP model on the crop of its box."""

    model_kind = ImageTextModel

    def __init__(self, model: ImageTextModel) -> None:
        super().__init__(model)
        self._of_name: dict[str, torch.Tensor] = {}

    def reader(self, picture: NDArray[np.uint8]) -> ReadColour:
        """Return a function that reads colours in this picture. Shapes: (H, W, 3)."""

        def read(found: Detection, name: str) -> str:
            left, top, right, bottom = (round(edge) for edge in found.box)
            height, width = picture.shape[:2]
            rows = slice(max(0, min(top, height - 1)), max(top + 1, bottom))
            columns = slice(max(0, min(left, width - 1)), max(left + 1, right))
            embedded = self.model.embed_pictures(np.ascontiguousarray(picture[rows, columns])[None])
            return COLOURS[int((embedded @ self.colour_texts(name).T).argmax())]

        return read

    def colour_texts(self, name: str) -> torch.Tensor:
        """Return the mean unit vector of the texts of every colour of an object. Shapes: (10, E)."""
        if name not in self._of_name:
            forms = [form.format(c=colour, name=name) for colour in COLOURS for form in _COLOUR_FORMS]
            embedded = self.model.embed_texts(forms).view(len(COLOURS), len(_COLOUR_FORMS), -1)
            self._of_name[name] = F.normalize(embedded.mean(1), dim=-1)
        return self._of_name[name]


def judge_detections(
    found: Detections, metadata: Mapping[str, Any], colour_of: ReadColour
) -> tuple[bool, str]:
    """Return whether a picture with these detections satisfies GenEval's metadata, and the reason if not.

    Every clause of `include` needs `count` objects of its class (the highest scores), with its `color` and its
    `position` relative to the objects of an earlier clause. No clause of `exclude` may be met.

    Raises:
        MetricError: a clause refers to one that does not come before it.

    Source: Ghosh et al. 2023, section 3, and the published evaluate_images.py for the thresholds.
    """
    reasons: list[str] = []
    groups: list[Sequence[Detection] | None] = []
    for clause in metadata.get("include", []):
        name, count = clause["class"], clause["count"]
        objects = list(found.get(name, []))[:count]
        reason = None
        if len(objects) < count:
            reason = f"expected {name}>={count}, found {len(objects)}"
        elif "color" in clause:
            colours = [colour_of(one, name) for one in objects]
            if colours.count(clause["color"]) < count:
                reason = f"expected {clause['color']} {name}>={count}, found {', '.join(colours)}"
        if reason is None and "position" in clause:
            reason = _wrong_place(objects, clause, groups)
        groups.append(objects if reason is None else None)
        reasons += [reason] if reason else []
    for clause in metadata.get("exclude", []):
        number = len(found.get(clause["class"], []))
        if number >= clause["count"]:
            reasons.append(f"expected {clause['class']}<{clause['count']}, found {number}")
    return not reasons, "\n".join(reasons)


def relations(first: Detection, second: Detection) -> set[str]:
    """Return the relations of the first object to the second: "left of", "right of", "above", "below"; up to two.

    The offset of the centres is shortened by a tenth of both sizes, so that overlapping objects have none.
    """
    a, b = (np.array(one.box).reshape(2, 2) for one in (first, second))
    offset = a.mean(0) - b.mean(0)
    reach = _REACH * (np.abs(a[1] - a[0]) + np.abs(b[1] - b[0]))
    shortened = np.maximum(np.abs(offset) - reach, 0) * np.sign(offset)
    if (np.abs(shortened) < 1e-3).all():
        return set()
    across, down = shortened / np.linalg.norm(offset)
    found = {"left of": across < -0.5, "right of": across > 0.5, "above": down < -0.5, "below": down > 0.5}
    return {name for name, holds in found.items() if holds}


def _wrong_place(
    objects: Sequence[Detection], clause: Mapping[str, Any], groups: Sequence[Sequence[Detection] | None]
) -> str | None:
    expected, target = clause["position"]
    if target >= len(groups):
        raise MetricError(f"geneval: a clause refers to clause {target}, which does not come before it")
    others = groups[target]
    if others is None:
        return f"no target for {clause['class']} to be {expected}"
    for one in objects:
        for other in others:
            places = relations(one, other)
            if expected not in places:
                return f"expected {clause['class']} {expected} target, found {' and '.join(sorted(places))} target"
    return None
