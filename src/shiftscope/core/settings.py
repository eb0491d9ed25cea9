"""Settings that a run does not read: refused, so that none is silently ignored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any


def unread(given: Any, default: Any, reader: str, *names: str, but: Sequence[str] = ()) -> None:
    """Refuse what this run would not read: settings of a dataclass that have another value than by default.

    given: the settings; default: the same dataclass (or its class) with the defaults. reader: what would read them, in words,
    such as '--watch'. names: which fields (none given means all). but: fields that are read all the same.
    Raises ValueError naming the first of them, with what would read it.
    """
    wanted = [field.name for field in fields(given) if (not names or field.name in names) and field.name not in but]
    refuse(reader, **{name: (getattr(given, name), getattr(default, name)) for name in wanted})


def refuse(reader: str, **given: tuple[Any, Any]) -> None:
    """The same for plain settings: name=(value, default)."""
    for name, (value, default) in given.items():
        if value is default or value == default:
            continue
        shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
        what = shown if isinstance(shown, str | int | float | Path) else "given"
        raise ValueError(f"{name} is {what}, which only {reader} reads: use that, or leave {name} out")
