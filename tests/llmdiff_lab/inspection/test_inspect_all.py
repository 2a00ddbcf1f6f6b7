"""The scripts that write what docs/results says of the insides of an LLM, whole, on a tiny random LLM."""

import json
import sys

import pytest
from closed_endpoint import Endpoint, raw, says


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_part_is_written_once_and_none_is_large(script, reading_adapter, tmp_path, monkeypatch, capsys):
    inspect_all, out = script("inspect_all"), tmp_path / "results"
    arguments = {"out": out, "adapter": reading_adapter, "llm": tmp_path / "llm", "encoder": "none"}
    arguments |= {"steps": 1, "scenes": 2, "texts": 24, "captions": 8, "tests": 2, "probe-steps": 1}
    words = [word for name, value in arguments.items() for word in (f"--{name}", str(value))]

    def run(*more):
        monkeypatch.setattr(
            sys, "argv", ["speed/inspect_all.py", *words, "--work", str(tmp_path / "work"), *more]
        )
        inspect_all.main()
        return capsys.readouterr().out

    assert "there already" not in run()
    assert sorted(path.name for path in out.iterdir()) == [
        "attention-steps.png", "attention.json", "attention.png", "denoising.json", "denoising.md",
        "denoising.png", "pointing.json", "probes.json", "probes.md", "probes.png", "scores.json", "scores.png",
    ]  # fmt: skip
    for path in out.iterdir():
        assert 0 < path.stat().st_size < 1_000_000
        if path.suffix == ".json":
            record = json.loads(path.read_text())
            assert record["command"].startswith("python speed/inspect_all.py --out")
            assert record["date"] > "2026"
    assert json.loads((out / "pointing.json").read_text())["scenes"] == 2
    assert run().count("there already") == 5
    before = (out / "scores.json").stat().st_mtime_ns
    assert "pointing: {" in run("--only", "pointing", "--again")
    assert (out / "scores.json").stat().st_mtime_ns == before
    with pytest.raises(SystemExit):
        run("--only", "nothing")
    assert "expected some of scores, attention" in capsys.readouterr().err


def test_the_proxy_is_measured_against_the_llm_alone_on_the_same_prompts(
    script, reading_adapter, tmp_path, monkeypatch, capsys
):
    endpoint = Endpoint(says("a red car"), raw(b"", 401), says("a dog"))
    arguments = {"reword-url": endpoint.url, "reword-model": "closed-1", "prompts": 2, "steps": 1}
    arguments |= {"adapter": reading_adapter, "answers": tmp_path / "kept", "out": tmp_path / "proxy.json"}
    words = [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", ["speed/proxy.py", *words])
    try:
        script("proxy").main()
    finally:
        endpoint.close()
    record = json.loads((tmp_path / "proxy.json").read_text())
    assert set(record["splits"]) == {"synonyms", "descriptions"}
    for row in record["splits"].values():
        assert set(row["accuracy"]) == {"base", "llm", "llm reworded", "llm told"}
        assert all(figures["n"] == 2 for figures in row["accuracy"].values())
        for gain, name in (("gain", "llm reworded"), ("gain_told", "llm told")):
            difference = row["accuracy"][name]["mean"] - row["accuracy"]["llm"]["mean"]
            assert row[gain]["mean"] == pytest.approx(difference)
    # One of the four was refused when it was asked.
    assert [row["answer"] for row in record["examples"]].count("") == 1
    assert record["splits"]["synonyms"]["answered"] == 0.5
    assert record["splits"]["descriptions"]["answered"] == 1.0
    assert "gain" in capsys.readouterr().out
