"""The chain's posteriors against brute force over all texts."""

from itertools import pairwise, product

import numpy as np
import pytest

from shiftscope.core.denoising.oracle import MarkovOracle, random_chain


def brute_force(oracle, ids):
    """The posterior of every place by summing over all texts of the chain that agree with the visible states."""
    S = len(oracle.first_S)
    total = np.zeros((len(ids), S))
    for text in product(range(S), repeat=len(ids)):
        if any(seen not in (S, state) for seen, state in zip(ids, text, strict=True)):
            continue
        p = oracle.first_S[text[0]]
        for left, right in pairwise(text):
            p *= oracle.step_SS[left, right]
        for place, state in enumerate(text):
            total[place, state] += p
    return total / total.sum(1, keepdims=True)


@pytest.mark.parametrize("ids", [[3, 3, 3, 3], [3, 1, 3, 3], [0, 3, 3, 2], [3, 3, 2, 3]])
def test_posteriors_are_those_of_brute_force(ids):
    oracle = random_chain(3, seed=1)
    np.testing.assert_allclose(oracle.posteriors(np.array([ids]))[0], brute_force(oracle, ids), atol=1e-12)


def test_logits_are_log_posteriors_and_never_the_mask():
    oracle = random_chain(4, seed=2)
    logits = oracle.logits([[4, 1, 4]], [[0, 2]])[0]
    assert logits.shape == (2, 5)
    np.testing.assert_allclose(logits[:, :4].exp().sum(-1), 1, atol=1e-12)
    assert bool((logits[:, 4] == -np.inf).all())


def test_neighbours_have_the_law_of_the_chain():
    oracle = MarkovOracle(np.array([0.2, 0.8]), np.array([[0.9, 0.1], [0.5, 0.5]]))
    second = oracle.first_S @ oracle.step_SS
    expected = (oracle.first_S[:, None] * oracle.step_SS + second[:, None] * oracle.step_SS) / 2
    np.testing.assert_allclose(oracle.bigrams(3), expected, atol=1e-15)


def test_a_stationary_chain_starts_as_it_goes_on():
    oracle = random_chain(5, seed=3)
    np.testing.assert_allclose(oracle.first_S @ oracle.step_SS, oracle.first_S, atol=1e-9)


def test_a_text_that_the_chain_cannot_write_is_refused():
    oracle = MarkovOracle(np.array([1.0, 0.0]), np.array([[1.0, 0.0], [0.5, 0.5]]))
    with pytest.raises(ValueError, match="probability 0"):
        oracle.posteriors(np.array([[0, 1]]))


def test_a_chain_of_one_state_is_refused():
    with pytest.raises(ValueError, match="at least 2 states"):
        random_chain(1)
