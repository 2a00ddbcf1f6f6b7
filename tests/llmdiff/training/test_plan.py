"""`llmdiff plan` against real runs, hand counts and tiny models of every family."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny.families import BUILDERS
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from typer.testing import CliRunner

from llmdiff.adapter.adapter import LLMDiffAdapter
from llmdiff.adapter.installation import install
from llmdiff.cli.main import app
from llmdiff.errors import ConfigError, LLMNotFoundError, PipelineNotFoundError
from llmdiff.training import trainer
from llmdiff.training.checkpoint import checkpoints, part
from llmdiff.training.config import TrainConfig, load_config
from llmdiff.training.counting import Cost, LikeGpu
from llmdiff.training.gpus import GPUS, START_S
from llmdiff.training.loop import step_part
from llmdiff.training.meta_models import meta_models
from llmdiff.training.plan import Assumptions, make_plan
from llmdiff.training.plan_memory import module_bytes, moments_bytes
from llmdiff.training.plan_step import count_llm, count_step
from llmdiff.training.plan_text import plan_paragraph, plan_text, write_header
from llmdiff.training.prepare import load_parts
from llmdiff.training.trainer import train_adapter


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


def test_a_plan_of_the_embedded_default_is_what_a_run_of_it_takes(embedded):
    plan = make_plan(embedded, Assumptions())
    parts = load_parts(embedded, torch.device("cpu"))
    trained = [one for one in parts.adapter.parameters() if one.requires_grad]
    assert sum(plan.trained.values()) == sum(one.numel() for one in trained)
    for name, module in (("llm", parts.llm.model), ("denoiser", parts.denoiser), ("vae", parts.pipe.vae)):
        assert plan.frozen[name] == sum(one.numel() for one in module.parameters())
    held = plan.memory.whole
    assert held["LLM"] == module_bytes(parts.llm.model)
    assert held["denoiser"] == module_bytes(parts.denoiser)
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
    parts = load_parts(embedded, torch.device("cpu"))
    run = trainer._Run(embedded, parts, 1)
    batch = run._batch(0)
    run.batches.close()
    latents = run._latents(batch)
    real = Cost(parts.adapter.parameters())
    timesteps = torch.tensor([3, 700])
    with install(parts.denoiser, parts.adapter), sdpa_kernel(SDPBackend.MATH), real:
        states, pooled = parts.adapter.condition(batch.read)
        noised = run.objective.noised(latents, step_part(0, 0).generator)
        assert noised.timesteps.shape == timesteps.shape
        run.objective.loss(run._denoise(noised, states, pooled, batch.sizes), noised).backward()
    models = meta_models(embedded.models, torch.float32)
    tokens = batch.read.states.shape[1]
    planned = count_step(
        models, embedded, latents.shape[1:], tokens=tokens, checkpointing=False, like_gpu=None, fused=False
    )
    assert planned.flops == real.flops > 1e9
    assert planned.bytes == pytest.approx(real.bytes, rel=0.05)
    assert planned.peak_bytes == pytest.approx(real.peak_bytes, rel=0.05)
    # Checkpointing reaches the denoiser's blocks; a refiner keeps all of its own.
    bare = meta_models(embedded.models.model_copy(update={"start": None, "refiner_layers": 0}), torch.float32)
    for one, share in ((bare, 0.8), (models, 0.85)):
        fused, again = (
            count_step(one, embedded, latents.shape[1:], tokens=tokens, checkpointing=asked, like_gpu=None)
            for asked in (False, True)
        )
        assert fused.peak_bytes < planned.peak_bytes
        assert again.peak_bytes < share * fused.peak_bytes
        assert again.flops > 1.2 * fused.flops  # every block once more


def test_reading_texts_costs_what_its_formula_says(embedded):
    models = meta_models(embedded.models, torch.float32)
    texts, tokens = 2, 8
    config = models.llm.config
    per_token = sum(
        one.weight.numel() for one in models.llm.base_model.layers.modules() if isinstance(one, nn.Linear)
    )
    # Each token goes through every matrix twice, in its context and alone; scores and mixing of T x T and of 1 x 1.
    products = 2 * 2 * texts * tokens * per_token
    attention = 4 * texts * config.num_hidden_layers * config.hidden_size * (tokens**2 + tokens)
    rotary = 2 * texts * tokens  # each way of reading multiplies its positions with the frequencies, once
    extra = count_llm(models, texts, tokens).flops - products - attention
    assert 0 <= extra <= 2 * rotary * config.head_dim
    by_id = meta_models(
        embedded.models.model_copy(update={"lone": "vocabulary", "start": None}), torch.float32
    )
    whole, known = count_llm(models, texts, tokens).flops, count_llm(by_id, texts, tokens).flops
    assert known == pytest.approx(whole / 2, rel=0.01)


def test_flops_and_bytes_of_a_layer_counted_by_hand():
    frozen, trained = nn.Linear(8, 16).requires_grad_(False), nn.Linear(16, 4)
    cost = Cost(trained.parameters())
    with cost:
        trained(frozen(torch.ones(3, 8))).sum().backward()
    # Forward of both; backward: the trained weight's gradient only, as nothing before it learns.
    assert cost.flops == 2 * 3 * (8 * 16 + 16 * 4 + 16 * 4)
    assert {flops for flops, _ in cost.calls} == {0, 2 * 3 * 8 * 16, 2 * 3 * 16 * 4}
    product = next(size for flops, size in cost.calls if flops == 2 * 3 * 8 * 16)
    assert product == 4 * (3 * 8 + 8 * 16 + 16 + 3 * 16)


@pytest.mark.parametrize("masked", [False, True])
def test_fused_attention_counts_its_products_and_stores_no_scores(masked):
    batch, heads, queries, keys, width = 2, 3, 32, 16, 8
    query = torch.empty(batch, heads, queries, width, device="meta", requires_grad=True)
    key, value = (torch.empty(batch, heads, keys, width, device="meta") for _ in range(2))
    mask = torch.ones(batch, 1, 1, keys, dtype=torch.bool, device="meta") if masked else None
    cost = Cost()
    with LikeGpu(torch.bfloat16), cost:
        out = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        out.float().sum().backward()
    assert out.dtype == torch.bfloat16
    product = 2 * batch * heads * queries * keys * width
    assert cost.flops == 2 * product + 5 * product  # backward: the scores again, and four gradients
    assert cost.peak_bytes < 16 * batch * heads * (queries + 2 * keys) * width


def test_memory_is_counted_down_again():
    cost = Cost()
    with cost:
        for _ in range(10):
            torch.ones(1000)
        kept = torch.ones(500) + 1
    assert 4000 <= cost.peak_bytes < 8000
    assert kept.numel() == 500


def test_a_gpu_is_as_slow_as_what_limits_it():
    gpu = GPUS[0]
    assert gpu.seconds({(0, 8): 3}, half=True) == pytest.approx(3 * START_S)
    arithmetic = gpu.seconds({(10**15, 8): 1}, half=True)
    assert arithmetic == pytest.approx(10**15 / (gpu.half_tflops * 1e12 * 0.5))
    assert gpu.seconds({(10**15, 8): 1}, half=False) > arithmetic
    assert gpu.seconds({(0, 10**12): 1}, half=True) == pytest.approx(gpu.copy_seconds(10**12))
    assert all(one.half_tflops > one.float32_tflops and one.source for one in GPUS)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_moments_are_what_an_optimiser_keeps(config, tmp_path, optimizer):
    settings = config(training__optimizer=optimizer, training__steps=1, watch__prompts=[])
    train_adapter(settings)
    tensors = load_file(checkpoints(tmp_path / "run")[-1][1] / "checkpoint.safetensors")
    planned = make_plan(settings, Assumptions())
    assert planned.memory.whole["moments"] == sum(
        value.nbytes for value in part(tensors, "optimizer").values()
    )


def test_moments_of_8_bits_have_a_scale_for_every_256_numbers_and_small_tensors_stay_whole():
    layer = nn.Linear(128, 65)  # 8320 numbers in 33 blocks, and 65
    assert moments_bytes(layer, "adamw8bit") == 2 * (8320 + 4 * 33) + (8 * 65 + 4)


@pytest.mark.parametrize("name", BUILDERS)
def test_folders_with_config_files_alone_stand_in_for_models(config, models, tmp_path, name):
    BUILDERS[name]().save_pretrained(tmp_path / "base")
    shutil.copytree(models / "llm", tmp_path / "llm")
    for folder in ("base", "llm"):
        for weights in (tmp_path / folder).rglob("*.safetensors"):
            weights.unlink()
    settings = config(
        models__llm=str(tmp_path / "llm"), models__base=str(tmp_path / "base"), training__precision="bf16"
    )
    plan = make_plan(settings, Assumptions(processes=4, samples=100))
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
    assert plan.memory.sharded["moments"] == plan.memory.whole["moments"] // 4
    assert all(gpu.samples_per_s > 0 and gpu.fits for gpu in plan.gpus)
    assert "| H100 | yes |" in plan_text(plan)


def test_what_is_computed_in_every_step_is_in_the_plan(config):
    stored = make_plan(config(), Assumptions())
    assert set(stored.step_flops) == {"denoiser"}
    online = make_plan(config(training__encodings="online", data__store_latents=False), Assumptions())
    assert set(online.step_flops) == {"denoiser", "llm", "vae"}
    assert online.cache_bytes == 0
    assert online.gpus[0].samples_per_s < stored.gpus[0].samples_per_s
    learned = make_plan(config(training__gains="learned"), Assumptions())
    assert set(learned.step_flops) == {"denoiser", "llm"}
    assert learned.trained["context"] == stored.trained["context"] + 2 * 3  # g and k of three blocks


def test_models_that_are_not_to_be_had_are_named(config):
    with pytest.raises(LLMNotFoundError, match=r"llm 'me/none'.*models\.llm=FOLDER"):
        make_plan(config(models__llm="me/none"), Assumptions())
    with pytest.raises(PipelineNotFoundError, match=r"base 'me/none'.*models\.base=FOLDER"):
        make_plan(config(models__base="me/none"), Assumptions())


def test_the_command_prints_a_plan_and_writes_it_into_the_header(config, tmp_path):
    path = tmp_path / "c.yaml"
    body = yaml.safe_dump(config().model_dump(mode="json"))
    path.write_text(f"# A run.\n#\n#   llmdiff train c.yaml\n\n{body}")
    ran = CliRunner().invoke(app, ["plan", str(path), "--json"])
    assert ran.exit_code == 0, ran.output
    assert json.loads(ran.stdout)["samples_per_step"] == 2
    for _ in range(2):  # the second replaces the first
        ran = CliRunner().invoke(app, ["plan", str(path), "--processes", "2", "--header"])
        assert "| memory of each of 2 | DDP | FSDP |" in ran.output
    text = path.read_text()
    header = text.split("\n\n")[0]
    assert header.startswith("# A run.\n#\n#   llmdiff train c.yaml\n#\n# Planned cost")
    assert text.count("Planned cost") == 1
    assert "--processes 2`; counted" in " ".join(header.replace("# ", "").split())
    assert text.endswith(body)
    assert all(len(line) <= 120 for line in header.splitlines())
    (tmp_path / "bare.yaml").write_text(body)
    with pytest.raises(ConfigError, match="has no header"):
        write_header(tmp_path / "bare.yaml", "x")


@pytest.mark.parametrize("path", sorted(Path("configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_config_carries_its_planned_cost(path):
    header = " ".join(path.read_text().split("\n\n")[0].replace("# ", " ").split())
    assert f"Planned cost (`llmdiff plan configs/{path.name}" in header
    assert "GPU-" in header.split("Planned cost")[1]


def test_the_embedded_defaults_planned_cost_is_that_of_today():
    path = Path("configs/openmoji-smollm2.yaml")
    header = " ".join(path.read_text().split("\n\n")[0].replace("# ", " ").split())
    plan = make_plan(load_config(path, []), Assumptions())
    assert plan_paragraph(plan, f"llmdiff plan {path}") in header


@pytest.mark.parametrize("asked", [{"refiner_layers": 0}, {"refiner_layers": 1, "refiner_width": 8}])
def test_a_run_and_its_plan_have_the_refiner_that_is_asked_for(config, asked):
    chosen = config(**{f"models__{name}": value for name, value in asked.items()})
    refiner = load_parts(chosen, torch.device("cpu")).adapter.refiner
    size = 0 if refiner is None else sum(one.numel() for one in refiner.parameters())
    assert (size == 0) == (asked["refiner_layers"] == 0)
    if refiner is not None:
        assert (len(refiner.blocks), refiner.to_inside.out_features) == (1, 8)
    assert make_plan(chosen, Assumptions()).trained.get("refiner", 0) == size
