from __future__ import annotations

import numpy as np
import pytest
import torch

from shiftscope.core import checkpoints, corpus
from shiftscope.core.keys.listing import ListFormat
from shiftscope.core.keys.mining import Navigation
from shiftscope.core.parts import Parts
from shiftscope.generate.navigate import (
    LAWS,
    average_precision,
    mapk,
    navigate,
    short_answer,
    summarise,
)
from shiftscope.zoo import lists

WORDS = ListFormat(before="{prompt}", item=" {item}", opening="", stop=" ")
ONE_BY_ONE = Navigation(rounds=10, per_round=1, max_item_tokens=4, control=True, survey=100)


def mined(model, navigation=ONE_BY_ONE, n=40, **settings):
    settings = {"prompts": lists.prompts(n, seed=0), "verifier": lists.verify, "form": WORDS} | settings
    return navigate(model, navigation=navigation, **settings)


@pytest.fixture(scope="module")
def base():
    return checkpoints.load("lists-base")


@pytest.fixture(scope="module")
def result(base):
    return mined(base)


def after(result, context, items, title="Does listing free the probability?"):
    """Mean mass on explored keys (or on right ones not explored) once so many items are listed."""
    panel = next(panel for panel in result.panels if panel.title == title)
    rows = {(row["context"], round(row["explored"])): row["mass"] for row in panel.table.to_pylist()}
    return rows[context, items]


def gates(result):
    """arXiv 2410.02284, the remedy for lists, against the plain ranking and against another prompt's items."""
    assert result["precision_at_10_navigate"] >= result["precision_at_10_plain"] + 0.10
    assert result.figures["precision_gain_over_plain"].low > 0
    assert result["mapk_at_10_navigate"] > result["mapk_at_10_plain"]
    assert result["dot_explored_navigate"] < result["dot_explored_plain"]
    assert result["dot_unexplored_right_navigate"] > result["dot_unexplored_right_plain"]
    assert result["dot_unexplored_right_navigate"] > result["dot_unexplored_right_control"]
    assert after(result, "navigation", 3) <= 0.75 * after(result, "another prompt's items", 3)
    assert result["mass_explored_navigate"] <= 0.85 * result["mass_explored_control"]
    assert result["mass_unexplored_right_navigate"] > 1.25 * result["mass_unexplored_right_control"]


def test_navigation_beats_the_plain_ranking_by_what_is_listed_not_by_the_list(result):
    gates(result)


def test_three_items_at_a_time_do_as_well(base):
    three = mined(base, Navigation(rounds=4, per_round=3, max_item_tokens=4, control=True, survey=0))
    frame = three.table.to_pandas().query("probe <= 10").groupby("arm")["reward"].mean()
    assert frame["navigate"] >= frame["plain"] + 0.10


@pytest.mark.slow
def test_the_gates_hold_for_another_seed_of_the_recipe(tmp_path):
    gates(mined(str(lists.train(tmp_path / "lists", seed=1))))


def test_one_round_of_navigation_is_the_plain_ranking(base):
    once = mined(base, Navigation(rounds=1, per_round=10, max_item_tokens=4), n=4)
    frame = once.table.to_pandas()
    tokens = {arm: rows["token_id"].tolist() for arm, rows in frame.groupby("arm")}
    assert tokens["navigate"] == tokens["plain"]
    assert once["precision_gain_over_plain"] == 0


def test_every_arm_makes_the_same_number_of_probes(result):
    counts = result.table.to_pandas().query("arm != 'survey'").groupby(["arm", "text"]).size()
    assert set(counts) == {10}
    assert result["distinct_items_navigate"] == 10
    assert result["failed_share_navigate"] == 0


def test_the_result_does_not_depend_on_the_order_of_its_rows(base):
    texts = corpus.read(lists.prompts(5, seed=0))
    found = mined(base, n=5)
    order = np.random.default_rng(0).permutation(found.table.num_rows)
    again = summarise(found.table.take(order), LAWS.empty_table(), texts, navigation=ONE_BY_ONE)
    assert {name: found.figures[name] for name in again.figures} == dict(again.figures)


def test_an_interrupted_run_goes_on_and_gives_the_same_result(base, tmp_path):
    asked = []

    def breaks(prompt, answer, reference):
        asked.append(prompt)
        if len(asked) > 250:
            raise KeyboardInterrupt
        return lists.verify(prompt, answer, reference)

    breaks.__qualname__ = "verify"
    with pytest.raises(KeyboardInterrupt):
        mined(base, n=4, verifier=breaks, parts=Parts(tmp_path))
    again = mined(base, n=4, parts=Parts(tmp_path, resume=True))
    assert again.summary()["figures"] == mined(base, n=4).summary()["figures"]


def test_without_a_verifier_items_are_mined_and_their_rightness_is_absent_with_a_reason(base):
    plain = mined(base, Navigation(rounds=3, per_round=2, max_item_tokens=4), n=3, verifier=None)
    assert not any("precision" in name or "right" in name for name in plain.figures)
    assert any("no verifier" in note for note in plain.notes)
    assert any("no control" in note for note in plain.notes)
    assert plain.table["reward"].null_count == plain.table.num_rows


def test_thoughts_are_whole_ways_whose_short_answers_vote(docs):
    def first_path_is_right(prompt, answer, reference):
        return float(answer == reference)

    rows = [{"prompt": "What is the length of the list [1, 2, 3]?", "reference": "3"}] * 2
    settings = Navigation(mode="thoughts", rounds=3, max_item_tokens=24)
    found = navigate(docs[0], prompts=rows, verifier=first_path_is_right, navigation=settings)
    frame = found.table.to_pandas()
    assert frame.groupby(["text", "arm"]).size().eq(3).all()
    assert (frame["answer"] == frame["answer"].map(short_answer)).all()
    assert not frame["item"].str.contains("#").any()
    assert {"vote_accuracy_navigate", "vote_accuracy_plain", "path_accuracy_navigate"} <= found.figures.keys()
    mine = frame.query("arm == 'navigate' and text == 0").sort_values("probe")
    assert mine["token_id"].nunique() == 3


def vote(answers, right="7"):
    rows = [
        {"text": 0, "arm": arm, "probe": n + 1, "round": n, "token_id": n, "item": f"way {n}", "failed": False,
         "repeated": False, "reward": float(answer == right), "answer": answer, "left_out": 0, "masked": 0}
        for arm in ("navigate", "plain") for n, answer in enumerate(answers)
    ]  # fmt: skip
    import pyarrow as pa

    from shiftscope.generate.navigate import PROBES

    texts = corpus.read([{"prompt": "?"}])
    table = pa.Table.from_pylist(rows, schema=PROBES)
    return summarise(table, LAWS.empty_table(), texts, navigation=Navigation(mode="thoughts", rounds=len(answers)))


@pytest.mark.parametrize(("answers", "right"), [("7 3 7 5", 1), ("3 3 7 5", 0), ("7 3 3 7", 1), ("3 7 7 3", 0)])
def test_the_majority_wins_and_ties_go_to_the_way_found_first(answers, right):
    found = vote(answers.split())
    assert found["vote_accuracy_navigate"] == right
    assert found["path_accuracy_navigate"] == answers.split().count("7") / 4


def test_short_answers_are_the_first_number_or_choice():
    said = {"is 1,234.5 apples": "1234.5", "-7": "-7", "choice C": "C", "CAT": "", "none": "", "**(B)** 4": "B"}
    assert {text: short_answer(text) for text in said} == said


def test_mapk_is_the_mean_of_running_precisions_and_average_precision_the_textbooks():
    rewards = [1.0, 0.0, 1.0, 0.0]
    assert mapk(rewards) == pytest.approx((1 + 1 / 2 + 2 / 3 + 2 / 4) / 4)
    assert average_precision(rewards) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision([0.0, 0.0]) == 0


def test_the_model_is_left_as_it_was(base):
    ids = torch.tensor([base.tokenizer("birds :")["input_ids"]])
    before = base.model(input_ids=ids).logits
    mined(base, n=2)
    assert torch.equal(base.model(input_ids=ids).logits, before)


def test_a_control_without_another_prompt_is_a_sentence(base):
    with pytest.raises(ValueError, match="give at least 2 prompts"):
        mined(base, n=1)
