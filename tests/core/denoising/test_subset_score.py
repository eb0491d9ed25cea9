"""The score of a text: exact on a chain, where the bound is tight, for any number of places."""

import itertools
import math

import numpy as np
import pytest

from shiftscope.core.denoising import subset_score
from shiftscope.core.denoising.oracle import random_chain

ORACLE = random_chain(5, concentration=1.0, seed=4)


def logp(text):
    return math.log(ORACLE.first_S[text[0]]) + sum(math.log(ORACLE.step_SS[a, b]) for a, b in itertools.pairwise(text))


def test_the_bound_is_the_probability_where_laws_belong_to_one():
    texts = np.random.default_rng(0).integers(0, 5, size=(4, 6)).tolist()
    found = subset_score.nll_nats(ORACLE, texts, [range(6)] * 4, range(4), draws=4000)
    for text, nll in zip(texts, found, strict=True):
        alone = [subset_score.nll_nats(ORACLE, [text], [range(6)], [d], draws=200)[0] for d in range(20)]
        error = np.std(alone) / math.sqrt(20)
        assert nll == pytest.approx(-logp(text), abs=4 * error)  # four standard errors of the mean of 4000 draws


def test_one_place_needs_no_draws():
    text = [1, 2, 3]
    whole = subset_score.nll_nats(ORACLE, [text], [[1]], [0], draws=1)[0]
    law = ORACLE.posteriors(np.array([[1, 5, 3]]))[0, 1, 2]
    assert whole == pytest.approx(-math.log(law))


def test_a_score_does_not_depend_on_its_company():
    texts = [[0, 1, 2, 3], [4, 4, 4, 4]]
    both = subset_score.nll_nats(ORACLE, texts, [range(4)] * 2, [7, 8], draws=5)
    alone = subset_score.nll_nats(ORACLE, texts[1:], [range(4)], [8], draws=5, batch_size=2)
    assert both[1] == pytest.approx(alone[0], abs=1e-12)


def test_no_places_cost_nothing():
    assert subset_score.nll_nats(ORACLE, [[1]], [[]], [0]) == [0.0]


def test_no_draws_are_refused():
    with pytest.raises(ValueError, match="at least one subset"):
        subset_score.nll_nats(ORACLE, [[1]], [[0]], [0], draws=0)
