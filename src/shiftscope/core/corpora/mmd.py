"""Maximum mean discrepancy of two samples of embeddings, with its permutation null as one matrix product.

Source: Gretton et al. 2012 (JMLR 13:723), the unbiased estimator (equation 3) with a Gaussian kernel of median bandwidth.
"""

# N pooled rows, D dimensions, P labellings

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def squared_distances(rows_ND: Array) -> Array:
    """Squared Euclidean distances [N, N] of the rows, exactly 0 on the diagonal."""
    rows = np.asarray(rows_ND, dtype=np.float64)
    rows = rows - rows.mean(0)
    length_N = np.einsum("nd,nd->n", rows, rows)
    apart_NN = length_N[:, None] + length_N - 2 * rows @ rows.T
    np.maximum(apart_NN, 0, out=apart_NN)
    np.fill_diagonal(apart_NN, 0)
    return apart_NN


def median_bandwidth(apart_NN: Array) -> float:
    """The median distance of two different rows (the kernel is exp(−d² / 2 bandwidth²)).

    Raises ValueError where more than half of all pairs of rows are equal, since the median is then 0.
    """
    squared = float(np.median(apart_NN[np.triu_indices(len(apart_NN), 1)]))
    if squared <= 0:
        raise ValueError(
            "more than half of all pairs of rows are equal: MMD has no median bandwidth; give distinct texts"
        )
    return float(np.sqrt(squared))


def mmd2_of_labels(rows_ND: Array, bandwidth: float | None = None) -> Callable[[Array], Array]:
    """A statistic for `permutation.permute`: the unbiased MMD² [1, P] of labels [N, P], 1 for the second sample.

    bandwidth: of the Gaussian kernel; None takes the median distance of the pooled rows, which no relabelling changes.
    """
    kernel_NN = squared_distances(rows_ND)
    width = median_bandwidth(kernel_NN) if bandwidth is None else bandwidth
    np.divide(kernel_NN, -2 * width * width, out=kernel_NN)
    np.exp(kernel_NN, out=kernel_NN)
    np.fill_diagonal(kernel_NN, 0)
    to_all_N = kernel_NN.sum(1)

    def statistic(second_NP: Array) -> Array:
        n_P = second_NP.sum(0)
        m_P = len(second_NP) - n_P
        to_second_NP = kernel_NN @ second_NP
        second_P = (to_second_NP * second_NP).sum(0)
        across_P = to_second_NP.sum(0) - second_P
        first_P = to_all_N.sum() - second_P - 2 * across_P
        mmd2_P: Array = first_P / (m_P * (m_P - 1)) + second_P / (n_P * (n_P - 1)) - 2 * across_P / (m_P * n_P)
        return mmd2_P[None]

    return statistic
