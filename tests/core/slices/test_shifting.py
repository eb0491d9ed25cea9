from __future__ import annotations

import random

import numpy as np
import pytest

from shiftscope.core.slices import shifting
from shiftscope.core.slices.slices import SliceTable


def ids(table: SliceTable, items) -> set[str]:
    return {table.ids[number] for number in items}


def contexts() -> tuple[SliceTable, list[list[str]], np.ndarray]:
    """Dogs in 5 contexts on a line, neighbours share items; cats in the tested context."""
    named = {f"dog({n})": [f"d{i}" for i in range(30 * n, 30 * n + 40)] for n in range(5)}
    named["cat(0)"] = [f"c{i}" for i in range(60)]
    table = SliceTable.of(named)
    place = np.arange(5.0)
    return table, [[f"dog({n})"] for n in range(5)], np.abs(place[:, None] - place)


def test_domain_tasks_go_from_near_to_far_with_equal_sizes_and_no_tested_item_in_training():
    table, groups, distance = contexts()
    tasks = shifting.domain(table, groups, distance, test=["dog(0)"], anchor=["cat(0)"], levels=3, width=1)
    assert [task.level for task in tasks] == [1, 3, 4]  # the nearest, one between, the farthest
    tested = set(table.ids_of("dog(0)"))
    sizes = set()
    for task in tasks:
        assert set().union(*(ids(table, items) for items in task.test.values())) == tested
        for (subject, group), items in task.train.items():
            assert ids(table, items) <= set(table.ids_of(group)) - tested
            sizes.add(len(items))
            assert subject in ("cat", "dog")
    assert sizes == {30}  # dog(1) has 30 items beside those that dog(0) has too


def test_tasks_are_the_same_for_the_same_seed_and_others_for_another():
    table, groups, distance = contexts()

    def drawn(seed: int):
        tasks = shifting.domain(table, groups, distance, test=["dog(0)"], anchor=["cat(0)"], seed=seed)
        return shifting.rows(table, tasks)

    assert drawn(1).equals(drawn(1))
    assert not drawn(1).equals(drawn(2))


def test_unconnected_training_slices_are_infinitely_far_and_come_last():
    table, groups, distance = contexts()
    distance[2, :] = distance[:, 2] = np.inf
    tasks = shifting.domain(table, groups, distance, test=["dog(0)"], anchor=["cat(0)"], levels=9, width=1)
    assert [task.level for task in tasks] == [1, 3, 4, np.inf]


def test_a_task_of_the_paper_trains_on_two_slices_and_its_level_is_the_mean_of_their_distances():
    table, groups, distance = contexts()
    tasks = shifting.domain(table, groups, distance, test=["dog(0)"], anchor=["cat(0)"], levels=9)
    assert [task.level for task in tasks] == [1.5, 2.5, 3.5]
    tested = set(table.ids_of("dog(0)"))
    for task, pair in zip(tasks, ((1, 2), (2, 3), (3, 4)), strict=True):
        name = " + ".join(f"dog({n})" for n in pair)
        both = set().union(*(table.ids_of(f"dog({n})") for n in pair)) - tested
        assert ids(table, task.train["dog", name]) <= both
        assert len(task.train["dog", name]) == len(task.train["cat", "cat(0)"]) == 60  # the cats are the fewest
    (all_,) = shifting.domain(table, groups, distance, test=["dog(0)"], anchor=["cat(0)"], width=99)
    assert all_.level == 2.5


def test_a_task_without_anything_to_train_on_is_refused():
    table, groups, distance = contexts()
    everything = [f"dog({n})" for n in range(5)]
    with pytest.raises(ValueError, match="no slice to train on"):
        shifting.domain(table, groups, distance, test=everything, anchor=["cat(0)"])
    with pytest.raises(ValueError, match=r"no item of dog\(0\) is left"):
        shifting.domain(table, groups, distance, test=["dog(0)"], anchor=["dog(0)"])


def four_groups(majority: int, minority: int, shared: int = 0) -> SliceTable:
    both = [f"s{n}" for n in range(shared)]
    sizes = {"cat(indoor)": majority, "dog(outdoor)": majority, "cat(outdoor)": minority, "dog(indoor)": minority}
    return SliceTable.of({name: [f"{name}{n:04d}" for n in range(size)] + both for name, size in sizes.items()})


MAJORITY, MINORITY = ("cat(indoor)", "dog(outdoor)"), ("cat(outdoor)", "dog(indoor)")


def test_with_enough_items_the_subpopulation_tasks_have_the_published_sizes():
    table = four_groups(994, 294)
    tasks = shifting.subpopulation(table, MAJORITY, MINORITY)
    assert [task.name.split()[0] for task in tasks] == ["10", "50", "100"]
    for task, count in zip(tasks, (10, 50, 100), strict=True):
        assert task.level == count / 850
        assert [len(items) for items in task.test.values()] == [144] * 4
        assert {group: len(items) for (_, group), items in task.train.items()} == {
            "cat(indoor)": 850 - count, "dog(outdoor)": 850 - count, "cat(outdoor)": count, "dog(indoor)": count,
        }  # fmt: skip
        trained, tested = (set(np.concatenate(list(split.values())).tolist()) for split in (task.train, task.test))
        assert not trained & tested
        for split in (task.train, task.test):
            assert all(ids(table, items) <= set(table.ids_of(group)) for (_, group), items in split.items())


def test_more_minority_items_replace_majority_items_and_the_rest_stays():
    table = four_groups(994, 294)
    few, more, most = (task.train[("cat", "cat(indoor)")] for task in shifting.subpopulation(table, MAJORITY, MINORITY))
    assert set(most) < set(more) < set(few)


def test_the_shuffle_is_that_of_sorted_ids_with_the_published_seed():
    table = four_groups(994, 294)
    expected = sorted(table.ids_of("cat(outdoor)"))
    random.Random(42).shuffle(expected)
    task = shifting.subpopulation(table, MAJORITY, MINORITY)[0]
    assert ids(table, task.test[("cat", "cat(outdoor)")]) == set(expected[:144])


def test_items_of_several_groups_are_in_none_and_small_groups_shrink_the_task():
    table = four_groups(300, 80, shared=5)
    tasks = shifting.subpopulation(table, MAJORITY, MINORITY)
    used = set().union(
        *(ids(table, items) for task in tasks for split in (task.train, task.test) for items in split.values())
    )
    assert not {f"s{n}" for n in range(5)} & used
    assert {len(items) for task in tasks for items in task.test.values()} == {39}  # 144 × 80/294
    assert len(tasks) == 1  # 41 minority items are left for training: 10, but not 50 and 100


@pytest.mark.parametrize(
    ("majority", "minority", "sentence"),
    [
        (MAJORITY, ("cat(outdoor)", "cat(indoor)"), "one slice of each of two classes"),
        (("cat(indoor)",), ("cat(outdoor)",), "one slice of each of two classes"),
        (MAJORITY, ("cat(moon)", "dog(indoor)"), "no slice 'cat\\(moon\\)'"),
    ],
)
def test_groups_that_make_no_task_are_refused(majority, minority, sentence):
    with pytest.raises(ValueError, match=sentence):
        shifting.subpopulation(four_groups(50, 20), majority, minority)


def test_groups_too_small_for_the_smallest_minority_are_refused_with_their_sizes():
    with pytest.raises(ValueError, match=r"groups of \[50, 50, 6, 6\] items .* too small for 10 or more"):
        shifting.subpopulation(four_groups(50, 6), MAJORITY, MINORITY)


def test_the_rows_name_every_item_of_every_split():
    table = four_groups(994, 294)
    tasks = shifting.subpopulation(table, MAJORITY, MINORITY, counts=(10,))
    rows = shifting.rows(table, tasks)
    assert len(rows) == 1700 + 576
    one = rows.to_pylist()[0]
    assert (one["task"], one["split"], one["class"], one["group"]) == (tasks[0].name, "train", "cat", "cat(indoor)")
    assert shifting.summarise(table, tasks, "compare slices tasks")["tasks"] == 1
