"""How well a score finds what is out of distribution: AUROC and false positives at 95 % found, with bootstrap intervals.

The out-of-distribution side is the positive one: larger scores mean more shifted. Values are of whole images (or texts),
so that resampling values resamples images; parts of one image are never taken for independent.
Source: arXiv 2501.08005 (both measures); Efron 1979 (bootstrap). FPR95 is read at the first threshold that finds 95 %.
"""

# M values inside the distribution, N outside (or of both), K calibration values, U distinct values, S bootstrap samples
# T scores, P labellings

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from shiftscope.core import permutation, statistics

Array = NDArray[np.float64]
FOUND = 0.95


@dataclass(frozen=True)
class Separation:
    """How far two sides are apart. auroc: P(inside < outside), ties one half; fpr95: share of the inside taken for outside
    where 95 % of the outside are found. Each with its 95 % interval. m, n: values of each side."""

    auroc: float
    auroc_low: float
    auroc_high: float
    fpr95: float
    fpr95_low: float
    fpr95_high: float
    m: int
    n: int


def separation(inside_M: ArrayLike, outside_N: ArrayLike, *, samples: int = 1000, seed: int = 0) -> Separation:
    """AUROC and FPR95 of a score, larger meaning outside; intervals resample the values of each side.

    Raises ValueError where a side has no values, or one that is not a number.
    """
    inside, outside = np.asarray(inside_M, dtype=np.float64), np.asarray(outside_N, dtype=np.float64)
    m, n = len(inside), len(outside)
    if not m or not n or np.isnan(inside).any() or np.isnan(outside).any():
        raise ValueError(f"a separation of {m} and {n} values: both sides need numbers, and at least one")
    distinct_U, place = np.unique(np.concatenate([inside, outside]), return_inverse=True)
    inside_place, outside_place, U = place[:m], place[m:], len(distinct_U)
    auroc, fpr95 = _measured(np.bincount(inside_place, minlength=U), np.bincount(outside_place, minlength=U))
    generator, found_S2 = np.random.default_rng(seed), np.empty((samples, 2))
    for sample in range(samples):
        drawn = inside_place[generator.integers(0, m, m)], outside_place[generator.integers(0, n, n)]
        found_S2[sample] = _measured(*(np.bincount(each, minlength=U) for each in drawn))
    (auroc_low, fpr_low), (auroc_high, fpr_high) = np.quantile(found_S2, [0.025, 0.975], axis=0)
    ends = float(min(auroc_low, auroc)), float(max(auroc_high, auroc)), fpr95
    return Separation(auroc, *ends, float(min(fpr_low, fpr95)), float(max(fpr_high, fpr95)), m, n)


def _measured(inside_U: NDArray[np.int64], outside_U: NDArray[np.int64]) -> tuple[float, float]:
    """AUROC and FPR95 from the counts of each distinct value, ascending."""
    m, n = int(inside_U.sum()), int(outside_U.sum())
    below_U = np.cumsum(inside_U) - inside_U
    auroc = float((outside_U * (below_U + inside_U / 2)).sum() / (m * n))
    found_U = np.cumsum(outside_U[::-1])
    threshold = int(np.argmax(found_U >= FOUND * n))
    return auroc, float(np.cumsum(inside_U[::-1])[threshold] / m)


def percentiles(calibration_K: ArrayLike, values_N: ArrayLike) -> Array:
    """The percentile of every value among calibration values that it is not one of: 100 (below + ties/2 + 1/2) / (K + 1).

    Within (0, 100), and 50 at the median. Raises ValueError without calibration values.
    """
    ordered, values = np.sort(np.asarray(calibration_K, dtype=np.float64)), np.asarray(values_N, dtype=np.float64)
    if not len(ordered):
        raise ValueError("percentiles among no calibration values: give at least one")
    below, upto = np.searchsorted(ordered, values, "left"), np.searchsorted(ordered, values, "right")
    share_N: Array = 100 * ((below + upto) / 2 + 0.5) / (len(ordered) + 1)
    return share_N


def two_sided(calibration_K: ArrayLike, values_N: ArrayLike) -> Array:
    """|percentile - 50|: how far a value is from the ordinary, on either side; below 50."""
    far_N: Array = np.abs(percentiles(calibration_K, values_N) - 50)
    return far_N


def aurocs_of_labels(values_TN: ArrayLike) -> Callable[[Array], Array]:
    """A statistic for `permutation.permute`: labels [N, P] to the AUROC [T, P] of each of T scores of the pooled values."""
    from scipy.stats import rankdata

    ranks_TN = rankdata(np.atleast_2d(np.asarray(values_TN, dtype=np.float64)), axis=1)

    def statistic(second_NP: Array) -> Array:
        n_P = second_NP.sum(0)
        auroc_TP: Array = (ranks_TN @ second_NP - n_P * (n_P + 1) / 2) / (n_P * (len(second_NP) - n_P))
        return auroc_TP

    return statistic


def values(table: pa.Table, name: str) -> Array:
    """A column as float64."""
    found: Array = table[name].to_numpy(zero_copy_only=False).astype(np.float64)
    return found


def with_percentiles(table: pa.Table, measures: Sequence[str]) -> pa.Table:
    """The table with each measure's percentile among the rows whose group is 'calibration', and how far a row is shifted.

    shift: the largest distance from the calibration's median over the measures, in median absolute deviations.
    """
    calibration = table.filter(pa.array(np.asarray(table["group"]) == "calibration"))
    shift_N = np.zeros(len(table))
    for measure in measures:
        known_K, values_N = values(calibration, measure), values(table, measure)
        table = table.append_column(f"{measure}_percentile", pa.array(percentiles(known_K, values_N)))
        middle = float(np.median(known_K))
        spread = max(float(np.median(np.abs(known_K - middle))), 1e-12)
        shift_N = np.maximum(shift_N, np.abs(values_N - middle) / spread)
    return table.append_column("shift", pa.array(shift_N))


@dataclass(frozen=True)
class Tested:
    """A group against another by several measures, each one-sided ('score') and as a two-sided percentile
    ('score_two_sided'). apart: how far; p: permutation p-values; draws: labellings; exact: every one was tried."""

    apart: Mapping[str, Separation]
    p: Mapping[str, float]
    draws: int
    exact: bool

    @property
    def least(self) -> float:
        """The smallest p, corrected for the number of tests."""
        return min(1.0, len(self.p) * min(self.p.values()))

    def interval(self, name: str) -> tuple[float, float]:
        """95 % interval of what p would be with endless relabellings; p itself where all were tried."""
        p = self.p[name]
        if self.exact:
            return p, p
        sides = 1 if name.endswith("_two_sided") else 2
        low, high = statistics.wilson(min(self.draws, round(p / sides * self.draws)), self.draws)
        return min(1.0, sides * low), min(1.0, sides * high)


def tested(inside: pa.Table, outside: pa.Table, measures: Sequence[str], draws: int, seed: int) -> Tested:
    """Permutation tests of every measure, and its separation. Both tables have the columns of `with_percentiles`.

    One-sided measures are tested in both directions, two-sided ones for the second table being further from the middle.
    """
    scores: dict[str, tuple[Array, Array]] = {}
    for name in measures:
        far = [np.abs(values(side, f"{name}_percentile") - 50) for side in (inside, outside)]
        scores |= {f"{name}_two_sided": (far[0], far[1]), name: (values(inside, name), values(outside, name))}
    label_N = np.repeat([0.0, 1.0], [len(inside), len(outside)])
    statistic = aurocs_of_labels(np.stack([np.concatenate(pair) for pair in scores.values()]))
    found = permutation.permute(statistic, label_N, draws=draws, seed=seed)
    p = {
        name: found.p(place, "greater" if name.endswith("_two_sided") else "two-sided")
        for place, name in enumerate(scores)
    }
    apart = {name: separation(*pair, seed=seed) for name, pair in scores.items()}
    return Tested(apart, p, found.draws + (0 if found.exact else 1), found.exact)
