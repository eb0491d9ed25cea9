"""Result: what every method returns — one table, named figures with intervals, panels for the page, provenance.

On disk (the contract every command keeps): `summary.json` with exactly the keys method, figures, provenance and
notes; `table.parquet` with one row per position, layer or cluster. Parts (the results a composite method is made of)
are saved the same way in sub-folders named for their method, and their figures appear in the whole's summary too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq


@dataclass(frozen=True)
class Figure:
    """One named number: its value, unit, sample size and 95 % interval (None where no interval applies).

    value: float, int, bool or str; never NaN: a figure that cannot be computed is left out and a note says why.
    unit: 'nats', 'share', 'count', 'nats/byte', ... ; n: how many observations it summarises.
    """

    value: float | int | bool | str
    unit: str
    n: int
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        for number in (self.value, self.low, self.high):
            if isinstance(number, float) and math.isnan(number):
                raise ValueError("a figure must not be NaN: leave it out and say why in the notes")


PanelKind = Literal["line", "bar", "points", "heat", "table", "texts"]


@dataclass(frozen=True)
class Panel:
    """One picture of a result, as data: the page, the terminal and the figure export each know how to draw a kind.

    kind: `line` (x against y, one line per `series`, a band where `low` and `high` are named), `bar` (x is a category
        or a bin), `points`, `heat` (x, y and `color` are column names), `table` (all columns, in order) or `texts` (the
        token heat map: the table is the one of `compare tokens`).
    x, y, low, high, series, color, label: column names of `table`; empty when unused. label: what a point is called, on
        hover and, where points are few, beside it; lines of one series with another label each are lines of their own.
    x_title, y_title: axis titles with units. log_x, log_y: logarithmic axes.
    """

    title: str
    caption: str
    kind: PanelKind
    table: pa.Table
    x: str = ""
    y: str = ""
    low: str = ""
    high: str = ""
    series: str = ""
    color: str = ""
    label: str = ""
    x_title: str = ""
    y_title: str = ""
    log_x: bool = False
    log_y: bool = False

    def __post_init__(self) -> None:
        named = (self.x, self.y, self.low, self.high, self.series, self.color, self.label)
        missing = [name for name in named if name and name not in self.table.column_names]
        if missing:
            raise ValueError(
                f"panel {self.title!r} names columns {missing} that its table has not: {self.table.column_names}"
            )


@dataclass(frozen=True)
class Result:
    """What a method found.

    method: its name on the command line, 'compare tokens'. table: one row per position, layer or cluster.
    figures: name -> Figure. provenance: what was measured and how (models and hashes, settings, versions, command).
    verdict: plain sentences, the most important first. notes: caveats, figures left out and why.
    panels: pictures. parts: results a composite is made of.
    """

    method: str
    table: pa.Table
    figures: Mapping[str, Figure]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    verdict: Sequence[str] = ()
    notes: Sequence[str] = ()
    panels: Sequence[Panel] = ()
    parts: Sequence[Result] = ()

    def __getitem__(self, name: str) -> float | int | bool | str:
        """The value of a figure by name, searching the parts too."""
        return self.all_figures()[name].value

    def all_figures(self) -> dict[str, Figure]:
        """Own figures and those of the parts; names are unique across a result."""
        figures = dict(self.figures)
        for part in self.parts:
            for name, figure in part.all_figures().items():
                assert name not in figures, f"figure {name} is in two parts of {self.method}"
                figures[name] = figure
        return figures

    def all_notes(self) -> list[str]:
        """The verdict, then the notes, own and of the parts, without repeats."""
        own = [*self.verdict, *self.notes]
        return list(dict.fromkeys([*own, *(note for part in self.parts for note in part.all_notes())]))

    def summary(self) -> dict[str, Any]:
        """The content of summary.json."""
        figures = {
            name: {"value": _finite(f.value), "unit": f.unit, "n": f.n, "low": _finite(f.low), "high": _finite(f.high)}
            for name, f in self.all_figures().items()
        }
        return {
            "method": self.method,
            "figures": figures,
            "provenance": dict(self.provenance),
            "notes": self.all_notes(),
        }

    def save(self, folder: str | Path) -> Path:
        """Write summary.json and table.parquet (and the parts, in sub-folders) into folder; returns the folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(self.table, folder / "table.parquet", compression="zstd")
        text = json.dumps(self.summary(), indent=2, ensure_ascii=False, allow_nan=False)
        (folder / "summary.json").write_text(text + "\n", encoding="utf-8")
        for part in self.parts:
            part.save(folder / part.method.split()[-1])
        return folder

    def with_provenance(self, **more: Any) -> Result:
        """The same result with more provenance."""
        return replace(self, provenance={**self.provenance, **more})

    def to_pandas(self) -> Any:
        """The table as a pandas frame."""
        return self.table.to_pandas()

    def _repr_html_(self) -> str:
        from html import escape

        rows = "".join(
            f"<tr><td>{escape(name)}</td><td>{escape(show(figure))}</td><td>{figure.n}</td></tr>"
            for name, figure in self.all_figures().items()
        )
        verdict = "".join(f"<p>{escape(sentence)}</p>" for sentence in self.verdict)
        return f"<h3>{escape(self.method)}</h3>{verdict}<table><tr><th>figure</th><th>value</th><th>n</th></tr>{rows}</table>"


def show(figure: Figure) -> str:
    """A figure as people read it: value, interval and unit ('0.057 [0.051, 0.063] nats')."""
    interval = "" if figure.low is None or figure.high is None else f" [{_short(figure.low)}, {_short(figure.high)}]"
    return f"{_short(figure.value)}{interval} {figure.unit}".strip()


def _short(value: float | int | bool | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _finite(value: Any) -> Any:
    """Infinity has no JSON number: it is written as the string 'inf' or '-inf'."""
    return str(value) if isinstance(value, float) and math.isinf(value) else value
