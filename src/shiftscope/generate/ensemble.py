"""Ensembles: models with different vocabularies vote on the next byte, and text is drawn or scored by their mixture.

Token laws of different vocabularies cannot be averaged; byte laws can. Every model is turned into its exact byte-level law,
the laws are mixed, and the same byte goes into every model.

Source: arXiv 2410.09303 (ensembles of byte-level laws of models with different vocabularies).
Deviation: laws are mixed given that the text goes on canonically; the mass that does not is a figure per model. A model that
gives a drawn byte no probability leaves the rest of that answer, and the other weights grow in proportion.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pyarrow as pa

from shiftscope.core import answers, statistics
from shiftscope.core.answers import Loading, Texts
from shiftscope.core.bytes import byte_law
from shiftscope.core.bytes.byte_voting import Ensemble, Voting, mixed
from shiftscope.core.bytes.canonical import Support
from shiftscope.core.checkpoints import Checkpoint
from shiftscope.core.corpus import Text
from shiftscope.core.parts import Parts
from shiftscope.core.result import Figure, Panel, Result
from shiftscope.core.settings import unread

__all__ = ["Ensemble", "Voting", "ensemble", "mixed", "summarise"]

LN2 = math.log(2)
ROWS = pa.schema(
    [
        ("text", pa.int32()), ("sample", pa.int32()), ("prompt", pa.string()), ("answer", pa.string()),
        ("raw", pa.binary()), ("n_bytes", pa.int32()), ("stopped", pa.string()), ("given", pa.bool_()),
        ("logp_nats", pa.float64()), ("logp_models_nats", pa.list_(pa.float64())),
        ("kl_models_nats", pa.list_(pa.float64())), ("lost_models", pa.list_(pa.float64())), ("left", pa.int32()),
    ]
)  # fmt: skip


def ensemble(
    models: Sequence[str | Checkpoint],
    *,
    prompts: Texts = None,
    limit: int | None = None,
    support: Support = "canonical",
    voting: Voting = Voting(),
    loading: Loading = Loading(batch_size=8),
    parts: Parts | None = None,
    advance: answers.Advance | None = None,
) -> Result:
    """Let models with any vocabularies vote on every next byte; draw answers from the mixture, or score given ones.

    models: the checkpoints (paths, hub ids, zoo names, or loaded Checkpoints), in the order of the weights.
    prompts: jsonl, parquet or txt with a prompt per record; a record with an answer is scored, not continued; without,
        the prompts that ship with the first model.
    limit: only the first records.
    support: canonical (exact over canonical encodings), unmasked (canonical up to the last token) or all (every token
        sequence, for short texts).
    Returns a Result whose table has one row per answer.
    Raises ValueError, in one sentence, for malformed prompts, text that a tokenizer changes, a text beyond a context.
    """
    together, parts = Ensemble(models, voting=voting, support=support, loading=loading), parts or Parts()
    first = together.checkpoints[0]
    settings = answers.provenance(
        first, prompts=prompts, limit=limit, support=support, voting=asdict(voting), loading=asdict(loading)
    )
    settings = {"models": [one.provenance for one in together.checkpoints], **settings}
    del settings["base"]
    parts.settle(settings)
    texts = answers.corpus_of(prompts, first, limit, option="prompts")
    if all(text.answer is not None for text in texts):
        unread(voting, Voting(), "a record without an answer", but=("mixture", "weights"))
    groups = [texts[start : start + loading.batch_size] for start in range(0, len(texts), loading.batch_size)]

    def measure(group: Sequence[Text]) -> dict[str, pa.Table]:
        return {"ensemble": pa.Table.from_pylist(list(_rows(together, group)), schema=ROWS)}

    named = None if advance is None else lambda done, total: advance("voting", done, total)
    rows = parts.map("ensemble", groups, measure, advance=named, final=True)
    names = [one.name for one in together.checkpoints]
    result = summarise(rows["ensemble"], names, together.weights_M.tolist(), provenance=settings)
    return replace(result, notes=[*result.notes, *byte_law.caveats(together.engines, names)])


def _rows(together: Ensemble, texts: Sequence[Text]) -> Iterable[dict[str, Any]]:
    samples = together.voting.samples
    asked = [(text, sample) for text in texts if text.answer is None for sample in range(samples)]
    numbers = [text.text * samples + sample for text, sample in asked]
    drawn = together.sample([text.prompt for text, _ in asked], documents=numbers) if asked else []
    scored = [(text, 0, together.score(text.prompt, text.answer)) for text in texts if text.answer is not None]
    for text, sample, one in [*((t, s, d) for (t, s), d in zip(asked, drawn, strict=True)), *scored]:
        lists = {name: list(getattr(one, name)) for name in ("logp_models_nats", "kl_models_nats", "lost_models")}
        yield {
            "text": text.text, "sample": sample, "prompt": text.prompt, "answer": one.text, "raw": one.answer,
            "n_bytes": len(one.answer), "stopped": one.stopped, "given": one.stopped == "given",
            "logp_nats": one.logp_nats, "left": sum(map(math.isnan, one.logp_models_nats)),
            **{name: [None if math.isnan(value) else value for value in values] for name, values in lists.items()},
        }  # fmt: skip


def summarise(
    table: pa.Table, names: Sequence[str], weights: Sequence[float], *, provenance: dict[str, Any] | None = None
) -> Result:
    """Figures, verdict and panels of a table of answers. names, weights: of the models, in order; weights sum to 1."""
    rows = table.to_pylist()
    figures: dict[str, Figure] = {}
    notes: list[str] = []
    verdict: list[str] = []
    about = [
        {"model": number, "name": name, "weight": w}
        for number, (name, w) in enumerate(zip(names, weights, strict=True), 1)
    ]
    for given, kind in ((True, "given"), (False, "drawn")):
        chosen = [row for row in rows if row["given"] == given and row["n_bytes"]]
        if chosen:
            figures |= _figures(kind, chosen, about, notes)
    drawn = [row for row in rows if not row["given"]]
    if empty := sum(row["given"] and not row["n_bytes"] for row in rows):
        notes.append(f"{empty} given answers are empty: they have a row each, and no bits per byte")
    if drawn:
        figures["ended_share"] = statistics.share_figure(sum(row["stopped"] == "end" for row in drawn), len(drawn))
        figures["answers_left_share"] = statistics.share_figure(sum(row["left"] > 0 for row in drawn), len(drawn))
    verdict.append(
        f"{len(drawn)} answers were drawn and {len(rows) - len(drawn)} given ones scored by {len(names)} models."
    )
    gain = figures.get("given_gain_over_best")
    if gain is not None:
        sure = (gain.low or 0) > 0 or (gain.high or 0) < 0
        said = (
            ("better than" if float(gain.value) > 0 else "worse than") if sure else "as well as (within the interval)"
        )
        verdict.append(
            f"The mixture expects the given answers {said} the best model alone: {gain.value:.3g} bits per byte less "
            f"(95 % interval {gain.low:.3g} to {gain.high:.3g})."
        )
    shown = table.select(["text", "sample", "prompt", "answer", "stopped", "logp_nats", "left"])
    panels = [
        Panel(
            "Models",
            "Who voted, with which weight, and what the answers cost it.",
            "table",
            pa.Table.from_pylist(about),
        ),
        Panel("Answers", "Prompts that end anywhere, and how the mixture goes on.", "table", shown),
    ]
    return Result("generate ensemble", table, figures, provenance or {}, verdict, notes, panels)


def _figures(
    kind: str, rows: Sequence[Mapping[str, Any]], about: Sequence[dict[str, Any]], notes: list[str]
) -> dict[str, Figure]:
    """Bits per byte of the mixture and of each model, and how far each is from the mixture; adds to `about` and `notes`."""
    texts, sizes = [row["text"] for row in rows], [row["n_bytes"] for row in rows]
    mixture = [-row["logp_nats"] / LN2 for row in rows]
    figures = {f"{kind}_bits_per_byte_mixture": _rate(mixture, sizes, texts)} if np.isfinite(mixture).all() else {}
    costs: list[list[float]] = []
    for place, model in enumerate(about):
        own = [row["logp_models_nats"][place] for row in rows]
        if None not in own and np.isfinite(own).all():
            costs.append([-value / LN2 for value in own])
            figures[f"{kind}_bits_per_byte_model_{place + 1}"] = _rate(costs[-1], sizes, texts)
            model[f"{kind}_bits_per_byte"] = sum(costs[-1]) / sum(sizes)
        else:
            notes.append(f"{model['name']} gives some {kind} answers no probability: its bits per byte are left out")
        for column, name, unit in (
            ("kl_models_nats", "kl_model", "nats/byte"),
            ("lost_models", "non_canonical_share", "share"),
        ):
            values = [row[column][place] for row in rows]
            if None not in values and np.isfinite(values).all():
                figures[f"{kind}_{name}_{place + 1}"] = statistics.mean_figure(values, texts, unit=unit)
    if costs and figures.get(f"{kind}_bits_per_byte_mixture"):
        best = min(costs, key=sum)
        gain = [theirs - ours for theirs, ours in zip(best, mixture, strict=True)]
        figures[f"{kind}_gain_over_best"] = _rate(gain, sizes, texts)
    return figures


def _rate(bits: Sequence[float], sizes: Sequence[int], texts: Sequence[int]) -> Figure:
    """Σ bits / Σ bytes with its bootstrap interval over texts."""
    return statistics.ratio_figure(bits, sizes, texts, unit="bits/byte")
