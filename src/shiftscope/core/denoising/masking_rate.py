"""How much of each training text is hidden: a uniform share, spread evenly over the batch, in a range that warms up.

Source: arXiv 2504.20456 (share ~ U[low, high], stratified, both ends warmed up linearly); stratified draws for masked
diffusion: arXiv 2502.09992.
"""

# B texts of a batch, N positions

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class MaskingRate:
    """The share of positions hidden while training an any-order or masked model.

    start: both ends of the range at step 0. low, high: its ends after warm_up steps, reached linearly. Defaults are
    those of generation in arXiv 2504.20456, whose warm-up of 5 000 steps is for 110 million parameters.
    """

    start: float = 0.15
    low: float = 0.85
    high: float = 0.99
    warm_up: int = 5000

    def __post_init__(self) -> None:
        if not (0 < self.start < 1 and 0 < self.low <= self.high <= 1) or self.warm_up < 0:
            raise ValueError(
                f"start {self.start}, low {self.low}, high {self.high}, warm_up {self.warm_up}: need 0 < start < 1, "
                f"0 < low <= high <= 1 and warm_up >= 0"
            )

    def bounds(self, step: int) -> tuple[float, float]:
        """The range of the share at a step, counted from 0."""
        done = 1.0 if step >= self.warm_up else step / self.warm_up
        return self.start + done * (self.low - self.start), self.start + done * (self.high - self.start)

    def shares(self, step: int, texts: int, generator: torch.Generator) -> Tensor:
        """One share [B] for each text, float64: one in each B-th part of the range, in random order."""
        low, high = self.bounds(step)
        part_B = torch.randperm(texts, generator=generator).double()
        within_B = torch.rand(texts, generator=generator, dtype=torch.float64)
        return low + (high - low) * (part_B + within_B) / texts


def hide(share_B: Tensor, positions: int, generator: torch.Generator) -> Tensor:
    """Which positions are hidden [B, N]: a uniform subset of the rounded share of each text, of 1 to N − 1 positions."""
    count_B = (share_B * positions).round().long().clamp(1, positions - 1)
    place_BN = torch.rand(len(share_B), positions, generator=generator).argsort(-1).argsort(-1)
    return place_BN < count_B[:, None]
