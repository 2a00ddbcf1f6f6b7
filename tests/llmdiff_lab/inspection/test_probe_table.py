"""The table of probes on a tiny random LLM: every row, its intervals, a second run, and the sums by hand."""

import json

import pytest
import torch
from transformers import BertConfig, BertModel
from typer.testing import CliRunner

from llmdiff.errors import ConfigError
from llmdiff.world.scenes import World
from llmdiff.world.splits import SPLITS
from llmdiff_lab.cli.main import app
from llmdiff_lab.inspection import probe_table
from llmdiff_lab.inspection.block_sums import BlockSums
from llmdiff_lab.inspection.probe_plots import probe_tables, save_probes
from llmdiff_lab.inspection.probe_table import ProbeSettings, measure_probes
from llmdiff_lab.inspection.texts import read_texts

WORLD = World(thing_count=20, styles=("flat", "line"))
FEW = {"captions": 24, "tests": 6, "steps": 4, "batch": 8, "world": WORLD}


@pytest.fixture
def folders(tiny_llm, tmp_path):
    tiny_llm.model.save_pretrained(tmp_path / "llm")
    tiny_llm.tokenizer.save_pretrained(tmp_path / "llm")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=len(tiny_llm.tokenizer), **sizes)).save_pretrained(tmp_path / "encoder")
    tokenizer = tiny_llm.tokenizer
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.save_pretrained(tmp_path / "encoder")
    return {"llm": str(tmp_path / "llm"), "encoder": str(tmp_path / "encoder")}


def test_sums_are_those_of_the_encoding_itself(tiny_llm):
    captions = read_texts(None, 12)
    sums = BlockSums(tiny_llm, captions, template=None, lone="token+bos", title="scores")
    with torch.no_grad():
        for kind in ("guided", "paper"):
            gains = sums.fresh_gains(kind)
            gains.gamma.uniform_(-1, 1)
            if gains.kappa is not None:
                gains.kappa.uniform_(-1, 1)
            # An order of its own: captions are read sorted by length and handed out by number.
            got, wanted = sums.encode([7, 2], kind, gains), gains.encode(tiny_llm, [captions[7], captions[2]])
            assert torch.equal(got.token_mask, wanted.token_mask)
            assert torch.allclose(got.states, wanted.states, atol=2e-2, rtol=2e-3)  # kept as float16
        guided, plain = sums.fresh_gains("guided"), sums.fresh_gains("plain")
        plain.gamma.uniform_(0.5, 1)
        guided.gamma.copy_(plain.gamma)
        guided.kappa.copy_(plain.gamma * plain.lone_scale / plain.score_scale)
        one, other = sums.encode([3], "plain", plain), sums.encode([3], "guided", guided)
        assert torch.allclose(one.states, other.states, atol=1e-3)
    with pytest.raises(ConfigError, match="sum is 'none'"):
        sums.fresh_gains("none")


def test_every_row_has_its_figures_and_a_second_run_measures_nothing(folders, tmp_path, monkeypatch):
    settings = ProbeSettings(**folders, **FEW)
    record = measure_probes(settings, tmp_path / "out")
    assert list(record["table"]) == ["guided", "paper", "last layer", "norm-average", "encoder"]
    assert set(record["differences"]) == set(record["table"]) - {"last layer"}
    for splits in record["table"].values():
        assert list(splits) == list(SPLITS)
        for kinds in splits.values():
            assert all(0 <= row["low"] <= row["mean"] <= row["high"] <= 1 for row in kinds.values())
            assert kinds["all"]["n"] == 6
        assert splits["colours"]["colours"]["n"] == splits["styles"]["style"]["n"] == 6

    def refused(*args, **more):
        raise AssertionError("measured again")

    monkeypatch.setattr(probe_table, "train_probe", refused)
    assert measure_probes(settings, tmp_path / "out") == record
    with pytest.raises(AssertionError, match="measured again"):
        measure_probes(ProbeSettings(**folders, **FEW, seed=1), tmp_path / "out")


def test_a_damaged_row_is_measured_again(folders, tmp_path):
    settings = ProbeSettings(**folders, **FEW)
    record = measure_probes(settings, tmp_path)
    (tmp_path / "rows" / "paper.json").write_text('{"settings": ')
    (tmp_path / "rows" / "encoder.json").write_text("[]")
    assert measure_probes(settings, tmp_path) == record


def test_the_tables_mark_what_differs_from_the_last_layer(folders, tmp_path):
    record = measure_probes(ProbeSettings(**folders, **FEW), tmp_path)
    record["table"]["guided"]["seen"]["objects"] = {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 6}
    record["differences"]["guided"]["seen"]["objects"] = {"mean": 0.3, "low": 0.1, "high": 0.5, "n": 6}
    record["differences"]["paper"]["seen"]["objects"] = {"mean": 0.3, "low": -0.1, "high": 0.5, "n": 6}
    tables = probe_tables(record)
    assert "| guided | **50** [40, 60] |" in tables
    assert "| paper | **" not in tables.partition("**named**")[0]
    paths = save_probes(record, tmp_path / "new")
    assert [path.name for path in paths] == ["probes.json", "probes.md", "probes.png", "probes.svg"]
    assert json.loads(paths[0].read_text()) == record
    assert paths[2].read_bytes().startswith(b"\x89PNG")


def test_the_command_prints_and_writes_the_table(folders, tmp_path):
    arguments = ["inspect", "probes", "--llm", folders["llm"], "--encoder", "none", "--captions", "24"]
    arguments += ["--tests", "2", "--steps", "2", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "| norm-average |" in result.output
    assert "| encoder |" not in result.output
    assert json.loads((tmp_path / "out" / "probes.json").read_text())["settings"]["captions"] == 24
    refused = CliRunner().invoke(app, [*arguments, "--encoder", "no-such-encoder"])
    assert refused.exit_code == 1
    assert "error: encoder 'no-such-encoder'" in refused.output


def test_numbers_out_of_range_are_errors_by_name():
    with pytest.raises(ConfigError, match="tests is 0"):
        ProbeSettings(tests=0)
    with pytest.raises(ConfigError, match="splits: got 'nowhere'"):
        ProbeSettings(splits=("seen", "nowhere"))
