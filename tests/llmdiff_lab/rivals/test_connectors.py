"""Published connectors against literal re-statements of their architectures in plain operations."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny.pipelines import build_llm
from tiny.readers import PROMPTS, layer_outputs, normed, shaken

from llmdiff.errors import AttachError, UnsupportedPipelineError
from llmdiff.types import TextEncoding
from llmdiff_lab.rivals.connector import packed
from llmdiff_lab.rivals.lora import layers_within
from llmdiff_lab.rivals.registry import create


def linear(x, weights, name):
    return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0)


def normalised(x, eps):
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + eps).sqrt()


def layer_norm(x, weights, name):
    return normalised(x, 1e-5) * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def attention(query, key, value, heads):
    split = [part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (query, key, value)]
    logits = split[0] @ split[1].transpose(-1, -2) / math.sqrt(split[0].shape[-1])
    return (logits.softmax(-1) @ split[2]).transpose(1, 2).flatten(2)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@torch.no_grad()
def test_ella_is_the_published_resampler(parts):
    connector = shaken(create("ella", parts).connector)
    weights, width, channels = dict(connector.named_parameters()), 24, 8
    c, t = torch.randn(2, 5, 16), torch.tensor([3.0, 700.0])
    got = connector.at_step(TextEncoding(states=c, token_mask=torch.ones(2, 5, dtype=torch.bool)), t)

    frequencies = torch.exp(-math.log(10000) * torch.arange(channels // 2) / (channels // 2))
    angles = t[:, None] * frequencies
    e = linear(torch.cat([angles.cos(), angles.sin()], dim=-1), weights, "time_embedding.linear_1")
    e = linear(F.silu(e), weights, "time_embedding.linear_2")[:, None]

    def ada(x, name):
        shift, scale = linear(F.silu(e), weights, f"{name}.linear").chunk(2, dim=-1)
        return normalised(x, 1e-6) * (1 + scale) + shift

    z = weights["queries"] + linear(F.silu(e), weights, "time_in")
    x = linear(c, weights, "proj_in")
    for i in range(6):
        at = f"blocks.{i}"
        query = ada(z, f"{at}.ln_1")
        seen = torch.cat([query, ada(x, f"{at}.ln_2")], dim=1)
        mats = weights[f"{at}.attn.in_proj_weight"].chunk(3)
        biases = weights[f"{at}.attn.in_proj_bias"].chunk(3)
        q, k, v = (part @ m.T + b for part, m, b in zip((query, seen, seen), mats, biases, strict=True))
        z = z + linear(attention(q, k, v, 8), weights, f"{at}.attn.out_proj")
        inner = linear(ada(z, f"{at}.ln_ff"), weights, f"{at}.mlp.c_fc").clamp(min=0) ** 2
        z = z + linear(inner, weights, f"{at}.mlp.c_proj")
    torch.testing.assert_close(got.states, z, atol=1e-4, rtol=1e-3)
    assert got.states.shape == (2, 64, width)
    block = (
        4 * width * width + 4 * width + 8 * width * width + 5 * width + 3 * (2 * width * width + 2 * width)
    )
    time = channels * width + width + width * width + width
    assert count(connector) == 64 * width + time + width * width + width + 16 * width + width + 6 * block


@torch.no_grad()
def test_ella_changes_with_the_time_step_and_not_with_padding(parts):
    connector = shaken(create("ella", parts).connector)
    c = torch.randn(1, 5, 16)
    real = torch.tensor([[True, True, True, False, False]])
    whole = TextEncoding(states=c, token_mask=real)
    short = TextEncoding(states=c[:, :3], token_mask=real[:, :3])
    now, later = (connector.at_step(whole, torch.tensor([t])).states for t in (10.0, 900.0))
    assert (now - later).abs().max() > 1e-2
    torch.testing.assert_close(
        now, connector.at_step(short, torch.tensor([10.0])).states, atol=1e-3, rtol=1e-3
    )


@torch.no_grad()
def test_llm4gen_is_the_published_cross_adapter(parts):
    connector = shaken(create("llm4gen", parts).connector)
    weights, width = dict(connector.named_parameters()), 24
    raw = connector.read(PROMPTS)
    got = connector.carried(raw)
    tokenizer, text_encoder = parts.pipe.tokenizer, parts.pipe.text_encoder
    for b, prompt in enumerate(PROMPTS):
        ids = tokenizer([prompt], padding="max_length", return_tensors="pt").input_ids
        clip = text_encoder(ids).last_hidden_state
        llm = parts.llm.last_hidden_states([prompt]).states
        y = linear(llm, weights, "llm_proj")
        texts = layer_norm(clip, weights, "q_norm")
        q = linear(layer_norm(y, weights, "kv_norm"), weights, "q_proj")
        k, v = linear(texts, weights, "k_proj"), linear(texts, weights, "v_proj")
        y = linear(attention(q, k, v, 8), weights, "out_proj") + y
        inner = linear(layer_norm(y, weights, "norm"), weights, "fc1")
        y = linear(inner * torch.sigmoid(1.702 * inner), weights, "fc2") + y
        expected = torch.cat([clip, y], dim=1)[0]
        torch.testing.assert_close(got.states[b, : len(expected)], expected, atol=1e-4, rtol=1e-3)
        assert got.token_mask[b].sum() == len(expected)
    assert count(connector) == 16 * width + width + 12 * width * width + 9 * width + 6 * width


@torch.no_grad()
def test_lavi_bridge_reads_the_llm_with_its_lora_merged(parts):
    parts = replace(parts, template="the photo of {prompt}")
    connector = create("lavi-bridge", parts).connector.eval()
    for part in (connector.ff1, connector.ff2, connector.llm_lora.up):
        shaken(part)
    got = connector.carried(PROMPTS)
    # Another LLM of the same weights: the first one keeps what it has read of the template.
    merged, lora = build_llm(), connector.llm_lora
    merged.model.load_state_dict(parts.llm.model.state_dict())
    plain = connector.ff2(connector.norm2(connector.ff1(connector.norm1(last_states(parts, PROMPTS[0])))))
    assert not torch.allclose(got.states[0, : plain.shape[1]], plain[0], atol=1e-3)
    for name, down in lora.down.items():
        layer = merged.model.model.get_submodule(name.replace("/", "."))
        layer.weight += lora.up[name].weight @ down.weight
    parts = replace(parts, llm=merged)
    for b, prompt in enumerate(PROMPTS):
        expected = connector.ff2(connector.norm2(connector.ff1(connector.norm1(last_states(parts, prompt)))))[
            0
        ]
        torch.testing.assert_close(got.states[b, : len(expected)], expected, atol=1e-4, rtol=1e-3)
        assert got.token_mask[b].sum() == len(expected)


def test_a_prefix_run_once_gives_the_states_and_gradients_of_whole_texts(parts):
    parts = replace(parts, template="the photo of {prompt}")
    connector = create("lavi-bridge", parts).connector.eval()
    shaken(connector.llm_lora.up)
    cached = parts.llm.reading
    found = {}
    from_the_start = replace(cached, lone_calls="masked")  # every text is run from its first token
    for way in (cached, from_the_start):
        parts.llm.reading = way
        states = connector.carried(["", *PROMPTS]).states
        connector.zero_grad()
        states.square().sum().backward()
        lora = connector.llm_lora.named_parameters()
        found[way.whole_texts] = [states.detach(), *(parameter.grad.clone() for _, parameter in lora)]
    parts.llm.reading = cached
    assert len(found[True]) > 8
    for once, whole in zip(found[False], found[True], strict=True):
        assert whole.any()
        torch.testing.assert_close(once, whole, atol=1e-4, rtol=1e-3)


def last_states(parts, prompt):
    return parts.llm.last_hidden_states([prompt], template=parts.template).states


@torch.no_grad()
def test_lavi_bridge_is_the_published_two_stage_adapter(parts):
    connector = create("lavi-bridge", parts).connector
    for part in (connector.norm1, connector.norm2, connector.ff1, connector.ff2):
        shaken(part)
    weights = dict(connector.named_parameters())
    got = connector.eval().carried(PROMPTS)
    for b, prompt in enumerate(PROMPTS):
        # LoRA's B is 0 at the start, so this is the LLM as it is.
        x = parts.llm.last_hidden_states([prompt]).states
        for stage in ("1", "2"):
            inner, gate = linear(layer_norm(x, weights, f"norm{stage}"), weights, f"ff{stage}.proj").chunk(
                2, -1
            )
            gelu = gate * 0.5 * (1 + torch.erf(gate / math.sqrt(2)))
            x = linear(inner * gelu, weights, f"ff{stage}.out")
        torch.testing.assert_close(got.states[b, : x.shape[1]], x[0], atol=1e-4, rtol=1e-3)
        assert not got.states[b, x.shape[1] :].any()
    d, m, w = 16, 20, 24  # (16 + 24) / 2 in the middle
    adapter = 2 * d + 2 * m + (8 * d * d + 8 * d) + (4 * d * m + m) + (8 * m * m + 8 * m) + (4 * m * w + w)
    lora = 0
    for model, part in (
        (parts.llm.model.model, connector.llm_lora),
        (parts.pipe.unet, connector.denoiser_lora),
    ):
        for name in part.down:
            layer = model.get_submodule(name.replace("/", "."))
            out, inside, *kernel = layer.weight.shape
            lora += 32 * (inside * math.prod(kernel) + out)
    assert count(connector) == adapter + lora


def test_lavi_bridges_lora_is_in_the_published_layers_of_both_sides(parts):
    connector = create("lavi-bridge", parts).connector
    unet = parts.pipe.unet
    names = {name.replace("/", ".") for name in connector.denoiser_lora.down}
    kinds = {"ResnetBlock2D", "Attention", "GEGLU"}
    expected = {
        f"{top}.{name}" if name else top
        for top, module in unet.named_modules()
        if type(module).__name__ in kinds
        for name, layer in module.named_modules()
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)
    }
    assert names == expected
    assert any("time_emb_proj" in name for name in names)
    assert any("conv1" in name for name in names)
    llm = {name.replace("/", ".").split(".")[-1] for name in connector.llm_lora.down}
    assert llm == {"q_proj", "k_proj", "v_proj", "o_proj"}
    for name, layer in connector.denoiser_lora.down.items():
        original = unet.get_submodule(name.replace("/", "."))
        inputs = original.in_features if isinstance(original, torch.nn.Linear) else original.in_channels
        assert layer.weight.shape[:2] == (32, inputs)


def test_lora_adds_the_low_rank_product_and_leaves_no_trace(parts):
    connector = create("lavi-bridge", parts).connector.eval()
    lora, unet = connector.denoiser_lora, parts.pipe.unet
    before = {name: id(module) for name, module in unet.named_modules()}
    required = [parameter.requires_grad for parameter in unet.parameters()]
    name = next(name for name in lora.down if name.endswith("to_q"))
    layer = unet.get_submodule(name.replace("/", "."))
    shaken(lora.up[name])
    x = torch.randn(2, 3, layer.in_features)
    plain = layer(x)
    with lora.applied(unet):
        got = unet.get_submodule(name.replace("/", "."))(x)
        assert unet.get_submodule(name.replace("/", ".")) is not layer
    expected = plain + x @ lora.down[name].weight.T @ lora.up[name].weight.T
    torch.testing.assert_close(got, expected)
    conv = next(name for name in lora.down if name.endswith("conv1"))
    layer = unet.get_submodule(conv.replace("/", "."))
    shaken(lora.up[conv])
    x = torch.randn(2, layer.in_channels, 5, 5)
    # A convolution by A and then a 1 x 1 one by B is one by their product.
    product = torch.einsum("or,rihw->oihw", lora.up[conv].weight[..., 0, 0], lora.down[conv].weight)
    expected = torch.nn.functional.conv2d(x, layer.weight + product, layer.bias, padding=1)
    with lora.applied(unet):
        torch.testing.assert_close(
            unet.get_submodule(conv.replace("/", "."))(x), expected, atol=1e-4, rtol=1e-3
        )
    assert {name: id(module) for name, module in unet.named_modules()} == before
    assert [parameter.requires_grad for parameter in unet.parameters()] == required
    assert not hasattr(unet, "peft_config")


@torch.no_grad()
def test_every_layer_reads_its_own_block(parts, draw):
    conditioning = create("per-block", parts)
    connector, unet = conditioning.connector, parts.pipe.unet
    # Four layers, three blocks: in the order in which a picture passes them.
    assert [name.partition("_")[0] for name in connector.layers] == ["down", "mid", "up", "up"]
    assert connector.read_blocks == (0, 1, 1, 2)
    seen = {}

    def watch(name):
        def hook(layer, args, output):
            seen[name] = args[0]

        return unet.get_submodule(name).to_k.register_forward_hook(hook)

    handles = [watch(name) for name in connector.layers]
    states = conditioning.encode(PROMPTS[:1])
    with conditioning.installed(unet):
        unet(torch.randn(1, 4, 8, 8), torch.tensor(5), states)
    for handle in handles:
        handle.remove()
    x, _ = layer_outputs(parts.llm, PROMPTS[0])
    for i, name in enumerate(connector.layers):
        expected = normed(x[connector.read_blocks[i] + 1]) @ connector.projections[i].weight.T
        torch.testing.assert_close(seen[name][0], expected, atol=1e-4, rtol=1e-3)
    assert count(connector) == 4 * 16 * 24


CONNECTORS = [
    "ella",
    "llm4gen",
    "llm4gen-lora",
    "lavi-bridge",
    "mlp-lora",
    "mlp-denoiser-lora",
    "per-block",
    "query-adapter",
]


@pytest.mark.parametrize("name", CONNECTORS)
def test_attaching_a_connector_is_undone_exactly(parts, draw, name):
    pipe, conditioning = parts.pipe, create(name, parts)
    before, keys = draw(pipe, "a red cat"), list(vars(pipe))
    with conditioning.attached(pipe):
        inside = draw(pipe, "a red cat")
        assert (inside - before).abs().max() > 1e-4
        torch.testing.assert_close(
            draw(pipe, ["two apple on the car", "a red cat"])[1:], inside, atol=2e-3, rtol=0
        )
        with pytest.raises(AttachError), conditioning.attached(pipe):
            pass
    assert torch.equal(draw(pipe, "a red cat"), before)
    assert list(vars(pipe)) == keys
    assert not pipe.unet._forward_pre_hooks


def test_padding_does_not_reach_the_picture(parts):
    conditioning = create("llm4gen", parts)
    unet, states = parts.pipe.unet, conditioning.encode(PROMPTS[:1])
    longer = F.pad(states, (0, 0, 0, 3))
    latents = torch.randn(1, 4, 8, 8)
    with torch.no_grad(), conditioning.installed(unet):
        plain, padded = (unet(latents, torch.tensor(5), s).sample for s in (states, longer))
    torch.testing.assert_close(plain, padded, atol=1e-5, rtol=1e-4)
    assert packed(TextEncoding(states=states[..., :-1], token_mask=states[..., -1] != 0)).equal(states)


def test_connectors_are_refused_elsewhere(parts, sdxl_pipe):
    with pytest.raises(UnsupportedPipelineError, match="Stable Diffusion 1"):
        create("ella", replace(parts, pipe=sdxl_pipe))


def test_layers_within_finds_convolutions_and_linears_only():
    class Attention(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.to_q, self.norm = torch.nn.Linear(2, 2), torch.nn.LayerNorm(2)

    model = torch.nn.Sequential(Attention(), torch.nn.Linear(2, 2))
    assert layers_within(model, frozenset({"Attention"})) == ["0.to_q"]


@torch.no_grad()
def test_the_query_adapter_asks_the_llm_with_the_bases_own_ids(parts):
    connector = create("query-adapter", parts).connector.eval()
    shaken(connector)
    weights = dict(connector.named_parameters())
    got = connector.carried(connector.read(PROMPTS))
    ids = parts.pipe.tokenizer(PROMPTS, padding="max_length", return_tensors="pt").input_ids

    def asked(name, query, texts, matrices, heads):
        biases = weights[f"{name}.in_proj_bias"].chunk(3)
        parts = [
            states @ matrix.T + bias
            for states, matrix, bias in zip((query, texts, texts), matrices, biases, strict=True)
        ]
        return linear(attention(*parts, heads), weights, f"{name}.out_proj")

    for b, prompt in enumerate(PROMPTS):
        h = layer_norm(parts.llm.last_hidden_states([prompt]).states, weights, "norm_llm")
        z = (connector.embedding.weight[ids[b]] + connector.position)[None]
        for index, block in enumerate(connector.blocks):
            name, heads = f"blocks.{index}", block.self_attention.num_heads
            y = layer_norm(z, weights, f"{name}.norms.0")
            own = weights[f"{name}.self_attention.in_proj_weight"].chunk(3)
            z = z + asked(f"{name}.self_attention", y, y, own, heads)
            y = layer_norm(z, weights, f"{name}.norms.1")
            cross = f"{name}.cross_attention"
            z = z + asked(cross, y, h, [weights[f"{cross}.{one}_proj_weight"] for one in "qkv"], heads)
            inner = linear(layer_norm(z, weights, f"{name}.norms.2"), weights, f"{name}.widen")
            gelu = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
            z = z + linear(gelu, weights, f"{name}.narrow")
        expected = layer_norm(linear(z, weights, "out"), weights, "norm")[0]
        torch.testing.assert_close(got.states[b], expected, atol=1e-3, rtol=1e-3)
    assert got.token_mask.all()


def test_dropout_stands_behind_b_and_a_starts_as_published(parts):
    connector = create("lavi-bridge", parts).connector
    lora, unet = connector.denoiser_lora, parts.pipe.unet
    starts = torch.cat([down.weight.flatten() for down in lora.down.values()])
    assert float(starts.detach().std()) == pytest.approx(1 / 32, rel=0.05)
    name = next(name for name in lora.down if name.endswith("to_q"))
    layer = unet.get_submodule(name.replace("/", "."))
    shaken(lora.up[name])
    x = torch.randn(200, layer.in_features)
    with torch.no_grad(), lora.applied(unet):
        added = x @ lora.down[name].weight.T @ lora.up[name].weight.T
        lora.train(True)
        dropped = unet.get_submodule(name.replace("/", "."))(x) - layer(x)
    kept = dropped.abs() > 1e-6
    assert 0.8 < kept.float().mean() < 0.97
    torch.testing.assert_close(dropped[kept], added[kept] / 0.9, atol=1e-5, rtol=1e-3)


def test_lora_in_the_llm_learns_at_a_twentieth_of_the_rate(parts):
    for name in ("lavi-bridge", "refined-both-lora"):
        conditioning = create(name, parts)
        shares = {one: conditioning.lr_share(one) for one in conditioning.trainable()}
        slow = {one for one, share in shares.items() if share != 1}
        assert slow == {one for one in shares if "llm_lora." in one}
        assert {shares[one] for one in slow} == {1 / 20}


def test_lora_in_the_denoiser_only_leaves_the_llm_frozen(parts):
    connector = create("mlp-denoiser-lora", parts).connector
    names = {name.partition(".")[0] for name, _ in connector.named_parameters()}
    assert names == {"norm1", "norm2", "ff1", "ff2", "denoiser_lora"}
    assert connector.keeps == "encodings"


def test_without_lora_only_the_two_stages_learn(parts):
    connector = create("mlp-lora", parts).connector
    names = {name.partition(".")[0] for name, _ in connector.named_parameters()}
    assert names == {"norm1", "norm2", "ff1", "ff2"}
    read = connector.read(PROMPTS)  # once for all steps: nothing before the stages learns
    assert connector.keeps == "encodings"
    assert not read.states.requires_grad
    connector.carried(read).states.sum().backward()
    assert all(parameter.grad is None for parameter in parts.llm.model.parameters())
    connector.eval()
    bridge = create("lavi-bridge", parts).connector.eval()  # its LoRA adds nothing yet
    bridge.load_state_dict({**bridge.state_dict(), **connector.state_dict()})
    for part in ("states", "token_mask"):
        got, expected = (getattr(one.carried(one.read(PROMPTS)), part) for one in (connector, bridge))
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-3)
