"""A network's convolution kernels as a sample of small vectors: drift between two samples, and the health of a layer.

Drift: kernels scaled by their own largest weight, in the PCA basis of both sets pooled; per component the symmetric KL of
two histograms over one common range, weighted by explained variance. Health, on raw weights: share of sparse kernels, the
entropy of the variance over a layer's own components against that of random layers, orthogonality of the filters.

Source: arXiv 2203.15331 (drift, sparsity, variance entropy, random threshold); constants of the threshold and clean
variants as in the authors' torchconvquality 0.3.
Deviation: a histogram KL with a floor is biased upward on small samples, so drift comes with a permutation null; the
random threshold of widths other than nine is simulated; the cut-offs of the classes are ours.
"""

# N kernels, K weights of a kernel (its width), C components, B bins, S permutations, L layers

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]
Counts = NDArray[np.int64]
Rows = Literal["raw", "scaled"]
Health = Literal["healthy", "random", "low diversity", "sparse", "too few kernels"]
FLOOR = float(np.finfo(np.float32).eps)  # of an empty bin, in density units
LONGEST = 128  # a kernel with a longer side is taken for stacked matrices (mixture-of-experts), not for a convolution
SPARSE_SHARE, LOW_ENTROPY = 0.1, 0.5 / math.log10(9)  # ours; the second as a share of the largest possible entropy
SIMULATED = 100


@dataclass(frozen=True)
class Layer:
    """One convolution: its kernels as rows, one per (output, input) pair, and how many output filters it has."""

    name: str
    kernel: tuple[int, ...]
    rows_NK: Array
    outputs: int


@dataclass(frozen=True)
class Basis:
    """The axes in which sets of kernels are compared, kept so that a later set can be placed on the same ones.

    mean_K, components_CK, ratio_C: of the pooled PCA, ratios summing to 1. low, high: the range of all coefficients.
    """

    kernel: tuple[int, ...]
    mean_K: Array
    components_CK: Array
    ratio_C: Array
    low: float
    high: float
    bins: int

    def coefficients(self, scaled_NK: Array) -> Array:
        """Coordinates [N, C] of scaled kernels."""
        return (scaled_NK - self.mean_K) @ self.components_CK.T

    def codes(self, scaled_NK: Array) -> NDArray[np.int32]:
        """For every kernel and component the number of its bin, c · bins + b; beyond the range counts in the end bins."""
        place = (self.coefficients(scaled_NK) - self.low) / (self.high - self.low) * self.bins
        bin_NC = np.clip(place.astype(np.int32), 0, self.bins - 1)
        return bin_NC + np.arange(len(self.ratio_C), dtype=np.int32) * self.bins

    def counts(self, codes_NC: NDArray[np.int32]) -> Counts:
        """Histograms [C, B] of coded kernels."""
        shape = len(self.ratio_C), self.bins
        return np.bincount(codes_NC.ravel(), minlength=shape[0] * shape[1]).reshape(shape)

    def outside(self, scaled_NK: Array) -> int:
        """How many kernels have a coefficient beyond the range."""
        coefficient_NC = self.coefficients(scaled_NK)
        slack = 1e-9 * (self.high - self.low)
        return int(((coefficient_NC < self.low - slack) | (coefficient_NC > self.high + slack)).any(1).sum())

    def as_json(self) -> dict[str, Any]:
        """Plain lists and numbers."""
        arrays = {name: getattr(self, name).tolist() for name in ("mean_K", "components_CK", "ratio_C")}
        return {"kernel": list(self.kernel), **arrays, "low": self.low, "high": self.high, "bins": self.bins}

    @staticmethod
    def from_json(kept: Mapping[str, Any]) -> Basis:
        """The basis that `as_json` wrote, bit for bit."""
        mean_K, components_CK, ratio_C = (np.array(kept[name]) for name in ("mean_K", "components_CK", "ratio_C"))
        return Basis(tuple(kept["kernel"]), mean_K, components_CK, ratio_C, kept["low"], kept["high"], kept["bins"])


@dataclass(frozen=True)
class Drift:
    """Drift between two sets and what it is by chance.

    nats: Σ ratio · (KL + KL); js_nats: the same with Jensen–Shannon, at most ln 2; null_S, js_null_S: both under
    reshuffling; exact: whether that is every way to reshuffle; p: share of reshuffles at least as large, the observed one
    counted in.
    """

    nats: float
    js_nats: float
    null_S: Array
    js_null_S: Array
    exact: bool = False

    @property
    def p(self) -> float:
        return (1 + int((self.null_S >= self.nats * (1 - 1e-12)).sum())) / (1 + len(self.null_S))

    @property
    def js_p(self) -> float:
        """The same of the Jensen–Shannon drift, which is not ruled by the rarest bins: the stronger test."""
        return (1 + int((self.js_null_S >= self.js_nats * (1 - 1e-12)).sum())) / (1 + len(self.js_null_S))

    @property
    def least_p(self) -> float:
        """The smallest p that this null allows; of all ways, that which swaps everything is as extreme as the observed."""
        return (2 if self.exact else 1) / (1 + len(self.null_S))


# ---- kernels


def may_be_kernel(name: str, shape: Sequence[int]) -> bool:
    """Whether a tensor can be (a part of) a convolution's weight, by its number of axes."""
    return 3 <= len(shape) <= 5 and "weight" in name


def convolutions(tensors: Mapping[str, Tensor], owner: str) -> tuple[list[Layer], list[str]]:
    """The convolutions with more than one weight per kernel, in order, and sentences on those that were left out.

    A tensor named `weight` with 3 to 5 axes [outputs, inputs, kernel…], kernel sides up to 128. Weight normalisation is
    undone. Raises ValueError naming the layer for weights that are not finite.
    """
    layers, notes, pointwise = [], [], 0
    for name, tensor in _whole(tensors).items():
        kernel = tuple(tensor.shape[2:])
        if name.rpartition(".")[2] != "weight" or not 3 <= tensor.ndim <= 5 or max(kernel) > LONGEST:
            continue
        if math.prod(kernel) < 2:
            pointwise += 1
            continue
        if tensor.numel() == 0 or not tensor.is_floating_point():
            why = "empty" if tensor.numel() == 0 else f"of type {str(tensor.dtype).removeprefix('torch.')}"
            notes.append(f"{name} of {owner} is {why}: it is left out; give the weights before quantisation")
            continue
        rows_NK = tensor.detach().double().numpy().reshape(-1, math.prod(kernel))
        wrong = int((~np.isfinite(rows_NK)).sum())
        if wrong:
            raise ValueError(
                f"{owner} has {wrong} of {rows_NK.size} weights that are not finite (NaN or infinite) in {name}: repair "
                f"the checkpoint, or leave the layer out with --layers"
            )
        layers.append(Layer(name.removesuffix("weight").rstrip(".") or name, kernel, rows_NK, tensor.shape[0]))
    if pointwise:
        notes.append(f"{pointwise} pointwise convolutions (1×1) of {owner} are left out: a single weight has no shape")
    return layers, notes


def _whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights as they act: direction and length of weight normalisation multiplied out."""
    found: dict[str, Tensor] = {}
    halves = (("parametrizations.weight.original1", "parametrizations.weight.original0"), ("weight_v", "weight_g"))
    for name, tensor in tensors.items():
        for direction, length in halves:
            stem = name.removesuffix(direction)
            if stem != name and stem + length in tensors:
                lengths = tensors[stem + length].double()
                axes = [axis for axis in range(tensor.ndim) if lengths.shape[axis] == 1]
                found[stem + "weight"] = tensor.double() / tensor.double().norm(dim=axes, keepdim=True) * lengths
                break
        else:
            found[name] = tensor
    return found


def scaled(rows_NK: Array) -> Array:
    """Every kernel divided by its own largest absolute weight; kernels of zeros stay zero."""
    largest_N = np.abs(rows_NK).max(1, keepdims=True)
    return np.divide(rows_NK, largest_N, out=np.zeros_like(rows_NK), where=largest_N > 0)


# ---- drift


def principal(scaled_NK: Array) -> tuple[Array, Array, Array]:
    """Mean, components [C, K] (largest entry positive) and explained-variance ratios of a set; C = min(N − 1, K)."""
    mean_K = scaled_NK.mean(0)
    centred_NK = scaled_NK - mean_K
    variance_K, vector_KK = np.linalg.eigh(centred_NK.T @ centred_NK)
    order = np.argsort(variance_K)[::-1][: min(len(scaled_NK) - 1, scaled_NK.shape[1])]
    components_CK, variance_C = vector_KK.T[order], np.clip(variance_K[order], 0, None)
    top = np.take_along_axis(components_CK, np.abs(components_CK).argmax(1)[:, None], 1)
    total = variance_C.sum()
    return mean_K, components_CK * np.where(top < 0, -1.0, 1.0), variance_C / (total if total > 0 else 1.0)


def basis(scaled_NK: Array, kernel: tuple[int, ...], bins: int = 70) -> Basis:
    """The PCA basis of a pool of scaled kernels, with the one range that all its histograms share.

    Raises ValueError for a pool of fewer than three kernels, or of kernels that are all alike.
    """
    if len(scaled_NK) < 3:
        raise ValueError(f"{len(scaled_NK)} kernels in both sets together: a basis needs at least 3")
    mean_K, components_CK, ratio_C = principal(scaled_NK)
    coefficient_NC = (scaled_NK - mean_K) @ components_CK.T
    low, high = float(coefficient_NC.min()), float(coefficient_NC.max())
    if high - low < 1e-12:
        raise ValueError(
            f"all {len(scaled_NK)} kernels of size {size(kernel)} are alike up to scale: nothing can drift"
        )
    return Basis(kernel, mean_K, components_CK, ratio_C, low, high, bins)


def divergences(counts_p: Counts, counts_q: Counts, basis: Basis) -> tuple[Any, Any]:
    """Drift of histograms […, C, B] in nats: Σ ratio · (KL(p‖q) + KL(q‖p)), and Σ ratio · Jensen–Shannon."""
    symmetric, js = by_component(counts_p, counts_q, basis)
    return symmetric @ basis.ratio_C, js @ basis.ratio_C


def by_component(counts_p: Counts, counts_q: Counts, basis: Basis) -> tuple[Array, Array]:
    """KL(p‖q) + KL(q‖p) and Jensen–Shannon of histograms […, C, B], in nats, of each component […, C].

    An empty bin has density 1.19e-7 before renormalising, so a KL is finite; the Jensen–Shannon needs no floor, and is at
    most ln 2.
    """
    width = (basis.high - basis.low) / basis.bins
    p, q = _floored(counts_p, width), _floored(counts_q, width)
    symmetric: Array = ((p - q) * (np.log(p) - np.log(q))).sum(-1)
    p, q = (counts / counts.sum(-1, keepdims=True) for counts in (counts_p, counts_q))
    js = _entropy((p + q) / 2) - (_entropy(p) + _entropy(q)) / 2
    return symmetric, np.clip(js, 0, math.log(2))


def _floored(counts: Counts, width: float) -> Array:
    density = counts / (counts.sum(-1, keepdims=True) * width)
    density = np.where(counts > 0, density, FLOOR)
    return density / density.sum(-1, keepdims=True)


def _entropy(p: Array) -> Array:
    """In nats, over the last axis; 0 log 0 = 0."""
    return -(p * np.log(np.where(p > 0, p, 1.0))).sum(-1)


def drift(codes_p: NDArray[np.int32], codes_q: NDArray[np.int32], basis: Basis, *, permutations: int, seed: int,
          paired: bool = False) -> Drift:  # fmt: skip
    """Drift between two sets of coded kernels with its permutation null.

    paired: row i of one set only changes places with row i of the other (for kernels of one layer before and after
    tuning, which are not independent); otherwise both sets are pooled and dealt out anew.
    """
    generator = np.random.default_rng(seed)
    both, n = np.concatenate([codes_p, codes_q]), len(codes_p)
    total_CB = basis.counts(both)
    counts_SCB = np.empty((permutations, *total_CB.shape), np.int64)
    for number in range(permutations):
        swapped = np.arange(n) + n * (generator.random(n) < 0.5) if paired else generator.permutation(len(both))[:n]
        counts_SCB[number] = basis.counts(both[swapped])
    return _drift(basis.counts(codes_p), basis.counts(codes_q), counts_SCB, total_CB, basis)


def layer_drift(counts_p: Counts, counts_q: Counts, basis: Basis, *, permutations: int, seed: int) -> Drift:
    """Drift between two sets of layers whose null keeps layers whole: each pair of layers changes sides, or not.

    counts_p, counts_q: histograms [L, C, B] of paired layers. All 2^L ways where they are at most `permutations`, else
    random ones.
    """
    n_layers, total_CB = len(counts_p), (counts_p + counts_q).sum(0)
    exact = 2**n_layers <= permutations
    if exact:
        swap_SL = (np.arange(1, 2**n_layers)[:, None] >> np.arange(n_layers)) & 1  # without the observed one
    else:
        swap_SL = np.random.default_rng(seed).integers(0, 2, (permutations, n_layers))
    counts_SCB = counts_p.sum(0) + np.einsum("sl,lcb->scb", swap_SL, counts_q - counts_p)
    return _drift(counts_p.sum(0), counts_q.sum(0), counts_SCB, total_CB, basis, exact)


def _drift(p: Counts, q: Counts, null_p: Counts, total: Counts, basis: Basis, exact: bool = False) -> Drift:
    nats, js = divergences(p, q, basis)
    null_S, js_null_S = divergences(null_p, total - null_p, basis)
    return Drift(float(nats), float(js), null_S, js_null_S, exact)


# ---- health of a layer


def sparse(rows_NK: Array) -> NDArray[np.bool_]:
    """Kernels whose every weight is below a hundredth of the layer's largest; all of them in a layer of zeros."""
    largest = np.abs(rows_NK).max()
    return (np.abs(rows_NK) < largest / 100).all(1) if largest > 0 else np.ones(len(rows_NK), bool)


def variance_entropy(rows_NK: Array) -> float:
    """Entropy (base 10) of how a layer's variance spreads over its own components; within [0, log10 K].

    0 where nothing varies: one kernel, or all equal.
    """
    centred_NK = rows_NK - rows_NK.mean(0)
    return _spread(np.linalg.eigvalsh(centred_NK.T @ centred_NK).astype(np.float64))


def _spread(variance_K: Array) -> float:
    variance_K = np.clip(variance_K, 0, None)
    total = variance_K.sum()
    return max(0.0, float(_entropy(variance_K / total)) / math.log(10)) if total > 0 else 0.0


def random_threshold(n: int, width: int, seed: int = 0) -> float:
    """The variance entropy from which a layer of n kernels of so many weights is no different from a random one.

    Nine weights: the authors' sigmoid, fitted to the smallest entropy of random layers. Other widths: the smallest of
    100 Gaussian layers of the same shape.
    """
    if width == 9:
        return 1.2618047 / (1 + math.exp(-0.88767525 * (math.log2(n) - 2.30436435))) - 0.31050834
    return _simulated_threshold(n, width, seed)


@lru_cache(maxsize=256)
def _simulated_threshold(n: int, width: int, seed: int) -> float:
    """For n > width from the Bartlett factor of the sample covariance: the same law, whatever n, at the cost of K³."""
    generator, found = np.random.default_rng(seed), []
    for _ in range(SIMULATED):
        if n - 1 < width:
            found.append(variance_entropy(generator.standard_normal((n, width))))
            continue
        factor_KK = np.tril(generator.standard_normal((width, width)), -1)
        factor_KK[np.diag_indices(width)] = np.sqrt(generator.chisquare(n - 1 - np.arange(width)))
        found.append(_spread(np.linalg.eigvalsh(factor_KK @ factor_KK.T).astype(np.float64)))
    return min(found)


def orthogonality(layer: Layer) -> float | None:
    """1 − mean |cosine| of a layer's different filters; 1: all orthogonal. None for a single filter."""
    filters_OD = layer.rows_NK.reshape(layer.outputs, -1)
    if layer.outputs < 2:
        return None
    length_O = np.linalg.norm(filters_OD, axis=1, keepdims=True)
    unit_OD = np.divide(filters_OD, length_O, out=np.zeros_like(filters_OD), where=length_O > 0)
    gram_OO = np.abs(unit_OD @ unit_OD.T)
    return float(1 - (gram_OO.sum() - np.trace(gram_OO)) / (layer.outputs * (layer.outputs - 1)))


def health(layer: Layer, seed: int = 0, rows: Rows = "raw") -> dict[str, Any]:
    """What a layer looks like on its raw weights.

    rows: of what the entropy is taken; "scaled" takes kernels that are not sparse, each divided by its largest weight, as
    arXiv 2204.02481 does (to compare with its figures; the threshold was fitted on raw ones).
    kernels; sparsity (share); entropy, threshold, entropy_ratio = entropy / threshold; the same `clean` of sparse kernels
    (None where none is left); orthogonality; class: `random` from the threshold on, `low diversity` under 0.5 (of
    0.954 at nine weights) without sparse kernels, `sparse` above a tenth of sparse kernels, `too few kernels` where they
    are no more than their weights, else `healthy`.
    """
    rows_NK, (n, width) = layer.rows_NK, layer.rows_NK.shape
    sparse_N = sparse(rows_NK)
    clean_NK, sparsity = rows_NK[~sparse_N], float(sparse_N.mean())
    if rows == "scaled" and len(clean_NK):
        rows_NK = clean_NK = scaled(clean_NK)
    entropy, threshold = variance_entropy(rows_NK), random_threshold(len(rows_NK), width, seed)
    entropy_clean = variance_entropy(clean_NK) if len(clean_NK) else None
    threshold_clean = random_threshold(len(clean_NK), width, seed) if len(clean_NK) > 1 else None
    name: Health = "healthy"
    if n <= width:
        name = "too few kernels"
    elif entropy >= threshold:
        name = "random"
    elif entropy_clean is not None and len(clean_NK) > width and entropy_clean < LOW_ENTROPY * math.log10(width):
        name = "low diversity"
    elif sparsity > SPARSE_SHARE:
        name = "sparse"
    return {
        "kernels": n,
        "sparsity": sparsity,
        "entropy": entropy,
        "threshold": threshold,
        "entropy_ratio": entropy / threshold if n > width else None,
        "entropy_clean": entropy_clean,
        "threshold_clean": threshold_clean,
        "orthogonality": orthogonality(layer),
        "class": name,
    }


def density(coefficient_N: Array, grid_G: Array) -> Array:
    """Gaussian kernel density on an even grid, bandwidth by Silverman's rule; a binned convolution, so any N."""
    from scipy.ndimage import gaussian_filter1d

    step = grid_G[1] - grid_G[0]
    quarter, three_quarters = np.quantile(coefficient_N, [0.25, 0.75])
    spreads = [s for s in (coefficient_N.std(), (three_quarters - quarter) / 1.34) if s > 0]
    bandwidth = 0.9 * min(spreads, default=step) * len(coefficient_N) ** -0.2
    edges = np.append(grid_G - step / 2, grid_G[-1] + step / 2)
    share_G = np.histogram(np.clip(coefficient_N, edges[0], edges[-1]), edges)[0] / (len(coefficient_N) * step)
    return gaussian_filter1d(share_G, max(bandwidth / step, 1e-3), mode="constant", truncate=6)


def size(kernel: Sequence[int]) -> str:
    """'3x3', '4': a kernel's shape as it is written in names."""
    return "x".join(map(str, kernel))
