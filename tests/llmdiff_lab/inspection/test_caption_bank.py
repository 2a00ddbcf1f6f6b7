"""Stored encodings come back as they went in, padded to the batch."""

import torch

from llmdiff.language.score_groups import GroupedScores
from llmdiff.types import TextEncoding
from llmdiff_lab.inspection.caption_bank import EncodingBank, GroupBank, by_length


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


def test_grouped_scores_come_back_in_any_order():
    mask = torch.tensor([[True, True, False], [True, True, True]])
    parts = torch.randn(5, 4, 6)
    bank = GroupBank([GroupedScores(parts=parts, token_mask=mask)])
    assert len(bank) == 2
    batch = bank.batch([1, 0, 1])
    assert batch.token_mask.sum(1).tolist() == [3, 2, 3]
    expected = torch.cat([parts[2:], parts[:2], parts[2:]])
    assert torch.allclose(batch.parts.float(), expected, atol=2e-3)


def test_captions_read_in_another_order_are_handed_out_under_their_own_index():
    generator = torch.Generator().manual_seed(0)
    captions = ["a long caption of a house", "a", "middle one", "bb"]
    order = by_length(captions)
    assert order == [1, 3, 2, 0]

    def encoding(index):
        length = len(captions[index])
        states = torch.randn(1, length, 4, generator=generator)
        return TextEncoding(states=states, token_mask=torch.ones(1, length, dtype=torch.bool))

    encodings = {index: encoding(index) for index in range(4)}
    bank = EncodingBank([encodings[index] for index in order], order)
    for index in range(4):
        torch.testing.assert_close(bank.batch([index]).states, encodings[index].states, rtol=1e-3, atol=1e-3)
