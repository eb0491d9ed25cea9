"""Who is asked: an OpenAI-compatible endpoint, a local causal model, recorded answers or a Python function, behind one call.

A backend turns requests (chat messages, temperature, which sample of them) into what was said, or the sentence that says
why nothing was. Without a backend nothing is asked and nothing is made up.

Source: arXiv 2405.02363, which asks hosted models only. Deviation: `n` answers to one prompt are `n` requests that differ in
`sample`, so that a backend can batch them and each has a place of its own in the replay file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from shiftscope.core import corpus, decode, functions
from shiftscope.core.checkpoints import Checkpoint, opened
from shiftscope.core.decode import Sampling
from shiftscope.core.endpoint import Asking, Endpoint

Messages = tuple[Mapping[str, str], ...]
Function = Callable[[Messages, float, int, int], str]
BACKENDS = (
    "endpoint:URL#model (an OpenAI-compatible server), model:NAME (a causal model that runs here), replay:FILE (recorded "
    "answers) or function:module:function or function:file.py:function (your own Python)"
)


@dataclass(frozen=True)
class Request:
    """One answer that is wanted. sample: tells repeated requests apart; seed: of the draw; max_tokens: of the answer."""

    messages: Messages
    temperature: float = 0.7
    sample: int = 0
    seed: int = 0
    max_tokens: int = 256

    def key(self, model: str) -> str:
        """What the replay file calls it: equal for equal requests to one model, wherever that runs."""
        content = [model, [dict(m) for m in self.messages], self.temperature, self.sample, self.seed, self.max_tokens]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Said:
    """How a request ended: the text, or None and the problem. replayed: it came from the replay file."""

    text: str | None
    problem: str | None = None
    replayed: bool = False


class Backend(Protocol):
    """Something that answers. model: its name in provenance and in the replay file."""

    @property
    def model(self) -> str: ...

    def complete(self, requests: Sequence[Request]) -> list[Said]:
        """One Said per request, in order."""
        ...


@dataclass(frozen=True)
class Served:
    """A server with chat completions."""

    endpoint: Endpoint
    model: str

    def complete(self, requests: Sequence[Request]) -> list[Said]:
        return self.endpoint.map(self._one, requests)

    def _one(self, request: Request) -> Said:
        reply = self.endpoint.complete(
            request.messages, max_tokens=request.max_tokens, temperature=request.temperature, salt=request.sample,
            seed=request.seed + request.sample,
        )  # fmt: skip
        return Said(None, reply.problem) if reply.found is None else Said(reply.found.text)


@dataclass(frozen=True)
class Local:
    """A causal language model that runs here; its chat template is used where it has one, else the plain text."""

    checkpoint: Checkpoint
    batch_size: int = 8

    @property
    def model(self) -> str:
        return self.checkpoint.name

    def complete(self, requests: Sequence[Request]) -> list[Said]:
        contexts = [self._context(request.messages) for request in requests]
        room = [(self.checkpoint.context_length or 1 << 30) - len(ids) for ids in contexts]
        said: dict[int, Said] = {
            n: Said(None, f"a prompt of {len(contexts[n])} tokens leaves no room for an answer in {self.model}")
            for n in range(len(requests))
            if room[n] < 1 or not contexts[n]
        }
        groups: dict[tuple[float, int], list[int]] = {}
        for n in sorted(set(range(len(requests))) - set(said), key=lambda n: len(contexts[n])):
            groups.setdefault((requests[n].temperature, min(requests[n].max_tokens, room[n])), []).append(n)
        for (temperature, length), members in groups.items():
            for start in range(0, len(members), self.batch_size):
                batch = members[start : start + self.batch_size]
                documents = [int(requests[n].key("")[:15], 16) for n in batch]  # seed and sample are in the key
                sampling = Sampling(temperature=temperature, max_new_tokens=length)
                drawn = decode.sample(self.checkpoint, [contexts[n] for n in batch], documents, sampling)
                said |= {n: Said(self._text(ids)) for n, ids in zip(batch, drawn, strict=True)}
        return [said[n] for n in range(len(requests))]

    def _context(self, messages: Messages) -> tuple[int, ...]:
        prompt = "\n\n".join(message["content"] for message in messages) + "\n"
        text = corpus.Text(0, "", prompt, messages=messages)
        return corpus.context_ids(self.checkpoint, text, "chat" if self.checkpoint.tokenizer.chat_template else "plain")

    def _text(self, ids: Sequence[int]) -> str:
        return str(self.checkpoint.tokenizer.decode(list(ids), skip_special_tokens=True))


@dataclass(frozen=True)
class Scripted:
    """A Python function of (messages, temperature, sample, seed) that returns text."""

    function: Function
    model: str

    def complete(self, requests: Sequence[Request]) -> list[Said]:
        return [self._one(request) for request in requests]

    def _one(self, request: Request) -> Said:
        text = self.function(request.messages, request.temperature, request.sample, request.seed)
        if not isinstance(text, str):
            raise ValueError(f"{self.model} returned {type(text).__name__}, not text: a backend function returns a str")
        return Said(text)


@dataclass(frozen=True)
class Replayed:
    """Recorded answers and nothing else. Raises ValueError for a request that was not recorded."""

    path: Path
    model: str
    texts: Mapping[str, str]

    def complete(self, requests: Sequence[Request]) -> list[Said]:
        missing = sum(request.key(self.model) not in self.texts for request in requests)
        if missing:
            raise ValueError(
                f"{self.path} has no answer of {self.model} to {missing} of {len(requests)} requests: it was recorded with "
                f"other texts or settings; repeat those, or give the model with --replay {self.path} to add what is missing"
            )
        return [Said(self.texts[request.key(self.model)], None, True) for request in requests]


def open_backend(
    spec: str | Backend | Function | None,
    *,
    asking: Asking = Asking(),
    dtype: Any = "auto",
    device: str = "auto",
    batch_size: int = 8,
) -> Backend:
    """The backend that a spec names; a backend or a function is taken as it is.

    Raises ValueError for no spec, naming the four kinds, and for one that cannot be opened.
    """
    if spec is None:
        raise ValueError(f"no language model is given, and nothing is made up without one: give --llm {BACKENDS}")
    if not isinstance(spec, str):
        return Scripted(spec, _name_of(spec)) if callable(spec) else spec
    kind, _, value = spec.partition(":")
    if kind == "endpoint" and value:
        endpoint = Endpoint(value, replace(asking, replay=None))
        model = endpoint.model()
        if model.found is None:
            raise ValueError(f"the endpoint {value} does not say which model it has: {model.problem}")
        return Served(endpoint, model.found)
    if kind == "model" and value:
        return Local(opened(value, dtype=dtype, device=device), batch_size)
    if kind == "replay" and value:
        return _recorded(value)
    if kind == "function" and ":" in value:
        return Scripted(functions.find(value, "function to ask"), value)
    raise ValueError(f"{spec!r} is no language model to ask: give {BACKENDS}")


def read_replay(path: Path) -> dict[str, dict[str, Any]]:
    """The entries of a replay file by key; a last line that was cut off is left out. {} where there is no file."""
    if not path.is_file():
        return {}
    found, lines = {}, path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], start=1):
        try:
            entry = json.loads(line)
            found[str(entry["key"])] = {"model": str(entry["model"]), "text": str(entry["text"])}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}, line {number} is no recorded answer: give the replay file of an earlier run"
            ) from error
    return found


def _recorded(value: str) -> Replayed:
    name, _, model = value.partition("#")
    entries = read_replay(Path(name))
    models = sorted({entry["model"] for entry in entries.values()})
    if not entries:
        raise ValueError(f"{name} holds no recorded answers: give the replay file of an earlier run")
    if model not in models and (model or len(models) > 1):
        raise ValueError(
            f"{name} holds answers of {', '.join(models)}: name one of them, as in replay:{name}#{models[0]}"
        )
    model = model or models[0]
    texts = {key: entry["text"] for key, entry in entries.items() if entry["model"] == model}
    return Replayed(Path(name), model, texts)


def _name_of(function: Any) -> str:
    return f"{getattr(function, '__module__', '')}:{getattr(function, '__qualname__', type(function).__name__)}"
