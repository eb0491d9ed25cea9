"""What a server says of the tokens of a text, read from the three formats in use into one.

- `prompt_logprobs` (vLLM): per prompt token a map from token id to log-probability, rank and text;
- echoed `logprobs` of completions: lists of tokens, their log-probabilities, and a map from listed tokens to theirs;
- `logprobs.content` (llama.cpp, chat): per generated token an object with its id, and a list of such objects.

Tokens are ids where the server names them (also as 'token_id:17'), else pieces of text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LARGEST = 1e-3  # a log-probability may exceed 0 by rounding only


class OffFormat(ValueError):
    """An answer that is not what was asked for; the message says what was found."""


@dataclass(frozen=True)
class Place:
    """One token of a text as a server sees it.

    token: its id; piece: its text; None where the server does not say. logp: nats, None where it is not listed.
    top: the listed tokens (id, else piece) with their log-probabilities, the token's own among them where it was listed.
    """

    token: int | None
    piece: str | None
    logp: float | None
    top: tuple[tuple[int | str, float], ...] = ()


def choice(body: Any) -> Mapping[str, Any]:
    """The first choice of an answer. Raises OffFormat where there is none."""
    choices = body.get("choices") if isinstance(body, Mapping) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
        raise OffFormat(f"the answer has no choices: {shortened(body)}")
    return choices[0]


def text_of(body: Any) -> tuple[str, str]:
    """The text of a completion or of a chat message, and how it ended. Raises OffFormat where it holds none."""
    first = choice(body)
    message = first.get("message")
    text = message.get("content") if isinstance(message, Mapping) else first.get("text")
    if not isinstance(text, str):
        raise OffFormat(f"the answer holds no text: {shortened(first)}")
    return text, str(first.get("finish_reason") or "")


def prompt_places(body: Any, count: int | None) -> tuple[Place, ...]:
    """One place per prompt token; the first has no log-probability.

    count: how many tokens were sent; None where text was sent, so that the server knows. Raises OffFormat where the prompt
    is not scored, or another number of tokens.
    """
    first = choice(body)
    served = _prompt_ids(body, first)
    places = _of_prompt_logprobs(first.get("prompt_logprobs"), served)
    if places is None:
        places = _of_echo(first.get("logprobs"))
        generated = 1 if served is None else len(places) - len(served)
        wanted = count if count is not None else len(places) - generated
        if len(places) < max(wanted, 2):
            raise OffFormat(
                f"log-probabilities of {len(places)} tokens came back for a prompt of {'text' if count is None else count}: "
                f"this server scores only what it writes; ask it token by token (--stepwise)"
            )
        places = places[:wanted]
    if count is not None and len(places) != count:
        raise OffFormat(f"log-probabilities of {len(places)} tokens came back for a prompt of {count}")
    if any(place.logp is None for place in places[1:]):
        raise OffFormat("a prompt token came back without a log-probability")
    return places


def next_place(body: Any, token: int, piece: str) -> Place:
    """What the law of the next token says of `token` (its text `piece`), from an answer of one generated token."""
    logprobs = choice(body).get("logprobs")
    if isinstance(logprobs, Mapping) and isinstance(logprobs.get("content"), list) and logprobs["content"]:
        entry = logprobs["content"][0]
        top = tuple(_named(item) for item in entry.get("top_logprobs") or [entry])
    else:
        places = _of_echo(logprobs)
        if not places:
            raise OffFormat("no log-probabilities came back")
        top = places[-1].top
    if not top:
        raise OffFormat("no listed tokens came back")
    of_token = dict(top)
    return Place(token, None, of_token.get(token, of_token.get(piece)), top)


def shortened(body: Any) -> str:
    """A body for a message: its first 120 characters."""
    text = str(body)
    return text if len(text) <= 120 else text[:117] + "..."


def _prompt_ids(body: Mapping[str, Any], first: Mapping[str, Any]) -> tuple[int, ...] | None:
    ids = first.get("prompt_token_ids", body.get("prompt_token_ids"))
    if ids is None:
        return None
    if not isinstance(ids, list) or not all(isinstance(token, int) for token in ids):
        raise OffFormat(f"prompt_token_ids is not a list of ids: {shortened(ids)}")
    return tuple(ids)


def _of_prompt_logprobs(listed: Any, served: Sequence[int] | None) -> tuple[Place, ...] | None:
    """None where the server gives no `prompt_logprobs`, or not the ids that they are about."""
    if not isinstance(listed, list) or served is None:
        return None
    if len(listed) != len(served):
        raise OffFormat(f"prompt_logprobs has {len(listed)} entries for {len(served)} prompt tokens")
    places = [Place(served[0], None, None)]
    for token, entry in zip(served[1:], listed[1:], strict=True):
        if not isinstance(entry, Mapping) or str(token) not in entry:
            raise OffFormat(f"prompt_logprobs does not list prompt token {token}: {shortened(entry)}")
        top = tuple((_integer(key), _number(_field(value, "logprob"))) for key, value in entry.items())
        piece = entry[str(token)].get("decoded_token")
        places.append(Place(token, piece, _number(entry[str(token)]["logprob"]), top))
    return tuple(places)


def _of_echo(logprobs: Any) -> tuple[Place, ...]:
    """The places of a `logprobs` object of completions, prompt and generated tokens alike; empty without one."""
    if not isinstance(logprobs, Mapping):
        return ()
    tokens, values = logprobs.get("tokens"), logprobs.get("token_logprobs")
    if not isinstance(tokens, list) or not isinstance(values, list) or len(tokens) != len(values):
        content = logprobs.get("content")
        if isinstance(content, list):
            return tuple(_of_content(entry) for entry in content)
        raise OffFormat(f"logprobs holds no tokens with as many token_logprobs: {shortened(logprobs)}")
    tops = logprobs.get("top_logprobs")
    tops = tops if isinstance(tops, list) and len(tops) == len(tokens) else [None] * len(tokens)
    places = []
    for token, value, top in zip(tokens, values, tops, strict=True):
        name = _name(token)
        listed = {_name(key): _number(item) for key, item in top.items()} if isinstance(top, Mapping) else {}
        logp = None if value is None else _number(value)
        if listed and logp is not None:
            listed.setdefault(name, logp)
        places.append(_placed(name, logp, tuple(listed.items())))
    return tuple(places)


def _of_content(entry: Any) -> Place:
    name, logp = _named(entry)
    return _placed(name, logp, tuple(_named(item) for item in entry.get("top_logprobs") or ()))


def _placed(name: int | str, logp: float | None, top: tuple[tuple[int | str, float], ...]) -> Place:
    return Place(name, None, logp, top) if isinstance(name, int) else Place(None, name, logp, top)


def _named(entry: Any) -> tuple[int | str, float]:
    identity = _field(entry, "id") if isinstance(entry, Mapping) and "id" in entry else _name(_field(entry, "token"))
    return identity, _number(_field(entry, "logprob"))


def _field(entry: Any, name: str) -> Any:
    if not isinstance(entry, Mapping) or name not in entry:
        raise OffFormat(f"an entry has no {name}: {shortened(entry)}")
    return entry[name]


def _name(token: Any) -> int | str:
    match = re.fullmatch(r"token_id[:_](\d+)", str(token))
    return int(match[1]) if match else str(token)


def _integer(key: Any) -> int:
    if not re.fullmatch(r"\d+", str(key)):
        raise OffFormat(f"{key!r} is no token id")
    return int(key)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value) or value > LARGEST:
        raise OffFormat(f"{value!r} is no log-probability")
    return -math.inf if value <= -9999 else min(float(value), 0.0)  # servers write -9999 where JSON has no -inf
