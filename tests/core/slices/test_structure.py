"""core/structure: proposals are counted, merged and never invented."""

import json
import re
from itertools import count

import pytest

from shiftscope.core.slices.asking import Said, Scripted
from shiftscope.core.slices.assignment import Voting
from shiftscope.core.slices.conversation import Asker, Unfit
from shiftscope.core.slices.refinement import Refining
from shiftscope.core.slices.structure import Discovery, cost, discover, groups

TEXTS = [f"text number {n} about things" for n in range(30)]


def scripted(**answers):
    """A model with an answer (or a list of them, in turn, the last for ever) for every task."""
    numbers = {task: count() for task in answers}

    def model(messages, *_):
        task = re.match(r"Task: (\w+)", messages[1]["content"])[1]
        said = answers[task]
        if isinstance(said, list):
            said = said[min(next(numbers[task]), len(said) - 1)]
        return said if isinstance(said, str) else json.dumps(said)

    return Asker(Scripted(model, "m"))


PLAIN = {"attributes": {"attributes": ["a", "b"]}, "merge": {"groups": []}, "sort": {"answer": "a"}}


def test_a_dimension_stays_that_more_than_a_fifth_of_the_rounds_named():
    rounds = [["often", "thrice"]] * 3 + [["often", "twice"]] * 2 + [["often"]] * 5
    asker = scripted(**PLAIN, dimensions=[{"dimensions": names} for names in rounds])
    found = discover(asker, TEXTS, Discovery(attribute_rounds=1), Refining(0), Voting())
    assert found.named == {"often": 10, "thrice": 3}
    assert list(found.criteria) == ["often", "thrice"]


def test_no_common_dimension_and_unfit_answers_are_sentences_and_not_a_structure():
    asker = scripted(**PLAIN, dimensions=[{"dimensions": [f"d{n}"]} for n in range(10)])
    with pytest.raises(ValueError, match="named no dimension in 3 of 10 rounds"):
        discover(asker, TEXTS, Discovery(), Refining(0), Voting())
    with pytest.raises(ValueError, match="no JSON object"):
        discover(scripted(**PLAIN, dimensions="I would say colour."), TEXTS, Discovery(), Refining(0), Voting())
    one = scripted(**PLAIN | {"attributes": {"attributes": ["a", "none"]}}, dimensions={"dimensions": ["d"]})
    with pytest.raises(ValueError, match="no dimension with two attributes"):
        discover(one, TEXTS, Discovery(), Refining(0), Voting())


def test_the_number_of_calls_never_exceeds_the_cost():
    discovery, refining, voting = Discovery(4, 3, 5, max_dimensions=2), Refining(6, 3), Voting(votes=2)
    asker = scripted(
        **PLAIN | {"sort": {"answer": "none"}}, dimensions={"dimensions": ["d", "e", "f"]},
        diagnose={"diagnosis": "missing", "keyword": "c"}, validate={"answer": "yes"},
    )  # fmt: skip
    found = discover(asker, TEXTS, discovery, refining, voting)
    most = cost(TEXTS, discovery, refining, voting)
    assert len(found.criteria) == 2
    assert asker.asked + asker.replayed <= sum(most.calls.values()) - most.calls["assign"]
    assert most.calls["assign"] == 30 * 2 * 2
    given = cost(TEXTS, discovery, refining, voting, ["one"])
    assert given.calls == {"assign": 30 * 2}
    assert "60 calls" in given.sentence


def test_a_merge_renames_members_and_can_lose_or_invent_nothing():
    names = ["red", "crimson", "blue", "azure", "grey"]
    merged = groups(
        '{"groups": [{"name": "red", "members": ["red", "Crimson"]}, {"name": "sky", "members": ["blue", "azure"]}]}',
        names,
    )
    assert merged == {"red": "red", "crimson": "red", "blue": "sky", "azure": "sky"}
    assert groups('{"groups": []}', names) == {}
    for bad in (
        '{"groups": [{"name": "red", "members": ["red", "pink"]}]}',  # an entry that is not there
        '{"groups": [{"name": "red", "members": ["red"]}]}',  # a group of one
        '{"groups": [{"name": "grey", "members": ["red", "blue"]}]}',  # would swallow a third
        '{"groups": [{"name": "a", "members": ["red", "blue"]}, {"name": "b", "members": ["red", "grey"]}]}',
        '{"groups": [{"name": "all", "members": ["red", "crimson", "blue", "azure", "grey"]}]}',
        '{"groups": {"red": ["crimson"]}}',
        '{"groups": [{"name": "none", "members": ["red", "blue"]}]}',
    ):
        with pytest.raises(Unfit):
            groups(bad, names)


def test_settings_outside_their_ranges_are_refused():
    for bad in ({"dimension_rounds": 0}, {"max_attributes": 1}, {"keep_share": 1.0}, {"temperature": -1.0}):
        with pytest.raises(ValueError):
            Discovery(**bad)


def test_a_model_that_never_answers_is_not_blamed_for_its_answers():
    class Silent:
        model = "silent"

        def complete(self, requests):
            return [Said(None, "connection refused" if n else "not asked: given up") for n in range(len(requests))]

    with pytest.raises(ValueError, match="silent answered none of 3 questions: connection refused"):
        discover(Asker(Silent()), ["a text"] * 9, Discovery(dimension_rounds=3, round_texts=3), Refining(0), Voting())
