"""Claims about permutation tests: scipy's p where it is exact, never zero, and labels exchanged only where allowed."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from shiftscope.core import permutation


def mean_gap(values):
    values = np.asarray(values, dtype=float)

    def statistic(second_NP):
        n = second_NP.sum(0)
        return (values @ second_NP / n - values @ (1 - second_NP) / (len(values) - n))[None]

    return statistic


@pytest.mark.parametrize("alternative", ["less", "greater", "two-sided"])
@pytest.mark.parametrize("y", [[1.0, 2, 3], [4.0, 4, 5, 9]])
def test_small_samples_give_scipys_exact_p_with_ties(alternative, y):
    x = [0.0, 1, 1, 4, 2]
    expected = stats.permutation_test(
        (y, x), lambda a, b: np.mean(a) - np.mean(b), alternative=alternative, n_resamples=np.inf
    )
    found = permutation.permute(mean_gap(x + y), np.repeat([0, 1], [len(x), len(y)]))
    assert found.exact
    assert found.p(0, alternative) == pytest.approx(expected.pvalue, abs=1e-12)


def test_random_relabellings_agree_with_scipys():
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=40), generator.normal(size=30) + 0.45
    expected = stats.permutation_test(
        (y, x), lambda a, b, axis: a.mean(axis) - b.mean(axis), vectorized=True, n_resamples=9999, rng=1
    )
    found = permutation.permute(mean_gap([*x, *y]), np.repeat([0, 1], [40, 30]), draws=9999)
    assert found.p() == pytest.approx(expected.pvalue, abs=0.012)  # 3 standard errors of the difference


def test_p_is_never_zero_and_is_repeatable():
    values = [*np.zeros(20), *np.ones(20)]
    second = np.repeat([0, 1], 20)
    first = permutation.permute(mean_gap(values), second, draws=199, seed=4)
    assert first.p(0, "greater") == 1 / 200
    assert (first.null_SP == permutation.permute(mean_gap(values), second, draws=199, seed=4).null_SP).all()


def test_labels_keep_to_their_strata():
    strata = np.repeat([0, 1, 2], 10)
    second = np.tile([0, 1], 15)
    seen = []
    permutation.permute(lambda labels: seen.append(labels) or labels[:1], second, draws=50, strata_N=strata)
    labels = np.concatenate(seen, 1)
    for stratum in range(3):
        assert (labels[strata == stratum].sum(0) == 5).all()
    assert len(np.unique(labels, axis=1).T) > 40


@pytest.mark.parametrize("second", [[0, 0], [1, 1]])
def test_a_sample_that_is_empty_is_refused(second):
    with pytest.raises(ValueError, match="needs some of each"):
        permutation.permute(mean_gap([1, 2]), second)
