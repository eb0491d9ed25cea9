"""Two tokenizers on the same text: places where both cut, spans that they cut differently, tokens that both have."""

# N tokens

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from shiftscope.core.bytes import token_bytes
from shiftscope.core.tokenizers.segmentation import Cut, Tokens

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Difference:
    """Characters begin..end (over all documents end to end) that two tokenizers cut differently, into pieces."""

    begin: int
    end: int
    first: tuple[str, ...]
    second: tuple[str, ...]


def cut_agreement(first: Cut, second: Cut) -> tuple[float, int]:
    """Share of the places between characters where either cuts at which both cut, and how many there are.

    Ends of texts do not count; without any place the share is 1.
    """
    ends = _document_ends(first, second)
    ours, theirs = (np.setdiff1d(side.end_N, ends) for side in (first, second))
    either = len(np.union1d(ours, theirs))
    return (len(np.intersect1d(ours, theirs)) / either if either else 1.0), either


def _document_ends(*cuts: Cut) -> Ints:
    """Last places of the documents, of either tokenizer: one may drop a text's last blanks."""
    found = [cut.end_N[np.cumsum(cut.stream.lengths_D)[cut.stream.lengths_D > 0] - 1] for cut in cuts]
    return np.unique(np.concatenate(found))


def differences(first: Cut, second: Cut, texts: Sequence[str]) -> Iterator[Difference]:
    """The shortest spans that both tokenizers begin and end at one place and cut differently within."""
    whole = "".join(texts)
    document_ends = np.cumsum([len(text) for text in texts])
    common = np.union1d(np.intersect1d(first.end_N, second.end_N), document_ends)
    (counts, inner), (other_counts, other_inner) = _spans(first, common), _spans(second, common)
    differing = np.flatnonzero((counts != other_counts) | inner | other_inner)
    last, other_last = np.cumsum(counts), np.cumsum(other_counts)
    for span in differing.tolist():
        begin, end = int(common[span - 1]) if span else 0, int(common[span])
        ours = first.end_N[last[span] - counts[span] : last[span]]
        theirs = second.end_N[other_last[span] - other_counts[span] : other_last[span]]
        yield Difference(begin, end, _pieces(whole, begin, ours), _pieces(whole, begin, theirs))


def _spans(cut: Cut, common: Ints) -> tuple[Ints, NDArray[np.bool_]]:
    """Tokens that end in each span between common places, and whether one ends before the span does."""
    span_N = np.searchsorted(common, cut.end_N)
    inner = np.bincount(span_N[cut.end_N != common[span_N]], minlength=len(common)) > 0
    return np.bincount(span_N, minlength=len(common)), inner


def _pieces(whole: str, begin: int, ends: Ints) -> tuple[str, ...]:
    """The text between cuts; further tokens within one character are shown as an empty piece."""
    edges = [begin, *ends.tolist()]
    return tuple(whole[low:high] for low, high in pairwise(edges))


def most_common(found: Sequence[Difference], texts: Sequence[str], n: int) -> list[tuple[str, Difference, int]]:
    """The n most frequent differences: text, an example, and how often it is cut so."""
    whole = "".join(texts)
    counts = Counter((d.first, d.second) for d in found)
    example = {(d.first, d.second): d for d in reversed(found)}
    return [
        (whole[example[pair].begin : example[pair].end], example[pair], count) for pair, count in counts.most_common(n)
    ]


@dataclass(frozen=True)
class Overlap:
    """Vocabularies by the bytes that their tokens spell. shared, either: tokens in both, in either.

    of_first, of_second: share of each one's running tokens that the other has too.
    """

    shared: int
    either: int
    of_first: float
    of_second: float


def overlap(first: Tokens, second: Tokens, ours: Cut, theirs: Cut) -> Overlap:
    """What two vocabularies have in common. Raises ValueError where the bytes of a tokenizer's pieces are not known."""
    from transformers import PreTrainedTokenizerFast

    spelled = []
    for tokens in (first, second):
        wrapped = PreTrainedTokenizerFast(tokenizer_object=tokens.backend, clean_up_tokenization_spaces=False)
        spelled.append(token_bytes.read(wrapped, tokens.size).spelled)
    sets = [{text for text in side if text is not None} for side in spelled]
    known = [
        float(np.array([text in other for text in side])[cut.stream.ids_N].mean())
        for side, other, cut in ((spelled[0], sets[1], ours), (spelled[1], sets[0], theirs))
    ]
    return Overlap(len(sets[0] & sets[1]), len(sets[0] | sets[1]), *known)
