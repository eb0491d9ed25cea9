"""core/labelled: every record is an item, or is named."""

import pytest

from shiftscope.core.slices.labelled import Item, Reading, read


def test_text_class_and_outcome_come_from_the_columns_that_are_named():
    records = [
        {"id": 7, "caption": "a", "kind": "x", "wrong": True},
        {"body": "b", "prompt": "c", "kind": 2, "wrong": None},
    ]
    assert read(records) == [Item("7", "a"), Item("1", "c")]
    assert read(records, Reading(label="kind", failed="wrong")) == [
        Item("7", "a", "x", True),
        Item("1", "c", "2", None),
    ]
    assert read([{"body": "b"}, {"body": "d"}, {"bad": 1}], Reading(column="body", limit=2)) == [
        Item("0", "b"),
        Item("1", "d"),
    ]


@pytest.mark.parametrize(
    ("records", "reading", "said"),
    [
        ([{"text": "a"}], {}, "has 1 records"),
        ([{"text": "a"}, {"text": " "}], {}, "record 2 has no text"),
        ([{"text": "a"}, ["b"]], {}, "record 2 is a list"),
        ([{"text": "a", "id": 1}, {"text": "b", "id": "1"}], {}, "'1' comes twice, in records 1 and 2"),
        ([{"text": "a"}, {"text": "b"}], {"label": "kind"}, "record 1 has no class under kind"),
        ([{"text": "a"}, {"text": "b"}], {"failed": "wrong"}, "has no column wrong"),
        ([{"text": "a", "wrong": 0.5}, {"text": "b"}], {"failed": "wrong"}, "wrong = 0.5: it must be 1"),
    ],
)
def test_what_is_wrong_is_named(records, reading, said):
    with pytest.raises(ValueError, match=said):
        read(records, Reading(**reading))


def test_lines_of_a_text_file_are_items(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    assert read(tmp_path / "a.txt") == [Item("0", "one"), Item("1", "two")]
