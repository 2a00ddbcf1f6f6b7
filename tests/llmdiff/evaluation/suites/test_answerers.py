"""Chat models that answer questions about pictures and read their text, against the model's own forward pass."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny.image_text import CHAT_WORDS, MEAN, SIDE_PX, STD, save_chat, save_image_text
from transformers import LlavaForConditionalGeneration

from llmdiff.errors import MetricError
from llmdiff.evaluation.suites.answerers import (
    BlipAnswerer,
    ChatAnswerer,
    TextReader,
    WordAnswerer,
    load_answerer,
)
from llmdiff.evaluation.suites.benchmarks import BENCHMARKS, read_suite

QUESTIONS = ["a red car ?", "two cat ?"]
_PATCHES = (SIDE_PX // 8) ** 2


@pytest.fixture(scope="module")
def chat_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat(tmp_path_factory.mktemp("chat"))


@pytest.fixture
def pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, SIDE_PX, SIDE_PX, 3), dtype=np.uint8)


def own_distribution(folder: Path, picture: np.ndarray, words: list[str]) -> np.ndarray:
    """The model's distribution of the token behind a picture and these words, its inputs made by hand."""
    model = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    unknown = CHAT_WORDS.index("<unk>")
    text = [CHAT_WORDS.index(word) if word in CHAT_WORDS else unknown for word in words]
    pixels = (picture / 255 - np.array(MEAN)) / np.array(STD)
    with torch.no_grad():
        logits = model(
            input_ids=torch.tensor([[CHAT_WORDS.index("<image>")] * _PATCHES + text]),
            pixel_values=torch.from_numpy(pixels.transpose(2, 0, 1)[None]).float(),
        ).logits
    return logits[0, -1].double().softmax(-1).numpy()


def test_the_answer_is_the_models_own_next_token(chat_folder: Path, pictures: np.ndarray) -> None:
    answerer = load_answerer(chat_folder)
    assert isinstance(answerer, ChatAnswerer)
    assert isinstance(answerer, WordAnswerer)
    found = answerer.probability(pictures, QUESTIONS, [("two", "2", " 2"), ("yes", "Yes")])
    asked = [[*question.split(), "Answer", "in", "one", "word", "."] for question in QUESTIONS]
    first, second = (own_distribution(chat_folder, *pair) for pair in zip(pictures, asked, strict=True))
    two, yes, no = ([CHAT_WORDS.index(w) for w in words] for words in (("two", "2"), ("yes", "Yes"), ("no",)))
    assert found == pytest.approx([first[two].sum(), second[yes].sum()], abs=1e-6)
    expected = [one[yes].sum() / (one[yes].sum() + one[no].sum()) for one in (first, second)]
    assert answerer.yes(pictures, QUESTIONS) == pytest.approx(expected, abs=1e-6)
    assert abs(expected[0] - expected[1]) > 1e-3


def test_text_is_read_by_greedy_decoding(chat_folder: Path, pictures: np.ndarray) -> None:
    reader = load_answerer(chat_folder)
    assert isinstance(reader, TextReader)
    assert isinstance(reader, ChatAnswerer)
    reader.read_prompt, reader.read_tokens = "the photo", 3
    expected = []
    for picture in pictures:
        words: list[str] = []
        while len(words) < 3:
            word = CHAT_WORDS[int(own_distribution(chat_folder, picture, ["the", "photo", *words]).argmax())]
            if word == "</s>":
                break
            words.append(word)
        expected.append(" ".join(word for word in words if not word.startswith("<")))
    assert reader.read(pictures) == expected
    assert any(expected)


def test_soft_tifa_is_the_geometric_mean_of_the_models_own_probabilities(
    chat_folder: Path, pictures: np.ndarray, tmp_path: Path
) -> None:
    asked = [["How many cat ?", "two"], ["a red car ?", "Yes"]]
    row = {"prompt": "two cats", "atom_count": 2, "vqa_list": asked, "skills": ["count", "object"]}
    (tmp_path / "geneval2_data.jsonl").write_text(json.dumps(row) + "\n")
    suite = read_suite("geneval2", tmp_path)
    scorer = BENCHMARKS["geneval2"].scorer.from_pretrained(chat_folder)
    (judged,) = scorer.judge(pictures[:1], suite.prompts)
    probabilities = []
    for (question, _), words in zip(asked, (("two", "2"), ("yes", "Yes")), strict=True):
        tokens = [*question.split(), "Answer", "in", "one", "word", "."]
        own = own_distribution(chat_folder, pictures[0], tokens)
        probabilities.append(own[[CHAT_WORDS.index(word) for word in words]].sum())
    assert judged["answers"] == pytest.approx(probabilities, abs=1e-6)
    assert judged["score"] == pytest.approx(np.prod(probabilities) ** 0.5, abs=1e-6)
    assert scorer.model_id == str(chat_folder)


def test_other_models_are_refused(blip_folder: Path, chat_folder: Path, tmp_path: Path) -> None:
    assert isinstance(load_answerer(blip_folder), BlipAnswerer)
    with pytest.raises(MetricError, match="has no chat template for pictures, expected a BLIP"):
        load_answerer(save_image_text("clip", tmp_path / "clip"))
    with pytest.raises(MetricError, match="its tokenizer has no words seven, Seven"):
        load_answerer(chat_folder).probability(
            np.asarray(Image.new("RGB", (32, 32)))[None], ["a"], [("seven", "Seven")]
        )
