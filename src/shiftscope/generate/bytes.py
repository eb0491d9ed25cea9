"""Bytes: draw and score text byte by byte from a token model, exactly, with prompts that end anywhere.

A prompt that ends inside a word, after a blank or inside a character biases ordinary prompting, because the tokenizer
would have cut the whole text elsewhere. Here every token sequence that spells the prompt counts with its probability. A
record with a suffix has its middle filled in, by the model's own fill-in-the-middle tokens or a plain prompt.

Source: arXiv 2410.09303 (equivalent byte-level law; canonical support, masked and fast variants; middles after a prefix that
ends inside a token); arXiv 2207.14255 (orders of fill-in-the-middle frames; see `core/bytes/infilling.py`).
Deviation: temperature acts on bytes in mode `bytes` (another law than temperature on tokens) and on the tokens after the
prompt in mode `cover`, which draws one token sequence for the prompt's end and goes on with ordinary sampling; the mass of
sequences that are not canonical is a figure, not normalised away.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa

from shiftscope.core import answers, corpus, statistics
from shiftscope.core.answers import Loading, Texts
from shiftscope.core.bytes import byte_law
from shiftscope.core.bytes.byte_law import Engine
from shiftscope.core.bytes.byte_model import LN2, ByteModel, ByteSampling, Drawn
from shiftscope.core.bytes.canonical import Stability, Support, stability
from shiftscope.core.bytes.infilling import Gap, Infiller, Infilling, gaps
from shiftscope.core.bytes.token_tree import TokenTree
from shiftscope.core.checkpoints import Checkpoint
from shiftscope.core.parts import Parts
from shiftscope.core.result import Figure, Panel, Result
from shiftscope.core.settings import unread

__all__ = ["ByteModel", "ByteSampling", "bytes_", "summarise"]

ROWS = pa.schema(
    [
        ("text", pa.int32()), ("sample", pa.int32()), ("prompt", pa.string()), ("suffix", pa.string()),
        ("answer", pa.string()), ("raw", pa.binary()), ("n_bytes", pa.int32()), ("stopped", pa.string()),
        ("logp_nats", pa.float64()), ("end_logp_nats", pa.float64()), ("lost_mean", pa.float64()),
        ("error_max", pa.float64()), ("given", pa.bool_()), ("exact", pa.bool_()), ("forwards", pa.int32()),
        ("positions", pa.int32()),
    ]
)  # fmt: skip


def bytes_(
    model: str | Checkpoint,
    *,
    prompts: Texts = None,
    limit: int | None = None,
    support: Support = "canonical",
    spelt: tuple[str, ...] = (),
    sampling: ByteSampling = ByteSampling(),
    infilling: Infilling = Infilling(),
    loading: Loading = Loading(batch_size=8),
    parts: Parts | None = None,
    advance: answers.Advance | None = None,
) -> Result:
    """Go on with prompts that end anywhere, or fill in middles, by a model's exact byte law; score given answers by it.

    model: the checkpoint (path, hub id, zoo name, or a loaded Checkpoint).
    prompts: jsonl, parquet or txt with a prompt per record; a record with an answer is scored, not continued; a record with
        a suffix has the middle after its prompt filled in (and compared with its answer, the true middle, if it has one);
        without, the prompts that ship with the checkpoint.
    limit: only the first records.
    support: canonical (exact over canonical encodings), unmasked (canonical up to the last token) or all (every token
        sequence, for short texts).
    spelt: special tokens that prompts may name, such as those of a chat template; one that ends texts is then bytes like
        any other (give its name as a stop text too).
    Returns a Result whose table has one row per answer.
    Raises ValueError, in one sentence, for malformed prompts, text that the tokenizer changes, a text beyond the context, a
    model that does not know how to fill in a middle.
    """
    byte_model = ByteModel(model, support=support, spelt=spelt, loading=loading)
    checkpoint, parts = byte_model.checkpoint, parts or Parts()
    settings = answers.provenance(
        checkpoint, prompts=prompts, limit=limit, support=support, spelt=list(spelt), sampling=asdict(sampling),
        infilling=asdict(infilling), loading=asdict(loading),
    )  # fmt: skip
    parts.settle(settings)
    found = gaps(
        answers.corpus_of(prompts, checkpoint, limit, option="prompts"),
        () if prompts is None else corpus.records(prompts),
    )
    frame = byte_model.infiller(infilling) if any(gap.suffix is not None for gap in found) else None
    if frame is None and infilling != Infilling():
        raise ValueError(
            "frame or middle_ends is set, but no record has a suffix: leave them out, or give records suffixes"
        )
    if all(gap.text.answer is not None and gap.suffix is None for gap in found):
        unread(sampling, ByteSampling(), "a record without an answer, or with a suffix,")
    groups = [found[start : start + loading.batch_size] for start in range(0, len(found), loading.batch_size)]

    def measure(group: Sequence[Gap]) -> dict[str, pa.Table]:
        return {"bytes": pa.Table.from_pylist(list(_rows(byte_model, group, sampling, frame)), schema=ROWS)}

    named = None if advance is None else lambda done, total: advance("drawing bytes", done, total)
    rows = parts.map("bytes", groups, measure, advance=named, final=True)
    return summarise(rows["bytes"], fuzz=stability(byte_model.engine.tokens, texts=50), provenance=settings)


def _rows(
    model: ByteModel, group: Sequence[Gap], sampling: ByteSampling, frame: Infiller | None
) -> Iterable[dict[str, Any]]:
    tree, engine = model.engine.tree, model.engine
    assert isinstance(tree, TokenTree)
    begun: list[tuple[Engine, bytes]] = []
    for gap in group:
        if gap.suffix is None or frame is None:
            begun.append((engine, engine.tokens.normalised(gap.text.prompt)))
        else:
            begun.append(frame.begun(gap.text.prompt, gap.suffix))
    drawing = [place for place, gap in enumerate(group) if gap.text.answer is None or gap.suffix is not None]
    asked = [(place, sample) for place in drawing for sample in range(sampling.samples)]
    texts = [begun[place] for place, _ in asked]
    held = (
        byte_law.begin_each(texts, undo=0) if sampling.mode == "bytes" else []
    )  # prompts are read before what is counted
    before = tree.forwards, tree.positions
    resumed = [frame.resumed(gap.suffix) if frame and gap.suffix else b"" for gap in group]
    numbers = [group[place].text.text * sampling.samples + sample for place, sample in asked]
    drawn = model.draw(texts, [resumed[place] for place, _ in asked], sampling, numbers)
    del held
    cost = tree.forwards - before[0], tree.positions - before[1]
    for number, ((place, sample), one) in enumerate(zip(asked, drawn, strict=True)):
        spent = cost if number == 0 else (0, 0)  # of the batch, on its first row
        yield _row(group[place], sample, one, spent)
    for gap, (after, text) in zip(group, begun, strict=True):
        if gap.text.answer is not None:
            yield _row(gap, 0, *_scored(after, text, gap))


def _scored(engine: Engine, begun: bytes, gap: Gap) -> tuple[Drawn, tuple[int, int], float]:
    """A given answer by the laws before its bytes, and log P of the text's end after it."""
    answer = (gap.text.answer or "").encode()
    engine.tokens.normalised(gap.text.prompt.encode() + answer)  # raises where the tokenizer changes it
    laws = byte_law.teacher_forced(engine, begun + answer, len(begun))
    lost = float(np.mean([law.lost for law in laws[:-1]])) if answer else 0.0
    ended = laws[-1].end * (1 - laws[-1].lost)
    one = Drawn(answer, "given", laws[-1].logp - laws[0].logp, lost, 0.0)
    return one, (0, 0), math.log(ended) if ended > 0 else -math.inf


def _row(gap: Gap, sample: int, one: Drawn, cost: tuple[int, int], end_logp: float = math.nan) -> dict[str, Any]:
    given, text = one.stopped == "given", gap.text
    numbers = {
        "logp_nats": one.logp_nats, "end_logp_nats": end_logp, "lost_mean": one.lost_mean, "error_max": one.error_max
    }  # fmt: skip
    return {
        "text": text.text, "sample": sample, "prompt": text.prompt, "suffix": gap.suffix, "answer": one.text,
        "raw": one.answer, "n_bytes": len(one.answer), "stopped": one.stopped, "given": given,
        "exact": None if given or text.answer is None else one.answer == text.answer.encode(),
        "forwards": cost[0], "positions": cost[1],
        **{name: None if math.isnan(value) else value for name, value in numbers.items()},
    }  # fmt: skip


def summarise(table: pa.Table, *, fuzz: Stability | None = None, provenance: dict[str, Any] | None = None) -> Result:
    """Figures, verdict and panels of a table of answers. fuzz: what the tokenizer's fuzz found, if it was run."""
    rows, notes = table.to_pylist(), []
    given, drawn = [row for row in rows if row["given"]], [row for row in rows if not row["given"]]
    figures = _rates("given", given) | _rates("drawn", drawn)
    if drawn:
        figures["ended_share"] = statistics.share_figure(sum(row["stopped"] == "end" for row in drawn), len(drawn))
        n_bytes = sum(row["n_bytes"] for row in drawn)
        figures["answer_bytes"] = Figure(n_bytes, "count", len(drawn))
        if all(row["logp_nats"] is not None for row in drawn) and n_bytes:
            positions = sum(row["positions"] for row in drawn)
            figures["positions_per_byte"] = Figure(positions / n_bytes, "tokens/byte", n_bytes)
            figures["certified_error_max"] = Figure(max(row["error_max"] for row in drawn), "total variation", n_bytes)
        else:
            notes.append("mode cover draws tokens: the probability of the drawn bytes is left out")
    figures |= _middles(given, drawn, notes)
    verdict = [f"{len(drawn)} answers were drawn and {len(given)} given ones scored, byte by byte."]
    if exact := figures.get("middle_exact_share"):
        verdict.append(f"{100 * float(exact.value):.0f} % of {exact.n} drawn middles are the true ones, byte for byte.")
    if fuzz is not None:
        said = "exact" if fuzz.exact else "approximate"
        notes.append(
            f"canonical encodings of this tokenizer are known by {fuzz.mode}: {said} in a fuzz of {fuzz.boundaries} token "
            f"boundaries, {100 * fuzz.unstable_share:.2g} % of which move with what follows"
        )
    empty = sum(not row["n_bytes"] for row in given)
    if empty:
        notes.append(f"{empty} given answers are empty: they have no bits per byte")
    shown = table.select(["text", "sample", "prompt", "answer", "suffix", "stopped", "logp_nats", "lost_mean"])
    panel = Panel("Answers", "Prompts that end anywhere, and how the model goes on.", "table", shown)
    return Result("generate bytes", table, figures, provenance or {}, verdict, notes, [panel])


def _rates(name: str, rows: Sequence[dict[str, Any]]) -> dict[str, Figure]:
    """Bits per byte of answers and the mass that is not canonical before their bytes."""
    chosen = [row for row in rows if row["logp_nats"] is not None and row["n_bytes"]]
    if not chosen:
        return {}
    groups = [row["text"] for row in chosen]
    rate = [-row["logp_nats"] / LN2 / row["n_bytes"] for row in chosen]
    total = sum(row["n_bytes"] for row in chosen)
    low, high = statistics.bootstrap_mean(rate, groups)
    bits = -sum(row["logp_nats"] for row in chosen) / LN2 / total
    lost = [row["lost_mean"] for row in chosen]
    return {
        f"{name}_bits_per_byte": Figure(bits, "bits/byte", total, min(low, bits), max(high, bits)),
        f"{name}_non_canonical_share": statistics.mean_figure(lost, groups, unit="share"),
    }


def _middles(given: Sequence[dict[str, Any]], drawn: Sequence[dict[str, Any]], notes: list[str]) -> dict[str, Figure]:
    """How well known middles are filled in: exact matches, bits of the true middle and of its end; adds to `notes`."""
    figures, true = {}, [row for row in given if row["suffix"] is not None]
    matched = [row for row in drawn if row["exact"] is not None]
    if matched:
        values, groups = [int(row["exact"]) for row in matched], [row["text"] for row in matched]
        once = len(set(groups)) == len(groups)  # samples of one text are no independent trials
        figures["middle_exact_share"] = (
            statistics.share_figure(sum(values), len(values))
            if once
            else statistics.mean_figure(values, groups, unit="share")
        )
    ends = {"middle_bits": "logp_nats", "middle_end_bits": "end_logp_nats"}
    for name, column in ends.items() if true else ():
        bits = [-row[column] / LN2 for row in true]
        if np.isfinite(bits).all():
            figures[name] = statistics.mean_figure(bits, [row["text"] for row in true], unit="bits/middle")
        else:
            notes.append(f"{name} is left out: the model gives some true middles, or their ends, no probability")
    return figures
