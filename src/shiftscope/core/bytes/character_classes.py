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
SHORTEST = {2: 0x80, 3: 0x800, 4: 0x10000}  # first character that takes so many bytes


def begun_with(begun: bytes) -> range:
    """The codes of all characters that begin with these bytes, surrogates among them; one byte at least, no whole character."""
    width = 2 if begun[0] < 0xE0 else 3 if begun[0] < 0xF0 else 4
    code = begun[0] & 0x7F >> width
    for byte in begun[1:]:
        code = code << 6 | byte & 0x3F
    bits = 6 * (width - len(begun))
    return range(max(code << bits, SHORTEST[width]), min((code + 1) << bits, 0x110000))


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
    found: dict[str, str] = {}
    for character in map(chr, begun_with(begun)):
        category = unicodedata.category(character)
        if category != "Cs":  # surrogates are no text
            found.setdefault(category if category[0] == "L" else category[0], character)
    return tuple(character.encode()[len(begun) :] for character in found.values())


@lru_cache(maxsize=65536)
def representative(character: str) -> str:
    """A character that pre-tokenizers cannot tell from this one: ASCII by case, others by Unicode category.

    Letters of kana, and ideographs in the range that rules name, have one of their own; what rules may name by script or
    by block stands for itself.
    """
    if character.isascii():
        if character.isalpha():
            return "a" if character.islower() else "A"
        return "1" if character.isdigit() else character
    category = unicodedata.category(character)
    if "\u3040" <= character <= "\u30ff":
        return "\u3042" if category == "Lo" else character
    if "\u4e00" <= character <= "\u9fa5":
        return "\u4e2d"
    return character if _is_ideograph(character) else CLASS_OF.get(category, character)


def _is_ideograph(character: str) -> bool:
    """Whether rules that name ideographs by script take this one; some that name their range do not."""
    return character in "\u3005\u3007\u303b\U00016fe3\U00016ff0\U00016ff1" or unicodedata.name(
        character, ""
    ).startswith(("CJK UNI", "CJK COM", "HANGZHOU"))


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
        kept = keep > 0
        keep -= kept
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
