"""Log-probabilities that a trainer or an inference engine wrote down: token ids and one number per token, per record.

A record of the jsonl or parquet file has the answer's `ids` and their `logprobs` (nats), and what they follow: `prompt_ids`
or a `prompt`. Without either, the leading tokens whose log-probability is null are the prompt. Other names in use are read
too: see NAMES.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shiftscope.core import corpus
from shiftscope.core.checkpoints import Checkpoint
from shiftscope.core.corpus import Template, Text
from shiftscope.core.paired import PairedText
from shiftscope.core.scorers.served import LARGEST

NAMES = {
    "ids": ("ids", "answer_ids", "completion_ids", "response_ids", "output_ids", "token_ids"),
    "logprobs": ("logprobs", "logps", "log_probs", "token_logprobs", "completion_logprobs", "response_logprobs"),
    "prompt_ids": ("prompt_ids", "prompt_token_ids", "input_ids", "context_ids"),
}


@dataclass(frozen=True)
class Logged:
    """The texts of a file, the same in ids, and the log-probabilities of each answer in nats."""

    texts: Sequence[Text]
    items: Sequence[PairedText]
    logps: Sequence[tuple[float, ...]]


def read(path: str | Path, checkpoint: Checkpoint, *, template: Template = "plain", limit: int | None = None) -> Logged:
    """Read such a file for a checkpoint.

    template: how a `prompt` that is given as text is rendered. limit: only the first records.
    Raises ValueError naming the record: lists of unequal length, ids outside the vocabulary, what is no log-probability.
    """
    texts, items, logps = [], [], []
    for number, record in enumerate(corpus.records(path, limit)):
        where = f"{path}, record {number + 1}"
        context, answer, values = _record(record, checkpoint, template, where)
        prompt, text = (str(checkpoint.tokenizer.decode(list(ids))) for ids in (context, answer))
        texts.append(Text(number, str(record.get("id", number)), prompt, text))
        items.append(PairedText(number, context, context, answer))
        logps.append(values)
    if not items:
        raise ValueError(f"{path} has no records: each needs ids, logprobs and prompt_ids")
    return Logged(texts, items, logps)


def _record(
    record: Any, checkpoint: Checkpoint, template: Template, where: str
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...]]:
    """Context ids, answer ids and the answer's log-probabilities."""
    if not isinstance(record, Mapping):
        raise ValueError(f"{where} is a {type(record).__name__}, not an object with ids and logprobs")
    ids, values = (_list(record, name, where) for name in ("ids", "logprobs"))
    if ids is None or values is None:
        raise ValueError(f"{where} has no ids or no logprobs (found: {', '.join(record) or 'nothing'})")
    if len(ids) != len(values):
        raise ValueError(f"{where} has {len(ids)} ids and {len(values)} log-probabilities: they do not fit")
    context = _list(record, "prompt_ids", where)
    if context is None and isinstance(record.get("prompt"), str):
        context = list(corpus.context_ids(checkpoint, Text(0, "", record["prompt"]), template))
    if context is None:
        cut = next((place for place, value in enumerate(values) if value is not None), len(values))
        context, ids, values = ids[:cut], ids[cut:], values[cut:]
        if not context:
            raise ValueError(
                f"{where} says nothing of what its ids follow: give prompt_ids, a prompt, or leading nulls"
            )
    size = checkpoint.vocabulary_size
    for token in (*context, *ids):
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < size:
            raise ValueError(
                f"{where} has the id {token!r}, but {checkpoint.name} has ids 0 to {size - 1}: its ids are of another tokenizer"
            )
    for value in values:
        number = not isinstance(value, bool) and isinstance(value, int | float) and not math.isnan(value)
        if not number or value > LARGEST:
            raise ValueError(
                f"{where} has {value!r} among its log-probabilities: each must be a number, at most 0 (nats)"
            )
    return tuple(context), tuple(ids), tuple(min(float(value), 0.0) for value in values)


def _list(record: Mapping[str, Any], name: str, where: str) -> list[Any] | None:
    found = [alias for alias in NAMES[name] if record.get(alias) is not None]
    if not found:
        return None
    if not isinstance(record[found[0]], list):
        raise ValueError(f"{where} has {found[0]} of type {type(record[found[0]]).__name__}: it must be a list")
    return record[found[0]]
