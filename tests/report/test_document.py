from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pyarrow as pa
import pytest

from shiftscope import report
from shiftscope.core.result import Figure, Panel, Result
from shiftscope.report import document


class Elements(HTMLParser):
    """Names of the elements of a page, and its text outside scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.text: list[str] = []
        self.quiet = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.quiet = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self.quiet = False

    def handle_data(self, data: str) -> None:
        if not self.quiet and data.strip():
            self.text.append(data.strip())


def test_the_page_reads_from_verdict_to_provenance(make_result, make_table) -> None:
    result = make_result(make_table(2, 20))
    text = "\n".join(Elements(report.page(result)).text)
    order = [
        result.verdict[0],
        "JS mean",
        "The texts",
        "How the shift is spread",
        "Change by layer and window",
        "Notes",
        "Noise floor",
        "shiftscope compare models docs-base",
    ]
    places = [text.index(piece, text.index(result.verdict[0])) for piece in order]
    assert places == sorted(places)


def test_texts_stand_before_the_other_panels_of_their_part(make_result, make_table) -> None:
    page = report.page(make_result(make_table(2, 20)))
    assert page.index("data-map=") < page.index("data-chart=")


def test_hostile_words_anywhere_add_no_element(make_table, hostile: str) -> None:
    def elements(word: str) -> list[str]:
        table = make_table(1, 8, pieces=[f"{word}{i}" for i in range(12)], prompt=word)
        panels = [
            Panel(word, word, "texts", table),
            Panel(word, word, "table", pa.table({word: [word]})),
            Panel(word, word, "bar", pa.table({word: [word], "y": [1.0]}), x=word, y="y"),
        ]
        result = Result(
            word,
            table,
            {word: Figure(word, word, 1)},
            {"base": word, "tuned": word, "command": word, word: [word]},
            [word],
            [word],
            panels,
        )
        return Elements(report.page(result)).names

    assert elements(hostile) == elements("word")


def test_the_chart_runtime_is_there_only_when_there_are_charts(make_table) -> None:
    table = make_table(1, 8)
    bare = report.page(Result("compare tokens", table, {}, panels=[Panel("T", "", "texts", table)]))
    assert "vegaEmbed=" not in bare
    assert len(bare) < 100_000


def test_a_result_with_nothing_but_figures_is_a_page() -> None:
    page = report.page(
        Result("compare corpora", pa.table({"a": [1]}), {"distance_nats": Figure(0.25, "nats", 12, 0.2, 0.3)})
    )
    assert "0.25 nats" in page
    assert "0.2 to 0.3" in page
    assert "distance_nats" in page


def test_long_tables_are_cut_with_a_note(panels: list[Panel]) -> None:
    page = report.page(Result("m", pa.table({}), {}, panels=[panels[6]]))
    assert page.count("<tr>") == document.TABLE_ROWS + 1
    assert "The first 200 of 240 rows." in page


def test_a_table_with_long_texts_takes_the_whole_width() -> None:
    def width(*texts: str) -> bool:
        table = pa.table({"id": list(range(len(texts))), "text": list(texts)})
        page = report.page(Result("m", table, {}, panels=[Panel(t, "", "table", table) for t in ("one", "two")]))
        return page.count('class="panel wide"') == 2

    assert width("short", "a text " * 20)
    assert not width("short", "as short")


def test_a_panel_alone_between_wide_ones_fills_its_line() -> None:
    wide = pa.table({name: [1] for name in "abcdef"})
    order = [wide, wide.select(["a"]), wide, wide.select(["a"]), wide.select(["b"])]
    page = report.page(Result("m", wide, {}, panels=[Panel("T", "", "table", table) for table in order]))
    kinds = re.findall(r'<article class="(panel[ wide]*)"', page)
    assert kinds == ["panel wide", "panel wide", "panel wide", "panel", "panel"]


def test_write_makes_folders_and_the_data_is_json(make_result, make_table, tmp_path) -> None:
    path = report.write(make_result(make_table(1, 10)), tmp_path / "a" / "b" / "report.html")
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text("utf-8"), re.S)
    assert data is not None
    assert len(json.loads(data[1])["charts"]) == 6


def test_a_heat_map_without_its_columns_is_refused() -> None:
    table = pa.table({"text": [0]})
    with pytest.raises(ValueError, match="lacks the columns"):
        report.page(Result("m", table, {}, panels=[Panel("T", "", "texts", table)]))


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_every_colour_of_the_heat_map_keeps_its_text_readable(scheme: int) -> None:
    css = (document.HERE / "page.css").read_text("utf-8")
    ink = re.search(r"--ink: light-dark\((#\w{6}), (#\w{6})\)", css)
    rules = re.findall(
        r"\.([qdc]\d+) \{ background: light-dark\((#\w{6}), (#\w{6})\);(?: border[^;]*;)?(?: color: light-dark\((#\w{6}), (#\w{6})\);)?",
        css,
    )
    assert ink is not None
    assert len(rules) == 10 + 11 + 3
    for name, *colors in rules:
        back, front = colors[scheme], colors[2 + scheme] or ink[1 + scheme]
        assert contrast(back, front) >= 4.5, f"{name}: {front} on {back}"


def contrast(one: str, other: str) -> float:
    """WCAG 2 contrast ratio of two hex colours; 4.5 is level AA for text."""
    low, high = sorted(luminance(color) for color in (one, other))
    return (high + 0.05) / (low + 0.05)


def luminance(color: str) -> float:
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
