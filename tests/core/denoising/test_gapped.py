"""Texts with gaps: the order is walked once, and a masked model is judged by copies that hold the drafts before each place."""

import itertools
import math

import pytest
import torch

from shiftscope.core.denoising.gapped import Gapped, MaskedNetwork, spread_order
from shiftscope.core.denoising.oracle import random_chain

MASK = 9


def test_positions_are_written_in_their_order_and_the_record_says_so():
    text = Gapped(0, [1, MASK, 2, MASK, MASK], (4, 1, 3))
    assert (text.left, text.ahead(2), text.ahead(9)) == (3, (4, 1), (4, 1, 3))
    text.record.spend(5, 25)
    text.write(7, -0.5)
    assert (text.ids, text.left, text.ahead(1)) == ([1, MASK, 2, MASK, 7], 2, (1,))
    assert (text.record.position, text.record.token, text.record.call) == ([4], [7], [1])


def test_copies_of_a_masked_text_hold_the_drafts_before_the_place_that_is_asked_for():
    seen = []

    def logits(ids, wanted):
        seen.append((ids, wanted))
        return [torch.zeros(len(places), 3) for places in wanted]

    network = MaskedNetwork(logits, MASK, 3)
    first, second = Gapped(0, [1, 5, 5, 2], (2, 1)), Gapped(1, [5, 5, 1], (0, 1))
    assert network.draft([first, second], [2, 1]).shape == (2, 2, 3)
    assert seen.pop() == ([[1, MASK, MASK, 2], [MASK, MASK, 1]], [(2, 1), (0,)])
    assert network.judge([first, second], [[7, 8], [6, 6]], [2, 2], [1, 0]).shape == (2, 2, 3)
    assert seen.pop() == ([[1, MASK, 7, 2], [MASK, MASK, 1], [6, MASK, 1]], [[1], [0], [1]])
    assert [text.record.rows for text in (first, second)] == [4 + 4, 3 + 2 * 3]
    assert [text.record.pairs for text in (first, second)] == [16 + 16, 9 + 2 * 9]
    assert [text.ids for text in (first, second)] == [[1, 5, 5, 2], [5, 5, 1]]


@pytest.mark.parametrize("length", [3, 70])  # 70 copies are more than a call takes
def test_the_density_of_a_text_is_that_of_its_chain_in_any_order(length):
    oracle = random_chain(4, concentration=1.0, seed=1)
    ids = [n * n % 4 for n in range(length)]
    p = [oracle.first_S[ids[0]], *(oracle.step_SS[a, b] for a, b in itertools.pairwise(ids))]
    network = MaskedNetwork(oracle.logits, oracle.mask_id, oracle.vocabulary_size)
    for order in (tuple(range(length)), spread_order(0, range(length), 0)):
        text = Gapped(0, list(ids), order)
        logp_K = network.joint_logp([text])[0]
        assert float(logp_K.sum()) == pytest.approx(sum(map(math.log, p)), abs=1e-9)
        assert (text.ids, text.left) == (ids, length)
        assert (text.record.calls, text.record.rows) == (math.ceil(length / 64), length * length)


def test_a_spread_order_is_fixed_by_document_and_seed_and_holds_every_position():
    hidden = list(range(3, 60, 2))
    orders = {spread_order(document, hidden, seed) for document in range(3) for seed in range(3)}
    assert all(sorted(order) == hidden for order in orders)
    assert len(orders) == 9
    assert spread_order(1, hidden, 2) == spread_order(1, hidden, 2)
