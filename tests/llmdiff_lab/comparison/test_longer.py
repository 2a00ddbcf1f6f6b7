"""NAME-xN: the same rival with N times as many steps, for comparisons at equal seconds."""

import json
import math

import pytest

from llmdiff.errors import ConfigError
from llmdiff.training.log import read_log
from llmdiff_lab.comparison.names import SystemName
from llmdiff_lab.comparison.prepare import choose_rivals, prepare_benchmark


def run_benchmark(build, out, names, **settings):
    plan = prepare_benchmark(
        build, out, choose_rivals(names), prompts_per_split=1, drawing_steps=1, **settings
    )
    return plan.run(command="")


def steps_of(run):
    logs = (run / "training").rglob("log.jsonl")
    return {
        str(log.parent.relative_to(run / "training")): max(line["step"] for line in read_log(log))
        for log in logs
    }


def test_a_rival_takes_as_many_more_steps_of_every_kind_as_its_name_says(built, tmp_path):
    names = ["guided", "guided-x2.5", "guided-x2.5@0.3"]
    report = run_benchmark(built, tmp_path, names, seeds=1, steps=2, text_steps=6)
    runs = {name: tmp_path / "runs" / name / "seed-0" for name in names}
    assert steps_of(runs["guided"]) == {"gains": 1, "warm-start": 5, ".": 2}
    assert steps_of(runs["guided-x2.5"]) == {"gains": 2, "warm-start": 12, ".": 5}
    # A mixture is drawn with what was trained.
    assert not (runs["guided-x2.5@0.3"] / "training").exists()
    trained = {name: json.loads((run / "trained.json").read_text()) for name, run in runs.items()}
    assert trained["guided-x2.5@0.3"] == trained["guided-x2.5"] != trained["guided"]
    title = "ours, c = x_0 + sum (g s + k v); trained for 2.5 times as many steps"
    assert report["systems"]["guided-x2.5"]["title"] == title
    assert report["systems"]["guided-x2.5@0.3"]["title"] == f"{title}; drawn at scale 0.3"
    assert report["systems"]["guided-x2.5"]["group"] == "ours"
    above = report["systems"]["guided"]["longer_above"]
    assert list(above) == ["guided-x2.5"]  # a mixture is none of ours alone
    assert list(report["systems"]["guided-x2.5@0.3"]["longer_above"]) == ["guided-x2.5"]
    assert "longer_above" not in report["systems"]["guided-x2.5"]
    ours = report["systems"]["guided-x2.5"]["ours_above"]
    assert {part: gap["mean"] for part, gap in above["guided-x2.5"].items()} == {
        part: -gap["mean"] for part, gap in ours.items()
    }
    tables = (tmp_path / "report.md").read_text()
    assert tables.count("**guided-x2.5 above the others: points, same prompts") == 1
    assert "**guided above the others: points, same prompts" in tables
    (said,) = [line for line in report["treatment"] if "Not alike in steps" in line]
    assert "guided-x2.5, guided-x2.5@0.3. NAME-xN is NAME with N times" in said
    alone = run_benchmark(built, tmp_path / "other", ["base"], seeds=1)
    assert not any("Not alike" in line for line in alone["treatment"])


def test_its_learning_rate_is_that_of_the_rival_which_is_trained_for_it(built, tmp_path):
    rates = {"learning_rates": (1e-3, 1e-9), "search_steps": 1, "steps": 2, "seeds": 2}
    report = run_benchmark(built, tmp_path, ["base-states-x2"], **rates)
    assert list(report["systems"]) == ["base-states-x2"]
    found = json.loads((tmp_path / "runs" / "base-states" / "search.json").read_text())
    rate = json.loads((tmp_path / "runs" / "base-states" / "seed-0" / "trained.json").read_text())[
        "learning_rate"
    ]
    assert str(rate) in found
    assert report["systems"]["base-states-x2"]["learning_rate"] == rate
    assert not (tmp_path / "runs" / "base-states-x2" / "search").exists()
    for seed in (0, 1):
        run = tmp_path / "runs" / "base-states-x2" / f"seed-{seed}"
        assert steps_of(run) == {".": 4}
        log = [line for line in read_log(run / "training" / "log.jsonl") if "learning_rate" in line]
        # The last of four steps of a cosine: a tenth of four is no warm-up.
        assert log[-1]["learning_rate"] == pytest.approx(rate * 0.5 * (1 + math.cos(0.75 * math.pi)))


def test_names_have_parts():
    assert SystemName.of("guided") == SystemName(rival="guided")
    assert SystemName.of("ella-x3") == SystemName(rival="ella", times=3)
    assert SystemName.of("refined-x2.4@0.7") == SystemName(rival="refined", times=2.4, scale=0.7)
    assert SystemName.of("refined-x2.4@0.7").trained == "refined-x2.4"


@pytest.mark.parametrize("wrong", ["base-x2", "base-longer-x2", "ella-x0", "ella-x1", "ella-x2.0"])
def test_a_number_of_times_that_is_none_is_refused(wrong):
    with pytest.raises(ConfigError, match=rf"'{wrong}', expected a factor of the steps after the -x"):
        choose_rivals([wrong])


def test_unknown_names_are_refused_and_readers_are_missed():
    for wrong in ("elly-x2", "ella-xtwo"):
        with pytest.raises(ConfigError, match=rf"'{wrong}'.*ella"):
            choose_rivals([wrong])
    with pytest.raises(ConfigError, match=r"'t5-blocks-x2' cannot be run: no t5"):
        choose_rivals(["t5-blocks-x2"])
