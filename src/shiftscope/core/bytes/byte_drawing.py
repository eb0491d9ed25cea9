"""How answers are drawn byte by byte: what one model and an ensemble of models have in common."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """Settings of drawing bytes.

    temperature: 0 is greedy. samples: answers per prompt. max_new_bytes: longest answer. stop: texts that end an answer, left
    out of it. seed: of the draws. Raises ValueError for values outside these ranges.
    """

    temperature: float = 1.0
    samples: int = 1
    max_new_bytes: int = 256
    stop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf or self.samples < 1 or self.max_new_bytes < 1:
            raise ValueError(
                f"temperature {self.temperature}, samples {self.samples} and max_new_bytes {self.max_new_bytes}: need a "
                f"finite temperature >= 0 and at least 1 of the others"
            )
        if not all(self.stop):
            raise ValueError(f"stop is {self.stop!r}: texts that stop must not be empty")


def ending(answer: bytes, stops: Sequence[str]) -> bytes:
    """The first of the stop texts that an answer ends with, as bytes; empty where there is none."""
    return next((stop.encode() for stop in stops if answer.endswith(stop.encode())), b"")
