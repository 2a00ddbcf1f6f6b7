"""Small files in the benchmarks' formats, with text of our own, and tiny random models that score them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny.image_text import SIDE_PX
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForQuestionAnswering,
    BlipImageProcessorPil,
    YolosConfig,
    YolosForObjectDetection,
    YolosImageProcessorPil,
)

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "[DEC]",
    "yes",
    "no",
    "is",
    "there",
    "a",
    "cat",
    "red",
    "?",
    "car",
]


@pytest.fixture
def dpg_csv(tmp_path: Path) -> Path:
    path = tmp_path / "dpg_bench.csv"
    path.write_text(
        "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,"
        "question_natural_language\n"
        'p1,"A red cat, on a car",,1,0,entity,whole,entity - whole (cat),Is there a cat?\n'
        'p1,"A red cat, on a car",,2,1,attribute,color,"attribute - color (cat, red)",Is the cat red?\n'
        'p1,"A red cat, on a car",,3,"1,2",relation,spatial,"relation - spatial (cat, car, on)",Is it on a car?\n'
        "p2,A car,,1,0,entity,whole,entity - whole (car),Is there a car?\n"
    )
    return path


@pytest.fixture
def geneval_jsonl(tmp_path: Path) -> Path:
    path = tmp_path / "evaluation_metadata.jsonl"
    lines: list[dict[str, Any]] = [
        {"tag": "single_object", "include": [{"class": "cat", "count": 1}], "prompt": "a photo of a cat"},
        {
            "tag": "counting",
            "include": [{"class": "car", "count": 2}],
            "exclude": [{"class": "car", "count": 3}],
            "prompt": "a photo of two cars",
        },
        {
            "tag": "colors",
            "include": [{"class": "car", "count": 1, "color": "red"}],
            "prompt": "a photo of a red car",
        },
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def compbench_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "dataset"
    folder.mkdir()
    (folder / "color_val.txt").write_text("a red car and a blue cat\nthe green apple on a white table\n")
    (folder / "shape_val.txt").write_text("a round clock\tround clock\n")
    (folder / "color_train.txt").write_text("a red dog\n")
    return folder


def save_blip(folder: Path) -> Path:
    """A folder with a random BLIP for questions, whose tokenizer knows yes and no."""
    torch.manual_seed(6)
    text = {
        "vocab_size": len(WORDS),
        "hidden_size": 16,
        "encoder_hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "bos_token_id": WORDS.index("[DEC]"),
        "sep_token_id": WORDS.index("[SEP]"),
        "pad_token_id": 0,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIDE_PX,
        "patch_size": 8,
    }
    model = BlipForQuestionAnswering(BlipConfig(text_config=text, vision_config=vision))
    with torch.no_grad():  # random weights as they are made hardly tell inputs apart
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(12)
    model.save_pretrained(folder)
    BlipImageProcessorPil(size={"height": SIDE_PX, "width": SIDE_PX}).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}).save_pretrained(folder)
    return folder


def save_yolos(folder: Path) -> Path:
    """A folder with a random object detector whose classes are a cat, a car and a mouse."""
    torch.manual_seed(7)
    config = YolosConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=[SIDE_PX, SIDE_PX],
        patch_size=8,
        num_detection_tokens=12,
        use_mid_position_embeddings=False,
        id2label={0: "cat", 1: "car", 2: "mouse"},
        label2id={"cat": 0, "car": 1, "mouse": 2},
    )
    model = YolosForObjectDetection(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
        model.vit.embeddings.detection_tokens.normal_()  # zeros at first: twelve times the same object
    model.save_pretrained(folder)
    YolosImageProcessorPil(size={"height": SIDE_PX, "width": SIDE_PX}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def blip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_blip(tmp_path_factory.mktemp("blip"))


@pytest.fixture(scope="session")
def yolos_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_yolos(tmp_path_factory.mktemp("yolos"))
