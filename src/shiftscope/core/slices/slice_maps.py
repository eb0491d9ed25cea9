"""Slice maps: which slices of a table are kept, and each class's graph with its communities and distances.

Source: arXiv 2202.06523, section 3, and its published code (the order of the filters: items of several of the named classes
go first, then slices that are too small, then classes with too few slices).
"""

# S slices, G groups of slices (single ones, or communities)

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from shiftscope.core.slices import overlap
from shiftscope.core.slices.overlap import Distance
from shiftscope.core.slices.slices import SliceTable

Measured = tuple[NDArray[np.int64], NDArray[np.float64]]


@dataclass(frozen=True)
class Graphing:
    """Which slices are kept and how they are linked.

    min_items: a slice needs so many. min_slices: a class needs so many kept slices. threshold: a smaller overlap (shared
    items over the smaller slice's) is no link. unweighted: communities ignore how large an overlap is, as the published
    code does. merge: distances and tasks are of communities (unions of slices), as in the paper, not of single slices.
    distance: commute, or spectral5 (the paper's five eigenvectors).
    """

    min_items: int = 25
    min_slices: int = 6
    threshold: float = 0.2
    unweighted: bool = False
    merge: bool = False
    distance: Distance = "commute"

    def __post_init__(self) -> None:
        if self.min_items < 1 or self.min_slices < 1 or not 0 <= self.threshold <= 1:
            raise ValueError(
                f"min_items is {self.min_items}, min_slices {self.min_slices} and threshold {self.threshold}: "
                f"need at least 1, at least 1, and a share within [0, 1]"
            )


@dataclass(frozen=True)
class Map:
    """One class's graph: its slices, their links and labels, and the groups (slices or communities) with distances."""

    table: SliceTable
    weight_SS: NDArray[np.float64]
    community_S: NDArray[np.int64]
    component_S: NDArray[np.int64]
    groups: Sequence[Sequence[str]]
    overlap_GG: NDArray[np.float64]
    distance_GG: NDArray[np.float64]
    refusal: str

    @cached_property
    def labels(self) -> list[str]:
        """The groups' names."""
        return [" + ".join(group) for group in self.groups]

    def places(self, names: Sequence[str]) -> NDArray[np.int64]:
        """Which groups the named slices are in."""
        return np.array([n for n, group in enumerate(self.groups) if set(group) & set(names)], dtype=np.int64)


def kept(whole: SliceTable, classes: Sequence[str], graphing: Graphing) -> tuple[SliceTable, int]:
    """The slices large enough, of classes with enough of them; and how many items were of several of the named classes.

    Raises ValueError naming what there is, where nothing is left or a named class has too few slices.
    """
    by_class = whole.classes()
    for subject in classes:
        if subject not in by_class:
            raise ValueError(f"there is no class {subject!r}: there are {len(by_class)}, such as {list(by_class)[:5]}")
    table = whole.only([name for subject in classes for name in by_class[subject]]) if classes else whole
    unions = [whole.union(by_class[subject]) for subject in classes]
    found, times = np.unique(np.concatenate([np.empty(0, np.int32), *unions]), return_counts=True)
    shared = found[times > 1].astype(np.int32)
    table = table.without(shared) if len(shared) else table
    largest, sized = int(table.sizes_S.max()), table.at_least(graphing.min_items)
    enough = {subject: names for subject, names in sized.classes().items() if len(names) >= graphing.min_slices}
    for subject in classes if sized.members else ():
        if subject not in enough:
            raise ValueError(
                f"the class {subject!r} has {len(sized.classes().get(subject, []))} slices of {graphing.min_items} or more "
                f"items and needs {graphing.min_slices}: lower min_items or min_slices"
            )
    if not enough:
        raise ValueError(
            f"no class has {graphing.min_slices} slices of {graphing.min_items} or more items: the {len(table)} slices hold "
            f"at most {largest} items and {len(sized)} are large enough; lower min_items or min_slices, or add tags"
        )
    return sized.only([name for names in enough.values() for name in names]), len(shared)


def measured(table: SliceTable, graphing: Graphing) -> Measured:
    """What takes time of one class's map: the community of each slice, and the distances of the groups."""
    weight_SS = overlap.weights(overlap.coefficients(table), graphing.threshold)
    community_S = overlap.communities(weight_SS, weighted=not graphing.unweighted)
    unions, _ = _grouped(table, community_S, graphing)
    weight_GG = overlap.weights(overlap.coefficients(unions), graphing.threshold)
    return community_S, overlap.distances(weight_GG, graphing.distance)


def mapped(table: SliceTable, graphing: Graphing, known: Measured | None = None) -> Map:
    """Links, communities, components and distances of one class's slices. known: of `measured`, where that was done."""
    community_S, distance_GG = measured(table, graphing) if known is None else known
    weight_SS = overlap.weights(overlap.coefficients(table), graphing.threshold)
    unions, groups = _grouped(table, community_S, graphing)
    overlap_GG = overlap.coefficients(unions)
    weight_GG = overlap.weights(overlap_GG, graphing.threshold)
    undefined = graphing.distance == "spectral5" and bool(np.isnan(distance_GG).any())
    reason = (overlap.refusal(weight_GG, overlap.SPECTRAL_DIM) or "a component is too small") if undefined else ""
    return Map(
        table, weight_SS, community_S, overlap.components(weight_SS), groups, overlap_GG, distance_GG, reason
    )  # fmt: skip


def _grouped(
    table: SliceTable, community_S: NDArray[np.int64], graphing: Graphing
) -> tuple[SliceTable, list[list[str]]]:
    """The groups that distances are of, as slices, and which slices each is made of."""
    labels_S = community_S if graphing.merge else np.arange(len(table), dtype=np.int64)
    return overlap.merged(table, labels_S)
