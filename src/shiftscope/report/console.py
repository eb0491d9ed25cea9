"""Console: a result in the terminal — the verdict, the first figures with their intervals and sizes, the notes."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from shiftscope.core.result import Result
from shiftscope.report import formats

SHOWN = 16  # figures of a result, and of each of its parts; the page and the summary have all
OTHER_COLUMNS = 50  # columns of a value, its interval and its size, with the space between them
PIPED_WIDTH = 120  # columns where the output is no terminal: figures' names stay whole


def terminal(result: Result, console: Console | None = None) -> None:
    """Print a result: verdict first, then one table of figures for the result and for each part, then the notes."""
    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, PIPED_WIDTH)
    console.print()
    console.print(_heading(result))
    for i, sentence in enumerate(result.verdict):
        console.print(Padding(Text(sentence, style="bold" if i == 0 else ""), (0, 0, 0, 2)))
    _figures(result, console)
    for part in result.parts:
        _part(part, console)
    notes = [note for note in result.all_notes() if note not in _verdicts(result)]
    if notes:
        console.print(Text("\n  Notes", style="bold"))
    for note in notes:
        console.print(Padding(Text(f"– {note}", style="dim"), (0, 0, 0, 2)))
    console.print()


def _part(part: Result, console: Console) -> None:
    console.print(Text(f"\n  {part.method}", style="bold cyan"))
    for sentence in part.verdict:
        console.print(Padding(Text(sentence), (0, 0, 0, 2)))
    _figures(part, console)
    for deeper in part.parts:
        _part(deeper, console)


def _heading(result: Result) -> Text:
    pair = formats.pair(result)
    return Text.assemble(("  " + result.method, "bold cyan"), ("  " + " → ".join(pair) if pair else "", "cyan"), "\n")


def _figures(result: Result, console: Console) -> None:
    if not result.figures:
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=True, header_style="dim", padding=(0, 2, 0, 0))
    shown = list(result.figures.items())[:SHOWN]
    whole = min(max(len(name) for name, _ in shown), console.width - OTHER_COLUMNS)
    table.add_column("figure", overflow="fold", min_width=whole)  # a long text beside it wraps, the name does not
    table.add_column("value", justify="right", style="bold")
    table.add_column("95 % interval", justify="right", no_wrap=True)
    table.add_column("n", justify="right", style="dim", no_wrap=True)
    for name, figure in shown:
        table.add_row(Text(name), Text(formats.value(figure)), Text(formats.interval(figure)), formats.number(figure.n))
    console.print(table)
    if (more := len(result.figures) - SHOWN) > 0:
        console.print(Text(f"  … and {more} more: --out writes all figures to files, --json prints them", style="dim"))


def _verdicts(result: Result) -> set[str]:
    return {*result.verdict, *(sentence for part in result.parts for sentence in _verdicts(part))}
