"""byte_voting: models of different vocabularies vote by exact byte laws; one model, or equal ones, are themselves."""

import math

import numpy as np
import pytest

from shiftscope.core import checkpoints
from shiftscope.core.bytes.byte_model import ByteModel, ByteSampling
from shiftscope.core.bytes.byte_voting import Ensemble, Voting, mixed

PROMPTS = ["Return the absolu", "Raise ValueErr"]
DIGITS = "9 4 8 4 ="


@pytest.fixture(scope="module")
def sums():
    return checkpoints.load("sums-base")


@pytest.fixture(scope="module")
def alone(docs):
    return ByteModel(docs[0])


def outcomes(law):
    return np.append(law.p, law.end)


@pytest.mark.parametrize("mixture", ["arithmetic", "geometric"])
def test_one_model_and_equal_models_are_the_model_itself(docs, alone, mixture):
    law = outcomes(alone.law(PROMPTS[0]))
    for models in ([docs[0]], [docs[0], docs[0], docs[0]]):
        vote = Ensemble(models, voting=Voting(mixture)).law(PROMPTS[0])
        assert vote.p_O == pytest.approx(law, abs=1e-12)
        assert max(vote.kl_nats()) < 1e-9


def test_an_ensemble_of_one_draws_what_generate_bytes_draws(docs, alone):
    ours = Ensemble([docs[0]], voting=Voting(max_new_bytes=12, seed=3)).sample(PROMPTS)
    theirs = alone.sample(PROMPTS, ByteSampling(max_new_bytes=12, seed=3))
    assert [one.answer for one in ours] == [one.answer for one in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one.logp_nats == pytest.approx(other.logp_nats, abs=1e-5)  # float32, another tree
        assert one.logp_models_nats == (pytest.approx(one.logp_nats),)


@pytest.mark.parametrize("mixture", ["arithmetic", "geometric"])
def test_weight_one_against_zero_is_the_first_model(docs, alone, mixture):
    vote = Ensemble(docs, voting=Voting(mixture, weights=(2.0, 0.0))).law(PROMPTS[1])
    assert vote.p_O == pytest.approx(outcomes(alone.law(PROMPTS[1])), abs=1e-12)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (3.0, 1.0)])
def test_different_vocabularies_mix_into_a_law_that_plain_arithmetic_gives(docs, sums, weights):
    """Oracle: one outcome at a time, from each model's own byte law."""
    first, second = (outcomes(ByteModel(model).law(DIGITS)) for model in (docs[0], sums))
    a, b = (weight / sum(weights) for weight in weights)
    mean = [a * p + b * q for p, q in zip(first, second, strict=True)]
    product = [p**a * q**b for p, q in zip(first, second, strict=True)]
    votes = {
        name: Ensemble([docs[0], sums], voting=Voting(name, weights)).law(DIGITS)
        for name in ("arithmetic", "geometric")
    }
    assert votes["arithmetic"].p_O == pytest.approx(mean, abs=1e-12)
    assert votes["geometric"].p_O == pytest.approx([value / sum(product) for value in product], abs=1e-12)
    for vote in votes.values():
        assert vote.p_O.sum() == pytest.approx(1, abs=1e-12)


def test_a_model_that_cannot_spell_a_drawn_byte_leaves_the_answer(docs, sums):
    """Almost all weight is on docs, which soon writes what sums has no token for."""
    drawn = Ensemble([docs[0], sums], voting=Voting(weights=(999, 1), max_new_bytes=12, seed=1)).sample([DIGITS])[0]
    assert math.isnan(drawn.logp_models_nats[1])
    assert math.isfinite(drawn.logp_nats)
    product = Ensemble([docs[0], sums], voting=Voting("geometric", max_new_bytes=6, seed=1)).sample([DIGITS])[0]
    assert np.isfinite(product.logp_models_nats).all()  # a product never leaves a model behind


def test_an_answer_is_the_same_alone_and_in_a_batch_and_stops_at_a_stop_text(docs):
    together = Ensemble(docs, voting=Voting(max_new_bytes=10, seed=5))
    batch = together.sample(PROMPTS)
    assert together.sample([PROMPTS[1]], documents=[1])[0].answer == batch[1].answer
    stopped = Ensemble(docs, voting=Voting(temperature=0, stop=(" ",))).sample([PROMPTS[0]])[0]
    assert (stopped.answer, stopped.stopped) == (b"te", "stop")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"mixture": "median"}, "mixture is 'median'"),
        ({"weights": (1.0, -1.0)}, "none may be negative"),
        ({"weights": (0.0, 0.0)}, "one must be above 0"),
        ({"temperature": -1.0}, "temperature -1.0"),
        ({"stop": ("",)}, "must not be empty"),
    ],
)
def test_settings_out_of_range_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        Voting(**settings)


def test_models_that_do_not_fit_together_are_refused(docs, sums):
    with pytest.raises(ValueError, match="3 weights are given for 2 models"):
        Ensemble(docs, voting=Voting(weights=(1, 1, 1)))
    with pytest.raises(ValueError, match="no models"):
        Ensemble([])
    with pytest.raises(ValueError, match="sums-base"):
        Ensemble([docs[0], sums]).law("Return")
    with pytest.raises(ValueError, match="use the arithmetic mixture"):
        mixed(np.eye(2, 257), np.ones(2), "geometric")


def test_a_score_is_the_sum_over_bytes_and_no_worse_than_the_models_weighted_mean(docs):
    together = Ensemble(docs, voting=Voting(weights=(2.0, 1.0)))
    prompt, answer = "Return the", " list of"
    scored = together.score(prompt, answer)
    text, total = (prompt + answer).encode(), 0.0
    for place in range(len(prompt), len(text)):
        total += math.log(together.law(text[:place]).p_O[text[place]])
    assert scored.logp_nats == pytest.approx(total, abs=1e-4)  # float32 forwards in other batch layouts
    own = [
        sum(math.log(Ensemble([model]).law(text[:p]).p_O[text[p]]) for p in range(len(prompt), len(text)))
        for model in docs
    ]
    assert scored.logp_models_nats == pytest.approx(own, abs=1e-4)
    assert scored.logp_nats >= (2 * own[0] + own[1]) / 3 - 1e-4  # the logarithm is concave
