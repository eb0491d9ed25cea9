"""core/refinement: what votes show to be wrong is changed where a second question confirms it, and nothing else."""

import json
import re

import pytest

from shiftscope.core.slices.asking import Scripted
from shiftscope.core.slices.assignment import NONE, Voting
from shiftscope.core.slices.conversation import Asker, Unfit
from shiftscope.core.slices.refinement import WINDOW, Refining, diagnosis, refine

TEXTS = [f"text {n}" for n in range(60)]


def asker(sort, diagnose=None, validate="yes"):
    def model(messages, temperature, sample, seed):
        prompt = messages[1]["content"]
        task = re.match(r"Task: (\w+)", prompt)[1]
        if task == "sort":
            return json.dumps({"answer": sort(sample, re.findall(r"^- (.*)$", prompt, re.MULTILINE))})
        return json.dumps(diagnose if task == "diagnose" else {"answer": validate})

    return Asker(Scripted(model, "m"))


CRITERIA = {"colour": ["red", "crimson", "blue"]}


def test_a_duplicate_is_replaced_and_not_joined():
    def sort(vote, options):
        return "crimson" if vote == 1 and "crimson" in options else "red"

    model = asker(sort, {"diagnosis": "redundant", "keyword": "red"})
    done = refine(model, TEXTS, CRITERIA, Refining(5), Voting(), seed=1)
    assert done.criteria == {"colour": ["red", "blue"]}
    assert done.changes == ["colour: red and crimson became red"]


def test_agreement_that_nothing_fits_adds_what_is_missing_and_never_the_word_none():
    def sort(_, options):
        return "green" if "green" in options else NONE

    done = refine(asker(sort, {"diagnosis": "missing", "keyword": "Green"}), TEXTS, CRITERIA, Refining(40), Voting())
    assert done.criteria == {"colour": ["red", "crimson", "blue", "green"]}
    assert (done.texts, done.sortings, done.covered) == (WINDOW + 1, WINDOW + 1, WINDOW)  # full coverage ended it
    named_none = refine(
        asker(sort, {"diagnosis": "missing", "keyword": "none"}), TEXTS, CRITERIA, Refining(3), Voting()
    )
    assert named_none.criteria == CRITERIA


@pytest.mark.parametrize(
    ("said", "confirmed"),
    [
        ({"diagnosis": "hallucination", "keyword": "x"}, "yes"),
        ({"diagnosis": "hard_case"}, "yes"),
        ({"diagnosis": "missing", "keyword": "green"}, "no"),
        ({"diagnosis": "missing", "keyword": "red"}, "yes"),
        ({"diagnosis": "whatever"}, "yes"),
    ],
)
def test_nothing_changes_without_a_fitting_diagnosis_that_is_confirmed(said, confirmed):
    done = refine(
        asker(lambda n, options: options[0] if n else NONE, said, confirmed), TEXTS, CRITERIA, Refining(3), Voting()
    )
    assert done.criteria == CRITERIA
    assert not done.changes


def test_votes_that_agree_cost_no_diagnosis_and_the_given_criteria_are_left_alone():
    model = asker(lambda *_: "red")
    done = refine(model, TEXTS, CRITERIA, Refining(4, 3), Voting())
    assert model.asked == 4 * 3
    assert done.criteria["colour"] is not CRITERIA["colour"]


def test_a_diagnosis_needs_its_keyword():
    assert diagnosis('{"diagnosis": "hard_case"}') == ("hard_case", "")
    assert diagnosis('{"diagnosis": "missing", "keyword": "Sea Green"}') == ("missing", "sea green")
    for bad in ('{"diagnosis": "missing"}', '{"diagnosis": "missing", "keyword": "none"}', '{"diagnosis": "other"}'):
        with pytest.raises(Unfit):
            diagnosis(bad)
    with pytest.raises(ValueError, match="coverage 0"):
        Refining(coverage=0)
