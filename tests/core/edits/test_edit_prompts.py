"""Prompts in ids: references with and without brackets, and records that come from elsewhere."""

import pytest

from shiftscope.core.bytes import token_bytes
from shiftscope.core.edits import edit_prompts
from shiftscope.core.edits.edit_prompts import Passage, parsed, prompt, prompt_ids
from shiftscope.core.edits.edit_slots import Target

TEXT = "Return the value of an object or a name."
PASSAGE = Passage(
    0, TEXT, tuple(Target(TEXT.index(word), TEXT.index(word) + len(word)) for word in ("value", "object"))
)


@pytest.fixture(scope="module")
def frame(docs):
    return prompt_ids(docs[0], "Edit: {passage}\n", "plain"), token_bytes.read(docs[0].tokenizer)


def test_brackets_that_stand_off_a_word_keep_its_ids_and_tight_ones_do_not(docs, frame):
    spaced, tight = (prompt(*frame, PASSAGE, brackets) for brackets in ("spaced", "tight"))
    for reference in spaced.references:
        assert reference.bracketed.ids == reference.plain.ids == tuple(docs[0].tokenizer.encode(f" {reference.word}"))
    for reference in tight.references:
        assert reference.bracketed.ids != reference.plain.ids
        assert reference.bracketed.word == reference.plain.word == reference.word.encode()


def test_a_prompt_opens_as_the_model_was_trained_and_its_slot_follows_a_copy(docs, frame):
    one = prompt(*frame, PASSAGE, "spaced")
    assert one.ids[0] == docs[0].tokenizer.bos_token_id
    written = docs[0].tokenizer.decode(one.context[1:])
    assert written == "Edit: Return the [ value ] of an [ object ] or a name.\nReturn the ["


def test_words_in_brackets_are_read_back_from_a_record():
    passage, places = parsed("Return the [ value ] of an [object] or a [] name.", 0)
    assert passage.text == "Return the value of an object or a [] name."
    assert [passage.text[t.begin : t.end] for t in passage.targets] == ["value", "object"]
    assert places == [(12, 19), (28, 34)]


def test_a_prompt_that_does_not_hold_its_passage_is_refused(docs, frame):
    ids_of, tokens = frame
    record = {
        "passage": "Return the [ value ] of it.",
        "output_ids": [1],
        "prompt_ids": tokens.encode("Something else."),
    }
    with pytest.raises(ValueError, match="does not hold the passage"):
        edit_prompts.recorded(record, 0, tokens, ids_of)
