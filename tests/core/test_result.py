"""The result contract: what is written can be read back, and nothing that is not a number pretends to be one."""

import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shiftscope.core.result import Figure, Panel, Result, show

TABLE = pa.table({"layer": [0, 1], "alpha": [0.5, 0.25]})


def result(**more):
    part = Result("compare layers", TABLE, {"alpha_delta": Figure(0.1, "", 2, 0.0, 0.2)}, verdict=["Layers moved."])
    figures = {"js_mean_nats": Figure(0.057, "nats", 10, 0.05, 0.06), "same": Figure(True, "", 1)}
    return Result("compare models", TABLE, figures, {"seed": 0}, ["It moved."], ["A note."], parts=[part], **more)


def test_the_summary_has_exactly_the_promised_keys_and_the_parts_figures(tmp_path):
    result().save(tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert list(summary) == ["method", "figures", "provenance", "notes"]
    assert summary["figures"]["js_mean_nats"] == {"value": 0.057, "unit": "nats", "n": 10, "low": 0.05, "high": 0.06}
    assert summary["figures"]["alpha_delta"]["n"] == 2
    assert summary["notes"] == ["It moved.", "A note.", "Layers moved."]
    assert pq.read_table(tmp_path / "table.parquet").equals(TABLE)
    assert json.loads((tmp_path / "layers" / "summary.json").read_text())["method"] == "compare layers"


def test_a_figure_is_never_nan_and_infinity_is_written_as_text(tmp_path):
    with pytest.raises(ValueError, match="must not be NaN"):
        Figure(math.nan, "nats", 1)
    with pytest.raises(ValueError, match="must not be NaN"):
        Figure(1.0, "nats", 1, math.nan, 2.0)
    infinite = Result("m", TABLE, {"kl": Figure(math.inf, "nats", 1)})
    infinite.save(tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text())["figures"]["kl"]["value"] == "inf"


def test_the_same_figure_in_two_parts_is_our_own_mistake():
    with pytest.raises(AssertionError, match="alpha_delta is in two parts"):
        Result("m", TABLE, {"alpha_delta": Figure(1, "", 1)}, parts=result().parts).all_figures()


def test_a_panel_that_names_a_missing_column_is_refused():
    with pytest.raises(ValueError, match=r"names columns \['beta'\]"):
        Panel("t", "c", "line", TABLE, x="layer", y="beta")


def test_figures_read_as_value_interval_and_unit():
    assert show(Figure(0.05678, "nats", 3, 0.05, 0.06)) == "0.05678 [0.05, 0.06] nats"
    assert show(Figure(12, "count", 12)) == "12 count"


def test_a_notebook_shows_text_as_text():
    hostile = Result("m", TABLE, {"f": Figure("<script>", "", 1)}, verdict=["<img>"])
    assert "<script>" not in hostile._repr_html_()
    assert "&lt;img&gt;" in hostile._repr_html_()
    assert result()["alpha_delta"] == 0.1
