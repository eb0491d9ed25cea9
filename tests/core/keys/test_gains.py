from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch

from shiftscope.core import paired
from shiftscope.core.keys import clusters, gains


@pytest.fixture(scope="module")
def rows_and_dense(docs):
    base, tuned = docs
    texts = [
        paired.PairedText(n, tuple(range(10, 14 + n)), tuple(range(10, 14 + n)), tuple(range(50 + n, 70 + 2 * n)))
        for n in range(5)
    ]
    scorer = paired.Scorer(base, tuned)
    rows = {size: paired.run(scorer, texts, {"g": gains.measure()}, batch_size=size)["g"] for size in (2, 5)}
    dense = torch.zeros(2, base.vocabulary_size, dtype=torch.float64)
    for text in texts:
        for side, model in enumerate((base.model, tuned.model)):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([[*text.base_context, *text.answer]])).logits[0]
            start = len(text.base_context) - 1
            dense[side] += logits[start : start + len(text.answer)].double().softmax(-1).sum(0)
    emitted = np.bincount([t for text in texts for t in text.answer], minlength=base.vocabulary_size)
    return rows, dense.numpy(), emitted


def test_summed_gains_are_those_of_the_dense_laws(rows_and_dense):
    rows, dense, emitted = rows_and_dense
    found = gains.gathered(rows[2], dense.shape[1])
    n = emitted.sum()
    assert found.positions == n
    assert (found.emitted_V == emitted).all()
    np.testing.assert_allclose(found.gain_V, (dense[1] - dense[0]) / n, atol=1e-7)
    np.testing.assert_allclose(found.base_V, dense[0] / n, atol=1e-7)


def test_gains_do_not_depend_on_batches_or_the_order_of_rows(rows_and_dense):
    rows, dense, _ = rows_and_dense
    whole = gains.gathered(rows[5], dense.shape[1])
    shuffled = rows[2].take(np.random.default_rng(0).permutation(len(rows[2])))
    np.testing.assert_allclose(gains.gathered(shuffled, dense.shape[1]).gain_V, whole.gain_V, atol=2e-8)


def test_the_gains_of_a_batch_sum_to_zero_and_its_probabilities_to_the_positions(rows_and_dense):
    rows, _, emitted = rows_and_dense
    table = rows[5].to_pandas()
    assert abs(table["gain_sum"].sum()) < 1e-4
    assert table["base_sum"].sum() == pytest.approx(emitted.sum(), rel=1e-5)


def planted(spill: float, seed: int = 0, families: int = 12, size: int = 25):
    """Gains over families of look-alikes: one member of each of the first four is raised, and its mates by `spill`."""
    generator = np.random.default_rng(seed)
    label = np.repeat(np.arange(families), size)
    base = generator.dirichlet(np.ones(families * size))
    gain = 1e-4 * generator.standard_normal(families * size)
    for k in range(4):
        gain[label == k] += spill
        gain[k * size] = 0.05
    zeros = np.zeros(families * size, np.float32)
    fitted = clusters.Clusters(label, zeros, families, "euclidean", 1.0, 0.1, 1.0, 0, 0)
    return gains.Gains(gain, base, np.zeros(len(gain), np.int64), 100), fitted


def measured(found, fitted):
    leads = gains.most_raised(found, fitted, 4)
    pool = np.ones(len(found.gain_V), bool)
    pool[leads] = False
    mates = gains.mates_within(leads, fitted, pool)
    return leads, mates, gains.spill_figures("s", mates, found, pool, fitted, permutations=200, seed=0)


def test_planted_spill_over_is_found_with_its_size():
    leads, mates, figures = measured(*planted(spill=1e-3))
    assert sorted(leads) == [0, 25, 50, 75]
    assert all(len(those) == 24 for those in mates.values())
    assert figures["s_gain"].value == pytest.approx(1e-3, abs=1e-4)
    assert figures["s_random_p_value"].value < 0.01
    assert figures["s_matched_p_value"].value < 0.01
    assert figures["s_excess_gain"].low > 0


def test_without_spill_over_the_p_values_are_spread_out():
    p_values = [measured(*planted(spill=0.0, seed=seed))[2]["s_random_p_value"].value for seed in range(12)]
    assert 0.2 < np.mean(p_values) < 0.8
    assert sum(p < 0.05 for p in p_values) <= 3  # binomial(12, 0.05): more than 3 has probability 0.002


def test_former_answers_that_lose_mass_hide_spill_over_from_the_random_null_but_not_from_the_matched_one():
    found, fitted = planted(spill=1e-3)
    gain = found.gain_V - 3e-3 * (found.base_V > np.quantile(found.base_V, 0.5)) * (fitted.label_V < 4)
    gain[[0, 25, 50, 75]] = 0.05
    gain -= 3e-3 * (found.base_V > np.quantile(found.base_V, 0.5)) * (fitted.label_V >= 4)
    figures = measured(gains.Gains(gain, found.base_V, found.emitted_V, 100), fitted)[2]
    assert figures["s_matched_p_value"].value < 0.01
    width = [figures[f"s_{kind}_gain"].high - figures[f"s_{kind}_gain"].low for kind in ("random", "matched")]
    assert width[1] < width[0] / 2


def test_permuted_sums_keep_the_mean_of_their_strata():
    generator = np.random.default_rng(0)
    weights, values = np.zeros(400), np.concatenate([generator.normal(0, 1, 200), generator.normal(5, 1, 200)])
    weights[[3, 17, 250]] = 0.25, 0.25, 0.5
    null = gains.permuted(weights, values, 2, 4000, seed=1)
    assert null.mean() == pytest.approx(0.5 * values[:200].mean() + 0.5 * values[200:].mean(), abs=0.05)


def test_only_raised_tokens_lead():
    found, fitted = planted(spill=0.0)
    falling = gains.Gains(-np.abs(found.gain_V), found.base_V, found.emitted_V, 100)
    assert gains.most_raised(falling, fitted, 10) == []
    empty = pa.table({"token_id": [-1], "gain_sum": [0.0], "base_sum": [1.0], "emitted": [0], "n": [1]})
    assert gains.gathered(empty, 5).gain_V.tolist() == [0.0] * 5
