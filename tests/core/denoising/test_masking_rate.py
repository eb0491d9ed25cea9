"""The share of each training text that is hidden: within its range, spread evenly, warmed up."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shiftscope.core.denoising.masking_rate import MaskingRate, hide


def test_both_ends_of_the_range_warm_up_linearly():
    rate = MaskingRate(start=0.15, low=0.85, high=0.99, warm_up=100)
    assert rate.bounds(0) == (0.15, 0.15)
    assert rate.bounds(50) == pytest.approx((0.5, 0.57))
    assert rate.bounds(100) == rate.bounds(10_000) == pytest.approx((0.85, 0.99))
    assert MaskingRate(warm_up=0).bounds(0) == (0.85, 0.99)


@given(texts=st.integers(1, 40), step=st.integers(0, 200))
@settings(deadline=None)
def test_every_part_of_the_range_has_one_text(texts, step):
    rate = MaskingRate(0.15, 0.1, 0.97, 100)
    low, high = rate.bounds(step)
    share_B = rate.shares(step, texts, torch.Generator().manual_seed(step))
    parts = ((share_B - low) / (high - low) * texts).floor() if high > low else torch.arange(texts)
    assert sorted(parts.long().tolist()) == list(range(texts))


def test_stratified_shares_vary_less_from_batch_to_batch_than_independent_ones():
    generator = torch.Generator().manual_seed(0)
    rate = MaskingRate(0.15, 0.1, 0.97, 0)
    means = torch.stack([rate.shares(0, 16, generator).mean() for _ in range(200)])
    alone = torch.stack([(0.1 + 0.87 * torch.rand(16, generator=generator)).mean() for _ in range(200)])
    assert means.std() < 0.2 * alone.std()


def test_a_share_hides_so_many_positions_and_never_all_or_none():
    hidden_BN = hide(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64), 10, torch.Generator().manual_seed(0))
    assert hidden_BN.sum(-1).tolist() == [1, 5, 9]
    many = hide(torch.full((4000,), 0.5), 4, torch.Generator().manual_seed(1)).double().mean(0)
    assert (many - 0.5).abs().max() < 0.04  # five standard errors of a share of 4 000


def test_a_range_outside_the_unit_interval_is_refused():
    with pytest.raises(ValueError, match=r"low 0\.9, high 0\.5"):
        MaskingRate(low=0.9, high=0.5)
