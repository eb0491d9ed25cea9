"""The same prompts under several decoders: agreement with itself, what each saves, and what it loses."""

import math
from dataclasses import replace

import pytest
import torch

from shiftscope.compare.decoders import agreement, decoders_
from shiftscope.core.denoising import masked_model


@pytest.fixture(scope="module")
def counted():
    names = ["max_prob", "max_prob threshold=0.9", "max_prob max_new_tokens=4", "sequential left_to_right"]
    return decoders_("counts-masked", names, limit=5, max_new_tokens=32, temperature=0.0, draws=4)


def test_the_first_decoder_agrees_with_itself(counted):
    assert counted["max_prob.identical"] == 1
    assert counted["max_prob.agreement"] == 1


def test_sure_tokens_of_one_call_save_calls_and_keep_the_text(counted):
    assert counted["max_prob_threshold_0.9.identical"] == 1
    assert counted["max_prob_threshold_0.9.calls_per_token"] < 0.5 * counted["max_prob.calls_per_token"]
    assert counted["max_prob_threshold_0.9.reward"] == 1


def test_a_canvas_that_is_too_short_loses_what_does_not_fit(counted):
    assert counted["max_prob_max_new_tokens_4.reward"] < counted["max_prob.reward"] == 1
    assert counted["max_prob_max_new_tokens_4.tokens"] <= 4


def test_another_order_writes_the_same_answers_where_the_model_is_sure(counted):
    assert counted["sequential_left_to_right.identical"] == 1


def test_likelihood_is_scored_under_the_model_alike_for_all(counted):
    equal = counted["max_prob.nll_per_token"], counted["max_prob_threshold_0.9.nll_per_token"]
    assert equal[0] == pytest.approx(equal[1], abs=1e-9)  # the same texts, the same hidden subsets


def test_the_page_shows_the_texts_side_by_side(counted):
    shown = counted.panels[-1].table.to_pylist()[0]
    assert shown["prompt"]
    assert shown["max_prob"] == shown["max_prob threshold=0.9"]


def test_agreement_counts_places_of_the_longer_text():
    assert agreement([1, 2, 3], [1, 2, 3]) == 1
    assert agreement([1, 2, 3, 4], [1, 9]) == 0.25
    assert agreement([], []) == 1


@pytest.mark.parametrize("names", [["max_prob"], ["max_prob", "max_prob"]])
def test_two_different_decoders_are_needed(names):
    with pytest.raises(ValueError, match="name two or more different ones"):
        decoders_("counts-masked", names)


def blind():
    """A model of the same vocabulary that has learnt nothing: every law is even."""
    model = masked_model.load("counts-masked")
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter.zero_()
    return replace(model, name="blind")


def test_texts_may_be_scored_under_another_model():
    names, settings = ["max_prob", "left_to_right"], {"limit": 2, "max_new_tokens": 32, "temperature": 0.0, "draws": 2}
    found = decoders_("counts-masked", names, under=blind(), **settings)
    assert found["max_prob.nll_per_token"] == pytest.approx(math.log(36), rel=1e-6)  # 37 tokens without the mask
    assert "under blind" in found.verdict[0]
    assert any("under blind (a bound by random subsets)" in note for note in found.notes)
    with pytest.raises(ValueError, match=r"differ .* markov-masked cannot score the texts of counts-masked"):
        decoders_("counts-masked", names, under="markov-masked", **settings)
    with pytest.raises(ValueError, match="docs-anyorder is another kind of model than counts-masked"):
        decoders_("counts-masked", names, under="docs-anyorder", **settings)


@pytest.mark.parametrize(
    ("names", "settings", "sentence"),
    [
        (["max_prob", "window outer=100"], {}, "the outer window has 100 positions"),
        (["max_prob", "rho-eos"], {"prompts": [{"prompt": "5 [[2]]"}]}, "record 0 hides positions of its own"),
        (["max_prob", "rho-eos"], {"end_token": "<nothing>"}, "is no token of counts-masked"),
        (["max_prob", "random"], {"template": "chat"}, "has no chat template"),
        (["max_prob", "random inner=4"], {}, "method full does not read it"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_written(names, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        decoders_("counts-masked", names, **settings)
