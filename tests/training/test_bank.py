"""Stored encodings come back as they went in, padded to the batch."""

import torch

from llmdiff.training.bank import BlockBank, EncodingBank
from llmdiff.types import BlockStates, TextEncoding


def _encoding(lengths, width=6, seed=0):
    mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    states = torch.randn(len(lengths), max(lengths), width, generator=torch.Generator().manual_seed(seed))
    return TextEncoding(states=states.masked_fill(~mask[..., None], 0), token_mask=mask)


def test_encodings_come_back_in_any_order():
    first, second = _encoding([3, 5]), _encoding([1, 4, 2], seed=1)
    bank = EncodingBank([first, second])
    assert len(bank) == 5
    batch = bank.batch([4, 1, 2])
    assert batch.states.shape == (3, 5, 6)
    assert batch.token_mask.sum(1).tolist() == [2, 5, 1]
    assert torch.allclose(batch.states[0, :2], second.states[2, :2], atol=2e-3)
    assert torch.allclose(batch.states[1], first.states[1], atol=2e-3)
    assert (batch.states[0, 2:] == 0).all()


def test_left_padded_encodings_are_stored_without_their_padding():
    right = _encoding([2])
    left = TextEncoding(
        states=torch.cat([torch.zeros(1, 3, 6), right.states], 1),
        token_mask=torch.cat([torch.zeros(1, 3, dtype=torch.bool), right.token_mask], 1),
    )
    assert torch.equal(EncodingBank([left]).batch([0]).states, EncodingBank([right]).batch([0]).states)


def test_block_updates_come_back_with_every_block():
    e = _encoding([2, 4])
    updates = BlockStates(
        x0=e.states,
        context=torch.stack([e.states * 2, e.states * 3]),
        lone=torch.stack([e.states * 5, e.states * 7]),
        token_mask=e.token_mask,
        input_ids=torch.zeros_like(e.token_mask, dtype=torch.long),
    )
    batch = BlockBank([updates]).batch([1, 0])
    assert batch.context.shape == (2, 2, 4, 6)
    assert torch.allclose(batch.context[1], 3 * batch.x0, atol=2e-2)
    assert torch.allclose(batch.lone[1], 7 * batch.x0, atol=5e-2)
    assert (batch.lone[:, 1, 2:] == 0).all()
