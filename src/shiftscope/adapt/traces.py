"""Traces in the student's words: a teacher proposes every token, the student vetoes those it finds too improbable.

What is written has the teacher's choices in the student's words; only answers that end, that a verifier accepts and in
which the student seldom had to speak itself are kept, the shortest per prompt, as ids and labels for supervised tuning.

Source: arXiv 2509.22230 (reverse speculative decoding). `--p-min 0` is direct distillation, `--p-min 2
--max-fallback 1` the student's own correct answers: the two baselines that such traces have to beat.
Deviation: the student's own tokens may be improbable too, as in the paper's code, unless --floor-fallback; their share
is reported. The authors' judge model for answers that differ in form is left out: the verifier decides.
See also: `compare traces` scores any data set under a student.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from shiftscope.core import answers, corpus, decode, divergence, lockstep, statistics, verifiers, vocabulary
from shiftscope.core.answers import Loading
from shiftscope.core.checkpoints import Checkpoint, opened
from shiftscope.core.corpus import Template, Text
from shiftscope.core.lockstep import Job, Written
from shiftscope.core.parts import Parts
from shiftscope.core.result import Figure, Panel, Result
from shiftscope.core.settings import unread
from shiftscope.core.verifiers import Verifier
from shiftscope.core.vetoing import Veto, vetoing
from shiftscope.core.vocabulary import Bridge

IGNORED = -100  # label of the prompt's tokens: they are not trained on
IMPROBABLE = 0.01  # probability under the student
MOST_LOST = 0.05  # mean teacher mass without a student id beyond which ids are no bridge any more
REASONS = ("kept", "longer than the kept one", "wrong", "student spoke too often", "no end")
STEPS = {
    "switched": pa.bool_(), "trial": pa.int32(), "p_teacher": pa.float32(), "logp_student_nats": pa.float32(),
    "fallback_p": pa.float32(), "lost": pa.float32(), "top_teacher": pa.int32(), "top_student": pa.int32(),
}  # fmt: skip
SCHEMA = pa.schema(
    [
        ("text", pa.int32()), ("sample", pa.int32()), ("answer", pa.string()), ("score", pa.float64()),
        ("ended", pa.bool_()), ("tokens", pa.int32()), ("context", pa.list_(pa.int32())), ("token", pa.list_(pa.int32())),
        *((name, pa.list_(kind)) for name, kind in STEPS.items()),
    ]
)  # fmt: skip


@dataclass(frozen=True)
class Collecting:
    """How traces are collected and chosen.

    samples: tries per prompt. max_new_tokens: longest trace. max_fallback: traces in which the student spoke itself at
    more than this share of tokens are rejected. per_prompt: how many of a prompt's accepted traces are kept, the
    shortest first. min_score: what the verifier must give at least. block: tokens the teacher drafts ahead (the same
    traces; faster where vetoes are rare). seed: of the draws.
    """

    samples: int = 16
    max_new_tokens: int = 1024
    max_fallback: float = 0.5
    per_prompt: int = 1
    min_score: float = 1.0
    block: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("samples", "max_new_tokens", "per_prompt", "block"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if not 0 <= self.max_fallback <= 1:
            raise ValueError(f"max_fallback is {self.max_fallback}: it is a share, from 0 to 1")


def traces(
    teacher: str | Checkpoint,
    student: str | Checkpoint,
    *,
    prompts: str | Path | Iterable[Mapping[str, Any]],
    out: str | Path,
    verifier: str | Verifier | None = None,
    template: Template = "plain",
    teacher_template: Template | None = None,
    veto: Veto = Veto(),
    collecting: Collecting = Collecting(),
    loading: Loading = Loading(),
    parts: Parts | None = None,
    advance: answers.Advance | None = None,
) -> Result:
    """Write traces for tuning a student, by a teacher whose improbable words the student vetoes.

    teacher, student: path, hub id, zoo name, or a loaded Checkpoint; their tokenizers may differ.
    prompts: jsonl, parquet or txt with a prompt per record, and the reference that the verifier needs.
    out: folder for traces.jsonl: prompt, answer, input_ids, labels (the prompt masked), and what was measured of each.
    verifier: keeps only right traces: module:function, file.py:function, regex:PATTERN or exact; None keeps all.
    template: how prompts are rendered for the student; must be that of the training.
    teacher_template: rendering for the teacher, where it should differ.
    Returns a Result whose table has one row per try, kept or not, with the record of every token as lists.
    Raises ValueError, in one sentence, for vocabularies without a common token, a teacher that puts more than 5 % of its
    mass on tokens the student lacks, prompts beyond a context, a verifier that fails.
    """
    if verifier is None:
        unread(collecting, Collecting(), "--verifier", "min_score")
    prompts = prompts if isinstance(prompts, str | Path) else list(prompts)
    parts, texts = parts or Parts(), corpus.read(prompts)
    named = None if verifier is None else verifier if isinstance(verifier, str) else verifier.__name__
    judge = (
        verifiers.load(verifier) if isinstance(verifier, str) else verifier and verifiers.guarded(verifier, str(named))
    )
    second = opened(student, dtype=loading.dtype, device=loading.device)
    first = second if teacher == student else opened(teacher, dtype=loading.dtype, device=loading.device)
    settings = answers.provenance(
        first, second, prompts=prompts, verifier=named,
        template=template, teacher_template=teacher_template, veto=asdict(veto), collecting=asdict(collecting),
        loading=asdict(loading),
    )  # fmt: skip
    parts.settle(settings)
    work = _Work(
        first,
        second,
        vocabulary.bridge(second, first),
        texts,
        judge or None,
        template,
        teacher_template,
        veto,
        collecting,
    )
    batches = _batches(len(texts), collecting.samples, loading.batch_size)
    rows = parts.map(
        "traces", batches, lambda batch: {"traces": _tried(work, batch)},
        advance=None if advance is None else lambda done, total: advance("writing traces", done, total), final=True,
    )["traces"]  # fmt: skip
    table = chosen(described(rows, texts, second), collecting, judged=judge is not None)
    path = Path(out) / "traces.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines(table)), encoding="utf-8")
    return summarise(table, veto, written_to=str(path), provenance=settings)


# ---- writing ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Work:
    """All that the batches of one run share."""

    teacher: Checkpoint
    student: Checkpoint
    bridge: Bridge
    texts: Sequence[Text]
    verifier: Verifier | None
    template: Template
    teacher_template: Template | None
    veto: Veto
    collecting: Collecting


def _batches(texts: int, samples: int, batch_size: int) -> list[list[tuple[int, int]]]:
    """(text, sample) in batches; one part of the work each."""
    tries = [(text, sample) for text in range(texts) for sample in range(samples)]
    return [tries[start : start + batch_size] for start in range(0, len(tries), batch_size)]


def _tried(work: _Work, batch: Sequence[tuple[int, int]]) -> pa.Table:
    """One row per try of a batch. Raises ValueError where the teacher's mass is lost on tokens the student lacks."""
    jobs = []
    for text, sample in batch:
        prompt = work.texts[text]
        context = corpus.context_ids(work.student, prompt, work.template)
        own = corpus.context_ids(work.teacher, prompt, work.teacher_template or work.template)
        jobs.append(Job(text * work.collecting.samples + sample, own, context))
    same = work.bridge.is_identity
    policy = vetoing(
        work.veto,
        own_of_V=None if same else work.bridge.own_of_V,
        readable_V=None if same else work.bridge.readable_V,
    )
    written = lockstep.write(
        work.teacher, work.student, jobs, policy, ends=decode.end_ids(work.student), spell=work.bridge.spell,
        max_new_tokens=work.collecting.max_new_tokens, seed=work.collecting.seed, block=work.collecting.block,
    )  # fmt: skip
    lost = float(np.concatenate([one.steps["lost"] for one in written]).mean())
    if lost > MOST_LOST:
        raise ValueError(
            f"{100 * lost:.3g} % of the probability of {work.teacher.name} is on tokens that {work.student.name} has not "
            f"(allowed: {100 * MOST_LOST:g} %): their tokenizers are too far apart to be bridged by token ids; use a "
            f"teacher of the student's tokenizer family"
        )
    rows = [_row(work, place, job, one) for place, job, one in zip(batch, jobs, written, strict=True)]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def _row(work: _Work, place: tuple[int, int], job: Job, one: Written) -> dict[str, Any]:
    text = work.texts[place[0]]
    answer = str(work.student.tokenizer.decode(list(one.ids[:-1] if one.ended else one.ids)))
    score = None if work.verifier is None else work.verifier(text.prompt, answer, text.reference)
    row = {
        "text": place[0], "sample": place[1], "answer": answer, "score": score, "ended": one.ended,
        "tokens": len(one.ids), "context": list(job.checker_context), "token": list(one.ids),
    }  # fmt: skip
    return row | {name: one.steps[name] for name in STEPS}


def described(rows: pa.Table, texts: Sequence[Text], student: Checkpoint) -> pa.Table:
    """The rows in order, with prompts and the text of every id in the metadata."""
    rows = rows.sort_by([("text", "ascending"), ("sample", "ascending")])
    ids = set(np.unique(rows["token"].combine_chunks().flatten().to_numpy()).tolist())
    about = [{"text": t.text, "id": t.id, "prompt": t.prompt, "reference": t.reference} for t in texts]
    pieces = {str(token): piece for token, piece in corpus.pieces(student.tokenizer, ids).items()}
    return rows.replace_schema_metadata({"tokens": json.dumps(pieces), "texts": json.dumps(about)})


# ---- choosing ---------------------------------------------------------------------------------------------------------
def chosen(table: pa.Table, collecting: Collecting, *, judged: bool) -> pa.Table:
    """The rows with what was measured of each try and why it was kept or not (column `reason`, one of REASONS).

    Accepted is what ended, has at most max_fallback of the student's own tokens and is right; of those the shortest
    per_prompt of every prompt are kept (ties: the earlier try).
    """
    lists = {name: table[name].to_pylist() for name in ("switched", "logp_student_nats")}
    fallback = np.array([np.mean(row) for row in lists["switched"]])
    surprisal = np.array([-np.mean(row) for row in lists["logp_student_nats"]])
    scores, ended = table["score"].to_pylist(), table["ended"].to_numpy()
    right = np.array([not judged or score >= collecting.min_score for score in scores])
    reason = np.where(~ended, 4, np.where(fallback > collecting.max_fallback, 3, 2))
    accepted = ended & (fallback <= collecting.max_fallback) & right
    text, tokens = table["text"].to_numpy(), table["tokens"].to_numpy()
    for number in np.unique(text[accepted]):
        here = np.flatnonzero(accepted & (text == number))
        here = here[np.argsort(tokens[here], kind="stable")]
        reason[here] = 1
        reason[here[: collecting.per_prompt]] = 0
    table = table.append_column("fallback_share", pa.array(fallback))
    table = table.append_column("surprisal_mean_nats", pa.array(surprisal))
    return table.append_column("accepted", pa.array(accepted)).append_column(
        "reason", pa.array([REASONS[code] for code in reason])
    )


def lines(table: pa.Table) -> list[dict[str, Any]]:
    """The kept traces as records for supervised tuning: the ids that were generated, never decoded and encoded again."""
    about = {entry["text"]: entry for entry in json.loads(table.schema.metadata[b"texts"])}
    found = []
    for row in table.filter(pc.equal(table["reason"], REASONS[0])).to_pylist():
        entry = about[row["text"]]
        found.append(
            {
                "id": entry["id"], "prompt": entry["prompt"], "answer": row["answer"], "reference": entry["reference"],
                "input_ids": [*row["context"], *row["token"]],
                "labels": [*[IGNORED] * len(row["context"]), *row["token"]],
                "score": row["score"], "tokens": row["tokens"], "fallback_share": row["fallback_share"],
                "surprisal_mean_nats": row["surprisal_mean_nats"], "sample": row["sample"],
            }
        )  # fmt: skip
    return found


# ---- summing up -------------------------------------------------------------------------------------------------------
def summarise(
    table: pa.Table, veto: Veto, *, written_to: str = "", provenance: Mapping[str, Any] | None = None
) -> Result:
    """Figures, panels and verdict of a table of tries; the same table always gives the same result."""
    steps = {name: np.concatenate([np.asarray(row) for row in table[name].to_pylist()]) for name in STEPS}
    text, tokens, reason = table["text"].to_numpy(), table["tokens"].to_numpy(), np.array(table["reason"].to_pylist())
    accepted, kept = table["accepted"].to_numpy(), reason == REASONS[0]
    text_N = np.repeat(text, tokens)
    figures = {
        "success_share": statistics.mean_figure(accepted, text, unit="share"),
        "prompts_with_trace_share": statistics.share_figure(len(np.unique(text[kept])), len(np.unique(text))),
        "kept_traces": Figure(int(kept.sum()), "count", len(table)),
    }
    if kept.any():
        figures |= _kept_figures(table, steps, np.repeat(kept, tokens), text_N)
    figures |= {
        "fallback_share": statistics.mean_figure(steps["switched"], text_N, unit="share"),
        "first_trial_share": statistics.mean_figure(steps["trial"] == 0, text_N, unit="share"),
        "fallback_probability_mean": statistics.mean_figure(steps["fallback_p"], text_N, unit="share"),
        "lost_mass_mean": statistics.mean_figure(steps["lost"], text_N, unit="share"),
    }
    notes = []
    if not kept.any():
        notes.append("no try was accepted: figures about kept traces are left out")
    if table["score"].null_count:
        notes.append("no verifier was given: traces were not checked for being right")
    reasons = [{"reason": name, "tries": int((reason == name).sum())} for name in REASONS]
    panels = [
        *_texts_panel(table),
        Panel("What became of the tries", "Every try by why it was kept or not.", "bar", pa.Table.from_pylist(reasons),
              x="reason", y="tries", x_title="", y_title="tries"),
        _trial_panel(steps, text_N, veto),
    ]  # fmt: skip
    verdict = _verdict(figures, veto, written_to)
    return Result("adapt traces", table, figures, provenance or {}, verdict, notes, panels)


def _kept_figures(
    table: pa.Table, steps: Mapping[str, NDArray[Any]], kept_N: NDArray[np.bool_], text_N: NDArray[Any]
) -> dict[str, Figure]:
    """Figures about the kept traces, with how much shorter they are than all accepted ones."""
    logp, texts = steps["logp_student_nats"][kept_N], text_N[kept_N]
    accepted, kept = table["accepted"].to_numpy(), np.array(table["reason"].to_pylist()) == REASONS[0]
    tokens, text = table["tokens"].to_numpy(), table["text"].to_numpy()
    ours, every = tokens[kept].astype(float), tokens[accepted].astype(float)
    means = {number: every[text[accepted] == number].mean() for number in np.unique(text[accepted])}
    shift = ours - np.array([means[number] for number in text[kept]])
    return {
        "kept_surprisal_mean_nats": statistics.mean_figure(-logp, texts, unit="nats"),
        "kept_improbable_share": statistics.mean_figure(np.exp(logp) < IMPROBABLE, texts, unit="share"),
        "kept_fallback_share": statistics.mean_figure(steps["switched"][kept_N], texts, unit="share"),
        "kept_tokens_mean": statistics.mean_figure(ours, text[kept], unit="tokens"),
        "kept_length_shift": statistics.mean_figure(shift, text[kept], unit="tokens"),
    }  # fmt: skip


def _trial_panel(steps: Mapping[str, NDArray[Any]], text_N: NDArray[Any], veto: Veto) -> Panel:
    """How often each trial was the one that was taken, the student's own word last."""
    rows = []
    for trial in range(veto.trials + 1):
        figure = statistics.mean_figure(steps["trial"] == trial, text_N, unit="share", samples=400)
        name = f"teacher, trial {trial + 1}" if trial < veto.trials else "student"
        rows.append({"taken": name, "share": figure.value, "low": figure.low, "high": figure.high})
    return Panel(
        "Who speaks", "Tokens by which proposal was taken, with 95 % intervals over prompts.", "bar",
        pa.Table.from_pylist(rows), x="taken", y="share", low="low", high="high", x_title="", y_title="share of tokens",
    )  # fmt: skip


def _texts_panel(table: pa.Table, most: int = 100) -> list[Panel]:
    """The kept traces token by token, the student's own words marked."""
    names = json.loads(table.schema.metadata[b"tokens"])
    about = {entry["text"]: entry for entry in json.loads(table.schema.metadata[b"texts"])}
    kept = table.filter(pc.equal(table["reason"], REASONS[0])).slice(0, most).to_pylist()
    if not kept:
        return []
    listed = [
        {"text": n, "id": about[row["text"]]["id"], "prompt": about[row["text"]]["prompt"]}
        for n, row in enumerate(kept)
    ]
    lengths = [row["tokens"] for row in kept]
    joined = {name: np.concatenate([row[name] for row in kept]) for name in ("token", *STEPS)}
    logp = torch.from_numpy(joined["logp_student_nats"].astype(np.float32))
    tokens = pa.table(
        {
            "text": np.repeat(np.arange(len(kept), dtype=np.int32), lengths),
            "position": np.concatenate([np.arange(n, dtype=np.int32) for n in lengths]),
            "token_id": joined["token"].astype(np.int32),
            "token": [names[str(token)] for token in joined["token"]],
            "js_nats": divergence.js_to_token_nats(logp).numpy(),
            "swapped": joined["switched"].astype(bool),
            "source": ["student" if own else "teacher" for own in joined["switched"]],
            "trial": joined["trial"].astype(np.int32),
            "p_teacher": joined["p_teacher"].astype(np.float32),
            "surprisal_student_nats": (-logp).numpy(),
        }
    ).replace_schema_metadata({"tokens": json.dumps(names), "texts": json.dumps(listed)})
    caption = "Kept traces; underlined tokens are the student's own. Darker lies further from the student's law."
    return [Panel("Traces", caption, "texts", tokens)]


def _verdict(figures: Mapping[str, Figure], veto: Veto, written_to: str) -> list[str]:
    kept, prompts = figures["kept_traces"], figures["prompts_with_trace_share"]
    sentences = [
        f"{kept.value:,} traces are kept of {kept.n:,} tries, for {_percent(prompts)} of {prompts.n:,} prompts"
        + (f", and written to {written_to}." if written_to else ".")
    ]
    if "kept_surprisal_mean_nats" in figures:
        mean, low = figures["kept_surprisal_mean_nats"], figures["kept_improbable_share"]
        own, shift = figures["kept_fallback_share"], figures["kept_length_shift"]
        sentences.append(
            f"The student's mean surprisal on them is {mean.value:.3g} nats, {_percent(low)} of tokens are below 1 % for it, "
            f"and it spoke itself at {_percent(own)} of them (up to {veto.trials} proposals each)."
        )
        shorter = -float(shift.value)
        if shorter > 0:
            sentences.append(f"Keeping the shortest makes traces {shorter:.3g} tokens shorter than accepted tries are.")
    return sentences


def _percent(figure: Figure) -> str:
    return f"{100 * float(figure.value):.3g} %"
