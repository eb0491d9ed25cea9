"""Charts: a panel as a Vega-Lite specification, one theme for the page in light and dark, and export to PNG or SVG.

A specification holds its rows, so that a page needs no network. Columns are renamed to the channel they feed (x, y,
low, high, series, color): a column name with a dot or a bracket would otherwise be read as a path by Vega-Lite.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import altair as alt
import pyarrow as pa
import vl_convert

from shiftscope.core.result import Panel
from shiftscope.report import formats

ROW_LIMIT = 5000
HEIGHT_PX = 240
WHOLE_TICKS = 10  # so many whole numbers each get a tick
LABELLED = 60  # points that still have room for their names
NARROW_PX = 430  # the drawing area of a chart in one of two columns: a name that finds room here finds it everywhere
NAME_CHARACTERS = 26
NAME_PX = (6.2, 13)  # the width of a character and the height of a line of a name
EDGE_PX = 12  # between the outermost points and the frame
LEGEND_CHARACTERS = 44  # what fits on one line of a narrow chart
BASE_TUNED = {"light": ["#0072b2", "#d55e00"], "dark": ["#6bb8f0", "#f0883e"]}
OTHER = {  # never the colours of base and tuned; apart for colour-blind readers
    "light": ["#0f766e", "#a8508a", "#b07d00", "#57534e", "#3f51a3", "#7a4b2a"],
    "dark": ["#4fc9b8", "#e29bc6", "#f2cd5c", "#c9c2b8", "#9fb0ff", "#c99b78"],
}
INK = {"light": ("#1c1917", "#6b645c", "#e4dfd8"), "dark": ("#f1ece4", "#a39b90", "#35312c")}
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif"
CHARTS = ("line", "bar", "points", "heat")


def specification(panel: Panel) -> dict[str, Any]:
    """The Vega-Lite specification of a line, bar, points or heat panel, without colours: those are the theme's.

    Rows that a logarithmic axis cannot show, and rows beyond ROW_LIMIT, are left out; `left_out` says how many.
    Raises: ValueError for a panel that is no chart.
    """
    if panel.kind not in CHARTS:
        raise ValueError(f"a panel of kind {panel.kind!r} is no chart; charts are {', '.join(CHARTS)}")
    draw = {"line": _line, "bar": _bar, "points": _points, "heat": _heat}[panel.kind]
    data = alt.InlineData(values=_rows(panel))
    chart = draw(
        panel, alt.Chart(data, width="container", height=HEIGHT_PX, description=f"{panel.title}. {panel.caption}")
    )
    spec: dict[str, Any] = chart.to_dict()
    spec.pop("config", None)
    spec["autosize"] = {"type": "fit-x", "contains": "padding"}
    return spec


def left_out(panel: Panel) -> str:
    """A sentence on the rows a chart does not draw; empty when it draws them all."""
    drawable = _drawable(panel)
    sentences = []
    total = panel.table.num_rows
    if hidden := total - len(drawable):
        why = "missing, or not positive on a logarithmic axis"
        sentences.append(f"{hidden:,} of {total:,} rows have no place on the axes ({why}).")
    if len(drawable) > ROW_LIMIT:
        sentences.append(f"Drawn from {ROW_LIMIT:,} of {len(drawable):,} rows, evenly spaced.")
    return " ".join(sentences)


def theme(mode: str) -> dict[str, Any]:
    """The Vega-Lite configuration of the page in `light` or `dark`."""
    ink, soft, line = INK[mode]
    return {
        "background": "transparent",
        "font": FONT,
        "view": {"stroke": None},
        "axis": {
            "labelColor": soft,
            "titleColor": soft,
            "domainColor": line,
            "tickColor": line,
            "gridColor": line,
            "gridOpacity": 0.7,
            "labelFontSize": 12,
            "titleFontSize": 12,
            "titleFontWeight": "normal",
            "titlePadding": 8,
            "labelOverlap": True,
        },
        "axisX": {"grid": False},
        "legend": {
            "labelColor": ink,
            "titleColor": soft,
            "labelFontSize": 12,
            "titleFontSize": 12,
            "titleFontWeight": "normal",
            "orient": "top",
            "symbolStrokeWidth": 2.5,
            "labelLimit": 220,
            "columns": 4,
        },
        "range": {
            "category": BASE_TUNED[mode],
            "ordinal": OTHER[mode],
            "ramp": {"scheme": "lighttealblue" if mode == "light" else "tealblues"},
            "heatmap": ["#f6efe2", "#f5b556", "#cf5139", "#7d1538"]
            if mode == "light"
            else ["#221e1a", "#74381f", "#e07b2e", "#ffe39a"],
            "diverging": ["#2166ac", "#9cc3e0", "#f5f1eb", "#f0ae7d", "#b8430f"]
            if mode == "light"
            else ["#7cbcf5", "#2d5880", "#2a2724", "#8a4e1f", "#ffb066"],
        },
        "line": {"strokeWidth": 2.2, "strokeCap": "round", "strokeJoin": "round", "color": OTHER[mode][0]},
        "area": {"opacity": 0.18, "line": False, "color": OTHER[mode][0]},
        "point": {"size": 38, "filled": True, "opacity": 0.75, "color": OTHER[mode][0]},
        "bar": {"color": OTHER[mode][0], "cornerRadiusEnd": 2},
        "rule": {"color": ink, "strokeWidth": 1.5},
        "text": {"color": soft, "fontSize": 11},
        "rect": {"stroke": None},
    }


def figure(panel: Panel, path: str | Path, *, mode: str = "light", width_px: int = 640, scale: float = 2.0) -> Path:
    """Draw a chart panel into a .png or .svg file; returns the path.

    mode: `light` or `dark`. width_px: width of the drawing; scale: pixels of a PNG per drawing unit.
    Raises: ValueError for another suffix, or for a panel that is no chart.
    """
    path = Path(path)
    if path.suffix not in (".png", ".svg"):
        raise ValueError(f"cannot draw into {path}: the file must end in .png or .svg")
    spec = specification(panel) | {"width": width_px}
    spec["config"] = theme(mode) | {"background": "#ffffff" if mode == "light" else "#171513"}
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".svg":
        path.write_text(vl_convert.vegalite_to_svg(spec, vl_version=version()), encoding="utf-8")
    else:
        path.write_bytes(vl_convert.vegalite_to_png(spec, vl_version=version(), scale=scale))
    return path


def version() -> str:
    """The Vega-Lite version the specifications are written for, as vl-convert names it ('6.4')."""
    return ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])


def bundle() -> str:
    """The JavaScript of Vega, Vega-Lite and vega-embed, safe inside a script element; it sets window.vegaEmbed.

    It stands in a scope of its own: its top-level names are minified and would meet the page's.
    """
    code = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=version())
    code = code.replace("</script", "<\\/script").replace("<!--", "<\\!--")
    return f"(() => {{\n{code}\n}})();"


def _channels(panel: Panel) -> dict[str, str]:
    names = {
        "label": panel.label,
        "x": panel.x,
        "y": panel.y,
        "low": panel.low,
        "high": panel.high,
        "series": panel.series,
        "color": panel.color,
    }
    return {channel: name for channel, name in names.items() if name}


def _drawable(panel: Panel) -> list[dict[str, Any]]:
    """The rows a chart can place, one dict per row keyed by channel."""
    channels = _channels(panel)
    columns = {channel: panel.table[name].to_pylist() for channel, name in channels.items()}
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    logs = [axis for axis, is_log in (("x", panel.log_x), ("y", panel.log_y)) if is_log]
    return [
        {
            channel: formats.marked(str(value)) if channel == "series" else _plain(value)
            for channel, value in row.items()
        }
        for row in rows
        if all(_plain(row.get(axis)) is not None for axis in ("x", "y")) and all(row[axis] > 0 for axis in logs)
    ]


def _rows(panel: Panel) -> list[dict[str, Any]]:
    rows = _drawable(panel)
    if _named(panel):
        return _with_names(panel, rows)
    if len(rows) <= ROW_LIMIT:
        return rows
    return [rows[i * len(rows) // ROW_LIMIT] for i in range(ROW_LIMIT)]


def _plain(value: Any) -> Any:
    """A value JSON can hold: floats to six significant digits, None for what is not finite."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int)):
        return value
    return formats.marked(str(value))


def _numeric(panel: Panel, column: str) -> bool:
    kind = panel.table.schema.field(column).type
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _axis(panel: Panel, axis: str, *, discrete: bool = False) -> Any:
    """The x or y channel: quantitative for numbers, else categories in the table's own order."""
    column, title, log = (panel.x, panel.x_title, panel.log_x) if axis == "x" else (panel.y, panel.y_title, panel.log_y)
    channel = alt.X if axis == "x" else alt.Y
    title = title or column.replace("_", " ")
    if discrete or not _numeric(panel, column):
        return channel(f"{axis}:O", title=title, sort=None)
    edge = EDGE_PX if panel.kind == "points" else alt.Undefined
    nice = axis == "y" and panel.kind != "points"
    kind: dict[str, Any] = {"type": "log"} if log else {"zero": False}
    scale = alt.Scale(**kind, nice=nice, padding=edge)
    ticks: Any = alt.Undefined
    if pa.types.is_integer(panel.table.schema.field(column).type) and not log:
        few = sorted({value for value in panel.table[column].to_pylist() if value is not None})
        places = {"values": few} if len(few) <= WHOLE_TICKS else {"tickMinStep": 1}  # a step may give halves
        ticks = alt.Axis(format=",d", **places)
    return channel(f"{axis}:Q", title=title, scale=scale, axis=ticks)


def _tooltip(panel: Panel) -> list[alt.Tooltip]:
    titles = {"x": panel.x_title, "y": panel.y_title}
    tips = []
    for channel, column in _channels(panel).items():
        shown = "N"
        form: Any = alt.Undefined
        if _numeric(panel, column):
            shown, form = "Q", "," if pa.types.is_integer(panel.table.schema.field(column).type) else ".4~g"
        tips.append(
            alt.Tooltip(f"{channel}:{shown}", title=titles.get(channel) or column.replace("_", " "), format=form)
        )
    return tips


def _series(panel: Panel) -> Any:
    """Colour by series, in the table's own order (base always before tuned, as on the whole page), or nothing."""
    if not panel.series:
        return alt.Undefined
    order = [formats.marked(str(value)) for value in dict.fromkeys(panel.table[panel.series].to_pylist())]
    order.sort(key=lambda name: ("base", "tuned").index(name) if name in ("base", "tuned") else 2)
    sides = set(order) <= {"base", "tuned"}
    domain = ["base", "tuned"] if sides else order
    scale = alt.Scale(domain=domain, range="category" if sides else "ordinal")
    wide = sum(map(len, order)) > LEGEND_CHARACTERS
    legend = (alt.Legend(columns=2) if wide else alt.Undefined) if len(order) > 1 else None
    return alt.Color("series:N", title=None, sort=domain, scale=scale, legend=legend)


def _line(panel: Panel, chart: alt.Chart) -> Any:
    x, y, color = _axis(panel, "x"), _axis(panel, "y"), _series(panel)
    lines = chart.mark_line().encode(x=x, y=y, color=color)
    if panel.label:
        lines = lines.encode(detail="label:N")
    if panel.series:
        lines = lines.encode(strokeDash=alt.StrokeDash("series:N", sort=color.to_dict()["sort"], legend=None))
    few = panel.table.num_rows <= 60
    dots = chart.mark_point(size=42 if few else 130, opacity=1 if few else 0.0001).encode(
        x=x, y=y, color=color, tooltip=_tooltip(panel)
    )
    if not (panel.low and panel.high):
        return lines + dots
    band = chart.mark_area().encode(x=x, y=alt.Y("low:Q", title=y.to_dict().get("title")), y2="high:Q", color=color)
    return band + lines + dots


def _points(panel: Panel, chart: alt.Chart) -> Any:
    color = _series(panel)
    if panel.color:
        number = _numeric(panel, panel.color)
        scale = alt.Undefined if number else alt.Scale(range="ordinal")
        color = alt.Color("color:Q" if number else "color:N", title=panel.color.replace("_", " "), scale=scale)
    dots = chart.mark_point().encode(x=_axis(panel, "x"), y=_axis(panel, "y"), color=color, tooltip=_tooltip(panel))
    if panel.low and panel.high:
        dots = chart.mark_rule().encode(x=_axis(panel, "x"), y=alt.Y("low:Q"), y2="high:Q", color=color) + dots
    if _named(panel):
        names = chart.mark_text(dy=alt.expr("datum.dy"), align=alt.expr("datum.align"))
        dots += names.encode(x=_axis(panel, "x"), y=_axis(panel, "y"), text="name:N")
    return dots


def _named(panel: Panel) -> bool:
    """Whether names stand beside the points: they are few, and the legend does not say the names already."""
    if panel.kind != "points" or not panel.label or panel.label in (panel.series, panel.color):
        return False
    names = [str(name) for name in panel.table[panel.label].to_pylist()]
    if 2 * sum(len(name) > NAME_CHARACTERS for name in names) > len(names):
        return False  # whole texts, which hovering shows
    return len(names) <= LABELLED and _numeric(panel, panel.x) and _numeric(panel, panel.y)


def _with_names(panel: Panel, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with `name`, `dy` and `align` of the text beside the point.

    The name stands above its point, or below it, inside the frame; it is empty where both places are taken by a name
    before it or by a point: hovering tells it.
    """
    x_N = _pixels([row["x"] for row in rows], panel.log_x, NARROW_PX)
    y_N = [HEIGHT_PX - y for y in _pixels([row["y"] for row in rows], panel.log_y, HEIGHT_PX)]
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in zip(x_N, y_N, strict=True)]
    named = []
    for row, x, y in zip(rows, x_N, y_N, strict=True):
        name = str(row["label"])
        name = name if len(name) <= NAME_CHARACTERS else f"{name[: NAME_CHARACTERS - 1]}…"
        width = len(name) * NAME_PX[0]
        align = "left" if x < width / 2 else "right" if x > NARROW_PX - width / 2 else "center"
        left = x - {"left": 0, "right": width, "center": width / 2}[align]
        above, below = ((left, y + dy - NAME_PX[1] / 2, left + width, y + dy + NAME_PX[1] / 2) for dy in (-12, 12))
        free = next((box for box in (above, below) if not any(_meet(box, other) for other in taken)), None)
        if free:
            taken.append(free)
        named.append(row | {"name": name if free else "", "dy": 15 if free == below else -9, "align": align})
    return named


def _pixels(values: list[Any], log: bool, length: float) -> list[float]:
    """Where values lie along an axis of so many pixels."""
    places = [math.log(value) if log else float(value) for value in values]
    low, high = min(places, default=0.0), max(places, default=0.0)
    return [EDGE_PX + (p - low) / ((high - low) or 1.0) * (length - 2 * EDGE_PX) for p in places]


def _meet(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _bar(panel: Panel, chart: alt.Chart) -> Any:
    """Bars over categories; lying when the labels are long, standing else."""
    labels = [str(value) for value in dict.fromkeys(panel.table[panel.x].to_pylist())]
    lying = not _numeric(panel, panel.x) and max((len(label) for label in labels), default=0) * len(labels) > 90
    value_axis = _axis(panel, "y")
    value = value_axis.to_dict()
    scale = alt.Scale(zero=True)
    floor: Any = alt.Undefined
    if panel.log_y:
        lowest = min((row["y"] for row in _drawable(panel)), default=1.0) / 2
        scale, floor = alt.Scale(type="log", domainMin=lowest, nice=False), alt.datum(lowest)
    category = (alt.Y if lying else alt.X)(
        "x:O",
        title=panel.x_title or panel.x.replace("_", " "),
        sort=None,
        axis=alt.Axis(labelAngle=0 if lying or len(labels) <= 12 else -40, labelLimit=180),
    )
    length = (alt.X if lying else alt.Y)("y:Q", title=value["title"], scale=scale)
    along, across = ("x", "y") if lying else ("y", "x")
    place: dict[str, Any] = {across: category, along: length}
    if panel.series and panel.series != panel.x:
        place["yOffset" if lying else "xOffset"] = (
            alt.YOffset("series:N", sort=None) if lying else alt.XOffset("series:N", sort=None)
        )
    if lying:
        groups = len(set(panel.table[panel.series].to_pylist())) if panel.series not in ("", panel.x) else 1
        chart = chart.properties(height=len(labels) * (8 + 14 * groups))
    bars = chart.mark_bar().encode(**place, **{f"{along}2": floor}, color=_series(panel), tooltip=_tooltip(panel))
    if not (panel.low and panel.high):
        return bars
    ends = {along: (alt.X if lying else alt.Y)("low:Q", title=value["title"], scale=scale), f"{along}2": "high:Q"}
    return bars + chart.mark_rule().encode(**(place | ends))


def _heat(panel: Panel, chart: alt.Chart) -> Any:
    """Cells coloured by a number: one-sided, or diverging around zero when the values have both signs."""
    values = [row["color"] for row in _drawable(panel) if isinstance(row.get("color"), (int, float))]
    title = panel.color.replace("_", " ")
    color = alt.Color("color:Q", title=title, scale=alt.Scale(zero=False))
    if values and min(values) < 0 < max(values):
        reach = max(-min(values), max(values))
        color = alt.Color("color:Q", title=title, scale=alt.Scale(domain=[-reach, 0, reach], range="diverging"))
    levels = len(set(panel.table[panel.y].to_pylist()))
    x, y = _axis(panel, "x", discrete=True), _axis(panel, "y", discrete=True)
    if _numeric(panel, panel.x):
        x = alt.X("x:O", title=x.to_dict()["title"], axis=alt.Axis(labelAngle=0))
    if _numeric(panel, panel.y):
        y = alt.Y("y:O", title=y.to_dict()["title"], sort="descending")
    return (
        chart.mark_rect()
        .encode(x=x, y=y, color=color, tooltip=_tooltip(panel))
        .properties(height=min(480, max(160, 20 * levels)))
    )
