"""The same adapter on two tiny LLMs of the test preset: compared, gone on, reported."""

import json
import re

import pytest
from tiny.pipelines import build_llm
from typer.testing import CliRunner

from llmdiff.errors import ConfigError, LLMNotFoundError
from llmdiff.language.llm import DecoderLLM
from llmdiff.world.splits import SPLITS
from llmdiff_lab.cli.main import app
from llmdiff_lab.comparison import compare_llms as comparing
from llmdiff_lab.comparison.compare_page import comparison_tables, save_comparison
from llmdiff_lab.comparison.settings import BenchmarkSettings
from llmdiff_lab.world_build.presets import CPU

SETTINGS = BenchmarkSettings(
    rivals=("guided",),
    seeds=1,
    preset="test",
    llm="none",
    steps=2,
    text_steps=4,
    batch=4,
    captions=16,
    learning_rates=(1e-3,),
    prompts_per_split=2,
    drawing_steps=1,
)


@pytest.fixture(scope="module")
def llms(llm_folder, tmp_path_factory):
    """A small one and a wider one, the wider one first."""
    wider = tmp_path_factory.mktemp("llms") / "wider"
    llm = build_llm(hidden_size=48)
    llm.model.save_pretrained(wider)
    llm.tokenizer.save_pretrained(wider)
    return [str(wider), llm_folder]


@pytest.fixture(scope="module")
def done(built, llms, tmp_path_factory):
    out = tmp_path_factory.mktemp("compared")
    return out, comparing.compare_llms(built, out, llms, SETTINGS, command="llmdiff-lab compare-llms")


def test_settings_are_the_presets_unless_others_are_asked_for():
    made_with = CPU
    kept = comparing.comparison_settings("cpu", batch=7)
    assert kept.text_steps == made_with.adapter_gain_steps + made_with.adapter_warm_steps
    assert (kept.steps, kept.captions) == (made_with.adapter_steps, made_with.adapter_captions)
    assert (kept.batch, kept.rivals) == (7, ("guided",))
    assert comparing.comparison_settings("cpu", text_steps=0).text_steps == 0
    with pytest.raises(ConfigError, match="rivals: got 'guide'"):
        comparing.comparison_settings("cpu", system="guide")


def test_llms_are_listed_by_size_with_figures_and_costs(done, llms):
    _, report = done
    assert list(report["llms"]) == llms[::-1]
    for name, row in report["llms"].items():
        model = DecoderLLM.from_pretrained(name).model
        assert row["parameters"] == sum(p.numel() for p in model.parameters())
        assert 0 < row["block_parameters"] < row["parameters"]
        assert row["seconds_per_encoding"] > 0
        assert row["held_out"]["n"] == 2 * (len(SPLITS) - 1)
        assert row["cost"]["trained_parameters"] > 0
        assert set(row["differences_to_base"]) == {"overall", "held_out", *row["splits"]}
    small, wide = report["llms"].values()
    assert small["parameters"] < wide["parameters"]
    assert small["differences_to_smallest"] is None
    assert wide["differences_to_smallest"]["overall"]["n"] == 2 * len(SPLITS)
    assert report["base"]["overall"]["n"] == 2 * len(SPLITS)


def test_a_second_run_trains_and_draws_nothing(built, done, llms):
    out, report = done
    files = [*out.rglob("model/*"), *out.rglob("*.png"), *out.rglob("llm.json")]
    before = {path: path.stat().st_mtime_ns for path in files}
    again = comparing.compare_llms(built, out, llms, SETTINGS, command="llmdiff-lab compare-llms")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert {**again, "date": None} == {**report, "date": None}


def test_the_files_hold_the_same_figures_and_the_page_stands_alone(done, tmp_path):
    _, report = done
    paths = save_comparison(report, tmp_path)
    assert [path.suffix for path in paths] == [".json", ".md", ".png", ".html"]
    assert json.loads(paths[0].read_text()) == json.loads(json.dumps(report))
    tables = paths[1].read_text()
    assert tables == comparison_tables(report)
    wide = report["llms"][list(report["llms"])[1]]
    assert f"| wider | {100 * wide['overall']['mean']:.1f} [" in tables
    page = paths[3].read_text()
    assert not re.search(r"(?:src|href)\s*=\s*[\"']?(?:https?:)?//", page)
    assert "default-src 'none'" in page
    for line in tables.splitlines():
        if line.startswith("| wider"):
            assert f"<td>{line.split('|')[2].strip()}</td>" in page


def test_what_cannot_be_compared_is_refused_before_any_training(built, llms, tmp_path):
    def compare(names, settings=SETTINGS):
        return comparing.compare_llms(built, tmp_path, names, settings, command="")

    with pytest.raises(ConfigError, match="got none"):
        compare([])
    with pytest.raises(ConfigError, match="is given twice"):
        compare([llms[0], llms[0]])
    with pytest.raises(LLMNotFoundError, match="no-such-llm"):
        compare([llms[1], "no-such-llm"])
    with pytest.raises(ConfigError, match="'base-states' does not read an LLM"):
        compare(llms, BenchmarkSettings(**{**vars(SETTINGS), "rivals": ("base-states",)}))
    assert not list(tmp_path.rglob("runs"))


def test_the_command_does_it_all(built, llms, tmp_path):
    arguments = ["compare-llms", "--llms", ",".join(llms), "--out", str(tmp_path / "out"), "--device", "cpu"]
    arguments += ["--preset", "test", "--build", str(built.folder), "--steps", "1", "--text-steps", "2"]
    result = CliRunner().invoke(app, [*arguments, "--prompts", "1", "--drawing-steps", "1"])
    assert result.exit_code == 0, result.output
    assert "| wider |" in result.output
    assert (tmp_path / "out" / "compare-llms.html").stat().st_size > 5_000
    assert (tmp_path / "out" / "llms" / "wider" / "report.html").exists()
    other = CliRunner().invoke(app, [*arguments, "--prompts", "2", "--drawing-steps", "1"])
    assert other.exit_code == 1
    assert "prompts_per_split 1, this one has 2" in other.output
