"""Prompts and answers from jsonl, parquet or plain text, rendered into token ids for one or two models.

A record has `prompt` (text, or a list of chat messages under `messages`), and optionally `answer`, `reference` and `id`.
Source of the zero-shot frame: arXiv 2312.01552 (structure of the published prompt; the words are ours).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from shiftscope.core.checkpoints import Checkpoint

Template = Literal["plain", "chat", "frame"]
FRAME = "# Query:\n```\n{prompt}\n```\n\n# Answer:\n```\n"


@dataclass(frozen=True)
class Text:
    """One record of a corpus. prompt: what is asked; answer: a given answer or None; reference: for a verifier."""

    text: int
    id: str
    prompt: str
    answer: str | None = None
    reference: str | None = None
    messages: tuple[Mapping[str, str], ...] = ()


def read(source: str | Path | Iterable[Mapping[str, Any]], limit: int | None = None) -> list[Text]:
    """Read a corpus: a jsonl, parquet or txt file (one prompt per line), or records already in memory.

    Raises ValueError naming file and line for anything malformed, and for a corpus without records.
    """
    name = str(source) if isinstance(source, str | Path) else "the given records"
    texts = []
    for number, record in enumerate(records(source, limit)):
        texts.append(_text(number, record, f"{name}, record {number + 1}"))
    if not texts:
        raise ValueError(f'{name} has no records: give at least one line such as {{"prompt": "…", "answer": "…"}}')
    return texts


def records(source: str | Path | Iterable[Mapping[str, Any]], limit: int | None = None) -> Iterator[Any]:
    """The records of a jsonl, parquet or txt file, or those already in memory, as they are; raises like `read`.

    limit: only so many of the first, at least 1.
    """
    check_limit(limit)
    return itertools.islice(_records(source), limit)


def check_limit(limit: int | None) -> None:
    """Raises ValueError for a limit that leaves nothing to read."""
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}: it must be at least 1; leave it out to read everything")


def _records(source: str | Path | Iterable[Mapping[str, Any]]) -> Iterator[Any]:
    if not isinstance(source, str | Path):
        yield from source
        return
    path = Path(source)
    if not path.is_file():
        raise ValueError(f"{source} is not a file: give texts as jsonl, parquet or txt")
    if path.suffix == ".parquet":
        yield from _parquet(path)
        return
    if path.suffix not in (".jsonl", ".json", ".txt"):
        raise ValueError(f"{source} ends in {path.suffix or 'nothing'}: texts are read from .jsonl, .parquet or .txt")
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        if path.suffix == ".txt":
            yield {"prompt": line}
            continue
        try:
            yield json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{source}, line {number} is not JSON ({error.msg}): each line must be one JSON object"
            ) from error


def _lines(path: Path) -> Iterator[str]:
    """The lines of a file one by one; only a line feed ends a line, since JSON may hold U+2028 and its like unescaped."""
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                yield line.decode().rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path}, line {number} is not UTF-8 text (byte {error.start} of the line): save it as UTF-8"
                ) from error


def _parquet(path: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is not a parquet file: {error}") from error
    for batch in file.iter_batches():
        yield from batch.to_pylist()


def _text(number: int, record: Any, where: str) -> Text:
    if not isinstance(record, Mapping):
        raise ValueError(f"{where} is a {type(record).__name__}, not an object with a prompt")
    messages = record.get("messages") or (record.get("prompt") if isinstance(record.get("prompt"), list) else None)
    prompt = record.get("prompt") if messages is None else messages[-1].get("content") if messages else None
    if not isinstance(prompt, str):
        raise ValueError(f"{where} has no `prompt` text (found: {', '.join(record) or 'nothing'})")
    for name in ("answer", "reference"):
        if not isinstance(record.get(name), str | int | float | None):
            raise ValueError(f"{where} has a `{name}` that is a {type(record[name]).__name__}: it must be text")
    answer, reference = record.get("answer"), record.get("reference")
    return Text(
        number,
        str(record.get("id", number)),
        prompt,
        None if answer is None else str(answer),
        None if reference is None else str(reference),
        tuple(messages or ()),
    )


def context_ids(checkpoint: Checkpoint, text: Text, template: Template = "plain") -> tuple[int, ...]:
    """The prompt as token ids that an answer can follow.

    plain: the prompt as it is (with the tokenizer's own BOS). chat: the tokenizer's chat template with the assistant's
    turn opened. frame: the zero-shot frame for base models. Raises ValueError where there is no chat template.
    """
    tokenizer = checkpoint.tokenizer
    if template == "chat":
        if not tokenizer.chat_template:
            raise ValueError(f"{checkpoint.name} has no chat template: use --template plain or --template frame")
        messages = [dict(message) for message in text.messages] or [{"role": "user", "content": text.prompt}]
        rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return tuple(tokenizer(rendered, add_special_tokens=False)["input_ids"])
    prompt = FRAME.format(prompt=text.prompt) if template == "frame" else text.prompt
    ids = tuple(tokenizer(prompt)["input_ids"])
    eos = tokenizer.eos_token_id
    if len(ids) > 1 and ids[-1] == eos and not prompt.endswith(tokenizer.eos_token):
        ids = ids[:-1]  # some tokenizers close every text; an answer must be able to follow
    return ids or ((tokenizer.bos_token_id,) if tokenizer.bos_token_id is not None else ())


def answer_ids(tokenizer: PreTrainedTokenizerBase, answer: str) -> tuple[int, ...]:
    """A given answer as token ids, without special tokens."""
    return tuple(tokenizer(answer, add_special_tokens=False)["input_ids"])


def boundary_mismatches(checkpoint: Checkpoint, texts: Sequence[Text]) -> int:
    """How many texts would be cut differently if prompt and answer were tokenised together instead of apart."""
    tokenizer = checkpoint.tokenizer
    given = [text for text in texts if text.answer is not None]
    return sum(
        tuple(tokenizer(text.prompt + (text.answer or ""))["input_ids"])
        != (*tokenizer(text.prompt)["input_ids"], *answer_ids(tokenizer, text.answer or ""))
        for text in given
    )


def pieces(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int]) -> dict[int, str]:
    """Every token id as a reader should see it: its text, leading space included; bytes that are no character as <0xNN>."""
    unique = sorted(set(ids))
    return {token: _piece(tokenizer, token) for token in unique}


def _piece(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    raw: str | None = tokenizer.convert_ids_to_tokens(token)  # type: ignore[assignment]
    if raw is None:
        return f"<id {token}>"
    decoded = str(tokenizer.decode([token], clean_up_tokenization_spaces=False))
    if "\ufffd" in decoded:
        return "".join(f"<0x{byte:02X}>" for byte in _bytes_of(raw)) or raw
    if raw.startswith("▁") and not decoded.startswith(" "):
        return " " + decoded
    return decoded or raw


def _bytes_of(raw: str) -> bytes:
    """The bytes that a byte-level BPE token stands for (its printable alphabet undone); empty for other tokens."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    back = {character: byte for byte, character in bytes_to_unicode().items()}
    return bytes(back[character] for character in raw) if all(character in back for character in raw) else b""
