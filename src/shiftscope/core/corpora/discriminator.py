"""An out-of-fold discriminator of domains: every row is judged by a model that has not seen it.

A ridge regression on the label (Fisher's discriminant): its out-of-fold scores for any labelling are linear in the labels,
so that a permutation null costs one matrix product and no refitting. Where p(domain | text) itself is asked for, over any
number of domains, that is `latent.out_of_fold`.

Source: Lopez-Paz and Oquab 2017, arXiv 1610.06545 (classifier two-sample test); Hastie, Tibshirani and Friedman 2009,
section 7.10 (the held-out residuals of a linear smoother from its hat matrix).
Deviation: AUC instead of accuracy, so that unequal corpora need no threshold.
"""

# N rows, D dimensions, P labellings

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def stratified_folds(labels_N: ArrayLike, folds: int = 5, seed: int = 0) -> NDArray[np.int64]:
    """The fold of every row; every label is spread over the folds as evenly as it can be.

    Raises ValueError where a label has fewer than two rows or fewer than two folds are asked for.
    """
    labels = np.asarray(labels_N)
    names, counts = np.unique(labels, return_counts=True)
    if folds < 2 or counts.min() < 2 or len(names) < 2:
        raise ValueError(
            f"{folds} folds of {len(names)} domains with {counts.min()} to {counts.max()} rows: an out-of-fold judgement "
            f"needs 2 folds, 2 domains and 2 rows of each"
        )
    generator, fold_N, offset = np.random.default_rng(seed), np.empty(len(labels), dtype=np.int64), 0
    for name, count in zip(names, counts, strict=True):
        fold_N[generator.permutation(np.flatnonzero(labels == name))] = (np.arange(count) + offset) % folds
        offset += int(count)
    return fold_N


def standardised(rows_ND: ArrayLike) -> Array:
    """Rows with mean 0 and spread 1 in every dimension; dimensions without spread become 0. Uses no label."""
    rows = np.asarray(rows_ND, dtype=np.float64)
    rows = rows - rows.mean(0)
    spread_D = rows.std(0)
    return np.divide(rows, spread_D, out=np.zeros_like(rows), where=spread_D > 1e-12)


def scores_of_labels(rows_ND: ArrayLike, fold_N: NDArray[np.int64], ridge: float = 1.0) -> Callable[[Array], Array]:
    """Labels [N, P] of zeros and ones to out-of-fold ridge scores [N, P]; the larger, the more like a 1.

    ridge: penalty of the squared weights, in units of the number of rows (dimensions are standardised).
    Held-out rows F are predicted as y_F − (I − H_FF)⁻¹ (y − H y)_F with H the hat matrix, intercept included: exactly the
    prediction of the model that is fitted without F.
    """
    rows = standardised(rows_ND)
    N, D = rows.shape
    if D < N:
        factor = np.linalg.cholesky(rows.T @ rows + ridge * N * np.eye(D))
        hat_NN = np.linalg.solve(factor, rows.T)
        hat_NN = hat_NN.T @ hat_NN
    else:
        gram = rows @ rows.T
        hat_NN = np.linalg.solve(gram + ridge * N * np.eye(N), gram)
    hat_NN += 1 / N
    folds = [np.flatnonzero(fold_N == fold) for fold in np.unique(fold_N)]
    inverses = [np.linalg.inv(np.eye(len(inside)) - hat_NN[np.ix_(inside, inside)]) for inside in folds]

    def scores(second_NP: Array) -> Array:
        residual_NP = second_NP - hat_NN @ second_NP
        found_NP = np.empty_like(residual_NP)
        for inside, inverse in zip(folds, inverses, strict=True):
            found_NP[inside] = second_NP[inside] - inverse @ residual_NP[inside]
        return found_NP

    return scores


def auc_of_labels(rows_ND: ArrayLike, fold_N: NDArray[np.int64], ridge: float = 1.0) -> Callable[[Array], Array]:
    """A statistic for `permutation.permute`: the out-of-fold AUC [1, P] of labels [N, P]; use the folds as its strata."""
    scores = scores_of_labels(rows_ND, fold_N, ridge)

    def statistic(second_NP: Array) -> Array:
        order_NP = np.argsort(scores(second_NP), axis=0)
        n_P, size = second_NP.sum(0), len(second_NP)
        ranks_P = np.arange(1, size + 1, dtype=np.float64) @ np.take_along_axis(second_NP, order_NP, axis=0)
        auc_P: Array = (ranks_P - n_P * (n_P + 1) / 2) / (n_P * (size - n_P))
        return auc_P[None]

    return statistic
