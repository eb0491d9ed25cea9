"""Which slices of a collection fail more often, or make up more of a class, than chance allows; and weights that even them out.

Every slice of the minimum size is tested against all items outside it, and the false-discovery rate is controlled over all
tests. Source: arXiv 2405.02363, section 4 (counts, slice discovery). Deviation: the published ranking by bare error rate has no
minimum size and no test; the most extreme of many small slices then looks terrible by chance.
"""

# N items, S slices

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from shiftscope.core import statistics
from shiftscope.core.slices.slices import SliceTable

Mask = NDArray[np.bool_]
NUMBERS = (
    "share", "share_low", "share_high", "rate", "rate_low", "rate_high", "rate_elsewhere", "p", "q",
)  # fmt: skip
SCHEMA = pa.schema(
    [
        ("slice", pa.string()),
        *((name, pa.int32()) for name in ("items", "measured", "events")),
        *((name, pa.float64()) for name in NUMBERS),
    ]
)


@dataclass(frozen=True)
class Weights:
    """A weight per item, mean 1. effective_share: (Σw)²/(N Σw²); gap: the largest distance left between a group's share of
    the weight and its target (0: even)."""

    weights_N: NDArray[np.float64]
    effective_share: float
    gap: float


def compared(table: SliceTable, events_N: NDArray[np.float64] | None, *, min_size: int) -> pa.Table:
    """One row per slice of min_size items or more, the least probable first: share of the items, and rate of the events.

    events_N: 1 or 0 for each item of the table, NaN where it was not measured; None leaves the rates empty. p: two-sided
    Fisher test of the slice against all other measured items; q: after Benjamini and Hochberg. Both are empty for slices
    with fewer measured items than min_size, and for one that holds all of them.
    """
    from scipy.stats import false_discovery_control

    total = len(table.ids)
    rows: list[dict[str, Any]] = []
    for name, items in table.members.items():
        if len(items) >= min_size:
            low, high = statistics.wilson(len(items), total)
            row = {
                "slice": name,
                "items": len(items),
                "share": len(items) / total,
                "share_low": low,
                "share_high": high,
            }
            rows.append(row | ({} if events_N is None else _rates(items, events_N, min_size)))
    tested = [row for row in rows if row.get("p") is not None]
    if tested:
        for row, q in zip(tested, false_discovery_control([row["p"] for row in tested]).tolist(), strict=True):
            row["q"] = q
    rows.sort(key=lambda row: (row.get("p", 2.0) if row.get("p") is not None else 2.0, -row["items"], row["slice"]))
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def _rates(items: NDArray[np.int32], events_N: NDArray[np.float64], min_size: int) -> dict[str, float | int | None]:
    from scipy.stats import fisher_exact

    known_N, inside_N = ~np.isnan(events_N), np.zeros(len(events_N), bool)
    inside_N[items] = True
    measured, elsewhere = int((known_N & inside_N).sum()), int((known_N & ~inside_N).sum())
    if measured == 0:
        return {"measured": 0}
    events, others = int(events_N[known_N & inside_N].sum()), int(events_N[known_N & ~inside_N].sum())
    low, high = statistics.wilson(events, measured)
    found: dict[str, float | int | None] = {
        "measured": measured, "events": events, "rate": events / measured, "rate_low": low, "rate_high": high,
        "rate_elsewhere": others / elsewhere if elsewhere else None,
    }  # fmt: skip
    if measured >= min_size and elsewhere:
        found["p"] = float(fisher_exact([[events, measured - events], [others, elsewhere - others]])[1])
    return found


def leaning(table: SliceTable, classes: Mapping[str, NDArray[np.int32]], *, min_size: int) -> pa.Table:
    """Which slices a class has more or fewer of than the other classes: one row per class and slice, as `compared` gives.

    table: slices over all classes. The rate of a row is the share of the class's items that lie in the slice. q counts all
    rows together.
    """
    from scipy.stats import false_discovery_control

    total, rows = len(table.ids), []
    for class_, members in classes.items():
        if len(members) < min_size or len(members) == total:
            continue
        for name, items in table.members.items():
            if min_size <= len(items) < total:
                in_slice_N = np.zeros(total)
                in_slice_N[items] = 1
                low, high = statistics.wilson(len(members), total)
                share = {"share": len(members) / total, "share_low": low, "share_high": high}
                found = _rates(members, in_slice_N, min_size)
                rows.append({"slice": f"{class_}: {name}", "items": len(members)} | share | found)
    if rows:
        for row, q in zip(rows, false_discovery_control([row["p"] for row in rows]).tolist(), strict=True):
            row["q"] = q
    return pa.Table.from_pylist(sorted(rows, key=lambda row: (row["p"], row["slice"])), schema=SCHEMA)


def even_weights(
    columns: Mapping[str, Sequence[str]], classes: Sequence[str], *, min_size: int, largest: float, rounds: int = 200
) -> Weights:
    """Weights under which, within every class, the attributes of each dimension weigh alike (iterative proportional fitting).

    columns: dimension -> attribute of each item. Attributes with fewer than min_size items in a class keep their share. The
    classes keep their shares. largest: no weight exceeds this many times the mean; what is cut leaves a gap.
    """
    groups: list[tuple[Mask, list[tuple[Mask, float]]]] = []
    for class_ in dict.fromkeys(classes):
        own_N = np.array([one == class_ for one in classes])
        for values in columns.values():
            value_N = np.array(values)
            cells = [(own_N & (value_N == value)) for value in dict.fromkeys(value_N[own_N].tolist())]
            cells = [cell for cell in cells if int(cell.sum()) >= min_size]
            mass = sum(int(cell.sum()) for cell in cells)
            if len(cells) > 1:
                groups.append((own_N, [(cell, mass / len(cells)) for cell in cells]))
    weights_N = np.ones(len(classes))
    for _ in range(rounds if groups else 0):
        for own_N, cells in groups:
            before = weights_N[own_N].sum()
            for cell, target in cells:
                weights_N[cell] *= target / weights_N[cell].sum()
            weights_N[own_N] *= before / weights_N[own_N].sum()
        for own_N in {id(own_N): own_N for own_N, _ in groups}.values():
            weights_N[own_N] = _capped(weights_N[own_N], largest)
        if _gap(weights_N, groups) < 1e-4:
            break
    n = len(weights_N)
    return Weights(weights_N, float(weights_N.sum() ** 2 / (n * (weights_N**2).sum())), _gap(weights_N, groups))


def _capped(weights_N: NDArray[np.float64], largest: float) -> NDArray[np.float64]:
    """Weights of mean 1 with none above `largest`: what is cut goes to those below, in proportion."""
    for _ in range(len(weights_N)):
        high_N = weights_N >= largest
        if not (weights_N > largest * (1 + 1e-9)).any() or high_N.all():
            break
        left = len(weights_N) - largest * high_N.sum()
        weights_N = np.where(high_N, largest, weights_N * left / weights_N[~high_N].sum())
    return weights_N


def _gap(weights_N: NDArray[np.float64], groups: list[tuple[Mask, list[tuple[Mask, float]]]]) -> float:
    """The largest |share - target| of a cell within its class."""
    gaps = [
        abs(float(weights_N[cell].sum()) - target) / float(weights_N[own_N].sum())
        for own_N, cells in groups
        for cell, target in cells
    ]
    return max(gaps, default=0.0)
