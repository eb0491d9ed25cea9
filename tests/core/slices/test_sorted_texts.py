"""core/sorted_texts: slices hold exactly the items that were sorted there."""

import numpy as np
import pytest

from shiftscope.core.slices.assignment import NONE, UNASSIGNED, Sorted
from shiftscope.core.slices.labelled import Item
from shiftscope.core.slices.sorted_texts import SortedTexts

PLACES = ("sea", "sea", "land", NONE, UNASSIGNED, "sea")
MOODS = ("glad", "glad", "glad", "sad", "sad", "sad")
WORDS = {"place": {"sea": ("sea",), "land": ("land",)}, "mood": {"glad": ("glad",), "sad": ("sad",)}}


def collection(labels=(None,) * 6, voted=True):
    items = [Item(f"i{n}", f"text\n{n}", labels[n], n == 0 if n < 3 else None) for n in range(6)]
    rows = [
        {"place": Sorted(place, {place: 3, "other": 1}, "no vote" if place == UNASSIGNED else None), "mood": Sorted(mood, {mood: 4})}
        for place, mood in zip(PLACES, MOODS, strict=True)
    ]  # fmt: skip
    return SortedTexts(items, rows, WORDS, "model m", voted=voted)


def test_single_slices_and_pairs_of_the_minimum_size():
    table = collection().slice_table(pairs_of=2)
    assert {name: table.ids_of(name) for name in table.names} == {
        "all(place: sea)": ["i0", "i1", "i5"],
        "all(place: land)": ["i2"],
        "all(mood: glad)": ["i0", "i1", "i2"],
        "all(mood: sad)": ["i3", "i4", "i5"],
        "all(place: sea & mood: glad)": ["i0", "i1"],
    }
    assert not any("&" in name for name in collection().slice_table().names)


def test_slices_belong_to_classes_and_can_be_taken_over_all():
    found = collection(("x", "x", "y", "y", "y", "y"))
    assert found.slice_table().ids_of("y(place: sea)") == ["i5"]
    flat, classes = found.contexts_and_classes()
    assert flat.ids_of("place: sea") == ["i0", "i1", "i5"]
    assert {name: members.tolist() for name, members in classes.items()} == {"x": [0, 1], "y": [2, 3, 4, 5]}


def test_rows_carry_weight_agreement_and_problem():
    table = collection().arrow(np.arange(6) / 2.5)
    assert table["agreement: place"].to_pylist()[0] == pytest.approx(0.75)
    assert table["problem: place"].to_pylist()[4] == "no vote"
    assert table["failed"].to_pylist() == [True, False, False, None, None, None]
    assert np.isnan(collection().failed_N[3:]).all()
    assert collection(voted=False).arrow(np.ones(6))["agreement: mood"].null_count == 6


def test_the_composition_counts_everything_once_and_shows_an_example():
    rows = {(row["dimension"], row["attribute"]): row for row in collection().composition().to_pylist()}
    assert {key: row["texts"] for key, row in rows.items()} == {
        ("place", "sea"): 3, ("place", "land"): 1, ("place", NONE): 1, ("place", UNASSIGNED): 1, ("mood", "glad"): 3, ("mood", "sad"): 3,
    }  # fmt: skip
    assert rows["place", "sea"]["example"] == "text 0"
    assert collection().problems() == [("no vote", 1)]
