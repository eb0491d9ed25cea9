"""Claims about verifiers: specs name what they say, and a verifier that breaks says on which answer."""

from __future__ import annotations

import pytest

from shiftscope.core import verifiers


def length(prompt, answer, reference=None):
    return len(answer)


def short_form(prompt, answer):
    return answer.startswith(prompt)


def test_exact_compares_text_aside_from_outer_white_space():
    exact = verifiers.load("exact")
    assert exact("", " 7 \n", "7") == 1.0
    assert exact("", "7.0", "7") == 0.0


@pytest.mark.parametrize(
    ("pattern", "answer", "right"),
    [
        (r"answer: (\d+)", "answer: 3, no, answer: 4", 1.0),  # the last match counts
        (r"answer: (\d+)", "answer: 4, no, answer: 3", 0.0),
        (r"\d+", "first 3 then 4", 1.0),  # without a group, the whole match
        (r"answer: (\d+)", "none given", 0.0),
        (r"(a)?4", "b4", 0.0),  # a group that took no part is no answer
    ],
)
def test_a_regular_expression_finds_the_last_match_and_compares_its_first_group(pattern, answer, right):
    assert verifiers.load(f"regex:{pattern}")("", answer, "4") == right


@pytest.mark.parametrize("spec", ["exact", r"regex:\d"])
def test_comparing_without_a_reference_is_refused(spec):
    with pytest.raises(ValueError, match="no reference"):
        verifiers.load(spec)("", "4", None)


def test_a_function_is_found_by_module_and_by_file(tmp_path, monkeypatch):
    assert (
        verifiers.load("shiftscope.zoo.sums:verify")("1 1 1 1 =", "take 1 is 1 ; add 1 is 2 ; see 1 is 3 ; use 1 is 4")
        == 1.0
    )
    (tmp_path / "mine_of_these_tests.py").write_text(
        "def check(prompt, answer, reference):\n    return answer == reference\n"
    )
    assert verifiers.load(f"{tmp_path}/mine_of_these_tests.py:check")("", "a", "a") == 1.0
    monkeypatch.chdir(tmp_path)
    assert verifiers.load("mine_of_these_tests:check")("", "a", "b") == 0.0


def test_a_function_of_prompt_and_answer_is_enough():
    verifier = verifiers.guarded(verifiers._with_three_arguments(short_form, "short"), "short")
    assert (verifier("a", "ab", "unused"), verifier("b", "ab")) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("nothing", "no verifier"),
        ("regex:(", "no regular expression"),
        ("no_such_module_at_all:check", "cannot be imported"),
        ("there/is/none.py:check", "there is no file"),
        ("math:no_such", "has no no_such"),
        ("math:pi", "not a function"),
        ("math:sqrt", "must take"),
        ("shiftscope.core.verifiers:", "no verifier"),
    ],
)
def test_a_spec_that_names_no_verifier_is_one_sentence(spec, sentence):
    with pytest.raises(ValueError, match=sentence) as raised:
        verifiers.load(spec)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("returned", [None, "1", float("nan"), float("inf"), [1.0]])
def test_a_verifier_that_returns_no_number_names_the_answer(returned):
    with pytest.raises(ValueError, match="the culprit") as raised:
        verifiers.guarded(lambda *_: returned, "mine")("p", "the culprit", None)
    assert "finite number" in str(raised.value)


def test_a_verifier_that_raises_names_the_answer_and_its_error():
    with pytest.raises(ValueError, match=r"mine fails on the answer 'the culprit': ZeroDivisionError"):
        verifiers.guarded(lambda *_: 1 / 0, "mine")("p", "the culprit", None)


def test_truth_values_and_numbers_become_floats():
    assert verifiers.guarded(length, "length")("", "abc", None) == 3.0
    assert verifiers.guarded(lambda *_: True, "true")("", "", None) == 1.0


def test_rows_are_scored_in_order():
    assert verifiers.score(verifiers.load("exact"), [("", "a", "a"), ("", "b", "a")]) == [1.0, 0.0]
