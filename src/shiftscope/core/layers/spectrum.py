"""Spectral contraction: how fast the singular values of a matrix of hidden states fall, and each row's part in that.

α = −d ln σ_k / d ln k over a window of ranks (k from 1, σ falling): larger means that fewer directions carry the
states. Source: arXiv 2601.06238 (α); the window, the centring and the rank rule are decisions, since the source leaves
them open. Rank rule: σ_k counts where it exceeds σ_1·max(N, d)·eps of float64 and eps·(rms of the median column)·(√N +
√d) with eps of the states' own type: four times what independent rounding errors leave, for tokens repeat and their
errors with them. Without it the embedding's states of a few distinct tokens would have directions made of rounding.
"""

# N rows (tokens), d width, R singular values kept, W windows, G groups of rows (texts)

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Window = tuple[float, float]
LEAST_POINTS = 5  # of a window, for a slope to be fitted
TOKENS_PER_DIRECTION = 4  # with fewer rows than this per kept direction, finite samples bend the spectrum visibly


@dataclass(frozen=True)
class Contraction:
    """Slopes of one spectrum.

    alpha_W, r2_W: one per window, NaN where the window holds fewer than five singular values. influence_WN: how α
    changes, to first order, when row n is counted once more (rows sum to 0). rank: R; rows: N.
    """

    alpha_W: Tensor
    r2_W: Tensor
    influence_WN: Tensor
    rank: int
    rows: int

    @property
    def too_few_rows(self) -> bool:
        """Whether N < 4 R, where α is biased upwards by the finite sample (more so the flatter the spectrum is)."""
        return self.rows < TOKENS_PER_DIRECTION * self.rank


def contraction(states_ND: Tensor, windows: Sequence[Window], *, centre: bool = True) -> Contraction:
    """Fit α in every window of the spectrum of a matrix of hidden states, in float64.

    states_ND: any float type. windows: fractions (low, high) of the kept ranks. centre: remove the mean state first,
    which else makes up σ_1.
    The influence is exact calculus: with row weights w, ∂ ln σ_k/∂w_n = u_nk²/2 at w = 1 (the mean moves only in
    second order), and α is linear in ln σ. It takes the place of one new spectrum per bootstrap sample.
    """
    sigma_R, left_NR = singular(states_ND, centre=centre)
    rank, rows = len(sigma_R), states_ND.shape[0]
    log_sigma_R = sigma_R.log()
    alpha, r2, influence = [], [], []
    for low, high in windows:
        weights_R = slope_weights(rank, low, high).to(log_sigma_R)
        fitted = bool(weights_R.any())
        alpha.append(-(weights_R @ log_sigma_R) if fitted else log_sigma_R.new_tensor(math.nan))
        r2.append(_r2(log_sigma_R, weights_R) if fitted else log_sigma_R.new_tensor(math.nan))
        influence.append(-0.5 * left_NR.square() @ weights_R)
    return Contraction(torch.stack(alpha), torch.stack(r2), torch.stack(influence), rank, rows)


def singular(states_ND: Tensor, *, centre: bool = True) -> tuple[Tensor, Tensor]:
    """The singular values above the rank rule's level, falling, [R], and their left vectors [N, R], in float64."""
    wide_ND = states_ND.double()
    N, d = wide_ND.shape
    eps = torch.finfo(states_ND.dtype).eps
    level = eps * wide_ND.square().mean(0).sqrt().median() * (math.sqrt(N) + math.sqrt(d))
    if centre:
        wide_ND = wide_ND - wide_ND.mean(0)
    if d < N:  # the same accuracy as a decomposition of the tall matrix, at the price of the small one
        tall_NR, square = torch.linalg.qr(wide_ND)
        left, sigma, _ = torch.linalg.svd(square, full_matrices=False)
        left_NR = tall_NR @ left
    else:
        left_NR, sigma, _ = torch.linalg.svd(wide_ND, full_matrices=False)
    least = torch.maximum(level, sigma[0] * max(N, d) * torch.finfo(torch.float64).eps)
    rank = int((sigma > least).sum())
    return sigma[:rank], left_NR[:, :rank]


def window_ranks(rank: int, low: float, high: float) -> tuple[int, int]:
    """First and last k (from 1, both included) of the window [low, high] of `rank` singular values."""
    slack = 1e-9  # 0.1·70 is 7.000000000000001 in floating point
    return max(1, math.ceil(low * rank - slack)), math.floor(high * rank + slack)


def slope_weights(rank: int, low: float, high: float) -> Tensor:
    """c [R] with Σ c_k·y_k the least-squares slope of y on ln k in a window; all 0 with fewer than five ranks in it."""
    first, last = window_ranks(rank, low, high)
    weights_R = torch.zeros(rank, dtype=torch.float64)
    if last - first + 1 >= LEAST_POINTS:
        x = torch.arange(first, last + 1, dtype=torch.float64).log()
        x = x - x.mean()
        weights_R[first - 1 : last] = x / x.square().sum()
    return weights_R


def check_window(window: Window) -> None:
    """Raises ValueError unless 0 <= low < high <= 1."""
    low, high = window
    if not 0 <= low < high <= 1:
        raise ValueError(f"window {low:g} to {high:g}: it takes two fractions of the ranks with 0 <= low < high <= 1")


def by_group(influence_WN: Tensor, group_N: Tensor, groups: int) -> Tensor:
    """Influence of whole groups of rows (the tokens of one text), [W, G]. group_N: int64 within 0..groups-1."""
    summed_WG = influence_WN.new_zeros(influence_WN.shape[0], groups)
    return summed_WG.index_add_(1, group_N.to(influence_WN.device), influence_WN)


def _r2(log_sigma_R: Tensor, weights_R: Tensor) -> Tensor:
    """Share of the variance of ln σ inside the window that the straight line explains; 1 for a constant."""
    inside = weights_R.nonzero()
    first, last = int(inside[0]), int(inside[-1]) + 1
    y = log_sigma_R[first:last] - log_sigma_R[first:last].mean()
    x = torch.arange(first + 1, last + 1, dtype=torch.float64, device=y.device).log()
    x = x - x.mean()
    total = y.square().sum()
    residual = (y - (weights_R @ log_sigma_R) * x).square().sum()
    return 1 - residual / total if total > 0 else torch.ones_like(total)
