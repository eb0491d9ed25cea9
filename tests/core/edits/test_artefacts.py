"""Artefacts: the paper's eight examples, at least five more of each kind, and what is no phantom at all."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shiftscope.core.edits.artefacts import (
    ACRONYM,
    DETACHMENT,
    INTRA,
    LABELS,
    MORPHOLOGICAL,
    NAME,
    NEWLINE,
    SHIFT,
    TAIL,
    TWIN,
    Affixes,
    classify,
    peel,
    stripped,
)

PAPER = [
    (" February", "February", SHIFT),
    (" Saturday", " | Saturday", DETACHMENT),
    (" However", "\n|However", NEWLINE),
    (" unbelievable", "un|bel|ievable", INTRA),
    ("Dorm|er", "D|orm|er", NAME),
    ("repaid", "re|paid", MORPHOLOGICAL),
    ("HIV", "H|IV", ACRONYM),
    ("rights", "right|s", TAIL),
]
MORE = [
    (SHIFT, "word", " word"),
    (SHIFT, " un|usual", "un|usual"),
    (SHIFT, " word", "  word"),
    (SHIFT, " word", "\u00a0word"),
    (SHIFT, "▁word", "word"),
    (SHIFT, " HIV", "HIV"),
    (DETACHMENT, " word", " |word"),
    (DETACHMENT, " |word", " word"),
    (DETACHMENT, "word", " |word"),
    (DETACHMENT, " word", " word| "),
    (DETACHMENT, " un|usual", " |un|usual"),
    (DETACHMENT, "▁|word", "▁word"),
    (NEWLINE, " word", "\nword"),
    (NEWLINE, " word", "\t|word"),
    (NEWLINE, "word", "\r\n|word"),
    (NEWLINE, "\n|word", " word"),
    (NEWLINE, " |word", " |\n|word"),
    (NEWLINE, " word", " word|\n"),
    (INTRA, " house", " ho|use"),
    (INTRA, " ho|use", " hou|se"),
    (INTRA, " h|o|u|s|e", " house"),
    (INTRA, "naïve", "na|ïve"),
    (INTRA, "iPhone", "iPh|one"),
    (INTRA, " x9y", " x|9y"),
    (NAME, " Paris", " Par|is"),
    (NAME, " Par|is", " P|aris"),
    (NAME, "Zürich", "Z|ürich"),
    (NAME, " Ayoobi", " Ay|o|obi"),
    (NAME, " Ay|oobi", " Ayoobi"),
    (NAME, " Houston", " Hou|ston"),
    (MORPHOLOGICAL, " unlike", " un|like"),
    (MORPHOLOGICAL, " walking", " walk|ing"),
    (MORPHOLOGICAL, " kind|ness", " kindness"),
    (MORPHOLOGICAL, " careful", " care|ful"),
    (MORPHOLOGICAL, " preview", " pre|view"),
    (MORPHOLOGICAL, " Unlike", " Un|like"),
    (ACRONYM, " NASA", " NA|SA"),
    (ACRONYM, " NA|SA", " N|ASA"),
    (ACRONYM, " N|A|T|O", " NATO"),
    (ACRONYM, " USS", " US|S"),
    (ACRONYM, " UN", " U|N"),
    (ACRONYM, " ÄÖ", " Ä|Ö"),
    (TAIL, " cats", " cat|s"),
    (TAIL, " cat|s", " cats"),
    (TAIL, " dog's", " dog|'s"),
    (TAIL, " dog’s", " dog|’s"),
    (TAIL, " box|es", " boxes"),
    (TAIL, " Ro|berts", " Ro|bert|s"),
    (TWIN, " word", " word"),
]  # fmt: skip


def pieces(shown):
    return [piece.encode() for piece in shown.split("|")]


@pytest.mark.parametrize(("before", "after", "label"), PAPER)
def test_the_papers_own_examples_get_the_papers_labels(before, after, label):
    assert classify(pieces(before), pieces(after)).label == label


@pytest.mark.parametrize(("label", "before", "after"), MORE)
def test_more_cases_of_every_kind(label, before, after):
    assert classify(pieces(before), pieces(after)).label == label


def test_every_kind_of_the_eight_has_at_least_five_more_cases():
    assert all(sum(label == known for label, *_ in MORE) >= 5 for known in LABELS if known != TWIN)


@pytest.mark.parametrize(
    ("before", "after"), [(" word", " words"), (" word", " Word"), ("HIV", "H|V"), (" a|b", " b|a"), ("word", " ")]
)
def test_a_true_replacement_is_no_phantom(before, after):
    with pytest.raises(ValueError, match="are different words"):
        classify(pieces(before), pieces(after))


def test_what_happens_at_once_is_said_beside_the_primary_label():
    assert classify(pieces(" HIV"), pieces("H|IV")).also == (SHIFT,)
    assert classify(pieces(" Roberts"), pieces("Robert|s")).also == (NAME, SHIFT)
    assert classify(pieces(" Unlike"), pieces("\n|Un|like")).also == (NAME, NEWLINE)
    assert classify(pieces(" word"), pieces(" wo|rd")).also == ()


def test_a_blank_by_another_id_is_a_blank_artefact_and_not_a_new_cut():
    """Byte fallback: <0x20> and the piece for a space spell the same byte, <0x0A> and a newline piece too."""
    assert classify(pieces(" |word"), pieces(" |word")).label == DETACHMENT
    assert classify(pieces("\n|word"), pieces("\n|word")).label == NEWLINE


def test_a_character_that_is_cut_into_bytes_is_a_new_cut_of_its_word():
    whole = "naïve".encode()
    assert classify([whole], [whole[:3], whole[3:]]).label == INTRA


def test_affixes_are_data():
    german = Affixes(prefixes=("ver",), suffixes=("ung",))
    assert classify(pieces("verkaufen"), pieces("ver|kaufen")).label == INTRA
    assert classify(pieces("verkaufen"), pieces("ver|kaufen"), german).label == MORPHOLOGICAL
    assert classify(pieces("walking"), pieces("walk|ing"), german).label == INTRA


BLANKS = st.sampled_from([b"", b" ", b"\n", b"  ", b"\t", "\u00a0".encode(), "▁".encode()])
WORDS = st.text(alphabet="abcDEs'é", min_size=1, max_size=8).map(str.encode)


@given(BLANKS, WORDS, BLANKS, st.lists(st.integers(1, 12), max_size=5))
def test_peeling_gives_every_byte_back_and_leaves_no_blank_around_the_word(lead, word, trail, cuts):
    text = lead + word + trail
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    peeled = peel([text[a:b] for a, b in pairwise(places)])
    assert peeled.lead + b"".join(peeled.core) + peeled.trail == text
    assert b"".join(peeled.core) == word == stripped(text)


@given(BLANKS, BLANKS, WORDS, st.lists(st.integers(1, 12), max_size=4), st.lists(st.integers(1, 12), max_size=4))
def test_every_pair_of_spellings_of_one_word_has_one_label_of_the_list(lead, other, word, cuts, more):
    def cut(text, places):
        ends = sorted({0, len(text), *(place for place in places if place < len(text))})
        return [text[a:b] for a, b in pairwise(ends)]

    found = classify(cut(lead + word, cuts), cut(other + word, more))
    assert found.label in LABELS
    assert found.label not in found.also
