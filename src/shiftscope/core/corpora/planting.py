"""Planted shifts: any labelled set dealt into domains whose class mixes differ by a known amount, to test methods on.

Source: arXiv 2207.13179 (the semi-synthetic shifts of its experiments: Dirichlet mixes with a bound on the condition number).
"""

# N items, K classes, R domains

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Labels = NDArray[np.int64]


def planted_mixture(
    classes: int, domains: int, *, alpha: float, condition: float, generator: np.random.Generator
) -> Array:
    """p(y|d) [K, R] whose columns are Dirichlet(alpha / K), drawn again until the condition number is small enough.

    Raises ValueError where 10,000 draws do not reach it.
    """
    for _ in range(10_000):
        mixture_RK = generator.dirichlet(np.full(classes, alpha / classes), domains)
        mixture_RK = np.where(mixture_RK < 1e-7, 0, mixture_RK)
        mixture_RK /= mixture_RK.sum(1, keepdims=True)
        if np.linalg.cond(mixture_RK) <= condition:
            return mixture_RK.T
    raise ValueError(
        f"no mix of {classes} classes over {domains} domains with alpha {alpha} has a condition number up to {condition}: "
        f"allow a larger one"
    )


def planted_domains(label_N: ArrayLike, mixture_KR: Array, generator: np.random.Generator) -> tuple[Labels, Labels]:
    """Rows of a labelled set dealt into equally large domains of given mixes: the rows used, and the domain of each.

    Each row is used once at most; the scale is the largest at which the most wanted class just suffices.
    """
    labels = np.asarray(label_N, dtype=np.int64)
    classes, domains = mixture_KR.shape
    wanted_K = mixture_KR.sum(1) / domains
    have_K = np.bincount(labels, minlength=classes)
    scale = float(np.min(have_K[wanted_K > 0] / wanted_K[wanted_K > 0]))
    rows, domain = [], []
    for label in range(classes):
        pool = generator.permutation(np.flatnonzero(labels == label))
        taken = 0
        for number in range(domains):
            count = math.floor(mixture_KR[label, number] / domains * scale)
            rows.append(pool[taken : taken + count])
            domain.append(np.full(count, number))
            taken += count
    return np.concatenate(rows), np.concatenate(domain).astype(np.int64)
