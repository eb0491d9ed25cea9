"""Examples: which labelled texts of a pool to show a model as few-shot examples, by depth in the pool of their label.

The deepest texts are the most typical ones of their label, the shallowest its outliers, and `spread` takes evenly spaced
quantiles of depth. Labels keep the mix they have in the pool; the deepest example stands last, nearest to the query.

Source: arXiv 2310.15010 (ranking of in-context examples by depth). Texts become vectors in `core/embedding.py`.
Deviation: the paper's exact order and number of shots are not public; depth within each label, the label mix by largest
remainders and deepest-last are ours. A text is picked once, however often it occurs. The depth of two corpora in each
other is `compare corpora`.
"""

# N candidates

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from shiftscope.core import embedding
from shiftscope.core.corpora import text_depth
from shiftscope.core.corpora.text_depth import Distance
from shiftscope.core.embedding import Advance, Corpus, Embedding, Source
from shiftscope.core.parts import Parts
from shiftscope.core.rank_test import rank_test
from shiftscope.core.result import Figure, Panel, Result

Choice = Literal["deepest", "shallowest", "spread"]
MOST_BINS = 30


def examples(
    pool: Source,
    *,
    shots: int = 8,
    choice: Choice = "deepest",
    label: str | None = None,
    queries: str | None = None,
    distance: Distance = "cosine",
    limit: int | None = None,
    embed: Embedding = Embedding(),
    parts: Parts | None = None,
    advance: Advance | None = None,
) -> Result:
    """Pick few-shot examples from a pool by their depth.

    pool: candidates as jsonl, parquet or txt of texts, or parquet with a column `embedding`.
    shots: how many examples.
    choice: deepest (the most typical), shallowest (outliers), or spread (evenly over the depths).
    label: field that holds the label of a candidate; every label gets its share of the shots, and depth is within it.
    queries: texts that the examples are for; depth is then taken in them instead of the pool.
    distance: cosine (closed form), chord or arc (every pair of texts).
    limit: only the first candidates.
    Returns a Result whose table has one row per candidate; `shot` is its place in the prompt, null where it is not picked.
    Raises ValueError, in one sentence, for a pool with fewer distinct usable texts than shots, a candidate without the
    label, fewer shots than one, queries without a usable text, malformed records, and a missing encoder.
    """
    if shots < 1:
        raise ValueError(f"shots is {shots}: at least one example must be picked")
    found = [embedding.read(pool, "pool", embed.field, limit)]
    labels = _labels(found[0], label)
    if queries is not None:
        found.append(embedding.read(queries, "queries", embed.field))
    encoder = embedding.opened(found, embed)
    parts = parts or Parts()
    chosen = {"shots": shots, "choice": choice, "label": label, "distance": distance, "limit": limit}
    settings = {
        **{one.name: dict(one.provenance) for one in found},
        "encoder": None if encoder is None else encoder.provenance,
        "settings": {**chosen, "embed": asdict(embed)},
        "versions": {"python": platform.python_version()} | {n: version(n) for n in ("numpy", "torch", "shiftscope")},
    }
    parts.settle(settings)
    found = embedding.embedded(found, encoder, embed.batch_size, parts=parts, advance=advance)
    depth_N = _depth(found, labels, distance)
    keys = found[0].ids if found[0].texts is None else found[0].texts
    shot_N = pick(depth_N, labels, keys, shots, choice)
    columns = {"row": np.arange(len(labels)), "id": list(found[0].ids), "label": labels}
    texts = pa.array([None] * len(labels) if found[0].texts is None else found[0].texts, pa.string())
    places = pa.array(shot_N.astype(np.float64), from_pandas=True).cast(pa.int32())
    table = pa.table({**columns, "text": texts, "depth": pa.array(depth_N, from_pandas=True), "shot": places})
    notes = [note for one in found for note in one.notes]
    alone = [name for name in dict.fromkeys(labels) if labels.count(name) == 1] if queries is None else []
    if alone:
        notes.append(
            f"depth of the only candidate of {', '.join(alone)} is taken in the rest of the pool: its label has no other"
        )
    return summarise(table, choice=choice, notes=notes, provenance=settings)


def pick(
    depth_N: NDArray[np.float64], labels: Sequence[str], keys: Sequence[str], shots: int, choice: Choice = "deepest"
) -> NDArray[np.float64]:
    """The place of every candidate in the prompt, 0 the first and the deepest last; NaN where it is not picked.

    depth_N: NaN where a candidate has none and cannot be picked. labels: of each; keys: what makes two candidates the same
    (of them the first is a candidate). Raises ValueError where fewer candidates than shots remain.
    """
    usable = [row for row in _first_of_each(keys).tolist() if np.isfinite(depth_N[row])]
    if len(usable) < shots:
        raise ValueError(
            f"the pool has {len(usable)} distinct usable texts and {shots} shots are asked for: give more texts"
        )
    names = list(dict.fromkeys(labels[row] for row in usable))
    inside = {name: [row for row in usable if labels[row] == name] for name in names}
    quota = shares([len(inside[name]) for name in names], shots)
    picked: list[int] = []
    for name, wanted in zip(names, quota, strict=True):
        deep_first = sorted(inside[name], key=lambda row: (-depth_N[row], row))
        if choice == "spread":
            places = np.round((np.arange(wanted) + 0.5) / max(1, wanted) * len(deep_first) - 0.5).astype(int)
            picked += [deep_first[place] for place in places]
        else:
            picked += deep_first[:wanted] if choice == "deepest" else deep_first[len(deep_first) - wanted :]
    shot_N = np.full(len(depth_N), np.nan)
    for place, row in enumerate(sorted(picked, key=lambda row: (depth_N[row], -row))):
        shot_N[row] = place
    return shot_N


def shares(counts: Sequence[int], total: int) -> list[int]:
    """How many of `total` go to groups of these sizes: proportional, by largest remainders, never more than a group has."""
    exact = np.asarray(counts) * total / sum(counts)
    given = np.floor(exact).astype(int)
    order = sorted(range(len(counts)), key=lambda group: (given[group] - exact[group], -counts[group], group))
    for group in order[: total - int(given.sum())]:
        given[group] += 1
    return [int(share) for share in given]


def summarise(
    table: pa.Table,
    *,
    choice: Choice = "deepest",
    notes: Sequence[str] = (),
    provenance: Mapping[str, Any] | None = None,
) -> Result:
    """Figures, panels and verdict of a table of candidates of which some have a place in the prompt."""
    depth_N, shot_N = (table[name].to_numpy(zero_copy_only=False).astype(float) for name in ("depth", "shot"))
    usable_N, taken_N = np.isfinite(depth_N), np.isfinite(shot_N)
    figures = {
        "shots": Figure(int(taken_N.sum()), "count", int(usable_N.sum())),
        "candidates": Figure(int(usable_N.sum()), "count", len(table)),
        "labels": Figure(len(set(table["label"].to_pylist())), "count", len(table)),
        "depth_median_picked": Figure(float(np.median(depth_N[taken_N])), "", int(taken_N.sum())),
        "depth_median_pool": Figure(float(np.median(depth_N[usable_N])), "", int(usable_N.sum())),
    }
    rest_N = usable_N & ~taken_N
    if rest_N.any():
        test = rank_test(depth_N[rest_N], depth_N[taken_N])
        figures["deeper_than_rest"] = Figure(test.q, "share", test.m + test.n, test.low, test.high)
    rows = table.filter(pa.array(taken_N)).sort_by("shot")
    mix = _mix(table["label"].to_pylist())
    listed = rows.select(["shot", *(["label"] if len(mix) > 1 else []), "depth", "text", "id"])
    bins = min(MOST_BINS, math.ceil(2 * usable_N.sum() ** (1 / 3)))
    edges = np.linspace(depth_N[usable_N].min(), max(depth_N[usable_N].max(), depth_N[usable_N].min() + 1e-6), bins + 1)
    groups = {"pool": usable_N, "picked": taken_N}
    histogram = pa.table(
        {
            "depth": np.tile((edges[1:] + edges[:-1]) / 2, len(groups)),
            "share": np.concatenate([np.histogram(depth_N[mask], edges)[0] / mask.sum() for mask in groups.values()]),
            "texts": np.repeat(list(groups), bins),
        }
    )
    panels = [
        Panel("The examples, in the order of the prompt", "The deepest stands last, nearest to the query.", "table", listed),
        Panel(
            "Where they lie in the pool", "Depth of all candidates and of the picked ones.", "line", histogram,
            x="depth", y="share", series="texts", x_title="depth", y_title="share of texts",
        ),
    ]  # fmt: skip
    taken = ", ".join(f"{count} {name}" for name, count in _mix(rows["label"].to_pylist()).items())
    among = f"{int(taken_N.sum())} of {int(usable_N.sum()):,} candidates"
    verdict = [f"Picked {among} ({choice} by depth)" + (f": {taken}." if len(mix) > 1 else ".")]
    return Result("compare examples", table, figures, provenance or {}, verdict, list(notes), panels)


def _mix(labels: Sequence[str]) -> dict[str, int]:
    return {name: labels.count(name) for name in sorted(set(labels))}


def _labels(pool: Corpus, label: str | None) -> list[str]:
    if label is None:
        return [""] * len(pool.ids)
    found = []
    for row in range(len(pool.ids)):
        record = pool.records[row] if pool.records else {}
        if record.get(label) is None:
            said = ", ".join(record) or "nothing"
            raise ValueError(
                f"pool, record {row + 1} has no label `{label}` (beside its text it has: {said}): give --label"
            )
        found.append(str(record[label]))
    return found


def _depth(found: Sequence[Corpus], labels: Sequence[str], distance: Distance) -> NDArray[np.float64]:
    """Depth of every candidate in the queries, or in the pool of its own label, itself left out."""
    rows_ND = found[0].rows_ND
    if len(found) > 1:
        if not found[1].usable_N.any():
            raise ValueError("the queries have no usable text: depth needs at least one to be taken in")
        return text_depth.depth(rows_ND, found[1].rows_ND, distance)
    depth_N = np.full(len(rows_ND), np.nan)
    for name in dict.fromkeys(labels):
        inside = np.flatnonzero(np.asarray(labels) == name)
        own_ND = rows_ND[inside]
        depth_N[inside] = text_depth.depth(own_ND, own_ND, distance, own=True)
    alone_N = np.isnan(depth_N) & found[0].usable_N  # the only one of its label: depth in the rest of the pool
    if alone_N.any():
        depth_N[alone_N] = text_depth.depth(rows_ND, rows_ND, distance, own=True)[alone_N]
    if np.isnan(depth_N).all():
        raise ValueError(
            f"the pool has {int(found[0].usable_N.sum())} usable texts: depth compares each text with the others, so give at "
            f"least two, or --queries"
        )
    return depth_N


def _first_of_each(keys: Sequence[str]) -> NDArray[np.int64]:
    _, first = np.unique(np.asarray(keys, dtype=object).astype(str), return_index=True)
    ordered: NDArray[np.int64] = np.sort(first)
    return ordered
