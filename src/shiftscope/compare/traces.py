"""Traces: is a data set in the student's words? Every token's surprisal under the student, before anything is trained.

Fine-tuning a small student on a bigger model's traces suffers where they hold tokens that the student finds very
improbable. One forward pass finds them: their share, the longest runs, which tokens they are, and which traces have few.

Source: arXiv 2509.22230 (the 1 % threshold and why). Deviation: the paper writes new traces; this only scores given ones,
with the student's probability at temperature 1, not truncated, which is what supervised tuning sees.
See also: `adapt traces` writes traces in the student's words.
"""

# B traces of a batch, N answer tokens of a batch, R rows of a head chunk, V vocabulary

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from shiftscope.core import answers, corpus, divergence, paired, statistics
from shiftscope.core.answers import Loading
from shiftscope.core.checkpoints import Checkpoint, opened
from shiftscope.core.corpus import Template, Text
from shiftscope.core.head import evaluating
from shiftscope.core.paired import PairedText
from shiftscope.core.parts import Parts
from shiftscope.core.result import Figure, Panel, Result

CHUNK_ROWS = 128
KINDS = ("word", "number", "punctuation", "white space", "special", "mixed")
LISTED = 50  # improbable tokens in the table
BINS_NATS = (0.0, 0.1, 0.5, 1.0, 2.0, 3.0, 4.6, 7.0, np.inf)  # 4.6 nats is 1 %
IGNORED = -100  # label of a token that is not trained on


@dataclass(frozen=True)
class Judging:
    """p_min: a token below this probability is improbable. keep: share of the traces that the suggested subset aims at.

    subset: also write the records of the suggested traces into this jsonl file.
    """

    p_min: float = 0.01
    keep: float = 0.5
    subset: Path | None = None

    def __post_init__(self) -> None:
        if not 0 < self.p_min < 1 or not 0 < self.keep <= 1:
            raise ValueError(f"p_min is {self.p_min} and keep {self.keep}: need 0 < p_min < 1 and 0 < keep <= 1")


@dataclass(frozen=True)
class Trace:
    """One record: what the student reads, and the ids that it would be trained on."""

    text: Text
    context: tuple[int, ...]
    answer: tuple[int, ...]


def traces(
    student: str | Checkpoint,
    *,
    traces: str | Path | Sequence[Mapping[str, Any]],
    limit: int | None = None,
    template: Template = "plain",
    judging: Judging = Judging(),
    loading: Loading = Loading(),
    parts: Parts | None = None,
    advance: answers.Advance | None = None,
) -> Result:
    """Score traces under the student that shall be trained on them: which are in its own words?

    student: path, hub id, zoo name, or a loaded Checkpoint.
    traces: jsonl or parquet with a prompt and an answer per record, or with input_ids and labels (as `adapt traces`
        writes them), which are then scored as they are.
    limit: only the first records.
    template: how prompts are rendered: plain, chat (the tokenizer's template) or frame; must be that of the training.
    Returns a Result whose table has one row per answer token.
    Raises ValueError, in one sentence, for malformed records, traces beyond the context, ids the student does not have.
    """
    parts, model = parts or Parts(), opened(student, dtype=loading.dtype, device=loading.device)
    records = list(corpus.records(traces, limit))
    found = [read(number, record, model, template, str(traces)) for number, record in enumerate(records)]
    if not found:
        raise ValueError("there are no traces: give at least one record with a prompt and an answer")
    items = [PairedText(one.text.text, one.context, one.context, one.answer) for one in found]
    paired.check_lengths(model, model, items)
    named = traces if isinstance(traces, str | Path) else f"{len(found)} records in memory"
    settings = answers.provenance(
        model, traces=str(named), limit=limit, template=template, judging=asdict(judging), loading=asdict(loading)
    )
    parts.settle(settings)
    rows = parts.map(
        "traces", paired.batches(items, loading.batch_size), lambda batch: {"tokens": scored(model, batch)},
        advance=None if advance is None else lambda done, total: advance("scoring", done, total), final=True,
    )["tokens"]  # fmt: skip
    result = summarise(described(rows, [one.text for one in found], model, judging), judging, provenance=settings)
    if judging.subset is not None:
        kept = set(result.table.filter(result.table["suggested"])["text"].unique().to_pylist())
        lines = [json.dumps(record, ensure_ascii=False) for number, record in enumerate(records) if number in kept]
        judging.subset.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return result


# ---- reading and scoring ----------------------------------------------------------------------------------------------
def read(number: int, record: Any, student: Checkpoint, template: Template, source: str) -> Trace:
    """One trace from a record with input_ids and labels, or with a prompt and an answer.

    Raises ValueError naming the record where it is neither, or where its ids are none of the student's.
    """
    where = f"{source if len(source) < 200 else 'the given traces'}, record {number + 1}"
    if not isinstance(record, Mapping) or "input_ids" not in record:
        text = corpus.read([record])[0]
        if text.answer is None:
            raise ValueError(f"{where} has no `answer` and no `input_ids`: there is nothing to score")
        text = Text(number, str(record.get("id", number)), text.prompt, text.answer, text.reference, text.messages)
        context, answer = (
            corpus.context_ids(student, text, template),
            corpus.answer_ids(student.tokenizer, text.answer or ""),
        )
        return Trace(text, context, answer)
    ids, labels = [int(i) for i in record["input_ids"]], [int(i) for i in record.get("labels") or ()]
    trained = [place for place, label in enumerate(labels) if label != IGNORED]
    whole = len(ids) == len(labels) and trained and trained == list(range(trained[0], len(ids)))
    if not whole or [ids[place] for place in trained] != [labels[place] for place in trained]:
        raise ValueError(
            f"{where} has {len(ids)} input_ids and {len(labels)} labels that are not {IGNORED} for the prompt and then "
            f"the ids themselves: other maskings cannot be scored"
        )
    if max(ids) >= student.vocabulary_size or min(ids) < 0:
        raise ValueError(f"{where} has id {max(ids)}; {student.name} has ids up to {student.vocabulary_size - 1}")
    start = trained[0]
    prompt = record.get("prompt") or student.tokenizer.decode(ids[:start])
    written = record.get("answer") or student.tokenizer.decode(ids[start:])
    text = Text(number, str(record.get("id", number)), str(prompt), str(written))
    return Trace(text, tuple(ids[:start]), tuple(ids[start:]))


def scored(student: Checkpoint, batch: Sequence[PairedText]) -> pa.Table:
    """Surprisal, entropy and rank of every answer token of a batch under the student.

    Raises ValueError naming text and position where the logits are not numbers.
    """
    longest, head = max(len(item.base_context) + len(item.answer) for item in batch), student.head
    ids_BT = torch.zeros(len(batch), longest, dtype=torch.long)
    mask_BT = torch.zeros_like(ids_BT)
    for row, item in enumerate(batch):
        whole = [*item.base_context, *item.answer]
        ids_BT[row, : len(whole)], mask_BT[row, : len(whole)] = torch.tensor(whole), 1
    places = [(row, len(item.base_context) + p) for row, item in enumerate(batch) for p in range(len(item.answer))]
    row_N, place_N = torch.tensor(places).T
    token_N = ids_BT[row_N, place_N].to(head.device)
    text_N = torch.tensor([item.text for item in batch])[row_N]
    position_N = place_N - torch.tensor([len(item.base_context) for item in batch])[row_N]
    columns: dict[str, list[torch.Tensor]] = {"surprisal_nats": [], "entropy_nats": [], "rank": [], "top1": []}
    with evaluating(student.model):
        hidden_ND = head.hidden(ids_BT.to(head.device), mask_BT.to(head.device))[row_N, place_N - 1]
        for start in range(0, len(places), CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            logp_RV = head.logits(hidden_ND[rows]).float().log_softmax(-1)
            if bool(logp_RV.isnan().any()):
                first = start + int(logp_RV.isnan().any(-1).nonzero()[0])
                raise ValueError(
                    f"{student.name} gives logits that are not numbers in text {int(text_N[first])}, position "
                    f"{int(position_N[first])}: check the weights, or load with --dtype float32"
                )
            columns["surprisal_nats"].append(-logp_RV.gather(-1, token_N[rows, None])[:, 0].cpu())
            columns["entropy_nats"].append(divergence.entropy_nats(logp_RV).cpu())
            columns["rank"].append(divergence.rank(logp_RV, token_N[rows]).int().cpu())
            columns["top1"].append(logp_RV.argmax(-1).int().cpu())
    where = {
        "text": text_N.int().numpy(),
        "position": position_N.int().numpy(),
        "token_id": token_N.int().cpu().numpy(),
    }
    return pa.table(where | {name: torch.cat(chunks).numpy() for name, chunks in columns.items()})


def described(rows: pa.Table, texts: Sequence[Text], student: Checkpoint, judging: Judging) -> pa.Table:
    """The rows in order with the tokens' text and kind, what is improbable, and which traces are suggested."""
    rows = rows.sort_by([("text", "ascending"), ("position", "ascending")])
    ids = {int(token) for name in ("token_id", "top1") for token in rows[name].unique().to_pylist()}
    piece_of, special = corpus.pieces(student.tokenizer, ids), set(student.tokenizer.all_special_ids)
    kind_of = {token: kind(piece, special=token in special) for token, piece in piece_of.items()}
    tokens, surprisal = rows["token_id"].to_pylist(), rows["surprisal_nats"].to_numpy()
    improbable = surprisal > -np.log(judging.p_min)
    _, share_of, inverse = _shares(rows["text"].to_numpy(), improbable)
    suggested = share_of <= np.quantile(share_of, judging.keep)
    rows = rows.append_column("token", pa.array([piece_of[token] for token in tokens], pa.string()))
    rows = rows.append_column("kind", pa.array([kind_of[token] for token in tokens], pa.string()))
    rows = rows.append_column(
        "expected", pa.array([piece_of[token] for token in rows["top1"].to_pylist()], pa.string())
    )
    rows = rows.append_column("improbable", pa.array(improbable))
    rows = rows.append_column("suggested", pa.array(suggested[inverse]))
    js = divergence.js_to_token_nats(-torch.from_numpy(surprisal.copy()))
    rows = rows.append_column("js_nats", pa.array(js.numpy()))
    about = [{"text": t.text, "id": t.id, "prompt": t.prompt, "answer": t.answer} for t in texts]
    pieces = {str(token): piece for token, piece in piece_of.items()}
    return rows.replace_schema_metadata({"tokens": json.dumps(pieces), "texts": json.dumps(about)})


def kind(piece: str, *, special: bool = False) -> str:
    """What a token is made of: one of KINDS."""
    text = piece.strip()
    if special:
        return "special"
    if not text:
        return "white space"
    if text.isalpha():
        return "word"
    if text.isdigit():
        return "number"
    return "punctuation" if not any(character.isalnum() for character in text) else "mixed"


def longest_run(flags_N: NDArray[np.bool_]) -> int:
    """The longest run of consecutive true flags."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags_N.astype(np.int8), [0]])))
    return int((edges[1::2] - edges[::2]).max()) if len(edges) else 0


def _shares(text_N: NDArray[Any], flags_N: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.float64], NDArray[Any]]:
    """The texts [G], the share of flagged tokens of each [G], and the text of every token as an index [N]."""
    texts, inverse = np.unique(text_N, return_inverse=True)
    return texts, np.bincount(inverse, flags_N) / np.bincount(inverse), inverse


# ---- summing up -------------------------------------------------------------------------------------------------------
def summarise(table: pa.Table, judging: Judging = Judging(), *, provenance: Mapping[str, Any] | None = None) -> Result:
    """Figures, panels and verdict of a table of tokens; the same table always gives the same result."""
    names = ("text", "position", "surprisal_nats", "rank", "improbable", "suggested")
    column = {name: table[name].to_numpy() for name in names}
    text, improbable = column["text"], column["improbable"]
    per_trace = _per_trace(table, column)
    figures = {"surprisal_mean_nats": statistics.mean_figure(column["surprisal_nats"], text, unit="nats")}
    figures |= statistics.quantile_figures("surprisal_nats", column["surprisal_nats"], unit="nats")
    figures["improbable_share"] = statistics.mean_figure(improbable, text, unit="share")
    figures["student_top1_share"] = statistics.mean_figure(column["rank"] == 0, text, unit="share")
    runs = [row["longest run"] for row in per_trace]
    figures["improbable_longest_run_mean"] = statistics.mean_figure(runs, unit="tokens")
    figures["improbable_longest_run"] = Figure(max(runs), "tokens", len(runs))
    figures["traces_without_improbable_share"] = statistics.share_figure(runs.count(0), len(runs))
    kinds = np.asarray(table["kind"].to_pylist())
    by_kind = {name: kinds == name for name in KINDS if (kinds == name).any()}
    for name, chosen in by_kind.items():
        label = f"improbable_share_{name.replace(' ', '_')}"
        figures[label] = statistics.mean_figure(improbable[chosen], text[chosen], unit="share")
    suggested = column["suggested"]
    figures["suggested_traces"] = Figure(len(np.unique(text[suggested])), "count", len(per_trace))
    figures["suggested_improbable_share"] = statistics.mean_figure(improbable[suggested], text[suggested], unit="share")
    frequent = _frequent(table, improbable)
    below, order = "The most frequent tokens below the threshold.", "From the most to the least in the student's words."
    tables = [Panel("Improbable tokens", below, "table", pa.Table.from_pylist(frequent))] if frequent else []
    tables.append(Panel("Traces", order, "table", pa.Table.from_pylist(per_trace)))
    panels = [*_panels(table, column, by_kind, judging), *tables]
    verdict = _verdict(figures, frequent, per_trace, judging)
    return Result("compare traces", table, figures, provenance or {}, verdict, _notes(improbable), panels)


def _notes(improbable: NDArray[np.bool_]) -> list[str]:
    return [] if improbable.any() else ["no token is below the threshold: the table of improbable tokens is left out"]


def _per_trace(table: pa.Table, column: Mapping[str, NDArray[Any]]) -> list[dict[str, Any]]:
    about = {entry["text"]: entry for entry in json.loads(table.schema.metadata[b"texts"])}
    texts, share, inverse = _shares(column["text"], column["improbable"])
    mean = np.bincount(inverse, column["surprisal_nats"]) / np.bincount(inverse)
    rows = []
    for place, text in enumerate(texts.tolist()):
        here = inverse == place
        run = longest_run(column["improbable"][here])
        rows.append(
            {
                "id": about[text]["id"], "tokens": int(here.sum()), "mean surprisal (nats)": float(mean[place]),
                "improbable share": float(share[place]), "longest run": run,
                "suggested": bool(column["suggested"][here][0]),
            }
        )  # fmt: skip
    return sorted(rows, key=lambda row: (row["improbable share"], row["mean surprisal (nats)"]))


def _frequent(table: pa.Table, improbable: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """The improbable tokens by how often they occur so, with what the student most often expected instead."""
    chosen = table.filter(pa.array(improbable))
    tokens, expected = np.asarray(chosen["token"].to_pylist()), np.asarray(chosen["expected"].to_pylist())
    surprisal, every = chosen["surprisal_nats"].to_numpy(), np.asarray(table["token"].to_pylist())
    names, inverse, counts = np.unique(tokens, return_inverse=True, return_counts=True)
    rows = []
    for place in np.argsort(-counts, kind="stable")[:LISTED]:
        here = inverse == place
        instead, times = np.unique(expected[here], return_counts=True)
        rows.append(
            {
                "token": str(names[place]), "times improbable": int(counts[place]),
                "share of its occurrences": float(counts[place] / (every == names[place]).sum()),
                "mean surprisal (nats)": float(surprisal[here].mean()), "expected instead": str(instead[times.argmax()]),
            }
        )  # fmt: skip
    return rows


def _panels(
    table: pa.Table, column: Mapping[str, NDArray[Any]], by_kind: Mapping[str, NDArray[np.bool_]], judging: Judging
) -> list[Panel]:
    text, improbable, surprisal = column["text"], column["improbable"], column["surprisal_nats"]
    counts = np.histogram(surprisal, BINS_NATS)[0] / len(surprisal)
    labels = [
        f"{low:g}–{high:g}" if np.isfinite(high) else f"over {low:g}" for low, high in itertools.pairwise(BINS_NATS)
    ]
    kinds = [
        {"kind": name, "share": figure.value, "low": figure.low, "high": figure.high, "tokens": figure.n}
        for name, chosen in by_kind.items()
        for figure in [statistics.mean_figure(improbable[chosen], text[chosen], unit="share", samples=400)]
    ]
    _, inverse, lengths = np.unique(text, return_inverse=True, return_counts=True)
    place = np.minimum((column["position"] / lengths[inverse] * 10).astype(int), 9)
    where = []
    for tenth in np.unique(place):
        here = place == tenth
        figure = statistics.mean_figure(surprisal[here], text[here], unit="nats", samples=400)
        where.append({"place": (tenth + 0.5) / 10, "surprisal": figure.value, "low": figure.low, "high": figure.high})
    colour = "Darker lies further from the student's law (JS between the written token and the law, ln 2 at most)."
    below = (
        f"Share of tokens below {100 * judging.p_min:g} % by what they are made of, with 95 % intervals over traces."
    )
    return [
        Panel("Texts", colour, "texts", table.drop_columns(["top1", "suggested", "rank"])),
        Panel("How surprised is the student?", "Tokens by surprisal; 4.6 nats is 1 %.", "bar",
              pa.table({"surprisal": labels, "share": counts}), x="surprisal", y="share",
              x_title="surprisal (nats)", y_title="share of tokens"),
        Panel("Which tokens are improbable?", below, "bar", pa.Table.from_pylist(kinds), x="kind", y="share",
              low="low", high="high", x_title="token", y_title="improbable share"),
        Panel("Where in the trace", "Mean surprisal by place in the trace, with a 95 % band over traces.", "line",
              pa.Table.from_pylist(where), x="place", y="surprisal", low="low", high="high",
              x_title="relative position", y_title="mean surprisal (nats)"),
    ]  # fmt: skip


def _verdict(
    figures: Mapping[str, Figure],
    frequent: Sequence[Mapping[str, Any]],
    per_trace: Sequence[Mapping[str, Any]],
    judging: Judging,
) -> list[str]:
    share, mean, run = (figures[name] for name in ("improbable_share", "surprisal_mean_nats", "improbable_longest_run"))
    threshold, traces = f"{100 * judging.p_min:g} %", len(per_trace)
    sentences = [
        f"{_percent(share)} of {share.n:,} tokens in {traces:,} traces have less than {threshold} probability under the "
        f"student; the mean surprisal is {mean.value:.3g} nats (95 % interval {mean.low:.3g} to {mean.high:.3g})."
    ]
    if share.value == 0:
        return [*sentences, "The traces are in the student's words throughout."]
    names = ", ".join(f"“{str(row['token']).strip() or repr(row['token'])[1:-1]}”" for row in frequent[:5])
    sentences.append(f"The most frequent such tokens are {names}; the longest run of them is {run.value} tokens.")
    kept, less = figures["suggested_traces"], figures["suggested_improbable_share"]
    if int(kept.value) < traces:
        sentences.append(
            f"Keeping the {kept.value:,} traces with the fewest leaves {_percent(less)} of tokens below {threshold}."
        )
    return sentences


def _percent(figure: Figure) -> str:
    return f"{100 * float(figure.value):.3g} %"
