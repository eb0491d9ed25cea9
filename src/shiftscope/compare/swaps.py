"""Cross-sampling: do the few tokens where a tuned checkpoint differs from its base carry its gain?

While the base writes, the tuned model's token is taken wherever the two laws differ by more than a threshold (forward:
are these tokens enough?); while the tuned model writes, the base's (reverse: are they needed?). Every answer goes to a
verifier.

Source: arXiv 2603.22446, section 3.3. Signed rule: arXiv 2603.22117.
Controls, by default: as many switches at random positions, as many where the base is least sure, and the signed rule.
Deviation: JS over the whole vocabulary at temperature 1, whatever shapes the draws; both models draw with one random
number, so a switch is counted as effective exactly where the two draws differ. The paper names no thresholds: the sweep
is ours.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from shiftscope.core import answers, corpus, statistics, swapping, verifiers
from shiftscope.core.answers import Compiling, Texts
from shiftscope.core.checkpoints import Checkpoint
from shiftscope.core.corpus import Template
from shiftscope.core.decode import Sampling
from shiftscope.core.parts import Parts
from shiftscope.core.result import Figure, Panel, Result
from shiftscope.core.swapping import DIRECTIONS, Setting, Stage, Sweep
from shiftscope.core.verifiers import Verifier

RULES = {
    "js": "JS above a threshold",
    "random": "random positions",
    "entropy": "highest base entropy",
    "signed": "signed rule",
}
CARRIED = 0.95  # of the gain: the sparsest setting that carries so much is the headline
SHOWN_TEXTS = 100  # of each direction, in the panel of texts


def swaps(
    base: str | Checkpoint,
    tuned: str | Checkpoint,
    *,
    verifier: str | Verifier,
    texts: Texts = None,
    limit: int | None = None,
    template: Template = "plain",
    base_template: Template | None = None,
    sweep: Sweep = Sweep(),
    sampling: Sampling = Sampling(temperature=1.0),
    loading: Compiling = Compiling(),
    parts: Parts | None = None,
    advance: answers.Advance | None = None,
) -> Result:
    """Swap tokens between two checkpoints while they write, and see which swaps carry the gain.

    base: the checkpoint before (path, hub id, zoo name, or a loaded Checkpoint).
    tuned: the checkpoint after; both must share one vocabulary.
    verifier: scores an answer: module:function or file.py:function of (prompt, answer, reference), regex:PATTERN (its
        last match equals the reference) or exact.
    texts: jsonl, parquet or txt with a prompt per record, and the reference that the verifier needs; without texts, the
        prompts that ship with the tuned checkpoint. Answers in it are not used.
    limit: only the first records.
    template: how the prompt is rendered: plain, chat (the tokenizer's template) or frame (zero-shot frame).
    base_template: rendering for the base, where it should differ.
    Returns a Result whose table has one row per setting, text and sample, with the record of every token as lists.
    Raises ValueError, in one sentence, for differing vocabularies, malformed texts, a verifier that fails, a prompt
    beyond a context, NaN logits.
    """
    check = verifiers.load(verifier) if isinstance(verifier, str) else verifiers.guarded(verifier, verifier.__name__)
    first, second = answers.pair(base, tuned, loading)
    prompts = answers.corpus_of(texts, second, limit)
    tuned_contexts = [corpus.context_ids(second, text, template) for text in prompts]
    base_contexts = tuned_contexts
    if base_template:
        base_contexts = [corpus.context_ids(first, text, base_template) for text in prompts]
    parts, name = parts or Parts(), verifier if isinstance(verifier, str) else verifier.__name__
    settings = answers.provenance(
        first, second, verifier=name, texts=texts, limit=limit, template=template, base_template=base_template,
        sweep=asdict(sweep), sampling=asdict(sampling), loading=asdict(loading),
    )  # fmt: skip
    parts.settle(settings)
    contexts = list(zip(base_contexts, tuned_contexts, strict=True))
    stage = Stage(first, second, prompts, contexts, check, sweep, sampling, loading.batch_size, loading.compile)
    table = parts.map(
        "swaps", swapping.items(sweep), lambda setting: {"swaps": swapping.measured(stage, setting)},
        advance=None if advance is None else lambda done, total: advance("swapping", done, total), final=True,
    )["swaps"]  # fmt: skip
    result = summarise(swapping.described(table, prompts, second), provenance=settings)
    return replace(result, notes=[*result.notes, *answers.compile_notes(loading, first)])


# ---- summing up -----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Summary:
    """One setting in numbers. mean_G: mean score of each text."""

    setting: Setting
    accuracy: Figure
    effective: Figure
    switched: Figure
    effective_per_answer: float
    mean_G: NDArray[np.float64]


def summarise(table: pa.Table, *, provenance: Mapping[str, Any] | None = None) -> Result:
    """Figures, panels and verdict of a table of answers; the same rows in any order give the same result."""
    found = _summaries(table)
    notes: list[str] = []
    alone = {key.rule: summary for key, summary in found.items() if not key.direction}
    figures = {f"accuracy_{name}": alone[name].accuracy for name in ("base", "tuned") if name in alone}
    gain = None
    if len(alone) == 2:
        difference_G = alone["tuned"].mean_G - alone["base"].mean_G
        gain = figures["accuracy_gain"] = statistics.mean_figure(difference_G, unit="share")
    else:
        notes.append("the rows of a model alone are not in this table: figures about the gain are left out")
    carries = gain is not None and gain.low is not None and gain.low > 0
    if gain is not None and not carries:
        notes.append(
            "the tuned model is not measurably better than the base on these texts: shares of the gain are left out"
        )
    measured = alone if carries else {}
    headline = {direction: _headline(found, direction, measured) for direction in DIRECTIONS}
    figures |= _headline_figures(headline, measured)
    for key, summary in found.items():
        if key.direction:
            figures |= _setting_figures(summary)
    panels = [panel for direction in DIRECTIONS for panel in _curve_panels(found, direction, alone)]
    panels += [_settings_panel(found, measured), *_text_panels(table, headline)]
    return Result(
        "compare swaps", table, figures, provenance or {}, _verdict(found, headline, figures, alone), notes, panels
    )


def _summaries(table: pa.Table) -> dict[Setting, _Summary]:
    names = ("text", "sample", "score", "tokens", "n_switched", "n_effective")
    columns = {name: table[name].to_numpy() for name in names}
    keys = [
        Setting(*row)
        for row in zip(*(table[name].to_pylist() for name in ("direction", "rule", "value", "like")), strict=True)
    ]
    order: dict[Setting, list[int]] = {}
    for number, key in enumerate(keys):
        order.setdefault(key, []).append(number)
    return {
        key: _summary(key, {name: column[order[key]] for name, column in columns.items()})
        for key in sorted(order, key=_place)
    }


def _place(setting: Setting) -> tuple[Any, ...]:
    """Forward before reverse, the rules in their order, large thresholds first."""
    value = setting.value if setting.like is None else setting.like
    rules = ("base", "tuned", *RULES)
    return setting.direction, rules.index(setting.rule), 0.0 if value is None else -value


def _summary(setting: Setting, column: Mapping[str, NDArray[Any]]) -> _Summary:
    text, score, tokens = column["text"], column["score"], column["tokens"]
    sums_G, counts_G = statistics.group_sums(score, text)
    unit = "share" if np.isin(score, (0, 1)).all() else "score"
    binary = unit == "share" and int(counts_G.max()) == 1
    accuracy = (
        statistics.share_figure(int(score.sum()), len(score))
        if binary
        else statistics.mean_figure(score, text, unit=unit)
    )
    effective, switched = (
        statistics.ratio_figure(column[name], tokens, text, unit="share") for name in ("n_effective", "n_switched")
    )
    return _Summary(setting, accuracy, effective, switched, float(column["n_effective"].mean()), sums_G / counts_G)


def _name(setting: Setting) -> str:
    """'forward_js_0.1', 'reverse_random_0.1' (at that threshold's rate), 'forward_signed_minus_3'."""
    value = setting.value if setting.like is None else setting.like
    return f"{setting.direction}_{setting.rule}_{value:g}".replace("-", "minus_")


def _share_of_gain(summary: _Summary, alone: Mapping[str, _Summary]) -> Figure:
    """How much of the gain a forward setting carries, or a reverse one takes away; texts are resampled, gain and
    all."""
    base_G, tuned_G = alone["base"].mean_G, alone["tuned"].mean_G
    moved_G = summary.mean_G - base_G if summary.setting.direction == "forward" else tuned_G - summary.mean_G
    ratios = statistics.resampled_ratios(moved_G, tuned_G - base_G)
    share = float(moved_G.sum() / (tuned_G - base_G).sum())
    low, high = np.quantile(ratios, [0.025, 0.975])
    return Figure(share, "share", len(moved_G), min(float(low), share), max(float(high), share))


def _setting_figures(summary: _Summary) -> dict[str, Figure]:
    name = _name(summary.setting)
    figures = {f"{name}_accuracy": summary.accuracy}
    if summary.setting.rule in ("js", "signed"):
        figures |= {f"{name}_effective_share": summary.effective, f"{name}_switched_share": summary.switched}
    return figures


def _headline(found: Mapping[Setting, _Summary], direction: str, alone: Mapping[str, _Summary]) -> _Summary | None:
    """The sparsest threshold that moves at least CARRIED of the gain, else the one that moves most; None without a
    gain."""
    swept = [summary for key, summary in found.items() if key.direction == direction and key.rule == "js"]
    if not swept or not alone:
        return None
    moved = [float(_share_of_gain(summary, alone).value) for summary in swept]
    enough = [summary for summary, share in zip(swept, moved, strict=True) if share >= CARRIED]
    return min(enough, key=lambda summary: float(summary.effective.value)) if enough else swept[int(np.argmax(moved))]


def _headline_figures(headline: Mapping[str, _Summary | None], alone: Mapping[str, _Summary]) -> dict[str, Figure]:
    figures = {}
    for direction, verb in zip(DIRECTIONS, ("carried", "removed"), strict=True):
        summary = headline[direction]
        if summary is not None and summary.setting.value is not None:
            figures[f"{direction}_threshold_nats"] = Figure(summary.setting.value, "nats", len(summary.mean_G))
            figures[f"{direction}_effective_share"] = summary.effective
            figures[f"{direction}_effective_tokens"] = Figure(
                summary.effective_per_answer, "tokens/answer", summary.accuracy.n
            )
            figures[f"{direction}_gain_{verb}_share"] = _share_of_gain(summary, alone)
    return figures


# ---- panels and sentences -------------------------------------------------------------------------------------------
def _curve_panels(found: Mapping[Setting, _Summary], direction: str, alone: Mapping[str, _Summary]) -> list[Panel]:
    """Accuracy against the share of tokens that really changed; every curve starts at the primary model alone."""
    start = alone.get("base" if direction == "forward" else "tuned")
    rows = []
    for rule, title in RULES.items():
        swept = [summary for key, summary in found.items() if key.direction == direction and key.rule == rule]
        points = [(0.0, start.accuracy)] if start and swept else []
        points += [(float(summary.effective.value), summary.accuracy) for summary in swept]
        rows += [
            {
                "effective": share,
                "accuracy": accuracy.value,
                "low": accuracy.low,
                "high": accuracy.high,
                "switched": title,
            }
            for share, accuracy in sorted(points, key=lambda point: point[0])
        ]
    if not rows:
        return []
    title, caption = {
        "forward": (
            "Are the shifted tokens enough?",
            "The base writes; the tuned model's token is taken where a rule says so.",
        ),
        "reverse": (
            "Are the shifted tokens needed?",
            "The tuned model writes; the base's token is taken where a rule says so.",
        ),
    }[direction]
    return [
        Panel(
            title, f"{caption} Accuracy with 95 % intervals against the share of tokens that came out different for it.",
            "line", pa.Table.from_pylist(rows), x="effective", y="accuracy", low="low", high="high", series="switched",
            x_title="share of tokens swapped (effective)", y_title="accuracy",
        )
    ]  # fmt: skip


def _settings_panel(found: Mapping[Setting, _Summary], alone: Mapping[str, _Summary]) -> Panel:
    rows = []
    for key, summary in found.items():
        moved = _share_of_gain(summary, alone).value if alone and key.direction else None
        rows.append(
            {
                "direction": key.direction or "alone", "switched": RULES.get(key.rule, key.rule),
                "value": key.value, "at the rate of": key.like, "switched share": summary.switched.value,
                "effective share": summary.effective.value, "effective per answer": summary.effective_per_answer,
                "accuracy": summary.accuracy.value, "low": summary.accuracy.low, "high": summary.accuracy.high,
                "gain carried or removed": moved,
            }
        )  # fmt: skip
    caption = (
        "value: threshold (JS, nats), tau (nats), rate, or cutoff (entropy, nats). Effective: the two draws differed."
    )
    return Panel("Every setting", caption, "table", pa.Table.from_pylist(rows))


def _text_panels(table: pa.Table, headline: Mapping[str, _Summary | None]) -> list[Panel]:
    """The answers of both headline settings token by token, swapped tokens marked."""
    names = json.loads(table.schema.metadata[b"tokens"])
    about = {entry["text"]: entry for entry in json.loads(table.schema.metadata[b"texts"])}
    rows: list[dict[str, Any]] = []
    listed: list[dict[str, Any]] = []
    for direction, summary in headline.items():
        if summary is None:
            continue
        wanted = {"direction": direction, "rule": "js", "value": summary.setting.value, "sample": 0}
        chosen = table
        for name, value in wanted.items():
            chosen = chosen.filter(pc.equal(chosen[name], value))
        for answer in chosen.sort_by("text").slice(0, SHOWN_TEXTS).to_pylist():
            entry, score = about[answer["text"]], {0.0: "wrong", 1.0: "right"}.get(answer["score"], answer["score"])
            title = f"{entry['id']} ({direction}, {score})"
            rows += _token_rows(len(listed), answer, direction, names)
            listed.append({"text": len(listed), "id": title, "prompt": entry["prompt"]})
    if not rows:
        return []
    kinds = {"text": pa.int32(), "position": pa.int32(), "token_id": pa.int32()}
    tokens = pa.Table.from_pylist(rows)
    schema = pa.schema([(field.name, kinds.get(field.name, field.type)) for field in tokens.schema])
    tokens = tokens.cast(schema).replace_schema_metadata({"tokens": json.dumps(names), "texts": json.dumps(listed)})
    caption = "Answers of the headline settings; underlined tokens are the other model's and not what the writer drew."
    return [Panel("Answers with swapped tokens", caption, "texts", tokens)]


def _token_rows(
    number: int, answer: Mapping[str, Any], direction: str, names: Mapping[str, str]
) -> list[dict[str, Any]]:
    """One answer of a crossed setting as rows of a `texts` panel."""
    writer, other = ("base", "tuned") if direction == "forward" else ("tuned", "base")
    rows = []
    for position, token in enumerate(answer["token"]):
        swapped = answer["switched"][position] and answer["primary"][position] != answer["other"][position]
        rows.append(
            {
                "text": number, "position": position, "token_id": token, "token": names[str(token)],
                "js_nats": answer["js_nats"][position], "swapped": bool(swapped), "source": other if swapped else writer,
                f"{writer}_wrote": names[str(answer["primary"][position])],
                f"{other}_wrote": names[str(answer["other"][position])],
                f"entropy_{writer}_nats": answer["entropy_primary_nats"][position],
                f"entropy_{other}_nats": answer["entropy_other_nats"][position],
                f"logp_{writer}_nats": answer["logp_primary_nats"][position],
                f"logp_{other}_nats": answer["logp_other_nats"][position],
            }
        )  # fmt: skip
    return rows


def _verdict(
    found: Mapping[Setting, _Summary],
    headline: Mapping[str, _Summary | None],
    figures: Mapping[str, Figure],
    alone: Mapping[str, _Summary],
) -> list[str]:
    if len(alone) < 2:
        return []
    base, tuned = (alone[name].accuracy for name in ("base", "tuned"))
    forward, reverse = headline["forward"], headline["reverse"]
    if forward is None and reverse is None:
        gain = figures["accuracy_gain"]
        return [
            f"Base {_share(base)}, tuned {_share(tuned)} (difference {gain.value:.3g}, 95 % interval {gain.low:.3g} to "
            f"{gain.high:.3g}): there is no gain on these texts that swapped tokens could carry."
        ]
    sentences = []
    if forward is not None:
        carried = figures["forward_gain_carried_share"]
        sentences.append(
            f"Swapping {_share(forward.effective)} of tokens carries {_share(carried)} of the gain: the base goes from "
            f"{_share(base)} to {_share(forward.accuracy)} (tuned: {_share(tuned)}) with the tuned model's token where "
            f"JS is above {forward.setting.value:g} nats, {forward.effective_per_answer:.3g} tokens an "
            f"answer{_beside(found, forward)}."
        )
    if reverse is not None:
        removed = figures["reverse_gain_removed_share"]
        sentences.append(
            f"Taking back {_share(reverse.effective)} of tokens removes {_share(removed)} of it: the tuned model falls to "
            f"{_share(reverse.accuracy)} with the base's token where JS is above {reverse.setting.value:g} "
            f"nats{_beside(found, reverse)}."
        )
    return sentences


def _beside(found: Mapping[Setting, _Summary], headline: _Summary) -> str:
    """The controls at the headline's rate, in words; empty where they were not run."""
    named = {
        key.rule: summary.accuracy
        for key, summary in found.items()
        if key.direction == headline.setting.direction and key.like == headline.setting.value
    }
    if not named:
        return ""
    parts = [
        f"{_share(named[rule])} {words}"
        for rule, words in (("random", "at random positions"), ("entropy", "at the highest base entropy"))
    ]
    reached = float(headline.accuracy.value)
    alike = [a for a in named.values() if a.low is not None and a.high is not None and a.low <= reached <= a.high]
    doubt = "; a control does as well, so the gain does not sit in these positions" if alike else ""
    return f"; as many switches give {' and '.join(parts)}{doubt}"


def _share(figure: Figure) -> str:
    return f"{100 * float(figure.value):.3g} %" if figure.unit == "share" else f"{float(figure.value):.3g}"
