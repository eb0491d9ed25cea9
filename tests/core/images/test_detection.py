"""Claims about detection: scikit-learn's AUROC and ROC, intervals that cover, percentiles without ties to a side."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve

from shiftscope.core.images import detection

small = st.lists(st.integers(-3, 3), min_size=1, max_size=12)


@given(small, small)
def test_auroc_and_fpr95_are_those_of_scikit_learn_ties_included(inside, outside):
    found = detection.separation(inside, outside, samples=2)
    labels, values = [0] * len(inside) + [1] * len(outside), inside + outside
    assert found.auroc == pytest.approx(roc_auc_score(labels, values), abs=1e-12)
    fpr, tpr, _ = roc_curve(labels, values, drop_intermediate=False)
    assert found.fpr95 == pytest.approx(fpr[np.argmax(tpr >= 0.95)], abs=1e-12)


def test_a_score_against_itself_is_one_half_and_apart_is_one():
    values = np.arange(30.0)
    assert detection.separation(values, values).auroc == 0.5
    apart = detection.separation(values, values + 100)
    assert (apart.auroc, apart.auroc_low, apart.fpr95, apart.fpr95_high) == (1, 1, 0, 0)


def test_swapping_the_sides_mirrors_the_auroc():
    x, y = np.random.default_rng(0).normal(size=(2, 20))
    assert detection.separation(x, y).auroc == pytest.approx(1 - detection.separation(y, x).auroc, abs=1e-12)


def test_the_interval_covers_the_true_auroc_in_most_samples():
    generator = np.random.default_rng(0)
    truth = 0.7602  # P(X < Y) of normals one apart: Phi(1 / sqrt 2)
    covered = 0
    for seed in range(100):
        x, y = generator.normal(size=40), generator.normal(1, size=40)
        found = detection.separation(x, y, samples=200, seed=seed)
        covered += found.auroc_low <= truth <= found.auroc_high
    assert covered >= 88  # nominal 95; P(< 88 of 100 at 0.94) is below 2 %


def test_no_values_and_nan_are_refused():
    for pair in (([], [1.0]), ([1.0], []), ([np.nan], [1.0])):
        with pytest.raises(ValueError, match="both sides need numbers"):
            detection.separation(*pair)
    with pytest.raises(ValueError, match="no calibration values"):
        detection.percentiles([], [1.0])


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=20), st.floats(-6, 6))
def test_percentiles_rise_with_the_value_and_are_mirrored_with_it(calibration, value):
    one = detection.percentiles(calibration, [value, value + 1])
    assert 0 < one[0] <= one[1] < 100
    mirrored = detection.percentiles(-np.array(calibration), [-value])
    assert one[0] + mirrored[0] == pytest.approx(100, abs=1e-9)
    assert detection.two_sided(calibration, [value])[0] == pytest.approx(abs(one[0] - 50), abs=1e-9)


def test_percentiles_of_exchangeable_values_are_uniform():
    generator = np.random.default_rng(1)
    found = [detection.percentiles(generator.normal(size=19), generator.normal(size=1))[0] for _ in range(2000)]
    for level in (5.1, 50.1, 95.1):
        assert np.mean(np.array(found) < level) == pytest.approx(level / 100, abs=0.03)  # 2.7 standard errors at most


def test_the_permutation_statistic_is_the_auroc_of_every_score():
    generator = np.random.default_rng(2)
    scores = generator.integers(0, 5, (3, 20)).astype(float)
    labels = np.stack([generator.permutation(np.repeat([0.0, 1.0], [12, 8])) for _ in range(4)], 1)
    found = detection.aurocs_of_labels(scores)(labels)
    expected = [[roc_auc_score(column, score) for column in labels.T] for score in scores]
    assert np.allclose(found, expected, atol=1e-12)


def rows(generator, group, count, mean=0.0, spread=1.0):
    return pa.table({"group": [group] * count, "m": generator.normal(mean, spread, count)})


def test_a_shift_in_spread_alone_is_found_two_sided_and_not_one_sided():
    generator = np.random.default_rng(3)
    table = pa.concat_tables(
        [rows(generator, "calibration", 60), rows(generator, "a", 60), rows(generator, "b", 60, 0, 4)]
    )
    table = detection.with_percentiles(table, ["m"])
    groups = [table.filter(pa.array(np.asarray(table["group"]) == name)) for name in "ab"]
    found = detection.tested(*groups, ["m"], draws=999, seed=0)
    assert found.p["m_two_sided"] == 0.001
    assert found.p["m"] > 0.05
    assert found.least == 0.002
    low, high = found.interval("m_two_sided")
    assert low < 0.001 < high


def test_p_values_of_no_shift_are_spread_evenly():
    generator, p = np.random.default_rng(4), []
    for seed in range(40):
        both = [rows(generator, name, 15) for name in ("calibration", "a", "b")]
        table = detection.with_percentiles(pa.concat_tables(both), ["m"])
        groups = [table.filter(pa.array(np.asarray(table["group"]) == name)) for name in "ab"]
        p.append(detection.tested(*groups, ["m"], draws=99, seed=seed).p["m_two_sided"])
    assert 0.35 < np.mean(p) < 0.65  # the mean of 40 uniforms has a standard error of 0.046; p is coarse here
    assert np.mean(np.array(p) <= 0.05) < 0.15


def test_one_value_of_b_is_tested_exactly():
    generator = np.random.default_rng(5)
    table = pa.concat_tables(
        [rows(generator, "calibration", 30), rows(generator, "a", 19), rows(generator, "b", 1, 50)]
    )
    table = detection.with_percentiles(table, ["m"])
    groups = [table.filter(pa.array(np.asarray(table["group"]) == name)) for name in "ab"]
    found = detection.tested(*groups, ["m"], draws=999, seed=0)
    assert found.exact
    assert found.p["m"] == 0.1  # two of twenty labellings are as extreme on either side
    assert found.interval("m") == (0.1, 0.1)
