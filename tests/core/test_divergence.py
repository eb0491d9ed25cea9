"""Claims about the divergences between two laws: scipy's values, bounds, symmetries, and no NaN for impossible tokens."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.special import rel_entr
from scipy.stats import entropy, rankdata

from shiftscope.core import divergence

ALL = (
    divergence.kl_nats,
    divergence.js_nats,
    divergence.tv,
    divergence.bhattacharyya,
    divergence.fisher_rao,
)


def laws(seed: int, rows: int = 6, vocabulary: int = 50, spread: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Two random float64 log-laws [rows, vocabulary]."""
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(2, rows, vocabulary, generator=generator, dtype=torch.float64)
    return logits[0].log_softmax(-1), logits[1].log_softmax(-1)


def with_holes(seed: int, vocabulary: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Two laws with impossible tokens: shared ones, one-sided ones, and always at least one possible token each."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, 40, vocabulary, generator=generator, dtype=torch.float64)
    holes = torch.rand(2, 40, vocabulary, generator=generator) < 0.5
    holes[..., 0] = holes[..., 0] & False
    holes[1, :20] |= holes[0, :20] & (torch.arange(vocabulary) > 0)
    logits = logits.masked_fill(holes, -math.inf)
    return logits[0].log_softmax(-1), logits[1].log_softmax(-1)


@pytest.mark.parametrize("spread", [0.1, 3.0, 30.0])
def test_every_divergence_equals_scipys_in_double_precision(spread):
    logp, logq = laws(0, spread=spread)
    p, q = logp.exp().numpy(), logq.exp().numpy()
    assert np.allclose(divergence.js_nats(logp, logq), jensenshannon(p, q, axis=-1) ** 2, rtol=1e-12, atol=1e-12)
    assert np.allclose(divergence.kl_nats(logp, logq), entropy(p, q, axis=-1), rtol=1e-12, atol=1e-12)
    assert np.allclose(divergence.entropy_nats(logp), entropy(p, axis=-1), rtol=1e-12, atol=1e-12)
    assert np.allclose(divergence.tv(logp, logq), 0.5 * np.abs(p - q).sum(-1), rtol=1e-12, atol=1e-12)
    coefficient = np.sqrt(p * q).sum(-1)
    assert np.allclose(divergence.bhattacharyya(logp, logq), coefficient, rtol=1e-12, atol=1e-12)
    # arccos loses half the digits near 1, so the reference itself is good to sqrt(eps) only
    assert np.allclose(divergence.fisher_rao(logp, logq), 2 * np.arccos(np.minimum(coefficient, 1)), atol=3e-8)


def test_fisher_rao_sees_a_distance_that_arccos_rounds_to_zero():
    logp = torch.full((1, 2), 0.5).log()
    logq = torch.tensor([[0.5 + 1e-4, 0.5 - 1e-4]]).log()
    angle = 2 * (math.asin(math.sqrt(0.5 + 1e-4)) - math.asin(math.sqrt(0.5)))
    assert float(divergence.fisher_rao(logp, logq)) == pytest.approx(angle, rel=1e-2)


def test_the_square_root_of_a_near_zero_js_keeps_its_relative_precision():
    logp, logq = laws(1, vocabulary=4000)
    near = torch.log_softmax(logp + 1e-3 * logq / logq.std(), -1)
    p, q = logp.exp().numpy(), near.exp().numpy()
    m = 0.5 * (p + q)
    exact = 0.5 * (rel_entr(p, m) + rel_entr(q, m)).sum(-1)
    found = divergence.js_nats(logp.float(), near.float())
    assert np.all(exact < 2e-6)
    assert np.allclose(found, exact, rtol=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_identical_laws_are_at_distance_exactly_zero(dtype):
    for logp, _ in (laws(2), with_holes(2)):
        logp = logp.to(dtype)
        for function in (divergence.kl_nats, divergence.js_nats, divergence.tv, divergence.fisher_rao):
            assert (function(logp, logp) == 0).all(), function.__name__
        assert (divergence.bhattacharyya(logp, logp) == 1).all()


def test_disjoint_laws_reach_every_upper_bound():
    logp, logq = torch.tensor([0.0, -math.inf]), torch.tensor([-math.inf, 0.0])
    assert float(divergence.js_nats(logp, logq)) == pytest.approx(math.log(2))
    assert float(divergence.tv(logp, logq)) == 1
    assert float(divergence.bhattacharyya(logp, logq)) == 0
    assert float(divergence.fisher_rao(logp, logq)) == pytest.approx(math.pi)
    assert float(divergence.kl_nats(logp, logq)) == math.inf


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_impossible_tokens_give_no_nan_and_kl_is_infinite_exactly_where_mass_is_excluded(seed):
    logp, logq = with_holes(seed)
    for function in ALL:
        assert not function(logp, logq).isnan().any(), function.__name__
    excluded = ((logp > -math.inf) & (logq == -math.inf)).any(-1)
    assert (divergence.kl_nats(logp, logq).isinf() == excluded).all()
    for function in ALL[1:]:
        assert function(logp, logq).isfinite().all(), function.__name__
    p, q = logp.exp().numpy(), logq.exp().numpy()
    assert np.allclose(divergence.js_nats(logp, logq), jensenshannon(p, q, axis=-1) ** 2, atol=1e-12)
    assert np.allclose(divergence.kl_nats(logp, logq), entropy(p, q, axis=-1), atol=1e-12)
    assert np.allclose(divergence.entropy_nats(logp), entropy(p, axis=-1), atol=1e-12)


@given(st.integers(0, 10_000), st.floats(0.01, 40))
@settings(max_examples=40, deadline=None)
def test_bounds_symmetry_and_indifference_to_the_order_of_the_vocabulary(seed, spread):
    logp, logq = laws(seed, spread=spread)
    js, tv, affinity = (f(logp, logq) for f in (divergence.js_nats, divergence.tv, divergence.bhattacharyya))
    assert ((js >= 0) & (js <= divergence.LN2)).all()
    assert ((tv >= 0) & (tv <= 1)).all()
    assert (divergence.kl_nats(logp, logq) >= 0).all()
    assert ((divergence.entropy_nats(logp) >= 0) & (divergence.entropy_nats(logp) <= math.log(50) + 1e-12)).all()
    assert (js <= tv * divergence.LN2 + 1e-12).all()  # Lin 1991
    assert (tv**2 / 2 <= js + 1e-12).all()  # Pinsker, applied to both halves
    assert (1 - affinity <= tv + 1e-12).all()
    order = torch.randperm(50, generator=torch.Generator().manual_seed(seed))
    for function in ALL:
        assert torch.allclose(function(logp, logq), function(logp[:, order], logq[:, order]), rtol=1e-12, atol=1e-12)
    for function in ALL[1:]:
        assert torch.allclose(function(logp, logq), function(logq, logp), rtol=1e-12, atol=1e-12)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=30))
def test_rank_counts_better_tokens_and_gives_ties_the_best_rank(values):
    logits = torch.tensor(values, dtype=torch.float32)
    expected = rankdata([-value for value in values], method="min") - 1
    found = divergence.rank(logits.expand(len(values), -1), torch.arange(len(values)))
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("vocabulary", "k"), [(5, 5), (64, 1), (999, 10), (64_000, 100), (64_001, 100), (50_257, 10), (152_064, 100)]
)
def test_top_k_is_the_top_k_of_a_full_sort(vocabulary, k):
    values = torch.randn(3, vocabulary, generator=torch.Generator().manual_seed(vocabulary))
    values[1] = values[1].sort().values  # the best are the last: whole blocks and the tail beyond the last whole block
    values[2, ::2] = -math.inf
    best, ids = divergence.top_k(values, k)
    assert (best == values.sort(descending=True).values[:, :k]).all()
    assert (values.gather(-1, ids) == best).all()
    assert all(len(set(row)) == k for row in ids.tolist())


def test_top_k_of_a_law_with_fewer_possible_tokens_than_k_lists_distinct_ids():
    values = torch.full((1, 4096), -math.inf)
    values[0, [7, 4000]] = torch.tensor([1.0, 2.0])
    best, ids = divergence.top_k(values, 10)
    assert ids[0, :2].tolist() == [4000, 7]
    assert best[0, 2:].eq(-math.inf).all()
    assert len(set(ids[0].tolist())) == 10


@given(st.permutations(range(8)), st.permutations(range(8)))
def test_top_k_overlap_is_the_size_of_the_intersection_at_every_depth(first, second):
    found = divergence.top_k_overlap(torch.tensor(first), torch.tensor(second))
    expected = [len(set(first[:k]) & set(second[:k])) / k for k in range(1, 9)]
    assert found.tolist() == pytest.approx(expected)


@given(st.integers(0, 10_000), st.integers(1, 49))
@settings(max_examples=40, deadline=None)
def test_the_js_of_listed_tokens_and_a_tail_bucket_never_exceeds_the_whole_js(seed, k):
    logp, logq = laws(seed)
    whole = divergence.js_nats(logp, logq)
    ids = divergence.top_k(logp, k)[1]
    listed = divergence.js_lower_bound_nats(logp.gather(-1, ids), logq.gather(-1, ids))
    assert (listed <= whole + 1e-9).all()
    best_p, best_q = divergence.top_k(logp, k), divergence.top_k(logq, k)
    of_lists = divergence.js_lower_bound_of_lists_nats(best_p[1], best_p[0], best_q[1], best_q[0])
    assert (of_lists <= whole + 1e-9).all()


def test_the_lower_bound_is_tight_when_everything_is_listed():
    logp, logq = laws(3)
    assert torch.allclose(divergence.js_lower_bound_nats(logp, logq), divergence.js_nats(logp, logq), atol=1e-12)
    best_p, best_q = divergence.top_k(logp, 50), divergence.top_k(logq, 50)
    bound = divergence.js_lower_bound_of_lists_nats(best_p[1], best_p[0], best_q[1], best_q[0])
    assert torch.allclose(bound, divergence.js_nats(logp, logq), atol=1e-12)


def test_top_p_keeps_the_smallest_set_that_reaches_the_mass():
    logp = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert divergence.truncate_top_p(logp, 0.6).exp().tolist() == pytest.approx([0.625, 0.375, 0, 0])
    assert divergence.truncate_top_p(logp, 0.4).exp().tolist() == pytest.approx([1, 0, 0, 0])
    assert divergence.truncate_top_p(logp, 1.0).exp().tolist() == pytest.approx([0.5, 0.3, 0.15, 0.05])
    with pytest.raises(ValueError, match=r"top_p is 0"):
        divergence.truncate_top_p(logp, 0.0)


def test_padding_that_holds_no_mass_changes_nothing():
    logits = torch.randn(4, 20, generator=torch.Generator().manual_seed(0))
    other = logits + torch.randn(4, 20, generator=torch.Generator().manual_seed(1))
    padded = torch.cat([other, torch.full((4, 12), -40.0)], -1)
    plain, long = divergence.common_log_softmax(logits, other), divergence.common_log_softmax(logits, padded)
    assert torch.allclose(plain[0], long[0])
    assert torch.allclose(plain[1], long[1], atol=1e-6)
    assert long[1].exp().sum(-1).tolist() == pytest.approx([1] * 4)


def test_padding_that_holds_mass_is_refused_with_the_mass_found():
    logits = torch.zeros(2, 10)
    with pytest.raises(ValueError, match=r"ids from 10 on .* hold 0\.333 of its probability"):
        divergence.common_log_softmax(logits, torch.zeros(2, 15))


def test_one_position_with_mass_in_the_tail_is_enough_to_refuse():
    longer = torch.zeros(50, 15)
    longer[:, 10:] = -60.0
    longer[31, 12] = 0.0
    with pytest.raises(ValueError, match=r"hold 0\.0909"):
        divergence.common_log_softmax(torch.zeros(50, 10), longer)


def test_bf16_logits_are_normalised_in_float32():
    logits = torch.randn(3, 100, generator=torch.Generator().manual_seed(0)).bfloat16()
    logp, _ = divergence.common_log_softmax(logits, logits)
    assert logp.dtype == torch.float32
    assert logp.exp().sum(-1).tolist() == pytest.approx([1] * 3, abs=1e-6)
