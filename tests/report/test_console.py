from __future__ import annotations

import io

import pyarrow as pa
from rich.console import Console

from shiftscope import report
from shiftscope.core.result import Figure, Result


def printed(result: Result) -> str:
    console = Console(file=io.StringIO(), width=120, color_system=None)
    report.terminal(result, console)
    return console.file.getvalue()


def test_the_terminal_shows_verdict_figures_of_every_part_and_notes(make_result, make_table) -> None:
    result = make_result(make_table(2, 20))
    text = printed(result)
    assert (
        text.index(result.verdict[0][:40])
        < text.index("js_mean_nats")
        < text.index("window_stable")
        < text.index("Noise floor")
    )
    assert "docs-base → docs-code" in text
    assert "9.00 to 13.0 %" in text
    assert text.count(result.parts[0].verdict[0][:30]) == 1  # said once, not again among the notes


def test_names_and_sentences_with_brackets_are_not_read_as_markup() -> None:
    text = printed(
        Result("compare tokens", pa.table({}), {"js_[bold]": Figure(1.0, "nats", 1)}, verdict=["see [red]this[/red]"])
    )
    assert "js_[bold]" in text
    assert "[red]this[/red]" in text


def test_the_terminal_shows_the_first_figures_whole_and_says_how_many_more_there_are() -> None:
    names = [f"a_figure_with_a_name_that_is_long_because_it_says_what_it_is_{i}" for i in range(20)]
    console = Console(file=io.StringIO(), color_system=None)  # no terminal: 80 columns by default
    report.terminal(
        Result("compare tokens", pa.table({}), {n: Figure(1.0, "nats", 1, 0.9, 1.1) for n in names}), console
    )
    text = console.file.getvalue()
    assert [n for n in names if n in text] == names[:16]
    assert "and 4 more" in text


def test_a_long_text_as_value_wraps_and_leaves_the_names_whole() -> None:
    name = "most_frequent_artefact_of_the_model_itself"
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    report.terminal(Result("compare edits", pa.table({}), {name: Figure("a long text " * 9, "", 1)}), console)
    text = console.file.getvalue()
    assert name in text
    assert text.split().count("long") == 9
    assert max(map(len, text.splitlines())) <= 100
