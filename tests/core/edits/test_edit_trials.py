"""Trials as rows: three outcomes and the unscorable, and a mask that learns from half of the words only."""

import numpy as np
import pyarrow as pa
import pytest

from shiftscope.core.edits.artefacts import SHIFT, Affixes
from shiftscope.core.edits.edit_prompts import Passage, Prompt, Reference
from shiftscope.core.edits.edit_slots import Cut, Target
from shiftscope.core.edits.edit_trials import BYTES, CANONICAL, NONE, TRIALS, forbidden_ids, is_fitted, row_of, shown


def cut(*tokens):
    """A slot of whole tokens: (id, bytes) each."""
    return Cut(tuple(i for i, _ in tokens), tuple(piece for _, piece in tokens), (True,) * len(tokens))


SPACED, BARE, SPLIT, OTHER = cut((7, b" cat")), cut((3, b"cat")), cut((5, b" c"), (6, b"at")), cut((9, b" dog"))
PROMPT = Prompt(Passage(4, "the cat sat", (Target(4, 7),)), (1, 2), (Reference("cat", SPACED, BARE),))


def row(written, label=NONE, **named):
    return row_of(label, PROMPT, 0, 2, written, Affixes(), **named)


@pytest.mark.parametrize(
    ("written", "outcome", "plain"),
    [
        (SPACED, "unchanged", "phantom"),
        (BARE, "phantom", "unchanged"),
        (SPLIT, "phantom", "phantom"),
        (OTHER, "replaced", "replaced"),
    ],
)
def test_an_outcome_is_judged_against_the_bracketed_ids_and_against_those_without_brackets(written, outcome, plain):
    found = row(written)
    assert (found["outcome"], found["outcome_plain"]) == (outcome, plain)
    assert (found["n_before"], found["n_after"]) == (1, len(written.ids))
    assert (found["passage"], found["target"], found["sample"], found["word"]) == (4, 0, 2, "cat")
    assert pa.Table.from_pylist([found], schema=TRIALS).to_pylist() == [found]


def test_only_a_phantom_has_an_artefact():
    assert row(BARE)["artefact"] == SHIFT
    assert row(SPACED)["artefact"] is row(OTHER)["artefact"] is None


def test_what_cannot_be_scored_says_why_and_counts_as_no_outcome():
    found = row("the brackets are lost")
    assert (found["outcome"], found["outcome_plain"], found["why"]) == (
        "unscorable",
        "unscorable",
        "the brackets are lost",
    )
    assert found["n_after"] is None


def test_bytes_are_the_same_word_or_another_and_never_a_phantom():
    assert [row(written, BYTES)["outcome"] for written in (SPACED, BARE, SPLIT, OTHER)] == ["unchanged"] * 3 + [
        "replaced"
    ]


def test_a_prompt_of_one_slot_keeps_the_words_place_in_its_passage():
    assert row(SPACED, place=5)["target"] == 5


def test_the_id_mask_holds_the_new_ids_of_phantoms_of_fitted_words_and_nothing_else():
    fitted, other = (
        next(w for w in ("cat", "dog", "word", "name", "value") if is_fitted(w) == side) for side in (True, False)
    )
    rows = [
        row(BARE) | {"word": fitted},
        row(cut((7, b" cat"), (8, b" "))) | {"word": fitted},  # id 7 is the word's own: it stays allowed
        row(SPLIT) | {"word": other},
        row(SPLIT, CANONICAL) | {"word": fitted},
        row(OTHER) | {"word": fitted},
    ]
    mask = forbidden_ids(pa.Table.from_pylist(rows, schema=TRIALS), 12)
    assert np.flatnonzero(mask).tolist() == [3, 8]


def test_half_of_the_words_are_fitted_whatever_their_case():
    words = [f"word{number}" for number in range(2000)]
    assert sum(map(is_fitted, words)) == pytest.approx(1000, abs=4.5 * 22.4)  # a fair coin's standard deviation is 22.4
    assert all(is_fitted(word) == is_fitted(word.upper()) for word in words)


def test_pieces_are_shown_with_their_cuts_and_blanks():
    assert shown([b" na", "ïve".encode()[:1], b"\n\t"]) == "␣na|\\xc3|↵⇥"
