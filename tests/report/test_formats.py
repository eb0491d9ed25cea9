from __future__ import annotations

import math

import pytest

from shiftscope.core.result import Figure
from shiftscope.report import formats


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.0, "0"),
        (1234567, "1,234,567"),
        (0.057012, "0.05701"),
        (-0.25, "−0.25"),
        (1.25e-7, "1.25×10⁻⁷"),
        (math.inf, "∞"),
        (None, "–"),
        (True, "yes"),
        (12345.6, "12,346"),
    ],
)
def test_numbers_read_well(number: object, text: str) -> None:
    assert formats.number(number) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.1704, "17.0 %"),
        (1.0, "100 %"),
        (0.99996, "99.996 %"),
        (0.0, "0 %"),
        (0.00123, "0.123 %"),
        (1 - 1e-9, "> 99.999 %"),
        (0.999994, "99.999 %"),
        (1e-9, "1.00×10⁻⁷ %"),
    ],
)
def test_a_share_that_is_not_all_is_never_one_hundred_percent(share: float, text: str) -> None:
    assert formats.percent(share) == text


def test_a_figure_shows_unit_and_interval() -> None:
    figure = Figure(0.05712, "nats", 10, 0.05, 0.0649)
    assert (formats.value(figure), formats.interval(figure)) == ("0.0571 nats", "0.05 to 0.0649")
    assert formats.interval(Figure(0.5, "share", 4, 0.15, 0.85)) == "15.0 to 85.0 %"
    assert formats.interval(Figure(3, "count", 3)) == ""
    assert formats.value(Figure(0.97, "share of tokens", 3)) == "97.0 % of tokens"
    assert formats.value(Figure(1.0415, "ratio", 3)) == "1.04"  # "1.04 ratio" says nothing more


def test_names_become_words_and_keep_the_direction() -> None:
    assert formats.label("js_share_above_0.1", "share") == "JS share above 0.1"
    assert formats.label("js_mean_nats", "nats") == "JS mean"
    assert formats.label("kl_base_tuned_nats", "nats") == "KL(base‖tuned)"
    assert formats.label("bytes_per_token.docs_base", "bytes/token") == "Bytes per token · docs base"
    assert formats.label("q_b_in_a_p_permutation") == "Q of B in A p permutation"


def test_outer_whitespace_is_visible() -> None:
    assert [formats.marked(text) for text in (" be", "be", "  ", "\n\n ", "two words")] == [
        "␣be",
        "be",
        "␣␣",
        "↵↵␣",
        "two words",
    ]
