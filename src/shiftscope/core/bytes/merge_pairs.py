"""Which two neighbouring tokens the merges of a BPE leave apart.

Two tokens inside one pre-token are canonical exactly where no merge across their seam fires before one side consumes the
symbol at the seam: the spines of their merge trees decide, and nothing is encoded.

Source: arXiv 2410.09303 (valid encodings of a BPE).
"""

# V ids of the model

from __future__ import annotations

import json
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shiftscope.core.bytes.token_bytes import TokenBytes

Mask = NDArray[np.bool_]


class Merges:
    """The BPE merges of a vocabulary: which two neighbours inside a pre-token stay as they are.

    pieces: the token strings by id, None for ids without bytes. suffix: the mark of a word's end, empty where there is none.
    model: the tokenizer's description of its model, read from it if not given.
    reachable_V: which ids the merges make of their own characters. monotone: as follows.

    Where merges fire in the order of their ranks (every trained BPE) the invalid successors of a token are listed from
    the merge trees' spines; elsewhere (some converted SentencePiece models) each pair is merged on its own, once.
    """

    def __init__(self, tokens: TokenBytes, model: dict[str, Any] | None = None) -> None:
        spec = json.loads(tokens.plain.to_str())["model"] if model is None else model
        self._tokens = tokens
        pieces = {token: piece for piece, token in spec["vocab"].items()}
        self.pieces = [pieces.get(token) if text is not None else None for token, text in enumerate(tokens.spelled)]
        self._fallback = {p for p in pieces.values() if p.startswith("<0x")} if spec.get("byte_fallback") else set()
        pairs = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in spec["merges"]]
        self._rank = {pair: rank for rank, pair in enumerate(pairs)}
        self.suffix: str = spec.get("end_of_word_suffix") or ""
        self.monotone = True
        self._right: dict[int, list[tuple[str, float]]] = {}
        left: dict[str, list[tuple[int, float]]] = {}
        self.reachable_V = np.zeros(tokens.size, dtype=bool)
        for token, piece in enumerate(self.pieces):
            if piece is None:
                continue
            spines = self._spines(piece)
            if spines is None:
                continue
            self.reachable_V[token] = True
            self._right[token] = spines[1]
            for symbol, until in spines[0]:
                left.setdefault(symbol, []).append((token, until))
        self._left = {
            symbol: tuple(np.array(column) for column in zip(*rows, strict=True)) for symbol, rows in left.items()
        }
        self._following: dict[str, list[tuple[str, int]]] = {}
        for (first, second), rank in self._rank.items():
            self._following.setdefault(first, []).append((second, rank))
        self.row = lru_cache(maxsize=1024)(self._row)

    def _symbols(self, piece: str) -> list[str]:
        """What the merges of a piece begin with: its characters, the last of a word with the mark of its end."""
        if not self.suffix or not piece.endswith(self.suffix) or piece == self.suffix:
            return list(piece)
        characters = list(piece.removesuffix(self.suffix))
        return [*characters[:-1], characters[-1] + self.suffix]

    def ends_word(self, token: int) -> bool:
        """Whether the token has the mark of a word's end."""
        piece = self.pieces[token]
        return bool(self.suffix) and piece is not None and piece.endswith(self.suffix)

    def _spines(self, piece: str) -> tuple[list[tuple[str, float]], list[tuple[str, float]]] | None:
        """Symbols at the left and at the right end while a piece is merged, each with the rank that consumes it."""
        if piece in self._fallback:
            return [(piece, np.inf)], [(piece, np.inf)]
        symbols, fired = self._symbols(piece), -1
        left: list[tuple[str, float]] = []
        right: list[tuple[str, float]] = []
        while len(symbols) > 1:
            ranks = [self._rank.get(pair, np.inf) for pair in pairwise(symbols)]
            place = int(np.argmin(ranks)) if len(ranks) > 8 else ranks.index(min(ranks))
            if ranks[place] == np.inf:
                return None
            self.monotone &= ranks[place] >= fired
            fired = int(ranks[place])
            if place == 0:
                left.append((symbols[0], fired))
            if place == len(symbols) - 2:
                right.append((symbols[-1], fired))
            symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]
        return [*left, (symbols[0], np.inf)], [*right, (symbols[0], np.inf)]

    def _row(self, token: int) -> Mask:
        """Which ids [V] may stand after `token` inside one pre-token."""
        if not self.monotone:
            return np.array([self._merged(token, other) for other in range(self._tokens.size)])
        valid = self.reachable_V.copy()
        if not valid[token] or self.ends_word(token):
            valid[:] = False
            return valid
        for symbol, until in self._right[token]:
            for other, rank in self._following.get(symbol, ()):
                if rank < until and other in self._left:
                    ids, consumed = self._left[other]
                    valid[ids[consumed >= rank].astype(np.int64)] = False
        return valid

    def pair(self, token: int, other: int) -> bool:
        """Whether `other` may stand after `token` inside one pre-token."""
        return bool(self.row(token)[other])

    def apart(self, token: int, symbol: str) -> bool:
        """Whether a symbol that nothing behind it can take (the end of a word) stays apart from the token before it."""
        return not any(self._rank.get((end, symbol), np.inf) < until for end, until in self._right.get(token, ()))

    def _merged(self, token: int, other: int) -> bool:
        if not (self.reachable_V[token] and self.reachable_V[other]) or self.ends_word(token):
            return False
        first, second = self.pieces[token], self.pieces[other]
        if first in self._fallback or second in self._fallback:
            return True
        symbols = [*self._symbols(first), *self._symbols(second)]  # type: ignore[arg-type]
        while True:
            ranks = [self._rank.get(pair, np.inf) for pair in pairwise(symbols)]
            place = int(np.argmin(ranks)) if ranks else 0
            if not ranks or ranks[place] == np.inf:
                return symbols == [first, second]
            symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]
