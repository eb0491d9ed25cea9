"""Latent classes from domains whose class mixes differ: things that are frequent in the same domains are one class.

If every domain d holds the same classes in other proportions, p(x|d) = Σ_y p(x|y) p(y|d). From p(d|x) alone come the
mixes p(y|d) (`nmf` of how often each cluster occurs in each domain, or `anchor`, whose classes are the corners of the hull
of all p(d|x)) and each text's p_d(y|x) (`pinv` or `em`). Labels play no part; evaluation is `core/corpora/matching.py`,
planted shifts are `core/corpora/planting.py`.

Source: arXiv 2207.13179 (discriminate, discretise, factorise, adjust). Anchors by
successive projection: Gillis and Vavasis 2014, arXiv 1208.1237.
Deviation: unequal domains are brought to the uniform prior that the theory assumes; the discriminator is out-of-fold and
tempered, and reads vectors through a kernel map (on digits, five classes of two unlike digits each, mean of eight draws:
accuracy 0.90 against 0.84 of a linear one); NMF is the best of several starts; class probabilities are clipped before they
meet the domain's mix, since the pseudo-inverse gives negative ones; `em` and `anchor` are ours. NMF is not unique even with
infinite data and leans to milder mixes; the anchor factoriser is exact where every class has a region of its own, and
noisier where none has.
"""

# N texts, R domains, K classes, M clusters

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shiftscope.core.corpora import discriminator

Array = NDArray[np.float64]
Labels = NDArray[np.int64]
Factorizer = Literal["nmf", "anchor"]
Solver = Literal["em", "pinv"]
CLIP = 1e-9


@dataclass(frozen=True)
class Mixture:
    """What was found: mixture_KR = p(y|d), columns sum to 1. error: of the reconstruction of p(c|d) (Frobenius).

    emission_MK: p(c|y), columns sum to 1. converged: whether NMF ended before its limit of iterations.
    """

    mixture_KR: Array
    emission_MK: Array
    error: float
    converged: bool = True

    @property
    def domain_given_class_RK(self) -> Array:
        """p(d|y) under equally large domains; columns sum to 1."""
        return domain_given_class(self.mixture_KR)

    @property
    def condition(self) -> float:
        """Condition number of p(y|d): how much the noise of p(d|x) is magnified; infinite where classes coincide."""
        return float(np.linalg.cond(self.mixture_KR))


def domain_given_class(mixture_KR: Array) -> Array:
    """p(d|y) [R, K] from p(y|d) [K, R] under a uniform prior of domains; a class that no domain has is spread evenly."""
    sums_K = mixture_KR.sum(1)
    found_RK = np.full(mixture_KR.T.shape, 1 / mixture_KR.shape[1])
    return np.divide(mixture_KR.T, sums_K, out=found_RK, where=sums_K > 1e-8)


# ---- p(d|x) and what can be seen in it


def kernel_map(rows_ND: ArrayLike, landmarks: int = 300, seed: int = 0) -> Array:
    """Vectors as similarities to landmarks (Nyström features of a Gaussian kernel on standardised rows, width √D).

    A linear discriminator on them can part domains that no plane parts: a class may be made of unlike things.
    """
    from sklearn.kernel_approximation import Nystroem

    rows = discriminator.standardised(rows_ND)
    landmarks = min(landmarks, len(rows))
    found = Nystroem(gamma=1 / rows.shape[1], n_components=landmarks, random_state=seed).fit_transform(rows)
    return np.asarray(found, dtype=np.float64)


def out_of_fold(features: Any, domain_N: Labels, *, folds: int = 5, c: float = 1.0, seed: int = 0) -> Array:
    """p(d|x) [N, R] of a logistic regression that has not seen the text, under equally large domains, tempered.

    features: a dense or sparse matrix [N, D], used as it is. c: inverse penalty of the weights.
    Raises ValueError where a domain has fewer than two texts.
    """
    from sklearn.linear_model import LogisticRegression

    fold_N = discriminator.stratified_folds(domain_N, folds, seed)
    found_NR = np.zeros((len(domain_N), int(domain_N.max()) + 1))
    for fold in np.unique(fold_N):
        model = LogisticRegression(C=c, max_iter=5000).fit(features[fold_N != fold], domain_N[fold_N != fold])
        found_NR[np.ix_(fold_N == fold, model.classes_)] = model.predict_proba(features[fold_N == fold])
    found_NR = with_uniform_prior(found_NR, domain_N)
    return tempered(found_NR, best_temperature(found_NR, domain_N))


def with_uniform_prior(p_NR: Array, domain_N: Labels) -> Array:
    """p(d|x) as it were if all domains were equally large: divided by the empirical shares, rows renormalised."""
    share_R = np.bincount(domain_N, minlength=p_NR.shape[1]) / len(domain_N)
    found_NR = p_NR / share_R
    return found_NR / found_NR.sum(1, keepdims=True)


def tempered(p_NR: Array, temperature: float) -> Array:
    """p^(1/T), rows renormalised; T above 1 makes an over-confident discriminator milder."""
    log_NR = np.log(np.maximum(p_NR, 1e-12)) / temperature
    found_NR = np.exp(log_NR - log_NR.max(1, keepdims=True))
    return found_NR / found_NR.sum(1, keepdims=True)


def best_temperature(p_NR: Array, domain_N: Labels) -> float:
    """The temperature in [0.2, 20] of the lowest held-out log-loss, all domains weighing the same."""
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        return -float(np.mean(gains(tempered(p_NR, math.exp(log_temperature)), domain_N)))

    found = minimize_scalar(loss, bounds=(math.log(0.2), math.log(20)), method="bounded")
    return math.exp(float(found.x))


def gains(p_NR: Array, domain_N: Labels) -> Array:
    """How many nats better than chance each text's own domain is predicted, log p + log R, with equal weight per domain.

    Its mean is log R minus the domain-balanced log-loss; at most log R, and 0 or below where domains cannot be told apart.
    """
    count_R = np.bincount(domain_N, minlength=p_NR.shape[1])
    weight_N = len(domain_N) / (p_NR.shape[1] * count_R[domain_N])
    own_N = np.maximum(p_NR[np.arange(len(domain_N)), domain_N], 1e-12)
    return weight_N * (np.log(own_N) + math.log(p_NR.shape[1]))


def clustered(p_NR: Array, clusters: int, seed: int) -> tuple[Labels, Array]:
    """k-means of the rows of p(d|x), best of five starts: the cluster of each text, and the centres [M, R]."""
    from sklearn.cluster import KMeans

    found = KMeans(clusters, n_init=5, max_iter=100, random_state=seed).fit(p_NR)
    return found.labels_.astype(np.int64), np.asarray(found.cluster_centers_, dtype=np.float64)


def cluster_shares(cluster_N: Labels, domain_N: Labels, clusters: int, n_domains: int) -> Array:
    """p(c|d) [M, R]: the share of each cluster in each domain; columns sum to 1."""
    count_MR = np.bincount(cluster_N * n_domains + domain_N, minlength=clusters * n_domains).reshape(
        clusters, n_domains
    )
    return count_MR / count_MR.sum(0)


# ---- factorisers


def nmf(share_MR: Array, classes: int, *, seed: int, restarts: int = 10, start: Mixture | None = None) -> Mixture:
    """p(c|d) = Σ_y p(c|y) p(y|d) by non-negative factorisation, the best of several random starts.

    start: go on from this solution instead (for a resample, so that classes keep their numbers).
    """
    if start is not None:
        # W [R, K] · H [K, M], with every factor off zero, where multiplicative and coordinate steps would stay
        first = np.ascontiguousarray(start.mixture_KR.T) + 1e-4, np.ascontiguousarray(start.emission_MK.T) + 1e-4
        return _nmf_once(share_MR, classes, seed, first)
    return min((_nmf_once(share_MR, classes, seed + number, None) for number in range(restarts)), key=lambda m: m.error)


def _nmf_once(share_MR: Array, classes: int, seed: int, first: tuple[Array, Array] | None) -> Mixture:
    from sklearn.decomposition import NMF
    from sklearn.exceptions import ConvergenceWarning

    model = NMF(classes, init="random" if first is None else "custom", random_state=seed, max_iter=2000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # told by `converged`
        given = {} if first is None else {"W": first[0], "H": first[1]}
        weight_RK = model.fit_transform(np.ascontiguousarray(share_MR.T), **given)
    emission_MK = model.components_.T
    sums_K = emission_MK.sum(0)
    mixture_KR = (weight_RK * sums_K).T
    emission_MK = np.divide(emission_MK, sums_K, out=np.full_like(emission_MK, 1 / len(emission_MK)), where=sums_K > 0)
    total_R = mixture_KR.sum(0)
    mixture_KR = np.divide(mixture_KR, total_R, out=np.full_like(mixture_KR, 1 / classes), where=total_R > 0)
    return Mixture(mixture_KR, emission_MK, float(model.reconstruction_err_), model.n_iter_ < 2000)


def anchor(centre_MR: Array, share_MR: Array, classes: int, *, smallest: float = 0.005) -> Mixture:
    """Classes as the corners of the hull of p(d|x), found by successive projection on cluster centres.

    smallest: clusters with a smaller share of the texts are no candidates. Exact where each class has a cluster of its
    own. Raises ValueError where fewer clusters than classes are large enough, or the corners coincide.
    """
    candidate_M = np.flatnonzero(share_MR.mean(1) >= smallest)
    if len(candidate_M) < classes:
        raise ValueError(
            f"{len(candidate_M)} clusters hold at least {smallest:.1%} of the texts and {classes} classes are asked for: "
            f"use fewer classes, more clusters, or --factorizer nmf"
        )
    corners = candidate_M[corner_rows(centre_MR[candidate_M], classes)]
    domain_RK = centre_MR[corners].T / centre_MR[corners].sum(1)
    mixture_KR = mixture_of_corners(domain_RK)
    emission_MK, residual = _emission(share_MR, mixture_KR)
    return Mixture(mixture_KR, emission_MK, residual)


def corner_rows(points_PR: Array, classes: int) -> Labels:
    """Successive projection: which points are the corners of the hull of all of them.

    The longest is a corner; project along it, and again. Raises ValueError where what is left has no length.
    """
    left_PR, found = points_PR.copy(), []
    for number in range(classes):
        length_P = np.linalg.norm(left_PR, axis=1)
        place = int(np.argmax(length_P))
        if length_P[place] < 1e-9:
            raise ValueError(
                f"the texts' domains span only {number} directions and {classes} classes are asked for: use fewer classes"
            )
        direction_R = left_PR[place] / length_P[place]
        left_PR = left_PR - np.outer(left_PR @ direction_R, direction_R)
        found.append(place)
    return np.array(found, dtype=np.int64)


def mixture_of_corners(domain_RK: Array) -> Array:
    """p(y|d) [K, R] from the corners p(d|y): Σ_y p(d|y) p(y) = 1/R gives p(y), then Bayes."""
    from scipy.optimize import nnls

    n_domains = len(domain_RK)
    prior_K, _ = nnls(domain_RK, np.full(n_domains, 1 / n_domains))
    mixture_KR = (domain_RK * prior_K).T * n_domains
    total_R = mixture_KR.sum(0)
    return np.divide(mixture_KR, total_R, out=np.full_like(mixture_KR, 1 / domain_RK.shape[1]), where=total_R > 0)


def _emission(share_MR: Array, mixture_KR: Array) -> tuple[Array, float]:
    """p(c|y) that best explains p(c|d), row by row, and the error left."""
    from scipy.optimize import nnls

    emission_MK = np.stack([nnls(mixture_KR.T, share_R)[0] for share_R in share_MR])
    residual = float(np.linalg.norm(share_MR - emission_MK @ mixture_KR))
    sums_K = emission_MK.sum(0)
    return np.divide(emission_MK, sums_K, out=np.full_like(emission_MK, 1 / len(share_MR)), where=sums_K > 0), residual


# ---- adjustment


def class_given_text(p_NR: Array, domain_RK: Array, solver: Solver = "em", steps: int = 300) -> Array:
    """p(y|x) [N, K] under equally large domains, from p(d|x) = Σ_y p(d|y) p(y|x); rows sum to 1.

    pinv: the authors' pseudo-inverse, clipped at 1e-9. em: the most likely mix on the simplex, by multiplicative steps.
    Raises ValueError for another solver.
    """
    if solver == "pinv":
        found_NK = np.maximum(p_NR @ np.linalg.pinv(domain_RK).T, CLIP)
    elif solver == "em":
        found_NK = np.full((len(p_NR), domain_RK.shape[1]), 1 / domain_RK.shape[1])
        for _ in range(steps):
            found_NK = found_NK * ((p_NR / np.maximum(found_NK @ domain_RK.T, 1e-300)) @ domain_RK)
        found_NK = np.maximum(found_NK, CLIP)
    else:
        raise ValueError(f"solver is {solver!r}: it must be 'em' or 'pinv'")
    return found_NK / found_NK.sum(1, keepdims=True)


def class_in_domain(class_NK: Array, domain_RK: Array, domain_N: Labels) -> Array:
    """p_d(y|x) ∝ p(d|y) p(y|x) for each text's own domain; rows sum to 1."""
    found_NK = class_NK * np.maximum(domain_RK[domain_N], CLIP)
    return found_NK / found_NK.sum(1, keepdims=True)


# ---- how many classes


def singular_values(share_MR: Array) -> Array:
    """Singular values [min(M, R − 1)] of p(c|d) without the domains' mean; K classes give K − 1, the rest is noise."""
    return np.linalg.svd(share_MR - share_MR.mean(1, keepdims=True), compute_uv=False)[: share_MR.shape[1] - 1]


def null_singular_values(
    cluster_N: Labels, domain_N: Labels, shape: tuple[int, int], *, draws: int, seed: int
) -> Array:
    """The same [draws, …] when domains are dealt out at random: what sampling alone gives."""
    generator = np.random.default_rng(seed)
    return np.stack(
        [singular_values(cluster_shares(cluster_N, generator.permutation(domain_N), *shape)) for _ in range(draws)]
    )


def held_out_errors(cluster_N: Labels, domain_N: Labels, shape: tuple[int, int], *, most: int, seed: int) -> Array:
    """Frobenius error of NMF with 1 … most classes, fitted on one half of the texts and measured on the other.

    Halves are drawn inside every domain. The error stops falling at the number of classes that the data can bear.
    """
    generator = np.random.default_rng(seed)
    half_N = np.zeros(len(domain_N), bool)
    for domain in range(shape[1]):
        inside = np.flatnonzero(domain_N == domain)
        half_N[generator.permutation(inside)[: len(inside) // 2]] = True
    one, other = (cluster_shares(cluster_N[rows], domain_N[rows], *shape) for rows in (half_N, ~half_N))
    fits = [nmf(one, classes, seed=seed, restarts=3) for classes in range(1, most + 1)]
    return np.array([np.linalg.norm(other - fit.emission_MK @ fit.mixture_KR) for fit in fits])
