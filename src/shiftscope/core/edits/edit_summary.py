"""Figures, verdict and panels of an editing probe: pure functions of its trials, slot masses and spelling counts.

Intervals resample passages, since the trials of one are not independent.
Source: arXiv 2601.14658 (rates, transitions between numbers of tokens).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from shiftscope.core import statistics
from shiftscope.core.edits.artefacts import LABELS
from shiftscope.core.edits.edit_slots import OUTCOMES, PHANTOM, REPLACED, UNCHANGED, UNSCORABLE
from shiftscope.core.edits.edit_trials import BYTES, CANONICAL, IDS, NONE, RECORDED, TIGHT, TRIALS, is_fitted
from shiftscope.core.result import Figure, Panel, Result

RARELY = 1e-3  # a word's mass in a slot under which its split among ids is not worth a sentence


def _suffix(decoder: str) -> str:
    return "" if decoder in (NONE, RECORDED) else f".{decoder}"


def _share(hits: Sequence[bool], groups: Sequence[int]) -> Figure:
    """A share with its interval over passages; where all trials agree, a Wilson interval for as many trials as passages."""
    share, passages = float(np.mean(hits)), len(set(groups))
    if share in (0.0, 1.0) or passages == len(hits):
        low, high = statistics.wilson(round(share * passages), passages)
        return Figure(share, "share", len(hits), min(low, share), max(high, share))
    return statistics.mean_figure(np.array(hits, dtype=float), groups, unit="share")


def _by_decoder(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["decoder"], []).append(row)
    return found


def trial_figures(trials: pa.Table) -> tuple[dict[str, Figure], list[str]]:
    """Rates of every decoder with intervals over passages, and notes on what cannot be scored."""
    figures: dict[str, Figure] = {}
    notes: list[str] = []
    for decoder, rows in _by_decoder(trials.to_pylist()).items():
        end = _suffix(decoder)
        scored = [row for row in rows if row["outcome"] != UNSCORABLE]
        hits = [row["outcome"] != UNSCORABLE for row in rows]
        scorable = {f"scorable_share{end}": _share(hits, [row["passage"] for row in rows])}
        if not scored:
            figures |= scorable
            notes.append(f"no trial of decoder {decoder} can be scored: {_reasons(rows)}; its rates are left out")
            continue
        groups = [row["passage"] for row in scored]
        for outcome in (PHANTOM, REPLACED, UNCHANGED):
            figures[f"{outcome}_share{end}"] = _share([row["outcome"] == outcome for row in scored], groups)
        figures |= scorable
        edited = [row for row in scored if row["outcome"] != UNCHANGED]
        if edited:
            void = [row["outcome"] == PHANTOM for row in edited]
            figures[f"illusion_share{end}"] = _share(void, [row["passage"] for row in edited])
        if decoder in (NONE, TIGHT, RECORDED):
            plain = [row["outcome_plain"] == PHANTOM for row in scored]
            both = [row["outcome"] == row["outcome_plain"] == PHANTOM for row in scored]
            figures[f"phantom_share_unbracketed{end}"] = _share(plain, groups)
            figures[f"phantom_share_either{end}"] = _share(both, groups)
        if decoder == IDS:
            figures |= _half_figures(scored)
        unscored = len(rows) - len(scored)
        if unscored:
            notes.append(f"{unscored} of {len(rows)} trials of decoder {decoder} cannot be scored: {_reasons(rows)}")
    return figures | _phantom_figures(trials), notes


def _half_figures(scored: Sequence[Mapping[str, Any]]) -> dict[str, Figure]:
    """Phantom shares under the id mask on the words that it was fitted on, and on the others."""
    figures = {}
    for name, fitted in (("fitted", True), ("held_out", False)):
        half = [row for row in scored if is_fitted(row["word"]) == fitted]
        if half:
            hits = [row["outcome"] == PHANTOM for row in half]
            figures[f"phantom_share.{IDS}_{name}"] = _share(hits, [row["passage"] for row in half])
    return figures


def _phantom_figures(trials: pa.Table) -> dict[str, Figure]:
    """Of the phantom edits without a remedy: how the number of tokens changed, and each artefact's share."""
    rows = [row for row in trials.to_pylist() if row["decoder"] in (NONE, RECORDED) and row["outcome"] == PHANTOM]
    if not rows:
        return {}
    groups = [row["passage"] for row in rows]
    steps = [(row["n_before"], row["n_after"]) for row in rows]
    figures = {
        "one_to_one_share": _share([step == (1, 1) for step in steps], groups),
        "same_count_share": _share([before == after for before, after in steps], groups),
        "split_share": _share([before < after for before, after in steps], groups),
        "merge_share": _share([before > after for before, after in steps], groups),
    }
    for label in LABELS:
        hits = [row["artefact"] == label for row in rows]
        if any(hits):
            figures[f"artefact_share.{label}"] = _share(hits, groups)
    return figures


def _reasons(rows: Sequence[Mapping[str, Any]]) -> str:
    counts = Counter(row["why"] for row in rows if row["why"])
    return "; ".join(f"{why} ({n})" for why, n in counts.most_common())


def mass_result(masses: pa.Table) -> Result:
    """Means over slots; of the word's whole mass, the share of other ids than its own (a ratio of means)."""
    figures: dict[str, Figure] = {}
    for decoder, rows in _by_decoder(masses.to_pylist()).items():
        end, groups = _suffix(decoder), [row["passage"] for row in rows]
        word = [row["unchanged"] + row["phantom"] for row in rows]
        figures[f"word_mass{end}"] = statistics.mean_figure(word, groups, unit="probability")
        if decoder != BYTES:
            phantom_mass = [row["phantom"] for row in rows]
            figures[f"phantom_mass{end}"] = statistics.mean_figure(phantom_mass, groups, unit="probability")
            if sum(word) > 0:
                figures[f"other_ids_share{end}"] = _ratio(phantom_mass, word, groups)
    figures["mass_left_out_max"] = Figure(max(masses["left_out"].to_pylist()), "probability", len(masses))
    return Result("compare edits masses", masses, figures, verdict=_mass_verdict(figures), panels=[_mass_panel(masses)])


def _mass_verdict(figures: Mapping[str, Figure]) -> list[str]:
    """How the word's mass is shared among its ids, unless there is hardly any: then that."""
    if "other_ids_share" not in figures:
        return []
    word = float(figures["word_mass"].value)
    if word < RARELY:
        return [
            f"The model hardly ever writes the word itself (probability {word:.2g} in a slot): there is next to nothing that "
            f"could be a phantom, and the split of that mass says little."
        ]
    return [
        f"Where the model writes the word itself (probability {word:.2g} in a slot), "
        f"{_percent(figures['other_ids_share'])} of that mass lies on other ids than the word's own."
    ]


def _ratio(part: Sequence[float], whole: Sequence[float], groups: Sequence[int]) -> Figure:
    """A ratio of sums with its bootstrap interval over passages."""
    sums, (totals, _) = statistics.group_sums(part, groups)[0], statistics.group_sums(whole, groups)
    low, high = np.quantile(statistics.resampled_ratios(sums, totals), [0.025, 0.975])
    value = sum(part) / sum(whole)
    return Figure(value, "share", len(part), min(float(low), value), max(float(high), value))


def surface_result(surface: pa.Table) -> Result:
    """How many other spellings the frequent words have, by artefact."""
    name, rows = "compare edits surface", surface.to_pylist()
    if not rows:
        left_out = "no frequent word comes through the tokenizer unchanged: its spellings were not counted"
        return Result(name, surface, {}, notes=[left_out])
    ways = [row["ways"] for row in rows]
    labelled = [row for row in rows if row[LABELS[0]] is not None]
    figures = {"surface_mean": statistics.mean_figure(ways, unit="spellings/word")}
    figures["surface_median"] = Figure(float(np.median(ways)), "spellings/word", len(ways))
    totals = {label: sum(row[label] for row in labelled) for label in LABELS}
    total = sum(totals.values())
    for label, n in totals.items():
        if n:
            figures[f"surface_share.{label}"] = Figure(n / total, "share", total)
    sentence = (
        f"The vocabulary spells a frequent word, or a space and the word, in {figures['surface_mean'].value:.1f} other ways on "
        f"average (median {figures['surface_median'].value:.0f}, {len(rows)} words)."
    )
    kinds = [{"artefact": label, "spellings": n} for label, n in totals.items() if n]
    widest = sorted(rows, key=lambda row: -row["ways"])[:40]
    panels = [
        Panel("Phantom surface by artefact", "All other id sequences for the frequent words, sorted; no model is asked.", "bar",
              pa.Table.from_pylist(kinds, schema=pa.schema([("artefact", pa.string()), ("spellings", pa.int64())])),
              x="artefact", y="spellings", y_title="id sequences", log_y=True),
        Panel("Words with the widest surface", "How many other id sequences spell the word or a space and the word.", "table",
              pa.Table.from_pylist([{name: row[name] for name in ("word", "count", "ways", "canonical")} for row in widest])),
    ]  # fmt: skip
    return Result(name, surface, figures, verdict=[sentence], panels=panels)


def trial_verdict(figures: Mapping[str, Figure]) -> list[str]:
    """The rates in sentences: the model, the template's own part, each remedy."""
    if "phantom_share" not in figures:
        return ["No trial can be scored: the notes say why."]
    phantom_share, n = figures["phantom_share"], figures["phantom_share"].n
    sentences = [
        f"{_percent(phantom_share)} of {n} scorable edits are phantoms: other ids, the same word; "
        f"{_percent(figures['replaced_share'])} replace the word, {_percent(figures['unchanged_share'])} leave it."
    ]
    if "illusion_share" in figures:
        sentences.append(
            f"Of all edits that change the ids, {_percent(figures['illusion_share'])} change nothing else."
        )
    if f"phantom_share_unbracketed.{TIGHT}" in figures:
        tight, plain = (figures[f"{name}.{TIGHT}"] for name in ("phantom_share", "phantom_share_unbracketed"))
        sentences.append(
            f"With tight brackets it is {_percent(tight)}, or {_percent(plain)} if the word's ids without brackets are "
            f"the reference: that difference is the template's, not the model's."
        )
    named = {IDS: "An id mask", CANONICAL: "A canonical mask inside the slot", BYTES: "Byte-exact decoding"}
    for decoder, words in named.items():
        if f"phantom_share.{decoder}" in figures:
            after, replaced = (figures[f"{name}.{decoder}"] for name in ("phantom_share", "replaced_share"))
            held = figures.get(f"phantom_share.{IDS}_held_out") if decoder == IDS else None
            more = "" if held is None else f" ({_percent(held)} on words it was not fitted on)"
            sentences.append(f"{words} leaves {_percent(after)} phantoms{more} and {_percent(replaced)} replacements.")
    return sentences


def _percent(figure: Figure) -> str:
    return f"{100 * float(figure.value):.3g} %"


def trial_panels(trials: pa.Table, figures: Mapping[str, Figure]) -> list[Panel]:
    """Outcomes, artefacts, transitions, pairs and examples."""
    rows = trials.to_pylist()
    bars = []
    for decoder in dict.fromkeys(row["decoder"] for row in rows):
        for outcome in (UNCHANGED, REPLACED, PHANTOM):
            figure = figures.get(f"{outcome}_share{_suffix(decoder)}")
            if figure is not None:
                ends = {"low": figure.low, "high": figure.high}
                bars.append({"decoder": decoder, "outcome": outcome, "share": figure.value} | ends)
    panels = []
    if bars:
        panels.append(
            Panel("Outcomes by decoder", "Shares of the scorable trials, with 95 % intervals over passages; tight brackets are "
                  "a control of the template, not a remedy.", "bar", pa.Table.from_pylist(bars), x="decoder", y="share",
                  low="low", high="high", series="outcome", y_title="share of scorable trials")
        )  # fmt: skip
    counts = [
        {"decoder": decoder} | {outcome: sum(row["outcome"] == outcome for row in some) for outcome in OUTCOMES}
        for decoder, some in _by_decoder(rows).items()
    ]
    panels.append(Panel("Trials", "How many there are of each outcome.", "table", pa.Table.from_pylist(counts)))
    phantoms = [row for row in rows if row["decoder"] in (NONE, RECORDED) and row["outcome"] == PHANTOM]
    return panels + (_phantom_panels(phantoms) if phantoms else []) + [_examples(rows)]


def _phantom_panels(phantoms: Sequence[Mapping[str, Any]]) -> list[Panel]:
    by_label = Counter(row["artefact"] for row in phantoms)
    steps = Counter((row["n_before"], row["n_after"]) for row in phantoms)
    pairs = Counter((row["before"], row["after"], row["artefact"], *_pair(row)) for row in phantoms)
    kinds = [{"artefact": label, "edits": by_label[label]} for label in LABELS if by_label[label]]
    cells = [{"before": b, "after": a, "edits": n} for (b, a), n in sorted(steps.items())]
    names = ("before", "after", "artefact", "ids before", "ids after", "edits")
    top = [dict(zip(names, (*pair, n), strict=True)) for pair, n in pairs.most_common(40)]
    return [
        Panel("Artefacts", "Phantom edits by what happened to the ids, without a remedy.", "bar", pa.Table.from_pylist(kinds),
              x="artefact", y="edits", y_title="phantom edits"),
        Panel("Tokens before and after", "Phantom edits by the number of tokens of the word in the prompt and in the output.",
              "heat", pa.Table.from_pylist(cells), x="before", y="after", color="edits", x_title="tokens before",
              y_title="tokens after"),
        Panel("Most frequent phantom pairs", "Pieces of the prompt and of the output (| is a cut, ␣ a space).", "table",
              pa.Table.from_pylist(top)),
    ]  # fmt: skip


def _pair(row: Mapping[str, Any]) -> tuple[str, str]:
    return " ".join(map(str, row["ids_before"])), " ".join(map(str, row["ids_after"]))


def _examples(rows: Sequence[Mapping[str, Any]]) -> Panel:
    """A few trials of each decoder and outcome, phantoms first."""
    seen: Counter[tuple[str, str]] = Counter()
    chosen = []
    for row in sorted(rows, key=lambda row: (PHANTOM, REPLACED, UNSCORABLE, UNCHANGED).index(row["outcome"])):
        key = row["decoder"], row["outcome"]
        seen[key] += 1
        if seen[key] <= 8:
            names = ("decoder", "outcome", "word", "before", "after", "artefact", "why", "passage")
            chosen.append({name: row[name] for name in names})
    schema = pa.schema([(name, TRIALS.field(name).type) for name in chosen[0]])
    caption = "Pieces of the word in the prompt and in the output."
    return Panel("Examples", caption, "table", pa.Table.from_pylist(chosen, schema=schema))


def _mass_panel(masses: pa.Table) -> Panel:
    rows = []
    for decoder, some in _by_decoder(masses.to_pylist()).items():
        means = {name: float(np.mean([row[name] for row in some])) for name in ("unchanged", PHANTOM, *LABELS)}
        rows.append({"decoder": decoder, "slots": len(some)} | means)
    return Panel(
        "Exact masses", "Mean probability, over slots, of the word's own ids and of all others for the word, under what each "
        "decoder draws from; phantom mass by artefact. Byte-exact: of the word.", "table", pa.Table.from_pylist(rows),
    )  # fmt: skip
