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
        "one_product",
        pytest.param("launches", marks=pytest.mark.slow),
        pytest.param("true_shapes", marks=pytest.mark.slow),
        # These start processes of their own, which import everything again.
        *(
            pytest.param(one, marks=pytest.mark.soak)
            for one in ("caching", "paired", "startup", "memory", "scaling")
        ),
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
    if name == "true_shapes":
        few = {
            f"draw, {shape}, 64 px, {steps} LCM steps" for shape in ("SD 1.5", "SDXL") for steps in (1, 2, 4)
        }
        assert few <= {one["name"] for one in records}


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


def test_the_speed_record_is_ranked_within_each_class_of_machines(script, tmp_path):
    record = script("speed_record")
    base = {"machine": "x86_64", "command": "python a.py", "date": "2026-01-02T03:04:05+00:00"}
    exact = {"mean": 0.712, "low": 0.675, "high": 0.75, "n": 600, "how": "bootstrap"}
    for name, place, seconds in (
        ("slow", "2 CPU cores", 9000.4),
        ("fast", "2 CPU cores", 61.0),
        ("odd", "8 CPU cores", 5.0),
    ):
        entry = base | {"name": name, "class": place, "seconds": seconds, "exact_match": exact}
        record.enter(entry, tmp_path / "record.json")
    rows = [line for line in (tmp_path / "record.md").read_text().splitlines() if line.startswith("|")][2:]
    assert [[cell.strip() for cell in row.split("|")[1:5]] for row in rows] == [
        ["2 CPU cores (x86_64)", "61", "71.2 [67.5, 75.0]", "fast"],
        ["2 CPU cores (x86_64)", "9,000", "71.2 [67.5, 75.0]", "slow"],
        ["1 GPU", "no entry yet", "", ""],
        ["8 CPU cores (x86_64)", "5", "71.2 [67.5, 75.0]", "odd"],
    ]
    assert [one["name"] for one in json.loads((tmp_path / "record.json").read_text())["entries"]] == [
        "slow", "fast", "odd",
    ]  # fmt: skip


def test_the_page_of_the_speed_record_has_its_entries(script):
    place = FOLDER.parent / "docs" / "results" / "speed-record.json"
    entries = json.loads(place.read_text())["entries"]
    assert place.with_suffix(".md").read_text() == script("speed_record").page(entries)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_run_that_misses_the_goal_is_measured_and_not_entered(script, tmp_path, capsys):
    few = [
        "data.scenes=100",
        "data.things=20",
        "training.gain_steps=1",
        "training.gain_captions=4",
        "training.warm_start_steps=2",
    ]
    few += ["training.steps=1", "training.batch_size=2", "watch.validation_samples=2", "watch.prompts=[]"]
    config = str(FOLDER.parent / "configs" / "openmoji-smollm2.yaml")
    where = ["--record", str(tmp_path / "record.json"), "--name", "short", "--prompts", "1"]
    entry = script("speed_record").main([config, *few, *where])
    assert entry["seconds"] > 0
    assert entry["exact_match"]["n"] == 11
    assert "no entry, expected 70 % of all prompts" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_own_pictures_are_captioned_with_invented_words_and_prompts_have_them_or_not(script, tmp_path):
    own = script("own_pictures")
    own.write_folder(tmp_path / "pictures", 6)
    captions = [path.read_text() for path in sorted((tmp_path / "pictures").glob("*.txt"))]
    assert len(captions) == len(list((tmp_path / "pictures").glob("*.png"))) == 6
    known, invented = own.INVENTED.keys(), own.INVENTED.values()
    assert all(any(word in text for word in invented) for text in captions)
    assert not any(word in text.split() for word in known for text in captions)
    rows = own.prompts(5)
    assert [row.tags[0] for row in rows] == ["invented words"] * 5 + ["other words"] * 5
    assert [any(word in row.prompt for word in invented) for row in rows] == [True] * 5 + [False] * 5
    assert not {row.prompt for row in rows} & {text.strip() for text in captions}


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_own_pictures_are_trained_on_and_measured(script, tmp_path):
    few = ["--pictures", "5", "--prompts", "1", "--steps", "1", "--training-steps", "1"]
    record = script("own_pictures").main([*few, "--out", str(tmp_path / "a.json")])
    assert json.loads((tmp_path / "a.json").read_text()) == record
    assert set(record["runs"]) == {"0", "5"}
    assert record["runs"]["5"]["training_steps"] == 1
    for run in record["runs"].values():
        assert {tag: row["n"] for tag, row in run["exact_match"].items()} == {
            "invented words": 1,
            "other words": 1,
        }


@pytest.mark.filterwarnings("ignore")
def test_a_training_from_captions_alone_is_timed_at_a_small_shape(script, tmp_path):
    found = script("captions_only").main(["--quick", "--out", str(tmp_path / "out.json")])
    assert json.loads((tmp_path / "out.json").read_text()) == found
    assert found["step_s"] > 0
    assert found["captions"] > 50
