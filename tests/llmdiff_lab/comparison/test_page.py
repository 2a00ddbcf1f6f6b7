"""The report of runs whose verdicts are known: figures, order, right beside swapped."""

import base64
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llmdiff.errors import ConfigError
from llmdiff_lab.comparison.page import benchmark_page
from llmdiff_lab.comparison.plots import curves_plot
from llmdiff_lab.comparison.runs import Run, read_run
from llmdiff_lab.comparison.settings import BenchmarkSettings
from llmdiff_lab.comparison.summary import predictions, summarise_runs
from llmdiff_lab.comparison.tables import OVER_SEEDS, benchmark_tables, ranking

PROMPTS = [("seen", "a car"), ("pairs", "a cat left of a dog"), ("pairs", "a bee above a cup")]
SETTINGS = BenchmarkSettings(
    rivals=("base", "ella", "guided"),
    seeds=2,
    llm="tiny",
    steps=10,
    batch=4,
    captions=20,
    learning_rates=(1e-3,),
)


def run_of(system, seed, relations, folder, *, exact_seen=True):
    """A run where each pair prompt has this relation; the picture's colour says which prompt it is."""
    folder.mkdir(parents=True)
    prompts = []
    for index, ((split, prompt), relation) in enumerate(zip(PROMPTS, (None, *relations), strict=True)):
        exact = exact_seen if relation is None else relation == "right"
        values = {"scenes": float(exact), "scenes: things": 1.0}
        if relation is not None:
            kinds = ("right", "swapped", "wrong")
            values |= {f"scenes: relation {kind}": float(kind == relation) for kind in kinds}
        values["siglip"] = (0.2, 0.4, 0.9)[index] + 0.1 * (system == "guided") + 0.02 * seed
        prompts.append(
            {"system": system, "id": str(index), "prompt": prompt, "tags": [split], "values": values}
        )
        Image.fromarray(np.full((4, 4, 3), 40 * index, np.uint8)).save(folder / f"{index:05d}-0.png")
    report = {
        "systems": {system: {"failed": 0, "sets": {"fid": 10.0 + seed}}},
        "suite": {"name": "scenes", "prompts": 3, "meanings": {"seen": "as trained", "pairs": "new <pairs>"}},
        "metrics": {"scenes": "a checker", "siglip": "openmoji", "fid": "openmoji"},
        "checker": {"exact": 0.99},
        "seconds_per_image": {system: 0.5 + seed},
    }
    trained = {"trained_parameters": 1234567, "seconds_per_step": 2.0 + seed, "peak_memory_gb": 1.5}
    curve = [] if system == "base" else [(5, 1.0 + seed), (10, 0.5)]
    return Run(
        system=system,
        seed=seed,
        report=report,
        prompts=prompts,
        trained=trained,
        curve=curve,
        pictures=folder,
        text_curve=[] if system == "base" else [(4, 0.9)],
        training_seconds=None if system == "base" else 20.0 + 20 * seed,
    )


@pytest.fixture
def runs(tmp_path):
    return [
        run_of("base", 0, ["wrong", "swapped"], tmp_path / "base"),
        run_of("ella", 0, ["swapped", "wrong"], tmp_path / "ella0"),
        run_of("guided", 0, ["right", "right"], tmp_path / "guided0"),
        run_of("ella", 1, ["swapped", "right"], tmp_path / "ella1", exact_seen=False),
        run_of("guided", 1, ["right", "wrong"], tmp_path / "guided1"),
    ]


@pytest.fixture
def report(runs):
    return summarise_runs(
        runs, SETTINGS, command="llmdiff-lab benchmark", left_out={"t5-encoder": "no t5 was given"}
    )


def test_figures_are_means_over_seeds(report):
    guided, ella, base = (report["systems"][name] for name in ("guided", "ella", "base"))
    assert guided["held_out"]["mean"] == pytest.approx(0.75)
    # 0.5 and 1.0: t with one degree of freedom is 12.7, so the interval is everything.
    assert (guided["held_out"]["low"], guided["held_out"]["high"], guided["held_out"]["n"]) == (0.0, 1.0, 2)
    assert ella["splits"]["seen"]["mean"] == pytest.approx(0.5)
    assert ella["overall"]["mean"] == pytest.approx((1 / 3 + 1 / 3) / 2)
    assert ella["relation"] == pytest.approx({"right": 0.25, "swapped": 0.5, "wrong": 0.25})
    assert base["interval_over"] == "prompts"
    assert guided["cost"] == {
        "trained_parameters": 1234567,
        "seconds_per_step": 2.5,
        "peak_memory_gb": 1.5,
        "seconds_per_image": 1.0,
        "training_seconds": 30.0,
    }
    assert base["cost"]["training_seconds"] is None
    assert guided["text_curves"] == [[[4, 0.9]], [[4, 0.9]]]
    assert guided["curves"] == [[[5, 1.0], [10, 0.5]], [[5, 2.0], [10, 0.5]]]
    lines = ranking(report).splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["guided", "ella", "base"]
    assert "75.0 [0.0, 100.0]" in lines[2]


def test_metrics_are_means_over_seeds_and_ours_is_compared_prompt_by_prompt(report, runs):
    base, ella, guided = (report["systems"][name] for name in ("base", "ella", "guided"))
    assert report["metrics"] == {"siglip": "openmoji", "fid": "openmoji"}
    assert base["metrics"]["siglip"]["mean"] == pytest.approx(0.5)
    assert base["metrics"]["siglip"]["n"] == 3
    # 0.60 and 0.62: t with one degree of freedom times 0.01.
    assert guided["metrics"]["siglip"]["mean"] == pytest.approx(0.61)
    assert guided["metrics"]["siglip"]["low"] == pytest.approx(0.61 - 12.706 * 0.01)
    assert guided["metrics_by_split"]["pairs"]["siglip"]["mean"] == pytest.approx(0.76)
    assert ella["sets"] == {"fid": 10.5}
    assert ella["metrics_ours_above"]["siglip"]["low"] == pytest.approx(0.1)
    assert base["metrics_ours_above"]["siglip"]["mean"] == pytest.approx(0.11)
    for text in (benchmark_tables(report), benchmark_page(report, runs)):
        assert "siglip" in text
        assert "0.61 [0.4829, 0.7371]" in text
    for run in runs:
        run.report["systems"][run.system]["sets"] = {}
        for line in run.prompts:
            del line["values"]["siglip"]
    without = summarise_runs(runs, SETTINGS, command="", left_out={})
    assert "siglip" not in benchmark_tables(without) + benchmark_page(without, runs)


def test_the_page_shows_the_best_first_and_right_beside_swapped(report, runs):
    page = benchmark_page(report, runs)
    assert page.index("<td>guided</td>") < page.index("<td>ella</td>") < page.index("<td>base</td>")
    assert "new &lt;pairs&gt;" in page
    assert "<pairs>" not in page
    swaps = page[page.index("right beside swapped") : page.index("Settings and versions")]
    first, second = swaps.index("a cat left of a dog"), swaps.index("a bee above a cup")
    assert swaps[first:second].index("guided") < swaps[first:second].index("<td>swapped</td>")
    assert swaps[first:second].index("<td>swapped</td>") < swaps[first:second].index("ella")
    assert "base" not in swaps[first:second].replace("base64", "")  # it drew neither
    assert swaps[second:].index("<td>swapped</td>") < swaps[second:].replace("base64", "xxxxxx").index("base")
    samples = page[page.index("<h2>Samples") : page.index("right beside swapped")]
    assert samples.count("<tr><td>guided</td>") == 2
    assert samples.count('class="picture right"') == 3 + 2  # seen: all three; pairs: guided's two
    assert "1,234,567" in page
    assert "t5-encoder: no t5 was given" in page


def test_ours_is_held_against_every_other_prompt_by_prompt(report):
    systems = report["systems"]
    assert "ours_above" not in systems["guided"]
    assert "differences_to_base" not in systems["base"]
    # Over both seeds guided has the pairs right in (1, 1/2), ella in (0, 1/2), the base in neither.
    assert systems["ella"]["ours_above"]["held_out"]["mean"] == pytest.approx((1 + 0) / 2)
    assert systems["ella"]["ours_above"]["seen"]["mean"] == pytest.approx(0.5)
    assert systems["guided"]["differences_to_base"]["held_out"]["mean"] == pytest.approx(0.75)
    assert systems["ella"]["differences_to_base"]["overall"]["mean"] == pytest.approx((-0.5 + 0 + 0.5) / 3)


def test_differences_have_intervals_over_seeds_too(report):
    systems = report["systems"]
    # By seed guided is 1 and 0 above ella, 1 and 1/2 above the base, which has one seed.
    ella, base = (systems[name]["ours_above"]["held_out"]["over_seeds"] for name in ("ella", "base"))
    assert (ella["mean"], ella["n"]) == (pytest.approx(0.5), 2)
    assert ella["high"] == pytest.approx(0.5 + 12.706 * 0.5)
    assert base["low"] == pytest.approx(0.75 - 12.706 * 0.25)
    assert systems["guided"]["differences_to_base"]["held_out"]["over_seeds"] == base
    tables = benchmark_tables(report)
    assert (
        tables.index("above the others: points") < tables.index(OVER_SEEDS) < tables.index("above the base")
    )
    assert f"| ella | {50:+.1f} [{50 - 635.3:+.1f}, {50 + 635.3:+.1f}] |" in tables


def test_pictures_that_could_not_be_drawn_are_said(runs):
    for run in runs:
        run.report["systems"][run.system]["failed"] = run.seed
    report = summarise_runs(runs, SETTINGS, command="", left_out={})
    assert [report["systems"][name]["failed_pictures"] for name in ("base", "ella", "guided")] == [0, 1, 1]
    for text in (benchmark_tables(report), benchmark_page(report, runs)):
        assert "1 pictures of ella could not be drawn" in text
        assert "of base could not be drawn" not in text


def test_a_training_is_read_stage_by_stage(tmp_path):
    place = tmp_path / "guided" / "seed-0"
    logs = {
        "gains": [{"step": 5, "loss": 0.9, "unexplained": 0.9, "steps_per_s": 0.5}],
        "warm-start": [
            {"step": 10, "loss": 0.5, "unexplained": 0.5, "steps_per_s": 0.1},
            {"step": 30, "loss": 0.2, "unexplained": 0.2, "steps_per_s": 2.0},
            {"step": 40, "loss": 0.1, "unexplained": 0.1, "steps_per_s": 4.0},
        ],
        ".": [{"step": 6, "loss": 0.7, "velocity": 0.6, "steps_per_s": 2.0}, {"step": 6, "samples": 1}],
    }
    for stage, lines in logs.items():
        (place / "training" / stage).mkdir(parents=True, exist_ok=True)
        text = "".join(f"{json.dumps(line)}\n" for line in lines)
        (place / "training" / stage / "log.jsonl").write_text(text)
    (place / "evaluation").mkdir()
    for name, text in (("prompts.jsonl", ""), ("report.json", "{}")):
        (place / "evaluation" / name).write_text(text)
    (place / "trained.json").write_text("{}")
    found = read_run(place, "guided", 0)
    assert found.text_curve == [(5, 0.9), (15, 0.5), (35, 0.2), (45, 0.1)]
    assert found.curve == [(6, 0.6)]
    assert found.training_seconds == pytest.approx(5 / 0.5 + 40 / 2.0 + 6 / 2.0)
    shutil.rmtree(place / "training")
    assert read_run(place, "guided", 0).training_seconds is None


def test_curves_have_a_panel_for_each_kind_of_loss(report):
    systems = report["systems"]
    both = picture_of(curves_plot(systems))
    for system in systems.values():
        system["text_curves"] = []  # all trained on pictures alone
    alone = picture_of(curves_plot(systems))
    assert both.height == 2 * alone.height
    assert curves_plot({"base": systems["base"]}) is None


def picture_of(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_the_tables_hold_the_same_figures(report):
    tables = benchmark_tables(report)
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in tables.splitlines() if "|" in line
    ]
    accuracy = [row for row in rows if row[0] == "guided"]
    assert accuracy[1][:2] == ["guided", "75.0 [0.0, 100.0]"]
    assert [row[0] for row in rows if row[0] in ("guided", "ella", "base")][:3] == ["guided", "ella", "base"]
    above = [row for row in rows if row[0] == "ella"][2]
    assert above[1].startswith("+50.0 [")
    assert any(row[:4] == ["guided", "1,234,567", "2.5", "30"] for row in rows)
    assert any(row[:2] == ["guided", "1,234,567"] for row in rows)
    assert "- t5-encoder: no t5 was given" in tables
    for sentence in report["treatment"]:
        assert f"- {sentence}" in tables


def test_pictures_that_were_not_kept_leave_the_rest_of_the_page(report, runs):
    for run in runs:
        shutil.rmtree(run.pictures)
    page = benchmark_page(report, runs)
    assert 'class="picture' not in page
    assert "not kept" in page


def test_settings_out_of_range_are_named():
    for changes, named in (({"seeds": 0}, "seeds"), ({"learning_rates": (1.0, 2.0)}, "search_steps")):
        values = {**vars(SETTINGS), **changes}
        with pytest.raises(ConfigError, match=named):
            BenchmarkSettings(**values)


def test_ours_is_the_refined_one_where_there_is_one_and_nobody_where_there_is_none(runs, tmp_path):
    runs.append(run_of("refined", 0, ["right", "right"], tmp_path / "refined"))
    both = summarise_runs(runs, SETTINGS, command="", left_out={})
    assert both["ours"] == "refined"
    assert "ours_above" in both["systems"]["guided"]
    assert list(both["systems"]["ella"]["also_above"]) == ["guided"]
    assert "also_above" not in both["systems"]["guided"]
    assert "refined above the others" in benchmark_tables(both)
    assert "guided above the others" in benchmark_tables(both)
    assert "refined - this, siglip" in benchmark_page(both, runs)
    others = [run for run in runs if run.system in ("base", "ella")]
    without = summarise_runs(others, SETTINGS, command="", left_out={})
    assert without["ours"] is None
    for text in (benchmark_tables(without), benchmark_page(without, others)):
        assert "siglip" in text
        assert " - this" not in text
        assert "above the others" not in text


def test_what_every_rate_gave_is_shown_beside_the_one_that_was_taken(runs):
    def searched(run):
        if run.system == "base":
            return run
        found = {"0.01": 0.25, "0.001": 0.3}
        if run.system == "guided":
            found["in full"] = {"0.01": 0.24, "0.001": 0.2}
        rate = 0.001 if run.system == "guided" else 0.01
        return replace(run, search=found, trained={**run.trained, "learning_rate": rate})

    runs = [searched(run) for run in runs]
    report = summarise_runs(runs, SETTINGS, command="llmdiff-lab benchmark", left_out={})
    tables = benchmark_tables(report)
    assert "| system | 0.001 | 0.01 | 0.001 in full | 0.01 in full | taken |" in tables
    assert "| ella | 0.3000 | 0.2500 | - | - | 0.01 |" in tables
    assert "| guided | 0.3000 | 0.2500 | 0.2000 | 0.2400 | 0.001 |" in tables
    assert "| base | " not in tables[tables.index("Learning rates: ") : tables.index("Equal treatment")]
    page = benchmark_page(report, runs)
    assert "<th>0.001 in full</th>" in page
    assert "<td>0.2400</td>" in page


def test_without_a_search_there_is_no_table_of_rates(runs):
    report = summarise_runs(runs, SETTINGS, command="llmdiff-lab benchmark", left_out={})
    assert "in full" not in benchmark_tables(report) + benchmark_page(report, runs)


def test_losses_are_correlated_with_accuracy_where_there_are_enough_systems(report):
    assert report["prediction"] == {}
    assert "without drawing" not in benchmark_tables(report)
    first = report["systems"]["guided"]

    def system(accuracy, loss):
        held_out = {**first["held_out"], "mean": accuracy}
        curves = [[[5, 2.0], [10, loss]], [[5, 2.0], [10, loss + 0.1]]]
        return {**first, "held_out": held_out, "text_curves": curves}

    systems = {f"one-{i}": system(0.5 + i / 10, 1.0 - i / 10) for i in range(4)}
    # The most accurate one has the highest loss, but it is drawn with the first one's training.
    systems |= {"one-0-mixed": {**system(0.99, 9.0), "scale": 0.7}, "base": report["systems"]["base"]}
    found = predictions(systems)
    assert list(found) == ["loss from captions alone"]
    assert found["loss from captions alone"]["mean"] == pytest.approx(-1)
    shown = benchmark_tables({**report, "prediction": found})
    assert "| loss from captions alone | -1.00 [-1.00, -1.00] | 4 |" in shown


@pytest.mark.parametrize("name", ["benchmark", "benchmark-first-world"])
def test_the_recorded_prediction_follows_from_the_recorded_systems(name):
    record = json.loads((Path(__file__).parents[3] / "docs" / "results" / f"{name}.json").read_text())
    found = predictions(record["systems"])
    assert list(found) == list(record["prediction"])
    for loss, rho in record["prediction"].items():
        assert found[loss]["n"] == rho["n"]
        for part in ("mean", "low", "high"):
            assert found[loss][part] == pytest.approx(rho[part]), (loss, part)
