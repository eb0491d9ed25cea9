"""A sorted collection: every text with its attribute on every dimension; its slices, its rows and what it is made of."""

# N items

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from shiftscope.core import statistics
from shiftscope.core.slices import slices
from shiftscope.core.slices.assignment import RESERVED, UNASSIGNED, Sorted, Words
from shiftscope.core.slices.labelled import Item
from shiftscope.core.slices.slices import SliceTable

EXAMPLE_CHARACTERS = 200


@dataclass(frozen=True)
class SortedTexts:
    """items and, for each, dimension -> where it went. words: the criteria with their words. assigned_by: by what; voted:
    whether by votes, so that an agreement is known.
    """

    items: Sequence[Item]
    rows: Sequence[Mapping[str, Sorted]]
    words: Words
    assigned_by: str
    voted: bool = False

    @property
    def classes(self) -> list[str]:
        """The class of every item, 'all' where it has none."""
        return [item.label or slices.ALL for item in self.items]

    @property
    def columns(self) -> dict[str, list[str]]:
        """Dimension -> the attribute of every item."""
        return {dimension: [row[dimension].attribute for row in self.rows] for dimension in self.words}

    @property
    def failed_N(self) -> NDArray[np.float64]:
        """1 where something went wrong on the item, 0 where not, NaN where it was not measured."""
        return np.array([np.nan if item.failed is None else float(item.failed) for item in self.items])

    def slice_table(self, *, pairs_of: int | None = None, by_class: bool = True) -> SliceTable:
        """The slices class(dimension: attribute), and class(one & other) of two dimensions where `pairs_of` items or more
        lie in both (None: no pairs). Items without a fitting attribute are in no slice of that dimension.
        """
        contexts = [
            [f"{name}: {outcome.attribute}" for name, outcome in row.items() if outcome.attribute not in RESERVED]
            for row in self.rows
        ]
        classes = self.classes if by_class else [slices.ALL] * len(contexts)
        both = [
            [(class_, " & ".join(pair)) for pair in itertools.combinations(own, 2)] if pairs_of is not None else []
            for class_, own in zip(classes, contexts, strict=True)
        ]
        counts = Counter(pair for own in both for pair in own)
        tags = [
            [(class_, context) for context in own] + [pair for pair in pairs if counts[pair] >= (pairs_of or 0)]
            for class_, own, pairs in zip(classes, contexts, both, strict=True)
        ]
        return slices.built([item.id for item in self.items], tags)

    def contexts_and_classes(self) -> tuple[SliceTable, dict[str, NDArray[np.int32]]]:
        """The attributes as slices over all classes, and the items of each class."""
        flat, classes = self.slice_table(by_class=False), self.classes
        named = {slices.parsed(name)[1]: members for name, members in flat.members.items()}
        own = {
            one: np.array([n for n, each in enumerate(classes) if each == one], np.int32)
            for one in sorted(set(classes))
        }
        return SliceTable(flat.ids, named), own

    def arrow(self, weights_N: NDArray[np.float64]) -> pa.Table:
        """One row per item: id, class, failed, weight, assigned_by, and attribute, agreement and problem by dimension."""
        columns: dict[str, Any] = {
            "id": [item.id for item in self.items],
            "class": pa.array([item.label for item in self.items], pa.string()),
            "failed": pa.array([item.failed for item in self.items], pa.bool_()),
            "weight": pa.array(weights_N, pa.float32()),
            "assigned_by": [self.assigned_by] * len(self.items),
        }
        for name, attributes in self.columns.items():
            agreement = [row[name].agreement if self.voted else None for row in self.rows]
            columns[f"attribute: {name}"] = attributes
            columns[f"agreement: {name}"] = pa.array(agreement, pa.float32())
            columns[f"problem: {name}"] = pa.array([row[name].problem for row in self.rows], pa.string())
        return pa.table(columns)

    def composition(self) -> pa.Table:
        """One row per attribute, `none` and `unassigned` where they occur: texts, share with interval, and an example."""
        n, rows = len(self.items), []
        for dimension, attributes in self.columns.items():
            counts = Counter(attributes)
            for name in (*self.words[dimension], *RESERVED):
                if name in RESERVED and not counts[name]:
                    continue
                low, high = statistics.wilson(counts[name], n)
                first = attributes.index(name) if counts[name] else None
                example = "" if first is None else " ".join(self.items[first].text.split())[:EXAMPLE_CHARACTERS]
                rows.append(
                    {
                        "dimension": dimension, "attribute": name, "texts": counts[name], "share": counts[name] / n,
                        "low": low, "high": high, "slice": f"{dimension}: {name}", "example": example,
                    }
                )  # fmt: skip
        return pa.Table.from_pylist(rows)

    def problems(self) -> list[tuple[str, int]]:
        """Why sortings are unassigned, with how many, the most frequent first."""
        outcomes = [one for row in self.rows for one in row.values() if one.attribute == UNASSIGNED]
        return Counter(one.problem or "no valid vote" for one in outcomes).most_common()
