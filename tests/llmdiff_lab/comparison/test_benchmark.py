"""The whole benchmark on the test preset: trained, killed, gone on, reported."""

import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from llmdiff.adapter.base_pipeline import packaged
from llmdiff.errors import ConfigError, DivergedError, MetricError
from llmdiff.evaluation.metrics.diversity import Diversity
from llmdiff.evaluation.metrics.loading import load_metric
from llmdiff.language.cache import EncodingStore
from llmdiff.training import warm_start
from llmdiff.training.log import read_log
from llmdiff.world.splits import SPLITS
from llmdiff_lab.cli.main import app
from llmdiff_lab.comparison import run as running
from llmdiff_lab.comparison import trainings
from llmdiff_lab.comparison.prepare import choose_rivals, prepare_benchmark
from llmdiff_lab.comparison.protocol_notes import protocol_notes
from llmdiff_lab.comparison.systems import Variant

SMALL = {"steps": 6, "prompts_per_split": 1, "drawing_steps": 1}
NAMES = ("base", "base-longer", "base-states", "layer-weights", "ella", "lavi-bridge", "guided")


def benchmark(build, out, names, **changes):
    return prepare_benchmark(build, out, choose_rivals(names), **{**SMALL, **changes})


@pytest.fixture(scope="module")
def done(built, tmp_path_factory):
    out = tmp_path_factory.mktemp("benchmark")
    plan = benchmark(built, out, NAMES, seeds=2, metrics=[load_metric("siglip", "openmoji")])
    return plan, plan.run(command="llmdiff-lab benchmark --out x")


def test_every_system_has_figures_intervals_and_costs(done):
    _, report = done
    assert set(report["systems"]) == set(NAMES)
    assert report["ours"] == "guided"
    for name, system in report["systems"].items():
        assert set(system["splits"]) == set(SPLITS)
        for figures in (system["overall"], system["held_out"], *system["splits"].values()):
            assert 0 <= figures["low"] <= figures["mean"] <= figures["high"] <= 1
        assert system["interval_over"] == ("prompts" if name == "base" else "seeds")
        cost = system["cost"]
        assert cost["seconds_per_image"] > 0
        if name == "base":
            assert cost["trained_parameters"] == 0
            assert cost["seconds_per_step"] is None
            continue
        assert cost["trained_parameters"] > 0
        assert cost["seconds_per_step"] > 0
        assert cost["peak_memory_gb"] > 0.05
        assert [len(curve) > 0 for curve in system["curves"]] == [True, True]
        assert system["curves"][0][-1][0] == SMALL["steps"]
    assert report["systems"]["guided"]["splits"]["seen"]["n"] == 2
    assert json.loads((done[0].folder / "report.json").read_text()) == json.loads(json.dumps(report))
    assert report["left_out"]["t5-encoder"] == "no t5 was given"
    assert report["left_out"]["paper"] == "not selected"


def test_parameters_are_counted_of_all_stages(done):
    plan, report = done
    costs = {name: system["cost"]["trained_parameters"] for name, system in report["systems"].items()}
    # Three blocks: a weight for each; ours has gamma, kappa and h_raw for each.
    assert costs["guided"] - costs["layer-weights"] == 9 - 3
    pipe = plan.trainings.pipe
    assert costs["base-longer"] == sum(
        p.numel() for part in (pipe.unet, pipe.text_encoder) for p in part.parameters()
    )


@pytest.mark.parametrize(
    "name",
    ["last-hidden", "layer-weights", "routed", "ella", "llm4gen-lora", "registers", "refined-both-lora"],
)
def test_a_system_is_trained_in_bfloat16_with_weights_in_float32(built, tmp_path, name):
    plan = benchmark(built, tmp_path, [name], seeds=1, text_steps=3, precision="bf16")
    plan.trainings.train(name, 0)
    assert plan.trainings.pipe.unet.dtype == torch.float32
    config = plan.trainings._config(plan.trainings.preset, tmp_path)
    assert config.training.precision == "bf16"
    assert plan.trainings._reader("llm")["llm"].model.dtype == torch.bfloat16
    conditioning = plan.trainings.conditioning(name, 0)
    assert {p.dtype for module in conditioning.modules.values() for p in module.parameters()} == {
        torch.float32
    }
    with conditioning.attached(plan.trainings.pipe):
        picture = plan.trainings.pipe("a cat", num_inference_steps=1, output_type="np").images[0]
    assert np.isfinite(picture).all()
    assert any("bfloat16" in note for note in protocol_notes(plan.settings))


def test_seeds_differ_and_their_seed_is_all_that_does(done):
    plan, _ = done
    first, second = (
        plan.folder / "runs" / "guided" / f"seed-{seed}" / "model" / "diffusion_pytorch_model.safetensors"
        for seed in (0, 1)
    )
    assert first.read_bytes() != second.read_bytes()
    prompts = [
        [json.loads(line)["prompt"] for line in path.read_text().splitlines()]
        for path in sorted(plan.folder.glob("runs/*/seed-*/evaluation/prompts.jsonl"))
    ]
    assert all(one == prompts[0] for one in prompts)


class _Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.tags = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.found += [value for key, value in attrs if key in ("src", "href", "srcset", "data")]


def test_the_page_holds_everything_itself(done):
    plan, report = done
    page = (plan.folder / "report.html").read_text()
    links = _Links()
    links.feed(page)
    assert links.found
    assert all(link.startswith("data:image/png;base64,") for link in links.found)
    assert not {"script", "link", "iframe"} & set(links.tags)
    assert "default-src 'none'" in page
    assert "http" not in re.sub(r"data:image/png;base64,[^'\"]*|http-equiv", "", page)
    # Two plots; of every split one prompt, a picture by each system.
    assert links.found
    assert len(links.found) >= 2 + 6 * len(NAMES)
    for name in NAMES:
        assert f"<td>{name}</td>" in page
    for line in report["treatment"]:
        assert line.split("'")[0][:60] in page


def test_a_second_run_does_nothing_again(done):
    plan, report = done
    before = {path: path.stat().st_mtime_ns for path in (plan.folder / "runs").rglob("*") if path.is_file()}
    again = plan.run(command="llmdiff-lab benchmark --out x")
    assert {p: p.stat().st_mtime_ns for p in (plan.folder / "runs").rglob("*") if p.is_file()} == before
    assert {**again, "date": None} == {**report, "date": None}


def test_pictures_are_measured_once_and_with_more_metrics_later(built, done, tmp_path, caplog):
    plan, report = done
    place = plan.folder / "runs" / "guided" / "seed-1" / "evaluation"
    rows = [json.loads(line) for line in (place / "prompts.jsonl").read_text().splitlines()]
    pictures = [Image.open(place / "drawn" / "guided" / f"{at:05d}-0.png") for at in range(len(rows))]
    siglip = load_metric("siglip", "openmoji")
    scores = siglip.score(np.stack([np.asarray(one) for one in pictures]), [row["prompt"] for row in rows])
    assert json.loads((place / "report.json").read_text())["metrics"]["siglip"] == "openmoji"
    assert [row["values"]["siglip"] for row in rows] == pytest.approx(scores["siglip"], abs=1e-5)
    assert report["systems"]["guided"]["metrics"]["siglip"]["n"] == 2
    assert report["systems"]["base"]["metrics"]["siglip"]["n"] == len(rows)

    copied = tmp_path / "copied"
    shutil.copytree(plan.folder, copied)
    shutil.rmtree(copied / "runs" / "ella" / "seed-0" / "evaluation" / "drawn")
    both = [siglip, load_metric("fid", "openmoji")]
    again = benchmark(built, copied, NAMES, seeds=2, metrics=both).run(command="")
    assert "pictures of ella were not kept, ['fid'] cannot be measured" in caplog.text
    assert again["systems"]["guided"]["sets"]["fid"] > 0
    assert again["systems"]["ella"]["sets"] == {}
    for name, system in again["systems"].items():
        assert system["metrics"] == report["systems"][name]["metrics"]
        assert system["splits"] == report["systems"][name]["splits"]
    with pytest.raises(MetricError, match="one picture of each prompt"):
        benchmark(
            built,
            copied,
            NAMES,
            seeds=2,
            metrics=[Diversity.from_pretrained(packaged("siglip", MetricError))],
        )


@pytest.fixture(scope="module")
def ours_alone(built, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone")
    benchmark(built, out, ["guided"], seeds=1).run(command="")
    return _drawn(out)


def _drawn(folder):
    pictures = (folder / "runs/guided/seed-0/evaluation/drawn/guided").glob("*.png")
    return {path.name: Image.open(path).tobytes() for path in pictures}  # their files say how long they took


@pytest.mark.parametrize(
    "where", ["save_rival", "held_out_loss", "evaluate_suite", "benchmark_page", "train"]
)
def test_killed_anywhere_it_goes_on_to_the_same_figures(built, tmp_path, monkeypatch, ours_alone, where):
    stopped = benchmark(built, tmp_path, ["guided"], seeds=1)
    with monkeypatch.context() as broken:

        def killed(*args, **kwargs):
            raise KeyboardInterrupt

        if where == "train":
            # In the second stage: the first one is not trained again.
            calls, batch = [], EncodingStore.batch

            def few_steps(self, captions):
                calls.append(captions)
                if len(calls) == 3:
                    raise KeyboardInterrupt
                return batch(self, captions)

            broken.setattr(EncodingStore, "batch", few_steps)
        else:
            broken.setattr(running if hasattr(running, where) else trainings, where, killed)
        with pytest.raises(KeyboardInterrupt):
            stopped.run(command="")
    assert not (tmp_path / "report.json").exists()
    benchmark(built, tmp_path, ["guided"], seeds=1).run(command="")
    assert _drawn(tmp_path) == ours_alone
    assert (tmp_path / "report.html").exists()


def test_other_settings_need_another_folder_and_more_seeds_do_not(built, done):
    plan, _ = done
    with pytest.raises(ConfigError, match="steps 6, this one has 7"):
        benchmark(built, plan.folder, NAMES, seeds=2, steps=7)
    assert benchmark(built, plan.folder, NAMES, seeds=3).settings.seeds == 3
    benchmark(built, plan.folder, NAMES, seeds=2)


def test_a_reader_may_come_later_but_not_change(built, tmp_path):
    def kept(**readers):
        return prepare_benchmark(built, tmp_path, choose_rivals(["base"], **readers), **SMALL).settings

    kept(encoder="one")
    assert kept(encoder="one", t5="two").t5 == "two"
    with pytest.raises(ConfigError, match="t5 'two', this one has 'three'"):
        kept(encoder="one", t5="three")


def test_the_command_does_it_all(built, llm_folder, tmp_path):
    arguments = ["benchmark", "--out", str(tmp_path / "figures"), "--rivals", "base, guided", "--seeds", "1"]
    arguments += ["--preset", "test", "--build", str(built.folder), "--llm", llm_folder, "--device", "cpu"]
    arguments += ["--steps", "6", "--prompts", "1", "--drawing-steps", "1"]
    arguments += ["--metric", "siglip", "--metric-model", "openmoji"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "exact match, %" in result.output
    assert (tmp_path / "figures" / "report.html").stat().st_size > 10_000
    tables = (tmp_path / "figures" / "report.md").read_text()
    assert tables.startswith("Made with `")
    assert "| system | siglip |" in tables
    alone = CliRunner().invoke(app, [*arguments, "--metric", "fid"])
    assert "error: metric-model: got 1 for 2 metrics" in alone.output
    refused = CliRunner().invoke(app, [*arguments, "--rivals", "elly"])
    assert refused.exit_code == 1
    assert "error: rivals: got 'elly'" in refused.output


def test_each_rival_takes_the_best_of_the_same_learning_rates(built, tmp_path):
    plan = benchmark(
        built,
        tmp_path,
        ["base-states", "ella"],
        seeds=1,
        steps=2,
        learning_rates=(1e-3, 1e-9),
        search_steps=1,
    )
    report = plan.run(command="")
    for name in ("base-states", "ella"):
        losses = json.loads((tmp_path / "runs" / name / "search.json").read_text())
        assert report["systems"][name]["search"] == losses
        full = losses.pop("in full", None)
        assert set(losses) == {"0.001", "1e-09"}
        assert losses["0.001"] != losses["1e-09"]
        best = min(losses, key=losses.get)
        # The highest rate is held against the next one in full.
        assert (full is not None) == (best == "0.001")
        if full is not None and full["0.001"] - full["1e-09"] > 1e-3:
            best = "1e-09"
        assert report["systems"][name]["learning_rate"] == float(best)
        # A tenth of a single step is no warm-up.
        log = read_log(tmp_path / "runs" / name / "search" / "lr-0.001" / "log.jsonl")
        assert log[0]["learning_rate"] == pytest.approx(1e-3)
    assert any("0.001, 1e-09" in line for line in report["treatment"])


@pytest.mark.parametrize(("lower_in_full", "taken"), [(0.19, 1e-4), (0.1995, 1e-3)])
def test_the_highest_rate_has_to_hold_in_full(built, tmp_path, monkeypatch, lower_in_full, taken):
    losses = {
        (1e-2, 1): 0.31,
        (1e-3, 1): 0.3,
        (1e-4, 1): 0.4,
        (1e-5, 1): 0.5,
        (1e-3, 2): 0.2,
        (1e-4, 2): lower_in_full,
    }

    def loss(folder):
        if folder.name == "training":
            # The second of two steps: a cosine at half its way.
            return losses[round(2 * read_log(folder / "log.jsonl")[0]["learning_rate"], 9), 2]
        rate = float(folder.name.removeprefix("lr-").removesuffix("-in-full"))
        return losses[rate, 2 if folder.name.endswith("-in-full") else 1]

    monkeypatch.setattr(trainings, "held_out_loss", loss)
    rates = {"learning_rates": (1e-3, 1e-4, 1e-5), "search_steps": 1, "steps": 2, "seeds": 2}
    report = benchmark(built, tmp_path, ["base-states"], **rates).run(command="")
    searched = json.loads((tmp_path / "runs" / "base-states" / "search.json").read_text())
    assert searched["0.01"] == 0.31  # beyond the settings' highest, which won
    assert searched["in full"] == {"0.001": 0.2, "0.0001": lower_in_full}
    assert report["systems"]["base-states"]["learning_rate"] == taken
    for seed in (0, 1):
        log = read_log(tmp_path / "runs" / "base-states" / f"seed-{seed}" / "training" / "log.jsonl")
        assert log[0]["learning_rate"] == pytest.approx(taken / 2)
    assert any("also trained in full" in line for line in report["treatment"])


@pytest.mark.parametrize(
    ("losses", "tried", "taken"),
    [
        # Lower and lower, until the best is between others.
        (
            {"1.11e-05": 0.28, "3.33e-05": 0.2, "0.0001": 0.25, "0.0003": 0.3},
            ["1.11e-05", "3.33e-05"],
            3.33e-5,
        ),
        # Higher, where a training diverges.
        ({"0.0003": 0.25, "0.0001": 0.3, "0.0009": None}, ["0.0009"], 3e-4),
    ],
)
def test_a_search_goes_on_until_the_best_rate_is_between_others(
    built, tmp_path, monkeypatch, losses, tried, taken
):
    plan = benchmark(built, tmp_path, ["base-states"], seeds=1, learning_rates=(1e-4, 3e-4), search_steps=1)
    asked = []

    def train(trainings, name, preset, conditioning, folder, seed=0):
        asked.append(preset.adapter_lr)
        if losses[str(preset.adapter_lr)] is None:
            raise DivergedError("the loss is nan")

    monkeypatch.setattr(trainings.Trainings, "_train_on_captions", train)
    monkeypatch.setattr(trainings, "held_out_loss", lambda folder: losses[folder.name.removeprefix("lr-")])
    assert plan.trainings.rates.best("base-states") == taken
    found = json.loads((tmp_path / "runs" / "base-states" / "search.json").read_text())
    assert sorted(found) == sorted(losses)
    assert set(tried) <= set(found)
    assert plan.trainings.rates.best("base-states") == taken
    assert len(asked) == len(losses)  # what was tried is kept


def test_each_system_takes_its_guidance_on_prompts_that_are_not_in_the_suite(built, tmp_path, monkeypatch):
    scales = {"guidance_scales": (5.0, 1.0, 3.0), "validation_prompts": 2}
    plan = benchmark(built, tmp_path / "a", ["base"], seeds=1, **scales)
    report = plan.run(command="")
    folder = plan.folder / "runs" / "base"
    right = {}
    for scale in (1, 3, 5):
        text = (folder / "guidance" / str(scale) / "prompts.jsonl").read_text()
        lines = [json.loads(line) for line in text.splitlines()]
        right[scale] = sum(line["values"]["scenes"] for line in lines)
        assert not {line["prompt"] for line in lines} & {row.prompt for row in plan._suite.prompts}
        splits = [line["tags"][0] for line in lines]
        assert {splits.count(split) for split in splits} == {2}
    assert report["systems"]["base"]["guidance_scale"] == max(right, key=right.get)
    assert any("of 5, 1, 3 the one" in line for line in report["treatment"])

    def draw(name, seed, suite, place, guidance_scale, metrics):
        place.mkdir(parents=True)
        (place / "report.json").write_text("{}")
        values = [guidance_scale == 3.0, True]
        text = "".join(json.dumps({"values": {"scenes": float(value)}}) + "\n" for value in values)
        (place / "prompts.jsonl").write_text(text)

    # What decides is how many are drawn right.
    other = benchmark(built, tmp_path / "b", ["base"], seeds=1, **scales)
    monkeypatch.setattr(other, "_draw", draw)
    assert other._guidance_scale("base") == 3.0


def test_a_folder_of_another_protocol_is_refused(built, tmp_path):
    benchmark(built, tmp_path, ["base"], seeds=1)
    settings = json.loads((tmp_path / "settings.json").read_text())
    del settings["protocol"]
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match="has a benchmark of protocol 1, but this version uses protocol 2"):
        benchmark(built, tmp_path, ["base"], seeds=1)


def test_what_cannot_be_run_is_refused_by_name():
    with pytest.raises(ConfigError, match="'t5-blocks' cannot be run: no t5"):
        choose_rivals(["t5-blocks"])
    with pytest.raises(ConfigError, match=r"'elly'.*ella"):
        choose_rivals(["elly"])
    everything = choose_rivals()
    assert everything.rivals[:2] == ("base", "base-longer")
    assert set(everything.left_out) >= {"t5-encoder", "t5-blocks"}


def test_all_rivals_start_from_text_and_the_base_takes_its_steps_on_pictures(built, tmp_path):
    names = ["base-longer", "last-hidden", "guided", "ella"]
    plan = benchmark(built, tmp_path, names, seeds=1, steps=2, text_steps=6)
    report = plan.run(command="")

    def steps(name):
        training = tmp_path / "runs" / name / "seed-0" / "training"
        logs = training.rglob("log.jsonl")
        return {
            str(log.parent.relative_to(training)): max(line["step"] for line in read_log(log)) for log in logs
        }

    assert steps("guided") == {"gains": 1, "warm-start": 5, ".": 2}
    assert steps("last-hidden") == {"warm-start": 6, ".": 2}
    assert steps("ella") == {"warm-start": 6, ".": 2}
    assert steps("base-longer") == {".": 8}
    assert any("from captions alone" in sentence for sentence in report["treatment"])


def test_one_training_is_drawn_at_several_scales(built, tmp_path):
    names = ["base", "mixed", "guided", "hardly"]
    variants = {
        "mixed": Variant(rival="guided", scale=0.3),
        "hardly": Variant(rival="guided", scale=0.000001),
    }
    choice = choose_rivals(names, variants=variants)
    report = prepare_benchmark(built, tmp_path, choice, seeds=1, **SMALL).run(command="")
    assert report["systems"]["mixed"]["title"] == "ours, c = x_0 + sum (g s + k v); drawn at scale 0.3"
    assert report["systems"]["mixed"]["group"] == "ours"
    trained = [(tmp_path / "runs" / name / "seed-0" / "trained.json").read_text() for name in names[1:]]
    assert len(set(trained)) == 1
    assert len(list(tmp_path.glob("runs/*/*/model"))) == 1

    def drawn(name):
        folder = tmp_path / "runs" / name / "seed-0" / "evaluation" / "drawn" / name
        return np.stack([np.asarray(Image.open(path)).astype(int) for path in sorted(folder.iterdir())])

    base, ours, mixed = drawn("base"), drawn("guided"), drawn("mixed")
    assert (base != ours).any()
    assert (mixed != ours).any()
    assert (mixed != base).any()
    assert abs(drawn("hardly") - base).max() <= 1


def test_captions_are_read_once_for_all_seeds_and_the_base_asked_once_for_all_rivals(
    built, tmp_path, monkeypatch
):
    read, asked = [], []
    fill, queries = EncodingStore.fill, warm_start.draw_queries

    def counted(self, captions, **more):
        read.append(fill(self, captions, **more))
        return read[-1]

    monkeypatch.setattr(EncodingStore, "fill", counted)
    monkeypatch.setattr(
        warm_start, "draw_queries", lambda *args, **kwargs: asked.append(args) or queries(*args, **kwargs)
    )
    names = ["base-states", "last-hidden"]
    benchmark(built, tmp_path, names, seeds=2, steps=1, text_steps=2).run(command="")
    once, again = [count for count in read if count]
    assert 10 < once == again <= 24 + 8 + 1  # trained on, held out, the empty one; some may be alike
    assert len(asked) == 1
    kept = [tmp_path / "runs" / name / "seed-1" for name in names]
    weights = [place / "model" / "diffusion_pytorch_model.safetensors" for place in kept]
    before = [path.read_bytes() for path in weights]
    for place in kept:
        shutil.rmtree(place)
    benchmark(built, tmp_path, names, seeds=2, steps=1, text_steps=2).run(command="")
    assert sum(map(bool, read)) == 2
    assert len(asked) == 1
    assert [path.read_bytes() for path in weights] == before
