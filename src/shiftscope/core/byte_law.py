"""The byte-level law of a token model: P(next byte | bytes so far), exact for any prefix, also one that ends inside a token.

A prefix is spelt by every canonical token sequence whose last token reaches its end; their probabilities add up. Contexts
(sequences that end exactly at a byte) are nodes of a tree of tokens with one key-value cache, so that a byte costs one new
one-token forward, and a prompt, with all its contexts, one forward in all.

Source: arXiv 2410.09303 (the lemma on covers; its masked and fast variants are `canonical` and `unmasked` here).
Deviation: contexts are grown token by token in the tree instead of encoding each prefix, so that rules that look ahead
lose none; the mass of sequences that are not canonical is reported beside each law and never normalised away.
"""

# V ids of the model, J tokens with bytes in sorted order, N nodes

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shiftscope.core import canonical, decode, token_bytes
from shiftscope.core.canonical import State, Support, Validity
from shiftscope.core.checkpoints import Checkpoint
from shiftscope.core.decode import Sampling, end_ids
from shiftscope.core.head import evaluating
from shiftscope.core.randomness import uniforms
from shiftscope.core.token_bytes import TokenBytes

Array = NDArray[np.float64]
ROWS = 128  # of one product with the unembedding
FEW = 64  # tokens that are judged one by one, more of them as a whole row
AHEAD = 32  # contexts whose laws are computed together while a text is read
MOST_CONTEXTS = 20_000
END = 256  # the outcome after all bytes


class Node:
    """A token sequence: its parent and its last token. hidden: the final state that predicts what follows it."""

    __slots__ = (
        "__weakref__",
        "ancestors",
        "children",
        "depth",
        "hidden",
        "masses",
        "opens",
        "parent",
        "slot",
        "token",
    )

    def __init__(self, parent: Node | None, token: int) -> None:
        self.parent, self.token = parent, token
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.children: weakref.WeakValueDictionary[int, Node] = weakref.WeakValueDictionary()
        self.slot = -1
        self.hidden: Tensor | None = None
        self.masses: Array | None = None
        self.opens = parent is None  # stands before every text


class Tree(Protocol):
    """A token model as a tree of contexts: nodes are made freely and computed together when a law is asked for."""

    root: Node

    def child(self, node: Node, token: int) -> Node:
        """The context one token longer; not computed yet."""

    def laws(self, nodes: Sequence[Node]) -> list[NDArray[Any]]:
        """Next-token log-probabilities [V] of each context, in nats."""

    def logp(self, steps: Sequence[tuple[Node, int]]) -> list[float]:
        """Log-probability, in nats, of a token after a context, for each step."""


class TokenTree:
    """A causal model as a tree of contexts in one key-value cache; a node attends to its ancestors alone.

    opening: token ids in front of every text, at least one.
    Nodes that nobody holds any more give their place back. forwards, positions: how many were computed so far. limit: of
    tokens in one text: the context, or the window of a model with sliding attention, which the tree does not slide.
    Raises ValueError for a model without an opening token, and for one whose attention does not take such a mask.
    """

    def __init__(self, checkpoint: Checkpoint, opening: Sequence[int]) -> None:
        from transformers import DynamicCache

        self._checkpoint, self._head = checkpoint, checkpoint.head
        self._cache = DynamicCache()
        self._slots: list[weakref.ref[Node]] = []
        self._waiting: list[weakref.ref[Node]] = []
        self.forwards = self.positions = 0
        window = getattr(checkpoint.model.config.get_text_config(), "sliding_window", None)
        self.limit = min(checkpoint.context_length or 1 << 40, window or 1 << 40)
        if not opening:
            raise ValueError(f"a tree of {checkpoint.name} needs at least one token in front of every text")
        self._trunk = [Node(None, opening[0])]
        self._waiting.append(weakref.ref(self._trunk[0]))
        for token in opening[1:]:
            self._trunk.append(self.child(self._trunk[-1], token))
        for node in self._trunk:
            node.opens = True
        self.root = self._trunk[-1]
        self._verify()

    def child(self, node: Node, token: int) -> Node:
        found = node.children.get(token)
        if found is None:
            found = Node(node, token)
            node.children[token] = found
            self._waiting.append(weakref.ref(found))
        return found

    def laws(self, nodes: Sequence[Node]) -> list[NDArray[Any]]:
        self.evaluate()
        found: list[NDArray[Any]] = []
        for start in range(0, len(nodes), ROWS):
            found.extend(self._logp_NV(nodes[start : start + ROWS]).cpu().numpy())
        return found

    def logp(self, steps: Sequence[tuple[Node, int]]) -> list[float]:
        self.evaluate()
        nodes = list(dict.fromkeys(node for node, _ in steps))
        place = {node: number for number, node in enumerate(nodes)}
        by_block: dict[int, list[int]] = {}
        for number, (node, _) in enumerate(steps):
            by_block.setdefault(place[node] // ROWS, []).append(number)
        found = [0.0] * len(steps)
        for block, numbers in by_block.items():
            logp_NV = self._logp_NV(nodes[block * ROWS : (block + 1) * ROWS])
            rows = torch.tensor([place[steps[number][0]] - block * ROWS for number in numbers])
            ids = torch.tensor([steps[number][1] for number in numbers])
            values = logp_NV[rows.to(logp_NV.device), ids.to(logp_NV.device)].tolist()
            for number, value in zip(numbers, values, strict=True):
                found[number] = value
        return found

    @torch.no_grad()
    def _logp_NV(self, nodes: Sequence[Node]) -> Tensor:
        logits_NV = self._head.logits(torch.stack([node.hidden for node in nodes]))  # type: ignore[misc]
        if not bool(logits_NV.isfinite().any(-1).all()) or bool(logits_NV.isnan().any()):
            raise ValueError(f"{self._checkpoint.name} gives logits that are not numbers")
        return (logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()).log_softmax(-1)

    def evaluate(self) -> None:
        """Compute all nodes that wait, in one forward."""
        waiting = [node for node in (ref() for ref in self._waiting) if node is not None]
        self._waiting = []
        if not waiting:
            return
        deepest = max(node.depth for node in waiting)
        if deepest >= self.limit:
            raise ValueError(
                f"the text needs {deepest + 1} tokens, {self._checkpoint.name} reads at most {self.limit} in a tree of "
                f"contexts: give a shorter one"
            )
        self._compact()
        first = len(self._slots)
        for number, node in enumerate(waiting):
            node.slot = first + number
            self._slots.append(weakref.ref(node))
        device, dtype = self._head.device, self._checkpoint.model.dtype
        mask = torch.full((len(waiting), len(self._slots)), torch.finfo(dtype).min, dtype=dtype)
        for row, node in enumerate(waiting):
            mask[row, _ancestors(node)] = 0
        with evaluating(self._checkpoint.model):
            hidden = self._head.body(
                input_ids=torch.tensor([[node.token for node in waiting]], device=device),
                attention_mask=mask[None, None].to(device),
                position_ids=torch.tensor([[node.depth for node in waiting]], device=device),
                past_key_values=self._cache,
                use_cache=True,
            ).last_hidden_state[0]
        for row, node in enumerate(waiting):
            node.hidden = hidden[row].clone()
        self.forwards += 1
        self.positions += len(waiting)

    def _compact(self) -> None:
        """Give back the places of nodes that are gone, once they are most of the cache."""
        from transformers.cache_utils import DynamicLayer

        alive = [(place, node) for place, node in enumerate(ref() for ref in self._slots) if node is not None]
        if len(self._slots) < 256 or 2 * len(alive) > len(self._slots):
            return
        keep = torch.tensor([place for place, _ in alive], device=self._head.device)
        for layer in self._cache.layers:
            assert isinstance(layer, DynamicLayer)
            assert layer.keys is not None
            assert layer.values is not None
            layer.keys, layer.values = layer.keys[:, :, keep], layer.values[:, :, keep]
        self._slots = [self._slots[place] for place, _ in alive]
        for slot, (_, node) in enumerate(alive):
            node.slot = slot

    def _verify(self) -> None:
        """Compare a branching tree with plain forwards: an architecture may read the mask in a way of its own."""
        vocabulary = self._head.weight.shape[0]
        a, b, c = (int(token) % vocabulary for token in (7919, 15838, 23757))
        first = self.child(self.root, a)
        left, right = self.child(first, b), self.child(self.root, c)
        own = self.laws([left, right])
        ids = [node.token for node in self._trunk]
        for law, path in zip(own, ([*ids, a, b], [*ids, c]), strict=True):
            with evaluating(self._checkpoint.model):
                logits = self._checkpoint.model(torch.tensor([path], device=self._head.device), use_cache=False).logits
            plain = logits[0, -1].float().log_softmax(-1).cpu().numpy()
            error = float(np.abs(np.exp(law) - np.exp(plain)).max())
            allowed = max(1e-4, 8 * torch.finfo(self._checkpoint.model.dtype).eps)
            if not error <= allowed:
                raise ValueError(
                    f"{self._checkpoint.name} ({type(self._checkpoint.model).__name__}) in a tree of contexts differs "
                    f"from its plain forward by {error:.3g} in probability (allowed {allowed:.3g}): its attention does "
                    f"not take a mask of its own"
                )
        self.forwards = self.positions = 0


def _ancestors(node: Node) -> list[int]:
    places = []
    step: Node | None = node
    while step is not None:
        places.append(step.slot)
        step = step.parent
    return places


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
    """

    tree: Tree
    tokens: TokenBytes
    rules: Validity
    ends: tuple[int, ...]
    support: Support
    opening: tuple[int, ...] = ()

    def masses(self, node: Node) -> Array:
        """Probability of each sorted token [J] after a context, then of a text's end and of all else that has no bytes."""
        if node.masses is None:
            self.prepare([node])
        assert node.masses is not None
        return node.masses

    def prepare(self, nodes: Sequence[Node]) -> None:
        """Compute the laws of these contexts together."""
        missing = [node for node in dict.fromkeys(nodes) if node.masses is None]
        if not missing:
            return
        for node, logp_V in zip(missing, self.tree.laws(missing), strict=True):
            p_V = np.exp(logp_V, dtype=np.float64)
            node.masses = np.append(p_V[self.tokens.ids_J], p_V[list(self.ends)].sum())

    def allowed(self, state: State, low: int, high: int) -> NDArray[np.bool_] | None:
        """Which of the sorted tokens low..high may follow; None for all."""
        if self.support != "canonical":
            return None
        ids = self.tokens.ids_J[low:high]
        if len(ids) > FEW:
            return self.rules.row(state)[ids]
        return np.array([self.rules.allows(state, token) for token in ids.tolist()], dtype=bool)


def engine_of(
    checkpoint: Checkpoint, support: Support = "canonical", *, opening: Sequence[int] | None = None
) -> Engine:
    """Everything that byte laws of one checkpoint share. opening: ids before every text (default: the tokenizer's own)."""
    if support not in ("canonical", "unmasked", "all"):
        raise ValueError(f"support is {support!r}: it must be canonical, unmasked or all")
    tokens = token_bytes.read(checkpoint.tokenizer, checkpoint.vocabulary_size)
    ids = tuple(opening) if opening is not None else opening_ids(checkpoint)
    rules, tree = canonical.validity(tokens, support), TokenTree(checkpoint, ids)
    return Engine(tree, tokens, rules, end_ids(checkpoint), support, ids)


@dataclass(frozen=True)
class Context:
    """A canonical token sequence that ends exactly at byte `start`. logp: its log-probability in nats."""

    start: int
    node: Node
    state: State
    logp: float


@dataclass(frozen=True)
class Law:
    """What follows a prefix. p: of each byte [256]; end: of the text's end; together they are 1.

    logp: log-probability, in nats, that a text begins with the prefix. lost: share of that probability that goes to token
    sequences which are not canonical, or to tokens without bytes; p and end are the law of the rest.
    """

    p: Array
    end: float
    logp: float
    lost: float


@dataclass(frozen=True)
class _Seed:
    """A context before the model has seen it."""

    start: int
    parent: _Seed | None
    token: int
    state: State


class ByteLaw:
    """The law of one growing text: push a byte, ask for the law, take bytes back.

    prefix: bytes the text begins with; it may end anywhere, inside a token or a character too. undo: how many bytes can be
    taken back without computing anything again.
    Raises ValueError for a prefix that no token sequence spells.
    """

    def __init__(self, engine: Engine, prefix: bytes = b"", *, undo: int = 256) -> None:
        self.engine, self._undo = engine, undo
        self._text = engine.tokens.lead + prefix
        self._start()

    def _start(self) -> None:
        self._past: list[list[Context]] = []
        self.contexts = placed(self.engine, reaching(self.engine, self._text))
        self._check()

    @property
    def text(self) -> bytes:
        """The bytes so far, without what the tokenizer puts in front."""
        return self._text[len(self.engine.tokens.lead) :]

    @property
    def depth(self) -> int:
        """Tokens of the longest live context, the opening included."""
        return max(context.node.depth for context in self.contexts) + 1

    def _check(self) -> None:
        if not self.contexts:
            raise ValueError(
                f"no token of the vocabulary continues the text at byte {len(self.text)}: {self.text[-20:]!r}"
            )

    def push(self, byte: int) -> None:
        """Append one byte. Its new context is computed when a law is asked for (together with those of other texts)."""
        self._past = [*self._past, self.contexts][-self._undo :] if self._undo else []
        self._text += bytes([byte])
        self.engine.prepare([context.node for context in self.contexts])
        fresh = [
            Context(len(self._text), self.engine.tree.child(context.node, token), state, context.logp + logp)
            for context in self.contexts
            for token, state, logp in self._ending(context)
        ]
        if len(fresh) > MOST_CONTEXTS:
            raise ValueError(f"more than {MOST_CONTEXTS} token sequences spell the text: use support canonical")
        kept = [context for context in self.contexts if _continues(self.engine, self._text[context.start :])]
        for context in self.contexts:
            if context not in kept:
                context.node.masses = None  # its final state stays, from which they come back after a pop
        self.contexts = kept + fresh
        if not self.contexts:
            before, self._text = self._past, self._text[:-1]
            self.contexts = before.pop() if before else []
            raise ValueError(
                f"byte {byte:#04x} cannot follow {self.text[-20:]!r}: no token of the vocabulary spells it"
            )

    def _ending(self, context: Context) -> list[tuple[int, State, float]]:
        """Tokens that lead from a context exactly to the end of the text."""
        tokens, rest, found = self.engine.tokens, self._text[context.start :], []
        masses = self.engine.masses(context.node)
        for place, token in enumerate(tokens.equal(rest), start=tokens.interval(rest)[0]):
            state = self.engine.rules.step(context.state, token)
            if state is not None and masses[place] > 0:
                found.append((token, state, math.log(masses[place])))
        return found

    def pop(self, count: int = 1) -> None:
        """Take the last bytes back. Raises ValueError for more than there are."""
        if not 0 <= count <= len(self.text):
            raise ValueError(f"{count} bytes cannot be taken back from a text of {len(self.text)}")
        if count == 0:
            return
        if count > len(self._past):
            self._text = self._text[: len(self._text) - count]
            self._start()
            return
        self.contexts = self._past[-count]
        self._past, self._text = self._past[:-count], self._text[:-count]

    def cover(self, uniform: float) -> tuple[int, ...]:
        """One token sequence that spells the text and maybe more, drawn from all that do, opening left out.

        uniform: a number in [0, 1). Going on from it with ordinary token sampling, the prompt is treated exactly.
        """
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
        self.engine.prepare([context.node for context in self.contexts])
        return law_at(self.engine, self.contexts, self._text)


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
    total = bytes_256.sum() + end
    if not total > 0:
        raise ValueError(f"the model gives the text no probability: …{text[-20:]!r}")
    return Law(bytes_256 / total, end / total, peak + math.log(prefix), max(0.0, 1 - total / prefix))


def spelt(engine: Engine, text: bytes) -> list[_Seed]:
    """Every allowed token sequence that ends exactly at some byte of text, in order of that byte; the empty one first."""
    tokens, rules = engine.tokens, engine.rules
    at: list[list[_Seed]] = [[] for _ in range(len(text) + 1)]
    at[0].append(_Seed(0, None, -1, rules.start))
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
                        at[stop].append(_Seed(stop, seed, token, state))
    return [seed for seeds in at for seed in seeds]


def reaching(engine: Engine, text: bytes) -> list[_Seed]:
    """Those of `spelt` that can still cover the end of text."""
    return [s for s in spelt(engine, text) if s.start == len(text) or _continues(engine, text[s.start :])]


def path_of(node: Node) -> tuple[int, ...]:
    """Token ids from the root of texts (the opening left out) to a node of the same tree."""
    ids: list[int] = []
    step = node
    while step.parent is not None and not step.opens:
        ids.append(step.token)
        step = step.parent
    return tuple(reversed(ids))


def planted(engine: Engine, seeds: Sequence[_Seed]) -> tuple[dict[int, Node], list[_Seed]]:
    """Nodes of these contexts and of all they stand on, not computed yet, and the contexts in an order of growth."""
    nodes: dict[int, Node] = {}

    def node_of(seed: _Seed) -> Node:
        chain: list[_Seed] = []
        step: _Seed | None = seed
        while step is not None and id(step) not in nodes:
            chain.append(step)
            step = step.parent
        for each in reversed(chain):
            nodes[id(each)] = (
                engine.tree.root if each.parent is None else engine.tree.child(nodes[id(each.parent)], each.token)
            )
            order.append(each)
        return nodes[id(seed)]

    order: list[_Seed] = []
    for seed in seeds:
        node_of(seed)
    return nodes, order


def placed(engine: Engine, seeds: Sequence[_Seed]) -> list[Context]:
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


def begin(engine: Engine, prefixes: Sequence[bytes], *, undo: int = 256) -> list[ByteLaw]:
    """The laws of several texts, computed in one forward."""
    lead = engine.tokens.lead
    held = [planted(engine, reaching(engine, lead + prefix)) for prefix in prefixes]
    laws = [ByteLaw(engine, prefix, undo=undo) for prefix in prefixes]
    del held  # the nodes had to live until all were computed
    return laws


def extend(laws: Sequence[ByteLaw], next_bytes: Sequence[int]) -> None:
    """Push one byte to each of several texts of one model and compute what they need in one forward."""
    for law, byte in zip(laws, next_bytes, strict=True):
        law.push(byte)
    if laws:
        laws[0].engine.prepare([context.node for law in laws for context in law.contexts])


def teacher_forced(engine: Engine, text: bytes, first: int = 0) -> list[Law]:
    """The laws before each byte of text from byte `first` on and after its last one, from one forward."""
    whole = engine.tokens.lead + text
    first += len(engine.tokens.lead)
    contexts = placed(engine, spelt(engine, whole))
    found: list[Law] = []
    live: list[Context] = []
    waiting = 0
    for place in range(len(whole) + 1):
        begun, before = whole[:place], live
        live = [context for context in before if _continues(engine, begun[context.start :])]
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


def _continues(engine: Engine, rest: bytes) -> bool:
    low, high = engine.tokens.longer(rest)
    return low < high


def continued(
    engine: Engine, checkpoint: Checkpoint, prompts: Sequence[bytes], documents: Sequence[int], sampling: Sampling
) -> list[tuple[bytes, bool]]:
    """What an exact prompt goes on with by ordinary token sampling, and whether it ended: one forward per token.

    A cover of each prompt is drawn at temperature 1, whatever the settings say of the tokens after it. documents: the
    number of each prompt, which keys its random numbers.
    """
    draws = uniforms(sampling.seed, list(documents), [0] * len(prompts), stream=1)
    covers = [law.cover(float(draw)) for law, draw in zip(begin(engine, prompts, undo=0), draws, strict=True)]
    before = engine.opening
    answers = decode.sample(checkpoint, [(*before, *cover) for cover in covers], documents, sampling)
    found = []
    for prompt, cover, answer in zip(prompts, covers, answers, strict=True):
        ended = answer[-1:] != () and answer[-1] in engine.ends
        spelled = b"".join(engine.tokens.spelled[token] or b"" for token in (*cover, *answer))
        found.append((spelled.removeprefix(engine.tokens.lead)[len(prompt) :], ended))
    return found


def logp_of(engine: Engine, text: bytes, *, ended: bool = False) -> float:
    """log P, in nats, that a text begins with these bytes (ended: that it is just these); one forward over one trunk."""
    law = ByteLaw(engine, text).law()
    return law.logp + (math.log(law.end * (1 - law.lost)) if ended and law.end > 0 else -math.inf if ended else 0.0)
