"""Statistical depth of embeddings: how central each one is in a corpus, and how two corpora lie to each other.

D(x, F) = sup(distance) − mean distance from x to F, over directions. For the cosine distance the mean is that of a linear
function, so the depth is a projection on the summed directions of F: two passes over the data, no pairs. Chord and arc
need the pairs, which are made block by block.

Source: arXiv 2310.15010 (depth, Q); Liu and Singh 1993 (JASA 88:252) for the quality index that Q is.
Deviation: the closed form, and the arc distance, are ours; a text is left out of its own corpus exactly (its distance to
itself is 0, not a rounding error); rows without a direction (all zeros) get NaN and count for nobody.
"""

# N rows whose depth is asked, M rows of the reference, D dimensions, P labellings

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Rows = NDArray[Any]  # any float type, also memory-mapped: it is read block by block
Distance = Literal["cosine", "chord", "arc"]
LARGEST = {"cosine": 2.0, "chord": 2.0, "arc": float(np.pi)}
BLOCK = 1024  # rows of one block: 3 MB at 384 dimensions in float64
PAIR_BLOCK = 512


@dataclass(frozen=True)
class Reference:
    """All that the cosine depth needs of a corpus: the sum of its directions, and how many rows have one."""

    sum_D: Array
    count: int


def directions(rows_ND: Rows) -> Array:
    """The rows scaled to length one, in float64; rows of zeros stay zero."""
    rows = np.asarray(rows_ND, dtype=np.float64)
    length_N = np.sqrt(np.einsum("nd,nd->n", rows, rows))
    return rows / np.where(length_N > 0, length_N, 1)[:, None]


def reference(rows_MD: Rows) -> Reference:
    """One pass over a corpus for the cosine depth."""
    total, count = np.zeros(rows_MD.shape[1]), 0
    for _, rows, length_B in _blocks(rows_MD):
        seen = length_B > 0
        total += np.divide(1.0, length_B, out=np.zeros_like(length_B), where=seen) @ rows
        count += int(seen.sum())
    return Reference(total, count)


def cosine_depth(rows_ND: Rows, *references: Reference, own: int | None = None) -> Array:
    """Depth [N, references] of every row in each reference, by the closed form.

    own: the place among the references of the rows' own corpus, from which each row is left out; NaN there when it is
    alone, and everywhere for a row without a direction.
    """
    sums_DR = np.stack([each.sum_D for each in references], 1)
    depth_NR = np.empty((len(rows_ND), len(references)))
    left_out = np.array([place == own for place in range(len(references))], dtype=np.float64)
    counts = np.array([each.count for each in references], dtype=np.float64) - left_out
    counts = np.where(counts > 0, counts, np.nan)
    for inside, rows, length_B in _blocks(rows_ND):
        along = (rows @ sums_DR) / np.where(length_B > 0, length_B, np.nan)[:, None]
        depth_NR[inside] = 1 + (along - left_out) / counts
    return depth_NR


def depth(rows_ND: Rows, reference_MD: Rows, distance: Distance = "cosine", *, own: bool = False) -> Array:
    """Depth [N] of every row in a reference corpus.

    own: the rows are the reference itself, and each is left out of it. Values lie in [0, 2] for cosine and chord, in
    [0, π] for arc; NaN for rows without a direction, and where leaving one out leaves none.
    Raises ValueError for widths that differ, or for own rows that are not as many as the reference's.
    """
    if rows_ND.shape[1] != reference_MD.shape[1] or (own and len(rows_ND) != len(reference_MD)):
        raise ValueError(
            f"rows {rows_ND.shape} in a reference {reference_MD.shape}: they must agree in width and owner"
        )
    if distance == "cosine":
        return cosine_depth(rows_ND, reference(reference_MD), own=0 if own else None)[:, 0]
    unit_MD = directions(reference_MD)
    unit_MD = unit_MD[(unit_MD != 0).any(1)] if not own else unit_MD
    present_M = (unit_MD != 0).any(1)
    count = int(present_M.sum()) - own
    found_N = np.full(len(rows_ND), np.nan)
    for start in range(0, len(rows_ND) if count > 0 else 0, PAIR_BLOCK):
        unit_BD = directions(rows_ND[start : start + PAIR_BLOCK])
        apart_BM = distances(unit_BD, unit_MD, distance)
        if own:
            apart_BM[np.arange(len(unit_BD)), start + np.arange(len(unit_BD))] = 0
        mean_B = apart_BM @ present_M.astype(np.float64) / count
        found_N[start : start + len(unit_BD)] = np.where((unit_BD != 0).any(1), LARGEST[distance] - mean_B, np.nan)
    return found_N


def distances(unit_ND: Array, unit_MD: Array, distance: Distance) -> Array:
    """Distances [N, M] of unit rows: 1 − cos, the chord sqrt(2 (1 − cos)), or the arc arccos(cos)."""
    cosine_NM = unit_ND @ unit_MD.T
    np.clip(cosine_NM, -1, 1, out=cosine_NM)
    if distance == "arc":
        return np.arccos(cosine_NM, out=cosine_NM)
    np.subtract(1, cosine_NM, out=cosine_NM)
    return cosine_NM if distance == "cosine" else np.sqrt(2 * cosine_NM, out=cosine_NM)


def q_of_labels(rows_ND: Rows, distance: Distance = "cosine") -> Callable[[Array], Array]:
    """A statistic for `permutation.permute`: [Q(F, G), Q(G, F)] of labels [N, P], 0 for F and 1 for G.

    Depths are worked out again for every labelling, since both corpora's depths share their reference. Rows must have a
    direction. Ties across the corpora are not averaged: a text and its copy differ by being left out or not.
    """
    unit_ND = directions(rows_ND)
    apart_NN = None if distance == "cosine" else distances(unit_ND, unit_ND, distance)
    if apart_NN is None:
        to_all_N = len(unit_ND) - unit_ND @ unit_ND.sum(0)
    else:
        np.fill_diagonal(apart_NN, 0)
        to_all_N = apart_NN.sum(1)

    def statistic(second_NP: Array) -> Array:
        n_P = second_NP.sum(0)
        to_second_NP = n_P - unit_ND @ (unit_ND.T @ second_NP) if apart_NN is None else apart_NN @ second_NP
        m_P = len(second_NP) - n_P
        far_first_NP = (to_all_N[:, None] - to_second_NP) / (m_P - (1 - second_NP))
        far_second_NP = to_second_NP / (n_P - second_NP)
        return np.stack([_share_below(-far_first_NP, second_NP), _share_below(-far_second_NP, 1 - second_NP)])

    return statistic


def _share_below(depth_NP: Array, second_NP: Array) -> Array:
    """P(first <= second) by column, from ordinal ranks."""
    order_NP = np.argsort(depth_NP, axis=0)
    sorted_NP = np.take_along_axis(second_NP, order_NP, axis=0)
    n_P, size = second_NP.sum(0), len(second_NP)
    ranks_P = np.arange(1, size + 1, dtype=np.float64) @ sorted_NP
    share_P: Array = (ranks_P - n_P * (n_P + 1) / 2) / (n_P * (size - n_P))
    return share_P


def _blocks(rows_ND: Rows) -> Iterator[tuple[slice, Array, Array]]:
    """Blocks of rows in float64 with their lengths."""
    for start in range(0, len(rows_ND), BLOCK):
        rows = np.asarray(rows_ND[start : start + BLOCK], dtype=np.float64)
        yield slice(start, start + len(rows)), rows, np.sqrt(np.einsum("nd,nd->n", rows, rows))
