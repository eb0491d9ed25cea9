"""Answers that two models write together under a sweep of crossing rules, scored by a verifier: one row per answer.

Each threshold carries its controls: rules that switch as much, at positions chosen otherwise. See `compare swaps`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Literal

import numpy as np
import pyarrow as pa

from shiftscope.core import corpus, crossing, decode, lockstep
from shiftscope.core.checkpoints import Checkpoint
from shiftscope.core.corpus import Text
from shiftscope.core.crossing import Rule
from shiftscope.core.decode import Sampling
from shiftscope.core.lockstep import Job, Written
from shiftscope.core.verifiers import Verifier

DIRECTIONS = ("forward", "reverse")
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
        if self.match != "switched" and not self.controls:
            raise ValueError(f"match is {self.match} without controls, which alone are matched: leave one of them out")
        if self.block < 1 or (self.budget is not None and self.budget < 0):
            raise ValueError(f"block is {self.block} and budget {self.budget}: need block >= 1 and budget >= 0")


@dataclass(frozen=True)
class Setting:
    """direction: forward, reverse or '' (a model alone). like: the threshold whose rate a control has."""

    direction: str
    rule: str
    value: float | None = None
    like: float | None = None


@dataclass(frozen=True)
class Stage:
    """All that the runs of one comparison share."""

    base: Checkpoint
    tuned: Checkpoint
    texts: Sequence[Text]
    contexts: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]
    verifier: Verifier
    sweep: Sweep
    sampling: Sampling
    batch_size: int
    compiled: bool


def items(sweep: Sweep) -> list[Setting]:
    """One part of the work each: both models alone, then each threshold (with controls) and tau in both directions."""
    alone = [Setting("", "base"), Setting("", "tuned")]
    rules = [("js", float(e)) for e in sweep.thresholds] + [("signed", float(tau)) for tau in sweep.taus]
    return alone + [Setting(direction, rule, value) for direction in DIRECTIONS for rule, value in rules]


def measured(stage: Stage, setting: Setting) -> pa.Table:
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
        control = Setting(setting.direction, name, value, setting.value)
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


def _jobs(stage: Stage) -> Iterable[list[tuple[int, int]]]:
    """Batches of (text, sample), by length of prompt."""
    jobs = [(text, sample) for text in range(len(stage.texts)) for sample in range(stage.sampling.samples)]
    jobs.sort(key=lambda job: (max(map(len, stage.contexts[job[0]])), job))
    return (jobs[start : start + stage.batch_size] for start in range(0, len(jobs), stage.batch_size))


def _document(stage: Stage, job: tuple[int, int]) -> int:
    return job[0] * stage.sampling.samples + job[1]


def _alone(stage: Stage, name: str) -> list[Written]:
    """What one model writes by itself, in order of text and sample, with no steps on record."""
    checkpoint, side = (stage.base, 0) if name == "base" else (stage.tuned, 1)
    found: dict[tuple[int, int], tuple[int, ...]] = {}
    for jobs in _jobs(stage):
        documents = [_document(stage, job) for job in jobs]
        ids = decode.sample(checkpoint, [stage.contexts[text][side] for text, _ in jobs], documents, stage.sampling)
        found.update(zip(jobs, ids, strict=True))
    ends = decode.end_ids(stage.tuned)
    return [Written(found[job], found[job][-1] in ends, {}) for job in sorted(found)]


def _written(stage: Stage, direction: str, rule: Rule) -> list[Written]:
    """What the two write together, in order of text and sample."""
    if stage.sweep.budget is not None:
        rule = partial(crossing.within_budget, rule=rule, budget=stage.sweep.budget)
    models = (stage.base, stage.tuned) if direction == "forward" else (stage.tuned, stage.base)
    policy = crossing.crossing(rule, stage.sampling, compiled=stage.compiled)
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


def _rows(stage: Stage, setting: Setting, written: Sequence[Written]) -> pa.Table:
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
