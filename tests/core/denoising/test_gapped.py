"""Texts with gaps: the order is walked once, and a masked model is judged by copies that hold the drafts before each place."""

import torch

from shiftscope.core.denoising.gapped import Gapped, MaskedNetwork

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
