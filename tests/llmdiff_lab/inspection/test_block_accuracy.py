"""Accuracy without each block and with each block alone, on the shipped base and a tiny LLM."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from llmdiff import Control, LLMController
from llmdiff.errors import ConfigError
from llmdiff.evaluation.suites.scenes import SceneScorer, load_checker, suite_of_pipeline
from llmdiff.evaluation.systems import pipeline_system
from llmdiff.language.llm import DecoderLLM
from llmdiff.world.splits import SPLITS
from llmdiff_lab.cli.main import app
from llmdiff_lab.inspection.block_accuracy import (
    attention_groups,
    block_settings,
    learned_weights,
    measure_blocks,
)
from llmdiff_lab.inspection.block_plots import block_figure, block_table


@pytest.fixture(scope="module")
def scorer():
    return SceneScorer(load_checker("openmoji"))


def test_every_block_is_left_out_once_and_kept_alone_once():
    settings = block_settings(3)
    assert settings["all blocks"] == {}
    assert settings["no block"] == {0: 0.0, 1: 0.0, 2: 0.0}
    assert settings["without block 1"] == {1: 0.0}
    assert settings["block 1 alone"] == {0: 0.0, 2: 0.0}
    assert len(settings) == 2 + 2 * 3


def test_the_command_draws_each_setting_and_goes_on(reading_adapter, tmp_path):
    out = tmp_path / "blocks"
    arguments = ["inspect", "blocks", "--out", str(out), "--adapter", str(reading_adapter)]
    arguments += [
        "--llm",
        str(reading_adapter.parent / "llm"),
        "--prompts",
        "1",
        "--steps",
        "2",
        "--device",
        "cpu",
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    report = json.loads((out / "blocks.json").read_text())
    blocks = len(report["weights"]["gamma"])
    assert len(report["without"]) == len(report["alone"]) == blocks
    assert report["prompts"] == len(SPLITS)
    assert all(
        row["n"] == len(SPLITS)
        for row in (*report["without"], *report["alone"], report["all"], report["none"])
    )
    assert (out / "blocks.md").read_text().count("\n| ") == blocks + 1
    assert Image.open(out / "blocks.png").width > 500
    drawn = {path: path.stat().st_mtime_ns for path in out.glob("drawn/*/*.png")}
    assert len(drawn) == len(SPLITS) * (2 + 2 * blocks)
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in out.glob("drawn/*/*.png")} == drawn


def test_a_setting_draws_as_its_gains_do(reading_adapter, scorer, tmp_path):
    controller = LLMController.from_pretrained(
        reading_adapter, llm=DecoderLLM.from_pretrained(reading_adapter.parent / "llm")
    )
    pipe = controller.load_pipeline()
    # A new adapter draws as the base does.
    with torch.no_grad():
        for branch in controller.adapter.branches.values():
            branch.b2.fill_(1.0)
    suite = suite_of_pipeline("openmoji", scorer.checker, 1, 0)
    report = measure_blocks(
        controller, pipe, suite, scorer, tmp_path, control=Control(), steps=2, guidance_scale=3.0
    )
    draw = pipeline_system(pipe, steps=2, guidance_scale=3.0)
    first = suite.prompts[0]
    with controller.attached(pipe, block_gains={1: 0.0}):
        expected = draw([first.prompt], first.seeds(1, 0))[0]
    without, whole = (
        np.asarray(Image.open(tmp_path / "drawn" / name / "00000-0.png"))
        for name in ("without block 1", "all blocks")
    )
    # The prompt was drawn in a batch with the others, which rounds otherwise.
    assert np.abs(without.astype(int) - expected).max() <= 1
    assert (without != whole).mean() > 0.01
    # What the figure shows of the difference is the difference of the two accuracies.
    shares = {
        name: np.mean(
            [
                line["values"]["scenes"]
                for line in map(json.loads, (tmp_path / "prompts.jsonl").read_text().splitlines())
                if line["system"] == name
            ]
        )
        for name in ("without block 1", "all blocks")
    }
    assert report["without"][1]["mean"] == pytest.approx(shares["without block 1"] - shares["all blocks"])


def test_gains_of_its_own_are_refused(reading_adapter, scorer, tmp_path):
    controller = LLMController.from_pretrained(
        reading_adapter, llm=DecoderLLM.from_pretrained(reading_adapter.parent / "llm")
    )
    suite = suite_of_pipeline("openmoji", scorer.checker, 1, 0)
    with pytest.raises(ConfigError, match="block_gains is given"):
        measure_blocks(controller, None, suite, scorer, tmp_path, control=Control(block_gains={0: 2.0}))


def test_routed_weights_have_a_column_for_each_group(tiny_llm, sd_pipe):
    controller = LLMController.create(tiny_llm, sd_pipe, routing=2)
    weights = learned_weights(controller.adapter.context)
    assert np.shape(weights["gamma"]) == np.shape(weights["kappa"]) == (tiny_llm.num_blocks, 2)
    row = {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 10}
    rows = [row] * tiny_llm.num_blocks
    groups = attention_groups(controller.adapter)
    assert [name for part in groups for name in part] == sorted(
        controller.adapter.config.cross_attention, key=_runs
    )
    report = {"weights": weights, "groups": groups, "without": rows, "alone": rows, "all": row, "none": row}
    figure = block_figure(report)
    assert [place.get_title()[:13] for place in figure.axes[:2]] == ["learned gamma", "learned kappa"]
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert [label.split(".")[0] for label in labels] == [part[0].split(".")[0] for part in groups]
    assert len(labels) == 2
    assert f"1: {groups[1][0].partition('.transformer')[0]}" in block_table({**report, "prompts": 10})


def _runs(name):
    return ("down", "mid", "up").index(name.partition("_")[0]), name
