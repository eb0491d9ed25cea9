"""The slots of an editing task: a marked word in a prompt, and what stands there in a model's raw output ids.

Everything is found on bytes: each id has a span, a slot is the smallest run of ids that covers the word with the blanks in
front of it, and an id that reaches beyond the slot counts with the part of it inside. Text is never encoded again: that
gives the canonical ids back, whatever the model wrote.

Source: arXiv 2601.14658 (the task and the three outcomes). Deviation: what cannot be scored is an outcome of its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from shiftscope.core.edits.artefacts import core_span, stripped

Brackets = Literal["spaced", "tight"]
OPEN, CLOSE = b"[", b"]"
ANCHOR = 3  # words beside a slot that must be in the output too
LONGEST = 200  # bytes within the brackets of an output
UNCHANGED, REPLACED, PHANTOM, UNSCORABLE = "unchanged", "replaced", "phantom", "unscorable"
OUTCOMES = (UNCHANGED, REPLACED, PHANTOM, UNSCORABLE)
WORD = re.compile(r"[^\W\d_]+")
_STOP = """a about above after again against all also am an and any are as at be because been before being below between both
    but by can cannot could did do does doing done down during each either else even ever every few for from further get
    had has have having he her here hers him his how however i if in into is it its itself just least less like may me
    might more most much must my neither no nor not now of off on once one only or other others our out over own per
    rather same see she should since so some such than that the their them then there these they this those though three
    through thus to too two under until up upon us use used uses using very via was we were what when where whether which
    while who whom whose why will with within without would yet you your"""
STOP_WORDS = frozenset(_STOP.split())


@dataclass(frozen=True)
class Cut:
    """A slot as token ids. pieces: the bytes of each id inside the slot; whole: whether that is all of the id's bytes."""

    ids: tuple[int, ...]
    pieces: tuple[bytes, ...]
    whole: tuple[bool, ...]

    @property
    def word(self) -> bytes:
        """The word in the slot, without blanks."""
        return stripped(b"".join(self.pieces))

    @property
    def crosses(self) -> bool:
        """Whether an id reaches beyond the slot."""
        return not all(self.whole)

    @property
    def key(self) -> tuple[int | bytes, ...]:
        """What two cuts are compared by: ids, and the bytes inside of those that reach beyond."""
        return tuple(i if w else p for i, p, w in zip(self.ids, self.pieces, self.whole, strict=True))


@dataclass(frozen=True)
class Spelled:
    """Token ids with the bytes they spell. specials: places in `text` where an id without bytes stands."""

    ids: tuple[int, ...]
    ends: tuple[int, ...]
    text: bytes
    specials: frozenset[int]

    @classmethod
    def of(cls, ids: Sequence[int], spelled: Sequence[bytes | None]) -> Spelled:
        """spelled: bytes of each id of the vocabulary, None for special tokens. Raises ValueError for an unknown id."""
        outside = [token for token in ids if not 0 <= token < len(spelled)]
        if outside:
            raise ValueError(
                f"id {outside[0]} is none of the {len(spelled)} of the vocabulary: they are of another one"
            )
        pieces = [spelled[token] for token in ids]
        ends = np.cumsum([len(piece or b"") for piece in pieces]).tolist()
        specials = frozenset(end for end, piece in zip(ends, pieces, strict=True) if piece is None)
        return cls(tuple(ids), tuple(ends), b"".join(piece or b"" for piece in pieces), specials)

    def cut(self, begin: int, end: int) -> Cut:
        """The smallest run of ids that covers the bytes begin..end."""
        found = []
        for place, stop in enumerate(self.ends):
            start = self.ends[place - 1] if place else 0
            if start < end and stop > begin and stop > start:
                found.append((self.ids[place], self.text[max(start, begin) : min(stop, end)], start, stop))
        whole = tuple(begin <= start and stop <= end for *_, start, stop in found)
        return Cut(tuple(i for i, *_ in found), tuple(p for _, p, *_ in found), whole)

    def slot(self, begin: int, end: int) -> Cut | str:
        """The word between two places, with the blanks in front of it but not those behind; or why there is none."""
        if any(begin <= place <= end for place in self.specials):
            return "a special token stands in the slot"
        inside = self.text[begin:end]
        first, last = core_span(inside)
        return self.cut(begin, begin + last) if last > first else "the slot is empty"


@dataclass(frozen=True)
class Target:
    """A word of a passage, by its characters."""

    begin: int
    end: int


def targets_of(passage: str, share: float, uniforms: Sequence[float]) -> list[Target]:
    """Words to mark: that share (at least one) of the words that are alphabetic and no stop words, in order.

    uniforms: at least one number per word of the passage; the words with the smallest ones are taken. Never the first or
    the last word, nor one that shares its blank-separated place with other signs in front, nor two within four words:
    the words around a slot must tell where it is.
    """
    chunks = list(re.finditer(r"\S+", passage))
    ranked = []
    for place, chunk in enumerate(chunks[1:-1], start=1):
        found = WORD.match(chunk[0])
        if found is None or len(found[0]) < 3 or found[0].lower() in STOP_WORDS or _glued(chunk[0][found.end() :]):
            continue
        ranked.append((uniforms[place], place, Target(chunk.start(), chunk.start() + found.end())))
    wanted = max(1, round(share * len(ranked)))
    taken: dict[int, Target] = {}
    for _, place, target in sorted(ranked):
        if len(taken) < wanted and all(abs(place - other) > ANCHOR for other in taken):
            taken[place] = target
    return [taken[place] for place in sorted(taken)]


def _glued(rest: str) -> bool:
    """Whether a word goes on after its letters (an identifier, a hyphen), other than with closing punctuation."""
    return bool(rest.strip(".,;:!?)\"'"))


def marked(passage: str, targets: Sequence[Target], brackets: Brackets) -> tuple[str, list[tuple[int, int]]]:
    """The passage with its targets in brackets, and the byte places just inside each pair of them."""
    blank = " " if brackets == "spaced" else ""
    text, places, done = "", [], 0
    for target in targets:
        text += passage[done : target.begin] + "["
        begin = len(text.encode())
        text += blank + passage[target.begin : target.end] + blank
        places.append((begin, len(text.encode())))
        text, done = text + "]", target.end
    return text + passage[done:], places


def aligned(output: bytes, passage: str, targets: Sequence[Target]) -> list[tuple[int, int] | str]:
    """For each target the byte places just inside its brackets in an output, or why it cannot be scored.

    Words left and right of a slot must be those of the passage, up to three and none of another slot; blanks may differ.
    """
    found: list[tuple[int, int] | str] = []
    cursor = 0
    for number, target in enumerate(targets):
        before = passage[targets[number - 1].end if number else 0 : target.begin].split()[-ANCHOR:]
        after = passage[target.end : targets[number + 1].begin if number + 1 < len(targets) else None].split()[:ANCHOR]
        place = _placed(output, cursor, before, after)
        if not isinstance(place, str):
            cursor = place[1]
        found.append(place)
    return found


def _placed(output: bytes, cursor: int, before: Sequence[str], after: Sequence[str]) -> tuple[int, int] | str:
    left, right = (rb"\s+".join(re.escape(word.encode()) for word in words) for words in (before, after))
    start = re.compile(left + rb"\s*").search(output, cursor)
    if start is None:
        return "the words before the slot are not in the output"
    opened = re.compile(left + rb"\s*\[").search(output, cursor)
    if opened is None:
        return "the brackets are lost"
    close = output.find(CLOSE, opened.end(), opened.end() + LONGEST)
    if close < 0 or OPEN in output[opened.end() : close]:
        return "the brackets are lost"
    if not re.compile(rb"\s*" + right).match(output, close + 1):
        return "the words after the slot have changed"
    return opened.end(), close


def judged(reference: Cut, written: Cut) -> str:
    """unchanged, replaced or phantom: the same word by other ids."""
    if written.word != reference.word:
        return REPLACED
    return UNCHANGED if written.key == reference.key else PHANTOM
