"""Documents with a domain and a language, from jsonl, parquet or txt files, or from records in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shiftscope.core import answers, corpus

Corpora = Sequence[str] | Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Document:
    """A text with the domain and the language that its record names, None where it names none."""

    text: str
    domain: str | None = None
    language: str | None = None


def documents(texts: Corpora, limit: int | None = None) -> list[Document]:
    """The documents of jsonl, parquet or txt files (one per line), or of records; empty texts are left out.

    texts: a record has `text`, or `prompt` with or without `answer` (then they are one text), and optionally `domain` and
    `language`; of several files, each is the domain of the records in it that name none. limit: of each file.
    Raises ValueError for a malformed record, and where there is no text at all.
    """
    sources: Sequence[Any] = [texts] if isinstance(texts, str | Path) else texts
    files = all(isinstance(source, str | Path) for source in sources)
    if not files:
        sources = [texts]
    found = []
    for source in sources:
        name = Path(source).stem if files and len(sources) > 1 else None
        for number, record in enumerate(corpus.records(source, limit)):
            found.append(_document(record, f"{source if files else 'the given records'}, record {number + 1}", name))
    if not any(document.text for document in found):
        where = " and ".join(map(str, sources)) if files and sources else "the given records"
        raise ValueError(f'no text in {where}: give at least one record such as {{"text": "…"}}')
    return [document for document in found if document.text]


def _document(record: Any, where: str, domain: str | None) -> Document:
    if not isinstance(record, Mapping):
        raise ValueError(f"{where} is a {type(record).__name__}, not an object with a text")
    parts = [record.get("text")] if "text" in record else [record.get("prompt"), record.get("answer") or ""]
    if not all(isinstance(part, str) for part in parts):
        raise ValueError(f"{where} has no text in `text` or `prompt` (found: {', '.join(record) or 'nothing'})")
    text = "".join(map(str, parts))
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"{where} holds half of a surrogate pair, which is no character: save the text as UTF-8")
    own, language = record.get("domain"), record.get("language")
    return Document(text, domain if own is None else str(own), None if language is None else str(language))


def identified(texts: Corpora) -> list[Any]:
    """What corpora they were, by file name and hash."""
    if isinstance(texts, str | Path) or not all(isinstance(source, str | Path) for source in texts):
        return [answers.identified(texts)]  # type: ignore[arg-type]
    return [answers.identified(str(source)) for source in texts]
