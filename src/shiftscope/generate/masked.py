"""Masked: write with a masked diffusion model or a masked language model, and show what was saved and what it changed.

Three ways to look: the whole text in every call (full), block by block (blocks), or through a window whose keys and values
are kept between calls (window). Two kinds of length: fixed, or found while writing by the share of ends among what is still
hidden (rho-eos). A prompt with holes is filled in. Every answer comes with the order in which it was revealed,
its probabilities and its cost; whether the texts are still samples of the model is stated with the reason.

Source: arXiv 2502.09992 (masked diffusion, blocks), arXiv 2601.20332 (windows), arXiv 2601.22527 (length by ends).
Deviation: costs are counted on each text by itself, padding aside; savings are told apart (ends, several positions a call,
windows) where the papers report one factor. Others: `core/denoising/scope.py`, `core/denoising/length.py` and `core/masked.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa

from shiftscope.core import answers, corpus, statistics
from shiftscope.core.answers import Loading, Texts
from shiftscope.core.corpus import Template, Text
from shiftscope.core.denoising import decodings, masked_model
from shiftscope.core.denoising.decodings import Decoder
from shiftscope.core.denoising.length import Length
from shiftscope.core.denoising.masked_model import MaskedLM
from shiftscope.core.denoising.scope import Scope
from shiftscope.core.keys import probing
from shiftscope.core.masked import Filling
from shiftscope.core.parts import Parts
from shiftscope.core.result import Figure, Panel, Result
from shiftscope.core.verifiers import Verifier

UNTRAINED = 0.02  # share of ends in the longest canvas below which a model hardly knows what stands behind an end
STOPPED = {"end": "an end was written", "length": "the canvas was full", "filled": "filled in"}
Rows = Sequence[Mapping[str, Any]]


def masked(
    model: str | MaskedLM,
    *,
    prompts: Texts = None,
    limit: int | None = None,
    samples: int = 1,
    template: Template = "plain",
    verifier: str | Verifier | None = None,
    filling: Filling = Filling(),
    scope: Scope = Scope(),
    extent: Length = Length(),
    mask_token: str | None = None,
    end_token: str | None = None,
    loading: Loading = Loading(),
    parts: Parts | None = None,
    advance: answers.Advance | None = None,
) -> Result:
    """Write with a masked model: go on with prompts, or fill in those that hold mask tokens; with the cost of each text.

    model: the checkpoint (path, hub id, zoo name, or a loaded MaskedLM).
    prompts: jsonl, parquet or txt with a prompt per record; one that holds the mask token, or [[5]] for five of them, is
        filled in where they stand. Without, the prompts that ship with the checkpoint.
    limit: only the first records.
    samples: texts per prompt.
    template: how the prompt is rendered: plain, chat (the tokenizer's template) or frame (zero-shot frame).
    verifier: module:function, regex:PATTERN or exact; scores every answer. Without it, and without prompts of your own,
        the one that ships with the checkpoint, if any.
    mask_token, end_token: the tokens, as text, where the checkpoint names none or others.
    Returns a Result whose table has one row per text.
    Raises ValueError, in one sentence, for a checkpoint of another kind, settings that do not suit it, and malformed or
    too long prompts.
    """
    if samples < 1:
        raise ValueError(f"samples is {samples}: at least one text per prompt is written")
    if samples > 1 and filling.temperature == 0 and filling.order != "random":
        raise ValueError(f"samples is {samples} at temperature 0: the texts would all be equal; raise --temperature")
    opened = _opened(model, mask_token, end_token, loading)
    named: Any = opened  # corpora and provenance read the name, the tokenizer and the folder of any kind of model
    spec = verifier or (answers.shipped_verifier(named) if prompts is None else None)
    decoder, parts = Decoder(filling, scope, extent), parts or Parts()
    settings = answers.provenance(
        named, prompts=prompts, limit=limit, samples=samples, template=template, verifier=probing.named(spec),
        filling=asdict(filling), scope=asdict(scope), extent=asdict(extent), mask_token=mask_token, end_token=end_token,
        loading=asdict(loading),
    )  # fmt: skip
    parts.settle(settings)
    texts = answers.corpus_of(prompts, named, limit, option="prompts")
    decodings.check(opened, texts, decoder, template)
    judge = None if spec is None else probing.judge_of(spec)
    groups = [texts[start : start + loading.batch_size] for start in range(0, len(texts), loading.batch_size)]
    rows = parts.map(
        "masked", groups,
        lambda group: {"texts": decodings.write(opened, group, decoder, samples=samples, template=template, judge=judge)},
        advance=None if advance is None else lambda done, total: advance("writing", done, total), final=True,
    )["texts"]  # fmt: skip
    pieces = corpus.pieces(opened.tokenizer, rows["token"][0].as_py()) if len(rows) else {}
    return summarise(rows, decoder, notes=_notes(rows, texts, opened, decoder), pieces=pieces, provenance=settings)


def _opened(model: str | MaskedLM, mask_token: str | None, end_token: str | None, loading: Loading) -> MaskedLM:
    if isinstance(model, str):
        return masked_model.load(
            model, mask_token=mask_token, end_token=end_token, dtype=loading.dtype, device=loading.device
        )
    return model.with_tokens(mask_token, end_token)


def _notes(table: pa.Table, texts: Sequence[Text], model: MaskedLM, decoder: Decoder) -> list[str]:
    """What a reader must know of how the texts came about."""
    rows, notes, length = table.to_pylist(), list[str](), decoder.length
    given = sum(text.answer is not None for text in texts)
    if given:
        notes.append(f"{given} records hold an answer, which was not read: `compare decoders` scores given texts")
    if decoder.scope.method == "window":
        notes.append("a window belongs to one text: each text had calls of its own, whatever the batch size")
    if length.length == "rho-eos":
        if decoder.scope.method == "window":
            notes.append(
                "the share of ends is read where a call sees all hidden positions of the window: when it is computed anew, "
                "and once they are all candidates"
            )
        if any(row["prompt_tokens"] + length.longest > (model.context_length or math.inf) for row in rows):
            notes.append(f"{model.name} reads {model.context_length} tokens: canvases end there, before --longest")
        stuck = sum(_foresees_no_end(row, model, length) for row in rows)
        if stuck:
            notes.append(
                f"{stuck} of {len(rows)} canvases are as long as they may be and still foresee ends at less than "
                f"{UNTRAINED:.0%} of their hidden positions: the texts are longer than that, or {model.name} did not learn "
                f"to fill a text up with ends; then use --length fixed"
            )
    cut = sum(row["stopped"] == "length" for row in rows)
    if cut and model.end_ids:
        notes.append(f"{cut} of {len(rows)} texts fill their canvas without an end: they may go on beyond it")
    return notes


def _foresees_no_end(row: Mapping[str, Any], model: MaskedLM, length: Length) -> bool:
    """Whether a canvas reached the longest length and the signal stayed low there."""
    longest = min(length.longest, (model.context_length or math.inf) - row["prompt_tokens"])
    edits = [(0, row["first_tokens"]), *zip(row["edit_call"], row["edit_tokens"], strict=True)]
    reached = next((call for call, tokens in edits if tokens >= longest), None)
    if reached is None:
        return False
    later = [signal for call, signal in zip(row["signal_call"], row["signal"], strict=True) if call > reached]
    return bool(later) and later[0] < UNTRAINED


def summarise(
    table: pa.Table,
    decoder: Decoder,
    *,
    notes: Sequence[str] = (),
    pieces: Mapping[int, str] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Result:
    """Figures, verdict and panels of a table of texts. pieces: the tokens of its first text, as a reader sees them."""
    rows, kept, left_out = table.to_pylist(), decoder.preserves, []
    figures = _means(rows) | _ratios(rows) | _savings(rows)
    figures["preserves"] = Figure(kept.kind, "", len(rows))
    if all(row["reward"] is None for row in rows):
        left_out.append("no verifier was given: whether the answers are right is left out")
    if not any(row["kept_tokens"] for row in rows):
        left_out.append("every text is empty: costs per token are left out")
    tokens, calls = sum(row["kept_tokens"] for row in rows), sum(row["calls"] for row in rows)
    right = f"; reward {figures['reward_mean'].value:.3g}" if "reward_mean" in figures else ""
    verdict = [
        f"{len(rows)} texts with {tokens} tokens were written in {calls} network calls{right}.",
        _saved(figures),
        f"preserves = {kept.kind}: {kept.reason}.",
    ]
    found = [*notes, *left_out]
    return Result(
        "generate masked", table, figures, provenance or {}, verdict, found, _panels(rows, decoder, pieces or {})
    )


def _means(rows: Rows) -> dict[str, Figure]:
    """Means over texts, with intervals over prompts; a column without values has no figure."""
    named = {
        "kept_tokens_mean": ("kept_tokens", "tokens"), "canvas_tokens_mean": ("canvas_tokens", "tokens"),
        "calls_mean": ("calls", "calls"), "rows_mean": ("rows", "token-forwards"),
        "refreshes_mean": ("refreshes", "calls"), "effective_before_cut": ("effective_before_cut", "share"),
        "effective_after_cut": ("effective_after_cut", "share"), "logp_mean_nats": ("logp_mean_nats", "nats/token"),
        "reward_mean": ("reward", "reward"),
    }  # fmt: skip
    figures = {"texts": Figure(len(rows), "count", len(rows))}
    for name, (column, unit) in named.items():
        chosen = [row for row in rows if row[column] is not None]
        if chosen and (column != "refreshes" or any(row["refreshes"] for row in rows)):
            figures[name] = statistics.mean_figure(
                [row[column] for row in chosen], [row["text"] for row in chosen], unit=unit
            )
    ended = sum(row["stopped"] == "end" for row in rows)
    figures["ended_share"] = statistics.share_figure(ended, len(rows))
    kept = [row["ids"] if row["infilled"] else row["ids"][: row["kept_tokens"]] for row in rows]
    grams = [gram for ids in kept for gram in zip(*(ids[k:] for k in range(4)), strict=False)]
    if grams:
        figures["distinct_4_grams_share"] = Figure(len(set(grams)) / len(grams), "share", len(grams))
    return figures


def _ratios(rows: Rows) -> dict[str, Figure]:
    """Cost per kept token, over all texts."""
    named = {
        "calls_per_token": ("calls", "calls/token"), "rows_per_token": ("rows", "token-forwards/token"),
        "pairs_per_token": ("pairs", "pairs/token"),
    }  # fmt: skip
    return _over(rows, {name: (column, "kept_tokens", unit) for name, (column, unit) in named.items()})


def _savings(rows: Rows) -> dict[str, Figure]:
    """What is left of the token-forwards of the whole canvas filled one position a call, factor by factor."""
    priced = [row | steps(row) for row in map(dict, rows)]
    return _over(
        priced,
        {
            "rows_left_by_ends": ("one_by_one", "to_the_end", "share"),
            "rows_left_by_parallel": ("several", "one_by_one", "share"),
            "rows_left_by_pruning": ("computed", "several", "share"),
            "rows_left_by_all": ("computed", "to_the_end", "share"),
        },
    )


def steps(row: Mapping[str, Any]) -> dict[str, float]:
    """Token-forwards of one text: to the canvas's end, one by one to the text's end, several a call, as computed.

    Worked out from its lengths, but for the last, which was counted: every position of the longest canvas that it had, one
    a call, each call over the whole text; the positions that were filled, over the canvas as it was; the calls there were,
    over the same.
    """
    canvas = max([row["first_tokens"], *row["edit_tokens"]])
    a_call = row["whole_rows"] / row["calls"] if row["calls"] else 0.0
    return {
        "to_the_end": float(canvas * (row["prompt_tokens"] + canvas)), "one_by_one": row["filled"] * a_call,
        "several": float(row["whole_rows"]), "computed": float(row["rows"]),
    }  # fmt: skip


def _over(rows: Rows, named: Mapping[str, tuple[str, str, str]]) -> dict[str, Figure]:
    """Ratios of sums, (over, under, unit) by name, with intervals over prompts; none where the sum below is 0."""
    figures = {}
    groups = [row["text"] for row in rows]
    for name, (over, under, unit) in named.items():
        upper, _ = statistics.group_sums([row[over] for row in rows], groups)
        lower, _ = statistics.group_sums([row[under] for row in rows], groups)
        if lower.sum() > 0:
            value = float(upper.sum() / lower.sum())
            low, high = np.quantile(statistics.resampled_ratios(upper, lower), [0.025, 0.975])
            figures[name] = Figure(value, unit, len(rows), min(float(low), value), max(float(high), value))
    return figures


def _saved(figures: Mapping[str, Figure]) -> str:
    """What was saved, and by what: each factor by itself."""
    causes = {
        "ends": "ended texts and shortened canvases", "parallel": "several positions a call",
        "pruning": "positions left out of calls",
    }  # fmt: skip
    left = {cause: float(figures[f"rows_left_by_{cause}"].value) for cause in causes if "rows_left_by_all" in figures}
    saving = [f"{causes[cause]} {_percent(share)}" for cause, share in left.items() if abs(share - 1) > 5e-4]
    if not saving:
        return "Token-forwards: those of the whole canvas, one position a call; nothing was saved."
    return (
        f"Token-forwards: {_percent(float(figures['rows_left_by_all'].value))} of those of each text's longest canvas, one "
        f"position a call. What is left by {', by '.join(saving)}."
    )


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _panels(rows: Rows, decoder: Decoder, pieces: Mapping[int, str]) -> list[Panel]:
    shown = [
        {
            "prompt": row["prompt"], "answer": row["answer"], "tokens": row["kept_tokens"],
            "canvas": row["canvas_tokens"], "calls": row["calls"], "stopped": STOPPED[row["stopped"]],
            "reward": row["reward"],
        }
        for row in rows[:100]
    ]  # fmt: skip
    table = pa.Table.from_pylist(shown)
    if all(row["reward"] is None for row in shown):
        table = table.drop_columns(["reward"])
    panels = [Panel("Answers", "Up to the first end; where a text was filled in, the whole.", "table", table)]
    if rows and rows[0]["position"]:
        panels.append(_order(rows[0], pieces))
    if decoder.length.length == "rho-eos":
        panels += _lengths(rows, decoder.length)
    return [*panels, _bars(rows)]


def _order(row: Mapping[str, Any], pieces: Mapping[int, str]) -> Panel:
    """In which call each position of the first text was written, and how sure the model was."""
    found = [
        {"place": place, "call": call, "probability": math.exp(logp), "token": pieces.get(token, str(token))}
        for place, call, logp, token in zip(row["position"], row["call"], row["logp_nats"], row["token"], strict=True)
    ]
    found.sort(key=lambda cell: (cell["place"], cell["call"]))
    return Panel(
        "The order of the first text", "Each position, the call that wrote it, and the probability of its token.", "heat",
        pa.Table.from_pylist(found), x="place", y="call", color="probability", x_title="position in the text",
        y_title="network call",
    )  # fmt: skip


def _lengths(rows: Rows, length: Length) -> list[Panel]:
    """Canvas length and share of ends over the calls of the first texts."""
    lengths, shares = [], []
    for row in rows[:6]:
        edits = list(zip(row["edit_call"], row["edit_tokens"], strict=True))
        by_call = decodings.lengths_by_call(row["first_tokens"], edits, row["calls"])
        lengths += [{"text": row["id"], "call": i, "tokens": n} for i, n in enumerate(by_call, start=1)]
        shares += [
            {"text": row["id"], "call": call, "share": share}
            for call, share in zip(row["signal_call"], row["signal"], strict=True)
        ]
    what = "share of ends among the hidden positions" if length.signal == "density" else "certainty of the last ends"
    return [
        Panel(
            "The canvas while it is filled", "Positions after the prompt; the first texts.", "line",
            pa.Table.from_pylist(lengths), x="call", y="tokens", series="text", x_title="network call",
            y_title="positions",
        ),
        Panel(
            "What lengthens and shortens it", f"Below {length.low:g} it grows, above {length.high:g} it shrinks.", "line",
            pa.Table.from_pylist(shares), x="call", y="share", series="text", x_title="network call", y_title=what,
        ),
    ]  # fmt: skip


def _bars(rows: Rows) -> Panel:
    named = {
        "to_the_end": "longest canvas, to its end", "one_by_one": "… to the text's end",
        "several": "… several a call", "computed": "as computed",
    }  # fmt: skip
    priced = [steps(row) for row in rows]
    bars = [{"step": title, "rows": sum(step[key] for step in priced) / len(rows)} for key, title in named.items()]
    return Panel(
        "Where token-forwards were saved", "Mean of a text; the last one was counted, the others follow from the lengths.",
        "bar", pa.Table.from_pylist(bars), x="step", y="rows", x_title="each saving in turn", y_title="token-forwards",
    )  # fmt: skip
