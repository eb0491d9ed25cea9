"""Claims about curves over depth: means over texts, paired intervals, and exact zeros where nothing changed."""

from __future__ import annotations

import numpy as np
import pytest

from shiftscope.core.layers import curves
from shiftscope.core.layers.curves import DELTA


def drawn(texts: int = 40, layers: int = 7, spread: float = 1.0, seed: int = 0):
    generator = np.random.default_rng(seed)
    base = spread * generator.standard_normal((texts, layers, 2))
    base[:, 0, 1] = np.nan  # no transport into the embedding
    return base


def test_the_last_third_of_the_blocks_is_terminal():
    assert [curves.terminal_start(blocks) for blocks in (1, 2, 3, 6, 30, 32)] == [1, 2, 3, 5, 21, 22]


def test_identical_curves_differ_by_exactly_nothing():
    base = drawn()
    found = curves.curves(base, base.copy(), range(7), 6)
    assert not np.nan_to_num(found.mean_BLC[DELTA]).any()
    assert not np.nan_to_num(found.boot_SBLC[:, DELTA]).any()
    change = found.change(0, "slope", terminal=True)
    assert (change.value, change.low, change.high) == (0, 0, 0)


def test_a_common_spread_cancels_in_the_difference():
    """The texts vary by 1, the change by 0.01: the paired interval must know the latter only."""
    base = drawn()
    tuned = base + 0.5 + 0.01 * np.random.default_rng(1).standard_normal(base.shape)
    found = curves.curves(base, tuned, range(7), 6)
    change = found.change(0, "slope", terminal=True)
    assert change.value == pytest.approx(0.5, abs=0.005)
    assert 0 < change.high - change.low < 0.01
    columns = found.columns("alpha", 0)
    assert columns["alpha_base_high"][3].as_py() - columns["alpha_base_low"][3].as_py() > 0.3


def test_interval_of_the_mean_is_the_normal_one_for_many_texts():
    found = curves.curves(drawn(400), drawn(400, seed=1), range(7), 6)
    figure = found.of(lambda c: c[..., 0, 3, 0], "slope")
    values = found.each_TBLC[:, 0, 3, 0]
    assert (figure.high - figure.low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.1)
    assert figure.low < figure.value < figure.high


def test_texts_without_a_value_are_left_out_and_empty_curves_are_null():
    base, tuned = drawn(), drawn(seed=1)
    base[:5, 2, 0] = np.nan
    found = curves.curves(base, tuned, range(7), 6)
    assert found.mean_BLC[0, 2, 0] == pytest.approx(base[5:, 2, 0].mean())
    assert found.mean_BLC[DELTA, 2, 0] == pytest.approx((tuned - base)[5:, 2, 0].mean())
    assert found.columns("transport", 1)["transport_base"].to_pylist()[0] is None
    base[:, 5:, 0] = np.nan
    assert curves.curves(base, tuned, range(7), 6).change(0, "slope", terminal=True) is None


def test_halves_of_the_texts_are_as_far_apart_as_predicted():
    base = drawn(200)
    found = curves.curves(base, base, range(7), 6)
    terminal = base[:, 5:, 0].mean(1)
    generator = np.random.default_rng(2)
    orders = [generator.permutation(200) for _ in range(2000)]
    apart = [terminal[order[:100]].mean() - terminal[order[100:]].mean() for order in orders]
    assert found.halves_apart(0) == pytest.approx(np.std(apart), rel=0.1)


def test_one_text_has_no_interval_and_no_halves():
    found = curves.curves(drawn(1), drawn(1, seed=1), range(7), 6)
    change = found.change(0, "slope", terminal=True)
    assert change.low == change.high == change.value
    assert found.halves_apart(0) is None
