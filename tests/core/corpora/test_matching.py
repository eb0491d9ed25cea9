"""Claims about Hungarian matching: the best of all namings, empty classes, rows found again, bad labels."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shiftscope.core.corpora import matching


def test_the_best_naming_is_that_of_trying_all_and_empty_classes_keep_a_place():
    generator = np.random.default_rng(0)
    found, truth = generator.integers(0, 3, 200), generator.integers(0, 4, 200)  # class 3 is never predicted
    accuracy, naming = matching.matched(found, truth, 4)
    assert accuracy == max(np.mean(np.array(p)[found] == truth) for p in permutations(range(4)))
    assert accuracy == np.mean(naming[found] == truth)
    assert sorted(naming.tolist()) == [0, 1, 2, 3]


@given(st.integers(0, 1000))
def test_rows_in_another_order_are_found_again(seed):
    generator = np.random.default_rng(seed)
    rows = generator.random((5, 7))
    order = generator.permutation(5)
    assert rows[order][matching.aligned(rows[order], rows)] == pytest.approx(rows)


@pytest.mark.parametrize(("found", "truth"), [([], []), ([0, 1], [0]), ([0, 4], [0, 1]), ([0, -1], [0, 1])])
def test_labels_that_cannot_be_matched_are_named(found, truth):
    with pytest.raises(ValueError, match="labels of 3 classes"):
        matching.matched(found, truth, 3)
