"""Rows of written texts: what is kept, what it cost, and the canvas it cost that on."""

import pytest

from shiftscope.core.corpus import Text
from shiftscope.core.denoising import masked_model
from shiftscope.core.denoising.decodings import Decoder, lengths_by_call, write
from shiftscope.core.denoising.length import Length
from shiftscope.core.denoising.scope import Scope
from shiftscope.core.masked import Filling

LEFT = Filling(order="left_to_right")


@pytest.fixture(scope="module")
def counts():
    return masked_model.load("counts-masked")


def row(model, prompt, **settings):
    return write(model, [Text(0, "a", prompt)], Decoder(**settings)).to_pylist()[0]


def test_lengths_change_after_the_call_that_edits():
    assert lengths_by_call(4, [(1, 64), (3, 20)], 5) == [4, 64, 64, 20, 20]
    assert lengths_by_call(4, [], 2) == [4, 4]


def test_a_text_is_kept_up_to_its_first_end_and_costs_what_its_calls_computed(counts):
    found = row(counts, "27 2", filling=LEFT, length=Length(max_new_tokens=8))
    assert (found["answer"], found["stopped"], found["kept_tokens"], found["written_tokens"]) == (
        "27 29 31",
        "end",
        3,
        4,
    )
    assert (found["calls"], found["rows"], found["whole_rows"], found["pairs"]) == (4, 44, 44, 4 * 11**2)
    assert (found["effective_before_cut"], found["effective_after_cut"]) == (3 / 8, 3 / 4)
    to_the_end = row(counts, "27 2", filling=LEFT, length=Length(max_new_tokens=8, early_stop=False))
    assert (to_the_end["answer"], to_the_end["written_tokens"], to_the_end["calls"]) == ("27 29 31", 8, 8)


def test_whole_rows_are_those_of_the_canvas_as_it_was(counts):
    found = row(counts, "27 2", filling=LEFT, length=Length(length="rho-eos", max_new_tokens=4))
    assert found["edit_tokens"]
    lengths = lengths_by_call(4, list(zip(found["edit_call"], found["edit_tokens"], strict=True)), found["calls"])
    assert found["rows"] == found["whole_rows"] == sum(3 + length for length in lengths)
    assert found["signal_call"] == list(range(1, found["calls"] + 1))


def test_a_window_computes_less_than_the_whole(counts):
    found = row(counts, "0 1", scope=Scope("window", inner=4, outer=8, refresh=4), length=Length(max_new_tokens=40))
    assert found["rows"] < 0.5 * found["whole_rows"]
    assert found["refreshes"] >= found["calls"] // 4
    assert found["whole_rows"] == 43 * found["calls"]


def test_an_end_within_a_filled_in_text_cuts_nothing(counts):
    found = row(counts, "27 2 27 29 31 [[1]] <end> <end>", length=Length(early_stop=True))
    assert found["answer"] == "27 2 27 29 31"
    assert len(found["ids"]) == 9
    assert (found["effective_after_cut"], found["kept_tokens"], found["logp_mean_nats"]) == (0, 0, None)


def test_a_hole_at_the_beginning_is_filled_from_what_follows(counts):
    found = row(counts, "[[1]] 5 2 5 7", length=Length())
    assert found["infilled"]
    assert found["first_tokens"] == 1
    assert found["prompt_tokens"] == 5
