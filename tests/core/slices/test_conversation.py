"""core/conversation: answers are kept, checked, and asked for again at most twice."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shiftscope.core.slices.asking import Request, Said, Scripted
from shiftscope.core.slices.conversation import CHUNK, Asker, Question, Unfit, json_object, one_of, phrase, phrases

ASK = ({"role": "user", "content": "Answer."},)


class Lines:
    """A model that gives its lines in turn and remembers what it was asked."""

    def __init__(self, *lines):
        self.lines, self.heard = list(lines), []

    def __call__(self, messages, temperature, sample, seed):
        self.heard.append(messages)
        return self.lines.pop(0) if len(self.lines) > 1 else self.lines[0]


def colour(said):
    return one_of(said, "answer", ("red", "blue"))


def test_an_unfit_answer_is_sent_back_with_what_is_wrong_and_then_taken():
    model = Lines("I think purple", '{"answer": "Purple"}', 'Sure: {"answer": " Blue. "}')
    asker = Asker(Scripted(model, "m"))
    found = asker.check([Question(Request(ASK), colour)])[0]
    assert (found.found, found.tries, asker.unfit) == ("blue", 3, 2)
    assert [message["role"] for message in model.heard[1]] == ["user", "assistant", "user"]
    assert "no JSON object" in model.heard[1][2]["content"]


def test_after_three_unfit_answers_the_question_stays_open():
    model = Lines('{"answer": "purple"}')
    found = Asker(Scripted(model, "m")).check([Question(Request(ASK), colour)])[0]
    assert found.found is None
    assert "none of the options" in found.problem
    assert len(model.heard) == 3


def test_equal_requests_are_asked_once_and_different_samples_are_not():
    model = Lines("blue")
    asker = Asker(Scripted(model, "m"))
    asker.ask([Request(ASK), Request(ASK), Request(ASK, sample=1)])
    assert len(model.heard) == 2
    assert (asker.asked, asker.replayed) == (2, 1)


def test_what_was_said_is_kept_chunk_by_chunk_and_a_line_that_was_cut_off_is_asked_again(tmp_path):
    path, model = tmp_path / "answers.jsonl", Lines("blue")
    requests = [Request(ASK, sample=n) for n in range(CHUNK + 3)]

    def stopping(messages, temperature, sample, seed):
        if sample == CHUNK + 1:
            raise KeyboardInterrupt
        return "blue"

    with pytest.raises(KeyboardInterrupt):
        Asker(Scripted(stopping, "m"), path).ask(requests)
    assert len(path.read_text().splitlines()) == CHUNK
    path.write_text(path.read_text()[:-20])
    said = Asker(Scripted(model, "m"), path).ask(requests)
    assert [one.text for one in said] == ["blue"] * (CHUNK + 3)
    assert len(model.heard) == 4
    assert all(json.loads(line)["model"] == "m" for line in path.read_text().splitlines())


def test_a_backend_that_says_nothing_ends_the_run():
    class Silent:
        model = "silent"

        def complete(self, requests):
            return [Said(None, "it is tired") for _ in requests]

    asker = Asker(Silent())
    assert asker.ask([Request(ASK)])[0].problem == "it is tired"
    with pytest.raises(ValueError, match="silent left 8 requests in a row without answer: it is tired"):
        asker.ask([Request(ASK, sample=n) for n in range(1, 8)])


@given(st.text(max_size=40), st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=3))
def test_the_last_object_is_read_whatever_stands_before_it(before, value):
    assert (
        json_object(f"{before.replace('{', '(')} {{broken {json.dumps({'first': 1})} then {json.dumps(value)} .")
        == value
    )


@given(st.text(max_size=80))
def test_text_without_an_object_is_unfit_and_never_an_error_of_another_kind(text):
    with contextlib.suppress(Unfit):
        assert isinstance(json_object(text), dict)


def test_a_keyword_keeps_its_inner_space_and_is_never_a_sentence():
    assert phrase(' "Musical  Instrument." ') == "musical instrument"
    assert phrase("rock, paper") == "rock, paper"
    for bad in ("", "one two three four five", 7, None, '{"a": 1}', "a\nb", "x" * 61):
        with pytest.raises(Unfit):
            phrase(bad)


def test_a_list_of_keywords_has_a_length_and_no_repeats():
    assert phrases('{"of": ["A", "b", "a"]}', "of", most=3) == ("a", "b")
    for bad in ('{"of": []}', '{"of": ["a", "b", "c", "d"]}', '{"of": "a"}', '{"to": ["a"]}', '{"of": ["a", 1]}'):
        with pytest.raises(Unfit):
            phrases(bad, "of", most=3)
