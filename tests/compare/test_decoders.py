"""The same prompts under several decoders: agreement with itself, what each saves, and what it loses."""

import pytest

from shiftscope.compare.decoders import agreement, decoders_


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
