"""core/weak_slices: tests against scipy, false discoveries under control, weights that even out."""

import numpy as np
import pytest
from scipy.stats import false_discovery_control, fisher_exact

from shiftscope.core.slices.slices import SliceTable
from shiftscope.core.slices.weak_slices import compared, even_weights, leaning


def random_table(draw, items=400, slices=30):
    ids = tuple(str(n) for n in range(items))
    members = {
        f"all(s{k})": np.flatnonzero(draw.random(items) < draw.uniform(0.05, 0.4)).astype(np.int32)
        for k in range(slices)
    }
    return SliceTable(ids, members)


def test_p_and_q_are_those_of_scipy_and_small_slices_are_left_out():
    draw = np.random.default_rng(0)
    table, events_N = random_table(draw), (draw.random(400) < 0.2).astype(float)
    events_N[:40] = np.nan
    rows = compared(table, events_N, min_size=25).to_pylist()
    expected = {}
    for name, items in table.members.items():
        inside = np.isin(np.arange(400), items)
        known = ~np.isnan(events_N)
        if len(items) >= 25:
            counts = [[int((events_N[known & side] == value).sum()) for value in (1, 0)] for side in (inside, ~inside)]
            expected[name] = (sum(counts[0]), fisher_exact(counts)[1])
    assert {row["slice"] for row in rows} == set(expected)
    tested = [row for row in rows if row["measured"] >= 25]
    assert [row["p"] for row in tested] == pytest.approx([expected[row["slice"]][1] for row in tested])
    assert [row["q"] for row in tested] == pytest.approx(false_discovery_control([row["p"] for row in tested]))
    assert all(row["p"] is None and row["q"] is None for row in rows if row["measured"] < 25)
    assert [row["p"] for row in tested] == sorted(row["p"] for row in tested)


def test_by_chance_hardly_any_collection_has_a_discovery_though_bare_ranking_always_has_a_worst_slice():
    found, tempting = 0, 0
    for seed in range(60):
        draw = np.random.default_rng(seed)
        rows = compared(random_table(draw, 300, 20), (draw.random(300) < 0.2).astype(float), min_size=20).to_pylist()
        found += any(row["q"] < 0.05 for row in rows)
        tempting += max(row["rate"] for row in rows) > 0.27
    assert found <= 7  # at most 5 % expected: 3 of 60, and 7 is its 98th percentile
    assert tempting > 30  # baseline: the highest bare rate looks like a finding


def test_without_outcomes_there_are_shares_and_no_rates():
    table = random_table(np.random.default_rng(1), 100, 3)
    rows = compared(table, None, min_size=1).to_pylist()
    assert all(
        row["rate"] is None and row["p"] is None and 0 <= row["share_low"] <= row["share"] <= row["share_high"]
        for row in rows
    )


def test_a_class_leans_to_the_attribute_that_it_was_given():
    ids = tuple(map(str, range(200)))
    table = SliceTable(
        ids, {"place: sea": np.arange(0, 90, dtype=np.int32), "place: land": np.arange(90, 200, dtype=np.int32)}
    )
    classes = {"ship": np.arange(0, 100, dtype=np.int32), "cart": np.arange(100, 200, dtype=np.int32)}
    row = leaning(table, classes, min_size=20).to_pylist()[0]
    assert {row["rate"], row["rate_elsewhere"]} == {0.9, 0.0} or {row["rate"], row["rate_elsewhere"]} == {1.0, 0.1}
    assert row["q"] < 1e-20
    assert len(leaning(table, {"all": np.arange(200, dtype=np.int32)}, min_size=20)) == 0


def test_one_dimension_has_the_weights_of_the_closed_form():
    values = ["a"] * 10 + ["b"] * 30
    found = even_weights({"d": values}, ["all"] * 40, min_size=5, largest=100)
    assert found.weights_N == pytest.approx([2.0] * 10 + [2 / 3] * 30)
    assert found.effective_share == pytest.approx(40**2 / (40 * (10 * 4 + 30 * 4 / 9)))
    assert found.gap < 1e-4


def test_every_class_keeps_its_share_and_is_even_within_itself():
    draw = np.random.default_rng(2)
    classes = draw.choice(["x", "y"], 500, p=[0.3, 0.7]).tolist()
    columns = {d: draw.choice(["a", "b", "c"], 500, p=[0.6, 0.3, 0.1]).tolist() for d in ("one", "two")}
    found = even_weights(columns, classes, min_size=5, largest=50)
    for class_ in ("x", "y"):
        own = np.array(classes) == class_
        assert found.weights_N[own].sum() == pytest.approx(own.sum())
        for values in columns.values():
            shares = [found.weights_N[own & (np.array(values) == name)].sum() / own.sum() for name in "abc"]
            assert shares == pytest.approx([1 / 3] * 3, abs=1e-3)


def test_rare_attributes_keep_their_share_and_the_cap_leaves_a_gap():
    values = ["a"] * 100 + ["b"] * 20 + ["rare"] * 2
    found = even_weights({"d": values}, ["all"] * 122, min_size=5, largest=100)
    assert found.weights_N[-2:] == pytest.approx(1.0)
    capped = even_weights({"d": values}, ["all"] * 122, min_size=5, largest=1.5)
    assert capped.weights_N.max() <= 1.5 + 1e-9
    assert capped.weights_N.sum() == pytest.approx(122)
    assert capped.gap > 0.1
    even = even_weights({"d": ["a"] * 9}, ["all"] * 9, min_size=1, largest=10)
    assert (even.weights_N == 1).all()
    assert (even.effective_share, even.gap) == (1.0, 0.0)
