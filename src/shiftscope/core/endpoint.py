"""A small client of OpenAI-compatible endpoints: completions and chat for judges, log-probabilities for scorers.

Whatever a server does, a request ends in a record: what was asked for, or the sentence that says why it is not there.
Requests are tried again where that can help; good answers are kept in a replay file, so that no request is made twice.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from shiftscope.core.scorers import served
from shiftscope.core.scorers.served import OffFormat, Place

T = TypeVar("T")
Item = TypeVar("Item")
Prompt = str | Sequence[int] | Sequence[Mapping[str, str]]
AGAIN = (408, 409, 425, 429)  # refusals that pass; other 4xx are final
EXTRAS = {"return_token_ids": True, "return_tokens_as_token_ids": True}  # vLLM and SGLang; others ignore or refuse them


@dataclass(frozen=True)
class Asking:
    """How a server is asked.

    timeout_s: for one try. tries: of one request. pause_s: before the second try, doubled before each further one.
    concurrency: requests at once. give_up_after: requests in a row that no server answered, after which the others are
    recorded without being asked. replay: a jsonl file of answers; what it holds is not asked again, new ones are added.
    """

    timeout_s: float = 60.0
    tries: int = 3
    pause_s: float = 1.0
    concurrency: int = 4
    give_up_after: int = 5
    replay: Path | None = None

    def __post_init__(self) -> None:
        if self.timeout_s <= 0 or self.pause_s < 0 or min(self.tries, self.concurrency, self.give_up_after) < 1:
            raise ValueError(
                f"timeout_s {self.timeout_s}, pause_s {self.pause_s}, tries {self.tries}, concurrency {self.concurrency}, "
                f"give_up_after {self.give_up_after}: need a timeout above 0, no negative pause, and at least 1 of the others"
            )


@dataclass(frozen=True)
class Reply(Generic[T]):
    """How a request ended. found: what was asked for, None where `problem` says why not; tries: made (0: replayed)."""

    found: T | None
    problem: str | None
    tries: int

    @property
    def replayed(self) -> bool:
        """Whether it came from the replay file."""
        return self.tries == 0 and self.problem is None


@dataclass(frozen=True)
class Answer:
    """What a server wrote. ended: its finish reason, 'stop' or 'length'."""

    text: str
    ended: str


@dataclass
class Endpoint:
    """A server and the model asked of it; safe to use from several threads.

    address: 'http://host:port/v1', or with '#model' behind it; without, the server's only model is taken.
    The key is read from OPENAI_API_KEY, as the package openai does; servers of one's own need none. It is never recorded.
    Raises ValueError for an address of another form, a replay file that is not one, and where the package is missing.
    """

    address: str
    asking: Asking = field(default_factory=Asking)

    def __post_init__(self) -> None:
        self.url, self._named = parse_address(self.address)
        self._client = _client(self.url, self.asking.timeout_s)
        self._lock, self._model_lock = threading.Lock(), threading.Lock()
        self._replay = _read_replay(self.asking.replay) if self.asking.replay else {}
        self._silent, self._extras = 0, True

    def complete(
        self, prompt: Prompt, *, max_tokens: int = 512, temperature: float = 0.0, salt: int = 0, **more: Any
    ) -> Reply[Answer]:
        """The text that follows a prompt (text or token ids), or the answer to chat messages (a list of role and content).

        salt: tells repeated requests apart in the replay file (further samples, second tries); it is not sent.
        more: further fields of the request, such as `seed`, `stop` or `response_format`.
        """
        chat = not isinstance(prompt, str) and bool(prompt) and isinstance(prompt[0], Mapping)
        path, what = ("/chat/completions", "messages") if chat else ("/completions", "prompt")
        asked = prompt if isinstance(prompt, str) else list(prompt)
        payload = {what: asked, "max_tokens": max_tokens, "temperature": temperature, **more}
        return self._asked(path, payload, lambda body: Answer(*served.text_of(body)), salt)

    def score(self, prompt: str | Sequence[int], *, top_k: int = 20) -> Reply[tuple[Place, ...]]:
        """What the server says of every token of a text, in one request: one Place each, the first without log-probability.

        The prompt is echoed with log-probabilities; the one token that most servers must write is discarded.
        """
        text = isinstance(prompt, str)
        payload = {"prompt": prompt if text else list(prompt), "max_tokens": 1, "temperature": 0.0, "echo": True}
        payload["logprobs"] = top_k
        count = None if text else len(prompt)
        return self._with_extras(payload, lambda body: served.prompt_places(body, count))

    def score_stepwise(
        self, ids: Sequence[int], start: int, pieces: Mapping[int, str], *, top_k: int = 20
    ) -> Reply[tuple[Place, ...]]:
        """The same for the tokens from `start` on, in one request per token, for servers that score only what they write.

        pieces: the text of each id, for servers that name no ids. A token that is not listed has no log-probability.
        """
        places, tries = [Place(token, None, None) for token in ids[:start]], 0
        for place in range(start, len(ids)):
            payload = {"prompt": list(ids[:place]), "max_tokens": 1, "temperature": 0.0, "logprobs": top_k}

            def read(body: Any, token: int = ids[place]) -> Place:
                return served.next_place(body, token, pieces[token])

            reply = self._with_extras(payload, read)
            tries += reply.tries
            if reply.found is None:
                return Reply(None, f"token {place}: {reply.problem}", tries)
            places.append(reply.found)
        return Reply(tuple(places), None, tries)

    def map(self, function: Callable[[Item], T], items: Iterable[Item]) -> list[T]:
        """function(item) for every item, so many at once as `asking` allows, in order."""
        with ThreadPoolExecutor(self.asking.concurrency) as pool:
            return list(pool.map(function, items))

    def model(self) -> Reply[str]:
        """The model that is asked: the one named, or the only one that the server has."""
        with self._model_lock:
            if self._named is None:
                reply = self._request("/models", None, _only_model, 0)
                if reply.found is None:
                    return reply
                self._named = reply.found
            return Reply(self._named, None, 0)

    def _with_extras(self, payload: Mapping[str, Any], read: Callable[[Any], T]) -> Reply[T]:
        """Ask for token ids too, and without that where the server refuses fields that it does not know."""
        if not self._extras:
            return self._asked("/completions", payload, read, 0)
        reply = self._asked("/completions", {**payload, **EXTRAS}, read, 0)
        if reply.found is not None or not any(f"refuses ({status})" in str(reply.problem) for status in (400, 422)):
            return reply
        plain = self._asked("/completions", payload, read, 0)
        self._extras = plain.found is None
        return plain

    def _asked(self, path: str, payload: Mapping[str, Any], read: Callable[[Any], T], salt: int) -> Reply[T]:
        model = self.model()
        if model.found is None:
            return Reply(None, model.problem, model.tries)
        return self._request(path, {"model": model.found, **payload}, read, salt)

    def _request(self, path: str, payload: Mapping[str, Any] | None, read: Callable[[Any], T], salt: int) -> Reply[T]:
        """A GET without, a POST with a payload; tried again after silence, refusals that pass and off-format answers."""
        key = hashlib.sha256(json.dumps([self.url, path, payload, salt], sort_keys=True).encode()).hexdigest()
        if key in self._replay:
            return Reply(read(self._replay[key]), None, 0)
        problem = ""
        for attempt in range(1, self.asking.tries + 1):
            if self._silent >= self.asking.give_up_after:
                silent = f"{self.url} left {self._silent} requests in a row unanswered"
                return Reply(None, f"{problem}; {silent}" if problem else f"not asked: {silent}", attempt - 1)
            time.sleep(self.asking.pause_s * 2 ** (attempt - 2) if attempt > 1 else 0)
            body, problem, final = self._try(path, payload)
            if not problem:
                try:
                    found = read(body)
                except OffFormat as error:
                    problem = f"off-format answer: {error}"
                    self._record({"key": None, "request": payload, "problem": problem, "body": served.shortened(body)})
                else:
                    self._record({"key": key, "request": payload, "body": body})
                    return Reply(found, None, attempt)
            if final:
                break
        return Reply(None, problem, attempt)

    def _try(self, path: str, payload: Mapping[str, Any] | None) -> tuple[Any, str, bool]:
        """The body, or the problem and whether it is final."""
        import openai

        try:
            if payload is None:
                body: Any = self._client.get(path, cast_to=object)
            else:
                body = self._client.post(path, body=dict(payload), cast_to=object)
        except openai.APITimeoutError:
            self._silent += 1
            return None, f"no answer from {self.url} within {self.asking.timeout_s:g} s", False
        except openai.APIConnectionError as error:
            self._silent += 1
            return None, f"{self.url} cannot be reached: {error.__cause__ or error}", False
        except openai.APIStatusError as error:
            self._silent = 0
            status, final = error.status_code, 400 <= error.status_code < 500 and error.status_code not in AGAIN
            said = served.shortened(error.body if error.body is not None else error.message)
            return None, f"{self.url} {'refuses' if final else 'fails'} ({status}): {said}", final
        except (openai.OpenAIError, json.JSONDecodeError) as error:
            self._silent = 0
            return None, f"off-format answer: {error}", False
        self._silent = 0
        return body, "", False

    def _record(self, entry: Mapping[str, Any]) -> None:
        """Add an answer to the replay file; one that is off-format is written for its readers and not replayed."""
        if self.asking.replay is None:
            return
        with self._lock:
            if entry["key"] is not None:
                self._replay[entry["key"]] = entry["body"]
            self.asking.replay.parent.mkdir(parents=True, exist_ok=True)
            with self.asking.replay.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(entry, ensure_ascii=False) + "\n")


def parse_address(address: str) -> tuple[str, str | None]:
    """URL and model of 'http://host:port/v1#model'. Raises ValueError for what is no such address."""
    url, _, model = address.partition("#")
    if not url.startswith(("http://", "https://")) or not url.partition("://")[2]:
        raise ValueError(
            f"{address!r} is no endpoint: give a URL such as http://localhost:8000/v1, perhaps with #model"
        )
    return url.rstrip("/"), model or None


def _client(url: str, timeout_s: float) -> Any:
    try:
        from openai import OpenAI
    except ImportError as error:
        raise ValueError("an endpoint is asked with the package openai: pip install 'shiftscope[judge]'") from error
    return OpenAI(base_url=url, api_key=os.environ.get("OPENAI_API_KEY", "none"), max_retries=0, timeout=timeout_s)


def _only_model(body: Any) -> str:
    listed = body.get("data") if isinstance(body, Mapping) else None
    names = [str(entry["id"]) for entry in listed if "id" in entry] if isinstance(listed, list) else []
    if len(names) != 1:
        raise OffFormat(
            f"the server names {len(names)} models ({', '.join(names) or 'none'}): name one, as in URL#model"
        )
    return names[0]


def _read_replay(path: Path) -> dict[str, Any]:
    """The answers of a replay file by key; a last line that was cut off is dropped from the file."""
    if not path.exists():
        return {}
    raw = path.read_bytes()
    whole = raw[: raw.rfind(b"\n") + 1]
    if len(whole) < len(raw):
        path.write_bytes(whole)
    found = {}
    for number, line in enumerate(whole.decode("utf-8").split("\n")[:-1], start=1):
        try:
            entry = json.loads(line)
            key, body = entry["key"], entry["body"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}, line {number} is no recorded answer: give the replay file of an earlier run"
            ) from error
        if key is not None:
            found[key] = body
    return found
