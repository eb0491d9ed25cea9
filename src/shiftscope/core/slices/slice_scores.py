"""Slice scores: what a measured model does on every slice, the worst one, and what distance from the training data costs.

The worst slice is the smallest of many noisy numbers: the slices' intervals hold together (Bonferroni).
"""

# N items, M measured items

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from shiftscope.core import statistics
from shiftscope.core.result import Figure, Panel, Result
from shiftscope.core.slices import overlap
from shiftscope.core.slices.slice_maps import Map
from shiftscope.core.slices.slices import SliceTable, parsed


@dataclass(frozen=True)
class Scores:
    """A score per slice. slices: name → Figure, only where an item was measured; average: over the measured items, each
    once; worst: the slice with the worst score; unknown: measured ids that the table has not."""

    slices: Mapping[str, Figure]
    average: Figure
    worst: str
    unknown: int


def scored(
    table: SliceTable, ids: Sequence[str], values_M: ArrayLike, *, unit: str = "share", higher_is_better: bool = True
) -> Scores:
    """Score of every slice, the average and the worst slice.

    values_M: one number per id; where all are 0 or 1 the intervals are Wilson's, else bootstrapped. The slices' intervals
    hold together (each at 1 - 5 %/S), since the worst is picked among them; the average's is a plain 95 % one.
    Raises ValueError for an id measured twice, a value that is no number, or where no measured item lies in a slice.
    """
    values, known = np.asarray(values_M, dtype=np.float64), table.number_of
    repeated, times = Counter(ids).most_common(1)[0] if ids else ("", 0)
    if times > 1:
        raise ValueError(f"the id {repeated!r} is measured twice: give one value per item")
    if not np.isfinite(values).all():
        place = int(np.flatnonzero(~np.isfinite(values))[0])
        raise ValueError(f"the value of {ids[place]!r} is {values[place]}: every measured item needs a finite number")
    value_N = np.full(len(table.ids), np.nan)
    for one, value in zip(ids, values, strict=True):
        if one in known:
            value_N[known[one]] = value
    inside = {name: value_N[found] for name, found in table.members.items()}
    inside = {name: found[~np.isnan(found)] for name, found in inside.items()}
    inside = {name: found for name, found in inside.items() if len(found)}
    if not inside:
        raise ValueError(
            f"none of the {len(ids)} measured items lies in a slice: are these ids of the same collection?"
        )
    binary, level = bool(np.isin(values, (0, 1)).all()), 1 - 0.05 / len(inside)
    figures = {name: _score(found, unit, level, binary=binary) for name, found in inside.items()}
    sign = 1 if higher_is_better else -1
    worst = min(figures, key=lambda name: (sign * float(figures[name].value), name))
    measured = value_N[~np.isnan(value_N)]
    average = _score(measured, unit, 0.95, binary=binary)
    return Scores(figures, average, worst, len(ids) - len(measured))


def _score(values: NDArray[np.float64], unit: str, level: float, *, binary: bool) -> Figure:
    if binary:
        low, high = statistics.wilson(int(values.sum()), len(values), level)
    else:
        low, high = statistics.bootstrap_mean(values, level=level)
    mean = float(values.mean())
    return Figure(mean, unit, len(values), min(low, mean), max(high, mean))


def summarise(
    scores: Scores, maps: Mapping[str, Map], trained: Sequence[str], outcome: str, method: str, *, lower_is_better: bool
) -> Result:
    """The slices from worst to best, and what distance from the trained slices costs (none: no such picture).

    Raises ValueError for trained slices that are not in a map.
    """
    worst = scores.slices[scores.worst]
    figures = {"outcome_average": scores.average, "outcome_worst_slice": worst}
    names = sorted(scores.slices, key=lambda name: float(scores.slices[name].value), reverse=lower_is_better)
    columns: dict[str, Any] = {"slice": names, "outcome": [float(scores.slices[name].value) for name in names]}
    columns |= {end: [getattr(scores.slices[name], end) for name in names] for end in ("low", "high")}
    columns["items"] = [scores.slices[name].n for name in names]
    table = pa.table(columns)
    share = worst.unit == "share"
    measured, form = (f"share {outcome}", ".1%") if share else (outcome, ".3g")
    verdict = [
        f"The worst slice is {scores.worst}: {measured} {float(worst.value):{form}} on {worst.n} items, against "
        f"{float(scores.average.value):{form}} on average."
    ]
    panels = [
        Panel(
            "The worst slices", f"The 30 worst slices by {measured}, with intervals that hold together.", "bar",
            table.slice(0, 30), x="slice", y="outcome", low="low", high="high", x_title="slice", y_title=measured,
        )
    ]  # fmt: skip
    notes = [f"{scores.unknown} measured ids are of no tagged item"] if scores.unknown else []
    if trained:
        panels.append(_by_distance(scores, maps, trained, measured, figures, notes))
        verdict += _cost(figures, measured)
    return Result(method, table, figures, {}, verdict, notes, panels)


def _by_distance(
    scores: Scores,
    maps: Mapping[str, Map],
    trained: Sequence[str],
    outcome: str,
    figures: dict[str, Figure],
    notes: list[str],
) -> Panel:
    """Outcome against distance from what was trained on; adds the rank correlation to the figures, or a note why not."""
    from scipy.stats import spearmanr

    rows: list[dict[str, Any]] = []
    for subject in dict.fromkeys(parsed(name)[0] for name in trained):
        if subject not in maps:
            raise ValueError(f"the trained slices are of the class {subject!r}, which is none of {list(maps)[:5]}")
        one = maps[subject]
        own = [name for name in trained if parsed(name)[0] == subject]
        one.table.check(own)
        for name in set(one.table.names) & set(scores.slices) - set(own):
            figure, far = scores.slices[name], overlap.between(one.distance_GG, one.places([name]), one.places(own))
            rows.append({"class": subject, "slice": name, "distance": far, "outcome": float(figure.value)})
    ranks = sorted(
        (row for row in rows if not np.isnan(row["distance"])), key=lambda row: (row["distance"], row["slice"])
    )
    n = len(ranks)
    far_N, value_N = np.array([row["distance"] for row in ranks]), np.array([row["outcome"] for row in ranks])
    if n > 3 and len(set(far_N)) > 1 and len(set(value_N)) > 1:
        rho = float(spearmanr(far_N, value_N).statistic)
        reach, middle = 1.96 * 1.06 / np.sqrt(n - 3), np.arctanh(np.clip(rho, -0.999999, 0.999999))
        low, high = float(np.tanh(middle - reach)), float(np.tanh(middle + reach))
        figures["distance_outcome_spearman"] = Figure(rho, "", n, min(low, rho), max(high, rho))
    else:
        notes.append(
            f"distance_outcome_spearman is left out: {n} measured slices beside the trained ones, or all alike"
        )
    table = pa.Table.from_pylist(
        ranks,
        pa.schema(
            [("class", pa.string()), ("slice", pa.string()), ("distance", pa.float64()), ("outcome", pa.float64())]
        ),
    )
    return Panel(
        "What distance costs", f"Every slice's {outcome} against its distance from the trained ones.", "points", table,
        x="distance", y="outcome", series="class", label="slice", x_title="distance from the trained slices",
        y_title=outcome,
    )  # fmt: skip


def _cost(figures: Mapping[str, Figure], measured: str) -> list[str]:
    """A sentence on distance and outcome; none where their correlation was left out."""
    rho = figures.get("distance_outcome_spearman")
    if rho is None or rho.low is None or rho.high is None:
        return []
    said = f"rank correlation {float(rho.value):.2f}, 95 % interval {rho.low:.2f} to {rho.high:.2f}, {rho.n} slices"
    if rho.low <= 0 <= rho.high:
        return [f"Distance from the trained slices does not rank the {measured} ({said})."]
    return [
        f"The farther a slice lies from the trained ones, the {'lower' if rho.high < 0 else 'higher'} its {measured} ({said})."
    ]
