"""What a normaliser leaves alone: byte strings that come back from it as they are, also across the seam of two tokens."""

# V ids of the model

from __future__ import annotations

from functools import cached_property, lru_cache

import numpy as np

from shiftscope.core.bytes.character_classes import begun_with
from shiftscope.core.bytes.merge_pairs import Mask
from shiftscope.core.bytes.token_bytes import TokenBytes, complete


class NormalForm:
    """The normaliser of a vocabulary, asked about texts; everything is kept where it has none."""

    def __init__(self, tokens: TokenBytes) -> None:
        self._tokens, self._normalizer = tokens, tokens.plain.normalizer
        self.keeps = lru_cache(maxsize=1 << 18)(self._keeps)
        self.row = lru_cache(maxsize=256)(self._row)

    def after(self, before: bytes, text: bytes) -> bool:
        """Whether text stays as it is behind other text that does. Only a seam with bytes beyond ASCII can change."""
        return self.keeps(text if text.isascii() else last_character(before) + text)

    def _keeps(self, text: bytes) -> bool:
        """Whether the normaliser leaves a text alone, blanks at its end aside; a begun character is any that can end it."""
        try:
            whole, rest = complete(text)
        except ValueError:
            return False
        if self._normalizer is None:
            return True
        stem = whole.decode()
        if not rest:
            return self._same(stem)
        every = (character for character in map(chr, begun_with(rest)) if not "\ud800" <= character <= "\udfff")
        return any(self._same(stem + character) for character in every)

    def _same(self, text: str) -> bool:
        return self._normalizer.normalize_str(text).rstrip() == text.rstrip()

    @cached_property
    def _ascii(self) -> tuple[Mask, list[int]]:
        """Which ids [V] are ASCII and stay as they are, and the ids with other bytes."""
        texts = self._tokens.spelled
        kept_V = np.array([text is not None and text.isascii() and self.keeps(text) for text in texts], dtype=bool)
        return kept_V, [token for token, text in enumerate(texts) if text is not None and not text.isascii()]

    def _row(self, before: bytes) -> Mask:
        """`after` for every id [V]; before: a last character, whole or begun."""
        kept_V, others = self._ascii
        found = kept_V.copy()
        for token in others:
            found[token] = self.keeps(before + (self._tokens.spelled[token] or b""))
        return found


def last_character(text: bytes) -> bytes:
    """The last character of a text, whole or begun, as bytes; empty for an empty text."""
    for back in range(1, min(4, len(text)) + 1):
        if not 0x80 <= text[-back] < 0xC0:
            return text[-back:]
    return b""


def begun_character(text: bytes) -> bytes:
    """The begun character at the end of a token, which may itself begin inside one; empty where its end is whole."""
    last = last_character(text)
    if not last or last[0] < 0xC0:
        return b""
    return last if len(last) < (2 if last[0] < 0xE0 else 3 if last[0] < 0xF0 else 4) else b""
