"""Phantom edits by kind: other token ids for the same word, sorted into eight artefacts by rules that read only pieces.

Source: arXiv 2601.14658 (the eight artefacts and an example of each). The paper gives no decision rules: these are ours,
they label its eight examples as it does. A ninth label is ours too: other ids for the very same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

SHIFT, DETACHMENT, NEWLINE = "whitespace_boundary_shift", "whitespace_detachment", "newline_substitution"
INTRA, NAME, MORPHOLOGICAL = "intra_word_resegmentation", "proper_noun_segmentation", "morphological_boundary"
ACRONYM, TAIL, TWIN = "acronym_split", "plural_possessive_tail", "same_bytes_other_id"
LABELS = (SHIFT, DETACHMENT, NEWLINE, INTRA, NAME, MORPHOLOGICAL, ACRONYM, TAIL, TWIN)
TAILS = ("s", "es", "'s", "’s", "s'", "s’", "'", "’")
_BLANK = rb"(?: |\xc2\xa0|\t|\r|\n|\xe2\x96\x81)*"
_LEADING, _TRAILING = re.compile(_BLANK), re.compile(_BLANK + rb"\Z")


@dataclass(frozen=True)
class Affixes:
    """Affixes at whose boundary a cut is called morphological; the defaults are English.

    prefixes: that may stand alone before the rest of a word. suffixes: that may stand alone after it.
    """

    prefixes: tuple[str, ...] = (
        "un", "re", "in", "im", "ir", "il", "dis", "non", "pre", "over", "mis", "sub", "super", "inter", "fore", "de",
        "trans", "anti", "auto", "co", "counter", "en", "em", "ex", "extra", "hyper", "mid", "multi", "out", "post",
        "pro", "semi", "under", "up", "micro", "mega", "bi", "tri",
    )  # fmt: skip
    suffixes: tuple[str, ...] = (
        "ing", "ed", "er", "ers", "est", "ly", "ness", "ment", "ments", "able", "ible", "ful", "less", "tion", "tions",
        "sion", "ation", "ity", "al", "ally", "ive", "ous", "ish", "ist", "ism", "ize", "ise", "ized", "ised", "ance",
        "ence", "ant", "ent", "hood", "ship", "ward", "wards", "wise", "dom", "age", "ary", "ory", "ic", "ical", "or",
    )  # fmt: skip


@dataclass(frozen=True)
class Artefact:
    """label: the primary artefact. also: others that apply too, such as a lost space beside a new cut."""

    label: str
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Peeled:
    """Pieces without the blanks around them. lead, trail: those blanks; own_*: whether they had a token of their own."""

    lead: bytes
    trail: bytes
    own_lead: bool
    own_trail: bool
    core: tuple[bytes, ...]


def stripped(text: bytes) -> bytes:
    """Text without space, no-break space, tab, CR, LF and the SentencePiece mark on either side; case is kept."""
    begin, end = core_span(text)
    return text[begin:end]


def core_span(text: bytes) -> tuple[int, int]:
    """Where the text without the blanks around it begins and ends; both at the end where nothing else is in it."""
    lead = _LEADING.match(text)
    begin = lead.end() if lead else 0
    trail = _TRAILING.search(text, begin)
    return begin, trail.start() if trail else len(text)


def peel(pieces: Sequence[bytes]) -> Peeled:
    """Split the blanks around the word off its pieces."""
    text = b"".join(pieces)
    begin, end = core_span(text)
    core: list[bytes] = []
    own_lead = own_trail = False
    place = 0
    for piece in pieces:
        inside = piece[max(0, begin - place) : max(0, end - place)]
        if inside:
            core.append(inside)
        elif piece:
            own_lead |= place < begin
            own_trail |= place >= begin
        place += len(piece)
    return Peeled(text[:begin], text[end:], own_lead, own_trail, tuple(core))


def classify(before: Sequence[bytes], after: Sequence[bytes], affixes: Affixes = Affixes()) -> Artefact:
    """The artefact that turns the pieces of a word into other pieces of the same word.

    before, after: the bytes of each token, blanks included. The order of the two matters only where both have the same
    number of pieces: then `after` counts as the finer one.
    Raises ValueError where they spell different words: that is a replacement.
    """
    first, second = peel(before), peel(after)
    word = b"".join(first.core)
    if word != b"".join(second.core):
        raise ValueError(
            f"{_shown(before)} and {_shown(after)} are different words: a phantom edit keeps the word, only blanks around "
            f"it may differ"
        )
    blanks = _blank_artefact(first, second)
    if first.core != second.core:
        fine, coarse = (first.core, second.core) if len(first.core) > len(second.core) else (second.core, first.core)
        found = _cut_artefacts(fine, coarse, word.decode("utf-8", "replace"), affixes)
        return Artefact(found[0], (*found[1:], *([blanks] if blanks else [])))
    if tuple(before) == tuple(after):
        own = first.own_lead or first.own_trail
        return Artefact((NEWLINE if _has_newline(first) else DETACHMENT) if own else TWIN)
    return Artefact(blanks or SHIFT)


def _blank_artefact(first: Peeled, second: Peeled) -> str | None:
    """What happened to the blanks around a word; None where nothing did."""
    if _has_newline(first) != _has_newline(second):
        return NEWLINE
    if (first.own_lead, first.own_trail) != (second.own_lead, second.own_trail):
        return DETACHMENT
    return SHIFT if (first.lead, first.trail) != (second.lead, second.trail) else None


def _has_newline(peeled: Peeled) -> bool:
    return any(blank in peeled.lead + peeled.trail for blank in (b"\n", b"\r", b"\t"))


def _cut_artefacts(fine: Sequence[bytes], coarse: Sequence[bytes], word: str, affixes: Affixes) -> list[str]:
    """All artefacts that a new cut inside a word may be called, the primary one first."""
    pieces = [piece.decode("utf-8", "replace") for piece in fine]
    found = []
    if word.isalpha() and len(word) >= 2 and word.isupper():
        found.append(ACRONYM)
    if pieces[-1] in TAILS and coarse[-1] != fine[-1]:
        found.append(TAIL)
    if len(pieces) == 2 and len(coarse) == 1:
        before, after = (piece.lower() for piece in pieces)
        is_prefix = before in affixes.prefixes and len(after) >= 3
        if is_prefix or (after in affixes.suffixes and len(before) >= 3):
            found.append(MORPHOLOGICAL)
    if len(word) >= 2 and word[0].isupper() and word[1:].islower():
        found.append(NAME)
    return found or [INTRA]


def _shown(pieces: Sequence[bytes]) -> str:
    return "|".join(piece.decode("utf-8", "replace") for piece in pieces)
