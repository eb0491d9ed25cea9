"""compare answers: scores with their intervals, pairs with their test, and nothing scored that the judge did not score."""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from scipy.stats import permutation_test

from shiftscope.compare.answers import Judging, answers, sign_flip_p_value, summarise
from shiftscope.core.endpoint import Asking
from shiftscope.core.judge import ASPECTS, REGULAR
from shiftscope.core.parts import Parts


def asked_about(question):
    """Output and aspects of a judge's question."""
    output = question.split("## Output\n")[1].split("\n\n## Evaluate")[0]
    return output, [name for name in ASPECTS if f"- {name}: 5 if" in question]


def reply(scores):
    return (
        "```json\n" + json.dumps({name: {"reason": "so", "score": score} for name, score in scores.items()}) + "\n```"
    )


def by_words(question):
    """A judge that gives a point per word of the output, and 5 for safety unless it speaks of poison."""
    output, aspects = asked_about(question)
    points = min(5, max(1, len(output.split())))
    return reply({name: (1 if "poison" in output else 5) if name == "safety" else points for name in aspects})


def records(*texts, **more):
    return [{"prompt": f"question {number}", "answer": text} | more for number, text in enumerate(texts)]


SHORT, LONG = records("a", "a b", "a b"), records("a b c", "a b c d", "a b c d e")


def test_means_are_those_of_the_judges_scores():
    found = answers(SHORT, judge=by_words)
    for aspect in REGULAR:
        figure = found.figures[aspect]
        assert figure.value == pytest.approx(5 / 3)
        assert (figure.n, figure.unit) == (3, "points")
        assert figure.low <= figure.value <= figure.high
    assert found["answer_words"] == pytest.approx(5 / 3)
    assert found["scored"] == 15
    assert "safety" not in found.figures


def test_safety_is_asked_apart_of_what_is_marked():
    given = [*records("a b c"), {"prompt": "how?", "answer": "with poison", "safety": True}]
    asked = []

    def judge(question):
        asked.append(asked_about(question)[1])
        return by_words(question)

    found = answers(given, judge=judge)
    assert asked == [list(REGULAR), ["safety"]]
    assert (found["safety"], found["helpfulness"]) == (1, 3)
    assert found.figures["helpfulness"].n == 1
    both = answers(given, judge=judge, judging=Judging(safety="all"))
    assert both.figures["safety"].n == both.figures["helpfulness"].n == 2
    assert both["safety"] == 3


def test_not_applicable_unparsed_and_unanswered_are_counted_apart_and_are_no_scores():
    def judge(question):
        output, aspects = asked_about(question)
        if output == "none":
            return reply(dict.fromkeys(aspects, "N/A"))
        if output == "odd":
            return "I would rather not."
        if output == "fails":
            raise RuntimeError("out of memory")
        return reply(dict.fromkeys(aspects, 2))

    found = answers(records("fine", "none", "odd", "fails", "fine"), judge=judge)
    for status, answers_of in (("scored", 2), ("not_applicable", 1), ("unparsed", 1), ("unanswered", 1)):
        assert found[status] == answers_of * len(REGULAR), status
    assert found["helpfulness"] == 2
    assert found.figures["helpfulness"].n == 2
    rows = found.table.to_pandas().set_index(["id", "aspect"])
    assert rows["score"].isna().sum() == 15
    assert rows.loc[("2", "depth"), "reply"] == "I would rather not."
    assert "out of memory" in rows.loc[("3", "depth"), "problem"]
    assert found.table.filter(found.table["id"].to_numpy(zero_copy_only=False) == "1")["problem"].null_count == 5
    assert any("within 1.5 and 3.5" in note for note in found.notes)  # (2 + 2 + 1 + 1) / 4 and (2 + 2 + 5 + 5) / 4
    assert any("out of memory" in note for note in found.notes)


def test_a_judge_that_says_nothing_gives_no_mean_and_a_reason():
    def silent(question):
        raise OSError("gone")

    found = answers(SHORT, judge=silent)
    assert not set(REGULAR) & found.figures.keys()
    assert found["unanswered"] == 15
    assert "None of 15 scores" in found.verdict[0]
    assert any("helpfulness has no mean" in note for note in found.notes)


def test_two_files_are_compared_prompt_by_prompt():
    found = answers(SHORT, LONG, judge=by_words)
    assert found["helpfulness_b_minus_a"] == pytest.approx(np.mean([2, 2, 3]))
    assert found["helpfulness_b_better_share"] == 1
    assert found["helpfulness_p_value"] == pytest.approx(
        2 / 2**3
    )  # all signs alike: the smallest that three pairs give
    assert found["answer_words_b"] == 4
    assert "No difference beyond chance" in found.verdict[0]
    many = [
        answers(records(*[text] * 40), records(*[other] * 40), judge=by_words)
        for text, other in (("a", "a b"), ("a b", "a"))
    ]
    assert many[0].verdict[0].startswith("B is better in helpfulness (by 1 points)")
    assert many[1].verdict[0].startswith("A is better in helpfulness")


def test_answers_compared_with_themselves_do_not_differ():
    found = answers(LONG, LONG, judge=by_words)
    assert found["depth_b_minus_a"] == 0
    assert (found["depth_p_value"], found["depth_equal_share"]) == (1, 1)


def test_pairs_go_by_id_whatever_the_order_and_partners_that_are_missing_are_named():
    a = [{"id": f"q{n}", "prompt": f"question {n}", "answer": "a " * n} for n in (1, 2, 3)]
    b = [record | {"answer": record["answer"] + "b"} for record in reversed(a[1:])]
    found = answers(a, b, judge=by_words)
    assert found["clarity_b_minus_a"] == 1
    assert found.figures["clarity_b_minus_a"].n == 2
    assert "1 answers of a and 0 of b have no partner and are left out" in found.notes


def test_a_pair_with_a_score_on_one_side_only_is_left_out_of_the_difference():
    def judge(question):
        return "?" if "a b c d e" in question else by_words(question)

    found = answers(SHORT, LONG, judge=judge)
    assert found.figures["depth_b_minus_a"].n == 2
    assert (found.figures["depth_a"].n, found.figures["depth_b"].n) == (3, 2)


@pytest.mark.parametrize("n", [5, 200])
def test_the_sign_flip_test_is_that_of_scipy(n):
    gaps = np.random.default_rng(n).normal(0.12, 1, n)
    expected = permutation_test(
        (gaps,), np.mean, permutation_type="samples", n_resamples=20_000, rng=np.random.default_rng(0)
    )
    found = sign_flip_p_value(gaps, np.arange(n), permutations=20_000, seed=0)
    assert found == pytest.approx(
        expected.pvalue, abs=1e-9 if n == 5 else 0.015
    )  # four standard errors of 20 000 draws


def test_samples_of_one_prompt_are_no_independent_evidence():
    gaps, alone = np.ones(12), np.arange(12)
    assert sign_flip_p_value(gaps, alone, permutations=10_000, seed=0) == pytest.approx(2 / 2**12)
    assert sign_flip_p_value(gaps, alone // 6, permutations=10_000, seed=0) == pytest.approx(2 / 2**2)


def test_the_result_does_not_depend_on_the_order_of_its_rows():
    found = answers(SHORT, LONG, judge=by_words)
    order = np.random.default_rng(0).permutation(len(found.table))
    assert dict(summarise(found.table.take(order)).figures) == dict(found.figures)


def test_an_interrupted_run_goes_on_where_it_was(tmp_path):
    given = records(*["a b"] * 80)
    whole, asked = answers(given, judge=by_words), []

    def breaks(question):
        asked.append(question)
        if len(asked) == 70:
            raise KeyboardInterrupt
        return by_words(question)

    breaks.__qualname__ = "by_words"
    breaks.__module__ = by_words.__module__
    with pytest.raises(KeyboardInterrupt):
        answers(given, judge=breaks, parts=Parts(tmp_path))
    again = answers(given, judge=breaks, parts=Parts(tmp_path, resume=True))
    assert again.table.equals(whole.table)
    assert len(asked) == 70 + (80 - 64)  # the two parts of 32 that were whole are not asked again


@pytest.fixture
def server():
    """A loopback endpoint that answers with `by_words`; `script` may hold other replies (or statuses) to give first."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            question = body["messages"][0]["content"]
            self.server.asked.append(question)
            said = self.server.script.pop(0) if self.server.script else by_words(question)
            status = said if isinstance(said, int) else 200
            raw = json.dumps({"choices": [{"message": {"content": said}, "finish_reason": "stop"}]}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_):
            pass

    started = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    started.asked, started.script = [], []
    started.url = f"http://127.0.0.1:{started.server_port}/v1#judge"
    threading.Thread(target=started.serve_forever, args=(0.01,), daemon=True).start()
    yield started
    started.shutdown()
    started.server_close()


QUICK = {"pause_s": 0.0, "timeout_s": 5.0}


def test_an_endpoint_judges_as_a_function_does_and_is_not_asked_twice(server, tmp_path):
    asking = Asking(**QUICK, replay=tmp_path / "replay.jsonl")
    expected = answers(SHORT, LONG, judge=by_words)
    found = answers(SHORT, LONG, judge=server.url, asking=asking)
    assert dict(found.figures) == dict(expected.figures)
    assert len(server.asked) == 6
    again = answers(SHORT, LONG, judge=server.url, asking=asking)
    assert again.table.equals(found.table)
    assert len(server.asked) == 6


def test_an_endpoint_that_fails_or_babbles_is_asked_again(server):
    server.script += [503, "Well, it depends.", 429]
    found = answers(SHORT, judge=server.url, asking=Asking(**QUICK, concurrency=1))
    assert found["scored"] == 15
    assert len(server.asked) == 6
    assert "An earlier reply to this could not be read" in server.asked[2]


def test_what_an_endpoint_never_scores_is_recorded_and_asked_again_by_the_next_run_alone(server, tmp_path):
    asking = Asking(**QUICK, concurrency=1, replay=tmp_path / "replay.jsonl", tries=2)
    server.script += [500, 500]
    found = answers(SHORT, judge=server.url, asking=asking)
    assert (found["unanswered"], found["scored"]) == (5, 10)
    assert len(server.asked) == 4
    later = answers(SHORT, judge=server.url, asking=asking)
    assert (later["unanswered"], later["scored"]) == (0, 15)
    assert len(server.asked) == 5


def test_an_endpoint_that_is_down_loses_nothing():
    found = answers(SHORT, LONG, judge="http://127.0.0.1:9/v1#judge", asking=Asking(**QUICK, tries=1))
    assert len(found.table) == 30
    assert found["unanswered_a"] == found["unanswered_b"] == 15
    assert any("cannot be reached" in note or "not asked" in note for note in found.notes)
    assert found.verdict == ["No answer was scored on both sides: nothing can be compared."]


def test_earlier_turns_are_shown_to_the_judge():
    messages = [{"role": r, "content": c} for r, c in (("user", "Hi"), ("assistant", "Hello"), ("user", "Why?"))]
    asked = []

    def judge(question):
        asked.append(question)
        return by_words(question)

    answers([{"messages": messages, "answer": "So."}], judge=judge)
    assert re.search(r"## Conversation before\n\[user\] Hi\n\n\[assistant\] Hello\n\n## Query\nWhy\?\n", asked[0])


@pytest.mark.parametrize(
    ("a", "b", "sentence"),
    [
        ([{"prompt": "x"}], None, "record 1 has no `answer`"),
        ([{"prompt": "x", "answer": "y", "id": "p"}], [{"prompt": "x", "answer": "y", "id": "q"}], "nothing pairs"),
        (records("a"), [{"prompt": "other", "answer": "y"}], "pairs need the same prompt"),
        (records("a", "b", id="same"), records("a"), "occurs twice in a"),
    ],
)
def test_bad_files_are_a_sentence(a, b, sentence):
    with pytest.raises(ValueError, match=sentence):
        answers(a, b, judge=by_words)


def test_aspects_are_chosen_from_the_regular_ones():
    assert set(answers(SHORT, judge=by_words, judging=Judging(aspects=("depth",))).table["aspect"].to_pylist()) == {
        "depth"
    }
    for aspects in ((), ("safety",), ("depth", "depth")):
        with pytest.raises(ValueError, match="choose from helpfulness"):
            Judging(aspects=aspects)
