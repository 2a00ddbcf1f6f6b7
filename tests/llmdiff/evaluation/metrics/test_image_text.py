"""Metrics on models of pictures and texts, against the models' own forward pass on inputs made by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny.image_text import MEAN, STD
from tiny.pipelines import WORDS
from transformers import AutoModel, AutoTokenizer, CLIPModel, Siglip2ImageProcessorPil, SiglipModel

from llmdiff.errors import MetricError
from llmdiff.evaluation.metrics.alignment import CLIPScore, SigLIPScore
from llmdiff.evaluation.metrics.kinds import Pictures
from llmdiff.evaluation.metrics.loading import METRICS, load_metric
from llmdiff.evaluation.metrics.preference import HPSv2, PickScore
from llmdiff.evaluation.metrics.quality import CLIPIQA, PROMPT_PAIRS

PROMPTS = ["a cat", "the red car", "two apple on a car", "a dog and a cat", "blue"]


def pixels(pictures: Pictures) -> torch.Tensor:
    values = (pictures / 255.0 - np.array(MEAN)) / np.array(STD)
    return torch.from_numpy(values.transpose(0, 3, 1, 2)).float()


def ids(prompts: list[str], *, length: int | None = None) -> torch.Tensor:
    rows = [
        [WORDS.index(w) if w in WORDS else WORDS.index("<unk>") for w in p.split()] + [2] for p in prompts
    ]
    width = length or max(map(len, rows))
    return torch.tensor([row + [0] * (width - len(row)) for row in rows])


def clip_logits(folder: Path, pictures: Pictures, prompts: list[str]) -> torch.Tensor:
    model = CLIPModel.from_pretrained(folder).eval()
    tokens = ids(prompts)
    with torch.no_grad():
        return model(
            input_ids=tokens, attention_mask=(tokens != 0).long(), pixel_values=pixels(pictures)
        ).logits_per_image.double()


def test_clip_score_is_that_of_the_model_itself(folders: dict[str, Path], pictures: Pictures) -> None:
    scores = CLIPScore.from_pretrained(folders["clip"]).score(pictures, PROMPTS)["clip_score"]
    cosines = clip_logits(folders["clip"], pictures, PROMPTS).diagonal() / np.exp(2.0)
    assert scores == pytest.approx(100 * cosines.clamp(min=0).numpy(), abs=1e-4)
    assert scores.std() > 0.1


def test_siglip_score_is_that_of_the_model_itself(folders: dict[str, Path], pictures: Pictures) -> None:
    scores = SigLIPScore.from_pretrained(folders["siglip"]).score(pictures, PROMPTS)
    model = SiglipModel.from_pretrained(folders["siglip"]).eval()
    with torch.no_grad():
        logits = model(input_ids=ids(PROMPTS, length=12), pixel_values=pixels(pictures)).logits_per_image
    own = logits.diagonal().double()
    assert scores["siglip_probability"] == pytest.approx(torch.sigmoid(own).numpy(), abs=1e-5)
    assert scores["siglip"] == pytest.approx(((own + 0.5) / np.exp(2.0)).numpy(), abs=1e-5)
    assert scores["siglip"].std() > 1e-3


def test_siglip_2_with_patches_of_any_shape(folders: dict[str, Path], pictures: Pictures) -> None:
    wide = np.concatenate([pictures, pictures[:, :16]], axis=1)
    scores = SigLIPScore.from_pretrained(folders["siglip2"]).score(wide, PROMPTS)
    model = AutoModel.from_pretrained(folders["siglip2"]).eval()
    inputs: Any = Siglip2ImageProcessorPil.from_pretrained(folders["siglip2"])(
        images=list(wide), return_tensors="pt"
    )
    # A SigLIP 2 folder is read with the tokenizer class of its kind, whatever was saved there.
    tokens = AutoTokenizer.from_pretrained(folders["siglip2"])(
        PROMPTS, padding="max_length", max_length=12, truncation=True, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        own = model(input_ids=tokens, **inputs).logits_per_image.diagonal().double()
    assert scores["siglip_probability"] == pytest.approx(torch.sigmoid(own).numpy(), abs=1e-5)


@pytest.mark.parametrize("kind", ["siglip", "siglip2", "siglip of gemma"])
def test_siglip_2_reads_lower_case(
    folders: dict[str, Path], pictures: Pictures, tmp_path: Path, kind: str
) -> None:
    folder = folders[kind.split()[0]]
    if kind == "siglip of gemma":  # as the published models of one fixed size are stored
        model = SiglipModel.from_pretrained(folder)
        model.text_model.embeddings.token_embedding = torch.nn.Embedding(256_000, 16)
        model.config.text_config.vocab_size = 256_000
        folder = tmp_path / "gemma"
        load_metric("siglip", folders["siglip"]).model.save_pretrained(folder)  # type: ignore[union-attr]
        model.save_pretrained(folder)
    metric = SigLIPScore.from_pretrained(folder)
    upper, lower = (metric.score(pictures, [text] * 5)["siglip"] for text in ("A Red CAT", "a red cat"))
    assert (abs(upper - lower).max() < 1e-6) == (kind != "siglip")


def test_hpsv2_pads_what_is_not_square(folders: dict[str, Path]) -> None:
    wide = np.random.default_rng(3).integers(0, 256, (2, 20, 80, 3), dtype=np.uint8)
    side = 32  # of the tiny model
    framed = np.zeros((2, side, side, 3), dtype=np.uint8)
    for picture, frame in zip(wide, framed, strict=True):
        # 80 x 20 becomes 32 x 8, with 12 black rows above and 12 below.
        frame[12:20] = np.asarray(Image.fromarray(picture).resize((32, 8), Image.Resampling.BICUBIC))
    found = HPSv2.from_pretrained(folders["clip"]).score(wide, PROMPTS[:2])["hpsv2"]
    logits = clip_logits(folders["clip"], framed, PROMPTS[:2]).diagonal()
    assert found == pytest.approx(100 * logits.numpy() / np.exp(2.0), abs=1e-4)
    assert CLIPScore.from_pretrained(folders["clip"]).score(wide, PROMPTS[:2])["clip_score"] != pytest.approx(
        np.maximum(found, 0), abs=1e-2
    )


def test_clip_iqa_is_a_softmax_over_each_pair_of_prompts(
    folders: dict[str, Path], pictures: Pictures
) -> None:
    scores = CLIPIQA.from_pretrained(folders["clip"]).score(pictures)
    assert len(scores) == len(PROMPT_PAIRS) == 16
    texts = [text for pair in PROMPT_PAIRS.values() for text in pair]
    tokenised = [text.replace(".", " .") for text in texts]  # as the tokenizer splits words from stops
    shares = clip_logits(folders["clip"], pictures, tokenised).reshape(5, 16, 2).softmax(-1)[..., 0]
    for index, pair in enumerate(PROMPT_PAIRS):
        name = "clip_iqa" if pair == "quality" else f"clip_iqa_{pair}"
        assert scores[name] == pytest.approx(shares[:, index].numpy(), abs=1e-5)


def test_preference_models_scale_the_same_cosine_each_in_its_way(
    folders: dict[str, Path], pictures: Pictures
) -> None:
    logits = clip_logits(folders["clip"], pictures, PROMPTS).diagonal()
    pick = PickScore.from_pretrained(folders["clip"]).score(pictures, PROMPTS)["pickscore"]
    assert pick == pytest.approx(logits.numpy(), abs=1e-4)
    hps = HPSv2.from_pretrained(folders["clip"]).score(pictures, PROMPTS)["hpsv2"]
    assert hps == pytest.approx(100 * logits.numpy() / np.exp(2.0), abs=1e-4)


def test_scores_do_not_depend_on_the_batch_and_long_prompts_are_cut(
    folders: dict[str, Path], pictures: Pictures
) -> None:
    metric = SigLIPScore.from_pretrained(folders["siglip"])
    many = np.tile(pictures, (30, 1, 1, 1))
    long = ["cat " * 40] * len(many)
    scores = metric.score(many, long)["siglip"]
    assert scores.shape == (150,)
    assert scores[:5] == pytest.approx(metric.score(pictures, ["cat " * 11] * 5)["siglip"], abs=1e-5)
    assert scores.reshape(30, 5) == pytest.approx(np.tile(scores[:5], (30, 1)), abs=1e-5)


def test_what_does_not_fit_is_named(folders: dict[str, Path], pictures: Pictures, tmp_path: Path) -> None:
    with pytest.raises(MetricError, match=r"no logit bias.*clip-score"):
        load_metric("siglip", folders["clip"])
    with pytest.raises(MetricError, match="ViTModel, expected a model of pictures and texts"):
        load_metric("clip-score", folders["vit"])
    with pytest.raises(MetricError, match="cannot load it"):
        load_metric("fid", tmp_path / "none")
    with pytest.raises(MetricError, match="metric clip-score: no model"):
        load_metric("clip-score")
    with pytest.raises(MetricError, match=r"got 'beauty', expected one of siglip.*llmdiff.metrics"):
        load_metric("beauty", folders["clip"])
    with pytest.raises(MetricError, match="got 5 and 1, expected one prompt for every picture"):
        load_metric("clip-score", folders["clip"]).score(pictures, ["a cat"])  # type: ignore[union-attr]


def test_every_metric_loads_by_its_name(folders: dict[str, Path]) -> None:
    for name in METRICS:
        metric = load_metric(name, folders["siglip" if name == "siglip" else "clip"])
        assert metric.name == name
        assert metric.model_id == str(folders["siglip" if name == "siglip" else "clip"])


def test_other_packages_bring_metrics(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    info = tmp_path / "brightness-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: brightness\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[llmdiff.metrics]\nbrightness = brightness_metric:Brightness\nodd = brightness_metric:odd\n"
    )
    (tmp_path / "brightness_metric.py").write_text(
        "class Brightness:\n"
        "    name, failed_score = 'brightness', 0.0\n"
        "    def __init__(self, model, device): self.model_id = str(model)\n"
        "    def score(self, pictures, prompts): return {'brightness': pictures.mean((1, 2, 3))}\n"
        "def odd(model, device): return 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    metric = load_metric("brightness")
    grey = np.full((2, 4, 4, 3), 7, dtype=np.uint8)
    assert metric.score(grey, ["", ""])["brightness"].tolist() == [7, 7]  # type: ignore[union-attr]
    with pytest.raises(MetricError, match="metric odd: brightness_metric:odd gave a int"):
        load_metric("odd")
