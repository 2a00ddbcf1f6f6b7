"""A compiled denoiser trains the same; models that no step runs leave the device."""

from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load_file
from torch._dynamo.testing import CompileCounterWithBackend

from llmdiff.adapter.base_pipeline import load_base_pipeline
from llmdiff.errors import LLMDiffError
from llmdiff.training import adapter_training, step_models
from llmdiff.training.adapter_conditioning import AdapterConditioning
from llmdiff.training.checkpoint import load_checkpoint
from llmdiff.training.log import read_log
from llmdiff.training.trainer import train_adapter


def _trained(settings):
    """The losses of every step and of validation, and the adapter's weights."""
    folder = train_adapter(settings)
    lines = read_log(folder.parent / "log.jsonl")
    losses = [line[name] for line in lines for name in ("loss", "validation_loss") if name in line]
    return losses, load_file(next(folder.glob("*.safetensors")))


@pytest.mark.parametrize("changes", [{}, {"training__gradient_checkpointing": True}])
def test_a_compiled_run_has_the_same_losses_and_names(config, monkeypatch, tmp_path, changes):
    torch._dynamo.reset()
    often = {"watch__sample_every": 2, "training__log_every": 1, "training__steps": 6, **changes}
    losses, weights = _trained(config("eager", **often))
    counter = CompileCounterWithBackend("aot_eager")
    true = step_models.compiled
    monkeypatch.setattr(adapter_training, "compiled", lambda denoiser, name: true(denoiser, name and counter))
    found, compiled = _trained(config("compiled", training__compile="aot_eager", **often))
    assert found == pytest.approx(losses, rel=1e-5)
    assert compiled.keys() == weights.keys()
    assert all(torch.allclose(compiled[name], weights[name], atol=1e-5) for name in weights)
    _, tensors = load_checkpoint(tmp_path / "compiled")
    assert not any("_orig_mod" in name for name in tensors)
    # The shapes of the pictures, one of them again for any length of captions; none for validation and samples.
    assert 0 < counter.frame_count <= 3
    assert counter.op_count > 100


def test_what_cannot_be_compiled_is_named(config, monkeypatch):
    def fails(*_):
        raise RuntimeError("no compiler found")

    torch._dynamo.reset()
    true = step_models.compiled
    monkeypatch.setattr(adapter_training, "compiled", lambda denoiser, name: true(denoiser, fails))
    with pytest.raises(
        LLMDiffError, match=r"training\.compile is True, but the backend inductor cannot .* here"
    ):
        train_adapter(config(training__compile=True))


@pytest.mark.parametrize(
    ("changes", "resting"),
    [
        ({}, {"text_encoder", "vae"}),
        ({"data__store_latents": False}, {"text_encoder"}),
        ({"training__encodings": "online"}, set()),
    ],
)
def test_models_that_no_step_runs_leave_the_device(config, monkeypatch, changes, resting):
    pipes, held, in_steps, in_samples = [], [], [], []
    true_move, true_idle = step_models.on_device, step_models.idle_models
    true_figures, true_draw = AdapterConditioning.figures, adapter_training.draw_samples

    @contextmanager
    def moved(models, device):
        held.append((models, device))
        with true_move(models, device):
            yield
        held.pop()

    def idle(pipe, used):
        pipes.append(pipe)
        return true_idle(pipe, used)

    def named(models):
        return {name for name, one in pipes[-1].components.items() if any(one is model for model in models)}

    def figures(self):
        in_steps.append([(named(models), device) for models, device in held] if pipes else [])
        return true_figures(self)

    def draw(*given):
        in_samples.append([(named(models), device) for models, device in held] if pipes else [])
        return true_draw(*given)

    monkeypatch.setattr(adapter_training, "on_device", moved)
    monkeypatch.setattr(adapter_training, "idle_models", idle)
    monkeypatch.setattr(AdapterConditioning, "figures", figures)
    monkeypatch.setattr(adapter_training, "draw_samples", draw)
    train_adapter(config(**changes))
    cpu = torch.device("cpu")
    rest = [(resting, cpu)] if resting else []
    assert in_steps == [rest] * 4
    # Sample pictures bring them to the denoiser, which is on a CPU here.
    assert in_samples == [rest + rest]


class Moves(torch.nn.Linear):
    """A layer that notes where it is moved to; without weights, so that it may be on any device."""

    def __init__(self, device):
        super().__init__(2, 2, device=device)
        self.moves = []

    def to(self, device):
        self.moves.append(str(device))
        return self.to_empty(device=device)


def test_models_are_moved_and_brought_back():
    away, there = Moves("meta"), Moves("cpu")

    def stopped():
        with step_models.on_device([away, there], torch.device("cpu")):
            assert away.weight.device.type == "cpu"
            with step_models.on_device([away], torch.device("meta")):
                assert away.weight.device.type == "meta"
            raise KeyError

    with pytest.raises(KeyError):
        stopped()
    assert away.moves == ["cpu", "meta", "cpu", "meta"]
    assert there.moves == []


def test_a_model_that_is_trained_or_quantised_does_not_rest(models):
    pipe = load_base_pipeline(str(models / "sdxl"), dtype=torch.float32)
    used = [pipe.unet, pipe.text_encoder.get_input_embeddings()]
    assert step_models.idle_models(pipe, used) == [pipe.vae, pipe.text_encoder_2]
    pipe.text_encoder_2.hf_quantizer = object()
    assert step_models.idle_models(pipe, used) == [pipe.vae]
