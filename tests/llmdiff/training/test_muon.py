"""Muon against the singular value decomposition, and AdamW's groups against the formula."""

import pytest
import torch
from torch import nn

from llmdiff.training.loop import train
from llmdiff.training.loop_config import LoopConfig
from llmdiff.training.muon import MuonAdamW, orthogonalise
from llmdiff.training.optimizers import create_optimizer


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-4), (torch.bfloat16, 0.04)])
@pytest.mark.parametrize("shape", [(8, 8), (5, 40), (40, 5), (48, 64)])
def test_orthogonalised_matrices_keep_their_singular_vectors(shape, dtype, atol):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonalise(matrix.to(dtype))
    assert found.dtype == dtype
    seen = left.T @ found.float() @ right.T  # diagonal where the singular vectors are the same
    values = seen.diagonal()
    assert torch.allclose(seen, torch.diag(values), atol=atol)
    assert values.min() > 0.5
    assert values.max() < 1.3


def _networks():
    torch.manual_seed(0)
    first = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    second = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    second.load_state_dict(first.state_dict())
    return first, second


def test_other_groups_are_adamw_by_its_formula():
    network, _ = _networks()
    matrix, others = network[2].weight, [network[0].weight, network[0].bias, network[2].bias]
    rate, decay, (beta1, beta2), eps = 0.01, 0.1, (0.9, 0.99), 1e-8
    optimizer = MuonAdamW(
        [{"params": [matrix], "muon": True}, {"params": others, "muon": False}],
        lr=rate, weight_decay=decay, betas=(beta1, beta2), eps=eps,
    )  # fmt: skip
    expected = [one.detach().double().clone() for one in others]
    first, second = ([torch.zeros_like(one) for one in expected] for _ in range(2))
    for step in range(1, 4):
        x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(step))
        network(x).square().mean().backward()
        for place, parameter in enumerate(others):
            gradient = parameter.grad.double()
            first[place] = beta1 * first[place] + (1 - beta1) * gradient
            second[place] = beta2 * second[place] + (1 - beta2) * gradient**2
            size = (second[place] / (1 - beta2**step)).sqrt() + eps
            expected[place] *= 1 - rate * decay
            expected[place] -= rate * first[place] / (1 - beta1**step) / size
        optimizer.step()
        optimizer.zero_grad()
    for parameter, value in zip(others, expected, strict=True):
        torch.testing.assert_close(parameter.detach().double(), value, atol=1e-6, rtol=1e-5)


def test_the_first_update_of_a_convolution_is_its_orthogonalised_gradient():
    network, _ = _networks()
    weight = network[0].weight
    optimizer = MuonAdamW([{"params": [weight], "muon": True}], lr=0.1, weight_decay=0.0)
    before = weight.detach().clone()
    network(torch.ones(1, 3, 4, 4)).sum().backward()
    u, _, v = torch.linalg.svd(weight.grad.flatten(1) + torch.zeros(4, 27), full_matrices=False)
    rank = torch.linalg.matrix_rank(weight.grad.flatten(1))
    optimizer.step()
    change = (before - weight.detach()).flatten(1) / (0.1 * 0.2 * 27**0.5)
    seen = (u.T @ change @ v.T).diagonal()[:rank]
    assert ((seen > 0.5) & (seen < 1.3)).all()
    assert weight.grad is None


@pytest.mark.parametrize(("precision", "dtype"), [("no", torch.float32), ("bf16", torch.bfloat16)])
def test_updates_are_orthogonalised_in_the_precision_of_the_training(precision, dtype):
    weight = nn.Parameter(torch.zeros(5, 40))
    gradient = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    weight.grad = gradient.clone()
    config = LoopConfig(steps=1, learning_rate=0.1, weight_decay=0.0, precision=precision)
    create_optimizer({"w": weight}, config, lambda name: (1, 1), lambda name: True, fused=False).step()
    wanted = torch.lerp(gradient, 0.05 * gradient, 0.95)  # Nesterov's momentum in the first step
    expected = -0.1 * 0.2 * 40**0.5 * orthogonalise(wanted.to(dtype)).float()
    # The two dtypes differ by 7e-4 here.
    torch.testing.assert_close(weight.detach(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", [(8, 8), (5, 40), (40, 5), (6, 4, 3, 3)])
def test_matrices_of_one_shape_move_together_as_they_would_alone(shape):
    def moved(groups):
        generator = torch.Generator().manual_seed(0)
        several = [nn.Parameter(torch.randn(shape, generator=generator)) for _ in range(3)]
        optimizers = [
            MuonAdamW([{"params": [several[i] for i in group], "muon": True}], lr=0.1) for group in groups
        ]
        for _ in range(3):
            for parameter in several:
                parameter.grad = torch.randn(shape, generator=generator)
            for optimizer in optimizers:
                optimizer.step()
        return several

    for together, alone in zip(moved([(0, 1, 2)]), moved([(0,), (1,), (2,)]), strict=True):
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


class _Stop(Exception):
    pass


def _run(folder, stop_at=None):
    model, _ = _networks()

    def step_loss(part):
        if part.step == stop_at:
            raise _Stop
        return model(torch.randn(4, 3, 4, 4, generator=part.generator)).square().mean(), {}

    config = LoopConfig(steps=8, learning_rate=0.01, lr_warmup_steps=2, checkpoint_every_s=0.0)
    train({"m": model}, step_loss, config, folder, title="t", muon=lambda name: name == "m.0.weight")
    return [value.clone() for value in model.parameters()]


def test_a_stopped_run_resumes_bit_for_bit(tmp_path):
    whole = _run(tmp_path / "whole")
    with pytest.raises(_Stop):
        _run(tmp_path / "stopped", stop_at=5)
    assert all(torch.equal(a, b) for a, b in zip(whole, _run(tmp_path / "stopped"), strict=True))
