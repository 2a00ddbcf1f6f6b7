"""The benchmarks of speed: that each runs and writes its records, that timing takes turns, that a run goes on."""

import json
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "speed"
KEYS = {"name", "ratio", "ours", "other", "unit", "machine", "versions"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    "name",
    [
        "encoding",
        pytest.param("drawing", marks=pytest.mark.slow),
        pytest.param("training_step", marks=pytest.mark.slow),
        # These start processes of their own, which import everything again.
        *(pytest.param(one, marks=pytest.mark.soak) for one in ("caching", "startup", "memory", "scaling")),
    ],
)
def test_it_runs_and_writes_its_records(script, tmp_path, name):
    more = ["--plots", str(tmp_path)] if name == "scaling" else []
    records = script(name).main(["--quick", "--repeats", "1", "--out", str(tmp_path / "out.json"), *more])
    written = json.loads((tmp_path / "out.json").read_text())["records"]
    assert written == records
    assert len({one["name"] for one in records}) == len(records) >= 2
    for one in records:
        assert set(one) >= KEYS
        assert one["ours"] >= 0
        assert ("holds" in one) == ("aim" in one)
    assert (tmp_path / "scaling.png").exists() == (name == "scaling")


def test_sides_warm_up_and_then_take_turns_inside_their_contexts(script):
    measuring = script("measuring")
    done = []

    @contextmanager
    def around():
        done.append("open")
        yield
        done.append("close")

    acts = {"a": lambda: (done.append("a"), time.sleep(0.02)), "b": lambda: done.append("b")}
    seconds = measuring.interleaved(acts, repeats=2, within={"b": around})
    one_turn = ["a", "open", "b", "close"]
    assert done == 3 * one_turn
    assert seconds["a"] >= 0.02 > seconds["b"]


def test_a_record_says_whether_its_aim_holds(script):
    measuring = script("measuring")
    slow = measuring.record("a", ours=3.0, other=2.0, unit="s", aim=measuring.Aim(value=1.2))
    assert (slow["ratio"], slow["aim"], slow["holds"]) == (1.5, "<= 1.2", False)
    fast = measuring.record(
        "b", ours=1.0, other=80.0, ratio=80.0, unit="s", aim=measuring.Aim(at_most=False, value=50)
    )
    assert (fast["ratio"], fast["aim"], fast["holds"]) == (80.0, ">= 50", True)
    alone = measuring.record("c", ours=0.5, other=None, unit="s", aim=measuring.Aim(of="ours", value=0.6))
    assert (alone["ratio"], alone["aim"], alone["holds"]) == (None, "ours <= 0.6", True)
    assert measuring.table([slow, fast, alone]).splitlines()[2:] == [
        "| a | 3 | 2 | s | 1.5 | <= 1.2 | **no** |",
        "| b | 1 | 80 | s | 80 | >= 50 | yes |",
        "| c | 0.5 | | s | | ours <= 0.6 | yes |",
    ]


def test_a_part_inside_another_is_counted_once(script):
    clock = script("training_step").Clock("cpu")
    inner = clock.timed("inner", lambda: time.sleep(0.02))
    outer = clock.timed("outer", lambda: (inner(), time.sleep(0.01)))
    outer()
    clock.end_step()
    assert clock.total == 0  # what is before the end of the first step is forgotten
    outer()
    clock.end_step()
    assert clock.steps == 1
    assert clock.seconds["inner"] >= 0.02
    assert clock.seconds["outer"] >= 0.01
    assert sum(clock.seconds.values()) == pytest.approx(clock.total)


def test_a_run_goes_on_where_it_was_and_writes_the_page(script, tmp_path, monkeypatch, capfd):
    run_all, measuring = script("run_all"), script("measuring")
    missed = measuring.record(
        "encode", ours=2.2, other=1.0, unit="s", aim=measuring.Aim(value=2.0), limit_by_flops=1.93
    )
    held = measuring.record(
        "step", ours=1.0, other=20.0, unit="s", aim=measuring.Aim(value=0.1), shares={"data": 0.25}
    )
    monkeypatch.setattr(run_all, "commit", lambda: ("abc", False))
    kept = tmp_path / "kept" / "abc-cpu"
    kept.mkdir(parents=True)
    for name, one in (("encoding", missed), ("training_step", held)):
        (kept / f"{name}.json").write_text(json.dumps({"records": [one]}))
    arguments = ["--only", "encoding", "training_step", "--kept", str(tmp_path / "kept")]
    arguments += ["--results", str(tmp_path / "results")]
    assert run_all.main(arguments) == 0
    page = (tmp_path / "results" / "performance.md").read_text()
    assert "| encode | 2.2 | 1 | s | 2.2 | <= 2 | **no** |" in page
    assert "- encode: 2.2, aim <= 2; by counted FLOPs alone the ratio would be 1.93." in page
    assert "- step: shares (data 0.25)." in page
    assert "encoding, training_step at commit abc." in page
    # One of them at another commit: the other's figures stay as they were, and say where they come from.
    monkeypatch.setattr(run_all, "commit", lambda: ("def", False))
    later = tmp_path / "kept" / "def-cpu"
    later.mkdir()
    (later / "encoding.json").write_text(json.dumps({"records": [missed | {"ours": 1.5, "ratio": 1.5}]}))
    assert run_all.main(["--only", "encoding", *arguments[3:]]) == 0
    page = (tmp_path / "results" / "performance.md").read_text()
    assert "encoding at commit def; training_step at commit abc." in page
    assert "| encode | 1.5 |" in page
    assert "- step: shares (data 0.25)." in page
    monkeypatch.setattr(run_all, "commit", lambda: ("abc", False))
    summary = json.loads((tmp_path / "results" / "performance.json").read_text())
    assert summary["claims"]["step"]["ratio"] == 0.05
    assert summary["details"] == {"step": {"shares": {"data": 0.25}}}
    # Measured again where asked for: here by an interpreter that fails, and what there is stays.
    monkeypatch.setattr(run_all.sys, "executable", "/bin/false")
    assert run_all.main([*arguments, "--again"]) == 1
    assert "encoding failed" in capfd.readouterr().err
    assert (tmp_path / "results" / "performance.md").read_text() == page


@pytest.mark.filterwarnings("ignore")
def test_a_training_from_captions_alone_is_timed_at_a_small_shape(script, tmp_path):
    found = script("captions_only").main(["--quick", "--out", str(tmp_path / "out.json")])
    assert json.loads((tmp_path / "out.json").read_text()) == found
    assert found["step_s"] > 0
    assert found["captions"] > 50
