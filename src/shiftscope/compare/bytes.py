"""Byte shift: where, and how much, two models differ in what they expect next, whatever their tokenizers.

Token laws of different vocabularies have no common outcomes; byte laws have. Both models are turned into their exact
byte-level laws and read the same text: every byte gets both laws' divergences, and the cost of the text in nats per byte.

Source: arXiv 2410.09303 (byte-level law of a token model); arXiv 2603.22446 (token shift, whose figures these are per byte).
Deviation: divergences are of the laws over the 256 bytes and the end, given that the text goes on canonically; the mass that
does not is a column and a figure of its own, and counts in the nats per byte.
"""

# N positions (bytes of answers), O outcomes: 256 bytes and the end

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from shiftscope.core import answers, divergence, statistics
from shiftscope.core.answers import Loading, Texts
from shiftscope.core.bytes import byte_law
from shiftscope.core.bytes.byte_law import Engine, Law
from shiftscope.core.bytes.canonical import Support
from shiftscope.core.checkpoints import Checkpoint, opened
from shiftscope.core.corpus import Text
from shiftscope.core.decode import Sampling
from shiftscope.core.parts import Parts
from shiftscope.core.result import Figure, Panel, Result

HIGH = 0.1  # JS in nats: "shifted" in arXiv 2603.22446
MEANS = ("kl_base_tuned_nats", "kl_tuned_base_nats", "tv", "entropy_base_nats", "entropy_tuned_nats")
ROWS = pa.schema(
    [
        ("text", pa.int32()), ("position", pa.int32()), ("byte", pa.int32()), ("token", pa.string()),
        *((name, pa.float64()) for name in ("js_nats", *MEANS, "logp_base_nats", "logp_tuned_nats")),
        ("rank_base", pa.int32()), ("rank_tuned", pa.int32()), ("rank_base_of_tuned_top1", pa.int32()),
        ("p_base_of_tuned_top1", pa.float64()), ("lost_base", pa.float64()), ("lost_tuned", pa.float64()),
    ]
)  # fmt: skip
TEXTS = pa.schema([("text", pa.int32()), ("answer", pa.string())])


def bytes_(
    base: str | Checkpoint,
    tuned: str | Checkpoint,
    *,
    texts: Texts = None,
    limit: int | None = None,
    support: Support = "canonical",
    sampling: Sampling = Sampling(),
    loading: Loading = Loading(batch_size=8),
    parts: Parts | None = None,
    advance: answers.Advance | None = None,
) -> Result:
    """Compare two checkpoints byte by byte on the same answers, whatever their tokenizers.

    base: the checkpoint before (path, hub id, zoo name, or a loaded Checkpoint).
    tuned: the checkpoint after; its vocabulary may be another one.
    texts: jsonl, parquet or txt with a prompt and optionally an answer per record; answers that are missing are sampled
        from the tuned model; without texts, the prompts that ship with the tuned checkpoint.
    limit: only the first records.
    support: canonical (exact over canonical encodings), unmasked (the last token is free: faster, and mostly close,
        but far off at single bytes) or all (every token sequence, for short texts).
    Returns a Result whose table has one row per byte of the answers.
    Raises ValueError, in one sentence, for malformed texts, text that a tokenizer changes, a text beyond a context.
    """
    first = opened(base, dtype=loading.dtype, device=loading.device)
    second = first if tuned == base else opened(tuned, dtype=loading.dtype, device=loading.device)
    engines = [byte_law.engine_of(first, support)]
    engines.append(engines[0] if second is first else byte_law.engine_of(second, support))
    read = answers.corpus_of(texts, second, limit)
    answers.check_sampling(read, sampling)
    parts = parts or Parts()
    settings = answers.provenance(
        first, second, texts=texts, limit=limit, support=support, sampling=asdict(sampling), loading=asdict(loading)
    )
    parts.settle(settings)
    found = [
        replace(text, text=0, id=f"{text.id}.{sample}" if sampling.samples > 1 and text.answer is None else text.id)
        for text in read
        for sample in range(1 if text.answer is not None else sampling.samples)
    ]
    found = [replace(text, text=number) for number, text in enumerate(found)]
    groups = [found[start : start + loading.batch_size] for start in range(0, len(found), loading.batch_size)]

    def measure(group: Sequence[Text]) -> dict[str, pa.Table]:
        return measured(engines, second, group, sampling)

    named = None if advance is None else lambda done, total: advance("comparing", done, total)
    rows = parts.map("bytes", groups, measure, advance=named, final=True)
    answer_of = dict(zip(*(rows["texts"][name].to_pylist() for name in ("text", "answer")), strict=True))
    about = [{"text": t.text, "id": t.id, "prompt": t.prompt, "answer": answer_of[t.text]} for t in found]
    table = rows["rows"].sort_by([("text", "ascending"), ("position", "ascending")])
    result = summarise(table.replace_schema_metadata({"texts": json.dumps(about)}), provenance=settings)
    return replace(result, notes=[*result.notes, *byte_law.caveats(engines, (first.name, second.name))])


def measured(
    engines: Sequence[Engine], tuned: Checkpoint, texts: Sequence[Text], sampling: Sampling
) -> dict[str, pa.Table]:
    """The rows of a few texts, and their answers; those that are missing are drawn from the tuned model."""
    asked = [text for text in texts if text.answer is None]
    prompts = [engines[1].tokens.normalised(text.prompt) for text in asked]
    drawn = byte_law.continued(engines[1], tuned, prompts, [text.text for text in asked], sampling) if asked else []
    answer_of = {text.text: answer for text, (answer, _) in zip(asked, drawn, strict=True)}
    tables, told = [], []
    for text in texts:
        prompt = text.prompt.encode()
        answer = answer_of[text.text] if text.answer is None else text.answer.encode()
        laws = []
        for engine in dict.fromkeys(engines):
            whole = engine.tokens.normalised(prompt + answer)
            laws.append(byte_law.teacher_forced(engine, whole, len(prompt))[:-1])
        told.append({"text": text.text, "answer": answer.decode("utf-8", "replace")})
        if answer:
            columns = statistics_of(laws[0], laws[-1], answer)
            known = {"text": [text.text] * len(answer), "position": range(len(answer))}
            names = [chr(byte) if 32 <= byte < 127 or byte in (9, 10) else f"<0x{byte:02X}>" for byte in answer]
            tables.append(pa.table({**known, "byte": list(answer), "token": names, **columns}, schema=ROWS))
    return {"rows": pa.concat_tables([ROWS.empty_table(), *tables]), "texts": pa.Table.from_pylist(told, schema=TEXTS)}


def statistics_of(base: Sequence[Law], tuned: Sequence[Law], answer: bytes) -> dict[str, NDArray[Any]]:
    """Every number of the answer's bytes from both models' laws before each of them; float64, nats."""
    logp_NO, logq_NO = (_log(laws) for laws in (base, tuned))
    byte_N = torch.tensor(list(answer))
    favourite_N = logq_NO.argmax(-1)
    lost = [np.array([law.lost for law in laws]) for laws in (base, tuned)]
    rows = torch.arange(len(answer))
    return {
        "js_nats": divergence.js_nats(logp_NO, logq_NO).numpy(),
        "kl_base_tuned_nats": divergence.kl_nats(logp_NO, logq_NO).numpy(),
        "kl_tuned_base_nats": divergence.kl_nats(logq_NO, logp_NO).numpy(),
        "tv": divergence.tv(logp_NO, logq_NO).numpy(),
        "entropy_base_nats": divergence.entropy_nats(logp_NO).numpy(),
        "entropy_tuned_nats": divergence.entropy_nats(logq_NO).numpy(),
        "logp_base_nats": logp_NO[rows, byte_N].numpy() + np.log1p(-lost[0]),
        "logp_tuned_nats": logq_NO[rows, byte_N].numpy() + np.log1p(-lost[1]),
        "rank_base": divergence.rank(logp_NO, byte_N).int().numpy(),
        "rank_tuned": divergence.rank(logq_NO, byte_N).int().numpy(),
        "rank_base_of_tuned_top1": divergence.rank(logp_NO, favourite_N).int().numpy(),
        "p_base_of_tuned_top1": logp_NO[rows, favourite_N].exp().numpy(),
        "lost_base": lost[0],
        "lost_tuned": lost[1],
    }


def _log(laws: Sequence[Law]) -> Tensor:
    """Log-laws [N, O]."""
    return torch.from_numpy(np.array([np.append(law.p, law.end) for law in laws])).log()


def summarise(table: pa.Table, *, provenance: Mapping[str, Any] | None = None) -> Result:
    """Figures, panels and verdict of a table of bytes. Raises ValueError where no text has an answer."""
    if not len(table):
        raise ValueError("no answer has a byte: give texts with answers, or allow longer samples")
    column = {name: table[name].to_numpy() for name in table.column_names if table[name].type != pa.string()}
    texts, js, notes = column["text"], column["js_nats"], []
    figures = {"js_mean_nats": statistics.mean_figure(js, texts, unit="nats/byte")}
    figures |= statistics.quantile_figures("js_nats", js, unit="nats/byte")
    figures["js_share_above_0.1"] = statistics.mean_figure(js > HIGH, texts, unit="share")
    for name in MEANS:
        infinite = int(np.isinf(column[name]).sum())
        if infinite:
            notes.append(
                f"{name} is infinite at {infinite} of {len(js)} bytes (one model excludes a byte): it is left out"
            )
        else:
            unit = "share" if name == "tv" else "nats/byte"
            figures["tv_mean" if name == "tv" else name] = statistics.mean_figure(column[name], texts, unit=unit)
    for side in ("base", "tuned"):
        cost = -column[f"logp_{side}_nats"]
        if np.isfinite(cost).all():
            figures[f"nats_per_byte_{side}"] = statistics.mean_figure(cost, texts, unit="nats/byte")
        else:
            notes.append(
                f"the {side} excludes {int(np.isinf(cost).sum())} bytes of the texts: its nats per byte are left out"
            )
        figures[f"non_canonical_share_{side}"] = statistics.mean_figure(column[f"lost_{side}"], texts, unit="share")
    if {"nats_per_byte_base", "nats_per_byte_tuned"} <= figures.keys():
        gain = column["logp_tuned_nats"] - column["logp_base_nats"]
        figures["nats_per_byte_gain"] = statistics.mean_figure(gain, texts, unit="nats/byte")
    agree = column["rank_base_of_tuned_top1"] == 0
    figures["same_favourite_share"] = statistics.mean_figure(agree, texts, unit="share")
    figures["texts"] = Figure(len(np.unique(texts)), "count", len(js))
    figures["positions"] = Figure(len(js), "count", len(js))
    caption = "Every answer, byte by byte; the stronger the colour, the larger the shift."
    panels = [Panel("Texts", caption, "texts", table), *_panels(column)]
    return Result("compare bytes", table, figures, provenance or {}, _verdict(figures, js), notes, panels)


def _panels(column: Mapping[str, NDArray[Any]]) -> list[Panel]:
    texts, position, js = column["text"], column["position"], column["js_nats"]
    _, inverse, counts = np.unique(texts, return_inverse=True, return_counts=True)
    bins = int(min(20, counts.max()))
    place = np.minimum(((position + 0.5) / counts[inverse] * bins).astype(int), bins - 1)
    grid = np.geomspace(1e-7, divergence.LN2, 120)
    cdf = pa.table({"js_nats": grid, "share": np.searchsorted(np.sort(js), grid, side="right") / len(js)})
    costs = {side: -column[f"logp_{side}_nats"] for side in ("base", "tuned")}
    by_cost = [
        {**row, "model": side}
        for side, cost in costs.items()
        for row in _curve((place + 0.5) / bins, np.where(np.isfinite(cost), cost, np.nan), texts)
    ]
    early = position < 128
    return [
        Panel(
            "How the shift is distributed", "Share of bytes whose JS is at most x.", "line", cdf,
            x="js_nats", y="share", x_title="JS (nats per byte)", y_title="share of bytes", log_x=True,
        ),
        Panel(
            "Where in the answer", "Mean JS by place in the answer (0 its first byte, 1 its last), with a 95 % band over texts.",
            "line", pa.Table.from_pylist(_curve((place + 0.5) / bins, js, texts)), x="place", y="nats", low="low",
            high="high", x_title="relative position", y_title="mean JS (nats per byte)",
        ),
        Panel(
            "The first bytes", "Mean JS by absolute position, with a 95 % band over texts.", "line",
            pa.Table.from_pylist(_curve(position[early].astype(float), js[early], texts[early])), x="place", y="nats",
            low="low", high="high", x_title="position (bytes)", y_title="mean JS (nats per byte)",
        ),
        Panel(
            "What the text costs", "Mean nats per byte of both models by place in the answer, with 95 % bands over texts.",
            "line", pa.Table.from_pylist(by_cost), x="place", y="nats", low="low", high="high", series="model",
            x_title="relative position", y_title="nats per byte",
        ),
    ]  # fmt: skip


def _curve(place: NDArray[Any], values: NDArray[Any], texts: NDArray[Any]) -> list[dict[str, float]]:
    rows = []
    for here in np.unique(place):
        chosen = (place == here) & ~np.isnan(values)
        if chosen.any():
            figure = statistics.mean_figure(values[chosen], texts[chosen], unit="nats/byte", samples=400)
            low, high = figure.low, figure.high
            rows.append(
                {"place": float(here), "nats": float(figure.value), "low": float(low or 0), "high": float(high or 0)}
            )
    return rows


def _verdict(figures: Mapping[str, Figure], js: NDArray[Any]) -> list[str]:
    if js.max() == 0:
        return [f"The two models give exactly the same law at all {len(js):,} bytes: nothing changed."]
    mean, above = figures["js_mean_nats"], figures["js_share_above_0.1"]
    sentences = [
        f"The laws differ by {mean.value:.3g} nats of JS per byte (95 % interval {mean.low:.3g} to {mean.high:.3g} over "
        f"{figures['texts'].value:,} texts); {100 * float(above.value):.3g} % of {len(js):,} bytes by more than {HIGH:g}."
    ]
    gain = figures.get("nats_per_byte_gain")
    if gain is not None:
        base, tuned = figures["nats_per_byte_base"], figures["nats_per_byte_tuned"]
        sure = (gain.low or 0) > 0 or (gain.high or 0) < 0
        better = ("tuned" if float(gain.value) > 0 else "base") if sure else "neither"
        sentences.append(
            f"The texts cost {base.value:.3g} nats per byte under the base and {tuned.value:.3g} under the tuned model: "
            + (f"the {better} model expects them better." if sure else "the difference is within its interval.")
        )
    return sentences
