"""Clusters of a model's unembedding rows (its vocabulary keys): k-means with the rows that mean nothing left out.

The next-token law is softmax(q·K): rows of K that are alike rise and fall together. Source: arXiv 2410.02284.
Deviation: k-means++ of scikit-learn instead of an unmaintained package; rows without a token and rows that coincide
(never trained) are dropped first, since otherwise they make one huge cluster; stability is measured with a second seed.
"""

# V vocabulary, M rows kept, d width, K clusters

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Metric = Literal["euclidean", "cosine"]
UNASSIGNED = -1
COINCIDE = 1e-3  # rows closer than this share of the typical spread count as one row repeated
EXACT_ROWS = 20_000  # up to this many rows full k-means with restarts, beyond it mini-batches


@dataclass(frozen=True)
class Clusters:
    """Which cluster each token's key belongs to, and how far that can be trusted.

    label_V: 0..n_clusters-1, UNASSIGNED for dropped rows. distance_V: to the centre of the own cluster, NaN for dropped
    rows. inertia: sum of squared distances to the centres; unexplained_share: the same as a share of the rows' total
    variance. seed_ari: adjusted Rand index against a second seed (1: the same partition, 0: no more alike than chance).
    nameless, coinciding: rows dropped, by reason.
    """

    label_V: NDArray[np.int64]
    distance_V: NDArray[np.float32]
    n_clusters: int
    metric: Metric
    inertia: float
    unexplained_share: float
    seed_ari: float
    nameless: int
    coinciding: int

    @property
    def sizes_K(self) -> NDArray[np.int64]:
        """How many tokens each cluster holds."""
        return np.bincount(self.label_V[self.label_V >= 0], minlength=self.n_clusters)

    def mates(self, token: int) -> NDArray[np.int64]:
        """The other tokens of a token's cluster; empty for a dropped row."""
        label = self.label_V[token]
        found = np.flatnonzero(self.label_V == label) if label >= 0 else np.empty(0, np.int64)
        return found[found != token]


def default_count(rows: int) -> int:
    """About a hundredth of the rows, at least 8, rounded to a power of two (Llama-3's 128k tokens: 1024)."""
    return 1 << round(float(np.log2(max(8, rows // 100))))


def fit(
    weight_VD: Tensor, named: Collection[int], *, seed: int, n_clusters: int | None = None, metric: Metric = "euclidean"
) -> Clusters:
    """K-means of unembedding rows.

    weight_VD: the rows, any float type; never altered. named: ids that the tokenizer gives a token; other rows are
    padding. n_clusters: None takes `default_count`. metric: `cosine` normalises the rows first.
    Raises ValueError for rows that are not finite and for more clusters than rows.
    """
    from sklearn.metrics import adjusted_rand_score

    if metric not in ("euclidean", "cosine"):
        raise ValueError(f"metric is {metric!r}: it must be 'euclidean' or 'cosine'")
    rows_VD = weight_VD.detach().float().cpu()
    if not bool(rows_VD.isfinite().all()):
        raise ValueError("the unembedding holds values that are not finite: its rows cannot be clustered")
    has_name_V = np.zeros(len(rows_VD), bool)
    has_name_V[[token for token in named if token < len(rows_VD)]] = True
    kept_V = has_name_V.copy()
    kept_V[has_name_V] = ~coinciding(rows_VD[torch.from_numpy(has_name_V)])
    rows_MD = rows_VD[torch.from_numpy(kept_V)]
    if metric == "cosine":
        rows_MD = torch.nn.functional.normalize(rows_MD, dim=-1)
    count = default_count(len(rows_MD)) if n_clusters is None else n_clusters
    if not 2 <= count <= len(rows_MD):
        raise ValueError(f"{count} clusters were asked for; {len(rows_MD)} usable rows allow 2 to {len(rows_MD)}")
    label_M, centre_KD, inertia = _k_means(rows_MD.numpy(), count, seed)
    again_M, _, _ = _k_means(rows_MD.numpy(), count, seed + 1)
    label_V = np.full(len(rows_VD), UNASSIGNED, np.int64)
    label_V[kept_V] = label_M
    distance_V = np.full(len(rows_VD), np.nan, np.float32)
    distance_V[kept_V] = (rows_MD - torch.from_numpy(centre_KD)[label_M]).norm(dim=-1).numpy()
    total = float((rows_MD - rows_MD.mean(0)).double().square().sum())
    return Clusters(
        label_V,
        distance_V,
        count,
        metric,
        inertia,
        inertia / total,
        float(adjusted_rand_score(label_M, again_M)),
        nameless=int((~has_name_V).sum()),
        coinciding=int((has_name_V & ~kept_V).sum()),
    )


def coinciding(rows_VD: Tensor, tolerance: float = COINCIDE) -> NDArray[np.bool_]:
    """Which rows lie within `tolerance` of the typical spread from another row: keys that training never told apart.

    Rows are sorted along one random direction and compared with their neighbours there: exact for equal rows, and a
    clump of near-equal rows is dense enough to be adjacent; one pass over the weights whatever the vocabulary.
    """
    if len(rows_VD) < 2:
        return np.zeros(len(rows_VD), bool)
    generator = torch.Generator().manual_seed(0)
    direction_D = torch.randn(rows_VD.shape[1], generator=generator, dtype=torch.float64)
    place_V = torch.cat([chunk.double() @ direction_D for chunk in rows_VD.split(8192)])
    order_V = place_V.argsort()
    spread = float((rows_VD - rows_VD.mean(0)).norm(dim=-1).median())
    gap_V = torch.cat([
        (rows_VD[right] - rows_VD[left]).norm(dim=-1)
        for left, right in zip(order_V[:-1].split(8192), order_V[1:].split(8192), strict=True)
    ])  # fmt: skip
    close_V = (gap_V <= tolerance * spread).numpy()
    same_V = np.zeros(len(rows_VD), bool)
    same_V[order_V.numpy()] = np.append(close_V, False) | np.insert(close_V, 0, False)
    return same_V


def dot_product_residual(logits_NV: Tensor, hidden_ND: Tensor, weight_VD: Tensor) -> float:
    """How much of the logits' spread over the vocabulary is not the plain dot product of state and key, as a share.

    logits_NV: the model's own; hidden_ND: final states; weight_VD: keys. Both are centred over the vocabulary, which no
    law notices. 0 for a head without bias, soft-cap and scale (up to rounding); sqrt of a ratio of mean squares.
    """
    logits, dots = logits_NV.double(), hidden_ND.double() @ weight_VD.double().T
    logits, dots = logits - logits.mean(-1, keepdim=True), dots - dots.mean(-1, keepdim=True)
    return float((logits - dots).square().mean().sqrt() / logits.square().mean().sqrt())


def _k_means(
    rows_MD: NDArray[np.float32], count: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.float32], float]:
    """Labels, centres and inertia: the best of several starts, or mini-batches where one full pass is already long."""
    from sklearn.cluster import KMeans, MiniBatchKMeans

    if len(rows_MD) <= EXACT_ROWS:
        found = KMeans(count, n_init=10 if len(rows_MD) * count < 1_000_000 else 2, random_state=seed).fit(rows_MD)
    else:
        found = MiniBatchKMeans(count, batch_size=4096, n_init=1, random_state=seed).fit(rows_MD)
    return found.labels_.astype(np.int64), found.cluster_centers_.astype(np.float32), float(found.inertia_)
