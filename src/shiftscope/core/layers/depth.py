"""Depth of two checkpoints: contraction and transport of every layer on the same answer tokens, one row per text.

Source: arXiv 2601.06238. What is fitted and how is in `core/layers/spectrum.py` and `core/layers/lens.py`; the means over
texts and their intervals are in `core/layers/curves.py`.
"""

# N answer tokens of a batch, G texts of a batch, L layers measured, W windows

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from shiftscope.core import paired
from shiftscope.core.checkpoints import Checkpoint
from shiftscope.core.layers import lens, spectrum
from shiftscope.core.layers.curves import Array, Curves, curves, terminal_start

OTHER_WINDOWS: tuple[spectrum.Window, ...] = ((0.1, 0.5), (0.0, 1.0), (0.3, 0.9))
SIDES = ("base", "tuned")
ALPHA, TRANSPORT = 0, -1  # places among a text's curves: α in each window, then transport


@dataclass(frozen=True)
class Depth:
    """What is measured at each layer.

    window_low, window_high: fractions of the singular values (by rank) that α is fitted on.
    centre: remove the mean state before taking singular values.
    layers: the states measured, 0 the embedding's output, l that of block l; none given means all.
    max_tokens: transport at so many tokens of each text, evenly spread (0: all); it costs one head product per layer.
    beta: strength of the preference loss whose gradient is split over the blocks.
    """

    window_low: float = 0.1
    window_high: float = 0.9
    centre: bool = True
    layers: tuple[int, ...] = ()
    max_tokens: int = 0
    beta: float = 0.1

    def __post_init__(self) -> None:
        spectrum.check_window((self.window_low, self.window_high))
        if self.max_tokens < 0 or not self.beta > 0:
            raise ValueError(f"max_tokens {self.max_tokens} and beta {self.beta}: need max_tokens >= 0 and beta > 0")

    @property
    def windows(self) -> tuple[spectrum.Window, ...]:
        """The chosen window, then the three that its verdict is checked against."""
        return (self.window_low, self.window_high), *OTHER_WINDOWS

    def chosen(self, blocks: int) -> list[int]:
        """The layers measured in a model of so many blocks, ascending.

        Raises ValueError for a layer that does not exist, or where none lies in the last third of the blocks.
        """
        layers = sorted(set(self.layers)) or list(range(blocks + 1))
        if layers[0] < 0 or layers[-1] > blocks:
            raise ValueError(f"layers {self.layers}: the models have states 0 to {blocks}")
        if layers[-1] < terminal_start(blocks):
            raise ValueError(
                f"layers {self.layers} leave out the last third of the blocks: add at least one from "
                f"{terminal_start(blocks)} to {blocks}"
            )
        return layers


def same_depth(base: Checkpoint, tuned: Checkpoint) -> None:
    """Raises ValueError where two models differ in number of blocks."""
    ours, theirs = len(base.head.blocks), len(tuned.head.blocks)
    if ours != theirs:
        raise ValueError(
            f"{base.name} has {ours} blocks and {tuned.name} has {theirs}: their layers cannot be paired; use "
            f"`compare tokens` instead"
        )


def measure(depth: Depth = Depth()) -> paired.Measure:
    """The rows of one batch, one per text and layer; needs a pass with states.

    Columns: text, batch (its smallest text number), layer, blocks, tokens (of the batch); per side alpha_* (one value
    per window: the batch's α plus the text's influence on it, so that their mean over the batch is that α), r2_*,
    rank_*, transport_* (radians; mean over the text's tokens; NaN at layer 0).
    """

    def start(batch: paired.PairedBatch) -> tuple[None, Callable[[], pa.Table]]:
        return None, lambda: _rows(batch, depth)

    return start


def _rows(batch: paired.PairedBatch, depth: Depth) -> pa.Table:
    same_depth(batch.base.checkpoint, batch.tuned.checkpoint)
    blocks = len(batch.base.checkpoint.head.blocks)
    wanted = depth.chosen(blocks)
    texts = [item.text for item in batch.items]
    group_N = torch.arange(len(texts)).repeat_interleave(torch.tensor([len(item.answer) for item in batch.items]))
    columns: dict[str, Any] = {
        "text": np.tile(texts, len(wanted)), "batch": np.full(len(texts) * len(wanted), min(texts)),
        "layer": np.repeat(wanted, len(texts)), "blocks": np.full(len(texts) * len(wanted), blocks),
        "tokens": np.full(len(texts) * len(wanted), len(group_N)),
    }  # fmt: skip
    fits: list[spectrum.Contraction] = []
    for name, side in zip(SIDES, (batch.base, batch.tuned), strict=True):
        _check(side, batch, wanted)
        equal = [bool(fits) and torch.equal(side.states[layer], batch.base.states[layer]) for layer in wanted]
        fits = [
            fits[place]
            if equal[place]
            else spectrum.contraction(side.states[layer], depth.windows, centre=depth.centre)
            for place, layer in enumerate(wanted)
        ]
        influence = [spectrum.by_group(fit.influence_WN, group_N, len(texts)) for fit in fits]
        alpha_LWG = [fit.alpha_W[:, None] + len(texts) * one for fit, one in zip(fits, influence, strict=True)]
        flat = torch.cat(alpha_LWG, 1).T.cpu().numpy()
        columns[f"alpha_{name}"] = pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), flat.shape[1])
        columns[f"r2_{name}"] = np.repeat([float(fit.r2_W[0]) for fit in fits], len(texts))
        columns[f"rank_{name}"] = np.repeat([fit.rank for fit in fits], len(texts))
        columns[f"transport_{name}"] = _transport_by_text(side, wanted, group_N, len(texts), depth.max_tokens).ravel()
    return pa.table(columns)


def _check(side: paired.Side, batch: paired.PairedBatch, wanted: Sequence[int]) -> None:
    for layer in wanted:
        finite_N = side.states[layer].isfinite().all(-1).cpu()
        if not finite_N.all():
            first = int((~finite_N).nonzero()[0])
            raise ValueError(
                f"{side.checkpoint.name} gives states that are not numbers (NaN or infinite) at layer {layer} in text "
                f"{int(batch.text_N[first])}, answer position {int(batch.position_N[first])}: nothing can be compared "
                f"there; check the weights, or load with --dtype float32"
            )


def _transport_by_text(side: paired.Side, wanted: Sequence[int], group_N: Tensor, groups: int, most: int) -> Array:
    """Mean transport of every text into every wanted layer, radians [L, G]; NaN at layer 0."""
    picked_N = lens.evenly_spread(torch.bincount(group_N, minlength=groups), most)
    group_N = group_N[picked_N]
    mean_LG = np.full((len(wanted), groups), np.nan)
    found = lens.transport([state[picked_N.to(state.device)] for state in side.states], side.checkpoint.head, wanted)
    for layer, radians_N in found.items():
        summed = np.bincount(group_N.numpy(), weights=radians_N.double().cpu().numpy(), minlength=groups)
        mean_LG[wanted.index(layer)] = summed / np.bincount(group_N.numpy(), minlength=groups)
    return mean_LG


def curves_of(rows: pa.Table) -> Curves:
    """The curves of a table of rows: α in each window, then transport; the order of the rows does not matter."""
    rows = rows.sort_by([("layer", "ascending"), ("text", "ascending")])
    wanted = np.unique(rows["layer"].to_numpy()).tolist()
    sides = []
    for name in SIDES:
        lists = rows[f"alpha_{name}"].combine_chunks()
        alpha = lists.flatten().to_numpy(zero_copy_only=False).reshape(len(rows), -1)
        both = np.column_stack([alpha, rows[f"transport_{name}"].to_numpy()])
        sides.append(both.reshape(len(wanted), -1, both.shape[1]).swapaxes(0, 1))
    return curves(sides[0], sides[1], wanted, int(rows["blocks"][0].as_py()))
