"""Overlap graph of slices: which share items, which form communities, and how far any two lie from each other.

Source: arXiv 2202.06523, section 3 (overlap coefficient, communities, spectral distance).
Deviation: the distance is by default `commute`, the square root of the resistance distance, that is the Laplacian
eigenmap over all eigenvectors, each divided by the root of its eigenvalue. The paper's `spectral5` (five eigenvectors, not
divided) is there too; it is not monotone on a chain of scenes and saturates.
Deviation: slices in different components are infinitely far apart; the published code prints a number that depends on
how the eigenvectors of a repeated zero come out. Communities weigh their edges unless told otherwise.
"""

# S slices, D coordinates

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

from shiftscope.core.slices.slices import SliceTable

Distance = Literal["commute", "spectral5"]
SPECTRAL_DIM = 5
TIED = 1e-9  # eigenvalues closer than this share of the largest are one eigenvalue
LARGEST = 20_000  # slices of one graph: its matrix is dense


def coefficients(table: SliceTable) -> NDArray[np.float64]:
    """Overlap coefficient |A ∩ B| / min(|A|, |B|) of every two slices, [S, S]; 1 on the diagonal.

    It is 1 for nested slices of very different sizes. Raises ValueError for an empty slice, or more than 20,000 slices.
    """
    sizes_S, names = table.sizes_S, table.names
    if (sizes_S == 0).any():
        raise ValueError(f"the slice {names[int(sizes_S.argmin())]!r} is empty: an overlap with nothing is not defined")
    if len(table) > LARGEST:
        raise ValueError(f"{len(table)} slices in one graph: at most {LARGEST}; raise the minimum size of a slice")
    incidence = table.incidence()
    shared_SS = (incidence @ incidence.T).toarray()
    return shared_SS / np.minimum.outer(sizes_S, sizes_S)


def weights(overlap_SS: NDArray[np.float64], threshold: float = 0.2) -> NDArray[np.float64]:
    """The graph's weights: overlaps below the threshold (0.2 in the published code) are no edge, and none to itself."""
    weight_SS = np.where(overlap_SS < threshold, 0.0, overlap_SS)
    np.fill_diagonal(weight_SS, 0.0)
    return weight_SS


def components(weight_SS: NDArray[np.float64]) -> NDArray[np.int64]:
    """The connected component of each slice, 0, 1, … by first slice."""
    _, labels_S = connected_components(weight_SS, directed=False)
    return _by_first(labels_S.astype(np.int64))


def communities(weight_SS: NDArray[np.float64], *, weighted: bool = True) -> NDArray[np.int64]:
    """The community of each slice (greedy modularity), 0, 1, … by first slice; slices without an edge stand alone.

    weighted: edges count by their overlap; the published code leaves weights out.
    """
    import networkx

    labels_S = np.full(len(weight_SS), -1, dtype=np.int64)
    if weight_SS.any():
        graph = networkx.from_numpy_array(weight_SS)
        found = networkx.community.greedy_modularity_communities(graph, weight="weight" if weighted else None)
        for label, nodes in enumerate(found):
            labels_S[list(nodes)] = label
    else:
        labels_S = np.arange(len(weight_SS), dtype=np.int64)
    return _by_first(labels_S)


def merged(table: SliceTable, labels_S: NDArray[np.int64]) -> tuple[SliceTable, list[list[str]]]:
    """One slice per label, the union of its slices, named by them; and which slices each is made of."""
    names = np.array(table.names, dtype=object)
    groups = [list(names[labels_S == label]) for label in np.unique(labels_S)]
    return SliceTable(table.ids, {" + ".join(group): table.union(group) for group in groups}), groups


def distances(weight_SS: NDArray[np.float64], kind: Distance = "commute") -> NDArray[np.float64]:
    """Distance of every two slices [S, S]: 0 on the diagonal, infinite between components.

    commute: √ of the resistance distance, a metric. spectral5: Euclidean in five Laplacian eigenvectors, scaled by the
    largest coordinate, comparable inside one component only; NaN in a component where it is not defined (see `spectral`).
    """
    distance_SS, labels_S = np.full(weight_SS.shape, np.inf), components(weight_SS)
    for label in np.unique(labels_S):
        inside = np.flatnonzero(labels_S == label)
        block_CC = weight_SS[np.ix_(inside, inside)]
        if kind == "commute":
            places_CD = _commute_places(block_CC)
        else:
            refused = refusal(block_CC, SPECTRAL_DIM)
            places_CD = np.full((len(inside), 1), np.nan) if refused else spectral(block_CC, SPECTRAL_DIM)
        distance_SS[np.ix_(inside, inside)] = _euclidean(places_CD)
    np.fill_diagonal(distance_SS, 0.0)
    return distance_SS


def spectral(weight_SS: NDArray[np.float64], dim: int = SPECTRAL_DIM) -> NDArray[np.float64]:
    """Laplacian eigenmap [S, dim]: eigenvectors 2..dim+1, centred, divided by the largest absolute coordinate.

    The same as networkx's spectral_layout up to signs; the largest coordinate of each axis is made positive.
    Raises ValueError where it is not defined: a disconnected graph, fewer than 2 dim + 2 slices (with dim ≥ S - 1 all
    distances are equal), or a repeated eigenvalue, whose eigenvectors are arbitrary.
    """
    if sentence := refusal(weight_SS, dim):
        raise ValueError(sentence)
    _, vectors_SS = _eigen(weight_SS)
    places_SD = vectors_SS[:, 1 : dim + 1]
    places_SD = places_SD - places_SD.mean(0)
    largest_D = places_SD[np.abs(places_SD).argmax(0), np.arange(dim)]
    return places_SD * np.sign(largest_D) / np.abs(places_SD).max()


def refusal(weight_SS: NDArray[np.float64], dim: int) -> str:
    """Why the graph has no spectral layout in `dim` dimensions; empty where it has one."""
    n, parts = len(weight_SS), int(components(weight_SS).max(initial=0)) + 1
    if parts > 1:
        return f"the graph has {parts} components: a spectral layout places one connected graph"
    if n < 2 * dim + 2:
        return f"the graph has {n} slices: a spectral layout in {dim} dimensions needs at least {2 * dim + 2}"
    values_S, _ = _eigen(weight_SS)
    gaps = np.diff(values_S[: dim + 2])
    if (gaps < TIED * values_S[-1]).any():
        place = int(gaps.argmin()) + 1
        return (
            f"eigenvalues {place} and {place + 1} of the graph are equal: its spectral layout is arbitrary, use commute"
        )
    return ""


def between(distance_SS: NDArray[np.float64], first: NDArray[np.int64], second: NDArray[np.int64]) -> float:
    """Mean distance from any slice of the first group to any of the second; infinite where one pair is unconnected."""
    return float(distance_SS[np.ix_(first, second)].mean())


def layout(weight_SS: NDArray[np.float64], seed: int = 1234) -> NDArray[np.float64]:
    """A place in the plane [S, 2] for every slice, to be looked at: springs pull slices together that share items.

    networkx's spring layout with the seed of the published code; distances in it mean nothing exact.
    """
    import networkx

    places = networkx.spring_layout(networkx.from_numpy_array(weight_SS), weight="weight", seed=seed)
    return np.array([places[number] for number in range(len(weight_SS))])


def _commute_places(weight_SS: NDArray[np.float64]) -> NDArray[np.float64]:
    values_S, vectors_SS = _eigen(weight_SS)
    return vectors_SS[:, 1:] / np.sqrt(values_S[1:])


def _eigen(weight_SS: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    values_S, vectors_SS = np.linalg.eigh(np.diag(weight_SS.sum(1)) - weight_SS)
    return values_S, vectors_SS


def _euclidean(places_SD: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.spatial.distance import pdist, squareform

    return squareform(pdist(places_SD)) if len(places_SD) > 1 else np.zeros((1, 1))


def _by_first(labels_S: NDArray[np.int64]) -> NDArray[np.int64]:
    _, first, inverse = np.unique(labels_S, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse].astype(np.int64)
