"""FID, KID, CMMD and diversity: formulas against independent computations, and the way they move on spoilt renders."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from spoilt_pictures import check_gets_worse, noised
from tiny.image_text import MEAN, STD
from transformers import ResNetModel, ViTModel

from llmdiff.errors import MetricError
from llmdiff.evaluation.metrics.distribution import (
    CMMD,
    FID,
    KID,
    frechet_distance,
    gaussian_kernel,
    polynomial_kernel,
    squared_mmd,
)
from llmdiff.evaluation.metrics.diversity import Diversity
from llmdiff.evaluation.metrics.kinds import Pictures
from llmdiff.evaluation.metrics.models import VisionModel
from llmdiff.evaluation.metrics.reference import read_reference, set_features
from llmdiff.world.rendering import render
from llmdiff.world.scenes import World
from llmdiff.world.splits import sample_scene

RNG = np.random.default_rng(1)
X, Y = RNG.normal(size=(40, 6)), RNG.normal(0.4, 1.5, size=(30, 6)) @ RNG.normal(size=(6, 6))


def renders(seed: int, count: int) -> Pictures:
    world = World(thing_count=20, styles=("flat",))
    return np.stack([render(sample_scene(seed, index, world), 64) for index in range(count)])


def test_frechet_distance_against_the_product_of_covariances() -> None:
    c1, c2 = np.cov(X.T), np.cov(Y.T)
    root = np.sqrt(np.linalg.eigvals(c1 @ c2).astype(complex)).sum().real
    gap = X.mean(0) - Y.mean(0)
    assert frechet_distance(X, Y) == pytest.approx(gap @ gap + np.trace(c1 + c2) - 2 * root, rel=1e-9)


def test_frechet_distance_in_closed_form() -> None:
    # Y = 3 X + 2  =>  |m1 - m2|^2 + (1 - 3)^2 tr C1.
    gap = X.mean(0) - (3 * X + 2).mean(0)
    assert frechet_distance(X, 3 * X + 2) == pytest.approx(gap @ gap + 4 * np.trace(np.cov(X.T)), rel=1e-9)
    assert frechet_distance(X, X) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(X[:, :1], 3 * X[:, :1]) > 0


def brute_force_mmd(x: np.ndarray, y: np.ndarray, kernel: str) -> float:
    def k(a: np.ndarray, b: np.ndarray) -> float:
        if kernel == "polynomial":
            return float((np.dot(a, b) / len(a) + 1) ** 3)
        return float(np.exp(-np.sum((a - b) ** 2) / 200))

    xx = [k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j]
    yy = [k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j]
    return float(np.mean(xx) + np.mean(yy) - 2 * np.mean([k(a, b) for a in x for b in y]))


def test_squared_mmd_against_double_loops() -> None:
    assert squared_mmd(X, Y, polynomial_kernel) == pytest.approx(brute_force_mmd(X, Y, "polynomial"))
    assert squared_mmd(X, Y, gaussian_kernel) == pytest.approx(brute_force_mmd(X, Y, "gaussian"))
    unit = [one / np.linalg.norm(one, axis=1, keepdims=True) for one in (X, Y)]
    wide = [one.astype(np.float32) for one in (X, Y)]
    cmmd = CMMD.compare(None, *wide)["cmmd"]  # type: ignore[arg-type]
    assert cmmd == pytest.approx(1000 * brute_force_mmd(*unit, "gaussian"), rel=1e-4)


def test_squared_mmd_of_more_rows_than_one_chunk() -> None:
    x, y = np.random.default_rng(9).normal(size=(2, 1100, 3))
    xx, yy, xy = (np.exp(-((a[:, None] - b) ** 2).sum(-1) / 200) for a, b in ((x, x), (y, y), (x, y)))
    others = ~np.eye(1100, dtype=bool)
    expected = xx[others].mean() + yy[others].mean() - 2 * xy.mean()
    assert squared_mmd(x, y, gaussian_kernel) == pytest.approx(expected, abs=1e-12)


def test_the_estimate_of_two_halves_of_one_set_is_about_nothing() -> None:
    same = RNG.normal(size=(2000, 4))
    assert abs(squared_mmd(same[:1000], same[1000:], polynomial_kernel)) < 0.02
    assert squared_mmd(same[:1000], same[1000:] + 0.5, polynomial_kernel) > 0.2


def test_features_are_pooled_states_of_any_vision_model(folders: dict[str, Path], pictures: Pictures) -> None:
    pixels = torch.from_numpy(
        ((pictures / 255 - np.array(MEAN)) / np.array(STD)).transpose(0, 3, 1, 2)
    ).float()
    vit, resnet = (
        ViTModel.from_pretrained(folders["vit"]).eval(),
        ResNetModel.from_pretrained(folders["resnet"]),
    )
    with torch.no_grad():
        pooled = vit(pixels).pooler_output
        maps = resnet.eval()(pixels).last_hidden_state
    assert FID.from_pretrained(folders["vit"]).features(pictures) == pytest.approx(pooled.numpy(), abs=1e-5)
    found = KID.from_pretrained(folders["resnet"]).features(pictures)
    assert found == pytest.approx(maps.mean((2, 3)).numpy(), abs=1e-5)
    layers = VisionModel.from_pretrained(folders["resnet"]).layers(pictures)
    assert layers[-1][0, 1, 3].item() == pytest.approx(maps[0, 3, 0, 1].item(), abs=1e-5)


def patch_statistics(pictures: Pictures) -> np.ndarray:
    """Features that see blur and noise: mean and spread of grey in each of 8 x 8 patches. Shapes: (N, 128)."""
    grey = pictures.mean(-1).reshape(-1, 8, 8, 8, 8) / 255
    return np.concatenate([grey.mean((2, 4)), grey.std((2, 4))], axis=1).reshape(len(pictures), -1)


@pytest.mark.parametrize("metric", [FID, KID, CMMD])
def test_spoilt_renders_are_further_from_real_ones(metric: Any, folders: dict[str, Path]) -> None:
    measured = metric.from_pretrained(folders["vit"])
    real, others = patch_statistics(renders(0, 200)), renders(1, 200)

    def distance(pictures: Pictures) -> float:
        (value,) = measured.compare(real, patch_statistics(pictures)).values()
        return float(value)

    check_gets_worse(distance, others, noise=(20, 60), blur=(2, 9))
    assert distance(others) < distance(255 - others)


@pytest.mark.parametrize("side_px", [96, 512])
def test_the_same_pictures_in_a_folder_are_at_no_distance(
    folders: dict[str, Path], tmp_path: Path, side_px: int
) -> None:
    drawn = [np.asarray(Image.fromarray(one).resize((side_px, side_px), 3)) for one in renders(3, 40)]
    for number, picture in enumerate(drawn):
        Image.fromarray(picture).save(tmp_path / f"{number:02d}.png")
    reference = read_reference(tmp_path)
    for metric in (FID.from_pretrained(folders["vit"]), FID.from_pretrained(folders["clip"])):
        real, ours = set_features(metric, reference, batch=7), set_features(metric, drawn)
        assert real == pytest.approx(ours, abs=1e-5)
        assert metric.compare(real, ours)["fid"] == pytest.approx(0, abs=1e-5)
        # The model itself resizes: no resizing before it, which would be one more.
        assert ours[:3] == pytest.approx(metric.features(np.stack(drawn[:3])), abs=1e-5)


def test_sets_of_several_sizes_are_read_as_central_squares(folders: dict[str, Path]) -> None:
    metric = FID.from_pretrained(folders["vit"])
    wide = RNG.integers(0, 256, (3, 40, 60, 3), dtype=np.uint8)
    tall = RNG.integers(0, 256, (2, 50, 33, 3), dtype=np.uint8)
    found = set_features(metric, [*wide, *tall], batch=4)
    assert found[:3] == pytest.approx(metric.features(wide[:, :, 10:50]), abs=1e-5)
    assert found[3:] == pytest.approx(metric.features(tall[:, 8:41]), abs=1e-5)


def test_fid_on_a_random_network_sees_how_much_pictures_are_spoilt(folders: dict[str, Path]) -> None:
    metric = FID.from_pretrained(folders["vit"])
    real, others = metric.features(renders(0, 120)), renders(1, 120)

    def distance(pictures: Pictures) -> float:
        return metric.compare(real, metric.features(pictures))["fid"]

    check_gets_worse(distance, others, noise=(40, 90), blur=(3, 9))


def test_diversity_against_a_hand_computation(folders: dict[str, Path], pictures: Pictures) -> None:
    metric = Diversity.from_pretrained(folders["vit"])
    vit = ViTModel.from_pretrained(folders["vit"]).eval()
    pixels = torch.from_numpy(
        ((pictures / 255 - np.array(MEAN)) / np.array(STD)).transpose(0, 3, 1, 2)
    ).float()
    with torch.no_grad():
        states = [s.numpy() for s in vit(pixels, output_hidden_states=True).hidden_states]
    distances = []
    for i in range(5):
        for j in range(i):
            layers = []
            for layer in states:
                a, b = (layer[k] / np.linalg.norm(layer[k], axis=1, keepdims=True) for k in (i, j))
                layers.append(np.mean(np.sum((a - b) ** 2, axis=1)))
            distances.append(np.mean(layers))
    assert metric.diversity(pictures) == pytest.approx(np.mean(distances), rel=1e-4)


def test_diversity_grows_with_what_differs(folders: dict[str, Path]) -> None:
    metric = Diversity.from_pretrained(folders["vit"])
    scenes = renders(2, 4)
    same = np.repeat(scenes[:1], 4, axis=0)
    assert metric.diversity(same) == pytest.approx(0, abs=1e-6)
    assert metric.diversity(same) < metric.diversity(noised(same, 10)) < metric.diversity(scenes)


def test_bad_sets_are_named(folders: dict[str, Path], pictures: Pictures) -> None:
    with pytest.raises(MetricError, match=r"shapes \(40, 6\) and \(1, 6\)"):
        frechet_distance(X, Y[:1])
    with pytest.raises(MetricError, match="one width"):
        squared_mmd(X, Y[:, :5], gaussian_kernel)
    metric = Diversity.from_pretrained(folders["vit"])
    with pytest.raises(MetricError, match="images-per-prompt"):
        metric.diversity(pictures[:1])
