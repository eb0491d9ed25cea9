"""Which two neighbouring tokens the merges of a BPE leave apart.

Two tokens inside one pre-token are canonical exactly where no merge across their seam fires before one side consumes the
symbol at the seam: the spines of their merge trees decide, and hardly anything is merged.

Time is the highest rank that has fired: side by side, two pieces merge in the order of it. A symbol at the seam lives from the
time that makes it to the time that consumes it. Just before the first of two neighbours is consumed both are there if they were
made before, so a merge of the two whose rank is lower has fired; later it cannot. Only equal times leave a pair open.

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
Spine = list[tuple[str, float, float]]
"""Symbols at one end of a piece while it is merged, with the times when each is made and consumed."""


class Merges:
    """The BPE merges of a vocabulary: which two neighbours inside a pre-token stay as they are.

    pieces: the token strings by id, None for ids without bytes. suffix: the mark of a word's end, empty where there is none.
    model: the tokenizer's description of its model, read from it if not given.
    reachable_V: which ids the merges make of their own characters.

    Ranks need not rise along a piece's merges (in Llama 3's vocabulary and some converted SentencePiece models they do not).
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
        self._right: dict[int, Spine] = {}
        left: dict[str, list[tuple[int, float, float]]] = {}
        self.reachable_V = np.zeros(tokens.size, dtype=bool)
        for token, piece in enumerate(self.pieces):
            if piece is None:
                continue
            spines = self._spines(piece)
            if spines is None:
                continue
            self.reachable_V[token] = True
            self._right[token] = spines[1]
            for symbol, made, gone in spines[0]:
                left.setdefault(symbol, []).append((token, made, gone))
        self._left = {symbol: np.array(rows).T for symbol, rows in left.items()}
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

    def _spines(self, piece: str) -> tuple[Spine, Spine] | None:
        """The left and the right spine of a piece; None where its merges do not make it."""
        symbols = [piece] if piece in self._fallback else self._symbols(piece)
        time, made = -1.0, [-1.0, -1.0]
        spines: tuple[Spine, Spine] = ([], [])
        while len(symbols) > 1:
            ranks = [self._rank.get(pair, np.inf) for pair in pairwise(symbols)]
            place = int(np.argmin(ranks)) if len(ranks) > 8 else ranks.index(min(ranks))
            if ranks[place] == np.inf:
                return None
            time = max(time, ranks[place])
            for side, (end, symbol) in enumerate(((0, symbols[0]), (len(symbols) - 2, symbols[-1]))):
                if place == end:
                    spines[side].append((symbol, made[side], time))
                    made[side] = time
            symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]
        for side in (0, 1):
            spines[side].append((symbols[0], made[side], np.inf))
        return spines

    def _row(self, token: int) -> Mask:
        """Which ids [V] may stand after `token` inside one pre-token."""
        valid = self.reachable_V.copy()
        if not valid[token] or self.ends_word(token):
            valid[:] = False
            return valid
        open_: set[int] = set()
        for symbol, made, gone in self._right[token]:
            for other, rank in self._following.get(symbol, ()):
                if rank > gone or other not in self._left:
                    continue
                ids, made_N, gone_N = self._left[other]
                together_N, apart_N = np.maximum(made_N, max(made, rank)), np.minimum(gone_N, gone)
                valid[ids[together_N < apart_N].astype(np.int64)] = False
                open_.update(ids[together_N == apart_N].astype(np.int64).tolist())
        for each in open_:
            valid[each] = valid[each] and self._merged(token, each)
        return valid

    def pair(self, token: int, other: int) -> bool:
        """Whether `other` may stand after `token` inside one pre-token."""
        return bool(self.row(token)[other])

    def apart(self, token: int, symbol: str) -> bool:
        """Whether a symbol that nothing behind it can take (the end of a word) stays apart from the token before it."""
        ranks = [(self._rank.get((end, symbol)), gone) for end, _, gone in self._right.get(token, ())]
        return all(rank is None or rank > gone for rank, gone in ranks)

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
