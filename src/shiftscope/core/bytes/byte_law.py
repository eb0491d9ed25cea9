"""The byte-level law of a token model: P(next byte | bytes so far), exact for any prefix, also one that ends inside a token.

A prefix is spelt by every canonical token sequence whose last token reaches its end; their probabilities add up. Contexts
(sequences that end exactly at a byte) are nodes of a tree of tokens with one key-value cache, so that a byte costs one new
one-token forward, and a prompt, with all its contexts, one forward in all. With an allowed error, contexts that weigh little
are not computed: the sequences through them weigh no more than they do, which bounds what the law lacks.

Source: arXiv 2410.09303 (the lemma on covers; its masked and fast variants are `canonical` and `unmasked` here).
Deviation: contexts are grown token by token in the tree instead of encoding each prefix, so that rules that look ahead
lose none; the mass of sequences that are not canonical is reported beside each law and never normalised away.
"""

# V ids of the model, J tokens with bytes in sorted order, N nodes

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from shiftscope.core import decode
from shiftscope.core.bytes import canonical, covers, token_bytes
from shiftscope.core.bytes.canonical import State, Support, Validity
from shiftscope.core.bytes.covers import FEW, MOST_CONTEXTS, Context, Sleeper
from shiftscope.core.bytes.token_bytes import TokenBytes
from shiftscope.core.bytes.token_tree import Array, Node, TokenTree, Tree, path_of
from shiftscope.core.checkpoints import Checkpoint
from shiftscope.core.decode import Sampling, end_ids
from shiftscope.core.randomness import uniforms

AHEAD = 32  # contexts whose laws are computed together while a text is read
END = 256  # the outcome after all bytes


def opening_ids(checkpoint: Checkpoint) -> tuple[int, ...]:
    """What stands in front of a text: the tokenizer's own special tokens, else its beginning- or end-of-text token.

    Raises ValueError where there is none of them.
    """
    tokenizer = checkpoint.tokenizer
    own = [token for token in tokenizer("")["input_ids"] if token != tokenizer.eos_token_id]
    ids = own or [token for token in (tokenizer.bos_token_id, *end_ids(checkpoint)) if token is not None][:1]
    if not ids:
        raise ValueError(f"{checkpoint.name} has no token to open a text with: name one with `opening`")
    return tuple(ids)


@dataclass(frozen=True, eq=False)
class Engine:
    """What all texts under one model share. ends: ids that end a text, possible only after a whole encoding.

    support: `canonical` (the last token must be canonical too), `unmasked` (contexts are canonical, the last token is
    free) or `all` (every token sequence: the law of sampled text; grows exponentially, for short texts).
    opening: ids in front of every text. stem: the context that they end in (default: where the tree's own opening ends).
    """

    tree: Tree
    tokens: TokenBytes
    rules: Validity
    ends: tuple[int, ...]
    support: Support
    opening: tuple[int, ...] = ()
    stem: Node | None = None

    @property
    def root(self) -> Node:
        """The context that every text begins after."""
        return self.tree.root if self.stem is None else self.stem

    def framed(self, ids: Sequence[int], tokens: TokenBytes, rules: Validity, ends: tuple[int, ...]) -> Engine:
        """An engine for texts that begin after more opening ids, in the same tree. Raises TypeError for another tree."""
        if not isinstance(self.tree, TokenTree):
            raise TypeError("only texts in the tree of a model can be framed")
        stem, opening = self.tree.after(ids), (*self.opening, *ids)
        return replace(self, tokens=tokens, rules=rules, ends=ends, opening=opening, stem=stem)

    @cached_property
    def spells_J(self) -> NDArray[np.bool_]:
        """Which sorted tokens stand for their bytes: all but those that end a text."""
        return ~np.isin(self.tokens.ids_J, self.ends)

    def masses(self, node: Node) -> Array:
        """Probability of each sorted token [J] after a context, then of a text's end and of all else that has no bytes."""
        if node.masses is None:
            self.prepare([node])
        assert node.masses is not None
        return node.masses

    def prepare(self, nodes: Iterable[Node]) -> None:
        """Compute the laws of these contexts together."""
        prepare((self, node) for node in nodes)

    def allowed(self, state: State, low: int, high: int) -> NDArray[np.bool_] | None:
        """Which of the sorted tokens low..high may follow; None for all."""
        if self.support != "canonical":
            return None
        ids = self.tokens.ids_J[low:high]
        if len(ids) > FEW:
            return self.rules.row(state)[ids]
        return np.array([self.rules.allows(state, token) for token in ids.tolist()], dtype=bool)


def prepare(wanted: Iterable[tuple[Engine, Node]]) -> None:
    """Compute the laws of contexts of one tree together, each as its engine sees it."""
    missing = {node: engine for engine, node in wanted if node.masses is None}
    if not missing:
        return
    tree = next(iter(missing.values())).tree
    for (node, engine), logp_V in zip(missing.items(), tree.laws(list(missing)), strict=True):
        p_V = np.exp(logp_V, dtype=np.float64)
        node.masses = np.append(p_V[engine.tokens.ids_J] * engine.spells_J, p_V[list(engine.ends)].sum())


def engine_of(
    checkpoint: Checkpoint,
    support: Support = "canonical",
    *,
    opening: Sequence[int] | None = None,
    spelt: Collection[str] = (),
) -> Engine:
    """Everything that byte laws of one checkpoint share. opening: ids before every text (default: the tokenizer's own).

    spelt: special tokens that a text may name; one that ends texts is then bytes like any other, and ends none.
    """
    if support not in ("canonical", "unmasked", "all"):
        raise ValueError(f"support is {support!r}: it must be canonical, unmasked or all")
    ends = end_ids(checkpoint)
    tokens = token_bytes.read(checkpoint.tokenizer, checkpoint.vocabulary_size, spelt=spelt, ends=ends)
    ends = tuple(token for token in ends if tokens.spelled[token] is None)
    ids = tuple(opening) if opening is not None else opening_ids(checkpoint)
    rules, tree = canonical.validity(tokens, support), TokenTree(checkpoint, ids)
    return Engine(tree, tokens, rules, ends, support, ids)


def caveats(engines: Iterable[Engine], names: Iterable[str]) -> list[str]:
    """A sentence for each model whose canonical encodings are known only approximately."""
    return [
        f"canonical encodings of {name} are known by a {engine.rules.mode} of tokens: its byte laws are approximate"
        for engine, name in dict(zip(engines, names, strict=True)).items()
        if not engine.rules.exact
    ]


@dataclass(frozen=True)
class Law:
    """What follows a prefix. p: of each byte [256]; end: of the text's end; together they are 1.

    logp: log-probability, in nats, that a text begins with the prefix. lost: share of that probability that goes to token
    sequences which are not canonical, or to tokens without bytes; p and end are the law of the rest. error: certified total
    variation of p and end to the law of all contexts; logp is then too low by at most −log(1 − error).
    """

    p: Array
    end: float
    logp: float
    lost: float
    error: float = 0.0


@dataclass(frozen=True)
class _Sums:
    """Mass of each next byte [256], of the end and of the prefix, all in units of exp(peak)."""

    bytes_256: Array
    end: float
    prefix: float
    peak: float

    @property
    def total(self) -> float:
        return float(self.bytes_256.sum()) + self.end


class ByteLaw:
    """The law of one growing text: push a byte, ask for the law, take bytes back.

    prefix: bytes the text begins with; it may end anywhere, inside a token or a character too. undo: how many bytes can be
    taken back without computing anything again. error: largest total variation of a law that is allowed, to save forwards;
    each law says what it certifies.
    Raises ValueError for a prefix that no token sequence spells, and an error outside [0, 1).
    """

    def __init__(self, engine: Engine, prefix: bytes = b"", *, undo: int = 256, error: float = 0.0) -> None:
        if not 0 <= error < 1:
            raise ValueError(f"error is {error}: a total variation from 0 (exact) to below 1 is needed")
        self.engine, self.error, self._undo = engine, error, undo
        self._text = engine.tokens.lead + prefix
        self._start()

    def _start(self) -> None:
        self._past: list[tuple[list[Context], list[Sleeper]]] = []
        self.contexts = covers.placed(self.engine, covers.reaching(self.engine, self._text))
        self.sleeping: list[Sleeper] = []
        self._known: _Sums | None = None
        if not self.contexts:
            raise ValueError(
                f"no token of the vocabulary continues the text at byte {len(self.text)}: {self.text[-20:]!r}"
            )

    @property
    def text(self) -> bytes:
        """The bytes so far, without what the tokenizer puts in front."""
        return self._text[len(self.engine.tokens.lead) :]

    @property
    def depth(self) -> int:
        """Tokens of the longest live context, the opening included."""
        awake = (context.node.depth for context in self.contexts)
        return max([*awake, *(sleeper.parent.depth + 1 for sleeper in self.sleeping)]) + 1

    def push(self, byte: int) -> None:
        """Append one byte. Its new context is computed when a law is asked for (together with those of other texts)."""
        self.settle()
        self.engine.prepare(context.node for context in self.contexts)
        before, engine = (self.contexts, self.sleeping), self.engine
        self._text += bytes([byte])
        n = len(self._text)
        fresh = [sleeper for c in self.contexts for sleeper in covers.children(engine, c, self._text, [n])]
        kept = [covers.continues(engine, self._text[context.start :]) for context in self.contexts]
        older = [replace(one, ends=covers.grown(engine, one.ends, self._text)) for one in self.sleeping]
        sleeping = [*(one for one in older if one.ends), *fresh]
        if len(sleeping) > MOST_CONTEXTS:
            self._text = self._text[:-1]
            raise ValueError(f"more than {MOST_CONTEXTS} token sequences spell the text: use support canonical")
        if not (sleeping or any(kept)):
            self._text = self._text[:-1]
            raise ValueError(
                f"byte {byte:#04x} cannot follow {self.text[-20:]!r}: no token of the vocabulary spells it"
            )
        for context, stays in zip(self.contexts, kept, strict=True):
            if not stays:
                context.node.masses = None  # its final state stays, from which they come back after a pop
        self.contexts = [context for context, stays in zip(self.contexts, kept, strict=True) if stays]
        self.sleeping = sleeping
        self._past = [*self._past, before][-self._undo :] if self._undo else []
        self._known = None

    def pop(self, count: int = 1) -> None:
        """Take the last bytes back. Raises ValueError for more than there are."""
        if not 0 <= count <= len(self.text):
            raise ValueError(f"{count} bytes cannot be taken back from a text of {len(self.text)}")
        if count == 0:
            return
        self._text = self._text[: len(self._text) - count]
        if count > len(self._past):
            self._start()
            return
        self.contexts, self.sleeping = self._past[-count]
        self._past, self._known = self._past[:-count], None

    def roused(self, error: float | None = None) -> list[Context]:
        """The heaviest sleepers, which have to be computed and woken to certify the error; none where it holds."""
        error = self.error if error is None else error
        first = len(self.sleeping)
        if error > 0 and self.contexts:
            sums = self._sums()
            self.sleeping = sorted(self.sleeping, key=lambda sleeper: -sleeper.logp)
            left = np.cumsum([0.0, *(math.exp(one.logp - sums.peak) for one in reversed(self.sleeping))])[::-1]
            first = int(np.argmax(left <= error * (sums.total + left[0])))  # the fewest whose rest is light enough
        found, self.sleeping = self.sleeping[:first], self.sleeping[first:]
        return [sleeper.woken(self.engine) for sleeper in found]

    def wake(self, contexts: Sequence[Context]) -> None:
        """Let roused contexts, whose laws are known now, count by them; those one token longer sleep in their place."""
        n = len(self._text)
        for context in contexts:
            if context.start == n or covers.continues(self.engine, self._text[context.start :]):
                self.contexts = [*self.contexts, context]
            self.sleeping += covers.children(self.engine, context, self._text, range(context.start + 1, n + 1))
        self._known = None if contexts else self._known

    def settle(self, error: float | None = None) -> None:
        """Compute contexts until the error is certified (default: the one allowed)."""
        while contexts := self.roused(error):
            self.engine.prepare(context.node for context in contexts)
            self.wake(contexts)

    def _sums(self) -> _Sums:
        if self._known is None:
            self.engine.prepare(context.node for context in self.contexts)
            self._known = _summed(self.engine, self.contexts, self._text)
        return self._known

    def cover(self, uniform: float) -> tuple[int, ...]:
        """One token sequence that spells the text and maybe more, drawn from all that do, opening left out.

        uniform: a number in [0, 1). Going on from it with ordinary token sampling, the prompt is treated exactly.
        """
        self.settle(error=0)
        tokens = self.engine.tokens
        ways: list[tuple[Context, NDArray[np.int64] | None]] = []
        weights: list[Array] = []
        peak = max(context.logp for context in self.contexts)
        for context in self.contexts:
            weight, rest = math.exp(context.logp - peak), self._text[context.start :]
            if not rest:
                ways.append((context, None))
                weights.append(np.array([weight]))
                continue
            low, high = tokens.longer(rest)
            masses = self.engine.masses(context.node)[low:high]
            allowed = self.engine.allowed(context.state, low, high)
            ways.append((context, tokens.ids_J[low:high]))
            weights.append(weight * (masses if allowed is None else masses * allowed))
        ends = np.cumsum(np.concatenate(weights))
        place = min(int(np.searchsorted(ends, uniform * ends[-1], side="right")), len(ends) - 1)
        for (context, ids), mass in zip(ways, weights, strict=True):
            if place < len(mass):
                return (*path_of(context.node), *(() if ids is None else (int(ids[place]),)))
            place -= len(mass)
        raise AssertionError("a place beyond all covers")

    def law(self) -> Law:
        """The law of the next byte."""
        self.settle()
        sums = self._sums()
        return _law(sums, math.fsum(math.exp(one.logp - sums.peak) for one in self.sleeping), self._text)


def outcome(p_O: Array, uniform: float, temperature: float = 1.0) -> int:
    """The drawn byte, or END, by inverse CDF; temperature 0 is the most probable one. p_O: of each byte, then the end."""
    if temperature == 0:
        return int(p_O.argmax())
    with np.errstate(divide="ignore"):
        logits = np.log(p_O) / temperature
    cumulative = np.cumsum(np.exp(logits - logits.max()))
    place = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
    return min(place, int(np.flatnonzero(p_O).max()))


def law_at(engine: Engine, contexts: Sequence[Context], text: bytes) -> Law:
    """The law after `text` (lead included) given all contexts that can still cover its end."""
    return _law(_summed(engine, contexts, text), 0.0, text)


def _summed(engine: Engine, contexts: Sequence[Context], text: bytes) -> _Sums:
    tokens, peak = engine.tokens, max(context.logp for context in contexts)
    bytes_256, end, prefix = np.zeros(256), 0.0, 0.0
    for context in contexts:
        rest = text[context.start :]
        masses, (low, high) = engine.masses(context.node), tokens.longer(rest)
        allowed, weight = engine.allowed(context.state, low, high), math.exp(context.logp - peak)
        found = masses[low:high] if allowed is None else masses[low:high] * allowed
        column = tokens.column(len(rest))[low:high]
        mass_256 = weight * np.bincount(column, found, minlength=257)[:256]
        bytes_256 += mass_256
        if rest:
            prefix += mass_256.sum()
        else:
            prefix += weight
            closes = engine.support != "canonical" or engine.rules.closes(context.state)
            end += weight * float(masses[-1]) * closes
    return _Sums(bytes_256, end, prefix, peak)


def _law(sums: _Sums, asleep: float, text: bytes) -> Law:
    """The law of what was summed. asleep: most that all other contexts can add, in the same units."""
    total = sums.total
    if not total > 0:
        raise ValueError(f"the model gives the text no probability: …{text[-20:]!r}")
    logp, lost = sums.peak + math.log(sums.prefix), max(0.0, 1 - total / sums.prefix)
    return Law(sums.bytes_256 / total, sums.end / total, logp, lost, asleep / (total + asleep))


Asked = Sequence[tuple[Engine, bytes]]
"""Texts with the engine of each, all of one tree."""


def begin(engine: Engine, prefixes: Sequence[bytes], *, undo: int = 256, error: float = 0.0) -> list[ByteLaw]:
    """The laws of several texts, computed in one forward."""
    return begin_each([(engine, prefix) for prefix in prefixes], undo=undo, error=error)


def begin_each(asked: Asked, *, undo: int = 256, error: float = 0.0) -> list[ByteLaw]:
    """The laws of several texts that may begin after different openings, computed in one forward."""
    held = [covers.planted(engine, covers.reaching(engine, engine.tokens.lead + prefix)) for engine, prefix in asked]
    laws = [ByteLaw(engine, prefix, undo=undo, error=error) for engine, prefix in asked]
    del held  # the nodes had to live until all were computed
    return laws


def extend(laws: Sequence[ByteLaw], next_bytes: Sequence[int]) -> None:
    """Push one byte to each of several texts of one tree and compute what they need in one forward (or a few, lazily)."""
    for law, byte in zip(laws, next_bytes, strict=True):
        law.push(byte)
    prepare((law.engine, context.node) for law in laws for context in law.contexts)
    while any(roused := [law.roused() for law in laws]):
        prepare((law.engine, context.node) for law, contexts in zip(laws, roused, strict=True) for context in contexts)
        for law, contexts in zip(laws, roused, strict=True):
            law.wake(contexts)


def teacher_forced(engine: Engine, text: bytes, first: int = 0) -> list[Law]:
    """The laws before each byte of text from byte `first` on and after its last one, from one forward."""
    whole = engine.tokens.lead + text
    first += len(engine.tokens.lead)
    contexts = covers.placed(engine, covers.spelt(engine, whole))
    found: list[Law] = []
    live: list[Context] = []
    waiting = 0
    for place in range(len(whole) + 1):
        begun, before = whole[:place], live
        live = [context for context in before if covers.continues(engine, begun[context.start :])]
        for context in before:
            if context not in live:
                context.node.masses = None
        while waiting < len(contexts) and contexts[waiting].start == place:
            live.append(contexts[waiting])
            waiting += 1
        if not live:
            raise ValueError(f"no token sequence spells the text up to byte {place - len(engine.tokens.lead)}")
        if place >= first:
            if any(context.node.masses is None for context in live):
                engine.prepare([context.node for context in (*live, *contexts[waiting : waiting + AHEAD])])
            found.append(law_at(engine, live, begun))
    return found


def continued(
    engine: Engine, checkpoint: Checkpoint, prompts: Sequence[bytes], documents: Sequence[int], sampling: Sampling
) -> list[tuple[bytes, bool]]:
    """What an exact prompt goes on with by ordinary token sampling, and whether it ended: one forward per token.

    A cover of each prompt is drawn at temperature 1, whatever the settings say of the tokens after it. documents: the
    number of each prompt, which keys its random numbers.
    """
    return continued_each([(engine, prompt) for prompt in prompts], checkpoint, documents, sampling)


def continued_each(
    asked: Asked, checkpoint: Checkpoint, documents: Sequence[int], sampling: Sampling
) -> list[tuple[bytes, bool]]:
    """Like `continued`, for texts that may begin after different openings."""
    draws = uniforms(sampling.seed, list(documents), [0] * len(asked), stream=1)
    drawn = [law.cover(float(draw)) for law, draw in zip(begin_each(asked, undo=0), draws, strict=True)]
    contexts = [(*engine.opening, *cover) for (engine, _), cover in zip(asked, drawn, strict=True)]
    shared = set.intersection(*(set(engine.ends) for engine, _ in asked)) if asked else set()
    answers = decode.sample(checkpoint, contexts, documents, sampling, further_ends=sorted(shared))
    found = []
    for (engine, prompt), cover, answer in zip(asked, drawn, answers, strict=True):
        length = next((place for place, token in enumerate(answer) if token in engine.ends), len(answer))
        spelled = b"".join(engine.tokens.spelled[token] or b"" for token in (*cover, *answer[:length]))
        found.append((spelled.removeprefix(engine.tokens.lead)[len(prompt) :], length < len(answer)))
    return found


def logp_of(engine: Engine, text: bytes, *, ended: bool = False) -> float:
    """log P, in nats, that a text begins with these bytes (ended: that it is just these); one forward over one trunk."""
    law = ByteLaw(engine, text).law()
    return law.logp + (math.log(law.end * (1 - law.lost)) if ended and law.end > 0 else -math.inf if ended else 0.0)
