"""One row of figures about one stream of tokens: compression, entropies with controls, utilisation and universal codes.

Source: arXiv 2601.09039 (the quantities); arXiv 2306.16842 (Rényi utilisation).
Deviation: no entropy is given alone. Beside each H_k stand the same stream's shuffled control, the value at an equal number
of tokens, and whether there are ten windows for each k-gram: H_k falling with more training is mostly plug-in bias.
"""

# D documents, N tokens, U distinct tokens

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shiftscope.core import randomness, statistics
from shiftscope.core.result import Figure
from shiftscope.core.tokenizers import coding, ngram
from shiftscope.core.tokenizers.coding import Coder, Ints, Packing, Stream

Row = dict[str, Any]
CODERS: tuple[Coder, ...] = ("deflate", "xz", "lz78")


@dataclass(frozen=True)
class Measuring:
    """How streams of tokens are measured.

    order: highest order of the entropies. alpha: order of the Rényi entropy. equal_n: tokens of the equal-length entropies
    (default: as many as the shortest stream of the group has). coded_bytes: universal codes read about so many bytes of
    text, whole documents. lossy: give bits per character for tokenizers that lose some of the text too. seed: of shuffled
    controls and samples.
    """

    order: int = 5
    alpha: float = 2.0
    equal_n: int | None = None
    coded_bytes: int = 1_000_000
    lossy: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.order <= 8:
            raise ValueError(f"order is {self.order}: entropies are counted for orders 1 to 8")
        if self.alpha < 0:
            raise ValueError(f"alpha is {self.alpha}: it must be at least 0")
        for name in ("equal_n", "coded_bytes"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")


@dataclass(frozen=True)
class Sizes:
    """How much text each document is. characters_D, bytes_D: int64, bytes of UTF-8."""

    characters_D: Ints
    bytes_D: Ints

    @classmethod
    def of(cls, texts: Sequence[str]) -> Sizes:
        """Sizes of the texts."""
        counts = [(len(text), len(text.encode())) for text in texts]
        characters, octets = np.array(counts, dtype=np.int64).reshape(-1, 2).T
        return cls(characters, octets)

    def select(self, chosen_D: np.ndarray[Any, Any]) -> Sizes:
        """Sizes of some documents."""
        return Sizes(self.characters_D[chosen_D], self.bytes_D[chosen_D])


def byte_stream(texts: Sequence[str]) -> Stream:
    """The texts as a stream of their bytes: the baseline of every tokenizer."""
    data = [np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64) for text in texts]
    return Stream(np.concatenate(data), np.array(list(map(len, data)), dtype=np.int64))


def compression(stream: Stream, sizes: Sizes, size: int, alpha: float = 2.0) -> Row:
    """Tokens per character and bytes per token, with 95 % intervals over documents; how the vocabulary is used.

    utilisation: H_1 / log2 K with K all ids; used_utilisation: with K the ids that occur; both None for K = 1. A reserved
    id that no text can use lowers the first.
    """
    n, characters, octets = len(stream.ids_N), int(sizes.characters_D.sum()), int(sizes.bytes_D.sum())
    per_character = ratio_figure(stream.lengths_D, sizes.characters_D, "tokens/char")
    per_token = ratio_figure(sizes.bytes_D, stream.lengths_D, "bytes/token")
    counts_U = np.unique(stream.ids_N, return_counts=True)[1]
    used, h1, renyi = len(counts_U), coding.entropy_bits(counts_U), coding.renyi_bits(counts_U, alpha)
    capacity = math.log2(size)
    return {
        "documents": len(stream.lengths_D), "characters": characters, "bytes": octets, "tokens": n,
        "vocabulary": size, "used": used, "used_share": used / size,
        **{f"tokens_per_char{suffix}": value for suffix, value in _interval(per_character)},
        **{f"bytes_per_token{suffix}": value for suffix, value in _interval(per_token)},
        "utilisation": h1 / capacity if size > 1 else None,
        "renyi_utilisation": renyi / capacity if size > 1 else None,
        "used_utilisation": h1 / math.log2(used) if used > 1 else None,
    }  # fmt: skip


def _interval(figure: Figure) -> list[tuple[str, Any]]:
    return [("", figure.value), ("_low", figure.low), ("_high", figure.high)]


def ratio_figure(above_D: Ints, below_D: Ints, unit: str) -> Figure:
    """Σ above / Σ below with its bootstrap interval over documents. Raises ValueError where there is nothing below."""
    if not below_D.sum():
        raise ValueError(f"no {unit}: there is nothing to divide by")
    value = float(above_D.sum() / below_D.sum())
    low, high = np.quantile(statistics.resampled_ratios(above_D, below_D, samples=400), [0.025, 0.975])
    return Figure(value, unit, len(above_D), min(float(low), value), max(float(high), value))


def entropies(stream: Stream, measuring: Measuring, equal_n: int) -> Row:
    """H_k of every order in bits per token: h{k}_bits, its _shuffled control, _equal length value, _gap and _reliable.

    h{k}_block_bits: B_k, the entropy of the k-grams. The gap is the control less H_k: what order tells, of which most of
    the bias cancels. None where nothing fits.
    """
    own = coding.orders(stream, measuring.order)
    control = coding.orders(stream.shuffled(measuring.seed), measuring.order)
    fits = equal_n <= len(stream.ids_N)
    equal = coding.orders(stream.sample(equal_n, measuring.seed), measuring.order) if fits else [None] * measuring.order
    row: Row = {"equal_n": equal_n if fits else None}
    for order, shuffled, short in zip(own, control, equal, strict=True):
        name = f"h{order.k}"
        row[f"{name}_bits"] = _known(order.bits)
        row[f"{name}_block_bits"] = _known(order.block_bits)
        row[f"{name}_shuffled_bits"] = _known(shuffled.bits)
        row[f"{name}_gap_bits"] = _known(shuffled.bits - order.bits)
        row[f"{name}_equal_bits"] = _known(short.bits) if short else None
        row[f"{name}_distinct"], row[f"{name}_windows"] = order.distinct, order.windows
        row[f"{name}_reliable"] = order.reliable
    return row


def per_character(row: Row, order: int) -> Row:
    """h{k}_bits_per_char, H_k times tokens per character: the unit that tokenizers with other numbers of tokens share.

    row: from `compression` and `entropies`. Where an order is unreliable this is too.
    """
    bits = {k: row[f"h{k}_bits"] for k in range(1, order + 1)}
    return {f"h{k}_bits_per_char": None if b is None else b * row["tokens_per_char"] for k, b in bits.items()}


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def codes(stream: Stream, sizes: Sizes, size: int, measuring: Measuring, packing: Packing = "rank") -> Row:
    """Bits per character of text under each code of the ids.

    memoryless: an ideal code of single tokens (H_1); fixed: log2 K each; deflate and xz read ids packed as varints of
    their frequency ranks (deflate_two_bytes: ids in two bytes, None beyond 65 536), lz78 reads ids. The last four are over
    the first documents, `coded_characters` in all.
    """
    share = len(stream.ids_N) / int(sizes.characters_D.sum())
    h1 = coding.entropy_bits(np.unique(stream.ids_N, return_counts=True)[1])
    ahead = np.cumsum(sizes.bytes_D) - sizes.bytes_D < measuring.coded_bytes
    ids, characters = stream.of(ahead).ids_N, int(sizes.characters_D[ahead].sum())
    two_bytes = packing == "rank" and size <= coding.TWO_BYTES
    return {
        "memoryless_bits_per_char": h1 * share,
        "fixed_bits_per_char": math.log2(size) * share,
        **{f"{coder}_bits_per_char": coding.code_bits(ids, size, coder, packing) / characters for coder in CODERS},
        "deflate_two_bytes_bits_per_char": coding.code_bits(ids, size, "deflate", "two_bytes") / characters
        if two_bytes
        else None,
        "coded_characters": characters,
    }


def halves(n: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Which of n documents are learnt from: half of them, drawn from seed; the rest is held out."""
    learnt_D = np.zeros(n, dtype=bool)
    learnt_D[np.argsort(randomness.uniforms(seed, np.arange(n), 1), kind="stable")[::2]] = True
    return learnt_D


def predictions(stream: Stream, sizes: Sizes, size: int, measuring: Measuring) -> Row:
    """ngram{k}_bits_per_char: price of one half of the documents under smoothed k-grams of the other; None for one document."""
    learnt_D = halves(len(stream.lengths_D), measuring.seed)
    held_out = int(sizes.characters_D[~learnt_D].sum())
    usable = held_out > 0 and stream.lengths_D[learnt_D].sum() > 0
    bits = (
        ngram.held_out_bits(stream, learnt_D, size, measuring.order) / held_out if usable else [None] * measuring.order
    )
    return {f"ngram{k}_bits_per_char": None if b is None else float(b) for k, b in enumerate(bits, start=1)} | {
        "held_out_characters": held_out
    }
