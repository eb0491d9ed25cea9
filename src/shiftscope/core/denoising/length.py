"""How long a text becomes: a canvas of fixed length, or one that is lengthened and shortened while it is filled.

A masked diffusion model that learnt texts filled up with ends shows, in the very call that fills, which hidden positions
lie behind the end. Their share ρ says what the canvas needs: few, and the text wants more room; many, and it has too much.

Source: arXiv 2601.22527 (ρ-EOS): signal, thresholds and step sizes. Deviations: `floor`, nothing that the text needs is
ever cut (the published code cuts whatever stands at the end, decoded tokens included); `hold`, a canvas in which an end is
written is not lengthened (it would swing between two lengths: few hidden positions make a coarse share); the longest canvas
may still be shortened (`freeze` gives the published code's standstill). signal density is the paper's ratio and tail what
its code runs instead; in ours an end that is already written counts there as certain.
"""

# K hidden positions of one text, V vocabulary

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Literal

import torch
from torch import Tensor

from shiftscope.core.masked import Canvas

Growth = Literal["const", "linear", "exp"]
_TENTH, _MOST = 0.1, 8  # a step grows with every tenth beyond a threshold, up to so many times
_LAST_CHANGE = 64  # call after which a frozen canvas is not changed


@dataclass(frozen=True)
class Length:
    """How long a text becomes.

    length: fixed fills the canvas it is given; rho-eos lengthens and shortens it by the share of ends among the positions
    still hidden. max_new_tokens: positions of the canvas at the start. longest: most positions of a canvas, and never more
    than the model reads. low, high: shares below which a canvas grows and above which it shrinks. grow: positions of the
    smallest step. growth: steps beyond a threshold: const (always the smallest), linear or exp (in tenths of the share, at
    most 8 times the smallest). signal: density (share of ends among the hidden positions) or tail (mean certainty of the
    last ends, as the published code has it). tail: how many ends that mean is over. floor: never cut what the text still
    needs. hold: never lengthen a canvas in which an end is written. freeze: no change of a canvas that was longest once, or
    after 64 calls. early_stop: end a text at its first end that nothing hidden precedes.
    """

    length: Literal["fixed", "rho-eos"] = "fixed"
    max_new_tokens: int = 64
    longest: int = 2048
    low: float = 0.4
    high: float = 0.6
    grow: int = 8
    growth: Growth = "exp"
    signal: Literal["density", "tail"] = "density"
    tail: int = 32
    floor: bool = True
    hold: bool = True
    freeze: bool = False
    early_stop: bool = True

    def __post_init__(self) -> None:
        read = ("length", "max_new_tokens", "early_stop")
        for setting in fields(self) if self.length == "fixed" else ():
            value = getattr(self, setting.name)
            if value != setting.default and setting.name not in read:
                raise ValueError(
                    f"{setting.name} is {value}, and length fixed does not read it: use length rho-eos, or leave it out"
                )
        if self.signal == "density" and self.tail != type(self).tail:
            raise ValueError(
                f"tail is {self.tail}, and signal density does not read it: use signal tail, or leave it out"
            )
        if min(self.max_new_tokens, self.grow, self.tail) < 1:
            raise ValueError(
                f"max_new_tokens {self.max_new_tokens}, grow {self.grow} and tail {self.tail}: each must be at least 1"
            )
        if not 0 <= self.low <= self.high <= 1:
            raise ValueError(f"low is {self.low} and high {self.high}: shares with 0 <= low <= high <= 1 are needed")
        if self.length == "rho-eos" and self.max_new_tokens > self.longest:
            raise ValueError(
                f"max_new_tokens is {self.max_new_tokens} and longest {self.longest}: the canvas at the start is no longer "
                f"than the longest"
            )


def end_density(logits_KV: Tensor, end_ids: Sequence[int]) -> float:
    """ρ: the share of hidden positions whose likeliest token is an end, in [0, 1]; K at least 1.

    Source: arXiv 2601.22527 (density of implicit ends).
    """
    return float(_is_end(logits_KV.argmax(-1), end_ids).double().mean())


def tail_confidence(
    canvas: Canvas, places: Sequence[int], logits_KV: Tensor, end_ids: Sequence[int], tail: int
) -> float:
    """Mean probability of an end over the last `tail` positions whose likeliest token is one; missing ones count as 0.

    places: where the logits belong. Ends that were written before this call count with probability 1.
    """
    p_K = logits_KV.double().softmax(-1)[:, list(end_ids)].sum(-1)
    sure = {place: 1.0 for place in range(canvas.start, len(canvas.ids)) if canvas.ids[place] in end_ids}
    found = {place: sure[place] for place in sure.keys() - set(places)}
    ends = _is_end(logits_KV.argmax(-1), end_ids).tolist()
    found |= {place: p for place, p, end in zip(places, p_K.tolist(), ends, strict=True) if end}
    return sum(found[place] for place in sorted(found, reverse=True)[:tail]) / tail


def step_tokens(gap: float, length: Length) -> int:
    """Positions by which a canvas changes. gap: how far ρ lies beyond a threshold; every tenth that it begins counts.

    Source: arXiv 2601.22527, its code (multiplier 1, n or 2^(n-1) for the n-th tenth, at most 8).
    """
    tenths = max(1, math.ceil(gap / _TENTH - 1e-9))
    times = {"const": 1, "linear": tenths, "exp": 2 ** (tenths - 1)}[length.growth]
    return min(times, _MOST) * length.grow


def needed(canvas: Canvas, places: Sequence[int], logits_KV: Tensor, end_ids: Sequence[int]) -> int:
    """Positions, from the start, that hold the text so far and as it is foreseen, with one end after it; at least 1.

    places: hidden places with their logits. What a window does not see beyond them counts as the last of them does.
    """
    foreseen = dict(zip(places, logits_KV.argmax(-1).tolist(), strict=True))
    for place in range(len(canvas.ids) - 1, canvas.start - 1, -1):
        token = canvas.ids[place]
        if token == canvas.mask_id:
            token = foreseen.get(place, foreseen[places[-1]])
        if token not in end_ids:
            return min(place + 2, len(canvas.ids)) - canvas.start
    return min(1, len(canvas.ids) - canvas.start)


@dataclass
class Control:
    """Changes canvases after each call by the share of ends, for `masked.decode`, and remembers what it saw.

    most: greatest number of positions that the model can read, None without limit.
    seen: by document, (call, signal) of every call that was looked at; changes of the length are in the canvas's record.
    """

    length: Length
    end_ids: Sequence[int]
    most: int | None = None
    seen: dict[int, list[tuple[int, float]]] = field(default_factory=dict)

    def longest(self, start: int) -> int:
        """Most positions after a prompt that ends at start."""
        return self.length.longest if self.most is None else min(self.length.longest, self.most - start)

    def __call__(self, canvas: Canvas, places: Sequence[int], logits_KV: Tensor) -> None:
        """Read the signal at the places that were hidden before the call, and change the canvas."""
        now, calls = len(canvas.ids) - canvas.start, canvas.record.calls
        signal = self._signal(canvas, places, logits_KV)
        self.seen.setdefault(canvas.document, []).append((calls, signal))
        if self.length.freeze and (now >= self.longest(canvas.start) or calls > _LAST_CHANGE):
            return
        new = now
        if signal < self.length.low and self._may_grow(canvas, places):
            new = min(now + step_tokens(self.length.low - signal, self.length), self.longest(canvas.start))
        elif signal > self.length.high:
            least = needed(canvas, places, logits_KV, self.end_ids) if self.length.floor else 0
            new = max(now - step_tokens(signal - self.length.high, self.length), least)
        if new != now:
            canvas.ids[canvas.start + new :] = [canvas.mask_id] * max(new - now, 0)
            canvas.record.edits.append((calls, new))

    def _signal(self, canvas: Canvas, places: Sequence[int], logits_KV: Tensor) -> float:
        if self.length.signal == "density":
            return end_density(logits_KV, self.end_ids)
        return tail_confidence(canvas, places, logits_KV, self.end_ids, self.length.tail)

    def _may_grow(self, canvas: Canvas, places: Sequence[int]) -> bool:
        """Not where an end is written (with hold), nor where the canvas has hidden positions that the call did not see."""
        written = canvas.ids[canvas.start :]
        ended = self.length.hold and any(token in self.end_ids for token in written)
        return not ended and set(canvas.hidden) <= set(places)


def _is_end(ids_K: Tensor, end_ids: Sequence[int]) -> Tensor:
    return torch.isin(ids_K, torch.tensor(list(end_ids), device=ids_K.device))
