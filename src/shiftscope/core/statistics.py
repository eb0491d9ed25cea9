"""Intervals and counts that every figure carries: bootstrap over groups, Wilson, quantiles with their names."""

# N observations, G groups (texts, prompts), S bootstrap samples

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shiftscope.core.result import Figure

QUANTILES = (0.5, 0.9, 0.95, 0.99, 0.999)


def wilson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a share. Raises ValueError for n = 0 or successes outside [0, n]."""
    from scipy.special import ndtri

    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}: a share needs n >= 1 and successes within [0, n]")
    z = float(ndtri(0.5 + level / 2))
    share, weight = successes / n, 1 + z * z / n
    middle = (share + z * z / (2 * n)) / weight
    half = z / weight * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return 0.0 if successes == 0 else middle - half, 1.0 if successes == n else middle + half


def share_figure(successes: int, n: int, unit: str = "share") -> Figure:
    """A share of independent trials with its Wilson interval."""
    low, high = wilson(successes, n)
    return Figure(successes / n, unit, n, low, high)


def group_sums(values_N: ArrayLike, groups_N: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Sum and count of the values of every group, in order of first sorted group."""
    values, (_, inverse) = np.asarray(values_N, dtype=np.float64), np.unique(np.asarray(groups_N), return_inverse=True)
    sums_G, counts_G = np.bincount(inverse, weights=values), np.bincount(inverse)
    return sums_G.astype(np.float64), counts_G.astype(np.int64)


def bootstrap_mean(
    values_N: ArrayLike, groups_N: ArrayLike | None = None, *, samples: int = 1000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean, resampling whole groups (texts): positions of one text are not independent.

    values_N: observations; groups_N: the group of each, None makes every value its own. With one group the interval is
    the value itself: nothing can be said of other texts.
    """
    groups = np.arange(np.size(values_N)) if groups_N is None else groups_N
    sums_G, counts_G = group_sums(values_N, groups)
    means_S = resampled_ratios(sums_G, counts_G, samples=samples, seed=seed)
    low, high = np.quantile(means_S, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def resampled_ratios(
    sums_G: ArrayLike, counts_G: ArrayLike, *, samples: int = 1000, seed: int = 0
) -> NDArray[np.float64]:
    """Bootstrap distribution [samples] of Σ sums / Σ counts over resampled groups, as one matrix product a block."""
    sums, counts = np.asarray(sums_G, dtype=np.float64), np.asarray(counts_G, dtype=np.float64)
    generator, n = np.random.default_rng(seed), len(sums)
    ratios, rows = [], max(1, 2_000_000 // n)
    for start in range(0, samples, rows):
        picks = generator.integers(0, n, (min(rows, samples - start), n))
        total = counts[picks].sum(1)
        ratios.append(np.divide(sums[picks].sum(1), total, out=np.full(len(total), np.nan), where=total > 0))
    joined = np.concatenate(ratios)
    return joined[~np.isnan(joined)]


def ratio_figure(sums_N: ArrayLike, counts_N: ArrayLike, groups_N: ArrayLike, *, unit: str) -> Figure:
    """Σ sums / Σ counts, such as nats per token, with its bootstrap interval over groups; n is Σ counts."""
    sums_G, counts_G = (group_sums(values, groups_N)[0] for values in (sums_N, counts_N))
    low, high = np.quantile(resampled_ratios(sums_G, counts_G), [0.025, 0.975])
    value = float(sums_G.sum() / counts_G.sum())
    return Figure(value, unit, int(counts_G.sum()), min(float(low), value), max(float(high), value))


def mean_figure(
    values_N: ArrayLike, groups_N: ArrayLike | None = None, *, unit: str, seed: int = 0, samples: int = 1000
) -> Figure:
    """The mean with its bootstrap interval over groups. Raises ValueError without values."""
    values = np.asarray(values_N, dtype=np.float64)
    if values.size == 0:
        raise ValueError("a mean of no values: nothing was measured")
    low, high = bootstrap_mean(values, groups_N, seed=seed, samples=samples)
    mean = float(values.mean())
    return Figure(mean, unit, int(values.size), min(low, mean), max(high, mean))


def quantile_figures(
    name: str, values_N: ArrayLike, *, unit: str, quantiles: Sequence[float] = QUANTILES
) -> dict[str, Figure]:
    """`{name}_p50`, `_p90`, … and `{name}_max`, with distribution-free intervals from binomial order statistics.

    n: all values. The order-statistic interval treats positions as independent; it is a lower bound of the width.
    """
    from scipy.stats import binom

    ordered = np.sort(np.asarray(values_N, dtype=np.float64))
    n, figures = len(ordered), {}
    for q in quantiles:
        low = ordered[int(np.clip(binom.ppf(0.025, n, q) - 1, 0, n - 1))]
        high = ordered[int(np.clip(binom.ppf(0.975, n, q), 0, n - 1))]
        label = f"{name}_p{100 * q:g}".replace(".", "_")
        value = float(np.quantile(ordered, q))
        figures[label] = Figure(value, unit, n, min(float(low), value), max(float(high), value))
    figures[f"{name}_max"] = Figure(float(ordered[-1]), unit, n)
    return figures
