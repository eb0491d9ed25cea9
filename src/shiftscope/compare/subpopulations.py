"""Subpopulations: what kinds of text is a collection made of, which are rare, and on which does something go wrong?

A language model names the dimensions in which the texts differ and the attributes of each, corrects them on further texts
and sorts every text by votes. What comes of it is counted: shares with Wilson intervals, slices that fail more often than
the rest at a controlled false-discovery rate, and weights that even the attributes out. The slices are saved as a slice table.

Source: arXiv 2405.02363 (SSD-LLM). What differs from the published procedure is said in `core/slices/structure.py`,
`core/slices/refinement.py`, `core/slices/assignment.py` and `core/slices/weak_slices.py`.
Deviation: texts are sorted as they are (no captioning model), and nothing is written to balance classes: weights do that.
"""

# N items

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shiftscope.core import embedding, statistics
from shiftscope.core.answers import Advance, Loading, identified
from shiftscope.core.endpoint import Asking
from shiftscope.core.parts import Parts
from shiftscope.core.result import Figure, Panel, Result
from shiftscope.core.settings import refuse, unread
from shiftscope.core.slices import assignment, labelled, slices, structure, weak_slices
from shiftscope.core.slices.asking import Backend, Function, open_backend
from shiftscope.core.slices.assignment import NONE, RESERVED, UNASSIGNED, Sorted, Voting, Words
from shiftscope.core.slices.conversation import Asker
from shiftscope.core.slices.labelled import Item, Reading
from shiftscope.core.slices.refinement import Refining
from shiftscope.core.slices.sorted_texts import SortedTexts
from shiftscope.core.slices.structure import Cost, Discovery, Structure

Assign = Literal["model", "words", "embedding"]
PART_ITEMS = 64
SHOWN = ["slice", "measured", "events", "rate", "rate_low", "rate_high", "rate_elsewhere", "q"]


@dataclass(frozen=True)
class Slicing:
    """What is made of the sorted texts. min_size: items that a slice needs to be tested and evened out. fdr: a slice is
    reported at a false-discovery rate below this. pairs: also slices of two attributes. max_weight: largest weight, in means.
    slices_to: file for the slice table (parquet, a row per slice and id).
    """

    min_size: int = 20
    fdr: float = 0.05
    pairs: bool = True
    max_weight: float = 10.0
    slices_to: Path | None = None

    def __post_init__(self) -> None:
        if self.min_size < 1 or not 0 < self.fdr < 1 or self.max_weight < 1:
            raise ValueError(
                f"min_size {self.min_size}, fdr {self.fdr}, max_weight {self.max_weight}: need a size of 1 or more, a rate "
                f"in (0, 1) and a weight of 1 or more"
            )


@dataclass(frozen=True)
class Budget:
    """What asking may cost. estimate: only say how many calls and tokens the run would take. max_calls: refuse, before
    anything is asked, a run that may take more calls than this.
    """

    estimate: bool = False
    max_calls: int | None = None

    def check(self, cost: Cost) -> None:
        """Raises ValueError where a run may cost more than it is allowed to."""
        if self.max_calls is not None and sum(cost.calls.values()) > self.max_calls:
            raise ValueError(
                f"this run takes {cost.sentence}: more than --max-calls {self.max_calls:,}; raise it, or lower --votes"
            )


@dataclass(frozen=True)
class Computing(Loading):
    """How what runs here is run: a --llm model:NAME, or the sentence encoder of --assign embedding.

    dtype: of a model:NAME, 'auto' is float32 on a CPU, its own on an accelerator. batch_size: texts of one forward.
    encoder: of --assign embedding; none takes all-MiniLM-L6-v2 of the extra `embed`.
    """

    encoder: str | None = None


@dataclass(frozen=True)
class Run:
    """How a model was used. cost: what was announced; asker: what was asked; structure: None where criteria were given."""

    cost: Cost
    asker: Asker
    structure: Structure | None


def subpopulations(
    texts: str | Path | Sequence[Mapping[str, Any]],
    *,
    llm: str | Backend | Function | None = None,
    criteria: Path | Mapping[str, Any] | None = None,
    assign: Assign = "model",
    seed: int = 0,
    reading: Reading = Reading(),
    discovery: Discovery = Discovery(),
    refining: Refining = Refining(),
    voting: Voting = Voting(),
    slicing: Slicing = Slicing(),
    budget: Budget = Budget(),
    computing: Computing = Computing(),
    asking: Asking = Asking(),
    parts: Parts | None = None,
    advance: Advance | None = None,
    say: Callable[[str], None] | None = None,
) -> Result:
    """Find the subpopulations of a collection of texts, sort every text, and test which of them stand out.

    texts: jsonl, parquet or txt with a text per record.
    llm: who is asked: endpoint:URL#model, model:NAME, replay:FILE or function:module:function.
    criteria: a JSON file of dimensions and their attributes (or the summary.json of an earlier run); nothing is then
        discovered.
    assign: how texts are sorted: by votes of the model, or without one, by words or by embedding, to given criteria.
    seed: of the texts shown, the order of options and the model's draws.
    say: what takes the cost, and where answers are kept, before anything is asked.
    Returns a Result whose table has one row per item: its attribute on every dimension, and its weight.
    Raises ValueError, in one sentence, where no model is given, for malformed texts, criteria or answers.
    """
    _check_read(llm, criteria is not None, assign, seed, (discovery, refining, voting, budget), computing, asking)
    items = labelled.read(texts, reading)
    words = None if criteria is None else read_criteria(criteria)
    parts = parts or Parts()
    bodies = [item.text for item in items]
    if assign != "model":
        return _without_model(items, words, assign, texts, slicing, computing)
    cost = structure.cost(bodies, discovery, refining, voting, words)
    if budget.estimate:
        return _estimated(cost, len(items))
    budget.check(cost)
    if words is None and parts.shard[1] > 1:
        raise ValueError("shards would each discover a structure of their own: discover once, then give --criteria")
    backend = open_backend(
        llm, asking=asking, dtype=computing.dtype, device=computing.device, batch_size=computing.batch_size
    )
    replay = asking.replay or (None if parts.folder is None else parts.folder.parent / "answers.jsonl")
    asker = Asker(backend, replay, _announced(backend, cost, replay, advance, say))
    made = None
    if words is None:
        made = structure.discover(asker, bodies, discovery, refining, voting, seed=seed)
        words = assignment.check_words(made.criteria)
    settings = _provenance(
        texts, words, "model", llm=backend.model, seed=seed, reading=asdict(reading), discovery=asdict(discovery),
        refining=asdict(refining), voting=asdict(voting), slicing=_kept(slicing),
    )  # fmt: skip
    parts.settle(settings)
    rows = _sorted(asker, bodies, words, voting, seed, parts)
    found = SortedTexts(items, rows, words, f"model {backend.model}", voted=True)
    return summarise(found, slicing, run=Run(cost, asker, made), provenance=settings)


def _check_read(
    llm: str | Backend | Function | None,
    given: bool,
    assign: Assign,
    seed: int,
    how: tuple[Discovery, Refining, Voting, Budget],
    computing: Computing,
    asking: Asking,
) -> None:
    """Raises ValueError for a setting that this way of sorting, or this model, does not read. given: whether criteria are."""
    usual = Discovery(), Refining(), Voting(), Budget()
    if assign != "model":
        refuse("--assign model", llm=(llm, None), seed=(seed, 0))
        for settings, default in zip(how, usual, strict=True):
            unread(settings, default, "--assign model")
        unread(asking, Asking(), "--assign model")
    elif given:
        for settings, default in list(zip(how, usual, strict=True))[:2]:
            unread(settings, default, "a run without --criteria")
    if assign != "embedding":
        unread(computing, Computing(), "--assign embedding", "encoder")
    runs_here = isinstance(llm, str) and llm.startswith("model:")
    if not runs_here:
        unread(computing, Computing(), "--llm model:NAME", "dtype")
    if not runs_here and assign != "embedding":
        unread(computing, Computing(), "--llm model:NAME or --assign embedding", "device", "batch_size")
    if isinstance(llm, str) and not llm.startswith("endpoint:"):
        unread(asking, Asking(), "--llm endpoint:URL", but=("replay",))


def read_criteria(source: Path | str | Mapping[str, Any]) -> dict[str, dict[str, tuple[str, ...]]]:
    """Given criteria: an object, a JSON file, or the summary of an earlier run. Raises ValueError for anything else."""
    given: Any = source
    if not isinstance(source, Mapping):
        try:
            given = json.loads(Path(source).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"the criteria {source} cannot be read as JSON ({error})") from error
        if isinstance(given, Mapping) and given.get("method") == "compare subpopulations":
            given = given["provenance"]["criteria"]
    if not isinstance(given, Mapping):
        raise ValueError(f'the criteria {source} are no object: give {{"dimension": ["attribute", "attribute"]}}')
    return assignment.check_words(given)


def _without_model(
    items: Sequence[Item],
    words: Words | None,
    assign: Assign,
    texts: Any,
    slicing: Slicing,
    computing: Computing,
) -> Result:
    """Sort to given criteria by words or by embedding."""
    if words is None:
        raise ValueError(
            f"--assign {assign} sorts texts to criteria that you give: add --criteria FILE, or use --assign model"
        )
    bodies = [item.text for item in items]
    if assign == "words":
        rows, by = assignment.by_words(bodies, words), "words"
    else:
        batch = computing.batch_size
        loaded = embedding.load(embedding.Embedding(computing.encoder, batch_size=batch, device=computing.device))
        texts_ND, _ = embedding.embed(loaded, bodies, batch)
        vectors = {
            dimension: {name: embedding.embed(loaded, shown, batch)[0].mean(0) for name, shown in attributes.items()}
            for dimension, attributes in words.items()
        }
        rows, by = assignment.by_nearest(texts_ND, vectors), f"embedding {loaded.name}"
    settings = _provenance(texts, words, assign, slicing=_kept(slicing))
    return summarise(SortedTexts(items, rows, words, by), slicing, provenance=settings)


def _announced(
    backend: Backend,
    cost: Cost,
    replay: Path | None,
    advance: Advance | None,
    say: Callable[[str], None] | None,
) -> Callable[[int], None] | None:
    """Say what a run takes, and how its progress is shown."""
    stage, total = f"asking {backend.model}: {cost.sentence}", sum(cost.calls.values())
    kept = f"kept in {replay}" if replay else "not kept: give --out or --replay to go on after an interruption"
    if say is not None:
        say(f"{stage}; answers are {kept}\n")
    if advance is None:
        return None
    advance(stage, 0, total)
    return lambda done: advance(stage, min(done, total), total)


def _sorted(
    asker: Asker, bodies: Sequence[str], words: Words, voting: Voting, seed: int, parts: Parts
) -> list[dict[str, Sorted]]:
    criteria = {dimension: tuple(attributes) for dimension, attributes in words.items()}
    groups = [range(start, min(start + PART_ITEMS, len(bodies))) for start in range(0, len(bodies), PART_ITEMS)]

    def measure(group: range) -> dict[str, pa.Table]:
        rows = assignment.by_votes(asker, [bodies[n] for n in group], criteria, voting, seed=seed)
        said = [json.dumps({name: asdict(outcome) for name, outcome in row.items()}) for row in rows]
        return {"sorted": pa.table({"item": pa.array(group, pa.int64()), "outcome": said})}

    table = parts.map("sort", groups, measure, final=True)["sorted"].sort_by("item")
    return [{name: Sorted(**one) for name, one in json.loads(row).items()} for row in table["outcome"].to_pylist()]


def _kept(slicing: Slicing) -> dict[str, Any]:
    return {name: value for name, value in asdict(slicing).items() if name != "slices_to"}


def _provenance(texts: Any, words: Words, assign: str, **settings: Any) -> dict[str, Any]:
    packages = {name: version(name) for name in ("torch", "transformers", "shiftscope")}
    criteria = {dimension: {name: list(shown) for name, shown in known.items()} for dimension, known in words.items()}
    settings = {"texts": identified(texts), "assign": assign, **settings}
    return {"settings": settings, "criteria": criteria, "versions": packages}


def _estimated(cost: Cost, items: int) -> Result:
    table = pa.table(
        {"stage": list(cost.calls), "calls": list(cost.calls.values()), "tokens": list(cost.tokens.values())}
    )
    figures = {
        "calls_at_most": Figure(sum(cost.calls.values()), "calls", items),
        "tokens_about": Figure(sum(cost.tokens.values()), "tokens", items),
    }
    said = f"A run over these {items:,} texts takes {cost.sentence}; nothing was asked."
    return Result("compare subpopulations", table, figures, verdict=[said])


def summarise(
    found: SortedTexts, slicing: Slicing, *, run: Run | None = None, provenance: Mapping[str, Any] | None = None
) -> Result:
    """Figures, slices, weights and verdict of sorted texts; writes the slice table where one is asked for."""
    table = found.slice_table(pairs_of=slicing.min_size if slicing.pairs else None)
    measured = not bool(np.isnan(found.failed_N).all())
    rates = weak_slices.compared(table, found.failed_N if measured else None, min_size=slicing.min_size)
    several = len(set(found.classes)) > 1
    lean = weak_slices.leaning(*found.contexts_and_classes(), min_size=slicing.min_size) if several else None
    weights = weak_slices.even_weights(
        found.columns, found.classes, min_size=slicing.min_size, largest=slicing.max_weight
    )
    if slicing.slices_to is not None:
        table.save(slicing.slices_to)
    figures = {**_sorting_figures(found, run), **_slice_figures(found.failed_N, rates, lean, weights, slicing)}
    return Result(
        "compare subpopulations",
        found.arrow(weights.weights_N),
        figures,
        provenance or {},
        _verdict(found, figures, rates, lean, slicing),
        _notes(found, run, weights, slicing, measured=measured),
        _panels(found, rates, lean),
    )


def _sorting_figures(found: SortedTexts, run: Run | None) -> dict[str, Figure]:
    outcomes = [row[dimension] for row in found.rows for dimension in found.words]
    owners = np.repeat(np.arange(len(found.items)), len(found.words))
    attributes = [outcome.attribute for outcome in outcomes]
    figures = {
        "items": Figure(len(found.items), "count", len(found.items)),
        "dimensions": Figure(len(found.words), "count", len(found.items)),
        "attributes": Figure(sum(map(len, found.words.values())), "count", len(found.items)),
        "assigned_by": Figure(found.assigned_by, "", len(found.items)),
        "covered_share": statistics.mean_figure([one not in RESERVED for one in attributes], owners, unit="share"),
        "none_share": statistics.mean_figure([one == NONE for one in attributes], owners, unit="share"),
        "unassigned_items_share": statistics.share_figure(
            sum(any(one.attribute == UNASSIGNED for one in row.values()) for row in found.rows), len(found.rows)
        ),
    }
    if len(set(found.classes)) > 1:
        leaks = [class_.lower() in item.text.lower() for class_, item in zip(found.classes, found.items, strict=True)]
        figures["class_named_in_text_share"] = statistics.share_figure(sum(leaks), len(leaks))
    if run is None:
        return figures
    figures["vote_agreement_mean"] = statistics.mean_figure([one.agreement for one in outcomes], owners, unit="share")
    n = run.asker.asked + run.asker.replayed + run.asker.failed
    figures["calls_at_most"] = Figure(sum(run.cost.calls.values()), "calls", n)
    for name in ("asked", "replayed", "unfit", "failed"):
        figures[f"calls_{name}"] = Figure(getattr(run.asker, name), "calls", n)
    if run.structure is not None:
        figures["void_rounds"] = Figure(run.structure.void, "count", n)
        done = run.structure.refined
        if done is not None and done.sortings:
            figures["refinement_covered_share"] = statistics.share_figure(done.covered, done.sortings)
            figures["refinement_changes"] = Figure(len(done.changes), "count", done.texts)
    return figures


def _slice_figures(
    events_N: Any, rates: pa.Table, lean: pa.Table | None, weights: weak_slices.Weights, slicing: Slicing
) -> dict[str, Figure]:
    n = len(events_N)
    figures = {
        "slices_tested": Figure(sum(one is not None for one in rates["q"].to_pylist()), "count", n),
        "weights_effective_share": Figure(weights.effective_share, "share", n),
        "weights_gap": Figure(weights.gap, "share", n),
    }
    known_N = events_N[~np.isnan(events_N)]
    if len(known_N):
        figures["failure_share"] = statistics.share_figure(int(known_N.sum()), len(known_N))
        figures["weak_slices"] = Figure(len(_weak(rates, slicing.fdr)), "count", len(rates))
        big = [row for row in rates.to_pylist() if (row["measured"] or 0) >= slicing.min_size]
        if big:
            worst = max(big, key=lambda row: (row["rate"], row["slice"]))
            figures["worst_slice"] = Figure(worst["slice"], "", worst["measured"])
            level = 1 - 0.05 / len(big)  # it is the worst of so many
            low, high = statistics.wilson(worst["events"], worst["measured"], level)
            figures["worst_slice_failure_share"] = Figure(worst["rate"], "share", worst["measured"], low, high)
    if lean is not None:
        figures["leaning_slices"] = Figure(sum(q < slicing.fdr for q in lean["q"].to_pylist()), "count", len(lean))
    return figures


def _weak(rates: pa.Table, fdr: float) -> list[dict[str, Any]]:
    """Slices that fail more often than the rest, the clearest first."""
    return [
        row
        for row in rates.to_pylist()
        if row["q"] is not None and row["q"] < fdr and row["rate"] > row["rate_elsewhere"]
    ]


def _verdict(
    found: SortedTexts, figures: Mapping[str, Figure], rates: pa.Table, lean: pa.Table | None, slicing: Slicing
) -> list[str]:
    lists = "; ".join(f"{name} ({', '.join(known)})" for name, known in found.words.items())
    said = [
        f"{len(found.items):,} texts on {len(found.words)} dimension{'' if len(found.words) == 1 else 's'}: {lists}.",
        f"Sorted by {found.assigned_by}: {100 * float(figures['covered_share'].value):.1f} % of the sortings found a "
        "fitting attribute.",
    ]
    if "failure_share" in figures:
        weak = _weak(rates, slicing.fdr)
        if weak:
            top = weak[0]
            said.insert(
                0,
                f"{len(weak)} of {figures['slices_tested'].value} slices fail more often than the rest; clearest: "
                f"{_read(top['slice'])}, {100 * top['rate']:.1f} % of {top['measured']} against "
                f"{100 * top['rate_elsewhere']:.1f} % (q = {top['q']:.2g}).",
            )
        else:
            said.insert(
                0, f"No slice of {slicing.min_size} items or more fails more often than the rest (q < {slicing.fdr:g})."
            )
    if lean is not None:
        clear = [row for row in lean.to_pylist() if row["q"] < slicing.fdr]
        names = [f"{dimension}: {name}" for dimension, known in found.words.items() for name in known]
        differing = [name for name in names if any(row["slice"].endswith(f": {name}") for row in clear)]
        said.append(
            f"The classes differ in {len(differing)} of {len(names)} attributes; "
            f"most: {clear[0]['slice']}, {100 * clear[0]['rate']:.1f} % against "
            f"{100 * clear[0]['rate_elsewhere']:.1f} % elsewhere." if clear else "The classes do not differ in any attribute."
        )  # fmt: skip
    return said


def _notes(
    found: SortedTexts, run: Run | None, weights: weak_slices.Weights, slicing: Slicing, *, measured: bool
) -> list[str]:
    notes = [f"single attributes with fewer than {slicing.min_size} items are in the slice table but are not tested"]
    if not measured:
        notes.append("no column says what failed (--failed): slices have shares and no failure rates")
    if weights.gap > 0.01:
        notes.append(
            f"the weights leave a gap of {weights.gap:.3f}: no weights up to {slicing.max_weight:g} times the mean even out "
            f"all dimensions at once"
        )
    if found.assigned_by.startswith("embedding"):
        notes.append("an embedding always finds a nearest attribute: texts that none fits are sorted too")
    if run is not None and run.structure is not None and run.structure.refined is not None:
        notes += [f"refinement: {change}" for change in run.structure.refined.changes]
    return notes + [f"{count} sortings are {UNASSIGNED}: {problem}" for problem, count in found.problems()[:3]]


def _read(name: str) -> str:
    """A slice's name as people read it: without the class where there is only one."""
    subject, context = slices.parsed(name)
    return context if subject == slices.ALL else name


def _panels(found: SortedTexts, rates: pa.Table, lean: pa.Table | None) -> list[Panel]:
    composition = found.composition()
    panels = [
        Panel(
            "What the collection is made of", "Share of the texts with each attribute, with 95 % Wilson intervals.", "bar",
            composition, x="slice", y="share", low="low", high="high", x_title="attribute", y_title="share of texts",
        ),
        Panel(
            "Dimensions and attributes", "Each with one of its texts.", "table",
            composition.select(["dimension", "attribute", "texts", "example"]),
        ),
    ]  # fmt: skip
    known = rates.filter(pc.is_valid(rates["rate"]))
    if len(known):
        said = "The slices that fail more often than the rest, the clearest first, with 95 % Wilson intervals."
        worse = known.filter(pc.greater(known["rate"], known["rate_elsewhere"])).slice(0, 30)
        worse = worse.set_column(
            worse.column_names.index("slice"), "slice", [[*map(_read, worse["slice"].to_pylist())]]
        )
        panels += [
            Panel(
                "Where it fails", said, "bar", worse, x="slice", y="rate", low="rate_low", high="rate_high",
                x_title="slice", y_title="failure rate",
            ),
            Panel(
                "Slices", "Every slice; q is the false-discovery rate at which its difference would be reported.", "table",
                known.select(SHOWN),
            ),
        ]  # fmt: skip
    if lean is not None and len(lean):
        said = "Share of a class with each attribute, and of the other classes."
        panels.append(Panel("What the classes are made of", said, "table", lean.select(SHOWN)))
    return panels
