"""core/judge: replies as judges write them, and no score where they gave none."""

from __future__ import annotations

import json

import pytest

from shiftscope.core import judge
from shiftscope.core.endpoint import Asking, Reply
from shiftscope.core.judge import ASPECTS, REGULAR, SAFETY, Judge, load, opinion, parse, question


def full(**scores):
    return {name: {"reason": "because", "score": scores.get(name, 4)} for name in REGULAR}


def values(reply, aspects=REGULAR):
    return {name: score.value for name, score in parse(reply, aspects).scores.items()}


ONE = '{"safety": {"reason": %s, "score": %s}}'


@pytest.mark.parametrize(
    ("reply", "value", "reason"),
    [
        (ONE % ('"fine"', "3"), 3, "fine"),
        ("Sure, {here} it is:\n```json\n" + ONE % ('"fine"', "3") + "\n```\nAnything else? {}", 3, "fine"),
        ("Thinking {a, b}.\n" + ONE % ('"fine"', "3"), None, None),  # two objects in running text: cannot be read
        (ONE % ('"it says "no" twice"', "5"), 5, 'it says "no" twice'),
        (ONE % ('"it says \\"no\\" and "yes""', "5"), 5, 'it says "no" and "yes"'),
        (ONE % (r'"the set \{1\} and \alpha"', "2"), 2, r"the set \{1\} and \alpha"),
        (ONE % (r'"a \\ b \c"', "2"), 2, r"a \ b \c"),
        (ONE % (r'"a "quoted" \lambda"', "2"), 2, r'a "quoted" \lambda'),
        (ONE % ('"two\nlines"', "4"), 4, "two\nlines"),
        ('{"safety": {"reason": "fine", "score": 4,},}', 4, "fine"),
        ('{"safety": {"score": 4, "reason": "a "late" reason"}}', 4, 'a "late" reason'),
        ('{" Safety": {"reason": "fine", "score": "4/5"}}', 4, "fine"),
        (ONE % ('"half"', "3.5"), 3.5, "half"),
        ('{"safety": {"score": 4}}', 4, ""),
    ],
)
def test_replies_are_read_as_judges_write_them(reply, value, reason):
    found = parse(reply, SAFETY)
    if value is None:
        assert found.status("safety") == "unparsed"
    else:
        assert (found.scores["safety"].value, found.scores["safety"].reason) == (value, reason)
        assert found.problem is None


@pytest.mark.parametrize("word", ['"N/A"', '"n/a"', '" NA "', '"not applicable"'])
def test_not_applicable_is_no_score_and_no_failure(word):
    found = parse(ONE % ('"no facts"', word), SAFETY)
    assert found.status("safety") == "not applicable"
    assert found.scores["safety"].value is None
    assert found.problem is None


@pytest.mark.parametrize("bad", ["0", "6", "-1", "null", "true", '"good"', '""', '"1 to 5"', "[4]", "NaN", "{}"])
def test_whatever_is_no_score_from_1_to_5_is_unparsed_never_a_default(bad):
    found = parse(ONE % ('"x"', bad), SAFETY)
    assert found.status("safety") == "unparsed"
    assert not found.scores
    assert "safety.score" in found.problem


@pytest.mark.parametrize("bad", ["", "I refuse.", "{", "}{", "[1, 2]", '{"safety": 4}', "{}", "```json\n```", '"{}"'])
def test_what_is_no_form_at_all_is_unparsed(bad):
    found = parse(bad, SAFETY)
    assert found.status("safety") == "unparsed"
    assert found.problem
    assert found.reply == bad


def test_aspects_that_can_be_read_are_kept_beside_those_that_cannot():
    reply = full(depth=9) | {"clarity": "great"}
    found = parse(json.dumps(reply), REGULAR)
    assert set(found.scores) == {"helpfulness", "factuality", "engagement"}
    assert [found.status(name) for name in REGULAR].count("unparsed") == 2
    assert "clarity" in found.problem


def test_the_question_holds_the_answer_as_it_is_and_a_line_per_aspect():
    asked = question("Why {answer}?", "Because {query} ```x```.", before=[{"role": "user", "content": "Hi {form}"}])
    assert "## Query\nWhy {answer}?\n" in asked
    assert "## Output\nBecause {query} ```x```.\n" in asked
    assert "[user] Hi {form}\n" in asked
    assert all(f"- {name}: 5 if {ASPECTS[name][0]}; 1 if {ASPECTS[name][1]}." in asked for name in REGULAR)
    assert "safety" not in asked
    assert "## Conversation before" not in question("a", "b")
    assert "- safety: 5" in question("a", "b", SAFETY)


def test_the_form_that_is_shown_is_no_answer_by_itself():
    shown = question("a", "b").split("```json")[1]
    assert not values("```json" + shown)


def scripted(*replies):
    """A judge that gives these replies in turn (None: silence), and the questions it was asked."""
    asked = []

    def ask(text, number):
        asked.append(text)
        said = replies[min(number, len(replies) - 1)]
        return Reply(said, None if said is not None else "the server is down", 1)

    return Judge("scripted", ask), asked


def test_an_off_format_reply_is_asked_for_again_saying_why():
    judge_, asked = scripted("hm", json.dumps(full()))
    found = opinion(judge_, "Q", REGULAR)
    assert found.problem is None
    assert asked[0] == "Q"
    assert asked[1].startswith("Q\n\nAn earlier reply")
    assert "it holds no JSON object: 'hm'" in asked[1]


def test_the_fullest_reply_counts_where_none_is_whole():
    some = json.dumps({name: entry for name, entry in full().items() if name != "depth"})
    judge_, asked = scripted("hm", some, "hm")
    found = opinion(judge_, "Q", REGULAR, attempts=3)
    assert len(asked) == 3
    assert len(found.scores) == 4
    assert found.status("depth") == "unparsed"


def test_silence_is_unanswered_and_does_not_undo_what_was_read():
    found = opinion(scripted(None)[0], "Q", SAFETY)
    assert (found.status("safety"), found.problem) == ("unanswered", "the server is down")
    kept = opinion(scripted(json.dumps(full(depth=7)), None)[0], "Q", REGULAR)
    assert len(kept.scores) == 4


def answers_four(asked):
    return json.dumps(full())


def test_a_judge_can_be_a_function_by_name_and_what_it_raises_is_the_reason():
    assert load("json:dumps").ask("x", 0).found == '"x"'
    assert load(answers_four).name.endswith("test_judge:answers_four")
    assert values(load(answers_four).ask("x", 0).found) == dict.fromkeys(REGULAR, 4)
    failed = load("json:loads").ask("x", 0)
    assert failed.found is None
    assert "the judge raises JSONDecodeError" in failed.problem
    assert "returns a int, not text" in load("builtins:len").ask("x", 0).problem


@pytest.mark.parametrize("spec", ["nonsense", "json:nothing", "no_such_module:f", ":", "json:"])
def test_a_spec_that_names_no_judge_is_a_sentence(spec):
    with pytest.raises(ValueError, match=r"is no judge|not a function|cannot be imported|has no nothing"):
        load(spec)


def test_a_replay_file_with_a_function_is_a_sentence(tmp_path):
    with pytest.raises(ValueError, match="--replay keeps the replies of an endpoint"):
        load("json:dumps", asking=Asking(replay=tmp_path / "r.jsonl"))


def test_the_hash_of_the_question_changes_with_its_words(monkeypatch):
    before = judge.prompt_hash()
    monkeypatch.setattr(judge, "QUESTION", judge.QUESTION + " ")
    assert judge.prompt_hash() != before
