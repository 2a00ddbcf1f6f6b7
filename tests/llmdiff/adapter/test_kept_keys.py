"""Keys and values of a prompt are kept between the steps of one generation, and no longer."""

import copy
import gc

import torch

from .formula import QUERY, attached, layer, padded_text


class Counting:
    def __init__(self, *modules: torch.nn.Module) -> None:
        self.calls = 0
        for module in modules:
            module.register_forward_hook(self)

    def __call__(self, *_: object) -> None:
        self.calls += 1


def test_keys_and_values_are_kept_for_one_tensor_only() -> None:
    attn = layer()
    ours = attached(attn)
    count = Counting(attn.to_k, ours.branch.to_k)
    image, (text, _) = torch.randn(2, 6, QUERY), padded_text(5, 3)
    with torch.no_grad():
        first = ours.forward(image, text)
        assert torch.equal(ours.forward(image, text), first)
        assert count.calls == 2
        # Equal values in another tensor, other values in the same tensor, other weights: all computed anew.
        assert torch.equal(ours.forward(image, text.clone()), first)
        assert count.calls == 4
        text.mul_(0.5)
        changed = ours.forward(image, text)
        assert count.calls == 6
        assert not torch.equal(changed, first)
        ours.branch.to_k.weight.mul_(0.5)
        assert not torch.equal(ours.forward(image, text), changed)
        assert count.calls == 8


def test_nothing_is_kept_with_gradients_or_in_inference_mode() -> None:
    attn = layer()
    ours = attached(attn)
    count = Counting(ours.branch.to_k)
    image, (text, _) = torch.randn(2, 6, QUERY), padded_text(5, 3)
    ours.forward(image, text)
    ours.forward(image, text).sum().backward()
    assert count.calls == 2
    assert ours.branch.to_k.weight.grad is not None
    with torch.inference_mode():
        text = text.clone()
        before = ours.forward(image, text)
        text.mul_(0.5)
        assert not torch.equal(ours.forward(image, text), before)


def test_what_is_kept_goes_with_its_tensor() -> None:
    attn = layer()
    ours = attached(attn)
    text, _ = padded_text(5, 3)
    with torch.no_grad():
        ours.forward(torch.randn(2, 6, QUERY), text)
    assert len(ours._kept) == 1
    del text
    gc.collect()
    assert len(ours._kept) == 0


def test_a_deep_copy_is_on_its_own() -> None:
    attn = layer()
    ours = attached(attn)
    attn.forward = ours.forward
    image, (text, _) = torch.randn(2, 6, QUERY), padded_text(5, 3)
    with torch.no_grad():
        before = attn(image, text)
        twin = copy.deepcopy(attn)
        assert torch.equal(twin(image, text), before)
        twin.forward.__self__.branch.to_v.weight.zero_()
        assert not torch.equal(twin(image, text), before)
        assert torch.equal(attn(image, text), before)
