"""Depth shift: at which layers tuning narrowed the hidden states, and how the path from layer to layer changed.

Per layer, for both checkpoints on the same tokens: contraction α (slope of the singular values of the states; larger
means fewer effective directions) and transport (Fisher–Rao distance between the laws that the model's own norm and head
read off before and after a block); from both, what changed in the last third of the blocks and whether that hangs on a
choice.

Source: arXiv 2601.06238 (SPINAL: α, transport, terminal block). Its curve summaries are not fully published:
localisation, coherence, curvature and the score are our reading, and the score's weights are a convention.
The preference gradient: `core/layers/preference.py`.
Deviation: states at the answer's tokens, centred; windows, rank rule and rounding level as in `core/layers/spectrum.py`.
Deviation: transport is numbered by the block it crosses (source: by the layer it leaves), so that the terminal blocks'
figure holds exactly what those blocks do; full vocabulary instead of a top-k truncation; chord form instead of arccos.
Deviation: intervals resample prompts. α belongs to a batch, so each prompt enters by its first-order influence on it.
What does not replicate on small models: the source's fall of transport and its concentration of the preference gradient
in the last blocks; and the rise of α in them is neither window-stable nor lasting (it shrinks again when DPO at β = 0.1
goes on after its loss has vanished). All of it is shown as measured.
"""

# N answer tokens of a batch, G texts of a batch, T texts in all, L layers measured, W windows

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from shiftscope.core import answers, checkpoints, paired
from shiftscope.core.answers import Loading, Texts
from shiftscope.core.checkpoints import Checkpoint
from shiftscope.core.corpus import Template
from shiftscope.core.decode import Sampling
from shiftscope.core.layers import preference, runs, spectrum
from shiftscope.core.layers.curves import DELTA, Array, Curves, nullable, terminal_start
from shiftscope.core.layers.depth import ALPHA, OTHER_WINDOWS, SIDES, TRANSPORT, Depth, curves_of, measure, same_depth
from shiftscope.core.parts import Parts
from shiftscope.core.result import Figure, Panel, Result
from shiftscope.core.settings import unread

LOCALISED = 2 / 3  # a terminal layer changes at least twice as much as another one


@dataclass(frozen=True)
class Watching:
    """Following a run. watch: TUNED is a run's folder; compare every checkpoint-* in it, in order of steps.

    patience_s: after the last one, wait so many seconds for the next (0: do not wait). poll_s: how often to look.
    """

    watch: bool = False
    patience_s: float = 0.0
    poll_s: float = 5.0


def layers(
    base: str | Checkpoint,
    tuned: str | Checkpoint,
    *,
    texts: Texts = None,
    limit: int | None = None,
    template: Template = "plain",
    sampling: Sampling = Sampling(),
    loading: Loading = Loading(batch_size=64),
    depth: Depth = Depth(),
    preferences: Texts = None,
    watching: Watching = Watching(),
    parts: Parts | None = None,
    advance: answers.Advance | None = None,
) -> Result:
    """Compare two checkpoints layer by layer: contraction and transport, and where tuning changed them.

    base: the checkpoint before (path, hub id, zoo name, `+adapter`, or a loaded Checkpoint).
    tuned: the checkpoint after; with --watch, the folder of a training run that holds checkpoint-* folders.
    texts: jsonl, parquet or txt with a prompt and optionally an answer per record; answers that are missing are sampled
        from the tuned model; without texts, the prompts that ship with the tuned checkpoint.
    limit: only the first records.
    template: how the prompt is rendered, for both models alike: plain, chat or frame.
    preferences: jsonl or parquet with prompt, chosen and rejected: where the preference gradient falls.
    Returns a Result whose table has one row per layer (with --watch: one per checkpoint of the run).
    Raises ValueError, in one sentence, for differing vocabularies or depths, malformed texts, states that are NaN.
    """
    if not watching.watch:
        unread(watching, Watching(), "--watch")
    if watching.watch and preferences is not None:
        raise ValueError(
            "preferences are given, and a watched run does not read them: leave them out, or compare one pair"
        )
    if preferences is None:
        unread(depth, Depth(), "--preferences", "beta")
    run = str(tuned if isinstance(tuned, str) else tuned.name) if watching.watch else None
    if run is not None:
        tuned = str(list(runs.checkpoint_folders(run).values())[-1])
    first, second = answers.pair(base, tuned, loading)
    same_depth(first, second)
    depth.chosen(len(first.head.blocks))
    read = answers.corpus_of(texts, second, limit)
    answers.check_sampling(read, sampling)
    parts = parts or Parts()
    settings = answers.provenance(
        first, None if run else second, texts=texts, limit=limit, template=template, preferences=preferences,
        sampling=asdict(sampling), loading=asdict(loading), depth=asdict(depth), watched=run,
    )  # fmt: skip
    parts.settle(settings)
    found = answers.prepare(
        first, second, read, template=template, sampling=sampling,
        batch_size=loading.batch_size, parts=parts, advance=advance,
    )  # fmt: skip

    def rows_of(tuned_now: Checkpoint, parts_now: Parts | None) -> pa.Table:
        return paired.run(
            paired.Scorer(first, tuned_now), found.paired, {"layers": measure(depth)}, states=True,
            batch_size=loading.batch_size, parts=parts_now,
            advance=None if advance is None else lambda done, total: advance("comparing", done, total),
        )["layers"]  # fmt: skip

    notes = [*found.notes, *_precision_notes(first, second)]
    if run is not None:
        rows = followed(run, watching, loading, lambda checkpoint: rows_of(checkpoint, None), depth, parts)
        return summarise_run(rows, notes=notes, provenance=settings)
    gradient = None if preferences is None else gradient_shares(first, second, preferences, beta=depth.beta)
    return summarise(rows_of(second, parts), depth=depth, gradient=gradient, notes=notes, provenance=settings)


def _precision_notes(base: Checkpoint, tuned: Checkpoint) -> list[str]:
    short = {one.name: one.model.dtype for one in (base, tuned) if one.model.dtype in (torch.bfloat16, torch.float16)}
    return [
        f"{name} ran in {str(dtype).removeprefix('torch.')}: singular values that its rounding hides are dropped, and "
        f"those just above are blurred; --dtype float32 avoids both"
        for name, dtype in short.items()
    ]


def gradient_shares(base: Checkpoint, tuned: Checkpoint, pairs: Texts, *, beta: float = 0.1) -> dict[str, Any]:
    """Share of the squared gradient of the preference loss in every block, at the base and at the tuned parameters.

    The reference is the base in both cases. Returns base and tuned, [n_blocks] each, and pairs, their number.
    """
    read = preference.read(pairs if pairs is not None else (), base)
    found: dict[str, Any] = {"pairs": len(read)}
    for name, policy in zip(SIDES, (base, tuned), strict=True):
        squares = preference.block_gradient_squares(policy, base, read, beta=beta).numpy()
        found[name] = squares / squares.sum() if squares.sum() > 0 else np.full_like(squares, np.nan)
    return found


# --- summary: curves over depth, their intervals, what they say -------------------------------------------------------


def summarise(
    rows: pa.Table,
    *,
    depth: Depth = Depth(),
    gradient: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    provenance: Mapping[str, Any] | None = None,
) -> Result:
    """Table per layer, figures, panels and verdict of the rows of `measure`; their order does not matter.

    depth: the settings that the rows were made with. gradient: from `gradient_shares`, if pairs were given.
    """
    found = curves_of(rows)
    windows = _windows(found, depth)
    figures, caveats = _figures(found, windows, gradient)
    table = _table(rows, found, gradient)
    few = [row["layer"] for row in table.select(["layer", "too_few_tokens"]).to_pylist() if row["too_few_tokens"]]
    if few:
        caveats.append(
            f"layers {_ranges(few)} have fewer than {spectrum.TOKENS_PER_DIRECTION} tokens per singular value in some "
            f"batch: their α is biased upwards (for both checkpoints); give more or longer texts, or larger batches"
        )
    if found.texts < 2:
        caveats.append("one text only: the intervals are empty, nothing can be said of other texts")
    panels = _panels(table, windows, gradient)
    return Result(
        "compare layers",
        table,
        figures,
        provenance or {},
        _verdict(found, figures, windows, gradient),
        [*notes, *caveats],
        panels,
    )


def _figures(
    found: Curves, windows: pa.Table, gradient: Mapping[str, Any] | None
) -> tuple[dict[str, Figure], list[str]]:
    figures: dict[str, Figure] = {}
    missing: list[str] = []
    for name, curve, unit in (("alpha", ALPHA, "slope"), ("transport", TRANSPORT, "rad")):
        for place, terminal in (("terminal", True), ("elsewhere", False)):
            change = found.change(curve, unit, terminal=terminal)
            if change is None:
                missing.append(
                    f"{name}_{place}_delta is left out: no such layer has a value (α needs five singular values in its "
                    f"window)"
                )
            else:
                figures[f"{name}_{place}_delta"] = change
        _localisation(found, name, curve, figures, missing)
        floor = found.halves_apart(curve)
        if floor is not None:
            figures[f"{name}_noise_floor"] = Figure(floor, unit, found.texts)
    signs = {np.sign(delta) for delta in windows["terminal_delta"].to_pylist() if delta is not None}
    if signs:
        figures["window_stable"] = Figure(len(signs) == 1, "", len(windows))
    _shape_figures(found, figures, missing)
    if gradient is None:
        missing.append("gradient_terminal_share is left out: no preference pairs were given")
    else:
        _gradient_figures(found, gradient, figures, missing)
    _score(found, figures, missing)
    return figures, missing


def _localisation(found: Curves, name: str, curve: int, figures: dict[str, Figure], missing: list[str]) -> None:
    """|change| of a terminal layer against |change| of a terminal plus another layer: 1/2 where all change alike."""
    late, early = (found.inside(curve, terminal=terminal) for terminal in (True, False))

    def share(c: Array) -> Array:
        size = np.abs(c[..., DELTA, :, curve])
        inside, both = size[..., late].mean(-1), size[..., late].mean(-1) + size[..., early].mean(-1)
        return np.divide(inside, both, out=np.full_like(both, np.nan), where=both > 0)

    if not len(late) or not len(early):
        missing.append(f"{name}_localisation is left out: it needs terminal and other layers")
    elif np.isnan(share(found.mean_BLC)):
        missing.append(f"{name}_localisation is left out: no layer changed")
    else:
        figures[f"{name}_localisation"] = found.of(share, "share")


def _shape_figures(found: Curves, figures: dict[str, Figure], missing: list[str]) -> None:
    """Coherence (mean cosine of the turns) and curvature (sum of the turns) of the paths through the last blocks."""
    path = list(range(terminal_start(found.blocks) - 1, found.blocks + 1))
    whole = path[0] > 0 and len(path) > 2 and list(found.layers) == list(range(found.blocks + 1))
    if not whole or np.isnan(found.mean_BLC[:, 1:][..., [ALPHA, TRANSPORT]]).any():
        missing.append("coherence and curvature are left out: they need every layer, and two or more terminal blocks")
        return
    for side, name in enumerate(SIDES):
        turns = partial(_turns, side=side, path=path)
        figures[f"coherence_{name}"] = found.of(partial(_mean_cosine, turns), "cosine")
        figures[f"curvature_{name}"] = found.of(partial(_summed_angle, turns), "rad")


def _mean_cosine(turns: Callable[[Array], Array], curves_BLC: Array) -> Array:
    return turns(curves_BLC).mean(-1)


def _summed_angle(turns: Callable[[Array], Array], curves_BLC: Array) -> Array:
    return np.arccos(turns(curves_BLC)).sum(-1)


def _turns(curves_BLC: Array, side: int, path: Sequence[int]) -> Array:
    """Cosines between successive steps of the points (ℓ/n, α/mean α, transport/mean transport) along a path."""
    places = np.asarray(path) - 1
    coordinates = []
    for curve in (ALPHA, TRANSPORT):
        values = curves_BLC[..., side, 1:, curve]
        mean = values.mean(-1, keepdims=True)
        coordinates.append((values / np.where(mean == 0, 1, mean))[..., places])
    depth = np.broadcast_to((places + 1) / values.shape[-1], coordinates[0].shape)
    steps = np.diff(np.stack([depth, *coordinates], -1), axis=-2)
    lengths = np.linalg.norm(steps, axis=-1)  # never 0: depth always moves
    return np.clip((steps[..., 1:, :] * steps[..., :-1, :]).sum(-1) / (lengths[..., 1:] * lengths[..., :-1]), -1, 1)


def _gradient_figures(
    found: Curves, gradient: Mapping[str, Any], figures: dict[str, Figure], missing: list[str]
) -> None:
    for side, name in (("tuned", "gradient_terminal_share"), ("base", "gradient_terminal_share_base")):
        share = float(gradient[side][terminal_start(found.blocks) - 1 :].sum())
        if np.isnan(share):
            missing.append(f"{name} is left out: the preference loss has no gradient there")
        else:
            figures[name] = Figure(share, "share", gradient["pairs"])
    missing.append(
        "gradient shares are of the squared gradient norm over the blocks' parameters; embeddings, final norm and head "
        "are left out of the whole; the shares are of one mean gradient over all pairs, so they carry no interval"
    )


def _score(found: Curves, figures: dict[str, Figure], missing: list[str]) -> None:
    """align_delta, and the score last: mean of tanh(Δ/(4·SE)), coherence and gradient share, of those that exist."""
    places = [found.inside(curve, terminal=True) for curve in (ALPHA, TRANSPORT)]

    def aligned(c: Array) -> Array:
        parts = [
            c[..., DELTA, :, curve][..., rows].mean(-1) for curve, rows in zip((ALPHA, TRANSPORT), places, strict=True)
        ]
        return parts[0] - parts[1]

    if not all(map(len, places)):
        missing.append(
            "align_delta and spinal_score are left out: they need contraction and transport of the terminal blocks"
        )
        return
    change, error = found.of(aligned, ""), float(aligned(found.boot_SBLC).std())
    figures["align_delta"] = change
    terms = [math.tanh(float(change.value) / (4 * error)) if error > 0 else float(np.sign(change.value))]
    terms += [float(figures[name].value) for name in ("coherence_tuned", "gradient_terminal_share") if name in figures]
    figures["spinal_score"] = Figure(sum(terms) / len(terms), "(convention)", found.texts)
    missing.append(
        f"spinal_score is the plain mean of {len(terms)} of 3 terms (change against its error, coherence, gradient "
        f"share): its weights are a convention, since the source does not give them; read the terms first"
    )


def _windows(found: Curves, depth: Depth) -> pa.Table:
    """The terminal change of α in every window of ranks, with intervals; null where no terminal layer has a value."""
    rows = []
    for curve, (low, high) in enumerate(depth.windows):
        late, early = (found.change(curve, "slope", terminal=terminal) for terminal in (True, False))
        ends = (late.value, late.low, late.high) if late else (None, None, None)
        rows.append(
            {
                "window": f"{low:g}–{high:g}",
                **dict(zip(("terminal_delta", "low", "high"), ends, strict=True)),
                "elsewhere_delta": early and early.value,
            }
        )
    fields = [
        ("window", pa.string()),
        *((name, pa.float64()) for name in ("terminal_delta", "low", "high", "elsewhere_delta")),
    ]
    return pa.Table.from_pylist(rows, schema=pa.schema(fields))


def _table(rows: pa.Table, found: Curves, gradient: Mapping[str, Any] | None) -> pa.Table:
    """One row per layer; intervals are of resampled texts, 95 %. Missing values are null."""
    columns: dict[str, Any] = {"layer": pa.array(found.layers, pa.int32())}
    columns["terminal"] = np.asarray(found.layers) >= terminal_start(found.blocks)
    columns |= found.columns("alpha", ALPHA) | found.columns("transport", TRANSPORT)
    layer, once = rows["layer"].to_numpy(), rows["text"].to_numpy() == rows["batch"].to_numpy()
    for name in ("r2_base", "r2_tuned", "rank_base", "rank_tuned"):
        columns[name] = nullable([rows[name].to_numpy()[layer == one].astype(float).mean() for one in found.layers])
    tokens = rows["tokens"].to_numpy()
    columns["n"] = np.asarray([tokens[(layer == one) & once].sum() for one in found.layers])
    rank = np.maximum(rows["rank_base"].to_numpy(), rows["rank_tuned"].to_numpy())
    few = tokens < spectrum.TOKENS_PER_DIRECTION * rank
    columns["too_few_tokens"] = np.asarray([few[layer == one].any() for one in found.layers])
    if gradient is not None:
        for side in SIDES:
            columns[f"gradient_share_{side}"] = nullable(
                [np.nan if one == 0 else gradient[side][one - 1] for one in found.layers]
            )
    return pa.table(columns)


def _panels(table: pa.Table, windows: pa.Table, gradient: Mapping[str, Any] | None) -> list[Panel]:
    bands = "with 95 % bands over texts"
    contraction = partial(
        Panel, kind="line", x="layer", y="alpha", low="low", high="high", x_title="layer (0: embedding)"
    )
    carried = partial(Panel, kind="line", x="layer", y="transport", low="low", high="high", x_title="block")
    panels = [
        contraction(
            "Contraction over depth",
            f"Slope of the singular values of the states (larger: fewer directions), {bands}.",
            table=_long(table, "alpha", SIDES), series="checkpoint", y_title="contraction α",
        ),
        carried(
            "Transport over depth",
            f"How far each block moves the law that the model's own head reads off, {bands}.",
            table=_long(table, "transport", SIDES), series="checkpoint", y_title="transport (rad)",
        ),
        contraction(
            "What tuning changed in contraction",
            f"Tuned minus base on the same texts, {bands}: narrower than the two curves' own.",
            table=_long(table, "alpha", ("delta",)), y_title="change of α",
        ),
        carried(
            "What tuning changed in transport",
            f"Tuned minus base on the same texts, {bands}.",
            table=_long(table, "transport", ("delta",)), y_title="change of transport (rad)",
        ),
        Panel(
            "Does it hang on the window?",
            "Terminal change of α when it is fitted on other ranks of the spectrum.", "table", windows,
        ),
    ]  # fmt: skip
    if gradient is not None:
        caption = f"Share of the squared gradient of the preference loss over {gradient['pairs']:,} pairs, by block."
        panels.append(
            Panel(
                "Where the preference gradient falls", caption, "bar", _gradient_rows(gradient),
                x="block", y="share", series="at", x_title="block", y_title="share of the gradient",
            )
        )  # fmt: skip
    return panels


def _gradient_rows(gradient: Mapping[str, Any]) -> pa.Table:
    rows = [
        {"block": str(block), "share": float(share), "at": f"{side} parameters"}
        for side in SIDES
        for block, share in enumerate(gradient[side], start=1)
        if np.isfinite(share)
    ]
    return pa.Table.from_pylist(
        rows, schema=pa.schema([("block", pa.string()), ("share", pa.float64()), ("at", pa.string())])
    )


def _long(table: pa.Table, name: str, endings: Sequence[str]) -> pa.Table:
    rows = [
        {
            "layer": row["layer"],
            name: row[f"{name}_{end}"],
            "low": row[f"{name}_{end}_low"],
            "high": row[f"{name}_{end}_high"],
            "checkpoint": end,
        }
        for end in endings
        for row in table.to_pylist()
        if row[f"{name}_{end}"] is not None
    ]
    fields = [
        ("layer", pa.int32()),
        *((column, pa.float64()) for column in (name, "low", "high")),
        ("checkpoint", pa.string()),
    ]
    return pa.Table.from_pylist(rows, schema=pa.schema(fields))


def _verdict(
    found: Curves, figures: Mapping[str, Figure], windows: pa.Table, gradient: Mapping[str, Any] | None
) -> list[str]:
    if not np.nan_to_num(found.mean_BLC[DELTA]).any():
        return [
            f"The two checkpoints agree exactly in contraction and transport at every layer, over {found.texts:,} "
            f"texts: nothing changed."
        ]
    blocks = _ranges(range(terminal_start(found.blocks), found.blocks + 1))
    block = f"block{'' if blocks.isdigit() else 's'} {blocks}"
    sentences = []
    if alpha := figures.get("alpha_terminal_delta"):
        meaning = (
            ""
            if not _certain(alpha)
            else "; fewer directions carry the states"
            if float(alpha.value) > 0
            else "; more directions carry the states"
        )
        sentences.append(
            f"In {block}, contraction {_moved(alpha)} over {found.texts:,} texts{meaning}"
            f"{_elsewhere(figures, 'alpha')}."
        )
        sentences.append(_localised(block, alpha, figures, windows))
        floor = figures.get("alpha_noise_floor")
        if floor is not None and abs(float(alpha.value)) < float(floor.value):
            sentences.append(
                f"That is less than two random halves of the texts differ by on the base alone ({floor.value:.2g})."
            )
    if carried := figures.get("transport_terminal_delta"):
        remark = (
            " (after preference tuning the source reports a fall)"
            if _certain(carried) and float(carried.value) > 0
            else ""
        )
        sentences.append(f"Transport through {block} {_moved(carried)} rad{remark}{_elsewhere(figures, 'transport')}.")
    if gradient is not None and "gradient_terminal_share" in figures:
        most = int(np.argmax(gradient["tuned"])) + 1
        terminal, largest = (
            100 * float(share) for share in (figures["gradient_terminal_share"].value, gradient["tuned"][most - 1])
        )
        sentences.append(
            f"The preference gradient falls to {terminal:.0f} % on {block}; block {most} takes most of it "
            f"({largest:.0f} %)."
        )
    return sentences


def _certain(figure: Figure) -> bool:
    return figure.low is not None and figure.high is not None and (figure.low > 0 or figure.high < 0)


def _moved(figure: Figure) -> str:
    interval = f"(95 % interval {figure.low:+.3g} to {figure.high:+.3g})"
    if not _certain(figure):
        return f"did not measurably change: {figure.value:+.3g} {interval}"
    return f"{'rose' if float(figure.value) > 0 else 'fell'} by {abs(float(figure.value)):.3g} {interval}"


def _elsewhere(figures: Mapping[str, Figure], name: str) -> str:
    figure = figures.get(f"{name}_elsewhere_delta")
    return "" if figure is None else f"; at the other layers it moved by {figure.value:+.3g} on average"


def _localised(block: str, alpha: Figure, figures: Mapping[str, Figure], windows: pa.Table) -> str:
    share = figures.get("alpha_localisation")
    yes = _certain(alpha) and share is not None and float(share.value) >= LOCALISED
    sentence = f"Contraction localised in {block}: {'yes' if yes else 'no'}"
    if share is not None:
        held = f"{100 * float(share.value):.0f} %"
        sentence += f" (a terminal layer holds {held} of the change of a terminal and another layer together)"
    stable = figures.get("window_stable")
    if stable is None:
        return sentence + "."
    against = [
        f"ranks {row['window']} give {row['terminal_delta']:+.3g}"
        for row in windows.to_pylist()
        if row["terminal_delta"] is not None and np.sign(row["terminal_delta"]) != np.sign(alpha.value)
    ]
    return (
        f"{sentence}; window-stable: {'yes' if stable.value else 'no'}"
        + (f" ({', '.join(against)})" if against else "")
        + "."
    )


def _ranges(numbers: Sequence[int]) -> str:
    """'3, 5–7' of 3, 5, 6, 7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)


# --- watching a run: one row per checkpoint ---------------------------------------------------------------------------

WATCHED = (
    "alpha_terminal_delta",
    "alpha_elsewhere_delta",
    "transport_terminal_delta",
    "transport_elsewhere_delta",
    "align_delta",
)


def followed(
    run: str,
    watching: Watching,
    loading: Loading,
    rows_of: Callable[[Checkpoint], pa.Table],
    depth: Depth,
    parts: Parts,
) -> pa.Table:
    """One row of terminal changes per checkpoint of a run, waiting for more while `patience_s` lasts.

    A checkpoint is a part: an interrupted watch does not compare it again.
    Raises ValueError for a sharded watch, and where no checkpoint is completely written.
    """
    if parts.shard != (0, 1):
        raise ValueError(
            f"shard {parts.shard[0]}/{parts.shard[1]}: a watch goes through a run in order and cannot be sharded"
        )

    def row(item: tuple[int, Path]) -> dict[str, pa.Table]:
        tuned = checkpoints.load(str(item[1]), dtype=loading.dtype, device=loading.device)
        figures = summarise(rows_of(tuned), depth=depth).figures
        record: dict[str, Any] = {"step": item[0], "checkpoint": item[1].name}
        for name in WATCHED:
            figure = figures.get(name)
            record |= {
                name: figure and figure.value,
                f"{name}_low": figure and figure.low,
                f"{name}_high": figure and figure.high,
            }
        stable = figures.get("window_stable")
        record |= {
            "window_stable": stable and stable.value,
            "texts": figures["spinal_score"].n if "spinal_score" in figures else None,
        }
        return {"run": pa.Table.from_pylist([record], schema=_run_schema())}

    items = runs.follow(run, patience_s=watching.patience_s, poll_s=watching.poll_s)
    tables = [parts.map(f"checkpoint-{item[0]}", [item], row)["run"] for item in items]
    if not tables:
        raise ValueError(
            f"no checkpoint in {run} is completely written yet: try again, or add --patience-s to wait for it"
        )
    return pa.concat_tables(tables).sort_by("step")


def _run_schema() -> pa.Schema:
    numbers = [(f"{name}{end}", pa.float64()) for name in WATCHED for end in ("", "_low", "_high")]
    return pa.schema(
        [
            ("step", pa.int64()),
            ("checkpoint", pa.string()),
            *numbers,
            ("window_stable", pa.bool_()),
            ("texts", pa.int64()),
        ]
    )


def summarise_run(rows: pa.Table, *, notes: Sequence[str] = (), provenance: Mapping[str, Any] | None = None) -> Result:
    """The course of a run: figures of its last checkpoint under their usual names, and the largest terminal change."""
    rows = rows.sort_by("step")
    last, n = rows.to_pylist()[-1], len(rows)
    units = {"alpha": "slope", "transport": "rad", "align": ""}
    figures = {
        name: Figure(last[name], units[name.split("_")[0]], last["texts"], last[f"{name}_low"], last[f"{name}_high"])
        for name in WATCHED
        if last[name] is not None
    }
    if last["window_stable"] is not None:
        figures["window_stable"] = Figure(last["window_stable"], "", len(OTHER_WINDOWS) + 1)
    deltas = [value for value in rows["alpha_terminal_delta"].to_pylist() if value is not None]
    if deltas:
        figures["alpha_terminal_delta_max"] = Figure(max(deltas), "slope", len(deltas))
    figures["checkpoints"] = Figure(n, "count", n)
    course = partial(Panel, kind="line", table=rows, x="step", x_title="step")
    panels = [
        course(
            "Contraction over the run",
            "Terminal change of α against the base; a steep rise is a sign of over-optimisation.",
            y="alpha_terminal_delta", low="alpha_terminal_delta_low", high="alpha_terminal_delta_high",
            y_title="change of α",
        ),
        course(
            "Transport over the run",
            "Terminal change of transport against the base.",
            y="transport_terminal_delta", low="transport_terminal_delta_low", high="transport_terminal_delta_high",
            y_title="change of transport (rad)",
        ),
    ]  # fmt: skip
    return Result("compare layers", rows, figures, provenance or {}, _run_verdict(rows, deltas), list(notes), panels)


def _run_verdict(rows: pa.Table, deltas: Sequence[float]) -> list[str]:
    steps = rows["step"].to_pylist()
    if not deltas:
        return [f"None of {len(steps)} checkpoints has a terminal contraction to compare."]
    span = (
        f"{len(steps)} checkpoints (steps {steps[0]:,} to {steps[-1]:,})"
        if len(steps) > 1
        else f"One checkpoint (step {steps[0]:,})"
    )
    rising = sum(later > earlier for earlier, later in pairwise(deltas))
    return [
        f"{span}: terminal contraction stands {deltas[-1]:+.3g} from the base"
        + (
            f", after {deltas[0]:+.3g} at the first; it rose at {rising} of {len(deltas) - 1} steps."
            if len(deltas) > 1
            else "."
        )
    ]
