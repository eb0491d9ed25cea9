"""Claims about contraction: planted slopes come back, and the influence of a row is what counting it once more does."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shiftscope.core.layers import spectrum

WINDOWS = ((0.1, 0.9), (0.1, 0.5), (0.0, 1.0), (0.3, 0.9))


def planted(exponent: float, rows: int = 300, width: int = 64, seed: int = 0) -> torch.Tensor:
    """A centred float64 matrix whose singular values are k^−exponent."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    left, _ = torch.linalg.qr(left - left.mean(0))
    right, _ = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))
    return left * torch.arange(1, width + 1, dtype=torch.float64) ** -exponent @ right.T


def drawn(exponent: float, rows: int, width: int, seed: int = 0) -> torch.Tensor:
    """Independent rows whose population spectrum falls as k^−exponent."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.arange(1, width + 1, dtype=torch.float64) ** -exponent
    return torch.randn(rows, width, generator=generator, dtype=torch.float64) * scale


@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.7, 3.0])
def test_planted_slopes_are_recovered_in_every_window_at_any_scale(exponent):
    for scale in (1.0, 1e-6, 1e6):
        found = spectrum.contraction(scale * planted(exponent), WINDOWS)
        assert torch.allclose(found.alpha_W, torch.full((4,), exponent, dtype=torch.float64), atol=1e-6)
        assert torch.allclose(found.r2_W, torch.ones(4, dtype=torch.float64), atol=1e-9)
        assert found.rank == 64
    assert not found.too_few_rows
    assert spectrum.contraction(planted(exponent, rows=100), WINDOWS).too_few_rows


def test_more_columns_than_rows_give_the_same_slope():
    wide = planted(1.0, rows=80, width=64).T  # 64 rows, 80 columns
    found = spectrum.contraction(wide, WINDOWS, centre=False)
    assert torch.allclose(found.alpha_W, torch.ones(4, dtype=torch.float64), atol=1e-6)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_slope_ignores_rotation_order_of_rows_and_the_mean(seed):
    states = drawn(1.0, 120, 24, seed)
    generator = torch.Generator().manual_seed(seed)
    turn, _ = torch.linalg.qr(torch.randn(24, 24, generator=generator, dtype=torch.float64))
    moved = states[torch.randperm(120, generator=generator)] @ turn + 5.0
    ours, theirs = spectrum.contraction(states, WINDOWS), spectrum.contraction(moved, WINDOWS)
    assert torch.allclose(ours.alpha_W, theirs.alpha_W, atol=1e-9)


def test_without_centring_a_common_mean_is_the_first_direction():
    states = drawn(1.0, 400, 24) + 50.0
    kept = spectrum.contraction(states, ((0.0, 1.0),), centre=False).alpha_W
    assert kept > spectrum.contraction(states, ((0.0, 1.0),)).alpha_W + 0.3


def test_few_rows_bias_the_slope_upwards_as_published():
    """True 0.5 at width 128: 1.11 from as many rows as columns, 0.62 from four times, 0.51 from 32 times as many."""
    found = {
        ratio: float(spectrum.contraction(drawn(0.5, ratio * 128, 128), WINDOWS).alpha_W[0]) for ratio in (1, 4, 32)
    }
    assert found[1] == pytest.approx(1.11, abs=0.06)
    assert found[4] == pytest.approx(0.62, abs=0.03)
    assert found[32] == pytest.approx(0.51, abs=0.02)


def test_influence_is_the_derivative_of_the_slope_by_a_rows_weight():
    states = drawn(1.0, 150, 12)
    found = spectrum.contraction(states, WINDOWS)
    assert torch.allclose(found.influence_WN.sum(1), torch.zeros(4, dtype=torch.float64), atol=1e-12)
    for row in (0, 17, 149):
        slopes = []
        for step in (1e-5, -1e-5):
            weight = torch.ones(150, dtype=torch.float64)
            weight[row] += step
            centred = states - (weight[:, None] * states).sum(0) / weight.sum()
            sigma = torch.linalg.svdvals(weight.sqrt()[:, None] * centred)
            slopes.append([-(spectrum.slope_weights(12, *window) @ sigma.log()) for window in WINDOWS])
        derivative = (torch.tensor(slopes[0]) - torch.tensor(slopes[1])) / 2e-5
        assert torch.allclose(found.influence_WN[:, row], derivative.double(), rtol=1e-4, atol=1e-6)


def test_influence_gives_the_spread_that_fresh_groups_of_rows_have():
    """Groups of ten correlated rows: first-order standard error against that over 60 independent samples."""

    def sample(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        scale = torch.arange(1, 17, dtype=torch.float64) ** -1.0
        common = torch.randn(80, 1, 16, generator=generator, dtype=torch.float64)
        own = torch.randn(80, 10, 16, generator=generator, dtype=torch.float64)
        return ((common + own) * scale).flatten(0, 1)

    fits = [spectrum.contraction(sample(seed), WINDOWS[:1]) for seed in range(60)]
    spread = float(torch.stack([fit.alpha_W[0] for fit in fits]).std())
    group = torch.arange(80).repeat_interleave(10)
    predicted = [float(spectrum.by_group(fit.influence_WN, group, 80)[0].square().sum().sqrt()) for fit in fits]
    assert sum(predicted) / 60 == pytest.approx(spread, rel=0.3)  # the spread itself is known to about 9 %


def test_repeated_tokens_in_float32_have_the_rank_of_the_distinct_ones():
    """Rounding of sums of embeddings makes every direction non-zero; only real ones may enter the window."""
    generator = torch.Generator().manual_seed(0)
    words, places = torch.randn(9, 64, generator=generator), torch.randn(7, 64, generator=generator)
    states = (words[:, None] + places[None]).flatten(0, 1).repeat(8, 1)
    assert spectrum.contraction(states, WINDOWS).rank == 9 + 7 - 2  # sums of two centred families


def test_rounding_to_bfloat16_does_not_enter_the_spectrum():
    turn, _ = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    exact = (drawn(2.0, 800, 64) @ turn).float()
    rounded = spectrum.contraction(exact.bfloat16(), WINDOWS)
    assert 20 < rounded.rank < 64 == spectrum.contraction(exact, WINDOWS).rank
    assert float(rounded.alpha_W[2]) == pytest.approx(2.0, abs=0.05)  # of what is left, every value is sound


def test_a_window_of_fewer_than_five_values_has_no_slope():
    found = spectrum.contraction(drawn(1.0, 50, 5), ((0.1, 0.9), (0.0, 1.0)))
    assert math.isnan(found.alpha_W[0])
    assert math.isfinite(found.alpha_W[1])
    assert not found.influence_WN[0].any()
    constant = spectrum.contraction(torch.ones(20, 8), WINDOWS)
    assert constant.rank == 0
    assert constant.alpha_W.isnan().all()


def test_window_ends_are_not_lost_to_rounding():
    assert spectrum.window_ranks(70, 0.1, 0.9) == (7, 63)  # 0.1 · 70 is 7.000000000000001
    assert spectrum.window_ranks(10, 0.0, 1.0) == (1, 10)


@pytest.mark.parametrize("window", [(-0.1, 0.5), (0.5, 0.5), (0.9, 0.1), (0.1, 1.1)])
def test_an_impossible_window_is_refused(window):
    with pytest.raises(ValueError, match="fractions of the ranks"):
        spectrum.check_window(window)
