"""Filter drift: did the convolution kernels of two checkpoints come from one population, and is every layer healthy?

Weights are read as samples: all kernels of both sides in a common PCA basis, compared component by component, with what
reshuffling gives by chance; and, without any data, each layer's share of dead kernels and how close it is to random.

Source: arXiv 2203.15331 (drift in a common basis, sparsity, variance entropy, random threshold). The mathematics is in
`core/kernels/filters.py`.
Deviation: drift comes with a permutation null, over kernels and over whole layers, since the authors' measure alone grows
without bound as samples shrink; both sides give equally many kernels, so that neither owns the basis; kernels of every
size are compared, each size in a basis of its own. The basis and the histograms are kept in the table's metadata: a later
checkpoint is placed on the same axes with `basis=`. A layer that is both random and sparse is called random: its share of
sparse kernels stands beside it.
Two seeds of one task need not be one population: on digits, two nets with a flattening head are not told apart, with
global average pooling they are (0.0235 nats, 0.0123 by chance, p = 0.01 over 12,288 kernels of each).
"""

# N kernels, K weights of a kernel, C components, B bins, L layers

from __future__ import annotations

import json
import platform
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor, nn

from shiftscope.core import statistics
from shiftscope.core.answers import Advance
from shiftscope.core.kernels import filters, tensors
from shiftscope.core.kernels.filters import Basis, Drift, Layer
from shiftscope.core.parts import Parts
from shiftscope.core.result import Figure, Panel, Result

SIDES = ("base", "tuned")
RIDGE_POINTS, RIDGES, RIDGE_HEIGHT = 128, 9, 0.9
DRIFTS_A_PART = 8
KERNELS, LAYERS, LAYER = "kernels", "layers", "layer "  # units of drift; the last stands before a layer's name
KEPT = b"bases"  # key of the table's metadata


@dataclass(frozen=True)
class Drifting:
    """How drift is measured.

    bins: of every histogram. permutations: of the null. shuffle: pooled deals all kernels out anew; paired lets a kernel
    change places with its counterpart only (for a checkpoint that was tuned from the other). max_kernels: of each side
    and kernel size; more are sampled. entropy: of raw kernels, or scaled (as in arXiv 2204.02481, for its figures only).
    seed: of permutations, samples and simulated thresholds.
    """

    bins: int = 70
    permutations: int = 200
    shuffle: Literal["pooled", "paired"] = "pooled"
    max_kernels: int = 200_000
    entropy: filters.Rows = "raw"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.bins < 2 or self.permutations < 20 or self.max_kernels < 2 or self.seed < 0:
            raise ValueError(
                f"bins {self.bins}, permutations {self.permutations}, max_kernels {self.max_kernels}, seed {self.seed}: need "
                f"at least 2, 20, 2 and 0"
            )
        if self.shuffle not in ("pooled", "paired"):
            raise ValueError(f"shuffle is {self.shuffle!r}: it must be 'pooled' or 'paired'")
        if self.entropy not in ("raw", "scaled"):
            raise ValueError(f"entropy is {self.entropy!r}: it must be 'raw' or 'scaled'")


@dataclass(frozen=True)
class Side:
    """The convolutions of one checkpoint."""

    name: str
    layers: Sequence[Layer]
    provenance: Mapping[str, Any]

    def of(self, kernel: tuple[int, ...]) -> list[Layer]:
        """The layers of one kernel size."""
        return [layer for layer in self.layers if layer.kernel == kernel]


@dataclass(frozen=True)
class Coded:
    """The kernels of one size, of both sides, in their common basis.

    rows, codes: of each side, equally many. here: layers that both sides have, with the codes of each. aligned: whether
    those are all layers.
    """

    basis: Basis
    rows: Sequence[filters.Array]
    codes: Sequence[np.ndarray[Any, np.dtype[np.int32]]]
    here: Mapping[str, Sequence[np.ndarray[Any, np.dtype[np.int32]]]]
    aligned: bool

    def units(self) -> list[str]:
        """What has a drift of its own: all kernels, whole layers where all pair, and each layer with two kernels or more."""
        each = [LAYER + name for name, pair in self.here.items() if min(map(len, pair)) > 1]
        return [KERNELS, *([LAYERS] if self.aligned else []), *each]

    def drift(self, unit: str, drifting: Drifting) -> Drift:
        """The drift of a unit with its null."""
        settings: dict[str, Any] = {"permutations": drifting.permutations, "seed": drifting.seed}
        if unit == LAYERS:
            ours_LCB, theirs_LCB = (
                np.stack([self.basis.counts(p[side]) for p in self.here.values()]) for side in (0, 1)
            )
            return filters.layer_drift(ours_LCB, theirs_LCB, self.basis, **settings)
        pair = self.codes if unit == KERNELS else self.here[unit.removeprefix(LAYER)]
        return filters.drift(pair[0], pair[1], self.basis, paired=drifting.shuffle == "paired", **settings)


@dataclass(frozen=True)
class Shift:
    """The drift of one kernel size.

    layers: the drift of each layer that both sides have; by_layer: the drift whose null keeps layers whole (None unless
    all layers pair). explained: the first component's share of variance in a side's own basis. components: how far the
    sides differ along each. kept: histograms of every side seen in this basis. ridges: density rows of the first components.
    """

    basis: Basis
    drift: Drift
    by_layer: Drift | None
    layers: Mapping[str, Drift]
    explained: Mapping[str, float]
    kernels: int
    kept: Sequence[Mapping[str, Any]]
    components: pa.Table
    ridges: pa.Table


def weights(
    base: str | Path | Mapping[str, Tensor] | nn.Module,
    tuned: str | Path | Mapping[str, Tensor] | nn.Module,
    *,
    layers: str = "",
    basis: str | Path | None = None,
    drifting: Drifting = Drifting(),
    parts: Parts | None = None,
    advance: Advance | None = None,
) -> Result:
    """Compare the convolution kernels of two checkpoints as samples, and judge every layer without data.

    base: the checkpoint before: a .safetensors or torch file, a folder of them, a hub id, a state dict or a module.
    tuned: the checkpoint after.
    layers: a regular expression; only layers whose name it is found in.
    basis: the --out folder (or table.parquet) of an earlier comparison, whose basis is used again, so that its
        checkpoints and these are measured on the same axes.
    Returns a Result whose table has one row per layer.
    Raises ValueError, in one sentence, for checkpoints without convolutions or without a common kernel size, and for
    weights that are not finite.
    """
    pattern = _pattern(layers)
    first, caveats = _side(base, "base", pattern)
    second, more = _side(tuned, "tuned", pattern)
    if first.name == second.name:
        first, second = replace(first, name=f"{first.name} (base)"), replace(second, name=f"{second.name} (tuned)")
    sizes = _common_sizes(first, second)
    kept = {} if basis is None else _kept(Path(basis), drifting)
    notes = [*caveats, *more]
    earlier = {size: kept.get(filters.size(size)) for size in sizes}
    provenance = {
        "base": first.provenance,
        "tuned": second.provenance,
        "settings": {"layers": layers, "basis": None if basis is None else str(basis), "drifting": asdict(drifting)},
        "versions": {"python": platform.python_version(), **{n: version(n) for n in ("torch", "numpy", "shiftscope")}},
    }
    parts = parts or Parts()
    parts.settle(provenance)
    coded = {size: _coded(first, second, size, earlier[size], drifting, notes) for size in sizes}
    drifts = _drifts(coded, drifting, parts, advance)
    shifts = {size: _shift(first, second, coded[size], drifts[size], earlier[size]) for size in sizes}
    return _summarised(first, second, shifts, drifting, notes, provenance)


def _pattern(layers: str) -> re.Pattern[str]:
    try:
        return re.compile(layers)
    except re.error as error:
        raise ValueError(f"layers {layers!r} is not a regular expression: {error}") from error


def _side(source: tensors.Source, role: str, pattern: re.Pattern[str]) -> tuple[Side, list[str]]:
    def wanted(name: str, shape: tuple[int, ...]) -> bool:
        return filters.may_be_kernel(name, shape) and pattern.search(name) is not None

    read = tensors.read(source, wanted, role)
    found, notes = filters.convolutions(read.found, read.name)
    if not found:
        what = f" that {pattern.pattern!r} is found in" if pattern.pattern else ""
        raise ValueError(
            f"{read.name} has no convolutions{what}: none of its {read.seen} tensors is a weight [outputs, inputs, "
            f"kernel…] with more than one weight per kernel; for language models use `compare tokens` or `compare layers`"
        )
    return Side(read.name, found, read.provenance), notes


def _common_sizes(first: Side, second: Side) -> list[tuple[int, ...]]:
    """Kernel sizes that both sides have, the one with most kernels first."""
    kernels = [Counter[tuple[int, ...]]() for _ in SIDES]
    for side, counted in zip((first, second), kernels, strict=True):
        for layer in side.layers:
            counted[layer.kernel] += len(layer.rows_NK)
    shared = [size for size in kernels[0] if min(kernels[0][size], kernels[1][size]) > 1]
    if not shared:
        sizes = [", ".join(map(filters.size, counted)) for counted in kernels]
        raise ValueError(
            f"{first.name} has kernels of size {sizes[0]} and {second.name} of size {sizes[1]}: at least two kernels of "
            f"a common size are needed"
        )
    return sorted(shared, key=lambda size: -min(kernels[0][size], kernels[1][size]))


def _kept(path: Path, drifting: Drifting) -> dict[str, Any]:
    """The bases in the table of an earlier comparison, by kernel size."""
    file = path / "table.parquet" if path.is_dir() else path
    try:
        metadata = pq.read_schema(file).metadata or {}
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"{path} is no earlier result of compare weights: {str(error).splitlines()[0]}") from error
    if KEPT not in metadata:
        raise ValueError(f"{file} holds no basis: give the --out folder of an earlier `compare weights`")
    kept: dict[str, Any] = json.loads(metadata[KEPT])
    bins = next(iter(kept.values()))["basis"]["bins"]
    if drifting.bins != bins:
        raise ValueError(f"the basis in {file} has {bins} bins and --bins is {drifting.bins}: they must be equal")
    return kept


def _coded(
    first: Side, second: Side, size: tuple[int, ...], kept: Mapping[str, Any] | None, drifting: Drifting,
    notes: list[str],
) -> Coded:  # fmt: skip
    sides = [[layer.rows_NK for layer in side.of(size)] for side in (first, second)]
    totals = [sum(map(len, rows)) for rows in sides]
    n = min(*totals, drifting.max_kernels)
    if max(totals) > n:
        notes.append(
            f"{n:,} kernels of size {filters.size(size)} of each side are compared, of {totals[0]:,} and {totals[1]:,}"
        )
    picks = [np.sort(np.random.default_rng(drifting.seed).permutation(total)[:n]) for total in totals]
    rows = [filters.scaled(np.concatenate(side)[pick]) for side, pick in zip(sides, picks, strict=True)]
    found = Basis.from_json(kept["basis"]) if kept else filters.basis(np.concatenate(rows), size, bins=drifting.bins)
    if kept and (beyond := sum(found.outside(side) for side in rows)):
        notes.append(
            f"{beyond} of {2 * n} kernels of size {filters.size(size)} lie beyond the kept range: in its end bins"
        )
    codes = [found.codes(side) for side in rows]
    names, aligned = _paired_layers(first.of(size), second.of(size))
    if drifting.shuffle == "paired" and not aligned:
        raise ValueError(
            f"--shuffle paired needs the same layers on both sides; those with kernels of size {filters.size(size)} "
            f"differ: use --shuffle pooled"
        )
    place = [np.repeat(np.arange(len(side)), list(map(len, side)))[p] for side, p in zip(sides, picks, strict=True)]
    here = {
        name: [code[where == index] for code, where, index in zip(codes, place, pair, strict=True)]
        for name, pair in names.items()
    }
    return Coded(found, rows, codes, here, aligned)


def _drifts(
    coded: Mapping[tuple[int, ...], Coded], drifting: Drifting, parts: Parts, advance: Advance | None
) -> dict[tuple[int, ...], dict[str, Drift]]:
    """Every drift with its null, some a part: by kernel size, that of all kernels, of whole layers, and of each layer."""
    items = [(size, unit) for size, one in coded.items() for unit in one.units()]
    chunks = [items[start : start + DRIFTS_A_PART] for start in range(0, len(items), DRIFTS_A_PART)]
    number, many = pa.float64(), pa.list_(pa.float64())
    schema = pa.schema(
        [("nats", number), ("js_nats", number), ("null", many), ("js_null", many), ("exact", pa.bool_())]
    )

    def measure(chunk: Sequence[tuple[tuple[int, ...], str]]) -> dict[str, pa.Table]:
        found = [coded[size].drift(unit, drifting) for size, unit in chunk]
        rows = [
            {"nats": d.nats, "js_nats": d.js_nats, "null": d.null_S, "js_null": d.js_null_S, "exact": d.exact}
            for d in found
        ]
        return {"drifts": pa.Table.from_pylist(rows, schema=schema)}

    say = None if advance is None else lambda done, total: advance("nulls", done, total)
    table = parts.map("nulls", chunks, measure, advance=say, final=True)["drifts"]
    drifts: dict[tuple[int, ...], dict[str, Drift]] = {size: {} for size in coded}
    for (size, unit), row in zip(items, table.to_pylist(), strict=True):
        nulls = np.array(row["null"]), np.array(row["js_null"])
        drifts[size][unit] = Drift(row["nats"], row["js_nats"], *nulls, row["exact"])
    return drifts


def _shift(
    first: Side, second: Side, coded: Coded, drifts: Mapping[str, Drift], kept: Mapping[str, Any] | None
) -> Shift:
    n = len(coded.codes[0])
    counted = [
        {"name": side.name, "kernels": n, "counts": coded.basis.counts(code).tolist()}
        for side, code in zip((first, second), coded.codes, strict=True)
    ]
    earlier = [side for side in (kept["sides"] if kept else []) if side not in counted]
    explained = {name: float(filters.principal(side)[2][0]) for name, side in zip(SIDES, coded.rows, strict=True)}
    layers = {unit.removeprefix(LAYER): drift for unit, drift in drifts.items() if unit.startswith(LAYER)}
    return Shift(
        coded.basis, drifts[KERNELS], drifts.get(LAYERS), layers, explained, n, [*earlier, *counted],
        _components(coded), _ridges(coded.rows, coded.basis),
    )  # fmt: skip


def _components(coded: Coded) -> pa.Table:
    """One row per component: its share of the pooled variance, and how far the sides differ along it."""
    ours_CB, theirs_CB = (coded.basis.counts(code) for code in coded.codes)
    symmetric_C, js_C = filters.by_component(ours_CB, theirs_CB, coded.basis)
    numbers = np.arange(1, len(symmetric_C) + 1)
    columns = {"component": numbers, "explained_share": coded.basis.ratio_C, "kl_nats": symmetric_C, "js_nats": js_C}
    return pa.table(columns)


def _paired_layers(first: Sequence[Layer], second: Sequence[Layer]) -> tuple[dict[str, tuple[int, int]], bool]:
    """Which layers are the same on both sides, as name → places, and whether that is all of them.

    By name; where no name is common but the shapes agree in order, by order.
    """
    ours, theirs = [layer.name for layer in first], [layer.name for layer in second]
    shapes = [[(layer.rows_NK.shape, layer.outputs) for layer in side] for side in (first, second)]
    if not set(ours) & set(theirs) and shapes[0] == shapes[1]:
        theirs = ours
    pairs = {name: (i, theirs.index(name)) for i, name in enumerate(ours) if name in theirs}
    same = [name for name, (i, j) in pairs.items() if shapes[0][i] == shapes[1][j]]
    return pairs, len(same) == len(ours) == len(theirs) and ours == theirs


def _ridges(rows: Sequence[filters.Array], basis: Basis) -> pa.Table:
    """Densities of both sides along the first components; ridge: the density on top of the component's number, to draw."""
    grid = np.linspace(basis.low, basis.high, RIDGE_POINTS)
    sides = [basis.coefficients(side) for side in rows]
    tables = []
    for place in range(min(RIDGES, len(basis.ratio_C))):
        densities = [filters.density(coefficient_NC[:, place], grid) for coefficient_NC in sides]
        highest = max(float(density.max()) for density in densities)
        label = f"{place + 1} ({100 * basis.ratio_C[place]:.1f} % of the variance)"
        for name, density in zip(SIDES, densities, strict=True):
            ridge = place + 1 + RIDGE_HEIGHT * density / highest
            columns = {"coefficient": grid, "density": density, "ridge": ridge}
            words = {"component": [label] * RIDGE_POINTS, "checkpoint": [name] * RIDGE_POINTS}
            tables.append(pa.table({**columns, **words}))
    return pa.concat_tables(tables)


def _summarised(
    first: Side, second: Side, shifts: Mapping[tuple[int, ...], Shift], drifting: Drifting, notes: Sequence[str],
    provenance: Mapping[str, Any],
) -> Result:  # fmt: skip
    table = _table(first, second, shifts, drifting)
    kept = {filters.size(size): {"basis": s.basis.as_json(), "sides": s.kept} for size, s in shifts.items()}
    table = table.replace_schema_metadata({KEPT: json.dumps(kept).encode()})
    figures, caveats = _figures(table, shifts, drifting)
    return Result(
        "compare weights",
        table,
        figures,
        provenance,
        _verdict(first, second, table, shifts, figures),
        [*caveats, *notes],
        _panels(table, shifts),
    )


def _table(first: Side, second: Side, shifts: Mapping[tuple[int, ...], Shift], drifting: Drifting) -> pa.Table:
    """One row per layer name: the health of both sides, and the drift where both have the layer."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    renamed: dict[str, str] = {}
    for size in shifts:
        pairs, _ = _paired_layers(first.of(size), second.of(size))
        renamed |= {second.of(size)[j].name: name for name, (_, j) in pairs.items()}
    for role, side in zip(SIDES, (first, second), strict=True):
        for index, layer in enumerate(side.layers):
            name = renamed.get(layer.name, layer.name) if role == "tuned" else layer.name
            depth = index / max(1, len(side.layers) - 1)
            row = rows.setdefault(
                (name, filters.size(layer.kernel)),
                {"layer": name, "kernel": filters.size(layer.kernel), "width": layer.rows_NK.shape[1], "depth": depth},
            )
            row |= {
                f"{key}_{role}": value for key, value in filters.health(layer, drifting.seed, drifting.entropy).items()
            }
    for size, shift in shifts.items():
        for name, drift in shift.layers.items():
            rows[name, filters.size(size)] |= {
                "drift_nats": drift.nats,
                "drift_null_mean_nats": float(drift.null_S.mean()),
                "drift_p": drift.p,
            }
    return pa.Table.from_pylist(list(rows.values()), schema=_schema())


def _schema() -> pa.Schema:
    number, word = pa.float64(), pa.string()
    fields = [("layer", word), ("kernel", word), ("width", pa.int32()), ("depth", number)]
    kinds = {"kernels": pa.int64(), "class": word}
    health = ("kernels", "sparsity", "entropy", "threshold", "entropy_ratio", "entropy_clean", "threshold_clean")
    for role in SIDES:
        fields += [(f"{name}_{role}", kinds.get(name, number)) for name in (*health, "orthogonality", "class")]
    return pa.schema([*fields, *((name, number) for name in ("drift_nats", "drift_null_mean_nats", "drift_p"))])


def _figures(
    table: pa.Table, shifts: Mapping[tuple[int, ...], Shift], drifting: Drifting
) -> tuple[dict[str, Figure], list[str]]:
    figures: dict[str, Figure] = {}
    notes = []
    for number, (size, shift) in enumerate(shifts.items()):
        end = "" if number == 0 else f"_{filters.size(size)}"
        drift, n, null = shift.drift, 2 * shift.kernels, shift.drift.null_S
        mean, low, high = float(null.mean()), *map(float, np.quantile(null, [0.025, 0.975]))
        figures[f"drift{end}_nats"] = Figure(drift.nats, "nats", n)
        figures[f"drift{end}_null_mean_nats"] = Figure(mean, "nats", len(null), low, high)
        figures[f"drift{end}_excess_nats"] = Figure(drift.nats - mean, "nats", n, drift.nats - high, drift.nats - low)
        if mean > 0:
            figures[f"drift{end}_over_null"] = Figure(drift.nats / mean, "ratio", n)
        figures[f"drift{end}_p"] = _p_figure(drift.p, drift)
        figures[f"drift{end}_js_nats"] = Figure(drift.js_nats, "nats", n)
        figures[f"drift{end}_js_null_mean_nats"] = Figure(float(drift.js_null_S.mean()), "nats", len(null))
        figures[f"drift{end}_js_p"] = _p_figure(drift.js_p, drift)
        if shift.by_layer is not None and len(shift.layers) > 1:
            figures[f"drift{end}_layers_p"] = _p_figure(shift.by_layer.p, shift.by_layer)
            least = shift.by_layer.least_p
            if drift.p <= 0.05 < shift.by_layer.p and least <= 0.05:
                notes.append(
                    f"kernels of size {filters.size(size)} differ as single kernels (p = {drift.p:.2g}) but not with "
                    f"whole layers as the unit (p = {shift.by_layer.p:.2g}): kernels of one layer are not independent"
                )
            if least > 0.05:
                notes.append(
                    f"with {len(shift.layers)} layers of size {filters.size(size)} the null that keeps layers whole "
                    f"cannot give a p below {least:g}"
                )
        else:
            why = "do not all pair" if shift.by_layer is None else "are only one"
            notes.append(
                f"the layers with kernels of size {filters.size(size)} {why}: the null that keeps layers whole is left out"
            )
        for role, share in shift.explained.items():
            figures[f"explained_by_first{end}_{role}"] = Figure(share, "share", shift.kernels)
    for role in SIDES:
        rows = [row for row in table.to_pylist() if row[f"kernels_{role}"] is not None]
        kernels = sum(row[f"kernels_{role}"] for row in rows)
        dead = round(sum(row[f"kernels_{role}"] * row[f"sparsity_{role}"] for row in rows))
        figures[f"sparse_{role}"] = statistics.share_figure(dead, kernels)
        ratios = [row[f"entropy_ratio_{role}"] for row in rows if row[f"entropy_ratio_{role}"] is not None]
        if ratios:
            figures[f"entropy_ratio_{role}"] = statistics.mean_figure(ratios, unit="ratio")
        else:
            notes.append(f"no layer of {role} has more kernels than weights in one: its entropy ratio is left out")
        classes = Counter(row[f"class_{role}"] for row in rows)
        for name in ("random", "low diversity", "sparse"):
            figures[f"layers_{name.replace(' ', '_')}_{role}"] = Figure(classes[name], "count", len(rows))
        figures[f"layers_{role}"] = Figure(len(rows), "count", kernels)
    return figures, notes


def _p_figure(p: float, drift: Drift) -> Figure:
    n = len(drift.null_S) + 1
    if drift.exact:
        return Figure(p, "", n, p, p)
    low, high = statistics.wilson(round(p * n), n)
    return Figure(p, "", n, low, high)


def _verdict(
    first: Side, second: Side, table: pa.Table, shifts: Mapping[tuple[int, ...], Shift], figures: Mapping[str, Figure]
) -> list[str]:
    sentences = []
    for size, shift in shifts.items():
        drift, chance = shift.drift, float(shift.drift.null_S.mean())
        kernels = f"{shift.kernels:,} kernels of size {filters.size(size)} of each side"
        numbers = f"{drift.nats:.3g} nats, by chance {chance:.3g}; p = {drift.p:.2g}"
        if drift.nats == 0:
            sentences.append(f"The {kernels} are distributed exactly alike.")
        elif drift.p <= 0.05:
            sentences.append(f"{second.name} drifted away from {first.name}: over {kernels}, {numbers}.")
        elif drift.nats < float(np.quantile(drift.null_S, 0.025)):
            sentences.append(
                f"The kernels are more alike than two independent samples ({kernels}: {numbers}): one checkpoint was "
                f"trained from the other; --shuffle paired asks whether it moved in a common direction."
            )
        else:
            sentences.append(
                f"No drift beyond chance between {first.name} and {second.name}: over {kernels}, {numbers}."
            )
    moved = [row for row in table.to_pylist() if row["drift_p"] is not None and row["drift_p"] <= 0.05]
    if moved and next(iter(shifts.values())).drift.p <= 0.05:
        most = max(moved, key=lambda row: row["drift_nats"] - row["drift_null_mean_nats"])
        paired = sum(value is not None for value in table["drift_p"].to_pylist())
        sentences.append(
            f"Taken alone, {len(moved)} of {paired} paired layers differ at p ≤ 0.05, most {most['layer']} "
            f"({most['drift_nats']:.3g} nats, by chance {most['drift_null_mean_nats']:.3g})."
        )
    for role, side in zip(SIDES, (first, second), strict=True):
        counts = {name: int(figures[f"layers_{name.replace(' ', '_')}_{role}"].value) for name in _CLASS_WORDS}
        total = figures[f"layers_{role}"].value
        said = [f"{count} of {total} layers {_CLASS_WORDS[name]}" for name, count in counts.items() if count]
        sentences.append(
            f"{side.name}: {', '.join(said)}." if said else f"{side.name}: no degenerate layer of {total}."
        )
    return sentences


_CLASS_WORDS = {
    "random": "no different from random",
    "low diversity": "with few distinct kernels",
    "sparse": "with more than a tenth of dead kernels",
}


def _panels(table: pa.Table, shifts: Mapping[tuple[int, ...], Shift]) -> list[Panel]:
    rows = table.to_pylist()
    drifted = [
        {"layer": row["layer"], "nats": row[column], "what": what}
        for row in rows
        if row["drift_nats"] is not None
        for column, what in (("drift_nats", "drift"), ("drift_null_mean_nats", "by chance"))
    ]
    panels = []
    if drifted:
        panels.append(
            Panel(
                "Where the kernels drifted",
                "Drift of every layer in the common basis, beside what reshuffling gives.",
                "bar",
                pa.Table.from_pylist(drifted),
                x="layer",
                y="nats",
                series="what",
                x_title="layer",
                y_title="drift (nats)",
            )
        )
    for size, shift in shifts.items():
        panels += _ridge_panels(filters.size(size), shift)
        if len(shift.kept) > len(SIDES):
            panels.append(_kept_panel(filters.size(size), shift))
    curves = [
        {"depth": row["depth"], "ratio": row[f"entropy_ratio_{role}"], "checkpoint": role}
        for role in SIDES
        for row in rows
        if row[f"entropy_ratio_{role}"] is not None
    ]
    if curves:
        panels.append(
            Panel(
                "Close to random?",
                "Variance entropy over the random threshold by depth: 1 is random, about 0.9 trained, near 0 redundant.",
                "line",
                pa.Table.from_pylist(curves),
                x="depth",
                y="ratio",
                series="checkpoint",
                x_title="relative depth",
                y_title="entropy / threshold",
            )
        )
    columns = ["layer", "kernel"]
    for role in SIDES:
        columns += [
            f"{name}_{role}" for name in ("kernels", "sparsity", "entropy", "threshold", "orthogonality", "class")
        ]
    panels.append(Panel("Layers", "Health of every layer on its raw weights.", "table", table.select(columns)))
    return panels


def _ridge_panels(size: str, shift: Shift) -> list[Panel]:
    more = "" if len(shift.basis.ratio_C) <= RIDGES else f" The first {RIDGES} of {len(shift.basis.ratio_C)}."
    return [
        Panel(
            f"Ridges of {size} kernels",
            f"Density of the kernels along each component of the common basis, each to its own scale.{more}",
            "line", shift.ridges, x="coefficient", y="ridge", series="checkpoint", label="component",
            x_title="coefficient", y_title="component, its density above it",
        ),
        Panel(
            f"Components of {size} kernels",
            "Along which components the sides differ: KL both ways, and Jensen–Shannon, which is at most 0.69.",
            "table", shift.components,
        ),
    ]  # fmt: skip


def _kept_panel(size: str, shift: Shift) -> Panel:
    """Drift between all checkpoints that were ever placed in this basis."""
    counts = [np.array(side["counts"], np.int64) for side in shift.kept]
    names = [f"{number}. {side['name']}" for number, side in enumerate(shift.kept, start=1)]
    rows = [
        {"from": names[i], "to": names[j], "nats": float(filters.divergences(counts[i], counts[j], shift.basis)[0])}
        for i in range(len(names))
        for j in range(len(names))
    ]
    caption = "Drift between all checkpoints in the kept basis, without a null: small samples drift apart by chance."
    return Panel(f"All checkpoints, {size} kernels", caption, "heat", pa.Table.from_pylist(rows), x="from", y="to",
                 color="nats", x_title="", y_title="")  # fmt: skip
