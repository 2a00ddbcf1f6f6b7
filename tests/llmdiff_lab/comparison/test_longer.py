"""Variants of rivals: with more steps, for comparisons at equal seconds, and mixed with the base."""

import json
import math

import pytest

from llmdiff.errors import ConfigError
from llmdiff.training.log import read_log
from llmdiff_lab.comparison.prepare import choose_rivals, prepare_benchmark
from llmdiff_lab.comparison.systems import Variant, read_variants, system_of

VARIANTS = {
    "longer": Variant(rival="guided", steps=2.5),
    "longer-mixed": Variant(rival="guided", steps=2.5, scale=0.3),
    "states-longer": Variant(rival="base-states", steps=2),
}


def run_benchmark(build, out, names, **settings):
    plan = prepare_benchmark(
        build, out, choose_rivals(names, variants=VARIANTS), prompts_per_split=1, drawing_steps=1, **settings
    )
    return plan.run(command="")


def steps_of(run):
    logs = (run / "training").rglob("log.jsonl")
    return {
        str(log.parent.relative_to(run / "training")): max(line["step"] for line in read_log(log))
        for log in logs
    }


def test_a_rival_takes_as_many_more_steps_of_every_kind_as_its_variant_says(built, tmp_path):
    names = ["guided", "longer", "longer-mixed"]
    report = run_benchmark(built, tmp_path, names, seeds=1, steps=2, text_steps=6)
    runs = {name: tmp_path / "runs" / name / "seed-0" for name in names}
    assert steps_of(runs["guided"]) == {"gains": 1, "warm-start": 5, ".": 2}
    assert steps_of(tmp_path / "runs" / "guided-x2.5" / "seed-0") == {"gains": 2, "warm-start": 12, ".": 5}
    # A mixture is drawn with what was trained.
    assert not (runs["longer-mixed"] / "training").exists()
    trained = {name: json.loads((run / "trained.json").read_text()) for name, run in runs.items()}
    assert trained["longer-mixed"] == trained["longer"] != trained["guided"]
    title = "ours, c = x_0 + sum (g s + k v); trained for 2.5 times as many steps"
    assert report["systems"]["longer"]["title"] == title
    assert report["systems"]["longer-mixed"]["title"] == f"{title}; drawn at scale 0.3"
    assert report["systems"]["longer"]["group"] == "ours"
    above = report["systems"]["guided"]["also_above"]
    assert list(above) == ["longer"]  # a mixture is none of ours alone
    assert list(report["systems"]["longer-mixed"]["also_above"]) == ["longer"]
    assert "also_above" not in report["systems"]["longer"]
    ours = report["systems"]["longer"]["ours_above"]
    assert {part: gap["mean"] for part, gap in above["longer"].items()} == {
        part: -gap["mean"] for part, gap in ours.items()
    }
    tables = (tmp_path / "report.md").read_text()
    assert tables.count("**longer above the others: points, same prompts") == 1
    assert "**guided above the others: points, same prompts" in tables
    (said,) = [line for line in report["treatment"] if "Not alike in steps" in line]
    assert "Not alike in steps: longer, longer-mixed. Each has more or fewer steps" in said
    alone = run_benchmark(built, tmp_path / "other", ["base"], seeds=1)
    assert not any("Not alike" in line for line in alone["treatment"])


def test_its_learning_rate_is_that_of_the_rival_which_is_trained_for_it(built, tmp_path):
    rates = {"learning_rates": (1e-3, 1e-9), "search_steps": 1, "steps": 2, "seeds": 2}
    report = run_benchmark(built, tmp_path, ["states-longer"], **rates)
    assert list(report["systems"]) == ["states-longer"]
    found = json.loads((tmp_path / "runs" / "base-states" / "search.json").read_text())
    rate = json.loads((tmp_path / "runs" / "base-states" / "seed-0" / "trained.json").read_text())[
        "learning_rate"
    ]
    assert str(rate) in found
    assert report["systems"]["states-longer"]["learning_rate"] == rate
    assert not (tmp_path / "runs" / "base-states-x2" / "search").exists()
    for seed in (0, 1):
        run = tmp_path / "runs" / "base-states-x2" / f"seed-{seed}"
        assert steps_of(run) == {".": 4}
        log = [line for line in read_log(run / "training" / "log.jsonl") if "learning_rate" in line]
        # The last of four steps of a cosine: a tenth of four is no warm-up.
        assert log[-1]["learning_rate"] == pytest.approx(rate * 0.5 * (1 + math.cos(0.75 * math.pi)))


def test_variants_are_read_from_yaml(tmp_path):
    path = tmp_path / "systems.yaml"
    path.write_text("longer: {rival: refined, steps: 2.4}\nmixed: {rival: guided, scale: 0.7}\n")
    variants = read_variants(path)
    assert system_of("longer", variants).trained == "refined-x2.4"
    mixed = system_of("mixed", variants)
    assert (mixed.rival, mixed.steps, mixed.scale, mixed.trained) == ("guided", 1.0, 0.7, "guided")
    choice = choose_rivals(variants=variants)
    assert choice.rivals[-2:] == ("longer", "mixed")
    assert choose_rivals(["guided", "mixed"], variants=variants).variants == {"mixed": variants["mixed"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("longer: {rival: elly, steps: 2}", "'longer': rival 'elly', expected one of .*ella"),
        ("longer: {rival: base, steps: 2}", "'longer': rival 'base', expected one of"),
        ("guided: {rival: guided, steps: 2}", "'guided': expected a name that no rival"),
        ("one: {rival: ella, steps: 2}\nella-x2: {rival: guided, steps: 2}", "'ella-x2': expected a name"),
        ("one: {rival: ella, steps: 2}\nella-x2: {rival: ella, scale: 0.5}", "'ella-x2'"),
        ("a/b: {rival: ella, steps: 2}", "'a/b': expected a name"),
        ("longer: {rival: ella, steps: 1}", "'longer' is ella itself"),
        ("longer: {rival: ella, steps: 0}", "longer: steps is 0"),
        ("mixed: {rival: ella, scale: 0.5}", "our adapter does not read ella"),
        ("mixed: {rival: guided, scale: 1.5}", "mixed: scale is 1.5"),
        ("mixed: {rival: guided, scales: 0.5}", "mixed: .*scales"),
        ("- guided", "has list, expected NAME"),
    ],
)
def test_wrong_variants_are_named(tmp_path, text, message):
    path = tmp_path / "systems.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_variants(path)


def test_unknown_names_are_refused_and_readers_are_missed():
    variants = {"longer-t5": Variant(rival="t5-blocks", steps=2)}
    with pytest.raises(ConfigError, match=r"'elly', expected some of .*ella.*longer-t5"):
        choose_rivals(["elly"], variants=variants)
    with pytest.raises(ConfigError, match=r"'longer-t5' cannot be run: no t5"):
        choose_rivals(["longer-t5"], variants=variants)
