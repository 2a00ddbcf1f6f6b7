"""Scorers of the benchmarks: their rules on hand-made cases, and the models behind them against the models' own."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from tiny.image_text import SIDE_PX, save_image_text
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    BlipForQuestionAnswering,
    YolosForObjectDetection,
)

from llmdiff.errors import MetricError
from llmdiff.evaluation.metrics.kinds import Pictures
from llmdiff.evaluation.suites.answerers import BlipAnswerer
from llmdiff.evaluation.suites.benchmarks import read_suite
from llmdiff.evaluation.suites.detection import (
    COLOURS,
    ColourReader,
    Detection,
    TransformersDetector,
    judge_detections,
    relations,
)
from llmdiff.evaluation.suites.dpg_bench import DPGScorer
from llmdiff.evaluation.suites.geneval import GenEvalScorer
from llmdiff.evaluation.suites.t2i_compbench import CompBenchScorer


def at(x: float, y: float, side: float = 10, score: float = 0.9) -> Detection:
    return Detection(box=(x - side / 2, y - side / 2, x + side / 2, y + side / 2), score=score)


def grey(detection: Detection, name: str) -> str:
    return "red" if detection.score > 0.5 else "blue"


class Brightness:
    """Answers by the picture alone: "yes" is as probable as its red is bright."""

    model_id = "brightness"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def yes(self, pictures: Pictures, questions: Sequence[str]) -> NDArray[np.float64]:
        self.asked += questions
        return pictures[..., 0].mean((1, 2)) / 255


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (10, 50, {"left of"}),
        (90, 50, {"right of"}),
        (50, 10, {"above"}),
        (50, 90, {"below"}),
        (10, 10, {"left of", "above"}),
        (50, 50, set()),
        (51.9, 50, set()),  # nearer than a tenth of both sizes
    ],
)
def test_relations(x: float, y: float, expected: set[str]) -> None:
    assert relations(at(x, y), at(50, 50)) == expected


def test_geneval_rules() -> None:
    one, two = {"class": "car", "count": 1}, {"class": "car", "count": 2}

    def right(
        found: dict[str, list[Detection]], include: list[Any], exclude: list[Any] | None = None
    ) -> bool:
        return judge_detections(found, {"include": include, "exclude": exclude or []}, grey)[0]

    cars = [at(20, 20), at(60, 60, score=0.4)]
    assert right({"car": cars}, [one])
    assert right({"car": cars}, [two])
    assert not right({"car": cars[:1]}, [two])
    assert not right({}, [one])
    assert right({"car": cars}, [two], [{"class": "car", "count": 3}])
    assert not right({"car": [*cars, at(5, 5)]}, [two], [{"class": "car", "count": 3}])
    # The surest objects are judged: one red car is there, two are not.
    assert right({"car": cars}, [{**one, "color": "red"}])
    assert not right({"car": cars}, [{**two, "color": "red"}])
    assert not right({"car": cars}, [{**one, "color": "blue"}])
    cat = {"class": "cat", "count": 1, "position": ["left of", 0]}
    assert right({"car": [at(60, 50)], "cat": [at(20, 50)]}, [one, cat])
    assert not right({"car": [at(20, 50)], "cat": [at(60, 50)]}, [one, cat])
    found, reason = judge_detections({"cat": [at(20, 50)]}, {"include": [one, cat]}, grey)
    assert not found
    assert reason == "expected car>=1, found 0\nno target for cat to be left of"
    with pytest.raises(MetricError, match="refers to clause 4"):
        right({"cat": [at(1, 1)]}, [{**cat, "position": ["above", 4]}])


def test_dpg_score_is_the_mean_of_what_counts(dpg_csv: Path) -> None:
    suite = read_suite("dpg-bench", dpg_csv)
    pictures = np.stack([np.full((4, 4, 3), value, dtype=np.uint8) for value in (200, 50)])
    answerer = Brightness()
    bright, dark = DPGScorer(answerer).judge(pictures, [suite.prompts[0]] * 2)
    assert (bright["score"], dark["score"]) == (1.0, 0.0)
    assert bright["parts"] == {"entity": 1.0, "attribute": 1.0, "relation": 1.0}
    assert answerer.asked[:3] == ["Is there a cat?", "Is the cat red?", "Is it on a car?"]


def test_compbench_score_is_a_product_over_phrases(compbench_folder: Path) -> None:
    suite = read_suite("t2i-compbench", compbench_folder)
    picture = np.full((1, 4, 4, 3), 51, dtype=np.uint8)
    answerer = Brightness()
    (judged,) = CompBenchScorer(answerer).judge(picture, suite.prompts[:1])
    assert answerer.asked == ["a red car?", "a blue cat?"]
    assert judged["score"] == pytest.approx(0.2 * 0.2)


def test_blip_answers_with_its_own_first_word(blip_folder: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (4, SIDE_PX, SIDE_PX, 3), dtype=np.uint8)
    questions = ["is there a cat?", "red car?", "is there a red car?", "a cat?"]
    answerer = BlipAnswerer.from_pretrained(blip_folder)
    found = answerer.yes(pictures, questions)
    assert answerer.yes(pictures[2:3], questions[2:3]) == pytest.approx(found[2:3], abs=1e-5)
    assert found.std() > 1e-4
    model = BlipForQuestionAnswering.from_pretrained(blip_folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(blip_folder)
    processor = AutoImageProcessor.from_pretrained(blip_folder, backend="pil")
    asked = tokenizer(questions[:1], return_tensors="pt")
    pixels = processor(images=[Image.fromarray(pictures[0])], return_tensors="pt").pixel_values
    losses = {}
    for word in ("yes", "no"):
        # The model's own loss of one answer word behind the start token is -log P(word).
        labels = torch.tensor([[model.decoder_start_token_id, tokenizer.convert_tokens_to_ids(word)]])
        with torch.no_grad():
            output = model(
                pixel_values=pixels,
                input_ids=asked.input_ids,
                attention_mask=asked.attention_mask,
                labels=labels,
            )
        losses[word] = output.loss.item()
    yes, no = (np.exp(-losses[word]) for word in ("yes", "no"))
    assert found[0] == pytest.approx(yes / (yes + no), abs=1e-4)


def test_the_detector_says_what_the_model_says_under_gene_vals_names(yolos_folder: Path) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (SIDE_PX, SIDE_PX, 3), dtype=np.uint8)
    detector = TransformersDetector.from_pretrained(yolos_folder)
    found = detector.detect(picture, 0.0)
    assert set(found) <= {"cat", "car", "computer mouse"}
    assert sum(map(len, found.values())) == 12
    assert all(a.score >= b.score for kind in found.values() for a, b in pairwise(kind))
    model = YolosForObjectDetection.from_pretrained(yolos_folder).eval()
    processor = AutoImageProcessor.from_pretrained(yolos_folder, backend="pil")
    with torch.no_grad():
        inputs = processor(images=[Image.fromarray(picture)], return_tensors="pt")
        output = model(inputs.pixel_values)
    surest = output.logits[0].softmax(-1)[:, :-1].max(-1).values.max().item()
    assert max(one.score for kind in found.values() for one in kind) == pytest.approx(surest, abs=1e-5)
    middle = (surest + min(one.score for kind in found.values() for one in kind)) / 2
    fewer = detector.detect(picture, middle)
    assert 0 < sum(map(len, fewer.values())) < 12


def test_colours_are_read_from_the_box(tmp_path: Path) -> None:
    reader = ColourReader.from_pretrained(save_image_text("clip", tmp_path / "clip"))
    picture = np.zeros((40, 40, 3), dtype=np.uint8)
    picture[:, 20:] = (200, 30, 30)
    read = reader.reader(picture)
    left = read(Detection(box=(0, 0, 19.6, 40), score=1), "car")
    forms = [
        f"a photo of a {COLOURS[0]} car",
        f"a photo of a {COLOURS[0]}-colored car",
        f"a photo of a {COLOURS[0]} object",
    ]
    mean = reader.model.embed_texts(forms).mean(0)
    assert torch.allclose(reader.colour_texts("car")[0], mean / mean.norm(), atol=1e-6)
    embedded = reader.model.embed_pictures(np.zeros((1, 20, 20, 3), dtype=np.uint8))
    assert left == COLOURS[int((embedded @ reader.colour_texts("car").T).argmax())]
    assert read(Detection(box=(-3, -3, 0.2, 0.2), score=1), "car") in COLOURS


def test_geneval_scorer_needs_both_models(yolos_folder: Path, geneval_jsonl: Path, tmp_path: Path) -> None:
    clip = save_image_text("clip", tmp_path / "clip")
    scorer = GenEvalScorer.from_pretrained(f"{yolos_folder},{clip}")
    suite = read_suite("geneval", geneval_jsonl)
    pictures = np.random.default_rng(2).integers(0, 256, (3, SIDE_PX, SIDE_PX, 3), dtype=np.uint8)
    judged = scorer.judge(pictures, suite.prompts)
    assert all(one["score"] in (0.0, 1.0) and (one["score"] == 1) == (one["reason"] == "") for one in judged)
    with pytest.raises(MetricError, match="expected two with a comma"):
        GenEvalScorer.from_pretrained(yolos_folder)
    with pytest.raises(MetricError, match="cannot load it"):
        BlipAnswerer.from_pretrained(tmp_path / "none")
