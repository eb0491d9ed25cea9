"""Passages for an editing task: stretches of text of the right length, with the words to mark, that fit a context.

Source: arXiv 2601.14658 (news of 100 to 600 words, a random 5 % of the words that are no stop words).
Deviation: brackets of the text itself end a stretch; the default texts are prose of the standard library's help topics.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from shiftscope.core import corpus
from shiftscope.core.answers import Texts
from shiftscope.core.edits.edit_prompts import Passage
from shiftscope.core.edits.edit_slots import targets_of
from shiftscope.core.randomness import uniforms
from shiftscope.core.tokenizers import documents

SHORTEST_FIT = 12  # words of a passage that is cut to fit a small context


@dataclass(frozen=True)
class Frame:
    """What a passage must fit. words: fewest and most; share: of its words to mark; seed: of that choice.

    need: tokens that a passage takes with its prompt and output; room: how many there are. most: passages.
    """

    words: tuple[int, int]
    share: float
    seed: int
    need: Callable[[str], int]
    room: int
    most: int | None = None


def texts_of(texts: Texts, limit: int | None) -> list[str]:
    """The texts of a corpus, or prose of the help topics of this Python."""
    if texts is not None:
        return [document.text for document in documents.documents(texts, limit)]  # type: ignore[arg-type]
    from pydoc_data.topics import topics

    corpus.check_limit(limit)
    found = []
    for _, text in sorted(topics.items()):
        paragraphs = [" ".join(part.split()) for part in text.split("\n\n") if re.match(r"[A-Z]", part)]
        prose = [part for part in paragraphs if part.endswith((".", ":")) and not re.search(r"[\[\]*|]|::", part)]
        found.append(" ".join(prose))
    return [text for text in found if text][:limit]


def passages_of(texts: Sequence[str], frame: Frame) -> tuple[list[Passage], list[str]]:
    """Passages with their targets, at most one per text, and notes on what was left out or cut.

    Raises ValueError where no text gives one.
    """
    found: list[Passage] = []
    short = cut = tried = 0
    for text in texts:
        if frame.most is not None and len(found) == frame.most:
            break
        tried += 1
        stretch = max(re.split(r"[\[\]]", text), key=len).strip()
        if len(stretch.split()) < frame.words[0]:
            short += 1
            continue
        whole = first_words(stretch, frame.words[1])
        passage = fitted(whole, frame)
        number = len(found)
        draws = uniforms(frame.seed, number, np.arange(len(passage.split())), stream=7)
        targets = targets_of(passage, frame.share, draws.tolist()) if passage else []
        if targets:
            found.append(Passage(number, passage, tuple(targets)))
            cut += passage != whole
    if not found:
        raise ValueError(
            f"none of {len(texts)} texts gives a passage: {short} have no stretch of {frame.words[0]} words without square "
            f"brackets (--shortest), the others no word to mark, or no {SHORTEST_FIT} words that fit the context"
        )
    notes = [f"{cut} of {len(found)} passages were cut short to fit the context"] if cut else []
    return found, notes + ([f"{short} of {tried} texts are too short for a passage"] if short else [])


def first_words(text: str, count: int) -> str:
    """The beginning of a text up to its word of that number."""
    words = list(re.finditer(r"\S+", text))
    return text if len(words) <= count else text[: words[count - 1].end()]


def fitted(text: str, frame: Frame) -> str:
    """The beginning of a passage that fits; empty where too few words would be left."""
    words = len(text.split())
    while words >= min(SHORTEST_FIT, frame.words[0]):
        passage = first_words(text, words)
        need = frame.need(passage)
        if need <= frame.room:
            return passage
        words = min(words - 1, int(words * frame.room / need))
    return ""
