"""Claims about rank tests: scipy's values, and the identity that ties the published estimator to Q."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from shiftscope.core.rank_test import rank_test, rank_test_in_strata, share_interval

samples = st.lists(st.integers(0, 12), min_size=1, max_size=30)


@given(samples, samples)
def test_q_and_p_are_scipys_with_ties_too(x, y):
    found = rank_test(x, y)
    assert found.q == pytest.approx(stats.mannwhitneyu(y, x).statistic / (len(x) * len(y)), abs=1e-12)
    assert found.p_below == pytest.approx(stats.ranksums(x, y, alternative="greater").pvalue, abs=1e-12)
    assert found.p_two_sided == pytest.approx(stats.ranksums(x, y).pvalue, abs=1e-12)


def test_the_published_estimator_is_q_squeezed_towards_the_middle():
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=70), generator.normal(size=30) - 0.4
    found = rank_test(x, y)
    assert found.q_pooled == pytest.approx((70 * found.q + 29 / 2) / 100, abs=1e-12)
    apart = rank_test(np.arange(50) + 100, np.arange(50))
    assert (apart.q, round(apart.q_pooled, 2)) == (0, 0.24)


def test_the_interval_covers_q_about_as_often_as_it_says_and_is_not_empty_at_the_ends():
    generator = np.random.default_rng(1)
    truth = stats.norm.cdf(0.8 / np.sqrt(2))
    inside = 0
    for _ in range(400):
        found = rank_test(generator.normal(size=30), generator.normal(size=40) + 0.8)
        inside += found.low <= truth <= found.high
    assert 0.92 <= inside / 400 <= 0.985
    assert share_interval(0.0, 20, 20)[0] == 0 < share_interval(0.0, 20, 20)[1] < 0.2


def test_equal_lengths_undo_a_shift_that_is_all_length():
    generator = np.random.default_rng(2)
    stratum_x, stratum_y = generator.integers(0, 3, 4000), generator.integers(1, 4, 4000)
    x, y = stratum_x + generator.normal(size=4000), stratum_y + generator.normal(size=4000)
    assert rank_test(x, y).q > 0.7
    q, covered = rank_test_in_strata(x, y, stratum_x, stratum_y)
    assert q == pytest.approx(0.5, abs=0.03)
    assert covered == pytest.approx(2 / 3, abs=0.05)
    assert np.isnan(rank_test_in_strata(x, y, stratum_x * 0, stratum_y * 0 + 1)[0])


@pytest.mark.parametrize(("x", "y"), [([], [1.0]), ([1.0], []), ([np.nan], [1.0])])
def test_samples_without_numbers_are_refused(x, y):
    with pytest.raises(ValueError, match="both samples need numbers"):
        rank_test(x, y)
