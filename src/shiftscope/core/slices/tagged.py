"""Tagged items: slices from scene graphs, published pickles of slices, tag columns of any records, or patterns in texts.

Scene graphs: GQA (`{image: {objects: {id: {name, attributes}}, location, weather}}`) and Visual Genome (a list of
`{image_id, objects: [{names}]}`). Every ordered pair of distinct object names in an image makes the slice a(b), and a
location or weather w the slice a(w). Source: arXiv 2202.06523, section 3, and its published files.
Pickles are opened by an unpickler that makes sets, lists and dictionaries only: nothing in a file is ever called.
"""

from __future__ import annotations

import io
import json
import pickle
import re
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shiftscope.core import corpus
from shiftscope.core.settings import unread
from shiftscope.core.slices import slices
from shiftscope.core.slices.slices import SliceTable

Source = str | Path | Mapping[str, Any] | Sequence[Mapping[str, Any]]
PLAIN = {set: "set", frozenset: "frozenset", list: "list", dict: "dict"}
ALLOWED = {(module, name): kind for kind, name in PLAIN.items() for module in ("builtins", "__builtin__")} | {
    ("collections", "defaultdict"): defaultdict,
    ("collections", "OrderedDict"): OrderedDict,
}
PLACES = ("location", "weather")


@dataclass(frozen=True)
class Tagging:
    """Where an item's class and tags stand.

    tags: columns of records with tags in them (a value, a list of values, or a mapping); with several columns a tag is
    named column=value. subject: column that holds the class (or several); without one all items are of the class `all`. pairs:
    every tag of an item is a class too, with the item's other tags as contexts, as in scene graphs. id: column that names
    an item, its number where a record has none. text: column with the item's text, for patterns. patterns: name=regex
    conditions on the text that are tags as well. attributes: of scene graphs read a(attribute) instead of a(other object).
    """

    tags: tuple[str, ...] = ("tags",)
    subject: str | None = None
    pairs: bool = False
    id: str = "id"
    text: str = "text"
    patterns: tuple[str, ...] = ()
    attributes: bool = False

    def __post_init__(self) -> None:
        if self.pairs and self.subject:
            raise ValueError(
                f"pairs makes every tag a class, and subject {self.subject!r} names one: give only one of them"
            )

    def compiled(self) -> dict[str, re.Pattern[str]]:
        """Name → pattern. Raises ValueError for one that is not name=regex, or is no regular expression."""
        found = {}
        for pattern in self.patterns:
            name, separator, expression = pattern.partition("=")
            if not name or not separator or not expression:
                raise ValueError(f"the pattern {pattern!r} is not of the form name=regex")
            try:
                found[name] = re.compile(expression)
            except re.error as error:
                raise ValueError(f"the pattern {pattern!r} is no regular expression: {error}") from error
        return found


def read(source: Source, tagging: Tagging = Tagging()) -> SliceTable:
    """Slices of a scene-graph file (.json), a published pickle (.pkl), a slice table (parquet with slice and id), records
    (jsonl, json, parquet), or of records or name → ids in memory.

    Raises ValueError, in one sentence, for an unreadable file, an id that comes twice, and items without any tag.
    """
    if isinstance(source, str | Path):
        path = Path(source)
        if not path.is_file():
            raise ValueError(f"{source} is not a file: give tagged items as .jsonl, .json, .parquet or .pkl")
        if path.suffix in (".pkl", ".pickle"):
            _check_read(tagging, "a file of tagged records")
            return _named_sets(unpickled(path), str(path))
        content = _json(path) if path.suffix == ".json" else None
        if content is None:
            return _of_records(list(corpus.records(path)), tagging, str(path))
        return _of_content(content, tagging, str(path))
    return _of_content(source, tagging, "the given items")


def unpickled(path: Path) -> Any:
    """The sets, lists, dictionaries, texts and numbers of a pickle.

    Raises ValueError naming any other object that the file asks for (nothing is made or called), or what is broken.
    """
    try:
        return _Plain(io.BytesIO(path.read_bytes())).load()
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} cannot be read as a pickle of sets and dictionaries: {error}") from error
    except (EOFError, LookupError, AttributeError, TypeError, ValueError, OverflowError, MemoryError) as error:
        raise ValueError(f"{path} is broken or no pickle ({type(error).__name__}: {error})") from error


class _Plain(pickle.Unpickler):
    """An unpickler that knows containers only."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, and only {', '.join(sorted({n for _, n in ALLOWED}))} are made"
            )
        return ALLOWED[module, name]


# ---- name -> ids, id -> names, attribute type -> subject -> value -> ids ----------------------------------------------
def _named_sets(content: Any, where: str) -> SliceTable:
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{where} holds a {type(content).__name__}: slices are a mapping of name to ids, not empty")
    kinds = {type(value).__name__ for value in content.values()}
    if all(isinstance(value, set | frozenset) for value in content.values()):
        return SliceTable.of(content)
    if all(isinstance(value, list | tuple) for value in content.values()):
        groups = {str(one): [str(group) for group in value] for one, value in content.items()}
        if any(slices.NAME.fullmatch(group) for value in groups.values() for group in value):  # id -> names
            return slices.built(list(groups), ([slices.parsed(name) for name in value] for value in groups.values()))
        return SliceTable.of(content)
    if all(isinstance(value, Mapping) for value in content.values()):
        return SliceTable.of(dict(_structured(content, where)))
    raise ValueError(f"{where} maps names to {', '.join(sorted(kinds))}: slices are sets or lists of ids, all alike")


def _structured(content: Mapping[str, Any], where: str) -> Iterator[tuple[str, Iterable[Any]]]:
    """subject(value) → ids of {attribute type: {subject: {value: ids}}}; a value of two types is their union."""
    found: dict[str, set[Any]] = {}
    for kind, subjects in content.items():
        for subject, values in subjects.items():
            if not isinstance(values, Mapping):
                raise ValueError(f"{where}: {kind!r} → {subject!r} is a {type(values).__name__}, not value → ids")
            for value, ids in values.items():
                found.setdefault(slices.named(str(subject), str(value)), set()).update(ids)
    yield from found.items()


# ---- scene graphs -----------------------------------------------------------------------------------------------------
def _json(path: Path) -> Any:
    """A whole JSON file, or None where it is one object a line. Raises ValueError for a key that comes twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for place, name in enumerate(names) if name in names[:place])
            raise ValueError(f"{path} has the key {twice!r} twice in one object: ids must be unique")
        return found

    try:
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            return None
        raise ValueError(f"{path} is not JSON ({error.msg}, line {error.lineno})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8") from error


def _of_content(content: Any, tagging: Tagging, where: str) -> SliceTable:
    if isinstance(content, Mapping) and content and all(_is_scene(one) for one in content.values()):
        graphs = [(str(one), graph) for one, graph in content.items()]
    elif isinstance(content, Mapping):
        _check_read(tagging, "a file of tagged records")
        return _named_sets(content, where)
    elif not isinstance(content, Sequence) or isinstance(content, str):
        raise ValueError(
            f"{where} holds a {type(content).__name__}: give scene graphs, records, or a mapping name → ids"
        )
    elif content and all(_is_scene(one) and "image_id" in one for one in content):
        graphs = [(str(one["image_id"]), one) for one in content]
    else:
        return _of_records(content, tagging, where)
    _check_read(tagging, "a file of tagged records", "attributes")
    read_pairs = _attributes if tagging.attributes else _objects
    return slices.built([one for one, _ in graphs], (list(read_pairs(one, graph)) for one, graph in graphs))


def _check_read(tagging: Tagging, reader: str, *but: str) -> None:
    """Raises ValueError for a setting that slices with their members, or scene graphs, do not need; outcomes read the id."""
    unread(tagging, Tagging(), reader, but=("id", *but))


def _is_scene(graph: Any) -> bool:
    return isinstance(graph, Mapping) and isinstance(graph.get("objects", graph.get("attributes")), Mapping | list) and (
        "objects" in graph or "image_id" in graph
    )  # fmt: skip


def _objects(image: str, graph: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    names = {name for found, _ in _things(image, graph) for name in found}
    contexts = names | {str(graph[place]) for place in PLACES if graph.get(place)}
    return ((name, context) for name in names for context in contexts if name != context)


def _attributes(image: str, graph: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    return ((name, one) for names, attributes in _things(image, graph) for name in names for one in attributes)


def _things(image: str, graph: Mapping[str, Any]) -> Iterator[tuple[list[str], list[str]]]:
    """Names and attributes of every object of an image. Raises ValueError for an object without a name."""
    things = graph.get("objects", graph.get("attributes"))
    for number, thing in things.items() if isinstance(things, Mapping) else enumerate(things or ()):
        names = thing.get("names", [thing["name"]] if "name" in thing else []) if isinstance(thing, Mapping) else []
        if not names:
            raise ValueError(f"image {image}, object {number} has no name: a scene graph names every object")
        yield [str(name) for name in names], [str(one) for one in thing.get("attributes") or ()]


# ---- records with tag columns -----------------------------------------------------------------------------------------
def _of_records(records: Sequence[Any], tagging: Tagging, where: str) -> SliceTable:
    if not records:
        raise ValueError(f"{where} has no records: give at least one tagged item")
    for number, record in enumerate(records):
        if not isinstance(record, Mapping):
            raise ValueError(f"{where}, record {number + 1} is a {type(record).__name__}, not an object with tags")
    columns = list(dict.fromkeys(name for record in records for name in record))
    unread(tagging, Tagging(), "a file of scene graphs", "attributes")
    if sorted(columns) == ["id", "slice"]:
        _check_read(tagging, "a file of tagged records")
        rows: dict[str, set[str]] = {}
        for record in records:
            rows.setdefault(str(record["slice"]), set()).add(str(record["id"]))
        return SliceTable.of(rows)
    if not tagging.patterns:
        unread(tagging, Tagging(), "--patterns", "text")
    patterns = tagging.compiled()
    wanted = list(tagging.tags) if tagging.tags != ("tags",) or not patterns else []  # patterns need no tag column
    wanted += [name for name in (tagging.subject, tagging.text if patterns else None) if name]
    for name in wanted:
        if name not in columns:
            raise ValueError(f"{where} has no column {name!r}: it has {', '.join(columns)}; name the columns with tags")
    ids = [str(record.get(tagging.id, number)) for number, record in enumerate(records)]
    found = [list(_pairs(record, tagging, patterns)) for record in records]
    if tagging.pairs and not any(found):
        raise ValueError(f"none of the {len(ids)} items has two tags, and pairs needs two: name more columns with tags")
    return slices.built(ids, found)


def _pairs(
    record: Mapping[str, Any], tagging: Tagging, patterns: Mapping[str, re.Pattern[str]]
) -> Iterator[tuple[str, str]]:
    found: dict[str, None] = {}
    for column in tagging.tags:
        prefix = f"{column}=" if len(tagging.tags) > 1 else ""
        found |= dict.fromkeys(prefix + tag for tag in values(record.get(column), column))
    if patterns:
        text = str(record.get(tagging.text) or "")
        found |= {name: None for name, pattern in patterns.items() if pattern.search(text)}
    if tagging.pairs:
        return ((one, other) for one in found for other in found if one != other)
    subjects = values(record.get(tagging.subject), tagging.subject) if tagging.subject else [slices.ALL]
    return ((subject, tag) for subject in subjects for tag in found)


def values(value: Any, column: str) -> list[str]:
    """The tags in one field: a value, several, or a mapping as name=value; none for a missing or empty one.

    Raises ValueError for anything else.
    """
    if value is None or value == "" or value != value:  # NaN is what parquet from a data frame has where nothing is
        return []
    if isinstance(value, bool):
        return [str(value).lower()]
    if isinstance(value, str | int | float):
        return [str(value)]
    if isinstance(value, Mapping):
        return [f"{name}={tag}" for name, own in value.items() for tag in values(own, column)]
    if isinstance(value, list | tuple | set | frozenset):
        return [tag for own in value for tag in values(own, column)]
    raise ValueError(f"the column {column!r} holds a {type(value).__name__}: tags are texts, numbers, or lists of them")
