"""Hungarian matching: which found class is which true one, one to one, and which row of one matrix is which of another.

Used where classes come without names: latent classes, clusters, communities. Source: Kuhn 1955 (Naval Research Logistics
2:83); the naming by counts as in arXiv 2207.13179.
"""

# N items, K classes, R columns

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Labels = NDArray[np.int64]


def matched(found_N: ArrayLike, truth_N: ArrayLike, classes: int) -> tuple[float, Labels]:
    """Accuracy of found classes under the best one-to-one naming, and that naming: permutation[found] = true class.

    Hungarian matching on the table of counts, whose size is fixed, so that an empty class has its place.
    Raises ValueError for no items, lengths that differ, or a class outside 0 … classes - 1.
    """
    from scipy.optimize import linear_sum_assignment

    found, truth = np.asarray(found_N, dtype=np.int64), np.asarray(truth_N, dtype=np.int64)
    both = np.concatenate([found, truth])
    if len(found) != len(truth) or not len(found) or both.min() < 0 or both.max() >= classes:
        raise ValueError(
            f"{len(found)} found and {len(truth)} true labels of {classes} classes: there must be as many of both, at least "
            f"one, and all within 0 to {classes - 1}"
        )
    count_KK = np.bincount(found * classes + truth, minlength=classes * classes).reshape(classes, classes)
    rows, columns = linear_sum_assignment(count_KK, maximize=True)
    return float(count_KK[rows, columns].sum() / len(found)), columns.astype(np.int64)


def aligned(mixture_KR: Array, reference_KR: Array) -> Labels:
    """The order of the rows of one mixture in which they are nearest (L1) to those of another, one to one."""
    from scipy.optimize import linear_sum_assignment

    cost_KK = np.abs(reference_KR[:, None] - mixture_KR[None]).sum(2)
    return linear_sum_assignment(cost_KK)[1].astype(np.int64)
