"""Claims about picking examples: the deepest last, labels in the pool's mix, no text twice, faults by name."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shiftscope.compare.examples import examples, pick, shares
from shiftscope.core.corpora import text_depth


@pytest.fixture
def pool(tmp_path):
    """60 vectors: 40 of label p, 20 of label q."""
    rows = np.random.default_rng(0).normal(size=(60, 6)) + 0.5
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), 6)
    columns = {"embedding": vectors, "label": ["p"] * 40 + ["q"] * 20, "text": [f"text {i}" for i in range(60)]}
    pq.write_table(pa.table(columns), tmp_path / "pool.parquet")
    return tmp_path / "pool.parquet", rows


def test_the_deepest_of_each_label_are_taken_in_the_mix_of_the_pool(pool):
    path, rows = pool
    found = examples(path, shots=6, label="label")
    taken = found.table.filter(pa.array(~np.isnan(found.table["shot"].to_numpy(zero_copy_only=False)))).to_pylist()
    for name, inside, count in (("p", slice(0, 40), 4), ("q", slice(40, 60), 2)):
        depth = text_depth.depth(rows[inside], rows[inside], own=True)
        expected = {int(i) + inside.start for i in np.argsort(-depth)[:count]}
        assert {row["row"] for row in taken if row["label"] == name} == expected
    ordered = sorted(taken, key=lambda row: row["shot"])
    assert [row["depth"] for row in ordered] == sorted(row["depth"] for row in taken)


def test_shallowest_and_spread_take_the_other_end_and_the_whole_range(pool):
    median = {
        choice: examples(pool[0], shots=5, choice=choice)["depth_median_picked"]
        for choice in ("deepest", "spread", "shallowest")
    }
    assert median["deepest"] > median["spread"] > median["shallowest"]
    depth = np.arange(10.0)
    assert np.flatnonzero(np.isfinite(pick(depth, [""] * 10, list("abcdefghij"), 5, "spread"))).tolist() == [
        1,
        3,
        5,
        7,
        9,
    ]


def test_depth_can_be_taken_in_the_queries_instead(pool, tmp_path):
    path, rows = pool
    np.save(tmp_path / "queries.npy", rows[40:])
    found = examples(path, shots=3, queries=str(tmp_path / "queries.npy"))
    assert found.table["depth"].to_numpy() == pytest.approx(text_depth.depth(rows, rows[40:]), abs=1e-12)


def test_a_text_is_picked_once():
    shot = pick(np.array([3.0, 3.0, 2.0, 1.0]), [""] * 4, ["same", "same", "x", "y"], 3)
    assert np.flatnonzero(np.isfinite(shot)).tolist() == [0, 2, 3]
    assert shot[0] == 2


@given(st.lists(st.integers(1, 50), min_size=1, max_size=6), st.data())
def test_shares_add_up_stay_within_their_groups_and_within_one_of_proportion(counts, data):
    total = data.draw(st.integers(1, sum(counts)))
    found = shares(counts, total)
    assert sum(found) == total
    assert all(
        0 <= share <= count and abs(share - count * total / sum(counts)) < 1
        for share, count in zip(found, counts, strict=True)
    )


def test_the_only_candidate_of_its_label_is_as_deep_as_it_is_among_the_others(pool, tmp_path):
    rows = pool[1][:5]
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), 6)
    pq.write_table(pa.table({"embedding": vectors, "label": list("ppppq")}), tmp_path / "alone.parquet")
    found = examples(tmp_path / "alone.parquet", shots=2, label="label")
    assert found.table["depth"][4].as_py() == pytest.approx(text_depth.depth(rows, rows, own=True)[4], abs=1e-12)
    assert any("depth of the only candidate of q" in note for note in found.notes)


def test_faults_are_named(pool, tmp_path):
    np.save(tmp_path / "one.npy", np.ones((1, 6)))
    with pytest.raises(ValueError, match="the pool has 1 usable texts"):
        examples(tmp_path / "one.npy", shots=1)
    with pytest.raises(ValueError, match="60 distinct usable texts and 99 shots"):
        examples(pool[0], shots=99)
    with pytest.raises(ValueError, match="has no label `kind`"):
        examples(pool[0], label="kind")
    with pytest.raises(ValueError, match="shots is 0"):
        examples(pool[0], shots=0)
    np.save(tmp_path / "zero.npy", np.zeros((3, 6)))
    with pytest.raises(ValueError, match="queries have no usable text"):
        examples(pool[0], queries=str(tmp_path / "zero.npy"))
