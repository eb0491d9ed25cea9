"""What a stream of symbols costs: block entropies with their controls, Rényi entropy, and universal codes in bits.

No model is in the loop: the stream itself is measured. Plug-in entropies are biased downwards where a stream is short for
its k-grams, so every order comes with its number of distinct k-grams, and `shuffled` makes the control: a stream of the
same symbols without order, whose true entropy is H_1 at every order.

Source: arXiv 2601.09039 (block entropies, capacity utilisation); Ziv and Lempel 1978 (the phrase code).
Deviation: H_k is the conditional entropy within the windows of k symbols, B_k less the entropy of those windows' own first
k-1 symbols; with documents B_k - B_(k-1) would mix two sets of windows, and could be negative.
"""

# N symbols, D documents, U distinct symbols

from __future__ import annotations

import lzma
import math
import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shiftscope.core import randomness

Ints = NDArray[np.int64]
Coder = Literal["deflate", "xz", "lz78"]
Packing = Literal["rank", "two_bytes", "bytes"]
TWO_BYTES = 1 << 16
SPARSE = 10  # with fewer windows than so many per distinct k-gram an entropy is not to be relied on


@dataclass(frozen=True)
class Stream:
    """Symbols of documents, end to end. ids_N: int64; lengths_D: how many symbols each document has; they sum to N."""

    ids_N: Ints
    lengths_D: Ints

    def __post_init__(self) -> None:
        assert int(self.lengths_D.sum()) == len(self.ids_N), "lengths do not sum to the stream"

    @property
    def starts_D(self) -> Ints:
        """Where each document begins."""
        return np.cumsum(self.lengths_D) - self.lengths_D

    @property
    def document_N(self) -> Ints:
        """The document of each symbol."""
        return np.repeat(np.arange(len(self.lengths_D)), self.lengths_D)

    def of(self, chosen_D: ArrayLike) -> Stream:
        """The stream of some documents: a mask, or document numbers in the order wanted."""
        chosen = np.asarray(chosen_D)
        numbers = np.flatnonzero(chosen) if chosen.dtype == bool else chosen
        starts = self.starts_D
        slices = [self.ids_N[starts[d] : starts[d] + self.lengths_D[d]] for d in numbers]
        return Stream(np.concatenate([np.empty(0, np.int64), *slices]), self.lengths_D[numbers].astype(np.int64))

    def shuffled(self, seed: int = 0) -> Stream:
        """The same symbols in random order over the same document lengths: the control for every order above 1."""
        return Stream(np.random.default_rng(seed).permutation(self.ids_N), self.lengths_D)

    def sample(self, n: int, seed: int = 0) -> Stream:
        """n symbols: documents in an order drawn from seed, the last one cut. Raises ValueError beyond the stream."""
        if not 0 < n <= len(self.ids_N):
            raise ValueError(f"{n} symbols were asked for of a stream of {len(self.ids_N)}")
        order = np.argsort(randomness.uniforms(seed, np.arange(len(self.lengths_D)), 0), kind="stable")
        whole = self.of(order)
        ends = np.minimum(np.cumsum(whole.lengths_D), n)
        return Stream(whole.ids_N[:n], np.diff(ends, prepend=0))


@dataclass(frozen=True)
class Order:
    """H_k = H(t_k | t_1..t_(k-1)) in bits per symbol; NaN where no document has k symbols. k = 1: unigram entropy.

    windows: k-grams that lie within a document; distinct: different ones among them; block_bits: their entropy B_k.
    """

    k: int
    bits: float
    windows: int
    distinct: int
    block_bits: float

    @property
    def reliable(self) -> bool:
        """Whether there are ten windows for each distinct k-gram; below that plug-in bias can make the whole figure."""
        return self.windows > 0 and self.distinct * SPARSE <= self.windows


def orders(stream: Stream, highest: int = 5) -> list[Order]:
    """Entropies of orders 1 to highest, exact counts, windows within documents.

    A k-gram is numbered through the number of its first k-1 symbols, so that pairs of int64 suffice at any order.
    """
    _, symbol_N = np.unique(stream.ids_N, return_inverse=True)
    room_N = np.repeat(stream.lengths_D, stream.lengths_D) - _place(stream)
    distinct_symbols = int(symbol_N.max(initial=-1)) + 1
    window, context = np.arange(len(symbol_N)), np.zeros(len(symbol_N), dtype=np.int64)
    found = []
    for k in range(1, highest + 1):
        fits = room_N[window] >= k
        window, context = window[fits], context[fits]
        if not len(window):
            found.append(Order(k, math.nan, 0, 0, math.nan))
            continue
        codes = context * distinct_symbols + symbol_N[window + k - 1]
        _, grams, counts = np.unique(codes, return_inverse=True, return_counts=True)
        block = entropy_bits(counts)
        bits = block - entropy_bits(np.bincount(context))
        found.append(Order(k, max(0.0, bits), len(window), len(counts), block))
        context = grams
    return found


def _place(stream: Stream) -> Ints:
    return np.arange(len(stream.ids_N)) - np.repeat(stream.starts_D, stream.lengths_D)


def entropy_bits(counts_U: ArrayLike) -> float:
    """Shannon entropy of relative frequencies, in bits; NaN without a count. Zero counts weigh nothing."""
    counts = np.asarray(counts_U, dtype=np.float64)
    counts = counts[counts > 0]
    total = counts.sum()
    return float(np.log2(total) - (counts * np.log2(counts)).sum() / total) if total else math.nan


def renyi_bits(counts_U: ArrayLike, alpha: float = 2.0) -> float:
    """Rényi entropy 1/(1-α)·log2 Σ p^α, in bits; α = 1 is Shannon's. NaN without a count. Raises ValueError for α < 0."""
    if alpha < 0:
        raise ValueError(f"alpha is {alpha}: an entropy's order must be at least 0")
    if alpha == 1:
        return entropy_bits(counts_U)
    counts = np.asarray(counts_U, dtype=np.float64)
    counts = counts[counts > 0]
    if not len(counts):
        return math.nan
    return float(np.log2(((counts / counts.sum()) ** alpha).sum()) / (1 - alpha))


def code_bits(ids_N: ArrayLike, size: int, coder: Coder = "deflate", packing: Packing = "rank") -> float:
    """Length in bits of a universal code of symbols 0..size-1.

    coder: deflate (window of 32 KiB), xz (a window over everything) or lz78 (over the symbols themselves, unpacked).
    packing: the bytes that deflate and xz read, see `packed`.
    """
    ids = np.asarray(ids_N, dtype=np.int64)
    if coder == "lz78":
        return lz78_bits(ids, size)
    data = packed(ids, size, packing)
    return deflate_bits(data) if coder == "deflate" else xz_bits(data)


def packed(ids_N: ArrayLike, size: int, packing: Packing = "rank") -> bytes:
    """Symbols as bytes for a byte coder.

    rank: the rank by frequency in this stream (ties: the smaller id), 7 bits a byte, the last byte's top bit clear; the
    table of ranks is not part of it. two_bytes: the id in two bytes, little-endian. bytes: the id in one.
    Raises ValueError for two_bytes with more than 65 536 symbols and for bytes with more than 256.
    """
    ids = np.asarray(ids_N, dtype=np.int64)
    if packing == "bytes":
        if size > 256:
            raise ValueError(f"ids of {size} symbols do not fit in a byte: pack them by rank")
        return ids.astype(np.uint8).tobytes()
    if packing == "two_bytes":
        if size > TWO_BYTES:
            raise ValueError(f"ids of {size} symbols do not fit in two bytes: pack them by rank")
        return ids.astype("<u2").tobytes()
    counts_U = np.bincount(ids, minlength=1)
    rank_U = np.empty(len(counts_U), dtype=np.int64)
    rank_U[np.argsort(-counts_U, kind="stable")] = np.arange(len(counts_U))
    return _varints(rank_U[ids])


def _varints(values_N: Ints) -> bytes:
    length_N = np.ones(len(values_N), dtype=np.int64)
    for bits in range(7, 63, 7):
        length_N += values_N >> bits > 0
    start_N = np.cumsum(length_N) - length_N
    out = np.zeros(int(length_N.sum()), dtype=np.uint8)
    for byte in range(int(length_N.max(initial=0))):
        here = length_N > byte
        more = (length_N[here] > byte + 1).astype(np.int64) << 7
        out[start_N[here] + byte] = (values_N[here] >> 7 * byte & 127) | more
    return out.tobytes()


def deflate_bits(data: bytes) -> int:
    """Bits of raw deflate at level 9, without header or checksum."""
    coder = zlib.compressobj(9, zlib.DEFLATED, -15)
    return 8 * (len(coder.compress(data)) + len(coder.flush()))


def xz_bits(data: bytes) -> int:
    """Bits of a raw LZMA2 stream whose window covers the data (64 MiB at most)."""
    window = min(1 << 26, max(4096, 1 << (len(data) - 1).bit_length())) if data else 4096
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": window}]
    return 8 * len(lzma.compress(data, format=lzma.FORMAT_RAW, filters=filters))


def lz78_bits(ids_N: ArrayLike, size: int) -> float:
    """Σ_j (log2 j + log2 size) over the phrases of the LZ78 parse; an unfinished last phrase costs its pointer only."""
    phrases: dict[tuple[int, int], int] = {}
    node, count = 0, 0
    for symbol in np.asarray(ids_N).tolist():
        following = phrases.get((node, symbol))
        if following is None:
            count += 1
            phrases[node, symbol] = count
            node = 0
        else:
            node = following
    pointers = math.lgamma(count + 1) / math.log(2)
    return pointers + count * math.log2(size) + (math.log2(count + 1) if node else 0.0)
