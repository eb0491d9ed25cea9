from __future__ import annotations

import pyarrow as pa
import pytest

from shiftscope.core.result import Panel
from shiftscope.report import charts

KINDS = ["cdf", "band", "bar", "long bar", "heat", "points"]


@pytest.fixture(params=range(len(KINDS)), ids=KINDS)
def panel(request: pytest.FixtureRequest, panels: list[Panel]) -> Panel:
    return panels[request.param]


def rows_of(panel: Panel) -> list[dict[str, object]]:
    (rows,) = charts.specification(panel)["datasets"].values()
    return rows


def test_every_chart_kind_draws_as_svg_with_its_axis_titles(panel: Panel, tmp_path) -> None:
    drawing = charts.figure(panel, tmp_path / "chart.svg").read_text("utf-8")
    assert drawing.startswith("<svg")
    for title in filter(None, (panel.x_title, panel.y_title)):
        assert title in drawing


def test_png_is_written_in_light_and_dark(panels: list[Panel], tmp_path) -> None:
    light = charts.figure(panels[1], tmp_path / "light.png").read_bytes()
    dark = charts.figure(panels[1], tmp_path / "deep" / "dark.png", mode="dark").read_bytes()
    assert light[:4] == dark[:4] == b"\x89PNG"
    assert light != dark


def test_lines_of_one_series_with_other_labels_are_not_joined() -> None:
    table = pa.table(
        {"x": [0.0, 1.0] * 2, "y": [0.0, 1.0, 2.0, 3.0], "side": ["base"] * 4, "ridge": ["1", "1", "2", "2"]}
    )
    lines, _ = charts.specification(Panel("P", "", "line", table, x="x", y="y", series="side", label="ridge"))["layer"]
    assert lines["encoding"]["detail"]["field"] == "label"
    plain, _ = charts.specification(Panel("P", "", "line", table, x="x", y="y", series="side"))["layer"]
    assert "detail" not in plain["encoding"]


def test_a_logarithmic_axis_leaves_out_what_it_cannot_show_and_says_so() -> None:
    panel = Panel(
        "P",
        "",
        "points",
        pa.table({"a": [0.0, 1.0, 10.0, None], "b": [1.0, 2.0, float("nan"), 3.0]}),
        x="a",
        y="b",
        log_x=True,
    )
    assert rows_of(panel) == [{"x": 1.0, "y": 2.0}]
    assert charts.left_out(panel).startswith("3 of 4 rows have no place on the axes")
    assert charts.specification(panel)["encoding"]["x"]["scale"]["type"] == "log"


def test_many_rows_are_thinned_and_say_so() -> None:
    panel = Panel("P", "", "points", pa.table({"a": list(range(20_000)), "b": list(range(20_000))}), x="a", y="b")
    assert len(rows_of(panel)) == charts.ROW_LIMIT
    assert "Drawn from 5,000 of 20,000 rows" in charts.left_out(panel)


def test_a_heat_panel_with_both_signs_is_centred_on_zero(panels: list[Panel]) -> None:
    low, middle, high = charts.specification(panels[4])["encoding"]["color"]["scale"]["domain"]
    assert middle == 0
    assert low == -high


def test_base_and_tuned_keep_their_colours_and_nothing_else_takes_them(panels: list[Panel], tmp_path) -> None:
    blue, orange = charts.BASE_TUNED["light"]
    sides = charts.figure(panels[1], tmp_path / "sides.svg").read_text("utf-8")
    kinds = charts.figure(panels[5], tmp_path / "kinds.svg").read_text("utf-8")
    assert blue in sides
    assert orange in sides
    assert not {blue, orange} & set(charts.OTHER["light"])
    assert blue not in kinds
    assert all(color in kinds for color in charts.OTHER["light"][:2])


def test_tables_and_wrong_suffixes_are_refused_in_a_sentence(panels: list[Panel], tmp_path) -> None:
    with pytest.raises(ValueError, match="a panel of kind 'table' is no chart"):
        charts.figure(panels[6], tmp_path / "table.svg")
    with pytest.raises(ValueError, match=r"must end in \.png or \.svg"):
        charts.figure(panels[0], tmp_path / "chart.jpeg")


def test_the_bundle_cannot_end_its_script_element() -> None:
    code = charts.bundle().lower()
    assert "</script" not in code
    assert "<!--" not in code


def test_few_whole_numbers_get_a_tick_each_and_no_halves() -> None:
    table = pa.table({"k": [1, 2, 3], "y": [0.5, 0.3, 0.1]})
    spec = charts.specification(Panel("P", "", "line", table, x="k", y="y"))
    assert all(layer["encoding"]["x"]["axis"]["values"] == [1, 2, 3] for layer in spec["layer"])


def test_points_with_names_show_them_on_hover_and_beside_few_points() -> None:
    def layers(rows: int) -> list[dict[str, object]]:
        table = pa.table(
            {"x": [float(n) for n in range(rows)], "y": [0.0] * rows, "who": [f"s{n}" for n in range(rows)]}
        )
        spec = charts.specification(Panel("P", "", "points", table, x="x", y="y", label="who"))
        return spec.get("layer", [spec])

    assert [layer["mark"]["type"] for layer in layers(3)] == ["point", "text"]
    (many,) = layers(charts.LABELLED + 1)
    assert many["encoding"]["tooltip"][0]["title"] == "who"


def spots(x: list[float], y: list[float], names: list[str], **more: object) -> Panel:
    table = pa.table({"x": x, "y": y, "who": names})
    return Panel("P", "", "points", table, x="x", y="y", label="who", **more)


def test_names_of_points_that_coincide_do_not_lie_on_each_other() -> None:
    rows = rows_of(spots([1.0, 1.0, 1.0, 9.0], [1.0, 1.0, 1.0, 2.0], ["first", "second", "third", "far away"]))
    assert [row["name"] for row in rows] == ["first", "second", "", "far away"]
    assert rows[0]["dy"] < 0 < rows[1]["dy"]
    assert [row["label"] for row in rows][2] == "third"  # hovering still tells it


def test_names_at_the_edges_stay_inside_the_frame_and_long_ones_are_cut() -> None:
    rows = rows_of(spots([0.0, 5.0, 10.0], [0.0, 5.0, 10.0], ["at the left edge", "x" * 99, "at the right edge"]))
    assert [row["align"] for row in rows] == ["left", "center", "right"]
    assert rows[1]["name"] == "x" * (charts.NAME_CHARACTERS - 1) + "…"


def test_whole_texts_are_left_to_hovering() -> None:
    panel = spots(
        [1.0, 5.0, 9.0], [1.0, 2.0, 3.0], ["a text of many words, " * 3, "and one more text of many words", "short"]
    )
    assert charts.specification(panel)["mark"]["type"] == "point"
    assert rows_of(panel)[0]["label"].startswith("a text")


def test_names_that_the_legend_tells_are_not_written_again_and_each_has_its_colour(tmp_path) -> None:
    names = ["max_prob", "window inner=8", "random positions=2", "assd k=5"]
    for how in ({"series": "who"}, {"color": "who"}):
        panel = spots([1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 2.0, 2.0], names, **how)
        assert charts.specification(panel)["mark"]["type"] == "point"
        drawing = charts.figure(panel, tmp_path / "points.svg").read_text("utf-8")
        assert all(color in drawing for color in charts.OTHER["light"][:4])


def test_a_logarithmic_axis_of_a_line_ends_with_its_data() -> None:
    table = pa.table({"x": [300.0, 1500.0], "y": [0.5, 0.5]})
    spec = charts.specification(Panel("P", "", "line", table, x="x", y="y", log_x=True))
    assert all(layer["encoding"]["x"]["scale"] == {"type": "log", "nice": False} for layer in spec["layer"])


def test_bars_that_are_their_own_series_stand_on_their_category() -> None:
    table = pa.table({"who": ["a", "b"], "y": [1.0, 2.0], "side": ["s", "t"]})
    own = charts.specification(Panel("P", "", "bar", table, x="who", y="y", series="who"))
    assert "xOffset" not in own["encoding"]
    assert "xOffset" in charts.specification(Panel("P", "", "bar", table, x="who", y="y", series="side"))["encoding"]
