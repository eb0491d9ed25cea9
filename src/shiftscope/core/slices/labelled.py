"""The items of a collection: an id and a text each, perhaps with a class, and with whether something went wrong on it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shiftscope.core import corpus

COLUMNS = ("text", "caption", "prompt")  # where the text stands, the first that a record has


@dataclass(frozen=True)
class Reading:
    """Which columns of a record are read. column: holds the text (default: text, caption or prompt). label: holds the class of
    an item; slices are then made within each class. failed: holds 1 or true where something went wrong on it, 0 or false
    where not, nothing where it was not measured. limit: only the first records.
    """

    column: str | None = None
    label: str | None = None
    failed: str | None = None
    limit: int | None = None


@dataclass(frozen=True)
class Item:
    """One record. label: its class or None; failed: None where it was not measured."""

    id: str
    text: str
    label: str | None = None
    failed: bool | None = None


def read(source: str | Path | Iterable[Mapping[str, Any]], reading: Reading = Reading()) -> list[Item]:
    """Read a jsonl, parquet or txt file, or records in memory.

    Raises ValueError, naming the record, for one without text, without its class, with an outcome that is neither 0 nor 1,
    for an id that comes twice and for fewer than two records.
    """
    name = str(source) if isinstance(source, str | Path) else "the given records"
    items: list[Item] = []
    seen: dict[str, int] = {}
    for number, record in enumerate(corpus.records(source, reading.limit)):
        item = _item(record, number, reading, f"{name}, record {number + 1}")
        if seen.setdefault(item.id, number) != number:
            raise ValueError(
                f"{name}: the id {item.id!r} comes twice, in records {seen[item.id] + 1} and {number + 1}: ids must be unique"
            )
        items.append(item)
    if len(items) < 2:
        raise ValueError(f"{name} has {len(items)} records: subpopulations need at least two texts")
    return items


def _item(record: Any, number: int, reading: Reading, where: str) -> Item:
    if not isinstance(record, Mapping):
        raise ValueError(f"{where} is a {type(record).__name__}, not an object with a text")
    names = (reading.column,) if reading.column else COLUMNS
    text = next((record[name] for name in names if record.get(name) is not None), None)
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{where} has no text under {' or '.join(names)} (found: {', '.join(record) or 'nothing'})")
    label = None if reading.label is None else record.get(reading.label)
    if reading.label is not None and (label is None or not str(label).strip()):
        raise ValueError(f"{where} has no class under {reading.label} (found: {', '.join(record)})")
    failed = None
    if reading.failed is not None:
        if reading.failed not in record:
            raise ValueError(f"{where} has no column {reading.failed} (found: {', '.join(record)})")
        failed = record[reading.failed]
        if failed is not None and failed not in (0, 1):
            raise ValueError(f"{where} has {reading.failed} = {failed!r}: it must be 1 (or true), 0 (or false) or null")
    return Item(
        str(number if record.get("id") is None else record["id"]),
        text,
        None if label is None else str(label),
        None if failed is None else bool(failed),
    )
