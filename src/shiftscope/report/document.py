"""Document: a result as one self-contained HTML page that needs no network.

The page's texts, tokens and chart rows enter as JSON in one data element; only our own scripts may run (the content
security policy names them by hash), so that nothing a model wrote can become markup or code.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2
import pyarrow as pa

from shiftscope.core.result import Figure, Panel, Result
from shiftscope.report import charts, formats, texts

HERE = Path(__file__).parent
TABLE_ROWS = 200
LONG_CELL = 60  # characters of a text that a table of half the page's width would cut
KEY_FIGURES = 8
TAIL = re.compile(r"_(p\d+(_\d+)?|max)$")
HASH = re.compile(r"[0-9a-f]{40,64}")


def write(result: Result, path: str | Path) -> Path:
    """Write the page of a result to path (folders are made); returns the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(result), encoding="utf-8", newline="\n")
    return path


def page(result: Result) -> str:
    """The HTML page of a result: verdict, key figures, token heat maps, panels, notes, provenance and command.

    Raises: ValueError when a `texts` panel lacks a column it needs.
    """
    data: dict[str, Any] = {
        "maps": [],
        "charts": [],
        "themes": {mode: charts.theme(mode) for mode in ("light", "dark")},
    }
    sections = [_section(part, i, data) for i, part in enumerate(_sections(result))]
    scripts = [(HERE / "page.js").read_text("utf-8")]
    if data["maps"]:
        scripts.append((HERE / "heatmap.js").read_text("utf-8"))
    if data["charts"]:
        scripts.insert(0, _bundle())
    pair = formats.pair(result)
    data["pair"] = pair if len(pair) == 2 else ["base", "tuned"]
    provenance = _provenance(result)
    return _template().render(
        method=result.method,
        pair=pair,
        verdict=list(result.verdict) or [sentence for part in result.parts for sentence in part.verdict[:1]],
        tiles=(tiles := [_tile(name, figure) for name, figure in _key_figures(result)]),
        columns=next((n for n in (4, 3) if len(tiles) % n in (0, n - 1)), 4),
        sections=sections,
        parted=len(sections) > 1,
        notes=_notes(result),
        command=str(provenance.pop("command", "")),
        provenance=_groups(provenance),
        css=(HERE / "page.css").read_text("utf-8"),
        data=texts.script_json(data),
        scripts=scripts,
        policy=" ".join(f"'sha256-{_hash(script)}'" for script in scripts),
    )


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("page.html.jinja")


@cache
def _bundle() -> str:
    return charts.bundle()


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _sections(result: Result) -> Iterator[Result]:
    """The result and its parts, in order, those that have something to show."""
    if result.panels or result.figures or not result.parts:
        yield result
    for part in result.parts:
        yield from _sections(part)


def _section(result: Result, index: int, data: dict[str, Any]) -> dict[str, Any]:
    ordered = sorted(result.panels, key=lambda panel: panel.kind != "texts")
    panels = [_panel(panel, data) for panel in ordered]
    for wide, run in [(wide, list(run)) for wide, run in groupby(panels, key=lambda panel: panel["wide"])]:
        if not wide and len(run) % 2:
            run[-1]["wide"] = True  # no half of a line stays empty
    return {
        "id": f"part-{index}",
        "title": formats.label(result.method.split()[-1]) if result.method else "Result",
        "method": result.method,
        "verdict": list(result.verdict) if index else [],  # the first stands at the top of the page already
        "figures": [_tile(name, figure) for name, figure in result.figures.items()],
        "panels": panels,
    }


def _panel(panel: Panel, data: dict[str, Any]) -> dict[str, Any]:
    """What the template needs of a panel; rows of charts and heat maps go into `data`."""
    about = {"title": panel.title, "caption": panel.caption, "kind": panel.kind, "note": "", "wide": False}
    if panel.kind == "texts":
        packed = texts.pack(panel)
        data["maps"].append(packed)
        shown = len(packed["texts"])
        if shown < packed["total_texts"]:
            total = f"{packed['total_texts']:,}"
            about["note"] = f"Shown: {shown:,} of {total} texts, evenly spaced; the figures are from all of them."
        return about | {"index": len(data["maps"]) - 1, "wide": True}
    if panel.kind == "table":
        if panel.table.num_rows > TABLE_ROWS:
            about["note"] = f"The first {TABLE_ROWS} of {panel.table.num_rows:,} rows."
        cells = _table(panel.table.slice(0, TABLE_ROWS))
        return about | cells | {"wide": _is_wide(cells)}
    data["charts"].append(charts.specification(panel))
    return about | {"kind": "chart", "note": charts.left_out(panel), "index": len(data["charts"]) - 1}


def _is_wide(table: Mapping[str, Any]) -> bool:
    """Whether a table needs the page's whole width: many columns, or a long text in one beside others."""
    longest = max((len(text) for row in table["rows"] for text, _ in row), default=0)
    return len(table["heads"]) > 5 or (len(table["heads"]) > 1 and longest > LONG_CELL)


def _table(table: pa.Table) -> dict[str, Any]:
    """Heads (title, is it numeric) and rows of (text, value to sort by) for an HTML table."""
    kinds = [field.type for field in table.schema]
    numeric = [pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in kinds]
    heads = [(formats.label(name), is_number) for name, is_number in zip(table.column_names, numeric, strict=True)]
    rows = [
        [(formats.number(cell), "" if cell is None else cell) for cell in row.values()] for row in table.to_pylist()
    ]
    return {"heads": heads, "rows": rows}


def _tile(name: str, figure: Figure) -> dict[str, Any]:
    """A figure for the page; a share also as a bar with its interval, in percent of the track."""
    track = None
    if figure.unit == "share" and isinstance(figure.value, float) and 0 <= figure.value <= 1:
        low, high = (
            (figure.low, figure.high)
            if figure.low is not None and figure.high is not None
            else (figure.value, figure.value)
        )
        track = {"value": 100 * figure.value, "low": 100 * max(low, 0), "width": 100 * (min(high, 1) - max(low, 0))}
    return {
        "name": name,
        "label": formats.label(name, figure.unit),
        "value": formats.value(figure).removesuffix(f" {figure.unit}"),
        "unit": figure.unit if formats.value(figure).endswith(f" {figure.unit}") else "",
        "interval": formats.interval(figure),
        "n": formats.number(figure.n),
        "track": track,
    }


def _key_figures(result: Result) -> list[tuple[str, Figure]]:
    """The figures at the top: the result's own first ones (quantiles stand in the full list), then its parts'."""
    own = [item for item in result.figures.items() if not TAIL.search(item[0])]
    if not result.parts:
        return own[:KEY_FIGURES]
    each = 1 if own else max(2, KEY_FIGURES // len(result.parts))
    of_parts = [item for part in result.parts for item in _key_figures(part)[:each]][:KEY_FIGURES]
    return own[: KEY_FIGURES - len(of_parts)] + of_parts


def _notes(result: Result) -> list[str]:
    """All notes, without the verdicts that stand elsewhere on the page."""
    said = {sentence for part in _walk(result) for sentence in part.verdict}
    return [note for note in result.all_notes() if note not in said]


def _walk(result: Result) -> Iterator[Result]:
    yield result
    for part in result.parts:
        yield from _walk(part)


def _provenance(result: Result) -> dict[str, Any]:
    """The result's own provenance, or the first part's that has one."""
    return next((dict(part.provenance) for part in _walk(result) if part.provenance), {})


def _groups(provenance: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """Provenance as titled groups of (name, text, full text); what is None is left out, a hash is cut in the text."""
    grouped = {title: entry for title, entry in provenance.items() if isinstance(entry, Mapping)}
    single = {name: entry for name, entry in provenance.items() if name not in grouped}
    groups = [*grouped.items(), ("run", single)]
    return [(title, lines) for title, entries in groups if (lines := list(_flat(entries)))]


def _flat(entries: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Nested entries as lines of (path, text, full text)."""
    for name, entry in entries.items():
        path = f"{prefix}{name}"
        if isinstance(entry, Mapping):
            yield from _flat(entry, f"{path} › ")
        elif entry is not None:
            full = ", ".join(map(str, entry)) if isinstance(entry, (list, tuple)) else str(entry)
            full = full or "–"
            yield path, f"{full[:12]}…" if HASH.fullmatch(full) else full, full
