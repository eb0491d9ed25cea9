"""The token sequences that spell a text: all at once for a prompt, and lazily for a text that grows.

A context is a sequence that ends exactly at some byte. One whose law nobody has asked for yet is a sleeper: the sequences
that go through it are followed by the rules of the tokenizer alone, without the model, and all of them together weigh no
more than it does.

Source: arXiv 2410.09303 (covers of a prefix).
Deviation: contexts are grown token by token from the left instead of encoding each prefix of the text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shiftscope.core.bytes.canonical import State
from shiftscope.core.bytes.token_tree import Node

if TYPE_CHECKING:
    from shiftscope.core.bytes.byte_law import Engine

MOST_CONTEXTS = 20_000
FEW = 64  # tokens that are judged one by one, more of them as a whole row
End = tuple[int, State]
"""Where a token sequence ends: the byte, and what the rules know of it."""


@dataclass(frozen=True)
class Context:
    """A canonical token sequence that ends exactly at byte `start`. logp: its log-probability in nats."""

    start: int
    node: Node
    state: State
    logp: float


@dataclass(frozen=True)
class Sleeper:
    """A context that the model has not read: its parent, its last token and what else a `Context` has.

    ends: of the sequences that go through it and can still cover the text's end.
    """

    start: int
    parent: Node
    token: int
    state: State
    logp: float
    ends: tuple[End, ...]

    def woken(self, engine: Engine) -> Context:
        """The context itself, in the tree."""
        return Context(self.start, engine.tree.child(self.parent, self.token), self.state, self.logp)


@dataclass(frozen=True)
class Seed:
    """A context before the model has seen it."""

    start: int
    parent: Seed | None
    token: int
    state: State


def continues(engine: Engine, rest: bytes) -> bool:
    """Whether some token begins with these bytes and is longer than them."""
    low, high = engine.tokens.longer(rest)
    return low < high


def reaches(engine: Engine, end: End, text: bytes) -> bool:
    """Whether a token may go from here beyond the end of text, as far as that is quickly told."""
    low, high = engine.tokens.longer(text[end[0] :])
    if engine.support != "canonical" or high - low > FEW:
        return low < high
    return any(engine.rules.allows(end[1], token) for token in engine.tokens.ids_J[low:high].tolist())


def spelt(engine: Engine, text: bytes) -> list[Seed]:
    """Every allowed token sequence that ends exactly at some byte of text, in order of that byte; the empty one first.

    Raises ValueError where there are too many of them.
    """
    tokens, rules = engine.tokens, engine.rules
    at: list[list[Seed]] = [[] for _ in range(len(text) + 1)]
    at[0].append(Seed(0, None, -1, rules.start))
    count = 0
    for start in range(len(text)):
        count += len(at[start])
        if count > MOST_CONTEXTS + len(text):
            raise ValueError(f"more than {MOST_CONTEXTS} token sequences spell the text: use support canonical")
        for stop in range(start + 1, len(text) + 1) if at[start] else ():
            low, high = tokens.interval(text[start:stop])
            if low == high:
                break
            for token in tokens.equal(text[start:stop]):
                for seed in at[start]:
                    state = rules.step(seed.state, token)
                    if state is not None:
                        at[stop].append(Seed(stop, seed, token, state))
    return [seed for seeds in at for seed in seeds]


def reaching(engine: Engine, text: bytes) -> list[Seed]:
    """Those of `spelt` that can still cover the end of text."""
    return [s for s in spelt(engine, text) if s.start == len(text) or continues(engine, text[s.start :])]


def planted(engine: Engine, seeds: Sequence[Seed]) -> tuple[dict[int, Node], list[Seed]]:
    """Nodes of these contexts and of all they stand on, not computed yet, and the contexts in an order of growth."""
    nodes: dict[int, Node] = {}
    order: list[Seed] = []
    for seed in seeds:
        chain: list[Seed] = []
        step: Seed | None = seed
        while step is not None and id(step) not in nodes:
            chain.append(step)
            step = step.parent
        for each in reversed(chain):
            nodes[id(each)] = (
                engine.root if each.parent is None else engine.tree.child(nodes[id(each.parent)], each.token)
            )
            order.append(each)
    return nodes, order


def placed(engine: Engine, seeds: Sequence[Seed]) -> list[Context]:
    """These contexts in the tree with their log-probabilities: one forward for all of them and all they stand on."""
    nodes, order = planted(engine, seeds)
    steps = [(nodes[id(seed.parent)], seed.token) for seed in order if seed.parent is not None]
    values = iter(engine.tree.logp(steps))
    logp: dict[int, float] = {}
    for seed in order:
        logp[id(seed)] = 0.0 if seed.parent is None else logp[id(seed.parent)] + next(values)
    return [
        Context(seed.start, nodes[id(seed)], seed.state, logp[id(seed)]) for seed in seeds if logp[id(seed)] > -math.inf
    ]


def grown(engine: Engine, ends: Iterable[End], text: bytes) -> tuple[End, ...]:
    """Where sequences end once text has one more byte: those that can still cover its end, and those that now reach it."""
    found: dict[End, None] = {}
    for start, state in ends:
        if reaches(engine, (start, state), text):
            found[start, state] = None
        for token in engine.tokens.equal(text[start:]):
            after = engine.rules.step(state, token)
            if after is not None:
                found[len(text), after] = None
    return tuple(found)


def children(engine: Engine, context: Context, text: bytes, stops: Iterable[int]) -> list[Sleeper]:
    """The contexts one token longer that end at one of the bytes `stops` of text and can cover its end, not computed.

    The law of `context` is known.
    """
    tokens, found = engine.tokens, []
    masses = engine.masses(context.node)
    for stop in stops:
        rest = text[context.start : stop]
        if len(rest) > tokens.longest:
            break
        for place, token in enumerate(tokens.equal(rest), start=tokens.interval(rest)[0]):
            state = engine.rules.step(context.state, token)
            if state is None or not masses[place] > 0:
                continue
            ends: tuple[End, ...] = ((stop, state),)
            for longer in range(stop + 1, len(text) + 1):
                ends = grown(engine, ends, text[:longer])
            if ends:
                logp = context.logp + math.log(masses[place])
                found.append(Sleeper(stop, context.node, token, state, logp, ends))
    return found
