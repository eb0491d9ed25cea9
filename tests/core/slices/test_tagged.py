from __future__ import annotations

import json
import pickle
from collections import OrderedDict, defaultdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shiftscope.core.slices import tagged
from shiftscope.core.slices.tagged import Tagging

GQA = {
    "7": {
        "width": 4, "height": 4, "weather": "sunny", "location": "ocean",
        "objects": {
            "1": {"name": "cat", "x": 0, "attributes": ["black"], "relations": [{"name": "on", "object": "2"}]},
            "2": {"name": "sofa", "attributes": []},
            "3": {"name": "cat", "attributes": ["white"]},
        },
    },
    "8": {"width": 4, "height": 4, "objects": {"1": {"name": "cat", "attributes": ["black"]}}},
}  # fmt: skip


def ids(table) -> dict[str, list[str]]:
    return {name: table.ids_of(name) for name in table.names}


def written(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_a_scene_graph_gives_both_orders_of_two_objects_and_its_place(tmp_path):
    table = tagged.read(written(tmp_path / "graphs.json", GQA))
    assert set(table.names) == {"cat(sofa)", "sofa(cat)", "cat(sunny)", "cat(ocean)", "sofa(sunny)", "sofa(ocean)"}
    assert all(found == ["7"] for found in ids(table).values())
    assert table.ids == ("7", "8")  # an image with one object is an item still


def test_attributes_belong_to_their_own_object(tmp_path):
    table = tagged.read(written(tmp_path / "graphs.json", GQA), Tagging(attributes=True))
    assert ids(table) == {"cat(black)": ["7", "8"], "cat(white)": ["7"]}


def test_visual_genome_is_a_list_of_images_with_names():
    images = [
        {"image_id": 1, "objects": [{"names": ["cat"], "attributes": None}, {"names": ["sofa"]}]},
        {"image_id": 2, "objects": []},
    ]
    assert ids(tagged.read(images)) == {"cat(sofa)": ["1"], "sofa(cat)": ["1"]}
    attributes = [{"image_id": 1, "attributes": [{"names": ["cat"], "attributes": ["black"]}]}]
    assert ids(tagged.read(attributes, Tagging(attributes=True))) == {"cat(black)": ["1"]}


def test_an_object_without_a_name_and_an_image_twice_are_named(tmp_path):
    with pytest.raises(ValueError, match="image 5, object 3 has no name"):
        tagged.read({"5": {"objects": {"3": {"x": 1}}}})
    path = tmp_path / "graphs.json"
    path.write_text('{"5": {"objects": {}}, "5": {"objects": {}}}')
    with pytest.raises(ValueError, match="key '5' twice"):
        tagged.read(path)


def pickled(path: Path, content: object, protocol: int) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", range(6))
def test_the_published_pickles_are_read_in_every_protocol(tmp_path, protocol):
    subsets = defaultdict(set, {"cat(sofa)": {"1", "2"}, "dog(sofa)": {"3"}})
    assert ids(tagged.read(pickled(tmp_path / "a.pkl", subsets, protocol))) == {
        "cat(sofa)": ["1", "2"],
        "dog(sofa)": ["3"],
    }
    groups = OrderedDict({"1": ["cat(indoor)"], "2": ["cat(indoor)", "dog(outdoor)"]})
    assert ids(tagged.read(pickled(tmp_path / "b.pkl", groups, protocol))) == {
        "cat(indoor)": ["1", "2"], "dog(outdoor)": ["2"],
    }  # fmt: skip
    structured = {"colour": {"cat": {"black": {"1"}}}, "shade": {"cat": {"black": {"2"}, "light": {"3"}}}}
    assert ids(tagged.read(pickled(tmp_path / "c.pkl", structured, protocol))) == {
        "cat(black)": ["1", "2"], "cat(light)": ["3"],
    }  # fmt: skip


class Trap:
    """What a hostile pickle does: ask for a function and call it."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_asks_for_anything_else_is_refused_and_nothing_is_called(tmp_path, protocol):
    mark = tmp_path / "called"
    trap = {"cat(sofa)": {"1"}, "x": Trap(Path.touch, mark), "y": Trap(open, str(mark), "w")}
    with pytest.raises(ValueError, match="cannot be read as a pickle of sets and dictionaries: it asks for"):
        tagged.read(pickled(tmp_path / "trap.pkl", trap, protocol))
    assert not mark.exists()


@pytest.mark.parametrize("function", [eval, exec, getattr, __import__, vars, Path, object])
def test_no_function_of_the_language_is_reachable(tmp_path, function):
    with pytest.raises(ValueError, match="it asks for"):
        tagged.unpickled(pickled(tmp_path / "trap.pkl", Trap(function, "1"), 2))


@pytest.mark.parametrize(
    "content", [b"", b"no pickle", b"\x80\x09.", pickle.dumps({"a": {1}})[:-3], b"(lp0\n0.", b"cos\n"]
)
def test_a_broken_pickle_is_one_sentence(tmp_path, content):
    path = tmp_path / "broken.pkl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.pkl"):
        tagged.read(path)


def test_a_pickle_of_something_else_is_named(tmp_path):
    with pytest.raises(ValueError, match="maps names to int"):
        tagged.read(pickled(tmp_path / "a.pkl", {"a": 1}, 4))
    with pytest.raises(ValueError, match="holds a list"):
        tagged.read(pickled(tmp_path / "b.pkl", [1], 4))


RECORDS = [
    {"id": "x", "tags": ["news", "long"], "language": "en", "topic": "a", "text": "def f(): pass"},
    {"id": "y", "tags": "news", "language": "de", "topic": ["a", "b"], "text": "no code"},
    {"id": "z", "tags": [], "language": None, "topic": "b", "text": "import os"},
]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "json", "memory"])
def test_records_give_the_same_slices_from_every_kind_of_file(tmp_path, kind):
    rows = [
        {**record, "topic": [record["topic"]] if isinstance(record["topic"], str) else record["topic"]}
        for record in RECORDS
    ]
    rows = [{**row, "tags": [row["tags"]] if isinstance(row["tags"], str) else row["tags"]} for row in rows]
    path = tmp_path / f"items.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "json":
        written(path, rows)
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    table = tagged.read(rows if kind == "memory" else path, Tagging(subject="topic"))
    assert ids(table) == {"a(long)": ["x"], "a(news)": ["x", "y"], "b(news)": ["y"]}
    assert table.ids == ("x", "y", "z")


def test_without_a_subject_all_items_are_one_class_and_several_columns_name_theirs():
    table = tagged.read(RECORDS, Tagging(tags=("tags", "language")))
    assert ids(table) == {
        "all(language=de)": ["y"], "all(language=en)": ["x"], "all(tags=long)": ["x"], "all(tags=news)": ["x", "y"],
    }  # fmt: skip


def test_a_missing_tag_of_a_data_frame_is_no_tag(tmp_path):
    rows = pa.table({"id": ["x", "y"], "tags": pa.array([2.0, float("nan")]), "topic": pa.array(["a", None])})
    pq.write_table(rows, tmp_path / "frame.parquet")
    assert ids(tagged.read(tmp_path / "frame.parquet")) == {"all(2.0)": ["x"]}


def test_pairs_make_every_tag_a_class():
    assert ids(tagged.read(RECORDS, Tagging(pairs=True))) == {"long(news)": ["x"], "news(long)": ["x"]}


def test_patterns_in_the_text_are_tags_and_need_no_tag_column():
    rows = [{"id": record["id"], "text": record["text"]} for record in RECORDS]
    table = tagged.read(rows, Tagging(patterns=(r"function=\bdef \w+", "any=.", "call=f\\(")))
    assert ids(table) == {"all(any)": ["x", "y", "z"], "all(call)": ["x"], "all(function)": ["x"]}


@pytest.mark.parametrize(
    ("settings", "rows", "sentence"),
    [
        ({}, [*RECORDS, RECORDS[0]], "the id 'x' comes twice, as items 1 and 4"),
        ({"tags": ("topics",)}, RECORDS, "no column 'topics': it has id, tags"),
        ({"subject": "kind"}, RECORDS, "no column 'kind'"),
        ({"patterns": ("no",)}, RECORDS, "not of the form name=regex"),
        ({"patterns": ("a=(",)}, RECORDS, "no regular expression"),
        ({}, [{"id": 1, "tags": []}], "none of the 1 items has a tag"),
        ({"tags": ("topic",), "pairs": True}, [RECORDS[0]], "none of the 1 items has two tags"),
        ({}, [], "has no records"),
        ({}, ["x"], "is a str, not an object"),
        ({}, [{"id": 1, "tags": b"x"}], "holds a bytes"),
        ({"subject": "topic"}, [{"id": 1, "tags": "x", "topic": "f(x)"}], "without parentheses"),
    ],
)
def test_bad_records_are_one_sentence(settings, rows, sentence):
    with pytest.raises(ValueError, match=sentence.replace("(", r"\(")):
        tagged.read(rows, Tagging(**settings))


def test_subject_and_pairs_contradict_each_other():
    with pytest.raises(ValueError, match="give only one of them"):
        Tagging(pairs=True, subject="topic")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="is not a file"):
        tagged.read(tmp_path / "none.pkl")
