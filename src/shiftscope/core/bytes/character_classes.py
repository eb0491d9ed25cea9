"""Texts by the classes of their characters: what a pre-tokenizer can tell apart, and what may follow a begun text."""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from itertools import pairwise

import numpy as np

WITNESSES = (
    "",
    "a",
    "A",
    " ",
    " a",
    "\n",
    "\na",
    "1",
    "11",
    ".",
    ".a",
    "s",
    "re",
    "'s",
    "\u4e2d",
    " \n",
    "\u0301",
    "/",
)
CLASS_OF = {
    "Ll": "\u00e9", "Lu": "\u00c9", "Lt": "\u01c5", "Lm": "\u02b0", "Lo": "\u0627", "Mn": "\u0301", "Mc": "\u0903",
    "Me": "\u0488", "Nd": "\u0663", "Nl": "\u2167", "No": "\u00b2",
}  # fmt: skip


@lru_cache(maxsize=4096)
def completions(begun: bytes) -> tuple[bytes, ...] | None:
    """Endings that make a begun character whole, one per class of character; (b"",) where it is whole, None where none can."""
    try:
        begun.decode()
    except UnicodeDecodeError as error:
        if error.reason != "unexpected end of data" or error.start:
            return None
    else:
        return (b"",)
    missing = {0xC0: 2, 0xE0: 3, 0xF0: 4}[min(begun[0] & 0xF0, 0xF0) if begun[0] >= 0xE0 else 0xC0] - len(begun)
    steps = [range(0x80, 0xC0)] if missing == 1 else [range(0x80, 0xC0), range(0x80, 0xC0, 5)]
    if missing == 3:
        steps = [range(0x80, 0xC0, 3), range(0x80, 0xC0, 7), range(0x80, 0xC0, 21)]
    found: dict[str, bytes] = {}
    endings = [b""]
    for step in steps:
        endings = [ending + bytes([byte]) for ending in endings for byte in step]
    for ending in endings:
        try:
            character = (begun + ending).decode()
        except UnicodeDecodeError:
            continue
        category = unicodedata.category(character)
        found.setdefault(category if category[0] == "L" else category[0], ending)
    return tuple(found.values()) or None


@lru_cache(maxsize=65536)
def representative(character: str) -> str:
    """A character that pre-tokenizers cannot tell from this one: ASCII by case, others by Unicode category."""
    if character.isascii():
        if character.isalpha():
            return "a" if character.islower() else "A"
        return "1" if character.isdigit() else character
    if "\u3040" <= character <= "\u30ff":
        return "\u3042"
    if "\u4e00" <= character <= "\u9fff":
        return "\u4e2d"
    return CLASS_OF.get(unicodedata.category(character), character)


@lru_cache(maxsize=1 << 18)
def pattern(text: bytes, raw: bool = False) -> bytes:
    """Text by classes of characters: letters as one letter, runs of them as two, letters after an apostrophe as they are.

    raw: keep the first two characters, which an apostrophe before the text may bind. Begun characters stay.
    """
    found: list[str] = []
    keep = 2 if raw else 0
    for character in text.decode("utf-8", "surrogateescape"):
        if character in "'’":
            keep = 3
        kept = keep > 0 or "\udc80" <= character <= "\udcff"
        keep -= keep > 0
        each = character if kept else representative(character)
        if not (each.isalpha() and found[-2:] == [each, each] and not kept):
            found.append(each)
    return "".join(found).encode("utf-8", "surrogateescape")


@lru_cache(maxsize=1 << 16)
def compressed(tail: bytes, cuts: tuple[tuple[int, bool], ...]) -> tuple[bytes, tuple[tuple[int, bool], ...]]:
    """A tail by classes of characters, token by token, with the places of its cuts moved along."""
    places = [0, *(place for place, _ in cuts), len(tail)]
    pieces: list[bytes] = []
    for low, high in pairwise(places):
        before = tail[max(0, low - 3) : low]
        pieces.append(pattern(tail[low:high], b"'" in before or "’".encode() in tail[max(0, low - 5) : low]))
    ends = np.cumsum([len(piece) for piece in pieces]).tolist()
    return b"".join(pieces), tuple((end, joins) for end, (_, joins) in zip(ends, cuts, strict=False))
