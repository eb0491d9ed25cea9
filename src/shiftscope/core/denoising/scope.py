"""What one call of a masked model computes, sees, and may fill: the whole text, a block of it, or a window that slides.

Source: blocks, arXiv 2502.09992; windows, arXiv 2601.20332. Deviations, for windows: a refresh computes the window only
(refresh_over canvas gives the published LLaDA code's whole pass); candidates are restricted to the inner window in every
call, refreshes included; the loop ends when nothing is hidden; a window that its candidates leave is refreshed at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Literal

import torch

from shiftscope.core.denoising.bidirectional import Window


@dataclass(frozen=True)
class Scope:
    """What a call computes and may fill.

    method: full computes the whole text and may fill anything; blocks fills a block of hidden positions before the next;
    window computes and sees the first hidden positions only. block: positions of a block. inner: hidden positions that may
    be filled, the leftmost (0 is no limit). outer: hidden positions that are seen (0 is no limit); those beyond are neither
    computed nor seen. refresh: calls after which a window is computed anew. refresh_over: what a refresh computes. renew:
    compute what was filled since the refresh again in every call (off, its keys and values stay those of a mask).
    """

    method: Literal["full", "blocks", "window"] = "full"
    block: int = 32
    inner: int = 16
    outer: int = 64
    refresh: int = 32
    refresh_over: Literal["window", "canvas"] = "window"
    renew: bool = True

    def __post_init__(self) -> None:
        read = {"full": (), "blocks": ("block",), "window": ("inner", "outer", "refresh", "refresh_over", "renew")}
        for setting in fields(self)[1:]:
            value = getattr(self, setting.name)
            if value != setting.default and setting.name not in read[self.method]:
                method = "blocks" if setting.name == "block" else "window"
                raise ValueError(
                    f"{setting.name} is {value}, and method {self.method} does not read it: use method {method}, or leave "
                    f"it out"
                )
        if self.block < 1 or self.refresh < 1 or self.inner < 0 or self.outer < 0:
            raise ValueError(
                f"block {self.block}, refresh {self.refresh}, inner {self.inner} and outer {self.outer}: need at least 1 for "
                f"block and refresh, and 0 (no limit) or more for inner and outer"
            )
        if self.outer and (self.inner == 0 or self.inner > self.outer):
            raise ValueError(
                f"inner is {self.inner or 'without limit'} and outer {self.outer}: inner lies within outer"
            )


@dataclass(frozen=True)
class View:
    """One call of one text. ids, places: what it computes. wanted: places whose laws it gives. allowed: those it may fill.

    fresh: it computed everything that it sees. whole: it gives the laws of all hidden places that it sees.
    pairs: (query, key) pairs of one layer. window: kept keys and values.
    """

    ids: list[int]
    places: Sequence[int]
    wanted: list[int]
    allowed: list[int]
    pairs: int
    fresh: bool = True
    whole: bool = True
    window: Window | None = None


@dataclass
class Sight:
    """The calls of one text, one after the other. age: calls since the window was computed. renewed: filled since then."""

    scope: Scope
    window: Window = field(default_factory=Window)
    age: int = 0
    renewed: set[int] = field(default_factory=set)

    def look(self, ids: list[int], hidden: list[int], start: int, shift: int) -> View:
        """The next call of a text with these hidden places. start: where blocks begin. shift: as of the model."""
        if self.scope.method == "window":
            return self._through_window(ids, hidden, shift)
        allowed = hidden
        if self.scope.method == "blocks":
            last = start + ((hidden[0] - start) // self.scope.block + 1) * self.scope.block
            allowed = [place for place in hidden if place < last]
        return View(list(ids), range(len(ids)), hidden, allowed, len(ids) ** 2)

    def _through_window(self, ids: list[int], hidden: list[int], shift: int) -> View:
        allowed = hidden[: self.scope.inner] if self.scope.inner else hidden
        seen = set(self.window.positions_K.tolist())
        if not seen or self.age >= self.scope.refresh or not seen.issuperset(allowed):
            return self._refreshed(ids, hidden, allowed)
        computed = set(allowed) | {max(place - shift, 0) for place in allowed}
        places = sorted(computed | self.renewed if self.scope.renew else computed)
        self.window.touch(torch.tensor(places))
        self.age += 1
        pairs = len(places) * len(seen)
        whole = len(allowed) == len(hidden)
        return View([ids[place] for place in places], places, allowed, allowed, pairs, False, whole, self.window)

    def _refreshed(self, ids: list[int], hidden: list[int], allowed: list[int]) -> View:
        far = set(hidden[self.scope.outer :] if self.scope.outer else [])
        near = [place for place in range(len(ids)) if place not in far]
        places = near if self.scope.refresh_over == "window" else list(range(len(ids)))
        self.window.cover(torch.tensor(places), keep=torch.tensor(near))
        self.age, self.renewed = 1, set()
        wanted = [place for place in hidden if place not in far]
        pairs = len(places) ** 2
        return View([ids[place] for place in places], places, wanted, allowed, pairs, window=self.window)

    def filled(self, places: Sequence[int]) -> None:
        """These places were filled by the call."""
        self.renewed.update(places)

    def cut(self, length: int) -> None:
        """The text was cut or lengthened to this length."""
        self.window.drop_after(length - 1)
        self.renewed = {place for place in self.renewed if place < length}
