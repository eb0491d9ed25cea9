"""Rank tests of two samples: how often one value is below another, with its interval and both p-values.

Source: arXiv 2310.15010 (Q and its rank-sum test). Interval: Newcombe 2006 (Statistics in Medicine 25:559), method 5.
Deviation: Q is the plain Mann-Whitney share; the published estimator, which ranks G against the pooled sample and so
cannot reach 0 or 1, is `q_pooled`.
"""

# M values of the first sample, N values of the second

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class RankTest:
    """What a rank test of two samples found.

    q: P(X <= Y), ties counted one half; low, high: its 95 % interval. p_below: one-sided, small where Y lies below X.
    p_two_sided: small where Y lies on either side. q_pooled: the estimator of the paper's code. m, n: values of each.
    """

    q: float
    low: float
    high: float
    p_below: float
    p_two_sided: float
    q_pooled: float
    m: int
    n: int


def rank_test(x_M: ArrayLike, y_N: ArrayLike) -> RankTest:
    """Q = P(X <= Y) with the rank-sum test of it (normal approximation without tie correction, as in the paper).

    Raises ValueError where a sample is empty or holds NaN.
    """
    from scipy.special import ndtr
    from scipy.stats import rankdata

    x, y = np.asarray(x_M, dtype=np.float64), np.asarray(y_N, dtype=np.float64)
    m, n = len(x), len(y)
    if not m or not n or np.isnan(x).any() or np.isnan(y).any():
        raise ValueError(f"a rank test of {m} and {n} values: both samples need numbers, and at least one")
    both = np.concatenate([x, y])
    q = (rankdata(both)[m:].sum() - n * (n + 1) / 2) / (m * n)
    z = (q - 0.5) / math.sqrt((m + n + 1) / (12 * m * n))
    pooled = np.searchsorted(np.sort(both), y, side="left").mean() / (m + n)
    low, high = share_interval(q, m, n)
    return RankTest(float(q), low, high, float(ndtr(z)), float(2 * ndtr(-abs(z))), float(pooled), m, n)


def share_interval(q: float, m: int, n: int) -> tuple[float, float]:
    """95 % interval of P(X <= Y) from m and n values; it stays inside [0, 1] and is not empty at 0 or 1."""
    from scipy.optimize import brentq

    half = (m + n) / 2 - 1

    def excess(theta: float) -> float:
        spread = theta * (1 - theta) * (1 + half * (1 - theta) / (2 - theta) + half * theta / (1 + theta)) / (m * n)
        return (q - theta) ** 2 - 1.959964**2 * spread

    low = 0.0 if q <= 0 else float(brentq(excess, 0.0, min(q, 1 - 1e-9)))
    high = 1.0 if q >= 1 else float(brentq(excess, max(q, 1e-9), 1.0))
    return low, high


def rank_test_in_strata(x_M: ArrayLike, y_N: ArrayLike, strata_x_M: ArrayLike, strata_y_N: ArrayLike) -> Array:
    """Q among values of the same stratum, averaged with the number of pairs' effective size m n / (m + n) as weight.

    Returns [q, share of y that has an x in its stratum]; q is NaN where no stratum holds both.
    """
    x, y = np.asarray(x_M, dtype=np.float64), np.asarray(y_N, dtype=np.float64)
    strata_x, strata_y = np.asarray(strata_x_M), np.asarray(strata_y_N)
    total, weight, covered = 0.0, 0.0, 0
    for stratum in np.intersect1d(strata_x, strata_y):
        test = rank_test(x[strata_x == stratum], y[strata_y == stratum])
        size = test.m * test.n / (test.m + test.n)
        total, weight, covered = total + size * test.q, weight + size, covered + test.n
    return np.array([total / weight if weight else np.nan, covered / max(1, len(y))])
