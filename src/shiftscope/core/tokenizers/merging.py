"""Merges of byte-pair encoding, learnt one at a time: the most frequent pair, or the candidate that compresses best.

`tokenizers` trains plain BPE faster; this engine exists because a compression-aware choice must look at the stream
after every candidate, and because merges can be added on top of any tokenizer's stream.

Source: arXiv 2601.09039 (merges that minimise a compressor's output on a validation stream).
Deviation: the candidates are the `candidates` most frequent pairs of the training stream, and a candidate seen less than a
tenth as often as the most frequent one is skipped: the paper does not say which it tries.
"""

# N symbols, BORDER between words or documents

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Pair = tuple[int, int]
BORDER = -1  # a symbol that no merge crosses
RARE = 10  # a candidate this many times rarer than the most frequent pair is not tried
_SHIFT = 32


@dataclass(frozen=True)
class Merge:
    """left and right become one new symbol. count: neighbours in the training stream before it.

    code_bits: length of the validation stream's code after it; None where none was measured.
    """

    left: int
    right: int
    new: int
    count: int
    code_bits: float | None = None


def merged(symbols_N: Ints, pair: Pair, new: int) -> Ints:
    """The stream with a pair replaced by a new symbol, from the left and without overlap: aaa with (a, a) is (aa)a."""
    return _replaced(symbols_N, _hits(symbols_N, pair), new)


def _hits(symbols_N: Ints, pair: Pair) -> Ints:
    """Places of the left symbols that are merged."""
    hits = np.flatnonzero((symbols_N[:-1] == pair[0]) & (symbols_N[1:] == pair[1]))
    if pair[0] != pair[1] or not len(hits):
        return hits
    begins = np.diff(hits, prepend=-2) != 1  # a run of equal symbols: every second place
    index = np.arange(len(hits))
    return hits[(index - np.maximum.accumulate(np.where(begins, index, 0))) % 2 == 0]


def _replaced(symbols_N: Ints, hits: Ints, new: int) -> Ints:
    out = symbols_N.copy()
    out[hits] = new
    keep = np.ones(len(out), dtype=bool)
    keep[hits + 1] = False
    return out[keep]


def bordered(symbols_N: Ints, starts_N: NDArray[np.bool_]) -> Ints:
    """The stream with a BORDER in front of every symbol that starts a word or a document."""
    return np.insert(symbols_N, np.flatnonzero(starts_N), BORDER)


class Pairs:
    """A stream with the counts of its neighbours, kept up to date through merges."""

    def __init__(self, symbols_N: Ints) -> None:
        self.symbols_N = symbols_N
        self._counts: dict[Pair, int] = {}
        self._heap: list[tuple[int, int, int]] = []  # counts in it may be too high, never too low
        self._add(np.arange(max(0, len(symbols_N) - 1)), 1)

    def _add(self, places: Ints, sign: int) -> None:
        """Count the neighbours at these places, once each; what grew goes on the heap."""
        left, right = self.symbols_N[places], self.symbols_N[places + 1]
        inside = (left >= 0) & (right >= 0)
        codes, counts = np.unique((left[inside] << _SHIFT) | right[inside], return_counts=True)
        for code, count in zip(codes.tolist(), counts.tolist(), strict=True):
            pair = code >> _SHIFT, code & (1 << _SHIFT) - 1
            self._counts[pair] = self._counts.get(pair, 0) + sign * count
            if sign > 0:
                heapq.heappush(self._heap, (-self._counts[pair], *pair))

    def top(self, k: int) -> list[tuple[Pair, int]]:
        """The k most frequent pairs that occur twice, with their counts; ties: the smaller pair first."""
        found: dict[Pair, int] = {}
        while self._heap and len(found) < k:
            count, left, right = heapq.heappop(self._heap)
            now, pair = self._counts[left, right], (left, right)
            if pair in found or now < 2:
                continue
            if now != -count:
                heapq.heappush(self._heap, (-now, left, right))
            else:
                found[pair] = now
        for pair, count in found.items():
            heapq.heappush(self._heap, (-count, *pair))
        return list(found.items())

    def merge(self, pair: Pair, new: int) -> None:
        """Replace a pair everywhere; only its neighbourhoods are counted again."""
        hits = _hits(self.symbols_N, pair)
        last = len(self.symbols_N) - 1
        around = np.unique(np.concatenate([hits - 1, hits, hits + 1]))
        self._add(around[(around >= 0) & (around < last)], -1)
        self.symbols_N = _replaced(self.symbols_N, hits, new)
        now = hits - np.arange(len(hits))  # each merge before it took one place away
        around = np.unique(np.concatenate([now - 1, now]))
        self._add(around[(around >= 0) & (around < len(self.symbols_N) - 1)], 1)


def learn(
    train_N: Ints,
    n: int,
    *,
    first_new: int,
    pieces: Sequence[str] = (),
    valid_N: Ints | None = None,
    code_bits: Callable[[Ints, int], float] | None = None,
    candidates: int = 8,
    patience: int | None = None,
) -> Iterator[Merge]:
    """Merges until there are n new symbols, each the most frequent pair, or the candidate that shortens a code most.

    first_new: number of the first new symbol (how many there are before). pieces: strings of the symbols before; where
    they are given, a merge that spells a string which is there already makes that symbol, not a new one.
    code_bits: (symbols of valid_N, how many different ones there could be) -> bits, BORDERs taken out first; the one of
    `candidates` pairs is merged that makes this least (ties: the more frequent, then the smaller pair). None: plain BPE.
    patience: end after so many merges in a row that did not shorten the code (those are given too).
    Ends early where no pair occurs twice.
    """
    pairs, valid, best_bits, waited = Pairs(train_N), valid_N, np.inf, 0
    spelled, number = list(pieces), {piece: symbol for symbol, piece in enumerate(pieces)}
    free = first_new
    while free < first_new + n:
        tried = pairs.top(candidates if code_bits else 1)
        if not tried:
            return
        (pair, count), bits = tried[0], None
        if code_bits is not None:
            assert valid is not None, "a code needs a validation stream"
            pair, count, bits = _shortest(tried, valid, free, code_bits)
        new = free
        if pieces:
            piece = spelled[pair[0]] + spelled[pair[1]]
            new = number.setdefault(piece, free)
            spelled += [piece] if new == free else []
        free += new == free
        pairs.merge(pair, new)
        yield Merge(*pair, new, count, bits)
        if valid is not None and bits is not None:
            valid = merged(valid, pair, new)
            waited = 0 if bits < best_bits else waited + 1
            best_bits = min(best_bits, bits)
        if patience is not None and waited >= patience:
            return


def _shortest(
    tried: Sequence[tuple[Pair, int]], valid_N: Ints, new: int, code_bits: Callable[[Ints, int], float]
) -> tuple[Pair, int, float]:
    """The candidate after which the validation stream has the shortest code, its count, and that code's bits."""
    found: list[tuple[float, Pair, int]] = []
    for pair, count in tried:
        if count * RARE >= tried[0][1]:
            after = merged(valid_N, pair, new)
            found.append((code_bits(after[after >= 0], new + 1), pair, count))
    bits, pair, count = min(found, key=lambda entry: entry[0])
    return pair, count, bits
