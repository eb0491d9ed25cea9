"""Canonical beginnings for a tokenizer that reads added tokens in a text: `<tool_call>`, runs of blanks, names of special ones.

Such a tokenizer looks for the added tokens first, leftmost and longest, and cuts each stretch between them on its own. So an
added token stands where the stretch before it may end, a new stretch begins behind it, and no other tokens ever spell one.

Source: arXiv 2410.09303 (valid encodings), carried over to added tokens, which the paper does not treat.
"""

# V ids of the model

from __future__ import annotations

from bisect import bisect_left
from functools import lru_cache
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from shiftscope.core.bytes.token_bytes import TokenBytes

if TYPE_CHECKING:
    from shiftscope.core.bytes.canonical import Validity

Mask = NDArray[np.bool_]
State = tuple[Any, tuple[bytes, ...]]


class AddedValidity:
    """Another validity, of stretches without added tokens, and the added tokens between them.

    State: that of the other in the current stretch, and the beginnings of added tokens that the text ends with.
    exact: where the other is, and no added token takes blanks or whole words with it (`lstrip`, `rstrip`, `single_word`) or
    is changed by the normaliser.
    """

    def __init__(self, tokens: TokenBytes, own: Validity) -> None:
        self.own, self.exact, self.mode = own, own.exact, own.mode
        self._tokens, self._spelled = tokens, tokens.spelled
        self._contents = sorted(tokens.added.values())
        self._known = set(self._contents)
        self._longest = max(map(len, self._contents))
        # an id that also is a piece of other bytes (a run of blanks, written as marks) is a token of stretches
        self._is_added_V = np.zeros(tokens.size, dtype=bool)
        self._is_added_V[[token for token, text in tokens.added.items() if self._spelled[token] == text]] = True
        self._firsts = {content[0] for content in self._contents}
        self._holds_V = np.array([text is not None and self._holds(text) for text in self._spelled])
        self.start: State = (own.start, ())
        self._blocked = lru_cache(maxsize=4096)(self._blocked_by)
        self.row = lru_cache(maxsize=512)(self._row)

    def allows(self, state: State, token: int) -> bool:
        own, begun = state
        text = self._spelled[token]
        if text is None or any(self._completes(one, text) for one in begun):
            return False
        if self._is_added_V[token]:
            return self.own.closes(own)
        return not self._holds_V[token] and self.own.allows(own, token)

    def step(self, state: State, token: int) -> State | None:
        if not self.allows(state, token):
            return None
        text, added = self._spelled[token] or b"", bool(self._is_added_V[token])
        after = self.own.start if added else self.own.step(state[0], token)
        if after is None:
            return None
        ends = [one + text for one in state[1]] + [text[place:] for place in range(1 if added else len(text))]
        return after, tuple(sorted({end for end in ends if len(end) < self._longest and self._begins(end)}))

    def closes(self, state: State) -> bool:
        return self.own.closes(state[0])

    def _row(self, state: State) -> Mask:
        own, begun = state
        mask = (self.own.row(own) & ~self._holds_V & ~self._is_added_V) | (self._is_added_V & self.own.closes(own))
        return mask & ~self._blocked(begun) if begun else mask

    def _blocked_by(self, begun: tuple[bytes, ...]) -> Mask:
        """Which ids [V] would make a begun added token whole."""
        found = np.zeros(self._tokens.size, dtype=bool)
        for one in begun:
            for content in self._from(one):
                low, high = self._tokens.interval(content[len(one) :])
                found[self._tokens.ids_J[low:high]] = True
        return found

    def _from(self, beginning: bytes) -> list[bytes]:
        """The added tokens that are longer than a beginning of theirs."""
        low = bisect_left(self._contents, beginning)
        found = takewhile(lambda content: content.startswith(beginning), self._contents[low:])
        return [content for content in found if len(content) > len(beginning)]

    def _begins(self, text: bytes) -> bool:
        low = bisect_left(self._contents, text)
        return any(one != text and one.startswith(text) for one in self._contents[low : low + 2])

    def _completes(self, begun: bytes, text: bytes) -> bool:
        return any(begun + text[:count] in self._known for count in range(1, min(len(text), self._longest) + 1))

    def _holds(self, text: bytes) -> bool:
        """Whether an added token stands inside these bytes."""
        return any(self._completes(b"", text[at:]) for at, byte in enumerate(text) if byte in self._firsts)


def plain(added: dict[str, Any]) -> bool:
    """Whether an added token is read wherever its text stands, and takes nothing else with it."""
    return not (added["lstrip"] or added["rstrip"] or added["single_word"])
