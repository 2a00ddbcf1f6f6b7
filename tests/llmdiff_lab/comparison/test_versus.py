"""Two systems of a benchmark prompt by prompt."""

import json
import subprocess
import sys

import pytest

from llmdiff.errors import ConfigError
from llmdiff_lab.comparison.versus import fault_rows, main, read_runs, seed_rows, split_rows


def write_run(folder, system, seed, exact, parts):
    place = folder / "runs" / system / f"seed-{seed}"
    (place / "evaluation").mkdir(parents=True)
    (place / "evaluation" / "report.json").write_text("{}")
    (place / "trained.json").write_text("{}")
    lines = [
        {
            "tags": ["seen" if at < 2 else "pairs"],
            "values": {"scenes": value, **{f"scenes: {k}": v for k, v in part.items()}},
        }
        for at, (value, part) in enumerate(zip(exact, parts, strict=True))
    ]
    (place / "evaluation" / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def folder(tmp_path):
    right = {"things": 1.0, "relation right": 1.0, "relation swapped": 0.0, "relation wrong": 0.0}
    swapped = {"things": 1.0, "relation right": 0.0, "relation swapped": 1.0, "relation wrong": 0.0}
    missing = {"things": 0.0, "count": 0.0}
    write_run(tmp_path, "one", 0, [1.0, 1.0, 1.0, 0.0], [right, right, right, swapped])
    write_run(tmp_path, "one", 1, [1.0, 1.0, 0.0, 0.0], [right, right, missing, swapped])
    write_run(tmp_path, "two", 0, [1.0, 0.0, 0.0, 0.0], [right, missing, missing, missing])
    return tmp_path


def test_differences_are_means_over_seeds_by_split(folder):
    head, seen, pairs = split_rows(read_runs(folder, "one"), read_runs(folder, "two"))
    assert head == ["split", "one", "two", "difference, points"]
    assert (seen[0], seen[3].split()[0]) == ("seen", "+50.0")
    assert (pairs[0], pairs[1].split()[0], pairs[3].split()[0]) == ("pairs", "25.0", "+25.0")


def test_runs_have_the_seeds_of_their_folders(tmp_path):
    for seed in (0, 2, 10):
        write_run(tmp_path, "one", seed, [float(seed == 10)], [{}])
    found = read_runs(tmp_path, "one")
    assert [run.seed for run in found] == [0, 2, 10]
    assert [run.figure("scenes")[0] for run in found] == [0.0, 0.0, 1.0]


def test_seeds_are_compared_beyond_chance(folder):
    _, one, two = seed_rows(read_runs(folder, "one"), read_runs(folder, "two"))
    # 3 of 4 agree; by chance 3/4 * 1/2 + 1/4 * 1/2 = 1/2 would.
    assert one == ["one", "2", "0.50", "50.0", "25.0"]
    assert two == ["two", "1", "-", "25.0", "75.0"]


def test_faults_are_counted_by_kind(folder):
    _, *rows = fault_rows(read_runs(folder, "one"), read_runs(folder, "two"))
    assert {row[0]: row[1:] for row in rows} == {
        "count + things": ["33.3", "100.0"],
        "relation swapped": ["66.7", "0.0"],
        "pictures that are not exact": ["3", "3"],
    }


def test_the_command_prints_the_tables_or_one_line(folder):
    line = [sys.executable, "-m", "llmdiff_lab.comparison.versus", str(folder), "one"]
    done = subprocess.run([*line, "two"], capture_output=True, text=True, check=True)
    assert "| relation swapped | 66.7 | 0.0 |" in done.stdout
    failed = subprocess.run([*line, "three"], capture_output=True, text=True)
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: ")
    assert "no runs of 'three'" in failed.stderr
    with pytest.raises(ConfigError, match="got 1 arguments"):
        main(["x"])
