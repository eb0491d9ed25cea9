"""Slice table: named subsets of a collection's items.

A slice is named `class(context)`, such as `cat(sofa)`; a name of another form is a context of the class `all`. An item may
lie in several slices and counts in each. Source of the names: arXiv 2202.06523.
Deviation: the context is all that stands between the first parenthesis and the last, so that a tag may hold parentheses
itself (the published code takes what follows the last one).
"""

# S slices, N items

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy import sparse

ALL = "all"  # the class of slices whose name holds none
NAME = re.compile(r"([^()]+)\((.+)\)", re.DOTALL)


@dataclass(frozen=True)
class SliceTable:
    """Which items lie in which slice.

    ids: every item's id, without repeats; items are numbered in this order. members: name → sorted item numbers, int32.
    """

    ids: tuple[str, ...]
    members: Mapping[str, NDArray[np.int32]]

    @classmethod
    def of(cls, slices: Mapping[str, Iterable[Any]]) -> SliceTable:
        """A table from name → ids; items are numbered by their sorted ids. Raises ValueError where there is no slice."""
        if not slices:
            raise ValueError("a slice table needs at least one slice: none was given")
        sets = {str(name): {str(one) for one in ids} for name, ids in slices.items()}
        ids = tuple(sorted(set().union(*sets.values())))
        number_of = {one: number for number, one in enumerate(ids)}
        members = {
            name: np.sort(np.fromiter((number_of[one] for one in found), np.int32, len(found)))
            for name, found in sorted(sets.items())
        }
        return cls(ids, members)

    def __len__(self) -> int:
        return len(self.members)

    @property
    def names(self) -> list[str]:
        """The slices' names, in the table's order."""
        return list(self.members)

    @property
    def sizes_S(self) -> NDArray[np.int64]:
        """How many items each slice holds."""
        return np.array([len(found) for found in self.members.values()], dtype=np.int64)

    @cached_property
    def number_of(self) -> dict[str, int]:
        """Item number by id."""
        return {one: number for number, one in enumerate(self.ids)}

    def ids_of(self, name: str) -> list[str]:
        """The ids of a slice. Raises ValueError for a name that the table has not."""
        return [self.ids[number] for number in self.union([name])]

    def union(self, names: Iterable[str]) -> NDArray[np.int32]:
        """Sorted numbers of the items in any of the named slices. Raises ValueError for a name that the table has not."""
        chosen = list(names)
        self.check(chosen)
        if len(chosen) == 1:
            return self.members[chosen[0]]
        inside_N = np.zeros(len(self.ids), dtype=bool)
        for name in chosen:
            inside_N[self.members[name]] = True
        return np.flatnonzero(inside_N).astype(np.int32)

    def check(self, names: Iterable[str]) -> None:
        """Raises ValueError for the first name that the table has not, with names that are like it."""
        for name in names:
            if name not in self.members:
                from difflib import get_close_matches

                alike = get_close_matches(name, self.names, 3, 0.5) or self.names[:3]
                raise ValueError(f"there is no slice {name!r} among the {len(self)} kept ones: did you mean {alike}?")

    def incidence(self) -> sparse.csr_array:
        """The [S, N] matrix that is 1 where the item lies in the slice, int32."""
        columns = np.concatenate([np.empty(0, np.int32), *self.members.values()])
        rows = np.concatenate([[0], np.cumsum(self.sizes_S)])
        return sparse.csr_array((np.ones(len(columns), np.int32), columns, rows), shape=(len(self), len(self.ids)))

    def only(self, names: Iterable[str]) -> SliceTable:
        """The named slices alone, in the given order; the items stay. Raises ValueError for an unknown name."""
        chosen = list(names)
        self.check(chosen)
        return SliceTable(self.ids, {name: self.members[name] for name in chosen})

    def without(self, items: NDArray[np.int32]) -> SliceTable:
        """The same slices without these items; a slice may become empty."""
        return SliceTable(self.ids, {name: np.setdiff1d(found, items) for name, found in self.members.items()})

    def at_least(self, size: int) -> SliceTable:
        """The slices that hold `size` items or more."""
        return SliceTable(self.ids, {name: found for name, found in self.members.items() if len(found) >= size})

    def classes(self) -> dict[str, list[str]]:
        """Class → its slices' names, both sorted."""
        found: dict[str, list[str]] = {}
        for name in sorted(self.members):
            found.setdefault(parsed(name)[0], []).append(name)
        return dict(sorted(found.items()))

    def arrow(self) -> pa.Table:
        """One row per (slice, id): what another method reads as a table of slices."""
        slices = pa.array(self.names, pa.string()).take(pa.array(np.repeat(np.arange(len(self)), self.sizes_S)))
        items = np.concatenate([np.empty(0, np.int32), *self.members.values()])
        ids = pa.array(self.ids, pa.string()).take(pa.array(items))
        return pa.table({"slice": slices, "id": ids})

    def save(self, path: str | Path) -> None:
        """Write the rows (slice, id) as parquet; items in no slice are not in the file."""
        pq.write_table(self.arrow(), path, compression="zstd")


def parsed(name: str) -> tuple[str, str]:
    """Class and context of a slice's name; the class `all` where the name is not of the form class(context)."""
    match = NAME.fullmatch(name)
    return (match[1], match[2]) if match else (ALL, name)


def named(subject: str, context: str) -> str:
    """The name class(context). Raises ValueError for a class whose own name holds a parenthesis, or is empty."""
    if not subject or "(" in subject or ")" in subject:
        raise ValueError(f"the class {subject!r} cannot be in a slice's name: it must be text without parentheses")
    return f"{subject}({context})"


def built(ids: Sequence[str], pairs: Iterable[Iterable[tuple[str, str]]]) -> SliceTable:
    """A table from every item's (class, context) pairs, items in the given order.

    Raises ValueError naming an id that comes twice, and where no item has a pair.
    """
    first_of: dict[str, int] = {}
    for number, one in enumerate(ids):
        if first_of.setdefault(one, number) != number:
            raise ValueError(
                f"the id {one!r} comes twice, as items {first_of[one] + 1} and {number + 1}: ids must be unique"
            )
    found: dict[tuple[str, str], array[int]] = {}
    for number, own in enumerate(pairs):
        for pair in set(own):
            found.setdefault(pair, array("i")).append(number)
    if not found:
        raise ValueError(f"none of the {len(ids)} items has a tag: there is no slice to make")
    named_ones = {named(*pair): np.frombuffer(numbers, np.int32) for pair, numbers in found.items()}
    return SliceTable(tuple(ids), dict(sorted(named_ones.items())))


def from_rows(rows: pa.Table) -> SliceTable:
    """The table whose `arrow()` rows (slice, id) these are."""
    slices: dict[str, set[str]] = {}
    for name, one in zip(rows["slice"].to_pylist(), rows["id"].to_pylist(), strict=True):
        slices.setdefault(str(name), set()).add(str(one))
    return SliceTable.of(slices)
