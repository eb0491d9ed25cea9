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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from shiftscope.core import answers, corpus, crossing, decode, lockstep, statistics, verifiers
from shiftscope.core.answers import Loading, Texts
from shiftscope.core.checkpoints import Checkpoint
from shiftscope.core.corpus import Template, Text
from shiftscope.core.crossing import Rule
from shiftscope.core.decode import Sampling
from shiftscope.core.lockstep import Job, Written
from shiftscope.core.parts import Parts
from shiftscope.core.result import Figure, Panel, Result
from shiftscope.core.verifiers import Verifier

DIRECTIONS = ("forward", "reverse")
RULES = {
    "js": "JS above a threshold",
    "random": "random positions",
    "entropy": "highest base entropy",
    "signed": "signed rule",
}
CARRIED = 0.95  # of the gain: the sparsest setting that carries so much is the headline
SHOWN_TEXTS = 100  # of each direction, in the panel of texts
STEPS = {
    "switched": pa.bool_(), "primary": pa.int32(), "other": pa.int32(), "js_nats": pa.float32(),
    "entropy_primary_nats": pa.float32(), "entropy_other_nats": pa.float32(),
    "logp_primary_nats": pa.float32(), "logp_other_nats": pa.float32(),
}  # fmt: skip
SCHEMA = pa.schema(
    [
        ("direction", pa.string()), ("rule", pa.string()), ("value", pa.float64()), ("like", pa.float64()),
        ("text", pa.int32()), ("sample", pa.int32()), ("score", pa.float64()), ("answer", pa.string()), ("ended", pa.bool_()),
        ("tokens", pa.int32()), ("n_switched", pa.int32()), ("n_effective", pa.int32()), ("token", pa.list_(pa.int32())),
        *((name, pa.list_(kind)) for name, kind in STEPS.items()),
    ]
)  # fmt: skip


@dataclass(frozen=True)
class Sweep:
    """Which tokens are switched.

    thresholds: JS in nats above which they are, one setting for each. taus: of the signed rule, in nats. controls: also
    random positions and the highest base entropy, at each threshold's own rate. match: what a control has as many of,
    switched tokens (as the paper) or effective ones (stricter: a random position is often one where both models draw
    the same). budget: most switches per answer. block: tokens drafted ahead (the same answers; faster where few are
    switched).
    """

    thresholds: tuple[float, ...] = (0.5, 0.3, 0.2, 0.1, 0.05, 0.02)
    taus: tuple[float, ...] = (-3.0,)
    controls: bool = True
    match: Literal["switched", "effective"] = "switched"
    budget: int | None = None
    block: int = 1

    def __post_init__(self) -> None:
        if not self.thresholds:
            raise ValueError("there are no thresholds: give at least one, such as --thresholds 0.1")
        if len(set(self.thresholds)) < len(self.thresholds) or len(set(self.taus)) < len(self.taus):
            raise ValueError(f"thresholds {list(self.thresholds)} and taus {list(self.taus)}: each may be given once")
        if self.block < 1 or (self.budget is not None and self.budget < 0):
            raise ValueError(f"block is {self.block} and budget {self.budget}: need block >= 1 and budget >= 0")


@dataclass(frozen=True)
class _Setting:
    """direction: forward, reverse or '' (a model alone). like: the threshold whose rate a control has."""

    direction: str
    rule: str
    value: float | None = None
    like: float | None = None


@dataclass(frozen=True)
class _Stage:
    """All that the runs of one comparison share."""

    base: Checkpoint
    tuned: Checkpoint
    texts: Sequence[Text]
    contexts: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]
    verifier: Verifier
    sweep: Sweep
    sampling: Sampling
    batch_size: int


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
    loading: Loading = Loading(),
    parts: Parts | None = None,
    advance: answers.Advance | None = None,
) -> Result:
    """Swap tokens between two checkpoints while they write, and see which swaps carry the gain.

    base: the checkpoint before (path, hub id, zoo name, or a loaded Checkpoint). tuned: the checkpoint after; both must
    share one vocabulary. verifier: scores an answer: module:function or file.py:function of (prompt, answer,
    reference), regex:PATTERN (its last
        match equals the reference) or exact.
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
    base_contexts = (
        [corpus.context_ids(first, text, base_template) for text in prompts] if base_template else tuned_contexts
    )
    parts, name = parts or Parts(), verifier if isinstance(verifier, str) else verifier.__name__
    settings = answers.provenance(
        first, second, verifier=name, texts=texts, limit=limit, template=template, base_template=base_template,
        sweep=asdict(sweep), sampling=asdict(sampling), loading=asdict(loading),
    )  # fmt: skip
    parts.settle(settings)
    contexts = list(zip(base_contexts, tuned_contexts, strict=True))
    stage = _Stage(first, second, prompts, contexts, check, sweep, sampling, loading.batch_size)
    table = parts.map(
        "swaps", _items(sweep), lambda setting: {"swaps": _measured(stage, setting)},
        advance=None if advance is None else lambda done, total: advance("swapping", done, total),
    )["swaps"]  # fmt: skip
    return summarise(described(table, prompts, second), provenance=settings)


# ---- writing --------------------------------------------------------------------------------------------------------
def _items(sweep: Sweep) -> list[_Setting]:
    """One part of the work each: both models alone, then each threshold (with controls) and tau in both directions."""
    alone = [_Setting("", "base"), _Setting("", "tuned")]
    rules = [("js", float(e)) for e in sweep.thresholds] + [("signed", float(tau)) for tau in sweep.taus]
    return alone + [_Setting(direction, rule, value) for direction in DIRECTIONS for rule, value in rules]


def _measured(stage: _Stage, setting: _Setting) -> pa.Table:
    """The rows of one setting, and of the controls at its rate."""
    if not setting.direction:
        return _rows(stage, setting, _alone(stage, setting.rule))
    assert setting.value is not None
    if setting.rule == "signed":
        signed = partial(crossing.less_likely, tau_nats=setting.value)
        return _rows(stage, setting, _written(stage, setting.direction, signed))
    written = _written(stage, setting.direction, partial(crossing.js_above, epsilon=setting.value))
    tables = [_rows(stage, setting, written)]
    for name, (value, rule) in _controls(stage.sweep, setting.direction, written).items():
        control = _Setting(setting.direction, name, value, setting.value)
        tables.append(_rows(stage, control, _written(stage, setting.direction, rule)))
    return pa.concat_tables(tables)


def _controls(sweep: Sweep, direction: str, written: Sequence[Written]) -> dict[str, tuple[float, Rule]]:
    """Rules that switch as much elsewhere: name -> (rate or cutoff, rule). None where nothing or everything was switched.

    The rates are set on the threshold's own answers; what a control then really switches is counted on its own.
    """
    forward = direction == "forward"
    steps = {name: np.concatenate([one.steps[name] for one in written]) for name in STEPS}
    entropy, chosen = steps["entropy_primary_nats" if forward else "entropy_other_nats"], steps["switched"]
    if sweep.match == "effective":
        differs = steps["primary"] != steps["other"]
        chosen, entropy = chosen[differs], entropy[differs]
    if not sweep.controls or not chosen.any() or chosen.all():
        return {}
    rate = float(chosen.mean())
    cutoff = round(float(np.quantile(entropy, 1 - rate)), 4)  # a hair between two batch layouts must not matter
    return {
        "random": (rate, partial(crossing.at_random, rate=rate)),
        "entropy": (cutoff, partial(crossing.entropy_above, cutoff_nats=cutoff, of_primary=forward)),
    }


def _jobs(stage: _Stage) -> Iterable[list[tuple[int, int]]]:
    """Batches of (text, sample), by length of prompt."""
    jobs = [(text, sample) for text in range(len(stage.texts)) for sample in range(stage.sampling.samples)]
    jobs.sort(key=lambda job: (max(map(len, stage.contexts[job[0]])), job))
    return (jobs[start : start + stage.batch_size] for start in range(0, len(jobs), stage.batch_size))


def _document(stage: _Stage, job: tuple[int, int]) -> int:
    return job[0] * stage.sampling.samples + job[1]


def _alone(stage: _Stage, name: str) -> list[Written]:
    """What one model writes by itself, in order of text and sample, with no steps on record."""
    checkpoint, side = (stage.base, 0) if name == "base" else (stage.tuned, 1)
    found: dict[tuple[int, int], tuple[int, ...]] = {}
    for jobs in _jobs(stage):
        documents = [_document(stage, job) for job in jobs]
        ids = decode.sample(checkpoint, [stage.contexts[text][side] for text, _ in jobs], documents, stage.sampling)
        found.update(zip(jobs, ids, strict=True))
    ends = decode.end_ids(stage.tuned)
    return [Written(found[job], found[job][-1] in ends, {}) for job in sorted(found)]


def _written(stage: _Stage, direction: str, rule: Rule) -> list[Written]:
    """What the two write together, in order of text and sample."""
    if stage.sweep.budget is not None:
        rule = partial(crossing.within_budget, rule=rule, budget=stage.sweep.budget)
    models = (stage.base, stage.tuned) if direction == "forward" else (stage.tuned, stage.base)
    policy = crossing.crossing(rule, stage.sampling)
    found: dict[tuple[int, int], Written] = {}
    for jobs in _jobs(stage):
        pairs = [stage.contexts[text][:: 1 if direction == "forward" else -1] for text, _ in jobs]
        work = [Job(_document(stage, job), *pair) for job, pair in zip(jobs, pairs, strict=True)]
        written = lockstep.write(
            *models, work, policy, ends=decode.end_ids(stage.tuned), max_new_tokens=stage.sampling.max_new_tokens,
            seed=stage.sampling.seed, block=stage.sweep.block,
        )  # fmt: skip
        found.update(zip(jobs, written, strict=True))
    return [found[job] for job in sorted(found)]


def _rows(stage: _Stage, setting: _Setting, written: Sequence[Written]) -> pa.Table:
    """One row per text and sample: the verified answer and the record of its tokens."""
    rows = []
    for number, one in enumerate(written):
        text, sample = divmod(number, stage.sampling.samples)
        about = stage.texts[text]
        answer = str(stage.tuned.tokenizer.decode(list(one.ids[:-1] if one.ended else one.ids)))
        effective = (
            one.steps["switched"] & (one.steps["primary"] != one.steps["other"]) if one.steps else np.zeros(0, bool)
        )
        row = asdict(setting) | {
            "text": about.text, "sample": sample, "score": stage.verifier(about.prompt, answer, about.reference),
            "answer": answer, "ended": one.ended, "tokens": len(one.ids), "token": list(one.ids),
            "n_switched": int(one.steps["switched"].sum()) if one.steps else 0, "n_effective": int(effective.sum()),
        }  # fmt: skip
        rows.append(row | {name: one.steps[name] if one.steps else [] for name in STEPS})
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def described(table: pa.Table, texts: Sequence[Text], checkpoint: Checkpoint) -> pa.Table:
    """The rows, with prompts and the text of every id in the metadata, so that they can be summarised anywhere."""
    ids: set[int] = set()
    for name in ("token", "primary", "other"):
        ids |= set(np.unique(table[name].combine_chunks().flatten().to_numpy()).tolist())
    about = [{"text": t.text, "id": t.id, "prompt": t.prompt, "reference": t.reference} for t in texts]
    pieces = {str(token): piece for token, piece in corpus.pieces(checkpoint.tokenizer, ids).items()}
    return table.replace_schema_metadata({"tokens": json.dumps(pieces), "texts": json.dumps(about)})


# ---- summing up -----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Summary:
    """One setting in numbers. mean_G: mean score of each text."""

    setting: _Setting
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
    headline = {}
    for direction in DIRECTIONS:
        for key, summary in found.items():
            if key.direction == direction:
                figures |= _setting_figures(summary)
        headline[direction] = _headline(found, direction, alone if carries else {})
    figures |= _headline_figures(headline, alone if carries else {})
    panels = [panel for direction in DIRECTIONS for panel in _curve_panels(found, direction, alone)]
    panels += [_settings_panel(found, alone if carries else {}), *_text_panels(table, headline)]
    return Result(
        "compare swaps", table, figures, provenance or {}, _verdict(found, headline, figures, alone), notes, panels
    )


def _summaries(table: pa.Table) -> dict[_Setting, _Summary]:
    names = ("text", "sample", "score", "tokens", "n_switched", "n_effective")
    columns = {name: table[name].to_numpy() for name in names}
    keys = [
        _Setting(*row)
        for row in zip(*(table[name].to_pylist() for name in ("direction", "rule", "value", "like")), strict=True)
    ]
    order: dict[_Setting, list[int]] = {}
    for number, key in enumerate(keys):
        order.setdefault(key, []).append(number)
    return {
        key: _summary(key, {name: column[order[key]] for name, column in columns.items()})
        for key in sorted(order, key=_place)
    }


def _place(setting: _Setting) -> tuple[Any, ...]:
    return (
        setting.direction,
        setting.rule,
        -(setting.value if setting.like is None else setting.like or 0) if setting.value else 0.0,
    )


def _summary(setting: _Setting, column: Mapping[str, NDArray[Any]]) -> _Summary:
    text, score, tokens = column["text"], column["score"], column["tokens"]
    sums_G, counts_G = statistics.group_sums(score, text)
    unit = "share" if np.isin(score, (0, 1)).all() else "score"
    binary = unit == "share" and int(counts_G.max()) == 1
    accuracy = (
        statistics.share_figure(int(score.sum()), len(score))
        if binary
        else statistics.mean_figure(score, text, unit=unit)
    )
    effective, switched = (_ratio(column[name], tokens, text) for name in ("n_effective", "n_switched"))
    return _Summary(setting, accuracy, effective, switched, float(column["n_effective"].mean()), sums_G / counts_G)


def _ratio(counts: NDArray[Any], tokens: NDArray[Any], text: NDArray[Any]) -> Figure:
    """A share of tokens with its bootstrap interval over texts."""
    counts_G, tokens_G = (statistics.group_sums(values, text)[0] for values in (counts, tokens))
    low, high = np.quantile(statistics.resampled_ratios(counts_G, tokens_G), [0.025, 0.975])
    share = float(counts.sum() / tokens.sum())
    return Figure(share, "share", int(tokens.sum()), min(float(low), share), max(float(high), share))


def _name(setting: _Setting) -> str:
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


def _headline(found: Mapping[_Setting, _Summary], direction: str, alone: Mapping[str, _Summary]) -> _Summary | None:
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
def _curve_panels(found: Mapping[_Setting, _Summary], direction: str, alone: Mapping[str, _Summary]) -> list[Panel]:
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


def _settings_panel(found: Mapping[_Setting, _Summary], alone: Mapping[str, _Summary]) -> Panel:
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
    found: Mapping[_Setting, _Summary],
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


def _beside(found: Mapping[_Setting, _Summary], headline: _Summary) -> str:
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
