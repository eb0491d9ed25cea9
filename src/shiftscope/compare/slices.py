"""Slices: which named subsets a tagged collection has, how far any two lie apart, and which ones a model fails or fights on.

Tags (objects of a scene, source, language, topic, patterns in the text) make slices class(context); slices that share items
are linked; the graph gives communities and distances, ready train/test tasks from near to far, the worst slice of a
measured model, and from recorded mini-batches which training slice helps or hurts which evaluation slice.

Source: arXiv 2202.06523 (slices, graph, distance: section 3; tasks: section 4; training conflict: section 5.2).
Losses to train on the tasks with are in `core/slices/group_losses.py`.
Deviation: distances are `commute` (root of the resistance distance); `--distance spectral5` gives the paper's. On scenes
planted along a line the first ranks tasks by their accuracy and the second does not.
Deviation: items of several named classes are taken out before the minimum size is asked, as in the published code, and
slices without a connection are infinitely far apart, where that code prints a number.
"""

from __future__ import annotations

import hashlib
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from shiftscope.core import answers, corpus, statistics
from shiftscope.core.answers import Advance
from shiftscope.core.parts import Parts
from shiftscope.core.result import Figure, Panel, Result
from shiftscope.core.settings import refuse, unread
from shiftscope.core.slices import conflict, overlap, shifting, slice_maps, slice_scores, tagged
from shiftscope.core.slices.slice_maps import Graphing, Map, kept
from shiftscope.core.slices.slice_scores import Scores
from shiftscope.core.slices.slices import SliceTable, parsed
from shiftscope.core.slices.tagged import Tagging

DRAWN, DRAWN_GRAPH = 60, 200  # slices of a heat map and of a graph
MAPS, COLOURS = 3, 6  # classes that get pictures, communities that get a colour
CLASSES_A_PART = 8


@dataclass(frozen=True)
class Tasking:
    """Which tasks to make; none by default.

    test: slices of one class to test on, while it trains on its other slices, near to far. anchor: slices of the other
    class to train on (default: those in the tested contexts). levels: how many such tasks. width: neighbours in distance
    that one such task trains on together (the paper's tasks: 2). majority: two slices, of two classes, that training mostly
    holds; minority: two slices of the same classes that it holds few items of. counts: minority items per class. seed: of
    the draws.
    """

    test: tuple[str, ...] = ()
    anchor: tuple[str, ...] = ()
    levels: int = 4
    width: int = shifting.WIDTH
    majority: tuple[str, ...] = ()
    minority: tuple[str, ...] = ()
    counts: tuple[int, ...] = shifting.MINORITY_COUNTS
    seed: int = shifting.SEED

    def __post_init__(self) -> None:
        if min(self.levels, self.width) < 1:
            raise ValueError(f"levels is {self.levels} and width {self.width}: both must be at least 1")
        if bool(self.majority) != bool(self.minority):
            raise ValueError("majority and minority go together: give two slices to each")
        if self.anchor and not self.test:
            raise ValueError("anchor is for tasks with test slices: give test as well")

    def classes(self) -> list[str]:
        """The classes that the named slices are of."""
        return list(
            dict.fromkeys(parsed(name)[0] for name in (*self.test, *self.anchor, *self.majority, *self.minority))
        )


def slices(
    source: str | Path | Mapping[str, Any] | Sequence[Mapping[str, Any]],
    *,
    classes: tuple[str, ...] = (),
    tagging: Tagging = Tagging(),
    graphing: Graphing = Graphing(),
    tasking: Tasking = Tasking(),
    outcomes: str | Path | Sequence[Mapping[str, Any]] | None = None,
    outcome: str = "correct",
    lower_is_better: bool = False,
    trained: tuple[str, ...] = (),
    steps: str | Path | Sequence[Mapping[str, Any]] | None = None,
    steps_are_scores: bool = False,
    parts: Parts | None = None,
    advance: Advance | None = None,
) -> Result:
    """Make named slices of tagged items, and say how far they lie apart and where a model fails.

    source: scene graphs (.json), slices (.pkl, or parquet with slice and id), or tagged records (.jsonl, .json, .parquet).
    classes: only these; items of several of them are left out everywhere (default: every class, each for itself).
    outcomes: jsonl or parquet with an id and a measured number per item: the worst slice is found.
    outcome: its column: correct (0 or 1), a score, or a loss.
    lower_is_better: the outcome is a loss.
    trained: slices that the measured model was trained on: how fast does the outcome fall with the distance from them?
    steps: jsonl or parquet with composition and change by slice for every training step: who helps or hurts whom?
    steps_are_scores: the changes are of a score, not of a loss.
    Returns a Result with one row per slice; its parts hold memberships, distances, tasks and the training conflict.
    Raises ValueError, in one sentence, for repeated ids, items without tags, and tags that make no slice of the minimum size.
    """
    _check_read(tasking, outcomes is not None, outcome, lower_is_better, trained, steps is not None, steps_are_scores)
    whole = tagged.read(source, tagging)
    chosen = tuple(dict.fromkeys(classes or tasking.classes()))
    table, ambiguous = kept(whole, chosen, graphing)
    settings = {
        "classes": chosen, "tagging": asdict(tagging), "graphing": asdict(graphing), "tasking": asdict(tasking),
        "outcomes": answers.identified(outcomes), "outcome": outcome, "lower_is_better": lower_is_better,
        "trained": trained, "steps": answers.identified(steps), "steps_are_scores": steps_are_scores,
    }  # fmt: skip
    provenance = _provenance(source, whole, settings)
    kept_parts = parts or Parts()
    kept_parts.settle(provenance)
    maps = _maps(table, graphing, kept_parts, advance)
    refused = {subject: one.refusal for subject, one in maps.items() if one.refusal}
    if len(refused) == len(maps):
        subject, reason = next(iter(refused.items()))
        raise ValueError(
            f"no class has {graphing.distance} distances; {subject}: {reason}; use commute, or keep more slices"
        )
    scores = None if outcomes is None else _scores(table, outcomes, outcome, tagging.id, not lower_is_better)
    made = [_memberships(table), _distances(maps, graphing)]
    tasks = _tasks(table, maps, tasking, chosen)
    made += [shifting.summarise(table, tasks, "compare slices tasks")] if tasks else []
    made += (
        []
        if scores is None
        else [
            slice_scores.summarise(
                scores, maps, trained, outcome, "compare slices outcomes", lower_is_better=lower_is_better
            )
        ]
    )
    made += (
        []
        if steps is None
        else [conflict.summarise(conflict.read(steps, higher_is_better=steps_are_scores), "compare slices conflict")]
    )
    notes = [f"{subject} has no {graphing.distance} distances: {reason}" for subject, reason in refused.items()]
    return _whole(whole, table, maps, ambiguous, scores, made, notes, provenance)


def _check_read(
    tasking: Tasking,
    measured: bool,
    outcome: str,
    lower_is_better: bool,
    trained: Sequence[str],
    stepped: bool,
    steps_are_scores: bool,
) -> None:
    """Raises ValueError for a setting of what is not asked for: tasks, outcomes or steps."""
    if not tasking.test:
        unread(tasking, Tasking(), "a task with --test", "levels", "width")
    if not tasking.majority:
        unread(tasking, Tasking(), "a task with --majority and --minority", "counts")
    if not tasking.test and not tasking.majority:
        unread(tasking, Tasking(), "a task", "seed")
    if trained and not measured:
        raise ValueError("trained says what a measured model was trained on: give its outcomes as well")
    if not measured:
        refuse("--outcomes", outcome=(outcome, "correct"), lower_is_better=(lower_is_better, False))
    if not stepped:
        refuse("--steps", steps_are_scores=(steps_are_scores, False))


def _maps(table: SliceTable, graphing: Graphing, parts: Parts, advance: Advance | None) -> dict[str, Map]:
    """The map of every class, some classes a part."""
    classes = list(table.classes().items())
    chunks = [classes[start : start + CLASSES_A_PART] for start in range(0, len(classes), CLASSES_A_PART)]
    number, many = pa.large_list(pa.int64()), pa.large_list(pa.float64())
    schema = pa.schema([("class", pa.string()), ("community", number), ("distance", many)])

    def measure(chunk: Sequence[tuple[str, list[str]]]) -> dict[str, pa.Table]:
        found = [(subject, *slice_maps.measured(table.only(names), graphing)) for subject, names in chunk]
        columns = {
            "class": [subject for subject, _, _ in found],
            "community": [community_S for _, community_S, _ in found],
            "distance": [distance_GG.ravel() for _, _, distance_GG in found],
        }
        return {"maps": pa.table(columns, schema=schema)}

    say = None if advance is None else lambda done, total: advance("classes", done, total)
    rows = parts.map("classes", chunks, measure, advance=say, final=True)["maps"]
    maps = {}
    for (subject, names), community, distance in zip(classes, rows["community"], rows["distance"], strict=True):
        community_S, distance_N = (each.values.to_numpy(zero_copy_only=False) for each in (community, distance))
        groups = math.isqrt(len(distance_N))
        known = community_S, distance_N.reshape(groups, groups)
        maps[subject] = slice_maps.mapped(table.only(names), graphing, known)
    return maps


# ---- parts ------------------------------------------------------------------------------------------------------------
def _memberships(table: SliceTable) -> Result:
    rows = table.arrow()
    return Result("compare slices members", rows, {"memberships": Figure(len(rows), "count", len(table))})


def _distances(maps: Mapping[str, Map], graphing: Graphing) -> Result:
    columns: dict[str, list[Any]] = {name: [] for name in ("class", "first", "second", "overlap", "distance")}
    for subject, one in maps.items():
        first, second = np.triu_indices(len(one.groups), 1)
        columns["class"] += [subject] * len(first)
        labels = np.array(one.labels, dtype=object)
        columns["first"] += labels[first].tolist()
        columns["second"] += labels[second].tolist()
        columns["overlap"] += one.overlap_GG[first, second].tolist()
        columns["distance"] += [None if np.isnan(d) else d for d in one.distance_GG[first, second].tolist()]
    types = [pa.string(), pa.string(), pa.string(), pa.float64(), pa.float64()]
    table = pa.table(columns, schema=pa.schema(list(zip(columns, types, strict=True))))
    known = np.array([d for d in columns["distance"] if d is not None])
    figures = {"pairs": Figure(len(table), "count", len(maps))}
    if len(known):  # all pairs there are, and not independent ones: no interval
        figures["unconnected_pairs_share"] = Figure(float(np.isinf(known).mean()), "share", len(known))
    verdict = [_farthest(subject, one) for subject, one in maps.items()] if len(maps) <= MAPS else []
    most = sorted(maps, key=lambda subject: -len(maps[subject].groups))[:MAPS]
    panels = [draw(subject, maps[subject], graphing) for subject in most for draw in (_graph, _heat)]
    return Result("compare slices distances", table, figures, {}, [line for line in verdict if line], (), panels)


def _farthest(subject: str, one: Map) -> str:
    far_GG = np.where(np.isfinite(one.distance_GG), one.distance_GG, -1.0)
    place = np.unravel_index(int(far_GG.argmax()), far_GG.shape)
    if far_GG[place] <= 0:
        return ""
    first, second = (one.labels[int(n)] for n in place)
    return f"{subject}: of all connected pairs, {first} and {second} lie farthest apart ({far_GG[place]:.3g})."


def _graph(subject: str, one: Map, graphing: Graphing) -> Panel:
    """The class's slices as points of the plane, near where they share items, coloured by community."""
    largest = np.sort(np.argsort(-one.table.sizes_S, kind="stable")[:DRAWN_GRAPH])
    places_S2 = overlap.layout(one.weight_SS[np.ix_(largest, largest)])
    coloured = np.argsort(-np.bincount(one.community_S), kind="stable")[:COLOURS]
    community = [f"community {label}" if label in coloured else "others" for label in one.community_S[largest]]
    names = [one.table.names[place] for place in largest]
    columns = {
        "x": places_S2[:, 0], "y": places_S2[:, 1], "slice": [parsed(name)[1] for name in names], "community": community,
    }  # fmt: skip
    what = f"The {len(largest)} largest of {len(one.table)} slices" if len(largest) < len(one.table) else "All slices"
    return Panel(
        f"Slices that share items: {subject}",
        f"{what}, near each other where at least {100 * graphing.threshold:.0f} % of the smaller one's items are shared; the "
        f"picture is a spring layout: distances as numbers are in the heat map.",
        "points", pa.table(columns).sort_by("community"), x="x", y="y", series="community", label="slice",
        x_title="place (no unit)", y_title="place (no unit)",
    )  # fmt: skip


def _heat(subject: str, one: Map, graphing: Graphing) -> Panel:
    sizes = [len(one.table.union(group)) for group in one.groups]
    community = dict(zip(one.table.names, one.community_S.tolist(), strict=True))
    largest = sorted(range(len(sizes)), key=lambda n: -sizes[n])[:DRAWN]
    shown = sorted(largest, key=lambda n: (community[one.groups[n][0]], one.labels[n]))
    pairs = [(first, second) for first in shown for second in shown]
    values = [float(one.distance_GG[pair]) for pair in pairs]
    table = pa.table(
        {
            "first": [one.labels[first] for first, _ in pairs],
            "second": [one.labels[second] for _, second in pairs],
            "distance": pa.array([value if np.isfinite(value) else None for value in values], pa.float64()),
        }
    )
    what = f"the {len(shown)} largest of {len(sizes)} slices" if len(shown) < len(sizes) else f"all {len(sizes)} slices"
    return Panel(
        f"How far apart: {subject}",
        f"Distance ({graphing.distance}) between {what}, ordered by community; empty cells are unconnected (infinitely far) or "
        f"not defined.",
        "heat", table, x="first", y="second", color="distance", x_title="slice", y_title="slice",
    )  # fmt: skip


def _tasks(table: SliceTable, maps: Mapping[str, Map], tasking: Tasking, classes: Sequence[str]) -> list[shifting.Task]:
    found: list[shifting.Task] = []
    if tasking.test:
        table.check(tasking.test)
        subject = parsed(tasking.test[0])[0]
        if any(parsed(name)[0] != subject for name in tasking.test):
            raise ValueError(f"the test slices {list(tasking.test)} are of several classes: give those of one")
        one = maps[subject]
        if one.refusal:
            raise ValueError(f"{subject} has no spectral5 distances to rank tasks by: {one.refusal}")
        anchor = tasking.anchor or _anchor(table, tasking.test, [name for name in classes if name != subject])
        found += shifting.domain(
            table,
            one.groups,
            one.distance_GG,
            test=tasking.test,
            anchor=anchor,
            levels=tasking.levels,
            width=tasking.width,
            seed=tasking.seed,
        )
    if tasking.majority:
        found += shifting.subpopulation(table, tasking.majority, tasking.minority, tasking.counts, tasking.seed)
    return found


def _anchor(table: SliceTable, test: Sequence[str], others: Sequence[str]) -> list[str]:
    """The other class's slices in the tested contexts. Raises ValueError where there is no other class or no such slice."""
    contexts = {parsed(name)[1] for name in test}
    found = [name for name in table.names if parsed(name)[0] in others and parsed(name)[1] in contexts]
    if len(others) != 1 or not found:
        raise ValueError(
            f"there is no one class with slices in {sorted(contexts)} to set against {list(test)}: name two classes, or anchor"
        )
    return found


def _scores(table: SliceTable, source: Any, column: str, id_column: str, higher_is_better: bool) -> Scores:
    ids, values = [], []
    for number, record in enumerate(corpus.records(source)):
        if (
            not isinstance(record, Mapping)
            or id_column not in record
            or not isinstance(record.get(column), int | float)
        ):
            raise ValueError(
                f"outcome {number + 1} has no {id_column!r} or no number {column!r}: give both for every item"
            )
        ids.append(str(record[id_column]))
        values.append(float(record[column]))
    return slice_scores.scored(
        table, ids, values, unit="share" if column == "correct" else column, higher_is_better=higher_is_better
    )


# ---- the whole --------------------------------------------------------------------------------------------------------
def _whole(
    whole: SliceTable,
    table: SliceTable,
    maps: Mapping[str, Map],
    ambiguous: int,
    scores: Scores | None,
    parts: Sequence[Result],
    notes: list[str],
    provenance: Mapping[str, Any],
) -> Result:
    rows = _rows(maps, scores)
    inside, per_class = len(table.union(table.names)), [len(one.table) for one in maps.values()]
    split = [subject for subject, one in maps.items() if one.component_S.max(initial=0) > 0]
    figures = {
        "items": Figure(len(whole.ids), "count", len(whole.ids)),
        "slices": Figure(len(table), "count", len(whole)),
        "classes": Figure(len(maps), "count", len(whole.classes())),
        "slices_per_class": statistics.mean_figure(per_class, unit="count"),
        "communities": Figure(sum(int(one.community_S.max()) + 1 for one in maps.values()), "count", len(table)),
        "items_in_a_slice_share": statistics.share_figure(inside, len(whole.ids)),
        "disconnected_classes_share": Figure(len(split) / len(maps), "share", len(maps)),
    }
    if ambiguous:
        figures["ambiguous_items"] = Figure(ambiguous, "count", len(whole.ids))
        notes.append(f"{ambiguous} items are of several of the named classes and were left out everywhere")
    verdict = [
        f"{len(table)} of {len(whole)} slices are large enough, in {len(maps)} class{'' if len(maps) == 1 else 'es'}; they hold "
        f"{inside} of {len(whole.ids)} items."
    ]
    if split:
        listed = ", ".join(split[:5]) + (" and others" if len(split) > 5 else "")
        verdict.append(f"{len(split)} classes fall into unconnected parts, infinitely far from each other: {listed}.")
    verdict += [part.verdict[0] for part in parts if part.verdict and part.method.endswith(("outcomes", "conflict"))]
    largest = rows.sort_by([("items", "descending"), ("slice", "ascending")])
    caption = f"The {min(200, len(rows))} largest slices, each with its nearest one; all are in the table."
    panels = [Panel("Slices", caption, "table", largest.slice(0, 200))]
    return Result("compare slices", rows, figures, provenance, verdict, notes, panels, parts)


def _rows(maps: Mapping[str, Map], scores: Scores | None) -> pa.Table:
    rows: list[dict[str, Any]] = []
    for subject, one in maps.items():
        group_of = {name: place for place, group in enumerate(one.groups) for name in group}
        for number, name in enumerate(one.table.names):
            far_G = one.distance_GG[group_of[name]].copy()
            far_G[group_of[name]] = np.inf
            far_G[np.isnan(far_G)] = np.inf
            nearest = int(far_G.argmin())
            linked = bool(np.isfinite(far_G[nearest]))
            row = {
                "class": subject,
                "context": parsed(name)[1],
                "slice": name,
                "items": len(one.table.members[name]),
                "community": int(one.community_S[number]),
                "component": int(one.component_S[number]),
                "links": int((one.weight_SS[number] > 0).sum()),
                "nearest": one.labels[nearest] if linked else None,
                "nearest_distance": float(far_G[nearest]) if linked else None,
            }
            if scores is not None:
                figure = scores.slices.get(name)
                row |= {
                    "outcome": None if figure is None else float(figure.value),
                    "measured": 0 if figure is None else figure.n,
                }
            rows.append(row)
    return pa.Table.from_pylist(rows)


def _provenance(source: Any, whole: SliceTable, settings: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(source, str | Path):
        named: Any = answers.identified(source)
    else:
        digest = hashlib.sha256("\0".join([*whole.ids, *whole.names]).encode())
        for items in whole.members.values():
            digest.update(np.ascontiguousarray(items).tobytes())
        named = {"items": len(whole.ids), "slices": len(whole), "sha256": digest.hexdigest()}
    packages = {name: version(name) for name in ("networkx", "numpy", "scipy", "shiftscope")}
    return {"source": named, "settings": dict(settings), "versions": {"python": platform.python_version(), **packages}}
