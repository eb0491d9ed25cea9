"""Scorer mismatch: how far apart are two scorings of the same tokens by the same weights, and what that does to training.

A trainer and an inference engine that differ in precision, attention kernel, batch layout or tokens give one policy two
log-probabilities; their ratio weights every update. Compared are two dtypes, two attention back-ends, two batch layouts,
log-probabilities in a file, or an OpenAI-compatible endpoint. Ratios are model over against: the model trains, the other
sampled.

Source: arXiv 1707.06347 (importance ratio and its clipping); arXiv 2503.14476 (clip range 0.8 to 1.28); k1, k2, k3: Schulman
2020. An endpoint lists only its most probable tokens, so divergences are given as lower and upper bounds.
"""

# N tokens, S texts (sequences)

from __future__ import annotations

import copy
import itertools
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from shiftscope.core import answers, checkpoints, paired, statistics
from shiftscope.core.answers import Compiling, Texts
from shiftscope.core.checkpoints import Checkpoint, DTypeName, check_same_vocabulary, opened
from shiftscope.core.corpus import Template, Text
from shiftscope.core.decode import Sampling
from shiftscope.core.endpoint import Asking, Endpoint, parse_address
from shiftscope.core.paired import PairedText
from shiftscope.core.parts import Parts
from shiftscope.core.result import Figure, Panel, Result
from shiftscope.core.scorers import logged, rescoring, scoring
from shiftscope.core.scorers.rescoring import Serving
from shiftscope.core.settings import unread

Column = Mapping[str, NDArray[Any]]
RATIO_QUANTILES = (0.001, 0.01, 0.05, 0.5, 0.95, 0.99, 0.999)
ENTROPY_EDGES = (0.0, 0.1, 0.5, 1.0, 2.0, 4.0)
PROBABILITY_EDGES = (0.0, 0.01, 0.1, 0.5, 0.9, 0.99)
KINDS = {
    "dtype": "dtype:bfloat16",
    "attention": "attention:eager",
    "batch": "batch:1",
    "file": "file:PATH",
    "endpoint": "endpoint:URL#model",
}


@dataclass(frozen=True)
class Clipping:
    """The range of importance ratios that an update leaves alone. clip_low: below it, clip_high: above it a token is clipped."""

    clip_low: float = 0.8
    clip_high: float = 1.28

    def __post_init__(self) -> None:
        if not 0 <= self.clip_low < 1 < self.clip_high:
            raise ValueError(
                f"clip range {self.clip_low} to {self.clip_high}: it must hold 1, with a low end of 0 or more"
            )


@dataclass(frozen=True)
class Against:
    """What the model is held against: kind (a key of KINDS) and value."""

    kind: str
    value: str

    @property
    def label(self) -> str:
        """As sentences call it."""
        return {
            "dtype": self.value,
            "attention": f"the {self.value} attention back-end",
            "batch": "scoring one text at a time" if self.value == "1" else f"scoring in batches of {self.value}",
            "file": "the file",
            "endpoint": "the endpoint",
        }[self.kind]


def scorers(
    model: str | Checkpoint,
    *,
    against: str,
    texts: Texts = None,
    limit: int | None = None,
    template: Template = "plain",
    sampling: Sampling = Sampling(temperature=1.0),
    loading: Compiling = Compiling(),
    clipping: Clipping = Clipping(),
    serving: Serving = Serving(),
    asking: Asking = Asking(),
    parts: Parts | None = None,
    advance: answers.Advance | None = None,
) -> Result:
    """Score the same tokens twice with the same weights and measure the mismatch of trainer and sampler.

    model: the scorer that trains (path, hub id, zoo name, or a loaded Checkpoint), run here.
    against: the scorer that sampled: dtype:bfloat16, attention:eager, batch:1, file:PATH (jsonl or parquet with prompt_ids,
        ids and logprobs) or endpoint:URL#model.
    texts: jsonl, parquet or txt with a prompt and optionally an answer per record; answers that are missing are sampled
        (from the other scorer where it runs here); without texts, the prompts that ship with the model.
    limit: only the first records.
    template: how the prompt is rendered: plain, chat (the tokenizer's template) or frame (zero-shot frame).
    Returns a Result whose table has one row per answer token; tokens that the other scorer did not score are rows with
    the reason.
    Raises ValueError, in one sentence, for a scorer of no known kind, a file that does not fit, tokenizers that differ.
    """
    what = parse_against(against)
    parts = parts or Parts()
    if what.kind == "file" and texts is not None:
        raise ValueError("--texts and --against file:… both name the tokens: the file's are scored, leave --texts out")
    _check_read(what, sampling, loading, serving, asking)
    endpoint = Endpoint(what.value, asking) if what.kind == "endpoint" else None
    first = opened(model, dtype=loading.dtype, device=loading.device)
    settings = answers.provenance(
        first, None, against=against, texts=texts, limit=limit, template=template, sampling=asdict(sampling),
        loading=asdict(loading), serving=asdict(serving) if endpoint else None,
    )  # fmt: skip
    settings["model"] = settings.pop("base")
    given = [] if what.kind == "file" else answers.corpus_of(texts, first, limit)
    if what.kind != "file":
        answers.check_sampling(given, sampling, Sampling(temperature=1.0))
    parts.settle(settings)
    step = None if advance is None else lambda done, total: advance("scoring", done, total)
    if what.kind == "file":
        found = logged.read(what.value, first, template=template, limit=limit)
        rows = rescoring.from_file(first, found, batch_size=loading.batch_size, parts=parts, advance=step)
        return _finished(rows, first, found.texts, found.items, what, clipping, "given", [], settings)
    second = first if endpoint or what.kind == "batch" else _copy(first, what, loading)
    prepared = answers.prepare(
        first, second, given, template=template, sampling=sampling, batch_size=loading.batch_size, parts=parts, advance=advance,
    )  # fmt: skip
    if endpoint:
        rows = rescoring.from_endpoint(
            first, endpoint, serving, prepared.paired, batch_size=loading.batch_size, parts=parts, advance=step
        )
    else:
        layouts = what.kind == "batch"
        scorer = scoring.TwoLayouts(first, first, together=int(what.value)) if layouts else paired.Scorer(first, second)
        rows = paired.run(
            replace(scorer, compiled=loading.compile), prepared.paired, {"rows": rescoring.measure},
            batch_size=loading.batch_size, parts=parts, advance=step,
        )["rows"]  # fmt: skip
    drawn = _drawn(given, sampling, what)
    notes = [*prepared.notes, *answers.compile_notes(loading, first)]
    return _finished(rows, first, prepared.texts, prepared.paired, what, clipping, drawn, notes, settings)


def _check_read(what: Against, sampling: Sampling, loading: Compiling, serving: Serving, asking: Asking) -> None:
    """Raises ValueError for a setting that this kind of scorer does not read."""
    if what.kind == "file":
        unread(sampling, Sampling(temperature=1.0), "a scorer other than --against file:…")
    if what.kind in ("file", "endpoint"):
        unread(loading, Compiling(), "a scorer that runs here (dtype:…, attention:…, batch:…)", "compile")
    if what.kind != "endpoint":
        unread(serving, Serving(), "--against endpoint:…")
        unread(asking, Asking(), "--against endpoint:…")


def parse_against(against: str) -> Against:
    """Read 'kind:value'. Raises ValueError, naming the kinds, for anything else."""
    kind, _, value = against.partition(":")
    if kind not in KINDS or not value:
        raise ValueError(f"{against!r} is no scorer: give one of {', '.join(KINDS.values())}")
    if kind == "dtype" and value not in get_args(DTypeName)[1:]:
        raise ValueError(f"{against!r}: the dtypes are {', '.join(get_args(DTypeName)[1:])}")
    if kind == "batch" and not re.fullmatch(r"[1-9]\d*", value):
        raise ValueError(f"{against!r}: give a batch size of at least 1, as in batch:1")
    if kind == "endpoint":
        parse_address(value)
    return Against(kind, value)


def _copy(first: Checkpoint, what: Against, loading: Compiling) -> Checkpoint:
    """The same weights in another dtype or behind another attention back-end; the given model is not touched."""
    dtype = what.value if what.kind == "dtype" else loading.dtype
    if "sha256" in first.provenance:  # it was loaded by name: so is its copy
        second = checkpoints.load(first.name, dtype=dtype, device=loading.device)  # type: ignore[arg-type]
    else:
        model = copy.deepcopy(first.model)
        if what.kind == "dtype":
            for parameter in model.parameters():
                parameter.data = parameter.data.to(getattr(torch, what.value))
        second = checkpoints.wrap(model, first.tokenizer, f"{first.name} in {what.value}")
    if what.kind == "attention":
        try:
            second.model.set_attn_implementation(what.value)
        except (ValueError, ImportError, KeyError) as error:
            reason = str(error).strip().splitlines()[0].rstrip(".")
            raise ValueError(f"{first.name} cannot run with {what.value!r} attention: {reason}") from error
    check_same_vocabulary(first, second)
    return second


def _drawn(given: Sequence[Text], sampling: Sampling, what: Against) -> str:
    """Where the answers come from: 'against' (drawn from it as it is), 'model', or 'given'."""
    plain = sampling.temperature == 1 and sampling.top_p == 1
    if any(text.answer is not None for text in given) or not plain:
        return "given"
    return "model" if what.kind == "endpoint" else "against"


def _finished(
    rows: pa.Table,
    model: Checkpoint,
    texts: Sequence[Text],
    items: Sequence[PairedText],
    what: Against,
    clipping: Clipping,
    drawn: str,
    notes: Sequence[str],
    provenance: Mapping[str, Any],
) -> Result:
    changed = {item.text: scoring.retokenised(model.tokenizer, (*item.tuned_context, *item.answer)) for item in items}
    sizes = {item.text: len(item.tuned_context) + len(item.answer) for item in items}
    about = [
        {"text": t.text, "id": t.id, "prompt": t.prompt, "answer": t.answer}
        | {"tokens": sizes[t.text], "retokenised": changed[t.text]}
        for t in texts
    ]
    table = rescoring.named(rows, model, about)
    return summarise(table, what.label, clipping=clipping, drawn=drawn, notes=notes, provenance=provenance)


def summarise(
    table: pa.Table,
    label: str,
    *,
    clipping: Clipping = Clipping(),
    drawn: str = "given",
    notes: Sequence[str] = (),
    provenance: Mapping[str, Any] | None = None,
) -> Result:
    """Figures, panels and verdict of a table of tokens; the same table always gives the same result.

    label: what the model is held against, in words. drawn: 'against', 'model' or 'given', where the answers come from.
    """
    caveats, problems = list(notes), _unscored(table)
    n, unscored = len(table), sum(count for _, count in problems)
    figures = _drift(table) | {"tokens": Figure(n, "count", n), "unscored_tokens": Figure(unscored, "count", n)}
    if "id_named" in table.column_names:
        figures["ids_named_share"] = Figure(float(np.mean(table["id_named"].to_numpy())), "share", n)
    caveats += [f"{count:,} tokens are not scored: {problem}" for problem, count in problems[:5]]
    if unscored == n:
        verdict = [f"Nothing could be compared: {label} scored none of {n:,} tokens ({problems[0][0]})."]
        panel = _unscored_panel(problems)
        return Result("compare scorers", table, figures, provenance or {}, verdict, caveats, panel)
    scored = table.filter(_scored(table))
    column = {
        name: scored[name].to_numpy()
        for name in scored.column_names
        if scored[name].type not in (pa.string(), pa.bool_())
    }
    logs = column["logp_model_nats"].astype(np.float64) - column["logp_against_nats"].astype(np.float64)
    column |= {"log_ratio": logs, "gap": np.abs(logs)}
    figures |= _gap_figures(column) | _ratio_figures(column, clipping) | _law_figures(column)
    if drawn != "against":
        source = "drawn from the model, not from what it is held against" if drawn == "model" else "given"
        caveats.append(
            f"the answers are {source}: ratios, effective samples and k1 to k3 describe these tokens; they estimate the "
            f"divergence of the policies only for answers drawn from the other scorer at temperature 1"
        )
    if "js_low_nats" in column:
        caveats.append(
            "KL(model‖against) has no finite upper bound: a token that the endpoint does not list may have any small probability"
        )
    panels = [*_place_panels(column), *_where_panels(scored, column), *_unscored_panel(problems)]
    return Result(
        "compare scorers",
        table,
        figures,
        provenance or {},
        _verdict(scored, column, figures, label, clipping),
        caveats,
        panels,
    )


def _scored(table: pa.Table) -> pa.Array:
    """Tokens with two finite log-probabilities."""
    ours, theirs = (table[f"logp_{side}_nats"].to_numpy() for side in ("model", "against"))
    return pa.array(np.isfinite(ours) & np.isfinite(theirs))


def _unscored(table: pa.Table) -> list[tuple[str, int]]:
    """Why tokens have no ratio, and how many, the most frequent first."""
    rows = table.filter(pa.array(~_scored(table).to_numpy(zero_copy_only=False)))
    reasons = [
        problem or "one of the two scorers holds the token to be impossible" for problem in rows["problem"].to_pylist()
    ]
    return sorted(Counter(reasons).items(), key=lambda entry: (-entry[1], entry[0]))


def _drift(table: pa.Table) -> dict[str, Figure]:
    """How many texts and tokens come back otherwise when a text is decoded and tokenised again."""
    about = json.loads(table.schema.metadata[b"texts"])
    changed, tokens = (np.array([entry[name] for entry in about]) for name in ("retokenised", "tokens"))
    share = Figure(float(changed.sum() / tokens.sum()), "share", int(tokens.sum()))
    return {
        "texts": Figure(len(about), "count", len(about)),
        "retokenised_texts_share": statistics.share_figure(int((changed > 0).sum()), len(about)),
        "retokenised_tokens_share": share,
    }


def _gap_figures(column: Column) -> dict[str, Figure]:
    texts, gap, logs = column["text"], column["gap"], column["log_ratio"]
    figures = {
        "gap_mean_nats": statistics.mean_figure(gap, texts, unit="nats"),
        **statistics.quantile_figures("gap_nats", gap, unit="nats"),
        "log_ratio_mean_nats": statistics.mean_figure(logs, texts, unit="nats"),
    }
    if gap.sum() > 0 and len(gap) >= 100:
        worst = np.sort(gap)[-round(len(gap) / 100) :]
        figures["gap_share_of_worst_1_percent"] = Figure(float(worst.sum() / gap.sum()), "share", len(gap))
    return figures


def _ratio_figures(column: Column, clipping: Clipping) -> dict[str, Figure]:
    """Importance ratios per token and per sequence: quantiles, effective sample, clipping, and k1 to k3."""
    texts, logs = column["text"], column["log_ratio"]
    names, inverse, counts = np.unique(texts, return_inverse=True, return_counts=True)
    whole_S = np.bincount(inverse, weights=logs)
    figures: dict[str, Figure] = {}
    with np.errstate(over="ignore"):
        ratio, ratio_S = np.exp(logs), np.exp(whole_S)
    figures |= statistics.quantile_figures("ratio_token", ratio, unit="", quantiles=RATIO_QUANTILES)
    figures |= statistics.quantile_figures("ratio_sequence", ratio_S, unit="", quantiles=RATIO_QUANTILES[2:5])
    for name, values, groups in (("token", logs, texts), ("sequence", whole_S, names)):
        low, high = scoring.effective_share_interval(values, groups)
        share = scoring.effective_share(values)
        figures[f"effective_sample_share_{name}"] = Figure(
            share, "share", len(values), min(low, share), max(high, share)
        )
    below, above = ratio < clipping.clip_low, ratio > clipping.clip_high
    outside_S = np.bincount(inverse, weights=below | above) > 0
    for name, values in (("", below | above), ("_below", below), ("_above", above)):
        figures[f"clipped{name}_share"] = statistics.mean_figure(values, texts, unit="share")
    figures["sequences_with_clipped_tokens_share"] = statistics.share_figure(int(outside_S.sum()), len(names))
    figures["sequence_tokens_mean"] = Figure(float(counts.mean()), "tokens", len(counts))
    for name, values in scoring.kl_estimates(logs).items():
        if np.isfinite(values).all():
            figures[f"{name}_against_model_nats"] = statistics.mean_figure(values, texts, unit="nats")
    return figures


def _law_figures(column: Column) -> dict[str, Figure]:
    """Means of the divergences of whole laws, or of their bounds."""
    figures = {}
    for name in column:
        measured = name.startswith(("js_", "kl_", "tv", "tail_mass"))
        if measured and np.isfinite(column[name]).all():
            unit = "nats" if name.endswith("_nats") else "share"
            mean = f"{name.removesuffix('_nats')}_mean_nats" if unit == "nats" else f"{name}_mean"
            figures[mean] = statistics.mean_figure(column[name], column["text"], unit=unit)
    if "js_nats" in column:
        figures |= statistics.quantile_figures("js_nats", column["js_nats"], unit="nats")
    return figures


def _place_panels(column: Column) -> list[Panel]:
    """Distribution of the ratios, and both curves over the position."""
    order = np.sort(column["log_ratio"])
    picks = np.unique(np.linspace(0, len(order) - 1, min(len(order), 400)).round().astype(int))
    cdf = pa.table({"log_ratio": order[picks], "share": (picks + 1) / len(order)})
    position, texts = column["position"], column["text"]
    edges = np.unique(np.geomspace(1, position.max() + 2, 25).astype(int)) - 1
    places = np.digitize(position, edges) - 1
    labels = [float(low + high - 1) / 2 for low, high in itertools.pairwise(edges)]
    curve = _binned(column, places, labels)
    inverse = np.unique(texts, return_inverse=True)[1]
    effective = []
    for edge in edges[1:]:
        long_S = np.bincount(inverse, weights=position == edge - 1) > 0
        sums_S = np.bincount(inverse, weights=np.where(position < edge, column["log_ratio"], 0))[long_S]
        if len(sums_S) > 1:
            effective.append({"tokens": int(edge), "share": scoring.effective_share(sums_S), "sequences": len(sums_S)})
    panels = [
        Panel(
            "How the log-ratios are distributed", "Share of tokens whose log-ratio is at most x: the steeper at 0, the better.",
            "line", cdf, x="log_ratio", y="share", x_title="log-ratio, model over against (nats)", y_title="share of tokens",
        ),
        Panel(
            "Where in the answer", "Mean size of the difference by position, with a 95 % band over texts.",
            "line", curve, x="bin", y="gap", low="low", high="high",
            x_title="position (tokens)", y_title="mean difference (nats)",
        ),
    ]  # fmt: skip
    if effective:
        panels.append(
            Panel(
                "What is left of the sample",
                "Effective share of the sequences when each is weighted by the ratio of its first tokens.",
                "line", pa.Table.from_pylist(effective), x="tokens", y="share",
                x_title="first tokens of a sequence", y_title="effective sample share",
            )
        )  # fmt: skip
    return panels


def _where_panels(table: pa.Table, column: Column) -> list[Panel]:
    """By entropy, by probability, by token type, and the worst tokens."""
    panels = []
    probability = np.exp(column["logp_model_nats"])
    for title, caption, values, edges, x_title in (
        ("By uncertainty", "entropy of the model's law", column["entropy_model_nats"], ENTROPY_EDGES, "entropy (nats)"),
        ("By probability", "the model's probability of the token", probability, PROBABILITY_EDGES, "probability"),
    ):
        labels = [f"{low:g}–{high:g}" for low, high in itertools.pairwise(edges)] + [f"from {edges[-1]:g}"]
        binned = _binned(column, np.digitize(values, edges) - 1, labels)
        text = f"Mean size of the difference by {caption}, with 95 % intervals over texts."
        panels.append(
            Panel(
                title, text, "bar", binned, x="bin", y="gap", low="low", high="high",
                x_title=x_title, y_title="mean difference (nats)",
            )
        )  # fmt: skip
    types = [row for row in token_types(table, column) if row["count"] >= max(3, 0.0005 * len(table))]
    if types:
        caption = "By mean size of the difference; rare ones are left out."
        panels.append(Panel("Token types", caption, "table", pa.Table.from_pylist(types[:25])))
    panels.append(
        Panel("Worst tokens", "The largest differences, with what stands before.", "table", _worst(table, column))
    )
    return panels


def _binned(column: Column, bins: NDArray[Any], labels: Sequence[str | float]) -> pa.Table:
    rows = []
    for number in np.unique(bins):
        here = bins == number
        figure = statistics.mean_figure(column["gap"][here], column["text"][here], unit="nats", samples=400)
        rows.append(
            {"bin": labels[number], "gap": figure.value, "low": figure.low, "high": figure.high, "tokens": figure.n}
        )
    return pa.Table.from_pylist(rows)


def token_types(table: pa.Table, column: Column) -> list[dict[str, Any]]:
    """Per token type: count, mean size and mean sign of the difference; the largest first."""
    _, first, inverse, counts = np.unique(
        column["token_id"], return_index=True, return_inverse=True, return_counts=True
    )
    gap, logs = (np.bincount(inverse, weights=column[name]) / counts for name in ("gap", "log_ratio"))
    return [
        {
            "token": table["token"][int(first[i])].as_py(),
            "count": int(counts[i]),
            "mean difference (nats)": float(gap[i]),
            "mean log-ratio (nats)": float(logs[i]),
        }
        for i in np.argsort(-gap, kind="stable").tolist()
    ]


def _worst(table: pa.Table, column: Column, most: int = 25, before: int = 8) -> pa.Table:
    tokens, texts = table["token"].to_pylist(), column["text"]
    rows = []
    for row in np.argsort(-column["gap"], kind="stable")[:most].tolist():
        start = max(row - before, int(np.searchsorted(texts, texts[row])))
        rows.append(
            {
                "text": int(texts[row]),
                "position": int(column["position"][row]),
                "before": "".join(tokens[start:row]),
                "token": tokens[row],
                "log-probability, model (nats)": float(column["logp_model_nats"][row]),
                "log-probability, against (nats)": float(column["logp_against_nats"][row]),
                "ratio": float(np.exp(min(column["log_ratio"][row], 700.0))),
            }
        )
    return pa.Table.from_pylist(rows)


def _unscored_panel(problems: Sequence[tuple[str, int]]) -> list[Panel]:
    if not problems:
        return []
    rows = pa.table({"reason": [reason for reason, _ in problems], "tokens": [count for _, count in problems]})
    return [Panel("Not scored", "Tokens without a second log-probability, and why.", "table", rows)]


def _verdict(
    table: pa.Table, column: Column, figures: Mapping[str, Figure], label: str, clipping: Clipping
) -> list[str]:
    n, texts = len(table), len(np.unique(column["text"]))
    if column["gap"].max() == 0:
        return [
            f"{_capital(label)} gives exactly the same log-probability at all {n:,} tokens of {texts:,} texts: no mismatch."
        ]
    gap, tail = figures["gap_mean_nats"], figures["gap_nats_p99"]
    sentences = [
        f"{_capital(label)} moves the log-probability of a token by {gap.value:.2g} nats on average (95 % interval "
        f"{gap.low:.2g} to {gap.high:.2g} over {texts:,} texts; 99 % of tokens by at most {tail.value:.2g}).",
        f"Sequence-level importance weights keep {_percent(figures['effective_sample_share_sequence'])} of the effective "
        f"sample ({texts:,} sequences of {figures['sequence_tokens_mean'].value:.3g} tokens on average), token-level ones "
        f"{_percent(figures['effective_sample_share_token'])}; {_percent(figures['clipped_share'])} of tokens leave the clip "
        f"range {clipping.clip_low:g} to {clipping.clip_high:g}: {_consequence(figures)}.",
        _where(column, figures),
    ]
    if "js_low_mean_nats" in figures:
        low, high = figures["js_low_mean_nats"], figures["js_high_mean_nats"]
        sentences.append(
            f"The mean JS of the two laws lies between {low.value:.2g} and {high.value:.2g} nats; the endpoint leaves "
            f"{_percent(figures['tail_mass_against_mean'])} of its mass unlisted."
        )
    if figures["retokenised_texts_share"].value:
        sentences.append(
            f"{_percent(figures['retokenised_texts_share'])} of the texts are tokenised otherwise when decoded and read "
            f"again: send token ids, not text."
        )
    return sentences


def _consequence(figures: Mapping[str, Figure]) -> str:
    kept, clipped = float(figures["effective_sample_share_sequence"].value), float(figures["clipped_share"].value)
    if kept >= 0.99 and clipped == 0:
        return "training would not notice"
    return "sequence-level weights are unusable" if kept < 0.5 else "correct for it, or train on what was sampled"


def _where(column: Column, figures: Mapping[str, Figure]) -> str:
    """A sentence on concentration: in few tokens, and at certain or uncertain ones."""
    gap, probability = column["gap"], np.exp(column["logp_model_nats"])
    rare, sure = probability < 0.5, probability >= 0.9
    sentences = []
    if "gap_share_of_worst_1_percent" in figures:
        sentences.append(
            f"1 % of the tokens hold {_percent(figures['gap_share_of_worst_1_percent'])} of the difference."
        )
    if rare.any() and sure.any():
        means = gap[rare].mean(), gap[sure].mean()
        sentences.append(
            f"It is {means[0]:.2g} nats at tokens below probability 0.5 and {means[1]:.2g} at tokens above 0.9: it sits where "
            f"the model is {'unsure' if means[0] > means[1] else 'sure'}."
        )
    return " ".join(sentences) or f"The largest difference of one token is {gap.max():.2g} nats."


def _percent(figure: Figure) -> str:
    value = float(figure.value)
    return "over 99.9 %" if 0.9995 <= value < 1 else f"{100 * value:.3g} %"


def _capital(text: str) -> str:
    return text if text in get_args(DTypeName) else text[:1].upper() + text[1:]
