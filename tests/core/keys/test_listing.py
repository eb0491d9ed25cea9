from __future__ import annotations

import pytest

from shiftscope.core import checkpoints, corpus
from shiftscope.core.corpus import Text
from shiftscope.core.keys import listing
from shiftscope.core.keys.listing import LISTS, THOUGHTS, ListFormat

WORDS = ListFormat(before="{prompt}", item=" {item}", opening="", stop=" ")


@pytest.fixture(scope="module")
def base():
    return checkpoints.load("lists-base")


def shown(checkpoint, items, form=WORDS, **settings):
    ids, dropped = listing.context_ids(checkpoint, Text(0, "0", "birds :"), items, form, **settings)
    return checkpoint.tokenizer.decode(ids), dropped


def test_items_stand_in_a_numbered_quoted_list_with_the_next_one_opened(docs):
    text, dropped = shown(docs[0], ["the {robin}", "wren"], LISTS)
    assert text.endswith('birds :\n\nAnswer:\n1. "the {robin}"\n2. "wren"\n3. "')
    assert dropped == 0


def test_ways_of_solving_stand_under_headings(docs):
    text, _ = shown(docs[0], [" Count."], THOUGHTS)
    assert "### Way 1:\n- **Step 1:** Count.\n\n### Way 2:\n- **Step 1:**" in text


def test_a_list_that_outgrows_the_context_loses_its_oldest_items(base):
    items = [f"ba{ending}" for ending in ("dan", "dek", "dil")] * 12
    ids, dropped = listing.context_ids(base, Text(0, "0", "birds :"), items, WORDS, room=2)
    assert len(ids) == base.context_length - 2
    assert dropped == len(items) - (len(ids) - 2)
    assert base.tokenizer.decode(ids).split()[2:] == items[dropped:]


def test_the_newest_items_are_kept_when_their_number_is_capped(base):
    assert shown(base, ["badan", "badek", "badil"], most=2) == ("birds : badek badil", 1)


def test_the_list_follows_the_prompt_as_the_answer_when_a_template_frames_it(docs):
    ids, _ = listing.context_ids(docs[0], Text(0, "0", "Name birds."), ["wren"], LISTS, template="frame")
    frame = corpus.context_ids(docs[0], Text(0, "0", "Name birds."), "frame")
    assert ids[: len(frame)] == frame
    assert docs[0].tokenizer.decode(ids[len(frame) :]) == '1. "wren"\n2. "'


def test_spellings_of_one_item_are_one_item():
    assert {listing.normalised(item) for item in (" The  Wren", "the wren.", '"The\nWren"')} == {"the wren"}
    assert listing.normalised("wren") != listing.normalised("wrens")


@pytest.mark.parametrize("wrong", [{"before": "Answer:"}, {"item": "{n}."}, {"opening": "{x}"}, {"stop": ""}])
def test_a_list_without_its_places_is_a_sentence(wrong):
    with pytest.raises(ValueError, match=f"the list's {next(iter(wrong))} is"):
        ListFormat(**wrong)
