"""Claims about parts: interrupted work goes on where it was, and never mixes with other work."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shiftscope.core.parts import Parts, ShardDone

ITEMS = list(range(7))


class Interrupted(Exception):
    pass


def work(done: list[int], stop_at: int | None = None):
    """A measure that records what it was called with, and fails at one item."""

    def measure(item: int) -> dict[str, pa.Table]:
        if item == stop_at:
            raise Interrupted
        done.append(item)
        return {
            "rows": pa.table({"item": [item, item], "square": [item**2, item**2]}),
            "other": pa.table({"item": [item]}),
        }

    return measure


def test_without_a_folder_every_part_is_measured_and_joined_in_order():
    tables = Parts().map("pass", ITEMS, work([]))
    assert tables["rows"]["item"].to_pylist() == [i for i in ITEMS for _ in range(2)]
    assert tables["other"]["item"].to_pylist() == ITEMS


def test_an_interrupted_run_goes_on_and_gives_the_same_tables(tmp_path):
    whole = Parts().map("pass", ITEMS, work([]))
    first, second = [], []
    parts = Parts(tmp_path)
    parts.settle({"seed": 1})
    with pytest.raises(Interrupted):
        parts.map("pass", ITEMS, work(first, stop_at=4))
    again = Parts(tmp_path, resume=True)
    again.settle({"seed": 1})
    tables = again.map("pass", ITEMS, work(second))
    assert (first, second) == ([0, 1, 2, 3], [4, 5, 6])
    assert tables == whole


def test_a_part_that_was_being_written_is_measured_again(tmp_path):
    Parts(tmp_path).map("pass", ITEMS[:2], work([]))
    (tmp_path / "pass-000001.done").unlink()
    (tmp_path / "pass-000001.rows.parquet").write_bytes(b"half a file")
    done: list[int] = []
    tables = Parts(tmp_path, resume=True).map("pass", ITEMS[:2], work(done))
    assert done == [1]
    assert tables["other"]["item"].to_pylist() == [0, 1]


def test_parts_of_an_earlier_run_are_not_used_silently(tmp_path):
    Parts(tmp_path).map("pass", ITEMS, work([]))
    with pytest.raises(ValueError, match="add --resume"):
        Parts(tmp_path)


def test_parts_made_with_other_settings_are_refused_by_name(tmp_path):
    parts = Parts(tmp_path)
    parts.settle({"seed": 1, "texts": "a.jsonl"})
    parts.map("pass", ITEMS, work([]))
    with pytest.raises(ValueError, match="seed = 1, now it is 2"):
        Parts(tmp_path, resume=True).settle({"seed": 2, "texts": "a.jsonl"})
    with pytest.raises(ValueError, match="limit = None, now it is 5"):
        Parts(tmp_path, resume=True).settle({"seed": 1, "texts": "a.jsonl", "limit": 5})
    Parts(tmp_path, resume=True).settle({"seed": 1, "texts": "a.jsonl"})


def test_settings_that_json_changes_still_match_themselves(tmp_path):
    settings = {"shape": (1, 2), "folder": tmp_path, "nothing": None}
    parts = Parts(tmp_path)
    parts.settle(settings)
    parts.map("pass", ITEMS[:1], work([]))
    Parts(tmp_path, resume=True).settle(settings)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 9])
def test_shards_partition_the_work_and_their_folder_merges_to_the_whole(tmp_path, n):
    done: list[int] = []
    for shard in range(n):
        Parts(tmp_path, resume=True, shard=(shard, n)).map("pass", ITEMS, work(done))
    assert sorted(done) == ITEMS
    merged = Parts(tmp_path, resume=True).map("pass", ITEMS, work(done))
    assert len(done) == len(ITEMS)
    assert merged == Parts().map("pass", ITEMS, work([]))


@pytest.mark.parametrize("shard", [(2, 2), (-1, 3), (0, 0)])
def test_a_shard_that_does_not_exist_is_refused(shard):
    with pytest.raises(ValueError, match=f"shard {shard[0]}/{shard[1]}"):
        Parts(shard=shard)


def test_stages_do_not_read_each_others_parts(tmp_path):
    Parts(tmp_path).map("sample", ITEMS, work([]))
    done: list[int] = []
    Parts(tmp_path, resume=True).map("pass", ITEMS, work(done))
    assert done == ITEMS


def test_progress_counts_parts(tmp_path):
    seen: list[tuple[int, int]] = []
    Parts(shard=(1, 2)).map("pass", ITEMS, work([]), advance=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_clearing_removes_the_parts_and_those_of_inner_stages_and_nothing_beside_them(tmp_path):
    folder = tmp_path / "parts"
    (tmp_path / "table.txt").write_text("kept")
    parts = Parts(folder)
    for level in (parts, parts.inside("answers")):
        level.settle({"seed": 1})
        level.map("pass", ITEMS, work([]))
    parts.clear()
    assert [file.name for file in tmp_path.iterdir()] == ["table.txt"]
    parts.clear()


def test_a_shard_ends_after_its_final_stage(tmp_path):
    done: list[int] = []
    with pytest.raises(ShardDone, match="3 of 7 parts"):
        Parts(tmp_path, shard=(1, 2)).map("pass", ITEMS, work(done), final=True)
    assert done == [1, 3, 5]


def test_parts_on_disk_hold_exactly_what_was_measured(tmp_path):
    Parts(tmp_path).map("pass", ITEMS[:1], work([]))
    assert pq.read_table(tmp_path / "pass-000000.other.parquet") == pa.table({"item": [0]})


def test_parts_can_be_taken_one_by_one_also_those_that_are_on_disk(tmp_path):
    whole = Parts(tmp_path).map("pass", ITEMS[:4], work([]))
    taken: list[dict[str, pa.Table]] = []
    done: list[int] = []
    assert Parts(tmp_path, resume=True).map("pass", ITEMS, work(done), take=taken.append) == {}
    assert done == ITEMS[4:]
    assert pa.concat_tables([tables["rows"] for tables in taken[:4]]) == whole["rows"]
