from __future__ import annotations

import pytest

from shiftscope.core import checkpoints, completion, corpus
from shiftscope.core.keys import listing
from shiftscope.core.keys.listing import LISTS, ListFormat
from shiftscope.core.keys.mining import Miner, Navigation, survey, walk
from shiftscope.zoo import lists

WORDS = ListFormat(before="{prompt}", item=" {item}", opening="", stop=" ")


@pytest.fixture(scope="module")
def base():
    return checkpoints.load("lists-base")


def miner(checkpoint, form=WORDS, **settings):
    settings = {"rounds": 5, "per_round": 2, "max_item_tokens": 4} | settings
    return Miner(checkpoint, Navigation(**settings), form, "plain", 64)


def text(n=0):
    return corpus.read(lists.prompts(4, seed=0))[n]


def test_no_first_token_is_tried_twice_and_each_is_the_best_one_left(base):
    found = walk(miner(base), text(), "navigate", lambda _, own: own)
    tokens = [probe["token_id"] for probe in found.probes]
    assert len(set(tokens)) == len(tokens) == 10
    closed = completion.cannot_open(base, " ")
    for number, law in enumerate(found.laws):
        tried = {probe["token_id"] for probe in found.probes if probe["round"] < number}
        order, _ = completion.ranked(law.logits_V, closed)
        best = [token for token in order.tolist() if token not in tried][:2]
        assert best == [probe["token_id"] for probe in found.probes if probe["round"] == number]


def test_what_is_listed_is_what_was_found_before(base):
    found = walk(miner(base), text(), "navigate", lambda _, own: own)
    for number, (law, before) in enumerate(zip(found.laws, found.before, strict=True)):
        assert base.tokenizer.decode(law.ids) == lists.prompt(text().prompt.split()[0], before)
        assert before == [probe["item"] for probe in found.probes if probe["round"] < number]


def test_listing_nothing_is_the_plain_ranking(base):
    mine = miner(base)
    plain = walk(mine, text(), "plain", lambda _, own: [])
    order, _ = completion.ranked(plain.laws[0].logits_V, mine.closed_V)
    assert [probe["token_id"] for probe in plain.probes] == order[:10].tolist()
    assert [probe["rank"] for probe in plain.probes] == list(range(1, 11))


@pytest.mark.parametrize("regular", [True, False])
def test_items_are_completed_in_the_plain_context_or_after_the_list(docs, regular):
    checkpoint = docs[0]
    mine = miner(checkpoint, LISTS, rounds=3, per_round=2, max_item_tokens=12, regular=regular)
    asked = corpus.read([{"prompt": "Name the built-in types."}])[0]
    found = walk(mine, asked, "navigate", lambda _, own: own)
    for probe in found.probes:
        law = found.laws[0 if regular else probe["round"]]
        prefix = completion.read(checkpoint, law.ids)
        answer = completion.complete(checkpoint, prefix, [probe["token_id"]], max_tokens=12, stop='"')[0]
        assert probe["item"] == answer.text.strip()
        assert probe["failed"] == (answer.ended == "length" or not answer.text.strip())


def test_failures_and_repeats_are_never_listed(docs):
    mine = miner(docs[0], LISTS, rounds=4, per_round=6, max_item_tokens=10)
    found = walk(mine, corpus.read([{"prompt": "Name a module."}])[0], "navigate", lambda _, own: own)
    kept = [probe["item"] for probe in found.probes if not probe["failed"] and not probe["repeated"]]
    assert found.before[-1] == kept[: len(found.before[-1])]
    assert len({listing.normalised(item) for item in kept}) == len(kept)
    never = walk(miner(docs[0], ListFormat(stop="|||")), text(), "navigate", lambda _, own: own)
    assert all(probe["failed"] for probe in never.probes)
    assert never.before[-1] == []


def test_a_list_beyond_the_context_is_rotated_and_counted(base):
    found = walk(miner(base, rounds=36, per_round=1), text(), "navigate", lambda _, own: own)
    assert found.probes[-1]["left_out"] > 0
    assert found.probes[-1]["listed"] + found.probes[-1]["left_out"] == 35
    capped = walk(miner(base, rounds=6, per_round=1, most_listed=2), text(), "navigate", lambda _, own: own)
    assert [probe["listed"] for probe in capped.probes] == [0, 1, 2, 2, 2, 2]


def test_excluding_by_text_is_excluding_by_id_where_texts_are_unique(base):
    by_id, by_text = (
        walk(miner(base, exclude=how), text(), "navigate", lambda _, own: own) for how in ("id", "string")
    )
    assert by_id.probes == by_text.probes


def test_the_survey_goes_on_where_the_plain_ranking_stopped(base):
    mine = miner(base, survey=30)
    plain = walk(mine, text(), "plain", lambda _, own: [])
    more = survey(mine, text(), plain)
    assert [probe["rank"] for probe in more] == list(range(11, 31))
    assert not {probe["token_id"] for probe in more} & {probe["token_id"] for probe in plain.probes}


def test_defaults_are_the_papers_and_wrong_settings_are_sentences():
    lists_, thoughts = Navigation(), Navigation(mode="thoughts")
    assert (lists_.n_rounds, lists_.at_once, lists_.longest, lists_.budget) == (10, 10, 64, 100)
    assert (thoughts.n_rounds, thoughts.at_once, thoughts.longest, thoughts.budget) == (4, 1, 256, 4)
    with pytest.raises(ValueError, match="rounds is 0"):
        Navigation(rounds=0)
    with pytest.raises(ValueError, match="lists or thoughts"):
        Navigation(mode="poems")  # type: ignore[arg-type]
