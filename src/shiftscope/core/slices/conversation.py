"""Asking with a memory: every answer is kept in a replay file, checked, and asked for again where it does not fit.

What a model says is not trusted: a parser accepts it or says what is wrong; then the model is told so, at most twice, and
after that the question stays open. An interrupted run that is started again asks only what the replay file lacks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from shiftscope.core.slices.asking import Backend, Replayed, Request, Said, read_replay

T = TypeVar("T")
CHUNK = 32  # requests that an interruption can lose
TRIES = 3  # one question: the first, and two more
GIVE_UP_AFTER = 8  # requests in a row without any text


class Unfit(ValueError):
    """An answer that does not fit the question; says what is wrong with it."""


@dataclass(frozen=True)
class Question(Generic[T]):
    """A request and what reads its answer: `parse` returns the value or raises Unfit."""

    request: Request
    parse: Callable[[str], T]


@dataclass(frozen=True)
class Checked(Generic[T]):
    """An answer that fits, or None and why there is none. tries: how often it was asked for."""

    found: T | None
    problem: str | None
    tries: int


class Asker:
    """A backend with its replay file; counts what was asked, replayed, unfit and failed."""

    def __init__(
        self, backend: Backend, replay: Path | None = None, advance: Callable[[int], None] | None = None
    ) -> None:
        self.backend, self.path, self.advance = backend, replay, advance
        self.asked = self.replayed = self.unfit = self.failed = self._silent = 0
        entries = read_replay(replay) if replay is not None else {}
        self._known = {key: entry["text"] for key, entry in entries.items()}
        if replay is not None and replay.is_file():
            raw = replay.read_bytes()
            if not raw.endswith(b"\n"):
                replay.write_bytes(raw[: raw.rfind(b"\n") + 1])  # a line that was cut off

    def ask(self, requests: Sequence[Request]) -> list[Said]:
        """What is said to every request, in order; known answers are not asked for.

        Raises ValueError where the backend has said nothing many times in a row; what was said is kept.
        """
        said: list[Said] = []
        for start in range(0, len(requests), CHUNK):
            said += self._chunk(requests[start : start + CHUNK])
            if self.advance:
                self.advance(self.asked + self.replayed + self.failed)
        return said

    def _chunk(self, requests: Sequence[Request]) -> list[Said]:
        keys = [request.key(self.backend.model) for request in requests]
        open_ = {key: request for key, request in zip(keys, requests, strict=True) if key not in self._known}
        fresh = dict(zip(open_, self.backend.complete(list(open_.values())), strict=True)) if open_ else {}
        self._record({key: (open_[key], said.text) for key, said in fresh.items() if said.text is not None})
        for said in fresh.values():
            self._silent = 0 if said.text is not None else self._silent + 1
            self.failed += said.text is None
            self.replayed += said.replayed
            self.asked += said.text is not None and not said.replayed
        self.replayed += len(requests) - len(open_)
        if self._silent >= GIVE_UP_AFTER:
            problems = [said.problem for said in fresh.values() if said.problem]
            problem = next((one for one in problems if not one.startswith("not asked")), problems[-1])
            kept = f"; the {len(self._known)} answers so far are kept in {self.path}" if self.path else ""
            raise ValueError(
                f"{self.backend.model} left {self._silent} requests in a row without answer: {problem}{kept}"
            )
        return [fresh[key] if key in fresh else Said(self._known[key], None, True) for key in keys]

    def _record(self, answers: Mapping[str, tuple[Request, str]]) -> None:
        self._known |= {key: text for key, (_, text) in answers.items()}
        if self.path is None or isinstance(self.backend, Replayed) or not answers:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as stream:
            for key, (request, text) in answers.items():
                entry = {
                    "key": key, "model": self.backend.model, "messages": [dict(m) for m in request.messages],
                    "temperature": request.temperature, "sample": request.sample, "seed": request.seed, "text": text,
                }  # fmt: skip
                stream.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def check(self, questions: Sequence[Question[T]]) -> list[Checked[T]]:
        """The answers as values; an unfit one is sent back with what is wrong, at most twice."""
        found: list[Checked[T]] = [Checked(None, "not asked", 0) for _ in questions]
        pending = {n: question.request for n, question in enumerate(questions)}
        for attempt in range(1, TRIES + 1):
            replies = self.ask(list(pending.values()))
            again: dict[int, Request] = {}
            for (n, request), said in zip(pending.items(), replies, strict=True):
                if said.text is None:
                    found[n] = Checked(None, said.problem, attempt)
                    continue
                try:
                    found[n] = Checked(questions[n].parse(said.text), None, attempt)
                except Unfit as error:
                    self.unfit += 1
                    found[n] = Checked(None, f"unfit answer: {error}", attempt)
                    again[n] = _corrected(request, said.text, str(error))
            pending = again
            if not pending:
                break
        return found


def _corrected(request: Request, text: str, problem: str) -> Request:
    said = {"role": "assistant", "content": text[:2000]}
    wish = {"role": "user", "content": f"That does not fit: {problem}. Answer again, with the JSON object alone."}
    return replace(request, messages=(*request.messages, said, wish))


def json_object(text: str) -> dict[str, Any]:
    """The last JSON object of a text that may have words around it. Raises Unfit where there is none."""
    decoder, place, found = json.JSONDecoder(), 0, None
    while (place := text.find("{", place)) >= 0:
        try:
            value, place = decoder.raw_decode(text, place)
            found = value if isinstance(value, dict) else found
        except json.JSONDecodeError:
            place += 1
    if found is None:
        raise Unfit("there is no JSON object in it")
    return found


def phrase(value: Any, *, max_words: int = 4) -> str:
    """A keyword as it is kept: lower case, single spaces, no quotes or full stop. Raises Unfit for what is no keyword."""
    if not isinstance(value, str):
        raise Unfit(f"{json.dumps(value)[:60]} is not text")
    words = value.strip().strip("\"'`.").lower().split()
    if not 1 <= len(words) <= max_words or len(" ".join(words)) > 60 or any(mark in value for mark in "{}[]\n"):
        raise Unfit(f"{value[:60]!r} is not a keyword of 1 to {max_words} words")
    return " ".join(words)


def phrases(text: str, key: str, *, most: int, max_words: int = 4) -> tuple[str, ...]:
    """The list of keywords under `key` of the answer's JSON object, without repeats, at least one and at most `most`."""
    values = json_object(text).get(key)
    if not isinstance(values, list) or not 1 <= len(values) <= most:
        raise Unfit(f"`{key}` must be a list of 1 to {most} keywords")
    return tuple(dict.fromkeys(phrase(value, max_words=max_words) for value in values))


def one_of(text: str, key: str, options: Sequence[str]) -> str:
    """The option that the answer names, under `key` of a JSON object or as its only words. Raises Unfit for another."""
    bare = " ".join(text.strip().strip("\"'`.").lower().split())
    value = bare if bare in options else json_object(text).get(key)
    chosen = " ".join(value.strip().strip("\"'`.").lower().split()) if isinstance(value, str) else value
    if chosen not in options:
        raise Unfit(f"`{key}` is {json.dumps(value)[:60]}, which is none of the options")
    return str(chosen)
