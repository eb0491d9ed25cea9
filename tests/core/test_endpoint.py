"""core/endpoint: whatever a server does, a request ends in a record, and none is made twice."""

import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from shiftscope.core.endpoint import Asking, Endpoint, parse_address

GOOD = {"choices": [{"text": "four", "finish_reason": "stop"}]}
QUICK = {"pause_s": 0.0, "timeout_s": 5.0, "concurrency": 1}


class Script:
    """A loopback server that gives the answers of a list in turn, the last one for ever after."""

    def __init__(self, *answers):
        self.answers, self.requests = list(answers), []
        script = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                script.requests.append((self.path, body))
                self.reply(script.answers.pop(0) if len(script.answers) > 1 else script.answers[0])

            def do_GET(self):
                self.reply({"data": [{"id": "tiny"}]})

            def reply(self, answer):
                status, said, delay_s = answer if isinstance(answer, tuple) else (200, answer, 0)
                time.sleep(delay_s)
                raw = said if isinstance(said, bytes) else json.dumps(said).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_):
                pass

        class Quiet(ThreadingHTTPServer):
            def handle_error(self, request, client_address):
                pass  # a client that timed out is gone

        self.server = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def serve():
    started = []

    def start(*answers):
        started.append(Script(*answers))
        return started[-1]

    yield start
    for script in started:
        script.stop()


def test_texts_ids_and_messages_go_where_they_belong(serve):
    chat = {"choices": [{"message": {"content": "four"}, "finish_reason": "stop"}]}
    script = serve(GOOD, GOOD, chat)
    endpoint = Endpoint(script.url, Asking(**QUICK))
    messages = [{"role": "user", "content": "two and two?"}]
    replies = [endpoint.complete("two and two is", seed=3), endpoint.complete([1, 2]), endpoint.complete(messages)]
    assert [reply.found.text for reply in replies] == ["four"] * 3
    assert [path for path, _ in script.requests] == ["/v1/completions", "/v1/completions", "/v1/chat/completions"]
    assert script.requests[0][1] == {
        "model": "tiny", "prompt": "two and two is", "max_tokens": 512, "temperature": 0.0, "seed": 3,
    }  # fmt: skip
    assert script.requests[1][1]["prompt"] == [1, 2]
    assert script.requests[2][1]["messages"] == messages


def test_what_passes_is_tried_again_and_what_does_not_pass_is_recorded(serve):
    for bad in ((500, b"oops", 0), (429, {"error": "busy"}, 0), b"not json{", {"choices": []}):
        reply = Endpoint(f"{serve(bad, GOOD).url}#m", Asking(**QUICK)).complete("q")
        assert (reply.found.text, reply.tries) == ("four", 2)
    script = serve({"choices": []})
    reply = Endpoint(f"{script.url}#m", Asking(tries=3, **QUICK)).complete("q")
    assert reply.found is None
    assert "no choices" in reply.problem
    assert len(script.requests) == reply.tries == 3


def test_a_refusal_is_final(serve):
    script = serve((401, {"error": {"message": "no key"}}, 0))
    reply = Endpoint(f"{script.url}#m", Asking(**QUICK)).complete("q")
    assert "refuses (401)" in reply.problem
    assert len(script.requests) == 1


def test_a_slow_server_is_given_up_on_in_time(serve):
    script = serve((200, GOOD, 0.5))
    started = time.monotonic()
    reply = Endpoint(f"{script.url}#m", Asking(timeout_s=0.1, tries=2, pause_s=0.0)).complete("q")
    assert "within 0.1 s" in reply.problem
    assert time.monotonic() - started < 3


def test_a_server_that_is_down_costs_a_few_tries_and_every_request_is_recorded(serve):
    script = serve(GOOD)
    script.stop()
    endpoint = Endpoint(f"{script.url}#m", Asking(tries=2, pause_s=0.0, give_up_after=4, concurrency=1))
    replies = endpoint.map(endpoint.complete, ["a", "b", "c", "d"])
    assert [reply.found for reply in replies] == [None] * 4
    assert "cannot be reached" in replies[0].problem
    assert "not asked" in replies[3].problem
    assert sum(reply.tries for reply in replies) == 4


def test_without_a_name_a_server_that_is_down_is_a_record_too(serve):
    script = serve(GOOD)
    script.stop()
    assert "cannot be reached" in Endpoint(script.url, Asking(tries=1, pause_s=0.0)).complete("q").problem


def test_no_request_is_made_twice(serve, tmp_path):
    script = serve(GOOD, {"choices": []}, GOOD)
    replay = tmp_path / "answers" / "replay.jsonl"
    asking = Asking(replay=replay, tries=1, **QUICK)
    first = Endpoint(script.url, asking)
    assert first.complete("a").found.text == "four"
    assert first.complete("b").found is None  # off-format: written down, but asked again next time
    assert first.complete("a").replayed
    again = Endpoint(script.url, asking)
    assert again.complete("a").replayed
    assert not again.complete("b").replayed
    assert not again.complete("a", salt=1).replayed  # a further sample
    assert len(script.requests) == 4
    script.stop()
    offline = Endpoint(script.url, asking)
    assert offline.complete("a").found.text == "four"  # the model's name is replayed as well
    assert offline.complete("c").found is None
    assert sum("problem" in json.loads(line) for line in replay.read_text().splitlines()) == 1


def test_a_replay_file_that_was_cut_off_loses_its_last_line_only(serve, tmp_path):
    script = serve(GOOD)
    replay = tmp_path / "replay.jsonl"
    asking = Asking(replay=replay, **QUICK)
    Endpoint(f"{script.url}#m", asking).complete("a\u2028b")
    replay.write_bytes(replay.read_bytes() + b'{"key": "12')
    assert Endpoint(f"{script.url}#m", asking).complete("a\u2028b").replayed
    replay.write_text("{}\n")
    with pytest.raises(ValueError, match="line 1 is no recorded answer"):
        Endpoint(f"{script.url}#m", asking)


def test_extra_fields_are_left_out_for_servers_that_refuse_them(serve):
    echo = {"choices": [{"logprobs": {"tokens": ["a", "b", "c"], "token_logprobs": [None, -1.0, -2.0]}}]}
    script = serve((400, {"error": "unknown field"}, 0), echo, echo)
    endpoint = Endpoint(f"{script.url}#m", Asking(**QUICK))
    assert endpoint.score([1, 2]).found[1].logp == -1.0
    assert endpoint.score([1, 2]).found[1].logp == -1.0
    assert ["return_token_ids" in body for _, body in script.requests] == [True, False, False]


@pytest.mark.parametrize("address", ["localhost:8000", "ftp://x", "http://", "file.jsonl"])
def test_what_is_no_address_is_said(address):
    with pytest.raises(ValueError, match="no endpoint"):
        parse_address(address)


def test_an_address_may_name_the_model():
    assert parse_address("http://h:1/v1/#org/model") == ("http://h:1/v1", "org/model")
    assert parse_address("https://h/v1") == ("https://h/v1", None)


def test_the_missing_package_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ValueError, match=r"shiftscope\[judge\]"):
        Endpoint("http://localhost:1/v1")


def test_settings_out_of_range_are_named():
    with pytest.raises(ValueError, match="tries 0"):
        Asking(tries=0)
