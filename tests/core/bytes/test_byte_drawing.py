"""byte_drawing: an answer ends only where all bytes of a stop text do, and settings that cannot draw are refused."""

import itertools
import math

import pytest

from shiftscope.core.bytes.byte_drawing import Drawing, ending


def test_the_ending_is_the_first_listed_of_all_stop_texts_that_end_the_answer():
    """Against every pair of stop texts and every answer of up to four letters, by comparing characters one by one."""
    stops = ["".join(letters) for count in (1, 2, 3) for letters in itertools.product("ab", repeat=count)]
    answers = ["".join(letters) for count in range(5) for letters in itertools.product("ab", repeat=count)]
    found = set()
    for pair, answer in itertools.product(itertools.permutations(stops, 2), answers):
        ends = [stop for stop in pair if len(stop) <= len(answer) and answer[len(answer) - len(stop) :] == stop]
        got = ending(answer.encode(), pair)
        assert got == (ends[0].encode() if ends else b"")
        found.add((len(ends), got == b""))
    assert found == {(0, True), (1, False), (2, False)}  # none, one and both of them


def test_a_stop_text_of_several_bytes_ends_an_answer_only_with_its_last_byte():
    """A stop text counts in bytes: a character that has begun is no end, and neither is another one with the same end."""
    whole = "a…".encode()
    assert [ending(whole[:count], ("…",)) for count in range(len(whole) + 1)] == [b"", b"", b"", b"", "…".encode()]
    assert ending("é".encode(), ("©",)) == b""  # their last bytes are equal
    assert ending(b"\xff\xfe\n", ("\n",)) == b"\n"  # an answer need not be a text


def test_without_stop_texts_nothing_ends_an_answer():
    assert ending(b"a\n\n", ()) == b""
    assert Drawing().stop == ()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"temperature": -0.1}, r"temperature -0\.1, samples 1 .* need a finite temperature >= 0"),
        ({"temperature": math.nan}, "temperature nan, .* need a finite temperature >= 0"),
        ({"temperature": math.inf}, "temperature inf, .* need a finite temperature >= 0"),
        ({"samples": 0}, "samples 0 .* at least 1 of the others"),
        ({"max_new_bytes": 0}, "max_new_bytes 0: .* at least 1 of the others"),
        ({"stop": ("\n", "")}, r"stop is \('\\n', ''\): texts that stop must not be empty"),
    ],
)
def test_settings_that_cannot_draw_are_refused_in_a_sentence(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        Drawing(**settings)


def test_the_bounds_themselves_are_allowed():
    drawing = Drawing(temperature=0, samples=1, max_new_bytes=1, stop=("\n", " "))
    assert (drawing.temperature, drawing.samples, drawing.max_new_bytes, drawing.stop) == (0, 1, 1, ("\n", " "))
