from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shiftscope.core.slices import slices, tagged
from shiftscope.core.slices.slices import SliceTable

PETS = {"cat(sofa)": ["1", "2", "3"], "cat(dog)": ["3"], "dog(sofa)": ["3", "4"], "dog(cat)": ["3"]}
SETS = st.dictionaries(st.text("abc()", min_size=1, max_size=6), st.sets(st.integers(0, 20)), min_size=1, max_size=6)


def test_a_table_gives_back_the_ids_it_was_made_of():
    table = SliceTable.of(PETS)
    assert {name: table.ids_of(name) for name in table.names} == PETS
    assert table.sizes_S.sum() == 7


@settings(deadline=None)
@given(SETS)
def test_incidence_counts_every_membership_once(named):
    table = SliceTable.of(named)
    dense = table.incidence().toarray()
    expected = [[int(one in {str(i) for i in named[name]}) for one in table.ids] for name in table.names]
    assert np.array_equal(dense, np.array(expected).reshape(dense.shape))


@settings(deadline=None)
@given(SETS)
def test_rows_hold_the_same_table_again_without_the_empty_slices(named):
    table = SliceTable.of(named)
    filled = table.at_least(1)
    if len(filled):
        back = slices.from_rows(table.arrow())
        assert {name: back.ids_of(name) for name in back.names} == {name: filled.ids_of(name) for name in filled.names}


def test_a_saved_table_is_read_as_slices(tmp_path):
    table = SliceTable.of(PETS)
    table.save(tmp_path / "slices.parquet")
    assert pq.read_table(tmp_path / "slices.parquet").column_names == ["slice", "id"]
    back = tagged.read(tmp_path / "slices.parquet")
    assert {name: back.ids_of(name) for name in back.names} == PETS


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("cat(sofa)", ("cat", "sofa")),
        ("cat(print(x))", ("cat", "print(x)")),
        ("topic", ("all", "topic")),
        ("(x)", ("all", "(x)")),
    ],
)
def test_a_name_is_class_and_context(name, parts):
    assert slices.parsed(name) == parts


def test_a_class_with_a_parenthesis_is_refused_since_its_name_could_not_be_read_back():
    with pytest.raises(ValueError, match="'f\\(x\\)' cannot be in a slice's name"):
        slices.named("f(x)", "sofa")


def test_removing_items_keeps_the_names_and_the_numbering():
    table = SliceTable.of(PETS).without(SliceTable.of(PETS).members["cat(dog)"])
    assert table.ids == ("1", "2", "3", "4")
    assert dict(zip(table.names, table.sizes_S.tolist(), strict=True)) == {
        "cat(dog)": 0, "cat(sofa)": 2, "dog(cat)": 0, "dog(sofa)": 1,
    }  # fmt: skip
    assert table.at_least(1).classes() == {"cat": ["cat(sofa)"], "dog": ["dog(sofa)"]}


def test_an_unknown_slice_is_named_with_those_like_it():
    with pytest.raises(ValueError, match=r"no slice 'cat\(sofas\)'.*cat\(sofa\)"):
        SliceTable.of(PETS).union(["cat(sofas)"])


def test_ids_that_come_twice_are_named_with_both_places():
    with pytest.raises(ValueError, match="the id 'x' comes twice, as items 1 and 3"):
        slices.built(["x", "y", "x"], [[("all", "a")]] * 3)


def test_items_without_any_tag_and_tables_without_slices_are_refused():
    with pytest.raises(ValueError, match="none of the 2 items has a tag"):
        slices.built(["x", "y"], [[], []])
    with pytest.raises(ValueError, match="at least one slice"):
        SliceTable.of({})
