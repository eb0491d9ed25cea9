"""Corpora: is B more outlying than A, in whose eyes, by which texts, and what does depth not see?

Every text gets a depth in each corpus: how central its embedding is there. Q = P(depth of a text of A <= depth of a text of
B), both in the same corpus, is 0.5 where they are alike, below where B is more outlying, above where B is MORE central (a
concentrated corpus, word salad). Beside it stand what depth is blind to: an out-of-fold discriminator, MMD, and length.

Source: arXiv 2310.15010 (depth of embeddings, Q and its rank-sum test); the discriminator:
`core/corpora/discriminator.py`; texts become vectors in `core/embedding.py`.
Deviation: the p-values that decide are label permutations with depths worked out anew (both depths share their reference,
so the rank-sum test does not keep its level); two-sided beside the paper's one-sided, and both directions.
Deviation: Q is the plain Mann-Whitney share; the figure of the authors' code is `…_pooled`. The cosine depth has a closed
form (`core/corpora/text_depth.py`). Few-shot examples by depth are picked by `compare examples`.
"""

# N texts of both corpora, S texts of the sample

from __future__ import annotations

import math
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from shiftscope.core import embedding, permutation
from shiftscope.core.corpora import discriminator, mmd, text_depth
from shiftscope.core.corpora.text_depth import Distance
from shiftscope.core.embedding import Advance, Corpus, Embedding, Source
from shiftscope.core.parts import Parts
from shiftscope.core.rank_test import RankTest, rank_test, rank_test_in_strata, share_interval
from shiftscope.core.result import Figure, Panel, Result

LEVEL = 0.05
SIDES = ("a", "b")
FOLDS = 5
MOST_BINS = 40
SHOWN_CHARACTERS = 240


@dataclass(frozen=True)
class Chance:
    """How chance is measured.

    permutations: relabellings of the pooled texts. sample: texts of each corpus in everything that is permuted, in the
    discriminator, in MMD and on the map; depth and Q use all texts. seed: of the sample, the folds and the relabellings.
    """

    permutations: int = 999
    sample: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.permutations < 99 or self.sample < 2 or self.seed < 0:
            raise ValueError(
                f"permutations {self.permutations}, sample {self.sample}, seed {self.seed}: need at least 99, 2 and 0"
            )


def corpora(
    a: Source,
    b: Source,
    *,
    distance: Distance = "cosine",
    limit: int | None = None,
    shown: int = 10,
    chance: Chance = Chance(),
    embed: Embedding = Embedding(),
    parts: Parts | None = None,
    advance: Advance | None = None,
) -> Result:
    """Compare two corpora by the depth of their texts in each other, and by what depth is blind to.

    a, b: jsonl, parquet or txt files of texts; parquet with a column `embedding`; or .npy matrices of embeddings.
    distance: cosine (closed form: one pass, any size), chord or arc (every pair of texts).
    limit: only the first records of each corpus.
    shown: how many texts of each kind the page shows.
    Returns a Result whose table has one row per text, with its depth in both corpora.
    Raises ValueError, in one sentence, for corpora with fewer than two usable texts, malformed records, embeddings that
    are not finite numbers or of different widths, and a missing encoder.
    """
    if shown < 1:
        raise ValueError(f"shown is {shown}: the page shows at least 1 text of each kind")
    names = _names(a, b)
    found = [embedding.read(source, name, embed.field, limit) for source, name in zip((a, b), names, strict=True)]
    encoder = embedding.opened(found, embed)
    parts = parts or Parts()
    settings = {
        **{side: {"name": one.name, **one.provenance} for side, one in zip(SIDES, found, strict=True)},
        "encoder": None if encoder is None else encoder.provenance,
        "settings": {"distance": distance, "limit": limit, "chance": asdict(chance), "embed": asdict(embed)},
        "versions": {"python": platform.python_version()} | {n: version(n) for n in ("numpy", "torch", "shiftscope")},
    }
    parts.settle(settings)
    found = embedding.embedded(found, encoder, embed.batch_size, parts=parts, advance=advance)
    for one in found:
        if (count := int(one.usable_N.sum())) < 2:
            raise ValueError(
                f"{one.name} has {count} usable texts of {len(one.ids)}: depth leaves each text out of its own corpus, so "
                f"that every corpus needs at least two"
            )
    table = _depths(found, distance)
    table, tests, notes = _tested(table, found, distance, chance)
    return summarise(table, tests, names=names, notes=notes, provenance=settings, shown=shown)


@dataclass(frozen=True)
class Measured:
    """What permutation found. sizes: texts of each corpus in the sample. p: of each statistic; observed:
    their values on the sample; ranges: the middle 95 % of the relabellings; explained: variance that the map shows."""

    sizes: tuple[int, int]
    p: Mapping[str, float]
    observed: Mapping[str, float]
    ranges: Mapping[str, tuple[float, float]]
    explained: float


def summarise(
    table: pa.Table,
    tests: Measured,
    *,
    names: Sequence[str] = ("A", "B"),
    notes: Sequence[str] = (),
    provenance: Mapping[str, Any] | None = None,
    shown: int = 10,
) -> Result:
    """Figures, panels and verdict of a table of texts; rows without a depth count for nothing.

    names: of the two corpora; shown: texts of each kind in the tables.
    """
    table = table.replace_schema_metadata(None)
    second_N = np.asarray(table["corpus"].to_pylist()) == "b"
    depth = {side: table[f"depth_{side}"].to_numpy(zero_copy_only=False) for side in SIDES}
    seen_N = np.isfinite(depth["a"]) & np.isfinite(depth["b"])
    first_N, second_N = seen_N & ~second_N, seen_N & second_N
    ranks = {"q_b_in_a": rank_test(depth["a"][first_N], depth["a"][second_N])}
    ranks["q_a_in_b"] = rank_test(depth["b"][second_N], depth["b"][first_N])
    figures = _headline(ranks, tests)
    for name, test in ranks.items():
        figures |= _rank_figures(name, test, tests)
    notes = list(notes)
    if "mmd2" in tests.p:
        figures["mmd2_chance_upper"] = Figure(tests.ranges["mmd2"][1], "", sum(tests.sizes))
    figures |= _length_figures(table, depth, first_N, second_N, notes)
    for side, own_N in zip(SIDES, (first_N, second_N), strict=True):
        values = depth[side][own_N]
        low, high = np.quantile(values, [0.05, 0.95])
        figures[f"depth_median_{side}"] = Figure(float(np.median(values)), "", len(values))
        figures[f"depth_spread_{side}"] = Figure(float(high - low), "", len(values))
        figures[f"texts_{side}"] = Figure(len(values), "count", len(values))
    figures["map_explained"] = Figure(tests.explained, "share", sum(tests.sizes))
    notes.append("depth_spread is the distance from the 5 % to the 95 % quantile of a corpus' depths in itself")
    charts = _charts(table, depth, first_N, second_N, names, tests.explained)
    panels = [*charts, *_tables(table, depth, first_N, second_N, shown)]
    verdict = _verdict(figures, names)
    return Result("compare corpora", table, figures, provenance or {}, verdict, notes, panels)


def _names(a: Source, b: Source) -> tuple[str, str]:
    """Names that tell the two apart: the files' where they differ, else A and B."""
    files = [Path(source).name if isinstance(source, str | Path) else "" for source in (a, b)]
    first, second = (f"{letter} ({file})" if file else letter for letter, file in zip("AB", files, strict=True))
    return first, second


def _depths(found: Sequence[Corpus], distance: Distance) -> pa.Table:
    """One row per text: where it stands, its length, and its depth in both corpora (null without one)."""
    columns: dict[str, list[Any]] = {
        name: [] for name in ("corpus", "row", "id", "text", "characters", "depth_a", "depth_b")
    }
    references = [text_depth.reference(one.rows_ND) for one in found] if distance == "cosine" else []
    for place, (side, one) in enumerate(zip(SIDES, found, strict=True)):
        if references:
            depth_N2 = text_depth.cosine_depth(one.rows_ND, *references, own=place)
        else:
            depth_N2 = np.stack(
                [text_depth.depth(one.rows_ND, other.rows_ND, distance, own=other is one) for other in found], 1
            )
        texts = [None] * len(one.ids) if one.texts is None else one.texts
        columns["corpus"].append(pa.array([side] * len(one.ids)))
        columns["row"].append(pa.array(np.arange(len(one.ids))))
        columns["id"].append(pa.array(one.ids, pa.string()))
        columns["text"].append(pa.array(texts, pa.string()))
        columns["characters"].append(pa.array([None if text is None else len(text) for text in texts], pa.int32()))
        for number, name in enumerate(("depth_a", "depth_b")):
            columns[name].append(pa.array(depth_N2[:, number], from_pandas=True))
    return pa.table({name: pa.chunked_array(chunks) for name, chunks in columns.items()})


def _tested(
    table: pa.Table, found: Sequence[Corpus], distance: Distance, chance: Chance
) -> tuple[pa.Table, Measured, list[str]]:
    """The permutation tests on a sample of both corpora; the table gets each sampled text's leaning and place on the map."""
    notes = [note for one in found for note in (*one.notes, *_copies(one))] + _shared(found)
    generator = np.random.default_rng(chance.seed)
    chosen = [np.flatnonzero(one.usable_N) for one in found]
    if max(map(len, chosen)) > chance.sample:
        notes.append(
            f"permutation p-values, discriminator, MMD and map use a random sample of at most {chance.sample} texts of each "
            f"corpus; depth and Q use all"
        )
    chosen = [np.sort(generator.permutation(each)[: chance.sample]) for each in chosen]
    unit_SD = text_depth.directions(
        np.concatenate([one.rows_ND[rows] for one, rows in zip(found, chosen, strict=True)])
    )
    second_S = np.repeat([0.0, 1.0], [len(rows) for rows in chosen])
    fold_S = discriminator.stratified_folds(second_S, FOLDS, chance.seed)
    how: dict[str, Any] = {"draws": chance.permutations, "seed": chance.seed}
    q = permutation.permute(text_depth.q_of_labels(unit_SD, distance), second_S, **how)
    auc = permutation.permute(discriminator.auc_of_labels(unit_SD, fold_S), second_S, strata_N=fold_S, **how)
    p = {"q_b_in_a": q.p(0), "q_a_in_b": q.p(1), "discriminator_auc": auc.p(0, "greater")}
    observed = {"discriminator_auc": float(auc.observed_S[0])}
    ranges = {
        "q_b_in_a": _range(q.null_SP[0]),
        "q_a_in_b": _range(q.null_SP[1]),
        "discriminator_auc": _range(auc.null_SP[0]),
    }
    try:
        spread = permutation.permute(mmd.mmd2_of_labels(unit_SD), second_S, **how)
    except ValueError as error:
        notes.append(f"MMD is left out: {error}")
    else:
        p["mmd2"], observed["mmd2"] = spread.p(0, "greater"), float(spread.observed_S[0])
        ranges["mmd2"] = _range(spread.null_SP[0])
    lean_S = discriminator.scores_of_labels(unit_SD, fold_S)(second_S[:, None])[:, 0] - second_S.mean()
    place_S2, explained = _map(unit_SD)
    rows_S = np.concatenate([chosen[0], chosen[1] + len(found[0].ids)])
    for name, values in (("lean_b", lean_S), ("map_x", place_S2[:, 0]), ("map_y", place_S2[:, 1])):
        column = np.full(len(table), np.nan)
        column[rows_S] = values
        table = table.append_column(name, pa.array(column, from_pandas=True))
    return table, Measured((len(chosen[0]), len(chosen[1])), p, observed, ranges, explained), notes


def _range(null_P: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(null_P, [0.025, 0.975])
    return float(low), float(high)


def _copies(one: Corpus) -> list[str]:
    copies = 0 if one.texts is None else len(one.texts) - len(set(one.texts))
    return (
        [f"{one.name}: {copies} texts are copies of another one in it: the discriminator may know them"]
        if copies
        else []
    )


def _shared(found: Sequence[Corpus]) -> list[str]:
    if any(one.texts is None for one in found):
        return []
    counts = [Counter(one.texts) for one in found]
    both = counts[0].keys() & counts[1].keys()
    return (
        [
            f"{len(both)} distinct texts are in both corpora: a copy lies nearest to its own original, which lifts Q and lowers "
            f"the discriminator's AUC (the permutation p-values allow for it)"
        ]
        if both
        else []
    )


def _map(unit_SD: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """The first two principal components of the pooled sample, signs fixed, and their share of the variance."""
    centred = unit_SD - unit_SD.mean(0)
    values_D, vectors_DD = np.linalg.eigh(centred.T @ centred)
    axes_D2 = vectors_DD[:, ::-1][:, :2]
    axes_D2 = axes_D2 * np.sign(axes_D2[np.abs(axes_D2).argmax(0), np.arange(axes_D2.shape[1])])
    place_S2 = centred @ axes_D2
    place_S2 = np.pad(place_S2, ((0, 0), (0, 2 - place_S2.shape[1])))
    total = float(values_D.sum())
    return place_S2, float(values_D[::-1][:2].sum() / total) if total > 0 else 0.0


def _headline(ranks: Mapping[str, RankTest], tests: Measured) -> dict[str, Figure]:
    """The four measures, each beside its permutation p: the figures that the page shows first."""
    n, auc = sum(tests.sizes), tests.observed["discriminator_auc"]
    found = {name: Figure(test.q, "", test.m + test.n, test.low, test.high) for name, test in ranks.items()}
    found["discriminator_auc"] = Figure(auc, "", n, *share_interval(auc, *tests.sizes))
    if "mmd2" in tests.p:
        found["mmd2"] = Figure(tests.observed["mmd2"], "", n)
    figures: dict[str, Figure] = {}
    for name, figure in found.items():
        figures |= {name: figure, f"{name}_p_permutation": Figure(tests.p[name], "", n)}
    return figures


def _rank_figures(name: str, test: RankTest, tests: Measured) -> dict[str, Figure]:
    n = test.m + test.n
    return {
        f"{name}_p_one_sided": Figure(test.p_below, "", n),
        f"{name}_p_two_sided": Figure(test.p_two_sided, "", n),
        f"{name}_chance": Figure(0.5, "", sum(tests.sizes), *tests.ranges[name]),
        f"{name}_pooled": Figure(test.q_pooled, "", n),
    }


def _length_figures(
    table: pa.Table,
    depth: Mapping[str, NDArray[np.float64]],
    first_N: NDArray[np.bool_],
    second_N: NDArray[np.bool_],
    notes: list[str],
) -> dict[str, Figure]:
    """Whether one corpus has the longer texts, and Q among texts of like length (tenths of the pooled lengths)."""
    length_N = table["characters"].to_numpy(zero_copy_only=False).astype(np.float64)
    if np.isnan(length_N).any():
        notes.append("lengths are not compared: a corpus of vectors has no texts")
        return {}
    test = rank_test(length_N[first_N], length_N[second_N])
    n = test.m + test.n
    figures = {
        "length_q": Figure(test.q, "", n, test.low, test.high),
        "length_p_two_sided": Figure(test.p_two_sided, "", n),
    }
    tenth_N = np.searchsorted(np.quantile(length_N[first_N | second_N], np.linspace(0.1, 0.9, 9)), length_N)
    sides = {"q_b_in_a": ("a", first_N, second_N), "q_a_in_b": ("b", second_N, first_N)}
    for name, (side, x_N, y_N) in sides.items():
        q, covered = rank_test_in_strata(depth[side][x_N], depth[side][y_N], tenth_N[x_N], tenth_N[y_N])
        if np.isnan(q):
            notes.append(f"{name} at equal length is left out: no tenth of the lengths holds texts of both corpora")
        else:
            figures[f"{name}_equal_length"] = Figure(float(q), "", round(covered * y_N.sum()) + int(x_N.sum()))
    return figures


def _charts(
    table: pa.Table,
    depth: Mapping[str, NDArray[np.float64]],
    first_N: NDArray[np.bool_],
    second_N: NDArray[np.bool_],
    names: Sequence[str],
    explained: float,
) -> list[Panel]:
    panels = []
    for side, name in zip(SIDES, names, strict=True):
        panels.append(
            Panel(
                f"Depth in {name}", "The further right, the more central a text is in this corpus.", "line",
                _histogram(depth[side], (first_N, second_N), names), x="value", y="share", series="corpus",
                x_title=f"depth in {name}", y_title="share of texts",
            )
        )  # fmt: skip
    place = {name: table[name].to_numpy(zero_copy_only=False) for name in ("map_x", "map_y")}
    drawn_N = np.isfinite(place["map_x"]) & (first_N | second_N)
    order = np.random.default_rng(0).permutation(np.flatnonzero(drawn_N))  # neither corpus lies on top of the other
    order = np.roll(order, -int(np.argmax(first_N[order])))  # A is met first, so that it has the same colour everywhere
    series = np.where(second_N[order], names[1], names[0])
    ordered = {"x": place["map_x"][order], "y": place["map_y"][order], "corpus": series}
    ordered["text"] = [_shown(table, row) for row in order.tolist()]
    panels.append(
        Panel(
            "Both corpora on one map",
            f"First two principal components of the embeddings' directions ({100 * explained:.0f} % of their variance); a dot is "
            "a text.",
            "points", pa.table(ordered), x="x", y="y", series="corpus", label="text", x_title="first component",
            y_title="second component",
        )
    )  # fmt: skip
    length_N = table["characters"].to_numpy(zero_copy_only=False).astype(np.float64)
    if not np.isnan(length_N).any():
        panels.append(
            Panel(
                "Length", "Length of the texts: it moves embeddings too, so see Q at equal length where these differ.", "line",
                _histogram(np.log10(np.maximum(length_N, 1)), (first_N, second_N), names, back=lambda x: 10**x), x="value",
                y="share", series="corpus", x_title="characters", y_title="share of texts", log_x=True,
            )
        )  # fmt: skip
    return panels


def _histogram(
    values_N: NDArray[Any], masks: Sequence[NDArray[np.bool_]], names: Sequence[str], back: Any = None
) -> pa.Table:
    """Shares of each corpus in bins common to both, as many as the smaller corpus can fill (Rice's rule)."""
    both = values_N[masks[0] | masks[1]]
    bins = min(MOST_BINS, math.ceil(2 * min(mask.sum() for mask in masks) ** (1 / 3)))
    low, high = float(both.min()), float(both.max())
    edges = np.linspace(low, high if high > low else low + 1e-6, bins + 1)
    middle = (edges[1:] + edges[:-1]) / 2
    shares = [np.histogram(values_N[mask], edges)[0] / mask.sum() for mask in masks]
    return pa.table(
        {
            "value": np.tile(middle if back is None else back(middle), 2),
            "share": np.concatenate(shares),
            "corpus": np.repeat(np.asarray(names), bins),
        }
    )


def _tables(
    table: pa.Table,
    depth: Mapping[str, NDArray[np.float64]],
    first_N: NDArray[np.bool_],
    second_N: NDArray[np.bool_],
    shown: int,
) -> list[Panel]:
    lean_N = table["lean_b"].to_numpy(zero_copy_only=False)
    driving, extreme = [], []
    for side, other, own_N in (("b", "a", second_N), ("a", "b", first_N)):
        rows = np.flatnonzero(own_N)
        gain = depth[side][rows] - depth[other][rows]
        for row in rows[np.argsort(-gain, kind="stable")[:shown]].tolist():
            lean = lean_N[row] if side == "b" else -lean_N[row]
            driving.append(
                {
                    "corpus": side.upper(),
                    "text": _shown(table, row),
                    "own depth": float(depth[side][row]),
                    "other depth": float(depth[other][row]),
                    "told apart": None if np.isnan(lean) else bool(lean > 0),
                }
            )
        order = rows[np.argsort(-depth[side][rows], kind="stable")]
        for what, places in (("most central", order[:shown]), ("most outlying", order[::-1][:shown])):
            extreme += [
                {"corpus": side.upper(), "place": what, "depth": float(depth[side][row]), "text": _shown(table, row)}
                for row in places.tolist()
            ]
    return [
        Panel(
            "Texts that drive the difference",
            "Deep in their own corpus, shallow in the other. Told apart: whether the discriminator, which had not seen the "
            "text, put it in its own corpus.",
            "table", pa.Table.from_pylist(driving),
        ),
        Panel(
            "Most central and most outlying texts", "Both ends of each corpus by depth in itself.",
            "table", pa.Table.from_pylist(extreme),
        ),
    ]  # fmt: skip


def _shown(table: pa.Table, row: int) -> str:
    text = table["text"][row].as_py()
    text = f"row {table['id'][row].as_py()}" if text is None else " ".join(text.split())
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"


def _verdict(figures: Mapping[str, Figure], names: Sequence[str]) -> list[str]:
    p = {
        name.removesuffix("_p_permutation"): float(f.value)
        for name, f in figures.items()
        if name.endswith("_permutation")
    }
    least = min(1.0, min(p.values()) * len(p))
    right = 100 * float(figures["discriminator_auc"].value)
    auc = f"a discriminator tells an unseen text of A from one of B in {right:.3g} % of pairs"
    drawn, texts = figures["q_b_in_a_p_permutation"].n, figures["q_b_in_a"].n
    sample = f" on a sample of {drawn:,} of the {texts:,} texts" if drawn < texts else ""
    tests = f"smallest of {len(p)} permutation p-values{sample}, corrected: {least:.2g}"
    if least < LEVEL:
        sentences = [f"The two corpora differ ({tests}); {auc}."]
    else:
        sentences = [f"Nothing tells the two corpora apart ({tests}); {auc}."]
    sentences += [
        _placed("B", "A", names[0], figures, "q_b_in_a", p["q_b_in_a"]),
        _placed("A", "B", names[1], figures, "q_a_in_b", p["q_a_in_b"]),
    ]
    if least < LEVEL <= min(p["q_b_in_a"], p["q_a_in_b"]):
        sentences.append("Depth is blind to this shift: discriminator or MMD see it, neither depth does.")
    length = figures.get("length_q")
    if (
        length is not None
        and float(figures["length_p_two_sided"].value) < LEVEL
        and abs(float(length.value) - 0.5) > 0.05
    ):
        longer = "B" if float(length.value) > 0.5 else "A"
        equal = figures.get("q_b_in_a_equal_length")
        also = "" if equal is None else f"; among texts of like length Q of B in A is {float(equal.value):.3g}"
        sentences.append(f"The texts of {longer} are longer, which moves embeddings by itself{also}.")
    return sentences


def _placed(who: str, whose: str, name: str, figures: Mapping[str, Figure], figure: str, p: float) -> str:
    q = figures[figure]
    said = f"(Q = {float(q.value):.3g}, 95 % interval {q.low:.3g} to {q.high:.3g}, permutation p = {p:.2g})"
    within = q.low is not None and q.high is not None and q.low <= 0.5 <= q.high
    if p >= LEVEL and figures[f"{figure}_p_permutation"].n < q.n and not within:
        ranked = float(figures[f"{figure}_p_two_sided"].value)
        return (
            f"By depth in {name}, all {q.n:,} texts show a shift of {who} {said[:-1]}, rank-sum p = {ranked:.2g}) that is too "
            f"small for the permuted sample: judge by its size, or raise --sample."
        )
    if p >= LEVEL:
        return f"By depth in {name}, {who} lies as {whose} itself does {said}."
    if float(q.value) < 0.5:
        return f"By depth in {name}, {who} is more outlying than {whose}'s own texts {said}."
    return (
        f"By depth in {name}, {who} is more central than {whose}'s own texts {said}: it is concentrated or blander, which the "
        f"published one-sided test (p = {float(figures[f'{figure}_p_one_sided'].value):.2g}) does not see."
    )
