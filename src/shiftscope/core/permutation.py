"""Permutation tests: many statistics under many relabellings at once, so that a null costs matrix products, not loops.

A statistic is a function of the labels alone, called with a block of labellings as columns: everything that does not
depend on the labels (a kernel, a distance matrix, a hat matrix) is computed once outside. p = (k + 1) / (draws + 1), never
zero; where there are no more distinct labellings than draws, all of them are enumerated and p is exact.

Source: Phipson and Smyth 2010 (Statistical Applications in Genetics and Molecular Biology 9:39) for the p-value.
"""

# N pooled observations, P labellings, S statistics

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Alternative = Literal["less", "greater", "two-sided"]
Statistic = Callable[[Array], Array]
TIE = 1e-12  # relative: a relabelling whose statistic equals the observed one but for rounding counts as equal
BLOCK_NUMBERS = 4_000_000  # entries of the label matrix that are held at once


@dataclass(frozen=True)
class Permuted:
    """Statistics of the observed labels and of the relabelled data. exact: null_SP holds every distinct labelling."""

    observed_S: Array
    null_SP: Array
    exact: bool

    @property
    def draws(self) -> int:
        return int(self.null_SP.shape[1])

    def p(self, statistic: int = 0, alternative: Alternative = "two-sided") -> float:
        """p-value of one statistic; two-sided is twice the smaller one-sided p, at most 1 (as in scipy)."""
        observed, null_P = self.observed_S[statistic], self.null_SP[statistic]
        slack = TIE * max(1e-300, abs(observed))
        extra = 0 if self.exact else 1
        below = float((np.count_nonzero(null_P <= observed + slack) + extra) / (self.draws + extra))
        above = float((np.count_nonzero(null_P >= observed - slack) + extra) / (self.draws + extra))
        return {"less": below, "greater": above, "two-sided": min(1.0, 2 * min(below, above))}[alternative]


def permute(
    statistic: Statistic, second_N: ArrayLike, *, draws: int = 999, seed: int = 0, strata_N: ArrayLike | None = None
) -> Permuted:
    """The statistics under relabelling.

    statistic: labels [N, P] of zeros and ones (1 is the second sample) to statistics [S, P], column by column.
    second_N: the observed labels. strata_N: labels are exchanged only inside a stratum (None: freely).
    Raises ValueError where one sample is empty, or draws are below 1.
    """
    observed = np.asarray(second_N, dtype=np.float64)
    n = int(observed.sum())
    if not 0 < n < len(observed) or draws < 1:
        raise ValueError(
            f"{len(observed) - n} and {n} observations, {draws} draws: a permutation test needs some of each"
        )
    exact = strata_N is None and math.comb(len(observed), n) <= draws
    if exact:
        blocks = iter([_every(len(observed), n)])
    else:
        strata = np.zeros(len(observed), dtype=np.int64) if strata_N is None else np.asarray(strata_N)
        blocks = _drawn(observed, strata, draws, np.random.default_rng(seed))
    null_SP = np.concatenate([np.atleast_2d(statistic(labels_NP)) for labels_NP in blocks], 1)
    return Permuted(np.atleast_2d(statistic(observed[:, None]))[:, 0], null_SP, exact)


def _every(size: int, n: int) -> Array:
    chosen = np.array(list(combinations(range(size), n)))
    labels_NP = np.zeros((size, len(chosen)))
    labels_NP[chosen.T, np.arange(len(chosen))] = 1
    return labels_NP


def _drawn(
    observed_N: Array, strata_N: NDArray[np.int64], draws: int, generator: np.random.Generator
) -> Iterator[Array]:
    columns = max(1, BLOCK_NUMBERS // len(observed_N))
    members = [np.flatnonzero(strata_N == stratum) for stratum in np.unique(strata_N)]
    for start in range(0, draws, columns):
        width = min(columns, draws - start)
        labels_PN = np.empty((width, len(observed_N)))
        for inside in members:
            labels_PN[:, inside] = generator.permuted(np.tile(observed_N[inside], (width, 1)), axis=1)
        yield labels_PN.T
