"""Claims about MMD: the textbook double sum for every labelling, level under the null, and power where depth has none."""

from __future__ import annotations

import numpy as np
import pytest

from shiftscope.core import permutation
from shiftscope.core.corpora import mmd, text_depth


def brute(x, y, bandwidth):
    def kernel(a, b):
        return np.exp(-((a - b) ** 2).sum() / (2 * bandwidth**2))

    m, n = len(x), len(y)
    first = sum(kernel(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j) / (m * (m - 1))
    second = sum(kernel(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j) / (n * (n - 1))
    return first + second - 2 * sum(kernel(a, b) for a in x for b in y) / (m * n)


def test_the_statistic_is_the_double_sum_for_every_labelling():
    rows = np.random.default_rng(0).normal(size=(14, 3))
    labels = np.stack([np.random.default_rng(seed).permutation(np.repeat([0.0, 1.0], [9, 5])) for seed in range(3)], 1)
    found = mmd.mmd2_of_labels(rows, 1.3)(labels)[0]
    expected = [brute(rows[column == 0], rows[column == 1], 1.3) for column in labels.T]
    assert found == pytest.approx(expected, abs=1e-12)


def test_p_is_uniform_under_the_null():
    generator, second = np.random.default_rng(1), np.repeat([0.0, 1.0], 15)
    p = [
        permutation.permute(mmd.mmd2_of_labels(generator.normal(size=(30, 5))), second, draws=99, seed=k).p(
            0, "greater"
        )
        for k in range(200)
    ]
    assert 0.01 <= np.mean(np.array(p) <= 0.05) <= 0.10
    assert np.mean(p) == pytest.approx(0.5, abs=0.07)


def test_a_split_that_keeps_the_mean_is_seen_by_mmd_and_not_by_depth():
    generator = np.random.default_rng(2)
    rows = 0.3 * generator.normal(size=(200, 6))
    rows[:, 0] += 2
    rows[100:, 1] += np.repeat([1.0, -1.0], 50)
    rows[:100, 2] += np.repeat([1.0, -1.0], 50)
    unit, second = text_depth.directions(rows), np.repeat([0.0, 1.0], 100)
    assert permutation.permute(mmd.mmd2_of_labels(unit), second).p(0, "greater") == 0.001
    depth = permutation.permute(text_depth.q_of_labels(unit), second)
    assert min(depth.p(0), depth.p(1)) > 0.05


def test_rows_that_are_mostly_equal_have_no_median_bandwidth():
    with pytest.raises(ValueError, match="no median bandwidth"):
        mmd.mmd2_of_labels(np.ones((6, 2)))
