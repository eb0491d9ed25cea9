"""Token shift: where, and how much, a tuned checkpoint's next-token law left its base.

The tuned model's answer is replayed through the base; every position gets both laws' divergences, the rank the base gives
to the tuned model's favourite (unshifted 0, marginal 1–2, shifted from 3 on) and both top lists.

Source: arXiv 2603.22446 (divergence, section 3.1; sparsity, positions, mass re-allocation, section 3.2); arXiv 2312.01552
(rank classes, two contexts of unequal length).
Deviation: full-vocabulary JS, not top-p-truncated: on the pair sums-base, sums-rlvr truncation at 0.7 more than doubles
the share above 0.1; `compat_top_p=` gives the truncated figures under their own names.
Deviation: tokens are matched by id, not by decoded string, and ranks are counted over the whole vocabulary. The rows
themselves are made in `core/positions.py`.
"""

# N positions

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from shiftscope.core import answers, divergence, paired, statistics
from shiftscope.core.answers import Compiling, Texts
from shiftscope.core.checkpoints import Checkpoint
from shiftscope.core.corpus import Template
from shiftscope.core.decode import Sampling
from shiftscope.core.parts import Parts
from shiftscope.core.positions import CLASSES, Listing, described, measure
from shiftscope.core.result import Figure, Panel, Result

LOW, HIGH = 0.01, 0.1  # JS in nats: "the same" and "shifted" in arXiv 2603.22446
FLOW_LABELS = {
    "flow_1": "1",
    "flow_2_3": "2–3",
    "flow_4_10": "4–10",
    "flow_11_100": "11–100",
    "flow_over_100": "over 100",
}
JS_BINS = (0.0, 1e-4, 1e-3, 0.01, 0.03, 0.1, 0.3, divergence.LN2)


def tokens(
    base: str | Checkpoint,
    tuned: str | Checkpoint,
    *,
    texts: Texts = None,
    limit: int | None = None,
    template: Template = "plain",
    base_template: Template | None = None,
    sampling: Sampling = Sampling(),
    loading: Compiling = Compiling(),
    listing: Listing = Listing(),
    parts: Parts | None = None,
    advance: answers.Advance | None = None,
) -> Result:
    """Compare two checkpoints position by position on answers of the tuned one.

    base: the checkpoint before (path, hub id, zoo name, or a loaded Checkpoint).
    tuned: the checkpoint after; both must share one vocabulary.
    texts: jsonl, parquet or txt with a prompt and optionally an answer per record; answers that are missing are sampled
        from the tuned model; without texts, the prompts that ship with the tuned checkpoint.
    limit: only the first records.
    template: how the prompt is rendered: plain, chat (the tokenizer's template) or frame (zero-shot frame).
    base_template: rendering for the base, where it should differ.
    Returns a Result whose table has one row per answer position.
    Raises ValueError, in one sentence, for differing vocabularies, malformed texts, answers beyond a context, NaN logits.
    """
    first, second = answers.pair(base, tuned, loading)
    read = answers.corpus_of(texts, second, limit)
    answers.check_sampling(read, sampling)
    parts = parts or Parts()
    settings = answers.provenance(
        first, second, texts=texts, limit=limit, template=template, base_template=base_template,
        sampling=asdict(sampling), loading=asdict(loading), listing=asdict(listing),
    )  # fmt: skip
    parts.settle(settings)
    found = answers.prepare(
        first, second, read, template=template, base_template=base_template,
        sampling=sampling, batch_size=loading.batch_size, parts=parts, advance=advance,
    )  # fmt: skip
    scorer = paired.Scorer(first, second, compiled=loading.compile)
    rows = paired.run(
        scorer, found.paired, {"tokens": measure(listing)}, batch_size=loading.batch_size, parts=parts,
        advance=None if advance is None else lambda done, total: advance("comparing", done, total),
    )  # fmt: skip
    floor = paired.noise_floor(scorer, found.paired[:8])
    table = described(rows["tokens"], found.texts, first)
    notes = [*found.notes, *answers.compile_notes(loading, first)]
    return summarise(table, noise_floor=floor, notes=notes, provenance=settings)


def summarise(
    table: pa.Table,
    *,
    noise_floor: float | None = None,
    notes: Sequence[str] = (),
    provenance: Mapping[str, Any] | None = None,
) -> Result:
    """Figures, panels and verdict of a table of positions; the same table always gives the same result.

    noise_floor: the JS (nats) of a model against itself in two batch layouts, if it was measured.
    """
    column = {
        name: table[name].to_numpy()
        for name in table.column_names
        if table[name].type != pa.string() and not _is_list(table, name)
    }
    figures, caveats = _figures(column, list(notes))
    if noise_floor is not None:
        figures["noise_floor_js_nats"] = Figure(noise_floor, "nats", len(table))
    panels = [
        Panel("Texts", "Every answer, token by token; the stronger the colour, the larger the shift.", "texts", table),
        *_distribution_panels(column),
        *_position_panels(column),
        *_reallocation_panels(table, column),
        *_type_panels(table, column),
    ]
    return Result(
        "compare tokens",
        table,
        figures,
        provenance or {},
        _verdict(table, column, figures, noise_floor),
        caveats,
        panels,
    )


def _is_list(table: pa.Table, name: str) -> bool:
    return pa.types.is_fixed_size_list(table[name].type)


def _figures(column: Mapping[str, NDArray[Any]], notes: list[str]) -> tuple[dict[str, Figure], list[str]]:
    texts, js, rank = column["text"], column["js_nats"], column["rank_base_of_tuned_top1"]
    figures = {"js_mean_nats": statistics.mean_figure(js, texts, unit="nats")}
    figures |= statistics.quantile_figures("js_nats", js, unit="nats")
    figures["js_share_below_0.01"] = statistics.mean_figure(js < LOW, texts, unit="share")
    figures["js_share_above_0.1"] = statistics.mean_figure(js > HIGH, texts, unit="share")
    for name in ("kl_base_tuned_nats", "kl_tuned_base_nats"):
        infinite = int(np.isinf(column[name]).sum())
        if infinite:
            notes.append(
                f"{name} is infinite at {infinite} of {len(js)} positions (one model excludes a token): its mean is left out"
            )
        else:
            figures[name] = statistics.mean_figure(column[name], texts, unit="nats")
        figures |= statistics.quantile_figures(name, column[name], unit="nats")
    figures["tv_mean"] = statistics.mean_figure(column["tv"], texts, unit="share")
    for number, name in enumerate(CLASSES):
        chosen = (rank == 0, (rank == 1) | (rank == 2), rank > 2)[number]
        figures[f"{name}_share"] = statistics.mean_figure(chosen, texts, unit="share")
    figures["tuned_top1_in_base_top3_share"] = statistics.mean_figure(rank < 3, texts, unit="share")
    figures["emitted_top1_in_base_share"] = statistics.mean_figure(column["rank_base"] == 0, texts, unit="share")
    figures["emitted_shifted_share"] = statistics.mean_figure(column["rank_base"] > 2, texts, unit="share")
    for name in ("entropy_base_nats", "entropy_tuned_nats"):
        figures[f"{name.removesuffix('_nats')}_mean_nats"] = statistics.mean_figure(column[name], texts, unit="nats")
    gain = column["logp_tuned_nats"] - column["logp_base_nats"]
    if np.isfinite(gain).all():
        figures["logp_gain_mean_nats"] = statistics.mean_figure(gain, texts, unit="nats")
    high = js > HIGH
    if high.any():
        below = column["p_base_of_tuned_top1"][high] < 0.01
        figures["tuned_top1_base_p_below_0.01_share_where_js_above_0.1"] = statistics.mean_figure(
            below, texts[high], unit="share"
        )
        inside = rank[high] < 3
        figures["tuned_top1_in_base_top3_share_where_js_above_0.1"] = statistics.mean_figure(
            inside, texts[high], unit="share"
        )
    else:
        notes.append("no position has JS above 0.1: figures about such positions are left out")
    if "js_top_p_nats" in column:
        truncated = column["js_top_p_nats"]
        figures["js_top_p_mean_nats"] = statistics.mean_figure(truncated, texts, unit="nats")
        figures["js_top_p_share_below_0.01"] = statistics.mean_figure(truncated < LOW, texts, unit="share")
        figures["js_top_p_share_above_0.1"] = statistics.mean_figure(truncated > HIGH, texts, unit="share")
    figures["texts"] = Figure(len(np.unique(texts)), "count", len(js))
    figures["positions"] = Figure(len(js), "count", len(js))
    return figures, notes


def _distribution_panels(column: Mapping[str, NDArray[Any]]) -> list[Panel]:
    grid = np.geomspace(1e-7, divergence.LN2, 120)
    names = {"js_nats": "JS"} | ({"js_top_p_nats": "JS, top-p truncated"} if "js_top_p_nats" in column else {})
    cdf = pa.table(
        {
            "js_nats": np.tile(grid, len(names)),
            "share": np.concatenate(
                [np.searchsorted(np.sort(column[n]), grid, side="right") / len(column[n]) for n in names]
            ),
            "measure": np.repeat(list(names.values()), len(grid)),
        }
    )
    which = np.clip(np.digitize(column["js_nats"], JS_BINS[1:-1], right=True), 0, len(JS_BINS) - 2)
    labels = [f"{low:g}–{min(high, 0.693):.3g}" for low, high in pairwise(JS_BINS)]
    rows = []
    for number, label in enumerate(labels):
        for series in ("base", "tuned"):
            values = column[f"entropy_{series}_nats"][which == number]
            if values.size:
                figure = statistics.mean_figure(values, column["text"][which == number], unit="nats")
                rows.append(
                    {
                        "bin": label,
                        "model": series,
                        "entropy": figure.value,
                        "low": figure.low,
                        "high": figure.high,
                        "positions": values.size,
                    }
                )
    return [
        Panel(
            "How the shift is distributed",
            "Share of positions whose JS is at most x: the steeper on the left, the sparser the change.",
            "line", cdf, x="js_nats", y="share", series="measure", x_title="JS (nats)", y_title="share of positions", log_x=True,
        ),
        Panel(
            "Uncertainty where it shifts", "Mean entropy of both laws by size of the shift, with 95 % intervals over texts.",
            "bar", pa.Table.from_pylist(rows), x="bin", y="entropy", low="low", high="high", series="model",
            x_title="JS (nats)", y_title="entropy (nats)",
        ),
    ]  # fmt: skip


def _position_panels(column: Mapping[str, NDArray[Any]]) -> list[Panel]:
    texts, position, js = column["text"], column["position"], column["js_nats"]
    _, inverse, counts = np.unique(texts, return_inverse=True, return_counts=True)
    relative = (position + 0.5) / counts[inverse]
    bins = min(20, int(counts.max()))
    return [
        Panel(
            "Where in the answer", "Mean JS by place in the answer (0 the first token, 1 the last), with a 95 % band over texts.",
            "line", _curve(np.minimum((relative * bins).astype(int), bins - 1), js, texts, lambda b: (b + 0.5) / bins),
            x="place", y="js_nats", low="low", high="high", x_title="relative position", y_title="mean JS (nats)",
        ),
        Panel(
            "The first tokens", "Mean JS by absolute position, with a 95 % band over texts.",
            "line", _curve(position[position < 64], js[position < 64], texts[position < 64], float),
            x="place", y="js_nats", low="low", high="high", x_title="position (tokens)", y_title="mean JS (nats)",
        ),
    ]  # fmt: skip


def _curve(places: NDArray[Any], values: NDArray[Any], texts: NDArray[Any], label: Callable[[int], float]) -> pa.Table:
    rows = []
    for place in np.unique(places):
        here = places == place
        figure = statistics.mean_figure(values[here], texts[here], unit="nats", samples=400)
        rows.append(
            {
                "place": label(place),
                "js_nats": figure.value,
                "low": figure.low,
                "high": figure.high,
                "positions": figure.n,
            }
        )
    return pa.Table.from_pylist(rows)


def _reallocation_panels(table: pa.Table, column: Mapping[str, NDArray[Any]]) -> list[Panel]:
    high = column["js_nats"] > HIGH
    groups = {"all positions": np.ones_like(high)} | ({f"JS > {HIGH:g}": high} if high.any() else {})
    lists = [_lists(table, name) for name in ("top_base_ids", "top_tuned_ids")]
    overlap = divergence.top_k_overlap(*lists).numpy()
    by_k = [
        {"k": k + 1, "overlap": float(overlap[rows, k].mean()), "positions": name}
        for name, rows in groups.items()
        for k in range(overlap.shape[1])
    ]
    rank = column["rank_base_of_tuned_top1"]
    buckets = {
        "1": rank == 0,
        "2": rank == 1,
        "3": rank == 2,
        "4–10": (rank > 2) & (rank < 10),
        "11–100": (rank > 9) & (rank < 100),
        "over 100": rank > 99,
    }
    by_rank = [
        {"rank": label, "share": float(inside[rows].mean()), "positions": name}
        for name, rows in groups.items()
        for label, inside in buckets.items()
    ]
    flows = []
    for name, rows in groups.items():
        for flow, label in FLOW_LABELS.items():
            figure = statistics.mean_figure(column[flow][rows], column["text"][rows], unit="share", samples=400)
            flows.append(
                {"base rank": label, "mass": figure.value, "low": figure.low, "high": figure.high, "positions": name}
            )
    chosen = high if high.any() else np.ones_like(high)
    edges = np.linspace(0, 1, 21)
    histogram = np.histogram(column["p_base_of_tuned_top1"][chosen], edges)[0] / chosen.sum()
    probability = pa.table({"probability": [f"{low:.2f}" for low in edges[:-1]], "share": histogram})
    where = f"at positions with JS > {HIGH:g}" if high.any() else "at all positions (none has JS > 0.1)"
    return [
        Panel(
            "Do the top tokens agree?", "Mean share of the k most probable tokens that both models have in common.",
            "line", pa.Table.from_pylist(by_k), x="k", y="overlap", series="positions", x_title="k", y_title="top-k overlap",
        ),
        Panel(
            "Was the tuned favourite already near the top?", "Rank that the base gives to the tuned model's most probable token.",
            "bar", pa.Table.from_pylist(by_rank), x="rank", y="share", series="positions",
            x_title="rank under the base", y_title="share of positions",
        ),
        Panel(
            "How probable was it before?", f"Base probability of the tuned model's favourite, {where}.",
            "bar", probability, x="probability", y="share", x_title="base probability (from)", y_title="share of positions",
        ),
        Panel(
            "Where the probability went",
            "Mean change of mass by the token's rank under the base (tuned minus base), with 95 % intervals.",
            "bar", pa.Table.from_pylist(flows), x="base rank", y="mass", low="low", high="high", series="positions",
            x_title="rank under the base", y_title="change of probability",
        ),
    ]  # fmt: skip


def _lists(table: pa.Table, name: str) -> Tensor:
    lists = table[name].combine_chunks()
    return torch.from_numpy(lists.flatten().to_numpy().reshape(len(lists), -1).copy())


def _type_panels(table: pa.Table, column: Mapping[str, NDArray[Any]], most: int = 25) -> list[Panel]:
    types = token_types(table, column)
    kept = [row for row in types if row["count"] >= max(3, 0.0005 * len(table))] or types
    ordered = sorted(kept, key=lambda row: -row["mean JS (nats)"])
    return [
        Panel(
            "Most shifted token types",
            "Token types by mean JS; rare ones are left out.",
            "table",
            pa.Table.from_pylist(ordered[:most]),
        ),
        Panel(
            "Least shifted token types",
            "The other end of the same list.",
            "table",
            pa.Table.from_pylist(ordered[::-1][:most]),
        ),
    ]


def token_types(table: pa.Table, column: Mapping[str, NDArray[Any]]) -> list[dict[str, Any]]:
    """Per token type of the answers: count, mean JS, share above 0.1, share shifted by rank."""
    ids, inverse = np.unique(column["token_id"], return_inverse=True)
    names = json.loads(table.schema.metadata[b"tokens"])
    counts = np.bincount(inverse)
    js = np.bincount(inverse, weights=column["js_nats"]) / counts
    above = np.bincount(inverse, weights=column["js_nats"] > HIGH) / counts
    shifted = np.bincount(inverse, weights=column["rank_base_of_tuned_top1"] > 2) / counts
    return [
        {
            "token": names[str(token)],
            "count": int(counts[i]),
            "mean JS (nats)": float(js[i]),
            "share JS > 0.1": float(above[i]),
            "shifted share": float(shifted[i]),
        }
        for i, token in enumerate(ids.tolist())
    ]


def _verdict(
    table: pa.Table, column: Mapping[str, NDArray[Any]], figures: Mapping[str, Figure], noise_floor: float | None
) -> list[str]:
    n, texts = len(table), figures["texts"].value
    js, above, below = figures["js_mean_nats"], figures["js_share_above_0.1"], figures["js_share_below_0.01"]
    if column["js_nats"].max() == 0:
        return [
            f"The two checkpoints give exactly the same law at all {n:,} positions of {texts:,} texts: nothing changed."
        ]
    sentences = [
        f"{_percent(above)} of {n:,} positions moved by more than {HIGH:g} nats (JS) and {_percent(below)} by less than {LOW:g}; "
        f"the mean is {js.value:.3g} nats (95 % interval {js.low:.3g} to {js.high:.3g} over {texts:,} texts)."
    ]
    ordered = sorted(
        (row for row in token_types(table, column) if row["count"] >= max(3, 0.002 * n)),
        key=lambda r: -r["mean JS (nats)"],
    )
    third = [float(column["js_nats"][_third(column) == k].mean()) for k in range(3) if (_third(column) == k).any()]
    place = ("beginning", "middle", "end")[int(np.argmax(third))]
    names = ", ".join(f"“{row['token'].strip() or repr(row['token'])[1:-1]}”" for row in ordered[:4])
    sentences.append(
        f"The shift is largest in the {place} of the answers"
        + (f"; the most shifted token types are {names}." if names else ".")
    )
    where, inside = (
        f"Where it moved by more than {HIGH:g} nats",
        figures.get("tuned_top1_in_base_top3_share_where_js_above_0.1"),
    )
    if inside is None:
        where, inside = "Over all positions", figures["tuned_top1_in_base_top3_share"]
    meaning = (
        "a re-weighting of what the base considered"
        if float(inside.value) > 0.8
        else "in good part words that the base would not have chosen"
    )
    sentences.append(
        f"{where}, the tuned model's favourite was among the base's top three at {_percent(inside)}: {meaning}."
    )
    if noise_floor is not None and float(figures["js_nats_p50"].value) < 3 * noise_floor:
        sentences.append(
            f"The median shift is within the rounding of one model in two batch layouts ({noise_floor:.2g} nats)."
        )
    return sentences


def _third(column: Mapping[str, NDArray[Any]]) -> NDArray[np.int64]:
    _, inverse, counts = np.unique(column["text"], return_inverse=True, return_counts=True)
    return np.asarray(3 * column["position"] // counts[inverse], dtype=np.int64)


def _percent(figure: Figure) -> str:
    return f"{100 * float(figure.value):.3g} %"
