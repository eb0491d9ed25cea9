"""Phantom surface and phantom mass: in how many ways a vocabulary can spell a word, and how probable each is to a model.

The surface needs no model: all id sequences that spell a word, or the word behind a space, from a walk over the
vocabulary. The mass is exact where sampling gives a rate: the probability, in one context and under the decoding that is
used, of each way to write the word into a slot and close it.

Source: arXiv 2601.14658 (phantom edits), arXiv 2410.09303 (sums over token sequences).
Deviation: ways less probable than a floor are not followed; what they could add at most is returned beside the masses.
Blanks around the word are those of LEADS and TRAILS; a longer row of them counts as no way to write it.
"""

# V ids of the model, N nodes

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shiftscope.core.bytes.byte_law import ByteLaw
from shiftscope.core.bytes.canonical import State, Validity
from shiftscope.core.bytes.token_bytes import TokenBytes
from shiftscope.core.bytes.token_tree import Node, Tree
from shiftscope.core.edits.artefacts import LABELS, Affixes, classify
from shiftscope.core.edits.edit_slots import CLOSE, PHANTOM, UNCHANGED, Cut, Spelled, judged

Mask = NDArray[np.bool_]
Allowed = Callable[[Sequence[int]], Mask | None]  # ids of the slot so far -> which ids [V] may follow; None for all
Shape = Callable[[Tensor], Tensor]
LEADS = (b"", b" ", b"\n", b"\t", b"  ", b"\n\n", "\u00a0".encode())  # blanks in front of the word
TRAILS = (b"", b" ", b"\n")  # and behind it
FLOOR = 1e-9  # probability under which a way is not followed
ROWS = 64  # laws held at once
MOST_LABELLED = 20_000  # ways of one word that are sorted into artefacts


@dataclass(frozen=True)
class Surface:
    """How a vocabulary spells one word. ways: id sequences for the word or the space and the word, beyond the canonical one.

    labels: how many of them are which artefact, in the order of LABELS; empty where there are too many to look at each.
    canonical: pieces of the encoding in running text.
    """

    word: str
    ways: int
    labels: tuple[int, ...]
    canonical: tuple[bytes, ...]


def surface(tokens: TokenBytes, word: str, affixes: Affixes = Affixes()) -> Surface | None:
    """The phantom surface of a word; None where the tokenizer changes the word in running text."""
    before, after = f"the {word}".encode(), f"the {word} of".encode()
    spelled = Spelled.of(tokens.encode(after.decode()), tokens.spelled)
    place = spelled.text.find(before) + len("the")
    canonical = spelled.slot(place, place + len(f" {word}".encode())) if place >= len("the") else ""
    if isinstance(canonical, str):
        return None
    texts = (word.encode(), b" " + word.encode())
    ways = sum(count(tokens, text) for text in texts) - (not canonical.crosses)
    if ways > MOST_LABELLED:
        return Surface(word, ways, (), canonical.pieces)
    found = dict.fromkeys(LABELS, 0)
    for text in texts:
        for ids in segmentations(tokens, text):
            if ids != canonical.ids:
                found[classify(canonical.pieces, [tokens.spelled[i] or b"" for i in ids], affixes).label] += 1
    return Surface(word, ways, tuple(found.values()), canonical.pieces)


def _lattice(tokens: TokenBytes, text: bytes) -> list[list[tuple[int, list[int]]]]:
    """For each byte place of a text the later places that a token leads to, with all ids that do."""
    found: list[list[tuple[int, list[int]]]] = []
    for start in range(len(text)):
        steps = []
        for stop in range(start + 1, len(text) + 1):
            low, high = tokens.interval(text[start:stop])
            if low == high:
                break
            ids = tokens.equal(text[start:stop])
            if ids:
                steps.append((stop, ids))
        found.append(steps)
    return found


def count(tokens: TokenBytes, text: bytes) -> int:
    """How many id sequences spell a text."""
    ways = [0] * len(text) + [1]
    for start, steps in reversed(list(enumerate(_lattice(tokens, text)))):
        ways[start] = sum(len(ids) * ways[stop] for stop, ids in steps)
    return ways[0]


def segmentations(tokens: TokenBytes, text: bytes) -> Iterator[tuple[int, ...]]:
    """All id sequences that spell a text; their number grows exponentially with its length."""
    lattice = _lattice(tokens, text)
    open_: list[tuple[int, tuple[int, ...]]] = [(0, ())]
    while open_:
        place, ids = open_.pop()
        if place == len(text):
            yield ids
            continue
        open_ += [(stop, (*ids, token)) for stop, found in lattice[place] for token in found]


def canonical_in(rules: Validity, context: Sequence[int], judges_V: Mask) -> Allowed:
    """A decoding mask for one slot: its ids so far and the next must begin a canonical encoding.

    context: the ids in front of the slot. judges_V: ids that have bytes; others (an end token) always may follow.
    Where the slot's own ids are not canonical (they came from elsewhere), nothing is forbidden.
    """
    start = entered(rules, context)

    def allowed(ids: Sequence[int]) -> Mask | None:
        state: State | None = start
        for token in ids:
            state = rules.step(state, token)
            if state is None:
                return None
        return rules.row(state) | ~judges_V

    return allowed


def entered(rules: Validity, context: Sequence[int], reach: int = 32) -> State:
    """The state after a context's last tokens; it begins anew behind each token that is not canonical there."""
    state = rules.start
    for token in context[-reach:]:
        after = rules.step(state, token)
        if after is None:
            after = rules.step(rules.start, token)
        state = rules.start if after is None else after
    return state


@dataclass(frozen=True)
class Masses:
    """Exact probabilities of one slot. unchanged: of the reference's ids; phantom: of other ids for the same word.

    labels: phantom mass by artefact, in the order of LABELS. left_out: what ways that were not followed could add at most.
    """

    unchanged: float
    phantom: float
    labels: tuple[float, ...]
    left_out: float

    @property
    def word(self) -> float:
        """Of the word, whatever its ids."""
        return self.unchanged + self.phantom


@dataclass(frozen=True)
class _Way:
    node: Node
    ids: tuple[int, ...]
    ends: tuple[int, ...]
    text: bytes
    p: float


def masses(
    tree: Tree,
    root: Node,
    tokens: TokenBytes,
    reference: Cut,
    *,
    shape: Shape | None = None,
    allowed: Allowed | None = None,
    affixes: Affixes = Affixes(),
    floor: float = FLOOR,
) -> Masses:
    """The exact probability of each way to write the reference's word into the slot that a context opens.

    root: that context, a node of the tree. A way is blanks, the word, blanks and the closing bracket; its last token may
    reach beyond that.
    shape: from logits to the log-law that is drawn from (temperature, truncation); allowed: the decoding mask, if any.
    """
    texts = _texts(reference)
    found = dict.fromkeys((UNCHANGED, PHANTOM), 0.0)
    by_label = dict.fromkeys(LABELS, 0.0)
    left_out = 0.0
    open_ = [_Way(root, (), (), b"", 1.0)]
    while open_:
        some, open_ = open_[:ROWS], open_[ROWS:]
        for way, logp_V in zip(some, _laws(tree, some, shape, allowed), strict=True):
            rests = [text[len(way.text) :] for text in texts if text.startswith(way.text)]
            for rest in rests:
                low, high = tokens.interval(rest)
                closing = way.p * float(np.exp(logp_V[tokens.ids_J[low:high]]).sum())
                if closing > 0:
                    written = _closed(way, rest)
                    outcome = judged(reference, written)
                    found[outcome] += closing
                    if outcome == PHANTOM:
                        by_label[classify(reference.pieces, written.pieces, affixes).label] += closing
            for token in _inner(tokens, rests):
                p = way.p * math.exp(logp_V[token])
                if p > floor:
                    text = way.text + (tokens.spelled[token] or b"")
                    node = tree.child(way.node, token)
                    open_.append(_Way(node, (*way.ids, token), (*way.ends, len(text)), text, p))
                else:
                    left_out += p
    return Masses(found[UNCHANGED], found[PHANTOM], tuple(by_label.values()), left_out)


def _texts(reference: Cut) -> list[bytes]:
    """What may stand between the brackets, and the closing one, for the slot to hold the reference's word."""
    return [lead + reference.word + trail + CLOSE for lead in LEADS for trail in TRAILS]


def _laws(tree: Tree, ways: Sequence[_Way], shape: Shape | None, allowed: Allowed | None) -> list[NDArray[Any]]:
    laws = tree.laws([way.node for way in ways])
    if allowed is not None:
        masks = [allowed(way.ids) for way in ways]
        laws = [law if mask is None else np.where(mask, law, -np.inf) for law, mask in zip(laws, masks, strict=True)]
    if shape is None and allowed is None:
        return laws
    logits_NV = torch.from_numpy(np.stack(laws))
    return list((logits_NV.double().log_softmax(-1) if shape is None else shape(logits_NV)).numpy())


def _closed(way: _Way, rest: bytes) -> Cut:
    """The slot of a way that one more token closes: that token spells the rest and maybe more."""
    text = way.text + rest
    found = Spelled((*way.ids, -1), (*way.ends, len(text)), text, frozenset()).slot(0, len(text) - len(CLOSE))
    assert isinstance(found, Cut)
    return found


def _inner(tokens: TokenBytes, rests: Sequence[bytes]) -> list[int]:
    """Tokens that spell a beginning of one of these texts, not all of it."""
    starts = {rest[:stop] for rest in rests for stop in range(1, len(rest))}
    return sorted(token for start in starts for token in tokens.equal(start))


def byte_mass(law: ByteLaw, reference: Cut, floor: float = FLOOR) -> float:
    """The probability that a decoder which draws bytes from this law, from here on, writes the word into the slot."""
    return _followed(law, _texts(reference), 1.0, floor)


def _followed(law: ByteLaw, texts: Sequence[bytes], p: float, floor: float) -> float:
    p_256, total = law.law().p, 0.0
    for byte in {text[0] for text in texts}:
        after, rests = p * float(p_256[byte]), [text[1:] for text in texts if text[0] == byte]
        if b"" in rests:
            total += after
        rests = [rest for rest in rests if rest]
        if rests and after > floor:
            law.push(byte)
            total += _followed(law, rests, after, floor)
            law.pop()
    return total
