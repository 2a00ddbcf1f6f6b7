"""An adapter ported to another LLM does what it did: exactly where the LLMs differ by a linear map."""

import copy
import json

import numpy as np
import pytest
import torch
from tiny.families import BUILDERS
from tiny.pipelines import build_llm
from typer.testing import CliRunner

from llmdiff.adapter import families, layers
from llmdiff.adapter.installation import install
from llmdiff.cli.main import app
from llmdiff.controller import LLMController
from llmdiff.errors import AdapterMismatchError, ConfigError, DataError, OutputError
from llmdiff.language.llm import DecoderLLM
from llmdiff.training.port import PortSettings, hold_out, port_adapter

NOUNS, COLOURS = ["cat", "dog", "car", "apple"], ["red", "blue", "green"]
CAPTIONS = [
    f"{count} {colour} {noun} {where} the {other}"
    for count in ("a", "two", "three")
    for colour in COLOURS
    for noun in NOUNS
    for where, other in (("on", "car"), ("left of", "dog"), ("above", "apple"))
]
CLOSED_FORM = PortSettings(steps=0)


def permuted(llm, *, id="other"):
    """The same LLM with its hidden units in another order: its states are a linear map of the old ones."""
    model = copy.deepcopy(llm.model)
    order = torch.randperm(model.config.hidden_size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for name, one in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                one.copy_(one[order])
            else:
                one.copy_(one[..., order])
    return DecoderLLM(model, llm.tokenizer, id=id)


def shaken(llm, pipe, captions=CAPTIONS, **settings):
    """A controller whose every weight has been trained, as it were."""
    torch.manual_seed(3)
    controller = LLMController.create(llm, pipe, calibration_prompts=hold_out(captions)[1], **settings)
    with torch.no_grad():
        for name, parameter in controller.adapter.named_parameters():
            if not name.startswith("context."):
                parameter.add_(0.1 * torch.randn_like(parameter))
    controller.adapter.eval()
    return controller


def outputs(controller, pipe, texts):
    """What the text layers give for fixed queries, and the pooled vector."""
    denoiser = families.denoiser_of(pipe)
    states, pooled = controller.adapter.condition(controller.encode(texts))
    found = {}
    with torch.no_grad(), install(denoiser, controller.adapter):
        for name, attn in layers.text_layers(denoiser).items():
            z = torch.randn(len(texts), 5, attn.to_q.in_features, generator=torch.Generator().manual_seed(2))
            found[name] = attn(z, encoder_hidden_states=states)
    return found, pooled


@pytest.mark.parametrize("refiner_layers", [0, 2])
def test_where_the_encodings_differ_by_a_linear_map_the_closed_form_gives_the_same(
    pipe, tmp_path, refiner_layers
):
    llm = build_llm()
    old = shaken(llm, pipe, refiner_layers=refiner_layers)
    new = port_adapter(old, permuted(llm), pipe, CAPTIONS, tmp_path / "new", CLOSED_FORM).controller
    texts = ["a red dog", "three apple on a blue car", ""]
    (wanted, wanted_pooled), (given, pooled) = outputs(old, pipe, texts), outputs(new, pipe, texts)
    for name, value in wanted.items():
        assert (given[name] - value).norm() < 1e-4 * (value - value.mean((0, 1))).norm(), name
    if pooled is not None:
        assert (pooled - wanted_pooled).norm() < 1e-3 * wanted_pooled.norm()


def test_a_wider_llm_with_other_blocks_and_tokens_is_trained_towards_the_old_adapter(sd_pipe, tmp_path):
    old = shaken(build_llm(), sd_pipe)
    llm = build_llm(5, 24, id="wider")
    settings = PortSettings(steps=60, batch_size=8, learning_rate=3e-3)
    ported = port_adapter(old, llm, sd_pipe, CAPTIONS, tmp_path / "new", settings)
    assert np.mean(ported.trained) < 0.7 * np.mean(ported.closed_form)
    loaded = LLMController.from_pretrained(tmp_path / "new", llm=llm)
    made = ported.controller.adapter.state_dict()
    assert all(torch.equal(value, made[name]) for name, value in loaded.adapter.state_dict().items())
    with loaded.attached(sd_pipe):
        assert sd_pipe("a cat", num_inference_steps=1, output_type="np").images.shape[0] == 1
    assert "ported with `llmdiff port`" in (tmp_path / "new" / "README.md").read_text()
    report = json.loads((tmp_path / "new" / "port" / "report.json").read_text())
    assert report["unexplained"] == ported.trained


def test_the_closed_form_is_kept_where_training_makes_it_worse(sd_pipe, tmp_path, caplog):
    llm, old = build_llm(4, id="other"), shaken(build_llm(), sd_pipe)
    best = port_adapter(old, llm, sd_pipe, CAPTIONS, tmp_path / "closed", CLOSED_FORM)
    settings = PortSettings(steps=1, batch_size=4, learning_rate=0.5)
    ported = port_adapter(old, llm, sd_pipe, CAPTIONS, tmp_path / "spoilt", settings)
    assert "the closed form is kept" in caplog.text
    assert ported.trained == ported.closed_form == best.closed_form
    for name, value in best.controller.adapter.state_dict().items():
        assert torch.equal(value, ported.controller.adapter.state_dict()[name]), name


def test_a_family_without_such_attention_is_ported_in_closed_form_only(tmp_path):
    pipe, llm = BUILDERS["pixart"](), build_llm()
    old, other = shaken(llm, pipe), permuted(llm)
    with pytest.raises(ConfigError, match="set it to 0 for the closed form"):
        port_adapter(old, other, pipe, CAPTIONS, tmp_path / "new")
    ported = port_adapter(old, other, pipe, CAPTIONS, tmp_path / "new", CLOSED_FORM)
    assert ported.token_map.unexplained < 1e-4
    texts = ["a red dog", "two car"]
    wanted, given = (one.adapter.condition(one.encode(texts))[0] for one in (old, ported.controller))
    width = old.adapter.config.text_width
    assert torch.allclose(wanted[..., :width], given[..., :width], atol=2e-3)


def test_a_port_that_was_stopped_goes_on_to_the_same_bits(sd_pipe, monkeypatch, tmp_path, interrupt):
    from llmdiff.training import loop

    llm, settings = build_llm(4, id="other"), PortSettings(steps=4, batch_size=4, checkpoint_every_s=0)
    old = shaken(build_llm(), sd_pipe)
    whole = port_adapter(old, llm, sd_pipe, CAPTIONS, tmp_path / "whole", settings).controller.adapter
    interrupt(3, loop, "lr_factor")
    with pytest.raises(KeyboardInterrupt):
        port_adapter(old, llm, sd_pipe, CAPTIONS, tmp_path / "cut", settings)
    assert not (tmp_path / "cut" / "config.json").exists()
    monkeypatch.undo()
    again = port_adapter(old, llm, sd_pipe, CAPTIONS, tmp_path / "cut", settings).controller.adapter
    assert all(torch.equal(one, again.state_dict()[name]) for name, one in whole.state_dict().items())
    with pytest.raises(OutputError, match="was started with other captions"):
        port_adapter(old, llm, sd_pipe, CAPTIONS[1:], tmp_path / "cut", settings)


def test_what_cannot_be_ported_is_refused_before_anything_is_written(sd_pipe, sdxl_pipe, tmp_path):
    old, other, out = shaken(build_llm(), sd_pipe), build_llm(id="other"), tmp_path / "new"
    with pytest.raises(AdapterMismatchError, match="is the LLM of the adapter, expected another one"):
        port_adapter(old, build_llm(id="owner/Tiny-Llama"), sd_pipe, CAPTIONS, out)
    with pytest.raises(AdapterMismatchError, match="use a pipeline of that family"):
        port_adapter(old, other, sdxl_pipe, CAPTIONS, out)
    with pytest.raises(DataError, match="got 3 different ones, expected at least 20"):
        port_adapter(old, other, sd_pipe, [*CAPTIONS[:3]] * 30, out)
    without = shaken(build_llm(), sd_pipe)
    without.adapter.context = None
    with pytest.raises(AdapterMismatchError, match="does not read an LLM's blocks"):
        port_adapter(without, other, sd_pipe, CAPTIONS, out)
    assert not out.exists()
    old.save_pretrained(out)
    with pytest.raises(OutputError, match="has an adapter that was not ported there"):
        port_adapter(old, other, sd_pipe, CAPTIONS, out)


def _port(tmp_path, pipe, captions, *more):
    """Run the command on saved models."""
    pipe.save_pretrained(tmp_path / "base")
    for name, llm in (("tiny-llama", build_llm()), ("other", build_llm(4, 24, id="other"))):
        llm.model.save_pretrained(tmp_path / name)
        llm.tokenizer.save_pretrained(tmp_path / name)
    llm = DecoderLLM.from_pretrained(tmp_path / "tiny-llama")
    controller = LLMController.create(llm, pipe, base_model_id=str(tmp_path / "base"))
    controller.save_pretrained(tmp_path / "old")
    places = {"adapter": "old", "llm": "other", "captions": captions, "out": "new"}
    given = [word for name, place in places.items() for word in (f"--{name}", str(tmp_path / place))]
    return CliRunner().invoke(app, ["port", *given, "--device", "cpu", *more])


def test_the_command_ports_and_says_what_is_kept(sd_pipe, tmp_path):
    (tmp_path / "captions.txt").write_text("\n".join(CAPTIONS))
    told = _port(tmp_path, sd_pipe, "captions.txt", "--steps", "2", "--batch-size", "2")
    assert told.exit_code == 0, told.output
    assert "closed form" in told.output
    assert "trained" in told.output
    LLMController.from_pretrained(tmp_path / "new")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.txt", None, "missing.txt"),
        ("captions.pdf", "a cat", "expected a file that ends in one of .txt, .jsonl, .csv"),
        ("captions.txt", "\n\n", "has none"),
        ("captions.jsonl", '{"text": "a cat"}\n{"text": 3}\n', "line 2: caption is not a text"),
        ("captions.csv", "name\na cat\n", "has the columns name; expected text or caption or captions"),
        ("captions.txt", "a cat\na dog\n", "got 2 different ones, expected at least 20"),
    ],
)
def test_bad_captions_are_one_line(sd_pipe, tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    told = _port(tmp_path, sd_pipe, name)
    assert told.exit_code == 1
    assert message in told.output
    assert told.output.strip().splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "new" / "config.json").exists()
