"""The test of reveals: uniform for samples, and sensitive to each way of not sampling."""

import numpy as np
import pytest
import torch

from shiftscope.core.denoising import decoders, fidelity
from shiftscope.core.denoising.oracle import random_chain
from shiftscope.core.denoising.reveals import Reveals

ORACLE = random_chain(6, concentration=1.0, seed=0)


def reveals_of(name, texts=600, seed=0):
    named = decoders.parse(name, temperature=1.0, seed=seed)
    jobs = [decoders.Text(document, [6] * 8, 0) for document in range(texts)]
    records = [record for _, record in decoders.write(ORACLE, named, jobs)]
    found = fidelity.replay(ORACLE, jobs, records)
    columns = [
        np.concatenate([getattr(one, key) for one in found]) for key in ("u_R", "logp_R", "entropy_R", "variance_R")
    ]
    return fidelity.fidelity(*columns)


def test_draws_from_a_law_stand_uniformly_in_it():
    generator = np.random.default_rng(0)
    laws = torch.from_numpy(generator.dirichlet(np.full(9, 0.5), size=20_000)).log()
    token = torch.multinomial(laws.exp(), 1, generator=torch.Generator().manual_seed(0))[:, 0]
    found = fidelity.against(laws, token, torch.from_numpy(generator.random(20_000)))
    counts, _ = np.histogram(found.u_R, 10, (0, 1))
    assert np.abs(counts / 2000 - 1).max() < 4 * (0.9 / 2000) ** 0.5  # four standard errors of a tenth's share
    assert fidelity.fidelity(found.u_R, found.logp_R, found.entropy_R, found.variance_R).holds(0.001)


def test_entropy_and_variance_are_those_of_the_log_probability():
    law = torch.tensor([[0.5, 0.25, 0.25, 0.0]], dtype=torch.float64).log()
    found = fidelity.against(law, torch.tensor([1]), torch.tensor([0.5], dtype=torch.float64))
    logp = np.log([0.5, 0.25, 0.25])
    mean = (np.exp(logp) * logp).sum()
    assert found.entropy_R[0] == pytest.approx(-mean)
    assert found.variance_R[0] == pytest.approx((np.exp(logp) * (logp - mean) ** 2).sum())
    assert found.u_R[0] == pytest.approx(0.5 + 0.5 * 0.5)  # behind one token of 0.5, in the middle of two of 0.25


@pytest.mark.parametrize(
    "name", ["left_to_right", "random", "max_prob", "entropy", "margin", "blocks block=4", "assd k=3"]
)
def test_samples_of_the_model_pass(name):
    assert all(reveals_of(name, seed=seed).holds(0.001) for seed in (0, 1))


@pytest.mark.parametrize(
    ("name", "sign"),
    [
        ("sampled", 1),
        ("max_prob temperature=0.7", 1),
        ("random top_p=0.8", 1),
        ("max_prob per_call=2", -1),
        ("random per_call=4", -1),
        ("independent k=3", -1),
    ],
)
def test_what_changes_the_law_fails_in_the_direction_that_it_must(name, sign):
    found = reveals_of(name)
    assert not found.holds(0.001)
    assert np.sign(found.excess_nats) == sign


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_what_is_replayed_does_not_depend_on_batches(batch_size):
    jobs = [decoders.Text(document, ids, 0) for document, ids in enumerate(([6] * 4, [1, 2, 3, 6], [6, 0, 6, 1]))]
    records = [record for _, record in decoders.write(ORACLE, decoders.parse("random", temperature=1.0), jobs)]
    for one, text, record in zip(
        fidelity.replay(ORACLE, jobs, records, batch_size=batch_size), jobs, records, strict=True
    ):
        alone = fidelity.replay(ORACLE, [text], [record])[0]
        assert len(one.u_R) == text.ids.count(6)
        np.testing.assert_allclose(one.u_R, alone.u_R, atol=1e-12)
        # at temperature 1 the law that was drawn from is the oracle's own
        np.testing.assert_allclose(one.logp_R, record.logp_nats, atol=1e-6)


def test_an_excess_is_seen_from_where_the_test_has_even_odds():
    """Laws of two tokens, tilted by the excess that the test calls visible: about half of many such data sets fail."""
    generator, p, n, level = np.random.default_rng(0), 0.8, 400, 0.001
    logp, entropy = np.log([p, 1 - p]), -(p * np.log(p) + (1 - p) * np.log(1 - p))
    variance = p * (1 - p) * (logp[0] - logp[1]) ** 2
    seen_from = fidelity.Fidelity(n, 0, 1, 0, 1, (variance / n) ** 0.5).seen_from(level)
    tilted = p + seen_from / (logp[0] - logp[1])
    failed = 0
    for _ in range(400):
        token = (generator.random(n) > tilted).astype(int)
        found = fidelity.fidelity(generator.random(n), logp[token], np.full(n, entropy), np.full(n, variance))
        failed += not found.holds(level)
    assert (
        0.4 < failed / 400 < 0.65
    )  # a little above half: the other test sees a share of them, four standard errors are 0.1


def test_the_canvas_of_a_reveal_is_the_one_of_its_call():
    record = Reveals(position=[0, 3], token=[1, 2], call=[1, 2], logp_nats=[0.0, 0.0], edits=[(1, 4)])
    states = fidelity._states(ORACLE, decoders.Text(0, [6, 6], 0), record)
    assert states == [([6, 6], 0), ([1, 6, 6, 6], 3)]


def test_nothing_filled_is_nothing_to_test():
    with pytest.raises(ValueError, match="nothing to test"):
        fidelity.fidelity(*[np.empty(0)] * 4)
