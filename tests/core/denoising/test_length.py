"""Length by the share of ends: the signal, the steps, what is never cut, and what holds a canvas still."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shiftscope.core.denoising.length import Control, Length, end_density, needed, step_tokens, tail_confidence
from shiftscope.core.masked import Canvas

END, MASK, V = 2, 3, 6
RHO = Length(length="rho-eos", max_new_tokens=4)


def logits(*tokens, p=0.9):
    """Laws whose likeliest tokens are these, each with probability p."""
    rows = torch.full((len(tokens), V), math.log((1 - p) / (V - 1)))
    rows[range(len(tokens)), list(tokens)] = math.log(p)
    return rows


def canvas(*written, start=1):
    """A prompt that ends with an end (which must not count), then the written part."""
    return Canvas(0, [END] * start + list(written), start, MASK)


def test_density_is_the_share_of_likeliest_ends():
    assert end_density(logits(4, END, END, 5), [END]) == 0.5
    assert end_density(logits(4, 5, END), [END, 5]) == pytest.approx(2 / 3)


def test_tail_confidence_adds_the_certainty_of_the_last_ends_and_divides_by_their_number():
    text = canvas(4, MASK, MASK, END, MASK)
    places = [2, 3, 5]
    found = tail_confidence(text, places, logits(4, END, END), [END], 2)
    assert found == pytest.approx((0.9 + 1.0) / 2)  # the last hidden one, and the written end
    assert tail_confidence(text, places, logits(4, END, END), [END], 32) == pytest.approx((0.9 + 1.0 + 0.9) / 32)
    assert tail_confidence(canvas(MASK), [1], logits(4), [END], 32) == 0


@pytest.mark.parametrize(
    ("growth", "steps"),
    [("const", [8, 8, 8, 8, 8]), ("linear", [8, 8, 16, 32, 64]), ("exp", [8, 8, 16, 64, 64])],
)
def test_steps_grow_with_every_tenth_beyond_a_threshold(growth, steps):
    found = [step_tokens(gap, Length("rho-eos", growth=growth)) for gap in (0.0, 0.1, 0.15, 0.4, 1.0)]
    assert found == steps


def test_the_papers_example_of_a_share_of_nothing_adds_64():
    assert step_tokens(0.4 - 0.0, Length()) == 64
    assert step_tokens(0.65 - 0.6, Length()) == 8
    assert step_tokens(1.0 - 0.6, Length()) == 64


@given(
    st.lists(st.sampled_from([END, 4, MASK]), min_size=1, max_size=20),
    st.lists(st.sampled_from([END, 5]), min_size=20, max_size=20),
)
def test_what_is_needed_ends_one_after_the_last_token_that_is_no_end(written, foreseen):
    text = canvas(*written)
    places = text.hidden
    if not places:
        return
    kept = needed(text, places, logits(*foreseen[: len(places)]), [END])
    filled = [foreseen[places.index(i + 1)] if token == MASK else token for i, token in enumerate(written)]
    last = max((i for i, token in enumerate(filled) if token != END), default=-1)
    assert kept == min(last + 2, len(written))
    assert all(token == END for token in filled[kept:])


def test_what_a_window_does_not_see_counts_as_the_last_place_it_sees():
    text = canvas(*[MASK] * 8)
    assert needed(text, [1, 2], logits(4, 5), [END]) == 8
    assert needed(text, [1, 2], logits(4, END), [END]) == 2


def test_a_canvas_grows_where_no_end_is_foreseen_and_shrinks_where_most_are():
    short, long = canvas(*[MASK] * 4), canvas(*[MASK] * 40)
    control = Control(RHO, [END], 60)
    control(short, short.hidden, logits(4, 4, 4, 4))
    assert len(short.ids) == 60  # 64 more, within what the model reads
    assert short.record.edits == [(0, 59)]
    control(long, long.hidden, logits(4, *[END] * 39))
    assert len(long.ids) == 1 + 2  # 64 fewer, but the token and one end are needed
    assert long.ids == [END, MASK, MASK]
    assert control.seen[0] == [(0, 0.0), (0, 39 / 40)]


def test_between_the_thresholds_nothing_changes():
    text = canvas(*[MASK] * 4)
    Control(RHO, [END])(text, text.hidden, logits(4, 4, END, END))
    assert len(text.ids) == 5
    assert text.record.edits == []


def test_a_canvas_with_a_written_end_is_held():
    held, free = canvas(MASK, MASK, END), canvas(MASK, MASK, END)
    Control(RHO, [END])(held, held.hidden, logits(4, 4))
    Control(Length(length="rho-eos", max_new_tokens=4, hold=False), [END])(free, free.hidden, logits(4, 4))
    assert len(held.ids) == 4
    assert len(free.ids) == 68
    opened = canvas(MASK, MASK, 4)  # the end in the prompt is none of the text's
    Control(RHO, [END])(opened, opened.hidden, logits(4, 4))
    assert len(opened.ids) == 68


def test_without_the_floor_written_tokens_are_cut_down_to_nothing():
    text = canvas(4, 4, *[MASK] * 30)
    Control(Length(length="rho-eos", floor=False), [END])(text, text.hidden, logits(*[END] * 30))
    assert text.ids == [END]


def test_a_frozen_canvas_that_was_longest_once_never_shrinks():
    text = canvas(*[MASK] * 40)
    frozen = Length(length="rho-eos", freeze=True, longest=64, max_new_tokens=4)
    Control(frozen, [END], 41)(text, text.hidden, logits(*[END] * 40))
    assert len(text.ids) == 41
    Control(RHO, [END], 41)(text, text.hidden, logits(*[END] * 40))
    assert len(text.ids) == 2


def test_a_canvas_that_a_window_does_not_see_the_end_of_does_not_grow():
    text = canvas(*[MASK] * 8)
    Control(RHO, [END])(text, text.hidden[:4], logits(4, 4, 4, 4))
    assert len(text.ids) == 9


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens 0"),
        ({"length": "rho-eos", "low": 0.7, "high": 0.6}, "low is 0.7 and high 0.6"),
        ({"length": "rho-eos", "high": 1.2}, "high 1.2"),
        ({"low": 0.3}, "low is 0.3, and length fixed does not read it: use length rho-eos, or leave it out"),
        ({"floor": False}, "floor is False, and length fixed does not read it"),
        ({"length": "rho-eos", "tail": 16}, "tail is 16, and signal density does not read it: use signal tail"),
        ({"length": "rho-eos", "max_new_tokens": 80, "longest": 64}, "no longer than the longest"),
    ],
)
def test_settings_out_of_range_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        Length(**settings)
