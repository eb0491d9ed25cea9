"""Claims about intervals: scipy's values, nominal coverage, and honesty where there is nothing to resample."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from shiftscope.core import statistics


@given(st.integers(1, 500), st.data())
def test_wilson_is_scipys(n, data):
    k = data.draw(st.integers(0, n))
    level = data.draw(st.sampled_from([0.8, 0.95, 0.99]))
    expected = stats.binomtest(k, n).proportion_ci(confidence_level=level, method="wilson")
    assert statistics.wilson(k, n, level) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(("k", "n"), [(0, 0), (3, 2), (-1, 5)])
def test_an_impossible_share_is_refused(k, n):
    with pytest.raises(ValueError, match=f"{k} successes of {n}"):
        statistics.wilson(k, n)


def test_a_share_carries_its_count_and_interval():
    figure = statistics.share_figure(30, 40)
    assert (figure.value, figure.n) == (0.75, 40)
    assert figure.low < 0.75 < figure.high


def test_the_bootstrap_of_independent_values_is_scipys_percentile_bootstrap():
    values = np.random.default_rng(0).exponential(size=200)
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    low, high = statistics.bootstrap_mean(values, samples=20_000)
    width = expected.high - expected.low
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.03 * width)


def test_the_bootstrap_over_groups_of_equal_size_is_the_bootstrap_of_their_means():
    generator = np.random.default_rng(2)
    means = generator.normal(size=60)
    values = (means[:, None] + np.array([-1.0, 0.0, 1.0])).ravel()
    groups = np.repeat(np.arange(60), 3)
    assert statistics.bootstrap_mean(values, groups) == pytest.approx(statistics.bootstrap_mean(means), abs=1e-12)


def test_positions_of_one_text_are_not_counted_as_independent():
    generator = np.random.default_rng(3)
    values = np.repeat(generator.normal(size=30), 50)
    wide = statistics.bootstrap_mean(values, np.repeat(np.arange(30), 50))
    narrow = statistics.bootstrap_mean(values)
    assert wide[1] - wide[0] > 5 * (narrow[1] - narrow[0])


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says():
    generator = np.random.default_rng(4)
    trials, hits = 300, 0
    for trial in range(trials):
        groups = np.repeat(np.arange(40), 5)
        values = np.repeat(generator.normal(size=40), 5) + generator.normal(size=200)
        low, high = statistics.bootstrap_mean(values, groups, samples=300, seed=trial)
        hits += low <= 0 <= high
    assert stats.binomtest(hits, trials, 0.93).pvalue > 1e-3  # a percentile interval of 40 groups covers a little less


def test_groups_may_have_any_label_and_any_order():
    values = [1.0, 2.0, 3.0, 4.0]
    sums, counts = statistics.group_sums(values, ["b", "a", "b", "a"])
    assert (sums.tolist(), counts.tolist()) == ([6.0, 4.0], [2, 2])
    first = statistics.bootstrap_mean(values, [9, 9, 2, 2])
    assert first == statistics.bootstrap_mean(values[::-1], [2, 2, 9, 9])


def test_one_group_gives_its_own_mean_as_the_interval():
    assert statistics.bootstrap_mean([1.0, 2.0, 6.0], [0, 0, 0]) == (3.0, 3.0)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    values = np.random.default_rng(5).normal(size=50)
    assert statistics.bootstrap_mean(values, seed=1) == statistics.bootstrap_mean(values, seed=1)
    assert statistics.bootstrap_mean(values, seed=1) != statistics.bootstrap_mean(values, seed=2)


def test_resampling_in_blocks_keeps_the_number_of_samples():
    assert len(statistics.resampled_ratios(np.ones(3000), np.ones(3000), samples=1500)) == 1500


def test_a_mean_figure_encloses_its_value_and_needs_values():
    figure = statistics.mean_figure([1.0, 2.0, 4.0], [0, 1, 2], unit="nats")
    assert figure.low <= figure.value <= figure.high
    assert figure.n == 3
    with pytest.raises(ValueError, match="nothing was measured"):
        statistics.mean_figure([], unit="nats")


def test_quantiles_are_numpys_and_their_intervals_come_from_order_statistics():
    values = np.random.default_rng(6).normal(size=999)
    figures = statistics.quantile_figures("js_nats", values, unit="nats")
    assert set(figures) == {"js_nats_p50", "js_nats_p90", "js_nats_p95", "js_nats_p99", "js_nats_p99_9", "js_nats_max"}
    median = figures["js_nats_p50"]
    assert median.value == np.median(values)
    expected = stats.quantile_test(values, p=0.5).confidence_interval(confidence_level=0.95)
    ordered = np.sort(values)
    for found, reference in zip((median.low, median.high), expected, strict=True):
        assert abs(int(np.searchsorted(ordered, found)) - int(np.searchsorted(ordered, reference))) <= 1
    assert figures["js_nats_max"].value == values.max()


@pytest.mark.parametrize(("n", "q"), [(101, 0.5), (1000, 0.5), (1000, 0.9), (5000, 0.99)])
def test_a_quantile_interval_covers_the_true_quantile_with_at_least_the_probability_it_names(n, q):
    name = f"x_p{100 * q:g}"
    figure = statistics.quantile_figures("x", np.arange(1, n + 1), unit="nats", quantiles=[q])[name]
    # the values are their own ranks, so the interval covers where the number of values below the quantile lies in [low, high)
    covered = stats.binom.cdf(figure.high - 1, n, q) - stats.binom.cdf(figure.low - 1, n, q)
    assert 0.95 <= covered < 0.99
