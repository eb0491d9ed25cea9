"""core/scoring: oracles of ratios and bounds by brute force, and batch layouts that agree."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shiftscope.core import divergence, paired
from shiftscope.core.paired import PairedText
from shiftscope.core.scorers import scoring


def laws(seed, rows, V, sharpness):
    generator = torch.Generator().manual_seed(seed)
    p, noise = (sharpness * torch.randn(rows, V, generator=generator, dtype=torch.float64) for _ in range(2))
    return p.log_softmax(-1), (p + 0.7 * noise).log_softmax(-1)


def listed(logq_RV, k):
    values, ids = logq_RV.topk(k, dim=-1)
    return ids, values, values[:, -1]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 12), sharpness=st.sampled_from([0.3, 1.0, 4.0]))
def test_the_bounds_bracket_the_divergence_of_random_laws(seed, k, sharpness):
    logp, logq = laws(seed, 16, 24, sharpness)
    found = scoring.divergence_bounds(logp, *listed(logq, k))
    for name, true in (("js", divergence.js_nats(logp, logq)), ("tv", divergence.tv(logp, logq))):
        unit = "_nats" if name == "js" else ""
        assert (found[f"{name}_low{unit}"] <= true + 1e-9).all()
        assert (found[f"{name}_high{unit}"] >= true - 1e-9).all()
    assert (found["kl_model_against_low_nats"] <= divergence.kl_nats(logp, logq) + 1e-9).all()
    assert (found["kl_against_model_low_nats"] <= divergence.kl_nats(logq, logp) + 1e-9).all()
    assert (found["kl_against_model_high_nats"] >= divergence.kl_nats(logq, logp) - 1e-9).all()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), sharpness=st.sampled_from([0.5, 2.0]))
def test_the_upper_bounds_are_reached_by_a_law_within_list_and_cap(seed, sharpness):
    """Brute force: a convex function is largest at a corner, where every unlisted token but one holds nothing or the cap."""
    logp, logq = laws(seed, 1, 7, sharpness)
    ids, values, cap = listed(logq, 2)
    found = scoring.divergence_bounds(logp, ids, values, cap)
    unlisted = [token for token in range(7) if token not in ids[0].tolist()]
    tail, most = float(1 - values.exp().sum()), float(cap.exp())
    whole = int(tail / most)
    best = dict.fromkeys(("js_high_nats", "tv_high", "kl_against_model_high_nats"), 0.0)
    for order in itertools.permutations(unlisted, min(whole + 1, len(unlisted))):
        q = torch.zeros(1, 7, dtype=torch.float64).scatter(-1, ids, values.exp())
        for place, token in enumerate(order):
            q[0, token] = most if place < whole else tail - whole * most
        corner = q.log()
        for name, value in (
            ("js_high_nats", divergence.js_nats(logp, corner)),
            ("tv_high", divergence.tv(logp, corner)),
            ("kl_against_model_high_nats", divergence.kl_nats(corner, logp)),
        ):
            best[name] = max(best[name], float(value))
    for name, value in best.items():
        assert float(found[name]) == pytest.approx(value, abs=1e-4)  # the tail is widened by 1e-6 for rounding


def test_the_whole_vocabulary_listed_leaves_no_room_between_the_bounds():
    logp, logq = laws(3, 8, 24, 1.0)
    found = scoring.divergence_bounds(logp, *listed(logq, 24))
    torch.testing.assert_close(found["js_low_nats"], divergence.js_nats(logp, logq), atol=1e-6, rtol=0)
    torch.testing.assert_close(found["js_high_nats"], divergence.js_nats(logp, logq), atol=1e-6, rtol=0)
    torch.testing.assert_close(found["kl_model_against_low_nats"], divergence.kl_nats(logp, logq), atol=1e-6, rtol=0)


def test_a_law_against_its_own_list_has_a_lower_bound_of_zero_and_unfilled_rows_change_nothing():
    logp, _ = laws(4, 8, 24, 2.0)
    ids, values, cap = listed(logp, 5)
    found = scoring.divergence_bounds(logp, ids, values, cap)
    assert max(float(value.max()) for name, value in found.items() if "_low" in name) < 1e-12
    padded = [
        torch.cat([part, torch.full((8, 3), fill, dtype=part.dtype)], -1)
        for part, fill in ((ids, -1), (values, -math.inf))
    ]
    again = scoring.divergence_bounds(logp, *padded, cap)
    for name, value in found.items():
        torch.testing.assert_close(again[name], value, atol=1e-12, rtol=0)


def test_effective_samples_by_definition():
    logs = np.random.default_rng(0).normal(0, 1.3, 200)
    weights = np.exp(logs)
    assert scoring.effective_share(logs) == pytest.approx(weights.sum() ** 2 / (weights**2).sum() / 200, rel=1e-12)
    assert scoring.effective_share(np.full(7, 900.0)) == 1  # equal weights, too large for exp
    assert scoring.effective_share([0.0, -1e4, -1e4, -1e4]) == 0.25
    low, high = scoring.effective_share_interval(logs, np.arange(200) // 4)
    assert low < scoring.effective_share(logs) < high
    with pytest.raises(ValueError, match="no weights"):
        scoring.effective_share([])


def test_k1_and_k3_are_the_divergence_on_average_and_k3_is_never_negative():
    """The exact expectation over all tokens of q, not a sample."""
    logp, logq = laws(5, 1, 50, 1.0)
    found = scoring.kl_estimates((logp - logq)[0].numpy())
    q, true = logq[0].exp().numpy(), float(divergence.kl_nats(logq, logp))
    assert float(q @ found["k1"]) == pytest.approx(true, abs=1e-12)
    assert float(q @ found["k3"]) == pytest.approx(true, abs=1e-12)
    assert found["k3"].min() >= 0
    assert found["k2"].min() >= 0
    np.testing.assert_allclose(scoring.kl_estimates([1e-9])["k3"], [5e-19], rtol=1e-6)  # no cancellation near 1


def items_of(checkpoint, count):
    ids = checkpoint.tokenizer("Return a new string with every character of the list in order.")["input_ids"]
    return [PairedText(row, tuple(ids[:2]), tuple(ids[: 2 + row]), tuple(ids[2 + row :])) for row in range(count)]


def test_one_forward_or_many_give_the_same_rows(docs):
    items = items_of(docs[0], 5)
    together, alone = (scoring.hidden_rows(docs[0], items, size) for size in (5, 1))
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)
    batch = scoring.TwoLayouts(docs[0], docs[0], together=2).batch(items)
    plain = paired.Scorer(docs[0], docs[0]).batch(items)
    assert torch.equal(batch.tuned.rows_ND, scoring.hidden_rows(docs[0], items, 2))
    torch.testing.assert_close(batch.base.rows_ND, plain.tuned.rows_ND, atol=1e-5, rtol=1e-5)
    assert torch.equal(batch.token_N, plain.token_N)
    assert torch.equal(batch.text_N, plain.text_N)
    assert torch.equal(batch.position_N, plain.position_N)


def test_the_laws_are_the_models_own(docs):
    items = items_of(docs[0], 3)
    rows = scoring.hidden_rows(docs[0], items, 3)
    found = torch.cat([logp for _, logp in scoring.laws(docs[0], rows)])
    with torch.no_grad():
        logits = [
            docs[0]
            .model(torch.tensor([[*item.tuned_context, *item.answer]]))
            .logits[0, len(item.tuned_context) - 1 : -1]
            for item in items
        ]
    torch.testing.assert_close(found, torch.cat(logits).log_softmax(-1), atol=1e-4, rtol=1e-4)


def test_tokens_that_do_not_survive_text_are_counted(docs):
    tokenizer = docs[0].tokenizer
    ids = tokenizer("Return the string")["input_ids"]
    assert scoring.retokenised(tokenizer, ids) == 0
    letters = [tokenizer(letter, add_special_tokens=False)["input_ids"][0] for letter in "string"]
    assert scoring.retokenised(tokenizer, [*ids, *letters]) >= 2
    assert scoring.retokenised(tokenizer, letters) == len(letters)
