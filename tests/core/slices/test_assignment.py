"""core/assignment: votes that differ, answers that are options, and sorting without a model."""

import re

import numpy as np
import pytest

from shiftscope.core.slices.asking import Scripted
from shiftscope.core.slices.assignment import (
    NONE,
    UNASSIGNED,
    Sorted,
    Voting,
    by_nearest,
    by_votes,
    by_words,
    check_words,
    clipped,
    counted,
    sorting_request,
)
from shiftscope.core.slices.conversation import Asker

COLOURS = {"colour": ("red", "blue", "green", "grey")}


def options_of(request):
    return re.findall(r"^- (.*)$", request.messages[1]["content"], re.MULTILINE)


def test_every_vote_sees_the_options_in_an_order_of_its_own_and_none_last():
    voting = Voting(votes=5, vote_temperature=0.0)
    requests = [sorting_request("a text", "colour", COLOURS["colour"], vote, voting, 3) for vote in range(5)]
    assert len({tuple(options_of(request)) for request in requests}) >= 4  # of 24 orders
    assert all(sorted(options_of(r)) == sorted([*COLOURS["colour"], NONE]) for r in requests)
    assert all(options_of(r)[-1] == NONE for r in requests)
    assert requests == [sorting_request("a text", "colour", COLOURS["colour"], vote, voting, 3) for vote in range(5)]


def test_a_model_that_takes_the_first_option_does_not_agree_with_itself():
    first = Scripted(
        lambda m, *_: f'{{"answer": "{re.search(r"^- (.*)$", m[1]["content"], re.MULTILINE)[1]}"}}', "first"
    )
    rows = by_votes(Asker(first), ["a text"], COLOURS, Voting(votes=9, vote_temperature=0.0))
    assert rows[0]["colour"].agreement < 0.7  # three identical calls, as published, would have agreed fully


def test_the_winner_is_the_plurality_of_valid_votes_and_no_valid_vote_is_unassigned():
    assert counted(["red", "blue", "red", None]) == Sorted("red", {"red": 2, "blue": 1})
    assert counted(["red", "blue", "red", None]).agreement == pytest.approx(2 / 3)
    assert counted(["blue", "red"]).attribute == "blue"
    assert counted([None, None], "said purple") == Sorted(UNASSIGNED, {}, "said purple")


def test_an_answer_off_the_list_never_gets_into_the_result():
    rows = by_votes(Asker(Scripted(lambda *_: '{"answer": "purple"}', "m")), ["a text"], COLOURS, Voting(votes=2))
    assert rows[0]["colour"].attribute == UNASSIGNED
    assert "purple" in rows[0]["colour"].problem


def test_words_are_whole_and_case_is_no_matter_and_ties_are_none():
    words = {"colour": {"red": ["red", "crimson"], "blue": ["blue"]}}
    texts = ["RED, red and blue", "a hundred", "red or blue", "Crimson!"]
    assert [row["colour"].attribute for row in by_words(texts, words)] == ["red", NONE, NONE, "red"]


def test_the_nearest_vector_is_the_brute_force_cosine():
    draw = np.random.default_rng(0)
    texts_ND, keys_KD = draw.normal(size=(50, 8)), draw.normal(size=(4, 8)) * [[1], [5], [0.1], [2]]
    found = by_nearest(texts_ND, {"d": {str(k): keys_KD[k] for k in range(4)}})
    for row, text_D in zip(found, texts_ND, strict=True):
        cosines = [text_D @ key_D / np.linalg.norm(text_D) / np.linalg.norm(key_D) for key_D in keys_KD]
        assert row["d"].attribute == str(int(np.argmax(cosines)))
    assert by_nearest(np.zeros((1, 8)), {"d": {"a": keys_KD[0], "b": keys_KD[1]}})[0]["d"].attribute == UNASSIGNED


def test_criteria_are_lists_or_words_and_anything_else_is_named():
    assert check_words({"d": ["A b", "c"]}) == {"d": {"a b": ("A b",), "c": ("c",)}}
    for bad in (
        {},
        {"d": ["a"]},
        {"d": "ab"},
        {"d": ["a", "none"]},
        {"d": {"a": [], "b": ["b"]}},
        {"d": ["a", ""]},
        {"d": [1, 2]},
    ):
        with pytest.raises(ValueError):
            check_words(bad)


def test_long_texts_are_cut_at_words():
    assert clipped("one two three", 2) == "one two …"
    assert clipped("one  two", 2) == "one  two"
    with pytest.raises(ValueError, match="votes 0"):
        Voting(votes=0)
