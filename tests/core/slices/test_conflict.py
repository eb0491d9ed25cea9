from __future__ import annotations

import numpy as np
import pytest

from shiftscope.core.slices import conflict

CONTEXTS, POOL = 4, 500
NAMES = [f"{subject}({context})" for subject in "ab" for context in range(CONTEXTS)]


def recorded(seed: int, steps: int, rate: float = 0.1, batch: int = 32):
    """Logistic SGD on 2 classes × 4 contexts; the records, and the gradients' inner products summed along the path."""
    generator, n = np.random.default_rng(seed), len(NAMES)

    def drawn(slice_number: int, count: int):
        subject, context = divmod(slice_number, CONTEXTS)
        x = 0.7 * generator.standard_normal((count, CONTEXTS + 4))
        x[:, 0] += subject - 0.5
        x[:, 1 + context] += 2
        return x, np.full(count, float(subject))

    def losses(w):
        return np.array([np.logaddexp(0, (1 - 2 * y) * (x @ w)).mean() for x, y in held_out])

    def gradient(w, x, y):
        return ((1 / (1 + np.exp(-x @ w)) - y)[:, None] * x).mean(0)

    train, held_out = ([drawn(s, count) for s in range(n)] for count in (POOL, 200))
    w, exact, records = np.zeros(CONTEXTS + 4), np.zeros((n, n)), []
    before = losses(w)
    for _ in range(steps):
        counts = generator.multinomial(batch, generator.dirichlet(np.full(n, 0.5)))
        rows = [(s, generator.integers(POOL, size=count)) for s, count in enumerate(counts)]
        sides = [np.array([gradient(w, *data) for data in side]) for side in (train, held_out)]
        exact += rate / steps * sides[0] @ sides[1].T
        w = w - rate * gradient(w, *(np.concatenate([train[s][part][picked] for s, picked in rows]) for part in (0, 1)))
        after = losses(w)
        records.append(
            {
                "composition": dict(zip(NAMES, counts.tolist(), strict=True)),
                "change": dict(zip(NAMES, (after - before).tolist(), strict=True)),
            }
        )
        before = after
    return records, exact


def correlation(first, second) -> float:
    return float(np.corrcoef(first.ravel(), second.ravel())[0, 1])


@pytest.mark.parametrize("seed", range(3))
def test_the_regression_finds_the_inner_products_of_the_gradients_and_shuffled_batches_do_not(seed):
    records, exact = recorded(seed, steps=400)
    steps = conflict.read(records)
    found = conflict.fit(steps)
    assert correlation(found.effect_SE, exact) >= 0.95  # the gate; measured 0.998

    order = np.random.default_rng(9).permutation(len(records))
    shuffled = conflict.fit(conflict.Steps(steps.train, steps.evaluated, steps.share_TS[order], steps.change_TE))
    assert abs(correlation(shuffled.effect_SE, exact)) < 0.6  # measured -0.42, -0.04, 0.22
    assert shuffled.explained_E.mean() < 0.1 < 0.7 < found.explained_E.mean()

    subject, context = np.divmod(np.arange(len(NAMES)), CONTEXTS)
    same_class, same_context = subject[:, None] == subject, context[:, None] == context
    effect = found.normalised_SE
    assert effect[same_class].mean() > 0.1
    assert effect[~same_class & same_context].mean() < -0.3
    assert abs(effect[~same_class & ~same_context].mean()) < 0.1
    assert np.abs(effect).max() == 1
    assert ((found.low_SE <= exact) & (exact <= found.high_SE)).mean() > 0.8  # intervals of 95 %, 64 dependent pairs


def test_a_quarter_of_the_steps_is_enough_here():
    records, exact = recorded(0, steps=100)
    assert correlation(conflict.fit(conflict.read(records)).effect_SE, exact) >= 0.95


def test_without_noise_the_matrix_comes_back_exactly_and_a_score_turns_the_sign():
    generator = np.random.default_rng(0)
    matrix, shares = generator.standard_normal((3, 2)), generator.dirichlet(np.ones(3), 20)
    records = [
        {"composition": dict(zip("abc", share.tolist(), strict=True)), "change": dict(zip("xy", (share @ matrix).tolist(), strict=True))}
        for share in shares
    ]  # fmt: skip
    score = conflict.fit(conflict.read(records, higher_is_better=True))
    assert np.allclose(score.effect_SE, matrix, atol=1e-12)
    assert np.allclose(score.explained_E, 1)
    assert np.allclose(conflict.fit(conflict.read(records)).effect_SE, -matrix, atol=1e-12)


def test_counts_and_shares_are_the_same_composition():
    one = conflict.read([{"composition": {"a": 3, "b": 1}, "change": {"x": 0.5}}])
    two = conflict.read([{"composition": {"a": 0.75, "b": 0.25, "c": None}, "change": {"x": 0.5}}])
    assert np.array_equal(one.share_TS, two.share_TS[:, :2])
    assert one.change_TE.tolist() == [[-0.5]]  # a loss that rises is worse


@pytest.mark.parametrize(
    ("records", "sentence"),
    [
        ([], "there are no steps"),
        ([{"composition": {"a": 1}}], "step 1 has no `change`"),
        ([{"change": {"a": 1}}], "step 1 has no `composition`"),
        ([{"composition": {"a": 0}, "change": {"x": 1}}], "composition of step 1 is empty"),
        ([{"composition": {"a": -1, "b": 3}, "change": {"x": 1}}], "composition of step 1 is empty, negative"),
        ([{"composition": {"a": 1}, "change": {"x": float("nan")}}], "step 1 has no finite change of 'x'"),
        ([{"composition": {"a": 1}, "change": {"x": 1}}, {"composition": {"a": 1}, "change": {"y": 1}}], "step 1 has no finite change of 'y'"),
        ([{"composition": {"a": "many"}, "change": {"x": 1}}], "no number"),
    ],
)  # fmt: skip
def test_steps_that_say_nothing_are_named(records, sentence):
    with pytest.raises(ValueError, match=sentence):
        conflict.read(records)


def test_batches_that_always_mix_alike_cannot_tell_slices_apart():
    records = [{"composition": {"a": 1, "b": 1}, "change": {"x": step}} for step in range(10)]
    with pytest.raises(ValueError, match="10 steps with compositions of rank 1 cannot tell 2 training slices apart"):
        conflict.fit(conflict.read(records))


def test_the_result_counts_conflicts_and_names_the_worst():
    records, _ = recorded(0, steps=100)
    result = conflict.summarise(conflict.read(records), "compare slices conflict")
    assert len(result.table) == len(NAMES) ** 2
    rows = result.table.to_pylist()
    hurts = [row for row in rows if row["high"] < 0]
    assert result["conflicts_share"] == len(hurts) / len(rows)
    worst = min(rows, key=lambda row: row["effect"])
    assert f"Training on {worst['trained on']} hurts {worst['evaluated on']} most" in result.verdict[1]
