"""Canonical beginnings for a BPE that marks the ends of words, as CLIP's and GPT-1's do.

Such a tokenizer drops blanks and its tokens come back with one blank behind every word, so texts are taken in that form:
`a cat , asleep `. A word is one pre-token; only its last token has the mark, and it alone may be followed by another word.

Source: arXiv 2410.09303 (valid encodings), carried over to words with marked ends, which the paper does not treat.
A token inside a word is allowed where some further tokens end the word.
"""

# V ids of the model

from __future__ import annotations

from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from shiftscope.core.bytes.character_classes import completions, pattern
from shiftscope.core.bytes.merge_pairs import Mask, Merges
from shiftscope.core.bytes.normal_form import NormalForm, begun_character, last_character
from shiftscope.core.bytes.token_bytes import TokenBytes, complete

State = tuple[int, bytes]
Ints = NDArray[np.int64]
CLASSES = "a1.'se中é\u0301\u0663"  # one character of each class that pre-tokenizers tell apart


class WordEndValidity:
    """Which tokens may follow. State: the last token of a begun word and the word's bytes, (-1, b"") between words.

    exact: for a pre-tokenizer whose rules go by classes of characters; that a normaliser would change every word which goes
    on from a token is not looked for.
    Raises ValueError for a tokenizer whose words do not end at blanks.
    """

    exact, mode = True, "merges"

    def __init__(self, tokens: TokenBytes) -> None:
        self.tokens, self.merges = tokens, Merges(tokens)
        self.start: State = (-1, b"")
        self._cutter, self._form = tokens.plain.pre_tokenizer, NormalForm(tokens)
        self._known: dict[bool, tuple[list[bytes], Ints]] = {}
        if self._cutter is None or [span for _, span in self._cutter.pre_tokenize_str("a a")] != [(0, 1), (2, 3)]:
            raise ValueError(
                "the tokenizer marks ends of words but does not cut at blanks: a pre-tokenizer that does is needed"
            )
        self.final_V = np.array([self.merges.ends_word(token) for token in range(tokens.size)], dtype=bool)
        self._one = lru_cache(maxsize=1 << 18)(self._is_one_word)
        self._ends = lru_cache(maxsize=1 << 20)(self._can_end)
        self._endings = lru_cache(maxsize=1 << 16)(self._endings_of)
        self.row = lru_cache(maxsize=512)(self._row)

    def allows(self, state: State, token: int) -> bool:
        last, word = state
        text = self.tokens.spelled[token]
        if text is None or not self.merges.reachable_V[token] or (word and not self.merges.pair(last, token)):
            return False
        return self._fits(word, token, text)

    def step(self, state: State, token: int) -> State | None:
        if not self.allows(state, token):
            return None
        return self.start if self.final_V[token] else (token, state[1] + (self.tokens.spelled[token] or b""))

    def closes(self, state: State) -> bool:
        return state == self.start

    def _row(self, state: State) -> Mask:
        last, word = state
        mask = self._form.row(last_character(word)) & (self.merges.row(last) if word else self.merges.reachable_V)
        kind = pattern(word)
        classes, class_V = self._classes(_binds(kind))
        mask &= self._fitting(kind, mask & self.final_V) | ~self.final_V
        for token in np.flatnonzero(mask & ~self.final_V).tolist():
            mask[token] = self._ends(token, pattern(kind + classes[class_V[token]]))
        return mask

    def _fits(self, word: bytes, token: int, text: bytes) -> bool:
        """Whether word and text are, or begin, one word that the normaliser leaves alone."""
        kind = pattern(pattern(word) + text)
        return self._form.after(word, text) and (self._one(kind) if self.final_V[token] else self._ends(token, kind))

    def _classes(self, bound: bool) -> tuple[list[bytes], Ints]:
        """Distinct classes of the tokens' bytes, and that of each id [V]. bound: behind an apostrophe, which binds letters."""
        if bound not in self._known:
            index: dict[bytes, int] = {}
            texts = [text or b"" for text in self.tokens.spelled]
            class_V = np.array([index.setdefault(pattern(text, bound), len(index)) for text in texts])
            self._known[bound] = list(index), class_V
        return self._known[bound]

    def _fitting(self, kind: bytes, chosen_V: Mask) -> Mask:
        """Which of the chosen ids [V] end a word of this kind."""
        classes, class_V = self._classes(_binds(kind))
        fits = np.zeros(len(classes), dtype=bool)
        for each in np.unique(class_V[chosen_V]).tolist():
            fits[each] = self._one(pattern(kind + classes[each]))
        return chosen_V & fits[class_V]

    def _is_one_word(self, text: bytes) -> bool:
        """Whether a text that ends in a blank is one pre-token."""
        try:
            word = text.decode().removesuffix(" ")
        except UnicodeDecodeError:
            return False
        spans = [span for _, span in self._cutter.pre_tokenize_str(word)]
        return spans == [(0, len(word))]

    @cached_property
    def _single(self) -> dict[bytes, list[str]]:
        """Pieces of one character that can end a word, by the class of their bytes with the blank."""
        length, found = 1 + len(self.merges.suffix), dict[bytes, list[str]]()
        for token in np.flatnonzero(self.final_V & self.merges.reachable_V).tolist():
            piece, text = self.merges.pieces[token] or "", self.tokens.spelled[token] or b""
            if len(piece) == length and (not text.isascii() or self._form.keeps(text)):
                found.setdefault(pattern(text), []).append(piece)
        return found

    def _endings_of(self, kind: bytes) -> tuple[str, ...]:
        """Pieces of one character that end a word of this kind."""
        fitting = (pieces for text, pieces in self._single.items() if self._one(pattern(kind + text)))
        return tuple(piece for pieces in fitting for piece in pieces)

    @cached_property
    def _inside_V(self) -> Mask:
        """Which ids [V] begin inside a character."""
        return np.array([text is not None and 0x80 <= text[0] < 0xC0 for text in self.tokens.spelled])

    def _can_end(self, token: int, kind: bytes) -> bool:
        """Whether some canonical word goes on from this token; kind: its bytes so far, by classes of characters."""
        waiting, seen = [(token, kind)], {(token, kind)}
        while waiting:
            last, kind = waiting.pop()
            if any(self.merges.apart(last, piece) for piece in self._endings(kind)):
                return True
            if not self._endings(kind) and not self._goes_on(kind):
                continue
            after = self.merges.row(last) & (self._inside_V == bool(begun_character(kind)))
            if self._fitting(kind, after & self.final_V).any():
                return True
            classes, class_V = self._classes(_binds(kind))
            for other in np.flatnonzero(after & ~self.final_V).tolist():
                longer = other, pattern(kind + classes[class_V[other]])
                if longer not in seen:
                    seen.add(longer)
                    waiting.append(longer)
        return False

    def _goes_on(self, kind: bytes) -> bool:
        """Whether the pre-tokenizer has a longer word that begins so, whatever its tokens."""
        try:
            _, rest = complete(kind)
        except ValueError:
            return False
        ends = [*(completions(rest) or ())] if rest else [character.encode() for character in CLASSES]
        return any(self._one(pattern(kind + end + b" ")) for end in ends)


def _binds(kind: bytes) -> bool:
    return b"'" in kind[-3:]
