from __future__ import annotations

import numpy as np
import pytest

from shiftscope.core import statistics
from shiftscope.core.slices import slice_maps, slice_scores
from shiftscope.core.slices.slice_maps import Graphing
from shiftscope.core.slices.slices import SliceTable

TABLE = SliceTable.of({"c(a)": range(0, 10), "c(b)": range(5, 20), "c(x)": [40]})


def test_the_worst_slice_and_the_average_are_those_of_counting():
    correct = [float(n >= 8) for n in range(30)]
    found = slice_scores.scored(TABLE, [str(n) for n in range(30)], correct)
    assert {name: (figure.value, figure.n) for name, figure in found.slices.items()} == {
        "c(a)": (0.2, 10), "c(b)": (0.8, 15),
    }  # fmt: skip
    assert found.worst == "c(a)"
    assert (found.average.value, found.average.n) == (12 / 20, 20)  # each item once, those of no slice not at all
    assert found.unknown == 10


def test_intervals_are_wilson_at_a_level_that_holds_for_all_slices_together():
    found = slice_scores.scored(TABLE, [str(n) for n in range(20)], [1.0] * 10 + [0.0] * 10)
    assert (found.slices["c(a)"].low, found.slices["c(a)"].high) == pytest.approx(statistics.wilson(10, 10, 0.975))
    assert (found.average.low, found.average.high) == pytest.approx(statistics.wilson(10, 20, 0.95))


def test_of_a_loss_the_largest_is_the_worst():
    loss = [float(n) / 7 for n in range(20)]
    found = slice_scores.scored(TABLE, [str(n) for n in range(20)], loss, unit="nats", higher_is_better=False)
    assert found.worst == "c(b)"
    figure = found.slices["c(b)"]
    assert figure.value == pytest.approx(np.mean(loss[5:]))
    assert figure.low < figure.value < figure.high


@pytest.mark.parametrize(
    ("ids", "values", "sentence"),
    [
        (["1", "2", "1"], [1, 1, 0], "the id '1' is measured twice"),
        (["1", "2"], [1, np.nan], "the value of '2' is nan"),
        (["u"], [1], "none of the 1 measured items lies in a slice"),
        ([], [], "none of the 0 measured items"),
    ],
)
def test_outcomes_that_do_not_fit_are_refused(ids, values, sentence):
    with pytest.raises(ValueError, match=sentence):
        slice_scores.scored(TABLE, ids, values)


def test_an_outcome_that_falls_along_a_chain_is_found_by_distance():
    table = SliceTable.of({f"c({k})": range(20 * k, 20 * k + 30) for k in range(10)})
    maps = {"c": slice_maps.mapped(table, Graphing())}
    values = [float(number < 150 - 0.5 * number) for number in range(210)]
    losses = [float(number) for number in range(210)]
    for value, sign, lower in ((values, -1, False), (losses, 1, True)):
        scores = slice_scores.scored(table, [str(n) for n in range(210)], value, higher_is_better=not lower)
        result = slice_scores.summarise(
            scores, maps, ("c(0)",), "outcome", "compare slices outcomes", lower_is_better=lower
        )
        assert sign * result["distance_outcome_spearman"] > 0.8
        assert result.table["slice"][0].as_py() == scores.worst
        figure = result.figures["distance_outcome_spearman"]
        assert figure.n == 9
        assert figure.low <= figure.value <= figure.high


def test_too_few_slices_for_a_correlation_leave_it_out_with_a_note():
    table = SliceTable.of({f"c({k})": range(20 * k, 20 * k + 30) for k in range(3)})
    maps = {"c": slice_maps.mapped(table, Graphing())}
    scores = slice_scores.scored(table, [str(n) for n in range(70)], [float(n % 2) for n in range(70)])
    result = slice_scores.summarise(
        scores, maps, ("c(0)",), "correct", "compare slices outcomes", lower_is_better=False
    )
    assert "distance_outcome_spearman" not in result.figures
    assert any("is left out: 2 measured slices" in note for note in result.notes)
    with pytest.raises(ValueError, match="of the class 'd'"):
        slice_scores.summarise(scores, maps, ("d(0)",), "correct", "m", lower_is_better=False)
