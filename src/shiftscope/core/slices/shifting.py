"""Shift tasks: train on these items, test on those, made of slices, ready for any trainer.

Domain generalisation: one class trains on slices that lie nearer to or farther from the slice it is tested on.
Subpopulation shift: each class has a majority and a minority context in training, and all four are tested alike.
Source: arXiv 2202.06523, sections 4.1 and 4.2, and its published code.
Deviation: a domain task trains on neighbours in the order of distance, where the published pairs were picked by hand; its
level is the mean of their distances, as there.
Deviation: all tasks of a series train on equally many items of each class, so that distance is not confounded with size.
Deviation: items that lie in several of the four groups of a subpopulation task are left out, since a worst-group score
needs each item's one group; the test is the head of the one seeded shuffle, not a second random split.
"""

# S slices

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from shiftscope.core.result import Figure, Panel, Result
from shiftscope.core.slices import overlap
from shiftscope.core.slices.slices import SliceTable, parsed

TEST_EACH, TRAIN_EACH, SEED = 144, 850, 42  # of the published subpopulation tasks
MINORITY_CAP, MAJORITY_CAP = 294, 994  # items per group that they use
MINORITY_COUNTS = (10, 50, 100)
WIDTH = 2  # training slices of one published domain task


@dataclass(frozen=True)
class Task:
    """One task. kind: 'domain' or 'subpopulation'. level: distance of training from test slices (domain), or the
    minority's share of the training items (subpopulation). train, test: (class, group) → item numbers."""

    name: str
    kind: str
    level: float
    train: Mapping[tuple[str, str], NDArray[np.int32]]
    test: Mapping[tuple[str, str], NDArray[np.int32]]

    def count(self, split: str) -> int:
        """Items of a split."""
        return sum(map(len, (self.train if split == "train" else self.test).values()))


def domain(
    table: SliceTable,
    groups: Sequence[Sequence[str]],
    distance_GG: NDArray[np.float64],
    *,
    test: Sequence[str],
    anchor: Sequence[str],
    levels: int = 4,
    width: int = WIDTH,
    seed: int = SEED,
) -> list[Task]:
    """Tasks from near to far: the test class trains on `width` groups of slices each, the other class always on `anchor`.

    table: slices without the items that are of both classes. groups: the test class's slices, one or several a group;
    distance_GG: their distances. levels: tasks, evenly spaced by rank of distance, the nearest and the farthest included;
    width: groups that follow each other in that order and make one task; fewer where there are no more.
    Items of the test slices are in no training set. Raises ValueError where no group is left to train on.
    """
    table.check([*test, *anchor])
    tested = table.union(test)
    tested_groups = np.array([n for n, group in enumerate(groups) if set(group) & set(test)], dtype=np.int64)
    others = [n for n, group in enumerate(groups) if not set(group) & set(test)]
    left = {n: np.setdiff1d(table.union(groups[n]), tested) for n in others}
    far = {n: overlap.between(distance_GG, np.array([n]), tested_groups) for n in others if len(left[n])}
    if not far or not len(tested_groups):
        raise ValueError(f"there is no slice to train on beside the tested {' + '.join(test)}: give more contexts")
    ranked = sorted(far, key=lambda n: (far[n], n))
    width = min(width, len(ranked))
    windows = len(ranked) - width + 1
    starts = [round(place) for place in np.linspace(0, windows - 1, min(levels, windows))]
    chosen = [ranked[start : start + width] for start in starts]
    anchored = np.setdiff1d(table.union(anchor), tested)
    if not len(anchored):
        raise ValueError(f"no item of {' + '.join(anchor)} is left to train on once the tested items are taken out")
    unions = [np.unique(np.concatenate([left[n] for n in together])) for together in chosen]
    size = min(len(anchored), *map(len, unions))
    subject, other = parsed(test[0])[0], parsed(anchor[0])[0]
    tasks = []
    for together, items in zip(chosen, unions, strict=True):
        name = " + ".join(slice_ for n in together for slice_ in groups[n])
        train = {
            (other, " + ".join(anchor)): _drawn(table, anchored, size, seed),
            (subject, name): _drawn(table, items, size, seed),
        }
        level = float(np.mean([far[n] for n in together]))
        tasks.append(Task(f"{subject} on {name}", "domain", level, train, {(subject, " + ".join(test)): tested}))
    return tasks


def subpopulation(
    table: SliceTable,
    majority: Sequence[str],
    minority: Sequence[str],
    counts: Sequence[int] = MINORITY_COUNTS,
    seed: int = SEED,
) -> list[Task]:
    """Tasks with ever more minority items, tested on equally many items of all four groups.

    majority, minority: two slices each, of the same two classes. counts: minority items per class in training.
    Where every group has at least 294 (minority) and 994 (majority) items these are the published sizes: 144 of each group
    in the test, 850 per class in training; with fewer items both shrink, by the same rule. Raises ValueError where the
    slices are not of two classes, or too few items are left.
    """
    table.check([*majority, *minority])
    classes = [parsed(name)[0] for name in majority]
    if len(set(classes)) != 2 or sorted(parsed(name)[0] for name in minority) != sorted(classes) or len(classes) != 2:
        raise ValueError(
            f"majority {list(majority)} and minority {list(minority)}: give each one slice of each of two classes"
        )
    minor = [name for subject in classes for name in minority if parsed(name)[0] == subject]
    found, times = np.unique(np.concatenate([table.members[name] for name in (*majority, *minor)]), return_counts=True)
    unclear = found[times > 1]
    many, few = (
        [_shuffled(table, np.setdiff1d(table.members[name], unclear), seed) for name in names]
        for names in (majority, minor)
    )
    room = min([len(items) / MINORITY_CAP for items in few] + [len(items) / MAJORITY_CAP for items in many])
    test_each = int(TEST_EACH * min(1.0, room))
    train_each = min(TRAIN_EACH, *(len(items) - test_each for items in many))
    spare = min(len(items) for items in few) - test_each
    usable = [count for count in counts if 0 < count <= min(spare, train_each)]
    if test_each < 1 or not usable:
        raise ValueError(
            f"groups of {[len(items) for items in (*many, *few)]} items (each in one group only) are too small for "
            f"{min(counts, default=0)} or more minority items in training beside a balanced test"
        )
    groups = list(zip([*classes, *classes], [*majority, *minor], [*many, *few], strict=True))
    test = {(subject, name): np.sort(items[:test_each]) for subject, name, items in groups}
    tasks = []
    for count in usable:
        sizes = [train_each - count] * 2 + [count] * 2
        starts = [test_each + count] * 2 + [test_each] * 2
        train = {
            (subject, name): np.sort(items[start : start + size])
            for (subject, name, items), start, size in zip(groups, starts, sizes, strict=True)
        }
        share = count / train_each
        tasks.append(Task(f"{count} of {train_each} from the minority", "subpopulation", share, train, test))
    return tasks


def rows(table: SliceTable, tasks: Sequence[Task]) -> pa.Table:
    """One row per task and item: task, kind, level, split, class, group, id."""
    parts = []
    for task in tasks:
        for split, groups in (("train", task.train), ("test", task.test)):
            for (subject, group), items in groups.items():
                named = (task.name, task.kind, task.level, split, subject, group)
                parts.append([pa.array([value] * len(items)) for value in named] + [_ids(table, items)])
    names = ["task", "kind", "level", "split", "class", "group", "id"]
    return pa.concat_tables([pa.table(part, names=names) for part in parts])


def summarise(table: SliceTable, tasks: Sequence[Task], method: str) -> Result:
    """The tasks' items as rows, and the tasks as a table to read."""
    found = rows(table, tasks)
    shown = pa.table(
        {
            "task": [task.name for task in tasks],
            "kind": [task.kind for task in tasks],
            "distance or minority share": [task.level for task in tasks],
            "trained on": [", ".join(group for _, group in task.train) for task in tasks],
            "tested on": [", ".join(group for _, group in task.test) for task in tasks],
            "training items": [task.count("train") for task in tasks],
            "test items": [task.count("test") for task in tasks],
        }
    )
    verdict = []
    ranked = [task for task in tasks if task.kind == "domain"]
    if ranked:
        verdict.append(
            f"{len(ranked)} tasks from near ({ranked[0].level:.3g}) to far ({ranked[-1].level:.3g}), all trained on "
            f"{ranked[0].count('train')} items and tested on the same {ranked[0].count('test')}."
        )
    panels = [Panel("Tasks", "Train and test sets that are ready to use; their ids are in the table.", "table", shown)]
    return Result(method, found, {"tasks": Figure(len(tasks), "count", len(found))}, {}, verdict, (), panels)


def _ids(table: SliceTable, items: NDArray[np.int32]) -> pa.Array:
    return pa.array([table.ids[number] for number in items], pa.string())


def _shuffled(table: SliceTable, items: NDArray[np.int32], seed: int) -> NDArray[np.int32]:
    """The items by sorted id, shuffled as the published code does."""
    ordered = sorted(items.tolist(), key=lambda number: table.ids[number])
    random.Random(seed).shuffle(ordered)
    return np.array(ordered, dtype=np.int32)


def _drawn(table: SliceTable, items: NDArray[np.int32], size: int, seed: int) -> NDArray[np.int32]:
    return np.sort(_shuffled(table, items, seed)[:size])
