"""`llmdiff plan` against real runs, hand counts and tiny models of every family."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny.families import BUILDERS, TRAINABLE
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from typer.testing import CliRunner

from llmdiff.adapter.adapter import LLMDiffAdapter
from llmdiff.adapter.families import denoiser_of, family_named, family_of
from llmdiff.adapter.installation import install
from llmdiff.cli.main import app
from llmdiff.errors import ConfigError, LLMNotFoundError, PipelineNotFoundError
from llmdiff.training.checkpoint import checkpoints, part
from llmdiff.training.config import TrainConfig
from llmdiff.training.counting import PeakMemory, flop_counter
from llmdiff.training.denoise import Sizes, denoise, encode_pictures
from llmdiff.training.fake_models import fake_models
from llmdiff.training.measure import measure
from llmdiff.training.objective import Objective
from llmdiff.training.plan import make_plan, module_bytes, moments_bytes, scaled
from llmdiff.training.plan_steps import count_llm, count_step
from llmdiff.training.prepare import latent_store, load_models, missing_latents
from llmdiff.training.trainer import train_adapter
from llmdiff.types import TextEncoding


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    """A short run of the embedded default, of its own adapter."""
    folder = tmp_path_factory.mktemp("embedded")
    return TrainConfig.model_validate(
        {
            "out": str(folder / "run"),
            "device": "cpu",
            "models": {"llm": "smollm2-135m", "base": "openmoji", "start": "openmoji"},
            "data": {"kind": "scenes", "scenes": 8, "resolution_px": 64, "aspect_buckets": False},
            "training": {"steps": 1, "batch_size": 2, "noise": False},
            "watch": {"validation_samples": 0, "prompts": [], "trackers": []},
        }
    )


def test_a_trained_adapter_keeps_its_own_settings(embedded):
    def with_models(**changes):
        return embedded.model_copy(update={"models": embedded.models.model_copy(update=changes)})

    assert make_plan(with_models(refiner_layers=4, refiner_width=160)).trained == make_plan(embedded).trained
    other = with_models(refiner_layers=3)
    message = "models.refiner_layers is 3, but in the adapter of models.start 'openmoji' it is 4: leave out"
    with pytest.raises(ConfigError, match=message):
        make_plan(other)
    with pytest.raises(ConfigError, match=message):
        load_models(other, torch.device("cpu"))


def test_a_plan_of_the_embedded_default_is_what_a_run_of_it_takes(embedded):
    plan = make_plan(embedded)
    parts = load_models(embedded, torch.device("cpu"))
    trained = [one for one in parts.adapter.parameters() if one.requires_grad]
    assert sum(plan.trained.values()) == sum(one.numel() for one in trained)
    for name, module in (
        ("llm", parts.llm.model),
        ("denoiser", denoiser_of(parts.pipe)),
        ("vae", parts.pipe.vae),
    ):
        assert plan.frozen[name] == sum(one.numel() for one in module.parameters())
    held = plan.memory
    assert held["LLM"] == module_bytes(parts.llm.model)
    assert held["denoiser"] == module_bytes(denoiser_of(parts.pipe))
    assert held["VAE"] == module_bytes(parts.pipe.vae)
    assert held["text encoders and other parts"] == module_bytes(parts.pipe.text_encoder)
    assert held["adapter"] == module_bytes(parts.adapter)

    train_adapter(embedded)
    tensors = load_file(checkpoints(embedded.out)[-1][1] / "checkpoint.safetensors")

    def size(prefix):
        return sum(value.nbytes for value in part(tensors, prefix).values())

    assert held["moments"] == size("optimizer")
    assert held["averages"] == held["gradients"] == size("ema")


def test_the_counted_step_of_the_embedded_default_is_the_real_one(embedded):
    parts = load_models(embedded, torch.device("cpu"))
    latents = torch.randn(2, denoiser_of(parts.pipe).config.in_channels, 16, 16)
    texts = TextEncoding(states=torch.randn(2, 9, 576), token_mask=torch.ones(2, 9, dtype=torch.bool))
    sizes = [Sizes(original=(64, 64), crop=(0, 0), target=(64, 64))] * 2

    def step():
        states, pooled = parts.adapter.condition(texts)
        output = denoise(
            denoiser_of(parts.pipe),
            family_of(parts.pipe),
            latents,
            torch.tensor([3, 700]),
            states,
            pooled,
            sizes,
        )
        nn.functional.mse_loss(output, torch.zeros_like(latents)).backward()

    with install(denoiser_of(parts.pipe), parts.adapter):
        step()  # gradients are there from now on, as in the plan
        with flop_counter() as flops:
            step()
        with PeakMemory() as memory:
            step()
    planned, again = (_counted_step(embedded, latents, checkpointing=asked) for asked in (False, True))
    assert planned[0] == flops.get_total_flops() > 1e9
    assert planned[1] == pytest.approx(memory.peak_bytes, rel=0.05)
    # Checkpointing computes every block of the denoiser once more; a refiner keeps all of its own.
    assert again[0] > 1.2 * planned[0]
    assert again[1] < 0.85 * planned[1]


def _counted_step(config, latents, *, checkpointing=False, tokens=9):
    training = config.training.model_copy(update={"gradient_checkpointing": checkpointing})
    with FakeTensorMode():
        models = fake_models(config.models, torch.float32)
        models.context.requires_grad_(False)
        return count_step(models, config.model_copy(update={"training": training}), latents.shape[1:], tokens)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_half_precision_holds_less(config, checkpointing):
    def activations(precision):
        settings = config(training__precision=precision, training__gradient_checkpointing=checkpointing)
        return make_plan(settings).memory["activations"]

    # More than half: norms are computed in float32, as on a GPU.
    assert 0.5 * activations("no") < activations("bf16") < 0.95 * activations("no")


def test_reading_texts_costs_what_its_formula_says(embedded):
    texts, tokens = 2, 8
    with FakeTensorMode():
        models = fake_models(embedded.models, torch.float32)
        counted = count_llm(models, texts, tokens)
    config = models.llm.config
    per_token = sum(
        one.weight.numel() for one in models.llm.base_model.layers.modules() if isinstance(one, nn.Linear)
    )
    # Each token goes through every matrix twice, in its context and alone; scores and mixing of T x T and of 1 x 1.
    products = 2 * 2 * texts * tokens * per_token
    attention = 4 * texts * config.num_hidden_layers * config.hidden_size * (tokens**2 + tokens)
    rotary = 2 * texts * tokens  # each way of reading multiplies its positions with the frequencies, once
    assert 0 <= counted - products - attention <= 2 * rotary * config.head_dim


def test_flops_of_a_layer_counted_by_hand():
    frozen, trained = nn.Linear(8, 16).requires_grad_(False), nn.Linear(16, 4)
    with flop_counter() as flops:
        trained(frozen(torch.ones(3, 8))).sum().backward()
    # Forward of both; backward: the trained weight's gradient only, as nothing before it learns.
    assert flops.get_total_flops() == 2 * 3 * (8 * 16 + 16 * 4 + 16 * 4)


@pytest.mark.parametrize("masked", [False, True])
def test_fused_attention_counts_its_products_and_stores_no_scores(masked):
    batch, heads, queries, keys, width = 2, 3, 256, 128, 8
    with FakeTensorMode(), PeakMemory() as memory, flop_counter() as flops:
        query = torch.empty(batch, heads, queries, width, requires_grad=True)
        key, value = (torch.empty(batch, heads, keys, width) for _ in range(2))
        mask = torch.ones(batch, 1, 1, keys, dtype=torch.bool) if masked else None
        nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask).sum().backward()
    product = 2 * batch * heads * queries * keys * width
    assert flops.get_total_flops() == 2 * product + 5 * product  # backward: the scores again, four gradients
    assert memory.peak_bytes < 4 * batch * heads * queries * keys


def test_memory_is_counted_down_again():
    with PeakMemory() as memory:
        for _ in range(10):
            torch.ones(1000)
        kept = torch.ones(500) + 1
    assert 4000 <= memory.peak_bytes < 8000
    assert kept.numel() == 500


def test_what_was_there_before_is_not_counted():
    weight = torch.ones(1000, 1000)
    with PeakMemory() as memory:
        weight.t()[0].add_(1)
        weight.sum()
    assert memory.peak_bytes < 100


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_moments_are_what_an_optimiser_keeps(config, tmp_path, optimizer):
    settings = config(training__optimizer=optimizer, training__steps=1, watch__prompts=[])
    train_adapter(settings)
    tensors = load_file(checkpoints(tmp_path / "run")[-1][1] / "checkpoint.safetensors")
    kept = sum(value.nbytes for value in part(tensors, "optimizer").values())
    assert make_plan(settings).memory["moments"] == kept


def test_moments_of_8_bits_have_a_scale_for_every_256_numbers_and_small_tensors_stay_whole():
    layer = nn.Linear(128, 65)  # 8320 numbers in 33 blocks, and 65
    assert moments_bytes(layer, "adamw8bit") == 2 * (8320 + 4 * 33) + (8 * 65 + 4)


# The shapes inside their denoisers depend on the values of the text's mask.
UNCOUNTED = ["hunyuan-image", "lumina2", "z-image"]


@pytest.mark.parametrize("name", UNCOUNTED)
def test_a_family_whose_pass_cannot_be_counted_is_named(config, tmp_path, name):
    BUILDERS[name]().save_pretrained(tmp_path / "base")
    with pytest.raises(ConfigError, match=f"a pass of {family_named(name).title} cannot be counted"):
        make_plan(config(models__base=str(tmp_path / "base")))


@pytest.mark.parametrize("name", [name for name in TRAINABLE if name not in UNCOUNTED])
def test_folders_with_config_files_alone_stand_in_for_models(config, models, tmp_path, name):
    BUILDERS[name]().save_pretrained(tmp_path / "base")
    shutil.copytree(models / "llm", tmp_path / "llm")
    for folder in ("base", "llm"):
        for weights in (tmp_path / folder).rglob("*.safetensors"):
            weights.unlink()
    settings = config(
        models__llm=str(tmp_path / "llm"), models__base=str(tmp_path / "base"), training__precision="bf16"
    )
    plan = make_plan(settings, processes=4, samples=100)
    pipe = BUILDERS[name]()
    real = LLMDiffAdapter.create(pipe, llm_id="tiny", hidden_size=16, num_blocks=3)
    real.context.requires_grad_(False)
    real.context.h_raw.requires_grad_(True)
    assert sum(plan.trained.values()) == sum(one.numel() for one in real.parameters() if one.requires_grad)
    assert plan.samples_per_step == 8
    assert plan.step_flops["denoiser"] > 0
    assert plan.cache_bytes == 100 * (
        plan.cache_bytes_per_sample["latents"] + plan.cache_bytes_per_sample["encodings"]
    )
    sharded = settings.training.model_copy(update={"sharded": True})
    shared = make_plan(settings.model_copy(update={"training": sharded}), processes=4)
    assert shared.memory["moments"] == plan.memory["moments"] // 4


def test_what_is_computed_in_every_step_is_in_the_plan(config):
    stored = make_plan(config())
    assert set(stored.step_flops) == {"denoiser"}
    online = make_plan(config(training__encodings="online", data__store_latents=False))
    assert set(online.step_flops) == {"denoiser", "llm", "vae"}
    assert online.cache_bytes == 0
    learned = make_plan(config(training__gains="learned"))
    assert set(learned.step_flops) == {"denoiser", "llm"}
    assert learned.trained["context"] == stored.trained["context"] + 2 * 3  # g and k of three blocks


def test_models_that_cannot_be_found_are_named(config):
    with pytest.raises(LLMNotFoundError, match=r"llm 'me/none'.*models\.llm=FOLDER"):
        make_plan(config(models__llm="me/none"))
    with pytest.raises(PipelineNotFoundError, match=r"base 'me/none'.*models\.base=FOLDER"):
        make_plan(config(models__base="me/none"))


def test_numbers_are_shown_with_three_digits_and_their_unit():
    assert [scaled(value, "B") for value in (12, 1_234, 99_900_000, 3e15)] == [
        "12 B",
        "1.23 kB",
        "99.9 MB",
        "3 PB",
    ]


def test_the_command_prints_a_plan(config, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(config().model_dump(mode="json")))
    ran = CliRunner().invoke(app, ["plan", str(path), "--json"])
    assert ran.exit_code == 0, ran.output
    found = json.loads(ran.stdout)
    assert (found["samples_per_step"], found["measured"]) == (2, None)
    ran = CliRunner().invoke(app, ["plan", str(path), "--processes", "2"])
    assert "memory of each of 2" in ran.output
    assert "measured" not in ran.output


def test_measured_steps_are_extrapolated_to_the_whole_training(config, tmp_path):
    settings = config(training__steps=3_600, training__accumulation_steps=2)
    found = measure(settings, steps=3)
    assert found.steps == 3
    assert found.training_hours == pytest.approx(found.step_s)  # 3,600 steps in hours: the seconds of one
    assert found.samples_per_s == pytest.approx(4 / found.step_s)
    assert found.peak_memory_gb > 0
    # Nothing is trained that is kept; the store has what the samples lacked, by their own numbers.
    assert not settings.out.exists()
    parts = load_models(settings, torch.device("cpu"))
    store = latent_store(settings, parts.pipe.vae, parts.samples)
    assert not missing_latents(store, parts.samples)
    pixels, _, _ = parts.samples.load(3, np.random.default_rng(0))
    expected = encode_pictures(parts.pipe.vae, pixels[None])[0]
    torch.testing.assert_close(
        store.get(parts.samples.picture_name(3)).float(), expected, atol=1e-2, rtol=1e-2
    )


def test_only_whole_batches_are_measured(config, monkeypatch):
    sizes = []
    noised = Objective.noised

    def watched(self, latents, generator):
        sizes.append(tuple(latents.shape))
        return noised(self, latents, generator)

    monkeypatch.setattr(Objective, "noised", watched)
    # Of the 12 pictures 8 are squares, and 4 are wider: an epoch of all would have smaller batches.
    measure(config(training__batch_size=5, data__multiple_px=8), steps=3)
    assert set(sizes) == {(5, 4, 16, 16)}
    with pytest.raises(ConfigError, match=r"batch_size is 9, .* at most 8 have the same shape"):
        measure(config(training__batch_size=9, data__multiple_px=8), steps=3)


def test_the_command_measures(config, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(config(training__steps=50).model_dump(mode="json")))
    ran = CliRunner().invoke(app, ["plan", str(path), "--measure"])
    assert ran.exit_code == 0, ran.output
    assert "measured on the CPU, 10 steps of one process" in ran.stdout


@pytest.mark.parametrize("asked", [{"refiner_layers": 0}, {"refiner_layers": 1, "refiner_width": 8}])
def test_a_run_and_its_plan_have_the_refiner_that_is_asked_for(config, asked):
    chosen = config(**{f"models__{name}": value for name, value in asked.items()})
    refiner = load_models(chosen, torch.device("cpu")).adapter.refiner
    size = 0 if refiner is None else sum(one.numel() for one in refiner.parameters())
    assert (size == 0) == (asked["refiner_layers"] == 0)
    if refiner is not None:
        assert (len(refiner.blocks), refiner.to_inside.out_features) == (1, 8)
    assert make_plan(chosen).trained.get("refiner", 0) == size
