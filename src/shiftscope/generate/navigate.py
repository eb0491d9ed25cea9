"""Navigation: mine a model for many different answers, by listing what was found and asking for the next one.

A next-token law is right at its top and full of look-alikes below. What was found is written into the prompt as a list:
the query moves away from those keys, and the best first token not yet tried is taken there. That context only chooses
the first token; the item itself is completed in the plain context, so that the list cannot corrupt it (`regular`). For
reasoning, the items are whole ways of solving, and their answers vote.

Source: arXiv 2410.02284 (its remedy, for lists and for chains of thought). The diagnosis is `compare keys`.
Deviation: first tokens are excluded by id by default (`exclude="string"` is the authors' rule); tokens that cannot open
an item are masked and counted; an item without its end is a failure and is never listed; repeated items are dropped by
their normalised text and count as wrong; a list that outgrows the context loses its oldest items. `mapk` is the
authors' mean of running precisions, `average_precision` the textbook's.
"""

# V vocabulary, k probes of one arm and prompt

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from shiftscope.core import answers, completion, corpus, statistics
from shiftscope.core.answers import Loading, Texts
from shiftscope.core.checkpoints import Checkpoint, opened
from shiftscope.core.corpus import Template, Text
from shiftscope.core.keys import listing, probing
from shiftscope.core.keys.listing import ListFormat
from shiftscope.core.keys.mining import Miner, Navigation, Walk, survey, walk
from shiftscope.core.parts import Parts
from shiftscope.core.result import Figure, Panel, Result
from shiftscope.core.settings import unread
from shiftscope.core.verifiers import Verifier

ARMS = {"navigate": "navigation", "plain": "plain ranking", "control": "another prompt's items"}
ANSWER_LABEL = '\n\n**Final answer:** "'
ANSWER_TOKENS = 8
PROBES = pa.schema(
    [
        ("text", pa.int32()), ("arm", pa.string()), ("probe", pa.int32()), ("round", pa.int32()),
        ("token_id", pa.int32()), ("token", pa.string()), ("rank", pa.int32()), ("probability", pa.float32()),
        ("item", pa.string()), ("failed", pa.bool_()), ("repeated", pa.bool_()), ("reward", pa.float64()),
        ("answer", pa.string()), ("listed", pa.int32()), ("left_out", pa.int32()), ("masked", pa.int32()),
    ]
)  # fmt: skip
LAWS = pa.schema(
    [
        ("text", pa.int32()), ("round", pa.int32()), ("context", pa.string()), ("explored", pa.int32()),
        ("unexplored_right", pa.int32()), ("mass_explored", pa.float64()), ("mass_right", pa.float64()),
        ("dot_explored", pa.float64()), ("dot_right", pa.float64()),
    ]
)  # fmt: skip


def navigate(
    model: str | Checkpoint,
    *,
    prompts: Texts = None,
    limit: int | None = None,
    verifier: str | Verifier | None = None,
    template: Template = "plain",
    navigation: Navigation = Navigation(),
    form: ListFormat = listing.LISTS,
    loading: Loading = Loading(),
    parts: Parts | None = None,
    advance: answers.Advance | None = None,
) -> Result:
    """Mine a model for different answers to each prompt, beside the same number of probes of its plain ranking.

    model: the checkpoint (path, hub id, zoo name, or a loaded Checkpoint).
    prompts: jsonl, parquet or txt with a prompt, and a reference for the verifier, per record; without, those that ship
        with the checkpoint.
    limit: only the first records.
    verifier: module:function, regex:PATTERN or exact; judges every item (the voted answer's text for thoughts).
    template: plain, chat or frame; but for plain, the list stands in the answer.
    form: how the list is written; the default, a numbered list of quoted items, gives way to headings for thoughts.
    Returns a Result whose table has one row per probe.
    Raises ValueError, in one sentence, for malformed prompts, a prompt beyond the context, and NaN logits.
    """
    if verifier is None:
        unread(navigation, Navigation(), "--verifier", "survey")
    checkpoint = opened(model, dtype=loading.dtype, device=loading.device)
    form = listing.THOUGHTS if navigation.mode == "thoughts" and form == listing.LISTS else form
    parts = parts or Parts()
    settings = answers.provenance(
        checkpoint, prompts=prompts, limit=limit, verifier=probing.named(verifier), template=template,
        navigation=asdict(navigation), form=asdict(form), loading=asdict(loading),
    )  # fmt: skip
    parts.settle(settings)
    texts = answers.corpus_of(prompts, checkpoint, limit, option="prompts")
    if navigation.control and len(texts) < 2:
        raise ValueError("the control lists another prompt's items: give at least 2 prompts, or leave it out")
    judge = None if verifier is None else probing.judge_of(verifier)
    miner = Miner(checkpoint, navigation, form, template, loading.batch_size)
    rows = parts.map(
        "navigate", range(len(texts)), lambda index: mined(miner, texts, index, judge),
        advance=None if advance is None else lambda done, total: advance("navigating", done, total), final=True,
    )  # fmt: skip
    return summarise(rows["probes"], rows["laws"], texts, navigation=navigation, provenance=settings)


def mined(miner: Miner, texts: Sequence[Text], index: int, judge: Verifier | None) -> dict[str, pa.Table]:
    """Every arm on one prompt, judged: the rows of PROBES, and the laws that each context gave."""
    text, settings = texts[index], miner.navigation
    walks = {"navigate": miner.navigated(text), "plain": walk(miner, text, "plain", lambda _, own: [])}
    if settings.control:
        donated = miner.donated(texts[(index + 1) % len(texts)])
        walks["control"] = walk(miner, text, "control", lambda number, own: donated[number])
    probes = [probe for arm in walks.values() for probe in arm.probes]
    if judge and settings.mode == "lists":
        probes += survey(miner, text, walks["plain"])
    if settings.mode == "thoughts":
        _answer(miner, text, probes)
    for probe in probes:
        given = probe["item"] if settings.mode == "lists" else probe["answer"]
        wrong = probe["failed"] or not given or (probe["repeated"] and settings.mode == "lists")
        probe["reward"] = None if judge is None else 0.0 if wrong else judge(text.prompt, given, text.reference)
    piece_of = corpus.pieces(miner.checkpoint.tokenizer, (probe["token_id"] for probe in probes))
    for probe in probes:
        probe["token"] = piece_of[probe["token_id"]]
    return {
        "probes": pa.Table.from_pylist(probes, schema=PROBES),
        "laws": pa.Table.from_pylist(_laws(miner, text, walks, probes), schema=LAWS),
    }


def _answer(miner: Miner, text: Text, probes: Sequence[dict[str, Any]]) -> None:
    """Give every way of solving its short answer: greedy after the label, the first number or choice letter in it."""
    plain, _ = miner.context(text, [])
    for probe in probes:
        ids = plain.ids + corpus.answer_ids(miner.checkpoint.tokenizer, probe["item"] + ANSWER_LABEL)
        limit = miner.checkpoint.context_length
        if limit is not None and len(ids) >= limit:
            probe["failed"], probe["answer"] = True, ""
            continue
        prefix = completion.read(miner.checkpoint, ids)
        first = int(prefix.logits_V.argmax())
        (said,) = completion.complete(miner.checkpoint, prefix, [first], max_tokens=ANSWER_TOKENS, stop='"')
        probe["answer"] = short_answer(said.text)


def short_answer(text: str) -> str:
    """The first number (thousands separators dropped) or choice letter A to E in a text; empty where there is none."""
    found = re.search(r"-?\d[\d,]*(?:\.\d+)?|\b[A-E]\b", text)
    return "" if found is None else found[0].replace(",", "")


def _laws(
    miner: Miner, text: Text, walks: Mapping[str, Walk], probes: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """What each context does to the keys explored so far and to the right ones that are not: mass and dot products."""
    surveyed = [probe for probe in probes if probe["arm"] in ("plain", "survey") and probe["reward"] is not None]
    right = {probe["token_id"] for probe in surveyed if probe["reward"] >= 0.5}
    weight_VD, rows = miner.checkpoint.head.weight.detach(), []
    own = walks["navigate"]
    for number in range(1, len(own.laws)):
        explored = [
            probe["token_id"]
            for probe in own.probes
            if probe["round"] < number and not probe["failed"] and not probe["repeated"]
        ]
        missing = sorted(right - {probe["token_id"] for probe in own.probes if probe["round"] < number})
        for context, found in walks.items():
            p_V = found.laws[number].logits_V.softmax(-1)
            dot_V = torch.mv(weight_VD, found.laws[number].hidden_D).float().cpu()
            dot_V = dot_V - dot_V.mean()
            row = {"text": text.text, "round": number, "context": context}
            row |= {"explored": len(explored), "unexplored_right": len(missing)}
            for name, ids in (("explored", explored), ("right", missing)):
                row[f"mass_{name}"] = float(p_V[ids].sum()) if ids else None
                row[f"dot_{name}"] = float(dot_V[ids].mean()) if ids else None
            rows.append(row)
    return rows


def summarise(
    probes: pa.Table,
    laws: pa.Table,
    texts: Sequence[Text],
    *,
    navigation: Navigation = Navigation(),
    provenance: Mapping[str, Any] | None = None,
) -> Result:
    """Figures, panels and verdict of the probes of every arm; the same rows always give the same result."""
    rows = probes.to_pylist()
    arms = {arm: _by_text(rows, arm) for arm in ARMS if any(row["arm"] == arm for row in rows)}
    figures, notes = dict[str, Figure](), list[str]()
    judged = rows[0]["reward"] is not None
    if judged and navigation.mode == "lists":
        figures |= _precision_figures(arms, navigation.budget)
    elif judged:
        figures |= _vote_figures(arms, texts)
    else:
        notes.append("no verifier was given: figures about right items are left out")
    figures |= _yield_figures(arms) | _law_figures(laws)
    if "control" not in arms:
        notes.append("no control was asked for: what the mere presence of a list does is not told from what it lists")
    left_out = sum(row["left_out"] > 0 for row in rows if row["arm"] == "navigate")
    if left_out:
        notes.append(f"{left_out} probes were chosen with a list that had to leave out its oldest items")
    panels = _panels(arms, laws, texts, judged and navigation.mode == "lists")
    verdict = _verdict(figures, navigation, judged)
    return Result("generate navigate", probes, figures, provenance or {}, verdict, notes, panels)


def _by_text(rows: Sequence[Mapping[str, Any]], arm: str) -> list[list[Mapping[str, Any]]]:
    """The probes of one arm, prompt by prompt, in the order in which they were made."""
    found: dict[int, list[Mapping[str, Any]]] = {}
    for row in sorted((row for row in rows if row["arm"] == arm), key=lambda row: (row["text"], row["probe"])):
        found.setdefault(row["text"], []).append(row)
    return list(found.values())


Arms = Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]


def _yield_figures(arms: Arms) -> dict[str, Figure]:
    figures = {}
    for arm, prompts in arms.items():
        new = [sum(not row["failed"] and not row["repeated"] for row in rows) for rows in prompts]
        figures[f"distinct_items_{arm}"] = statistics.mean_figure(new, unit="items per prompt")
        for name in ("failed", "repeated"):
            values = [np.mean([row[name] for row in rows]) for rows in prompts]
            figures[f"{name}_share_{arm}"] = statistics.mean_figure(values, unit="share")
        masked = sum(max(row["masked"] for row in rows) for rows in prompts)
        figures[f"masked_tokens_{arm}"] = Figure(masked, "tokens", len(prompts))
    return figures


def running_precision(rewards: Sequence[float]) -> NDArray[np.float64]:
    """Precision among the first 1, 2, … probes."""
    return np.cumsum(rewards) / np.arange(1, len(rewards) + 1)


def mapk(rewards: Sequence[float]) -> float:
    """Mean of the running precisions: what the authors call MAP."""
    return float(running_precision(rewards).mean())


def average_precision(rewards: Sequence[float]) -> float:
    """The textbook's: mean of the running precision at the right probes; 0 where none is right."""
    weights = np.asarray(rewards, dtype=np.float64)
    return float((running_precision(rewards) * weights).sum() / weights.sum()) if weights.sum() else 0.0


def _precision_figures(arms: Arms, budget: int) -> dict[str, Figure]:
    figures, of = {}, {arm: [[row["reward"] for row in rows] for rows in prompts] for arm, prompts in arms.items()}
    for k in sorted({min(5, budget), budget}, reverse=True):
        for arm, rewards in of.items():
            figures[f"precision_at_{k}_{arm}"] = statistics.mean_figure([np.mean(r[:k]) for r in rewards], unit="share")
    for other in [arm for arm in of if arm != "navigate"]:
        gains = [np.mean(a) - np.mean(b) for a, b in zip(of["navigate"], of[other], strict=True)]
        figures[f"precision_gain_over_{other}"] = statistics.mean_figure(gains, unit="share")
    for name, function in (("mapk", mapk), ("average_precision", average_precision)):
        for arm, rewards in of.items():
            values = [function(r) for r in rewards]
            figures[f"{name}_at_{budget}_{arm}"] = statistics.mean_figure(values, unit="share")
    return figures


def _vote_figures(arms: Arms, texts: Sequence[Text]) -> dict[str, Figure]:
    figures = {}
    for arm, prompts in arms.items():
        paths = [float(np.mean([row["reward"] for row in rows])) for rows in prompts]
        figures[f"path_accuracy_{arm}"] = statistics.mean_figure(paths, unit="accuracy")
        figures[f"vote_accuracy_{arm}"] = statistics.mean_figure([_voted(rows) for rows in prompts], unit="accuracy")
        kinds = [len({row["answer"] for row in rows if row["answer"]}) for rows in prompts]
        figures[f"distinct_answers_{arm}"] = statistics.mean_figure(kinds, unit="answers per prompt")
    return figures


def _voted(rows: Sequence[Mapping[str, Any]]) -> float:
    """Reward of the most frequent answer; ties go to the way found first. 0 where no way has an answer."""
    votes = Counter(row["answer"] for row in rows if row["answer"] and not row["failed"])
    if not votes:
        return 0.0
    winner = votes.most_common(1)[0][0]
    return float(next(row["reward"] for row in rows if row["answer"] == winner and not row["failed"]))


def _law_figures(laws: pa.Table) -> dict[str, Figure]:
    figures, rows = {}, laws.to_pylist()
    for context in ARMS:
        mine = [row for row in rows if row["context"] == context]
        for name, unit in (("mass", "probability"), ("dot", "logit")):
            for what in ("explored", "right"):
                kept = [row for row in mine if row[f"{name}_{what}"] is not None]
                if kept:
                    values, groups = [row[f"{name}_{what}"] for row in kept], [row["text"] for row in kept]
                    label = "unexplored_right" if what == "right" else what
                    figures[f"{name}_{label}_{context}"] = statistics.mean_figure(values, groups, unit=unit)
    return figures


def _panels(arms: Arms, laws: pa.Table, texts: Sequence[Text], judged: bool) -> list[Panel]:
    curves = []
    for arm, prompts in arms.items():
        for k in range(min(len(rows) for rows in prompts)):
            new = [sum(not row["failed"] and not row["repeated"] for row in rows[: k + 1]) for rows in prompts]
            curve = {"items": statistics.mean_figure(new, unit="", samples=300)}
            if judged:
                right = [float(np.mean([row["reward"] for row in rows[: k + 1]])) for rows in prompts]
                curve["precision"] = statistics.mean_figure(right, unit="", samples=300)
            for what, value in curve.items():
                point = {"k": k + 1, "arm": ARMS[arm], "what": what}
                curves.append(point | {"value": value.value, "low": value.low, "high": value.high})
    titles = {
        "precision": ("Right items among the first k", "share right"),
        "items": ("Different items among the first k", "items"),
    }
    panels = [
        Panel(
            title, "Mean over prompts with 95 % bands; every arm makes the same number of probes.", "line",
            pa.Table.from_pylist([point for point in curves if point["what"] == what]),
            x="k", y="value", low="low", high="high", series="arm", x_title="probes k", y_title=axis,
        )
        for what, (title, axis) in titles.items()
        if judged or what == "items"
    ]  # fmt: skip
    panels += _law_panels(laws)
    prompt_of = {text.text: text.prompt for text in texts}
    found = [
        {"prompt": prompt_of[rows[0]["text"]], "by": ARMS[arm], "items": " · ".join(_new_items(rows))}
        for pair in list(zip(arms["navigate"], arms["plain"], strict=True))[:20]
        for arm, rows in zip(("navigate", "plain"), pair, strict=True)
    ]
    caption = "Items in the order in which they were found, without failures and repeats."
    return [*panels, Panel("What was found", caption, "table", pa.Table.from_pylist(found))]


def _law_panels(laws: pa.Table) -> list[Panel]:
    """Mass on explored keys, and on right ones not yet explored, as the list grows, under every context."""
    rows, panels = laws.to_pylist(), []
    for column, title, caption in (
        ("mass_explored", "Does listing free the probability?", "Mass on the keys explored so far."),
        ("mass_right", "Does it reach what is missing?", "Mass on right keys (by the survey) not yet explored."),
    ):
        points = []
        for context in ARMS:
            for number in sorted({row["round"] for row in rows}):
                here = [row for row in rows if (row["context"], row["round"]) == (context, number)]
                kept = [(row[column], row["text"]) for row in here if row[column] is not None]
                if kept:
                    found = statistics.mean_figure([k[0] for k in kept], [k[1] for k in kept], unit="", samples=300)
                    explored = float(np.mean([row["explored"] for row in here]))
                    point = {"explored": explored, "context": ARMS[context], "mass": found.value}
                    points.append(point | {"low": found.low, "high": found.high})
        if points:
            panels.append(
                Panel(
                    title, f"{caption} Mean over prompts, 95 % bands.", "line", pa.Table.from_pylist(points),
                    x="explored", y="mass", low="low", high="high", series="context", x_title="items listed",
                    y_title="probability",
                )
            )  # fmt: skip
    return panels


def _new_items(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return [row["item"].strip() for row in rows if not row["failed"] and not row["repeated"]]


def _verdict(figures: Mapping[str, Figure], navigation: Navigation, judged: bool) -> list[str]:
    def shown(name: str, scale: float = 1.0) -> str:
        return f"{scale * float(figures[name].value):.3g}"

    budget, sentences = navigation.budget, []
    if judged and navigation.mode == "lists":
        gain = figures["precision_gain_over_plain"]
        own, plain, control = (f"precision_at_{budget}_{arm}" for arm in ARMS)
        listed = f"; {shown(control, 100)} % with another prompt's items" if control in figures else ""
        sentences.append(
            f"{shown(own, 100)} % of the probes are right by navigation, {shown(plain, 100)} % by the plain ranking "
            f"(difference {100 * float(gain.value):.2g} points [{100 * float(gain.low or 0):.2g}, "
            f"{100 * float(gain.high or 0):.2g}]){listed}."
        )
    elif judged:
        sentences.append(
            f"The vote over {budget} ways is right for {shown('vote_accuracy_navigate', 100)} % of the prompts by "
            f"navigation, {shown('vote_accuracy_plain', 100)} % by the plain ranking of first tokens."
        )
    sentences.append(
        f"{budget} probes a prompt found {shown('distinct_items_navigate')} different items by navigation and "
        f"{shown('distinct_items_plain')} by the plain ranking."
    )
    if {"mass_explored_plain", "mass_explored_navigate"} <= figures.keys():
        other = "mass_explored_control"
        listed = f" ({shown(other)} with another prompt's items)" if other in figures else ""
        sentences.append(
            f"Listing what was found takes the probability of those keys from {shown('mass_explored_plain')} to "
            f"{shown('mass_explored_navigate')}{listed}."
        )
    return sentences
