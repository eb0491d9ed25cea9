"""The n-gram draft: what is known of a text, counted."""

import pytest

from shiftscope.core.denoising.gapped import Gapped
from shiftscope.core.denoising.ngram_draft import NGrams

WORDS, MASK = 5, 5


def test_the_ngram_draft_counts_neighbours_that_are_known_and_falls_back_to_single_tokens():
    ids = [1, 2, 1, 2, 1, 3, MASK, 1, MASK, MASK]
    store = NGrams(Gapped(0, ids, (6, 8, 9)))
    p_V = store.law(0, WORDS).exp()  # after a 3, whose successor is hidden: all known tokens
    assert p_V.tolist() == pytest.approx([0, 4 / 7, 2 / 7, 1 / 7, 0])
    store.drafted += [4, 2]
    assert store.law(1, WORDS).exp().tolist() == pytest.approx([0, 0, 2 / 3, 1 / 3, 0])  # after the known 1
    assert store.law(2, WORDS).exp().tolist() == pytest.approx([0, 1, 0, 0, 0])  # after the drafted 2


def test_a_first_position_without_a_left_neighbour_is_drafted_by_single_tokens():
    assert NGrams(Gapped(0, [MASK, 2, MASK, MASK, 0, MASK], (0, 2, 3, 5))).law(
        0, WORDS
    ).exp().tolist() == pytest.approx([0.5, 0, 0.5, 0, 0])
