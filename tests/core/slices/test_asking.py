"""core/asking: four backends answer behind one call; none is invented."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from shiftscope.core.checkpoints import load
from shiftscope.core.endpoint import Asking
from shiftscope.core.slices.asking import Local, Replayed, Request, Said, Scripted, open_backend
from shiftscope.core.slices.conversation import Asker

HELLO = ({"role": "system", "content": "You are brief."}, {"role": "user", "content": "Say a colour."})


def shout(messages, temperature, sample, seed):
    return f"{messages[-1]['content'].upper()} {temperature} {sample} {seed}"


@pytest.fixture
def server():
    """A loopback server that answers a chat with how often it was asked, and refuses the word 'forbidden'."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(body)
            bad = "forbidden" in body["messages"][-1]["content"]
            said = {"error": {"message": "not this"}} if bad else {
                "choices": [{"message": {"content": f"seed {body['seed']}"}, "finish_reason": "stop"}]
            }  # fmt: skip
            raw = json.dumps(said).encode()
            self.send_response(400 if bad else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_):
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
    yield f"endpoint:http://127.0.0.1:{running.server_port}/v1#tiny", asked
    running.shutdown()
    running.server_close()


def test_no_backend_is_a_sentence_that_names_the_four():
    for spec in (None, "", "gpt", "endpoint:", "function:nowhere"):
        with pytest.raises(ValueError, match=r"function:module:function"):
            open_backend(spec)


def test_a_function_gets_the_whole_request_and_must_return_text():
    requests = [Request(HELLO, 0.5, sample, 7) for sample in (0, 1)]
    assert open_backend(shout).complete(requests) == [Said(f"SAY A COLOUR. 0.5 {n} 7") for n in (0, 1)]
    with pytest.raises(ValueError, match="returned NoneType, not text"):
        Scripted(lambda *_: None, "m").complete(requests)


def test_a_function_is_found_in_a_module_or_a_file(tmp_path):
    (tmp_path / "mine.py").write_text("def say(messages, temperature, sample, seed):\n    return 'blue'\n")
    assert open_backend(f"function:{tmp_path / 'mine.py'}:say").complete([Request(HELLO)]) == [Said("blue")]
    with pytest.raises(ValueError, match="has no think; it has say"):
        open_backend(f"function:{tmp_path / 'mine.py'}:think")
    with pytest.raises(ValueError, match="cannot be imported"):
        open_backend("function:no.such.module:say")


def test_a_module_in_the_working_folder_is_found_as_a_file_is(tmp_path, monkeypatch):
    (tmp_path / "asked_here.py").write_text("def say(messages, temperature, sample, seed):\n    return 'blue'\n")
    monkeypatch.chdir(tmp_path)
    for spec in ("function:asked_here:say", "function:asked_here.py:say"):
        assert open_backend(spec).complete([Request(HELLO)]) == [Said("blue")]


def test_an_endpoint_gets_chat_messages_and_a_seed_for_each_sample(server):
    spec, asked = server
    backend = open_backend(spec, asking=Asking(pause_s=0.0, concurrency=2))
    said = backend.complete([Request(HELLO, 0.7, sample, 10) for sample in range(3)])
    assert [one.text for one in said] == ["seed 10", "seed 11", "seed 12"]
    assert sorted(body["seed"] for body in asked) == [10, 11, 12]
    assert asked[0]["messages"] == [dict(message) for message in HELLO]
    assert backend.model == "tiny"


def test_a_refused_request_is_a_record_and_the_others_are_answered(server):
    backend = open_backend(server[0], asking=Asking(pause_s=0.0))
    bad = ({"role": "user", "content": "forbidden"},)
    first, second = backend.complete([Request(bad), Request(HELLO)])
    assert first.text is None
    assert "not this" in first.problem
    assert second.text == "seed 0"


def test_a_server_that_is_down_ends_the_run_in_one_sentence_and_keeps_what_was_said(tmp_path):
    backend = open_backend("endpoint:http://127.0.0.1:9/v1#m", asking=Asking(pause_s=0.0, tries=1, timeout_s=1.0))
    asker = Asker(backend, tmp_path / "answers.jsonl")
    with pytest.raises(ValueError, match=r"in a row without answer: .* cannot be reached.*kept in"):
        asker.ask([Request(HELLO, sample=n) for n in range(20)])


def test_a_local_model_draws_the_same_whatever_the_batch_and_differs_by_sample():
    checkpoint = load("styles-sft")
    questions = [({"role": "user", "content": f"What colour is {name}?"},) for name in ("Rex", "Luna", "Milo")]
    requests = [Request(q, 1.0, sample, 3, 12) for q in questions for sample in (0, 1)]
    together, alone = Local(checkpoint, 6).complete(requests), Local(checkpoint, 1).complete(requests)
    assert together == alone
    assert all(said.text and said.problem is None for said in together)
    greedy = [Request(questions[0], 0.0, sample, 3, 12) for sample in (0, 1)]
    first, second = Local(checkpoint, 2).complete(greedy)
    assert first == second


def test_a_prompt_that_leaves_no_room_is_a_record():
    checkpoint = load("styles-sft")
    long = ({"role": "user", "content": "colour " * 5000},)
    first, second = Local(checkpoint).complete([Request(long), Request(HELLO, max_tokens=4)])
    assert "leaves no room" in first.problem
    assert second.text is not None


def test_a_replay_file_answers_what_it_holds_and_nothing_else(tmp_path):
    path = tmp_path / "answers.jsonl"
    Asker(open_backend(shout), path).ask([Request(HELLO, 0.7, 0), Request(HELLO, 0.7, 1)])
    replayed = open_backend(f"replay:{path}")
    assert isinstance(replayed, Replayed)
    assert [one.text for one in replayed.complete([Request(HELLO, 0.7, 1)])] == ["SAY A COLOUR. 0.7 1 0"]
    for other in (
        Request(HELLO, 0.6, 1),
        Request(HELLO, 0.7, 2),
        Request(HELLO, 0.7, 1, seed=1),
        Request(HELLO[1:], 0.7, 1),
    ):
        with pytest.raises(ValueError, match=r"no answer of .* to 1 of 1 requests"):
            replayed.complete([other])
    with pytest.raises(ValueError, match="holds no recorded answers"):
        open_backend(f"replay:{tmp_path / 'none.jsonl'}")
    path.write_text('{"key": "a"}\n')
    with pytest.raises(ValueError, match="line 1 is no recorded answer"):
        open_backend(f"replay:{path}")


def test_a_replay_file_of_two_models_asks_for_a_name(tmp_path):
    path = tmp_path / "answers.jsonl"
    for name in ("one", "two"):
        Asker(Scripted(shout, name), path).ask([Request(HELLO)])
    with pytest.raises(ValueError, match="answers of one, two: name one"):
        open_backend(f"replay:{path}")
    assert open_backend(f"replay:{path}#two").complete([Request(HELLO)])[0].replayed
