"""Texts written by a masked model under a decoder, one row each: what was written, in which order, and at what cost.

Costs are counted, not timed: network calls, token-forwards (positions computed) and (query, key) pairs of one layer. What
a text would have cost on the whole canvas is worked out from its lengths, so that what was saved can be told apart: ends
that stop a text early, several positions a call, and positions that a window leaves out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from shiftscope.core.corpus import Template, Text
from shiftscope.core.denoising.canvases import canvas_of
from shiftscope.core.denoising.length import Control, Length
from shiftscope.core.denoising.masked_model import MaskedLM
from shiftscope.core.denoising.preservation import Preservation, preserves
from shiftscope.core.denoising.scope import Scope
from shiftscope.core.masked import Canvas, Filling, decode
from shiftscope.core.verifiers import Verifier

ROWS = pa.schema(
    [
        ("text", pa.int32()), ("id", pa.string()), ("sample", pa.int32()), ("prompt", pa.string()),
        ("answer", pa.string()), ("ids", pa.list_(pa.int32())), ("infilled", pa.bool_()),
        ("prompt_tokens", pa.int32()), ("first_tokens", pa.int32()), ("canvas_tokens", pa.int32()),
        ("written_tokens", pa.int32()), ("kept_tokens", pa.int32()), ("stopped", pa.string()),
        ("effective_before_cut", pa.float64()), ("effective_after_cut", pa.float64()), ("calls", pa.int32()),
        ("filled", pa.int32()), ("rows", pa.int64()), ("pairs", pa.int64()), ("refreshes", pa.int32()),
        ("whole_rows", pa.int64()), ("logp_mean_nats", pa.float64()), ("reward", pa.float64()),
        ("position", pa.list_(pa.int32())), ("token", pa.list_(pa.int32())), ("call", pa.list_(pa.int32())),
        ("logp_nats", pa.list_(pa.float64())), ("edit_call", pa.list_(pa.int32())),
        ("edit_tokens", pa.list_(pa.int32())), ("signal_call", pa.list_(pa.int32())),
        ("signal", pa.list_(pa.float64())),
    ]
)  # fmt: skip


@dataclass(frozen=True)
class Decoder:
    """How a masked model writes: what a call fills, what it computes and sees, and how long a text becomes."""

    filling: Filling = field(default_factory=Filling)
    scope: Scope = field(default_factory=Scope)
    length: Length = field(default_factory=Length)

    @property
    def preserves(self) -> Preservation:
        """Whether texts are still samples of the model."""
        return preserves(self.filling, self.scope, self.length)


def suits(model: Any, decoder: Decoder) -> None:
    """Raises ValueError, in one sentence, where the decoder needs what the model does not have.

    model: a masked model, or anything with its `name`, `end_ids` and `windows`.
    """
    if decoder.length.length == "rho-eos" and not model.end_ids:
        raise ValueError(
            f"{model.name} has no end token, and rho-eos reads the share of ends: name one with --end-token, or use length "
            f"fixed"
        )
    if decoder.scope.method == "window" and not model.windows:
        raise ValueError(
            f"{model.name} keeps no keys and values between calls, as its attention cannot be replaced: use method full or "
            f"blocks"
        )


def check(model: MaskedLM, texts: Sequence[Text], decoder: Decoder, template: Template = "plain") -> None:
    """Raises ValueError, in one sentence, where the decoder does not suit the model or one of the texts."""
    scope, length = decoder.scope, decoder.length
    suits(model, decoder)
    hidden = []
    for text in texts:
        canvas, infilled = canvas_of(model, text, length.max_new_tokens, 0, template)
        if infilled and length.length == "rho-eos":
            raise ValueError(f"record {text.id} hides positions of its own, so its length is given: use length fixed")
        grows = length.length == "rho-eos"
        hidden.append(_control(model, length).longest(canvas.start) if grows else len(canvas.hidden))
    if scope.method == "window":
        for name, size in (("outer", scope.outer), ("inner", scope.inner)):
            if size > max(hidden):
                raise ValueError(
                    f"the {name} window has {size} positions, and no text has more than {max(hidden)} hidden ones: lower "
                    f"{name}, or give 0 for no limit"
                )


def write(
    model: MaskedLM,
    texts: Sequence[Text],
    decoder: Decoder,
    *,
    samples: int = 1,
    template: Template = "plain",
    judge: Verifier | None = None,
) -> pa.Table:
    """One row per text and sample. A row does not depend on which others are written with it, but for rounding."""
    control = _control(model, decoder.length)
    jobs = []
    for text in texts:
        for sample in range(samples):
            document = text.text * samples + sample
            canvas, infilled = canvas_of(model, text, decoder.length.max_new_tokens, document, template)
            jobs.append((text, sample, canvas, infilled, len(canvas.hidden)))
    for infilled in (False, True):  # what follows a hidden position stays: an end within does not cut the text
        chosen = [canvas for _, _, canvas, inside, _ in jobs if inside == infilled]
        adjust = control if decoder.length.length == "rho-eos" else None
        early = decoder.length.early_stop and not infilled
        decode(model, chosen, decoder.filling, decoder.scope, adjust=adjust, early_stop=early)
    rows: list[dict[str, Any]] = [
        {"text": text.text, "id": text.id, "sample": sample, "prompt": text.prompt, "reward": None}
        | (_filled_in(model, canvas) if infilled else _gone_on(model, canvas))
        | _cost(canvas, infilled, hidden)
        | _record(canvas, control)
        for text, sample, canvas, infilled, hidden in jobs
    ]
    if judge is not None:
        for row, (text, *_) in zip(rows, jobs, strict=True):
            row["reward"] = judge(text.prompt, row["answer"], text.reference)
    return pa.Table.from_pylist(rows, schema=ROWS)


def _control(model: MaskedLM, length: Length) -> Control:
    return Control(length, model.end_ids, model.context_length)


def _gone_on(model: MaskedLM, canvas: Canvas) -> dict[str, Any]:
    """What was written after a prompt: kept up to its first end."""
    written = canvas.ids[canvas.start :]
    kept = next((place for place, token in enumerate(written) if token in model.end_ids), len(written))
    before, logp = (
        len(written) + canvas.dropped,
        dict(zip(canvas.record.position, canvas.record.logp_nats, strict=True)),
    )
    own = [logp[canvas.start + place] for place in range(kept)]
    return {
        "answer": str(model.tokenizer.decode(written[:kept], clean_up_tokenization_spaces=False)),
        "ids": written, "infilled": False, "prompt_tokens": canvas.start, "canvas_tokens": before,
        "written_tokens": len(written), "kept_tokens": kept, "stopped": "end" if kept < len(written) else "length",
        "effective_before_cut": kept / before if before else None,
        "effective_after_cut": kept / len(written) if written else None,
        "logp_mean_nats": sum(own) / kept if kept else None,
    }  # fmt: skip


def _filled_in(model: MaskedLM, canvas: Canvas) -> dict[str, Any]:
    """What was written between what was there: the whole text is the answer."""
    record = canvas.record
    kept = sum(token not in model.end_ids for token in record.token)
    own = [logp for token, logp in zip(record.token, record.logp_nats, strict=True) if token not in model.end_ids]
    n = len(record.token)
    return {
        "answer": str(model.tokenizer.decode(canvas.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)),
        "ids": list(canvas.ids), "infilled": True, "prompt_tokens": len(canvas.ids) - n, "canvas_tokens": n,
        "written_tokens": n, "kept_tokens": kept, "stopped": "filled", "effective_before_cut": kept / n,
        "effective_after_cut": kept / n, "logp_mean_nats": sum(own) / kept if kept else None,
    }  # fmt: skip


def _cost(canvas: Canvas, infilled: bool, hidden: int) -> dict[str, Any]:
    record = canvas.record
    visible = len(canvas.ids) - hidden if infilled else canvas.start
    lengths = lengths_by_call(hidden, record.edits, record.calls)
    return {
        "first_tokens": hidden, "calls": record.calls, "filled": len(record.position), "rows": record.rows,
        "pairs": record.pairs, "refreshes": record.refreshes, "whole_rows": sum(visible + n for n in lengths),
    }  # fmt: skip


def lengths_by_call(first: int, edits: Sequence[tuple[int, int]], calls: int) -> list[int]:
    """Positions of the canvas in every call. edits: (call, length from the next call on)."""
    changed, found = dict(edits), []
    for call in range(1, calls + 1):
        found.append(first)
        first = changed.get(call, first)
    return found


def _record(canvas: Canvas, control: Control) -> dict[str, Any]:
    record, seen = canvas.record, control.seen.get(canvas.document, [])
    return {
        "position": record.position, "token": record.token, "call": record.call, "logp_nats": record.logp_nats,
        "edit_call": [call for call, _ in record.edits], "edit_tokens": [length for _, length in record.edits],
        "signal_call": [call for call, _ in seen], "signal": [signal for _, signal in seen],
    }  # fmt: skip
