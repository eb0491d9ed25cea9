"""Slots by byte spans: covering cuts, brackets, alignment of an output, words to mark."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shiftscope.core.edits.edit_slots import (
    PHANTOM,
    REPLACED,
    STOP_WORDS,
    UNCHANGED,
    Cut,
    Spelled,
    Target,
    aligned,
    judged,
    marked,
    targets_of,
)

PASSAGE = "The quick brown fox jumps over a sleeping dog, naïve as February is long today."
TABLE = [b" the", b" [", b" cat", b" ]", b"cat", b" c", b"at", b"at ]", None, b" ", b"[", b"]", b" dog", b"[c"]
THE, OPEN, CAT, CLOSE, BARE, C, AT, AT_CLOSE, END, BLANK, TIGHT, SHUT, DOG, GLUED = range(14)


def targets(*words):
    return [Target(PASSAGE.index(word), PASSAGE.index(word) + len(word)) for word in words]


def slot(*ids):
    """The slot between the brackets of ids."""
    spelled = Spelled.of(ids, TABLE)
    return spelled.slot(spelled.text.index(b"[") + 1, spelled.text.index(b"]"))


def test_a_cut_is_the_smallest_run_of_ids_that_covers_the_word_with_the_blank_in_front():
    found = slot(THE, OPEN, CAT, CLOSE)
    assert (found.ids, found.pieces, found.crosses) == ((CAT,), (b" cat",), False)
    assert found.word == b"cat"
    assert slot(THE, OPEN, BLANK, BARE, BLANK, SHUT).ids == (BLANK, BARE)  # the blank behind belongs to the bracket


def test_an_id_that_reaches_beyond_the_slot_counts_with_its_part_inside_and_is_marked():
    found = slot(OPEN, C, AT_CLOSE)
    assert found.pieces == (b" c", b"at")
    assert found.crosses
    assert judged(slot(OPEN, C, AT, CLOSE), found) == PHANTOM  # other ids
    assert judged(found, found) == UNCHANGED
    glued = slot(GLUED, AT, CLOSE)
    assert (glued.pieces, glued.whole) == ((b"c", b"at"), (False, True))


def test_the_three_outcomes():
    reference = slot(OPEN, CAT, CLOSE)
    assert judged(reference, slot(THE, THE, OPEN, CAT, CLOSE)) == UNCHANGED
    assert judged(reference, slot(OPEN, C, AT, CLOSE)) == PHANTOM
    assert judged(reference, slot(OPEN, BARE, CLOSE)) == PHANTOM
    assert judged(reference, slot(OPEN, DOG, CLOSE)) == REPLACED


def test_an_empty_slot_and_one_with_a_special_token_cannot_be_scored():
    assert slot(OPEN, CLOSE) == "the slot is empty"
    assert slot(OPEN, BLANK, BLANK, SHUT) == "the slot is empty"
    assert slot(OPEN, CAT, END, CLOSE) == "a special token stands in the slot"
    assert slot(OPEN, END, CAT, CLOSE) == "a special token stands in the slot"
    assert isinstance(slot(END, OPEN, CAT, CLOSE, END), Cut)


def test_ids_of_another_vocabulary_are_refused():
    with pytest.raises(ValueError, match="id 14 is none of the 14"):
        Spelled.of([0, 14], TABLE)


@pytest.mark.parametrize("brackets", ["spaced", "tight"])
def test_a_copy_of_the_marked_passage_is_aligned_where_it_was_marked(brackets):
    some = targets("quick", "sleeping", "February")
    text, places = marked(PASSAGE, some, brackets)
    assert [text.encode()[a:b].strip() for a, b in places] == [b"quick", b"sleeping", b"February"]
    assert aligned(text.encode(), PASSAGE, some) == places


def test_an_output_is_read_by_the_words_around_each_slot():
    some = targets("brown", "sleeping")
    good = "Sure:\nThe  quick [ red ] fox jumps over a\n[tired] dog, naïve as February is long today."
    assert [good.encode()[a:b] for a, b in aligned(good.encode(), PASSAGE, some)] == [b" red ", b"tired"]


@pytest.mark.parametrize(
    ("output", "why"),
    [
        ("The quick red fox jumps over a tired dog, naïve as", "the brackets are lost"),
        ("The quick [ red fox jumps over a tired dog, naïve as", "the brackets are lost"),
        ("The quick [ red [ ] fox jumps over a tired dog", "the brackets are lost"),
        ("The quick [ red ] cat jumps over a tired dog", "the words after the slot have changed"),
        ("A fast [ red ] fox jumps over a tired dog", "the words before the slot are not in the output"),
        ("", "the words before the slot are not in the output"),
    ],
)
def test_what_cannot_be_scored_says_why(output, why):
    assert aligned(output.encode(), PASSAGE, targets("brown", "sleeping"))[0] == why


def test_one_lost_slot_does_not_lose_the_others():
    output = "The quick brown fox jumps over a [ tired ] dog, naïve as February".encode()
    first, second = aligned(output, PASSAGE, targets("brown", "sleeping"))
    assert first == "the brackets are lost"
    assert output[slice(*second)] == b" tired "


@given(st.lists(st.floats(0, 1, exclude_max=True), min_size=15, max_size=15), st.floats(0.01, 1))
def test_marked_words_are_words_that_are_no_stop_words_and_stand_apart(draws, share):
    found = targets_of(PASSAGE, share, draws)
    words = [PASSAGE[target.begin : target.end] for target in found]
    assert found
    assert all(word.isalpha() and word.lower() not in STOP_WORDS for word in words)
    places = [len(PASSAGE[: target.begin].split()) for target in found]
    assert all(b - a > 3 for a, b in pairwise(places))
    assert 0 not in places
    assert len(PASSAGE.split()) - 1 not in places


def test_identifiers_and_hyphenated_words_are_not_marked():
    text = "see os.path and self_made or well-known (parenthesised) in plain words here"
    found = {
        text[t.begin : t.end]
        for seed in range(40)
        for t in targets_of(text, 1.0, [(7 * i + seed) % 11 for i in range(20)])
    }
    assert found == {"plain", "words"}
