"""Shapes of the values passed between modules are checked at test time."""

import pytest
import torch
from jaxtyping import TypeCheckError

from llmdiff.adapter.refiner import TokenRefiner
from llmdiff.types import BlockStates, TextEncoding


def test_a_mask_of_another_length_is_refused():
    with pytest.raises(TypeCheckError, match="token_mask"):
        TextEncoding(states=torch.zeros(2, 3, 8), token_mask=torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(TypeCheckError, match="token_mask"):
        TextEncoding(states=torch.zeros(2, 3, 8), token_mask=torch.ones(2, 3))
    # With groups of attention layers, and without.
    for shape in ((2, 3, 8), (2, 3, 5, 8)):
        TextEncoding(states=torch.zeros(shape), token_mask=torch.ones(2, 3, dtype=torch.bool))


def test_block_states_agree_in_their_sizes():
    mask, ids = torch.ones(1, 3, dtype=torch.bool), torch.ones(1, 3, dtype=torch.long)
    x0, updates = torch.zeros(1, 3, 8), torch.zeros(4, 1, 3, 8)
    BlockStates(x0=x0, context=updates, lone=updates, token_mask=mask, input_ids=ids)
    with pytest.raises(TypeCheckError, match="lone"):
        BlockStates(x0=x0, context=updates, lone=updates[1:], token_mask=mask, input_ids=ids)


def test_arguments_of_checked_modules_are_checked():
    refiner = TokenRefiner(8, layers=1, width=8)
    with pytest.raises(TypeCheckError, match="token_mask"):
        refiner(torch.zeros(1, 3, 8), torch.ones(1, 2, dtype=torch.bool))
