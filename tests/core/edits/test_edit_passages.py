"""Passages: the right length, no brackets of their own, and a prompt that fits."""

import pytest

from shiftscope.core.edits.edit_passages import Frame, first_words, fitted, passages_of, texts_of

TEXT = "alpha bravo charlie delta echo foxtrot golf hotel india juliet kilo lima mike november oscar papa"
WORDS = TEXT.split()


def frame(words=(10, 50), room=1000, most=None, share=0.1):
    return Frame(words, share, 0, lambda passage: len(passage.split()), room, most)


def test_a_passage_is_the_longest_stretch_without_brackets():
    found, notes = passages_of([f"{TEXT} [x] one two", "too short"], frame())
    assert [passage.text for passage in found] == [TEXT]
    assert notes == ["1 of 2 texts are too short for a passage"]


def test_a_passage_that_does_not_fit_is_cut_after_a_word():
    found, notes = passages_of([TEXT], frame(room=13))
    assert found[0].text == " ".join(WORDS[:13])
    assert notes == ["1 of 1 passages were cut short to fit the context"]
    assert fitted(TEXT, frame(room=5)) == ""
    assert first_words("a  b\nc d", 3) == "a  b\nc"


def test_a_choice_of_words_depends_on_seed_and_passage_alone():
    alone, together = passages_of([TEXT], frame())[0], passages_of([TEXT, TEXT], frame())[0]
    assert alone[0] == together[0]
    assert together[0].targets != together[1].targets
    assert len(passages_of([TEXT] * 9, frame(most=4))[0]) == 4


def test_texts_without_a_passage_are_refused_with_the_reason():
    with pytest.raises(ValueError, match="none of 1 texts gives a passage: 0 have no stretch of 10 words"):
        passages_of([TEXT], frame(room=5))


def test_the_default_texts_are_prose_without_brackets():
    texts = texts_of(None, None)
    assert len(texts) > 50
    assert not any(sign in text for text in texts for sign in "[]|")
    assert sum(len(text.split()) >= 100 for text in texts) > 20
