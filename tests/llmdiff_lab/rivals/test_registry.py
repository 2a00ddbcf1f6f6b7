"""Every row of the registry: made, trained for a step, saved, loaded and attached through one interface."""

import json
from dataclasses import replace

import pytest
import torch
from tiny.pipelines import build_llm
from tiny.readers import PROMPTS, shaken

from llmdiff.adapter import layers
from llmdiff.adapter.manifest import write_manifest
from llmdiff.errors import AdapterMismatchError, ConfigError, CorruptWeightsError
from llmdiff_lab.rivals.registry import RIVALS, checked, create
from llmdiff_lab.rivals.rows import RivalRow
from llmdiff_lab.rivals.storage import load_rival, save_rival


def batch_of(stage, folder):
    store = stage.store(folder, folder)
    return stage.read(PROMPTS) if store is None else store.batch(PROMPTS)


@pytest.mark.parametrize("name", RIVALS)
def test_a_step_of_every_stage_moves_only_the_rivals_own_parameters(parts, tmp_path, name):
    conditioning, unet = create(name, parts), parts.pipe.unet.requires_grad_(False)
    frozen = {key: value.clone() for key, value in unet.state_dict().items()}
    names = []
    for stage in conditioning.stages():
        names.append(stage.name)
        trained = {
            f"{prefix}.{key}": parameter
            for prefix, module in conditioning.modules.items()
            for key, parameter in module.named_parameters()
            if parameter.requires_grad
        }
        assert conditioning.trainable() == {key: value.numel() for key, value in trained.items()}
        conditioning.train()
        with conditioning.installed(unet):
            states, _ = stage.condition(batch_of(stage, tmp_path), torch.Generator().manual_seed(0))
            unet(
                torch.randn(3, 4, 8, 8), torch.tensor([5, 300, 900]), states
            ).sample.square().mean().backward()
        moved = {key for key, value in trained.items() if value.grad is not None and value.grad.any()}
        assert moved, "nothing learns"
        if stage.name == "gains":
            assert any(key.endswith("gamma") for key in moved)
        else:
            assert not any(key.endswith(("gamma", "kappa")) for key in moved)
        conditioning.modules[next(iter(conditioning.modules))].zero_grad()
    assert names in (["main"], ["gains", "main"])
    after = unet.state_dict()
    assert list(after) == list(frozen)
    assert all(torch.equal(after[key], value) for key, value in frozen.items())
    assert all(parameter.grad is None for parameter in parts.llm.model.parameters())


@pytest.mark.parametrize("name", RIVALS)
def test_a_saved_rival_draws_the_same_after_loading(parts, draw, tmp_path, name):
    conditioning = create(name, parts)
    for module in conditioning.modules.values():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.data += 0.05 * torch.randn(
                    parameter.shape, generator=torch.Generator().manual_seed(1)
                )
    with conditioning.attached(parts.pipe):
        expected = draw(parts.pipe, "a red cat")
    save_rival(conditioning, name, parts, tmp_path / name)
    assert sorted(path.suffix for path in (tmp_path / name).iterdir()) == [".json", ".json", ".safetensors"]
    loaded = load_rival(tmp_path / name, replace(parts, captions=(), seed=9))
    with loaded.attached(parts.pipe):
        assert torch.equal(draw(parts.pipe, "a red cat"), expected)


@pytest.mark.parametrize("name", RIVALS)
def test_a_layer_asked_alone_reads_what_the_denoiser_hands_it(parts, tmp_path, name):
    conditioning, unet = create(name, parts), parts.pipe.unet.requires_grad_(False)
    *_, stage = conditioning.stages()
    timesteps = torch.tensor([5, 300, 900])
    met, alone = {}, {}

    def keep(layer):
        def hook(attn, args, output):
            met[layer] = args[0], output

        return hook

    with torch.no_grad(), conditioning.installed(unet):
        states, _ = stage.condition(batch_of(stage, tmp_path), None)
        text_layers = layers.text_layers(unet)
        handles = [attn.register_forward_hook(keep(key)) for key, attn in text_layers.items()]
        unet(torch.randn(3, 4, 8, 8), timesteps, states)
        for handle in handles:
            handle.remove()
        read, mask = conditioning.layer_inputs(states, timesteps)
        for key, attn in text_layers.items():
            alone[key] = attn(met[key][0], encoder_hidden_states=read, attention_mask=mask)
    assert len(alone) >= 2
    for key, (_, output) in met.items():
        torch.testing.assert_close(alone[key], output, rtol=1e-5, atol=1e-6)


def test_the_same_seed_makes_the_same_weights_and_leaves_the_global_state(parts):
    state = torch.get_rng_state()
    first, second, other = (create("ella", replace(parts, seed=seed)).tensors() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["connector.queries"], other["connector.queries"])


def test_what_does_not_fit_is_named(parts, tmp_path):
    with pytest.raises(ConfigError, match=r"'elly'.*ella"):
        create("elly", parts)
    with pytest.raises(ConfigError, match="needs t5"):
        create("t5-encoder", replace(parts, t5=None))
    save_rival(create("penultimate", parts), "penultimate", parts, tmp_path / "saved")
    with pytest.raises(AdapterMismatchError, match="template"):
        load_rival(tmp_path / "saved", replace(parts, template="a photo of {prompt}"))
    weights = next((tmp_path / "saved").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-3])
    with pytest.raises(CorruptWeightsError, match="damaged"):
        load_rival(tmp_path / "saved", parts)


@pytest.mark.hostile("adapter config")
@pytest.mark.parametrize("value", [[], {}, 3, True, 1e400], ids=repr)
def test_settings_that_are_no_text(parts, tmp_path, value):
    save_rival(create("penultimate", parts), "penultimate", parts, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"rival": value}))
    write_manifest(tmp_path, ["config.json", "diffusion_pytorch_model.safetensors"])
    with pytest.raises(ConfigError, match="has rival"):
        load_rival(tmp_path, parts)


@pytest.mark.parametrize(
    "plain", ["base-states", "encoder-only", "last-hidden", "penultimate", "norm-average", "paper", "guided"]
)
def test_a_refined_row_is_its_plain_one_with_a_refiner(parts, plain):
    name = "refined" if plain == "guided" else f"{plain}-refined"
    before, refined = create(plain, parts), create(name, parts)
    added = refined.tensors().keys() - before.tensors().keys()
    assert added
    assert all(name.startswith("adapter.refiner.") for name in added)
    assert before.tensors().keys() < refined.tensors().keys()
    assert before.trainable().keys() < refined.trainable().keys()
    more = refined.trainable().keys() - before.trainable().keys()
    assert {one.split(".")[1] for one in more} == {"refiner"}
    assert type(refined.source) is type(before.source)
    assert refined.source_id == before.source_id


def test_a_wide_refiner_has_the_width_of_the_llm_and_fixed_gains(parts):
    text_width = parts.pipe.unet.config.cross_attention_dim
    parts = replace(parts, llm=build_llm(hidden_size=2 * text_width))
    widths = {
        name: create(name, parts).adapter.refiner.to_inside.out_features
        for name in ("refined", "refined-wide")
    }
    assert widths == {"refined": text_width, "refined-wide": 2 * text_width}
    assert not any("context.gamma" in name for name in create("refined-wide", parts).trainable())


def test_one_branch_is_the_sum_without_the_other_term(parts):
    latents, step = torch.randn(1, 4, 8, 8), torch.tensor(5)

    def drawn(name, shake=()):
        conditioning = create(name, parts)
        for branch in conditioning.branches():
            for part in shake:
                shaken(getattr(branch, part))
        *_, stage = conditioning.stages()
        with torch.no_grad(), conditioning.installed(parts.pipe.unet):
            return parts.pipe.unet(latents, step, stage.condition(stage.read(PROMPTS[:1]), None)[0]).sample

    inside = ("to_q", "to_k", "to_v", "to_out")
    assert torch.equal(drawn("pretrained-branch"), drawn("pretrained-branch", inside))
    assert not torch.equal(drawn("guided"), drawn("pretrained-branch"))
    assert not torch.equal(drawn("new-branch"), drawn("new-branch", inside))
    assert not torch.equal(drawn("guided"), drawn("new-branch"))
    new = create("new-branch", parts)
    assert all(float(branch.gates()[0]) == 0 for branch in new.branches())
    assert not any(".phi." in key or key.endswith((".a1", ".b1")) for key in new.trainable())


def test_noise_is_drawn_in_training_only_and_only_where_it_is_on(parts):
    for name, noisy in (("guided", True), ("no-noise", False)):
        *_, stage = create(name, parts).stages()
        raw = stage.read(PROMPTS)
        plain, _ = stage.condition(raw, None)
        drawn, _ = stage.condition(raw, torch.Generator().manual_seed(1))
        assert torch.equal(drawn, plain) is not noisy


def test_alone_means_in_every_row_what_its_name_says(parts):
    given = replace(parts, lone="token")
    for row, lone in (
        ("paper-lone-token", "token"),
        ("paper-lone-bos", "token+bos"),
        ("guided-lone-token", "token"),
        ("guided-lone-bos", "token+bos"),
        ("guided", "token"),
    ):
        context = create(row, given).adapter.context
        assert context.lone == lone
        assert context.encoding == row.partition("-")[0]


def test_lora_in_the_denoiser_begins_as_nothing_and_is_gone_after_drawing(parts, draw):
    base = draw(parts.pipe, "a red cat")

    def drawn(conditioning):
        with conditioning.attached(parts.pipe):
            return draw(parts.pipe, "a red cat")

    plain, extended = create("refined", parts), create("refined-lora", parts)
    before = {name: id(module) for name, module in parts.pipe.unet.named_modules()}
    assert torch.equal(drawn(extended), drawn(plain))
    shaken(extended.denoiser_lora.up)
    assert not torch.equal(drawn(extended), drawn(plain))
    assert torch.equal(draw(parts.pipe, "a red cat"), base)
    assert {name: id(module) for name, module in parts.pipe.unet.named_modules()} == before
    lavi = create("lavi-bridge", parts).connector.denoiser_lora
    assert {key: value.shape for key, value in lavi.state_dict().items()} == {
        key: value.shape for key, value in extended.denoiser_lora.state_dict().items()
    }


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"reading": "tea-leaves"}, "reading is 'tea-leaves', expected one of"),
        ({"reading": "ella", "refiner_layers": 4}, "the reading 'ella' does not use refiner_layers"),
        ({"reading": "taps", "lora": ["llm"], "noise": False}, "the reading 'taps' does not use lora, noise"),
    ],
)
def test_a_row_with_fields_that_its_reading_has_no_use_for_is_refused(fields, message):
    row = RivalRow(title="a row", group="layers", **fields)
    with pytest.raises(ConfigError, match=message):
        checked("a-row", row)
