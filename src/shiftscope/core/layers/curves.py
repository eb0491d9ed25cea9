"""Curves over depth of two checkpoints and of their difference, with intervals from one resampling of the texts.

Source of the terminal third of the blocks: arXiv 2601.06238 (blocks 21–30 of about 30).
"""

# T texts, L layers measured, C curves, S bootstrap samples

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from shiftscope.core.result import Figure

Array = NDArray[np.float64]
SAMPLES = 1000
BASE, TUNED, DELTA = 0, 1, 2  # places of the three in the axis before the layers


@dataclass(frozen=True)
class Curves:
    """Means over texts: of base, of tuned, and of tuned minus base text by text; NaN where a curve has no value.

    layers: states measured, ascending; blocks: of the model. each_TBLC: the texts' own values (B: the three above).
    mean_BLC; boot_SBLC: its bootstrap samples, in all of which the same texts count for every curve.
    """

    layers: Sequence[int]
    blocks: int
    each_TBLC: Array
    mean_BLC: Array
    boot_SBLC: Array

    @property
    def texts(self) -> int:
        return len(self.each_TBLC)

    def inside(self, curve: int, *, terminal: bool) -> NDArray[np.int64]:
        """Places of the terminal (or of the other) layers where a curve has a value on both sides."""
        late = np.asarray(self.layers) >= terminal_start(self.blocks)
        return np.flatnonzero((late == terminal) & np.isfinite(self.mean_BLC[..., curve]).all(0))

    def of(self, statistic: Callable[[Array], Array], unit: str) -> Figure:
        """A statistic of the curves [..., B, L, C] with its 95 % interval."""
        value, samples = float(statistic(self.mean_BLC)), statistic(self.boot_SBLC)
        samples = samples[np.isfinite(samples)]
        low, high = np.quantile(samples, [0.025, 0.975]) if len(samples) else (value, value)
        return Figure(value, unit, self.texts, min(float(low), value), max(float(high), value))

    def change(self, curve: int, unit: str, *, terminal: bool) -> Figure | None:
        """Mean change over the terminal or over the other layers; None where none of them has a value."""
        places = self.inside(curve, terminal=terminal)
        return self.of(lambda c: c[..., DELTA, :, curve][..., places].mean(-1), unit) if len(places) else None

    def halves_apart(self, curve: int) -> float | None:
        """How far two random halves of the texts are apart on the base alone (root mean square), terminal mean."""
        terminal_TL = self.each_TBLC[:, BASE, :, curve][:, self.inside(curve, terminal=True)]
        whole_T = terminal_TL.mean(1)[np.isfinite(terminal_TL).all(1)] if terminal_TL.size else np.empty(0)
        return float(2 * whole_T.std(ddof=1) / np.sqrt(len(whole_T))) if len(whole_T) > 1 else None

    def columns(self, name: str, curve: int) -> dict[str, pa.Array]:
        """`{name}_base`, `_tuned`, `_delta`, each with `_low` and `_high`: one value per layer, null without one."""
        found: dict[str, pa.Array] = {}
        for side, label in enumerate(("base", "tuned", "delta")):
            mean_L = self.mean_BLC[side, :, curve]
            low_L, high_L = np.quantile(self.boot_SBLC[:, side, :, curve], [0.025, 0.975], axis=0)
            ends = {"": mean_L, "_low": np.minimum(low_L, mean_L), "_high": np.maximum(high_L, mean_L)}
            found |= {f"{name}_{label}{end}": nullable(values) for end, values in ends.items()}
        return found


def curves(base_TLC: Array, tuned_TLC: Array, layers: Sequence[int], blocks: int, *, seed: int = 0) -> Curves:
    """Both checkpoints' curves from the values of each text, NaN where a text has none."""
    each = np.stack([base_TLC, tuned_TLC, tuned_TLC - base_TLC], 1)
    T = len(each)
    generator = np.random.default_rng(seed)
    step = max(1, 2_000_000 // T)
    sizes = [min(step, SAMPLES - start) for start in range(0, SAMPLES, step)]
    boot = [_means(generator.multinomial(T, np.full(T, 1 / T), size=size), each) for size in sizes]
    return Curves(layers, blocks, each, _means(np.full((1, T), 1), each)[0], np.concatenate(boot))


def terminal_start(blocks: int) -> int:
    """The first block of the last third; at least one block is terminal."""
    return blocks - max(1, round(blocks / 3)) + 1


def nullable(values: Sequence[float] | Array) -> pa.Array:
    """A float64 column with null for NaN."""
    return pa.array(np.asarray(values, dtype=np.float64), from_pandas=True)


def _means(counts_ST: NDArray[np.int64], each_T: Array) -> Array:
    """Means over texts that count so often; texts without a value are left out, NaN where none has one."""
    flat = each_T.reshape(len(each_T), -1)
    present = np.isfinite(flat)
    total = counts_ST @ np.where(present, flat, 0)
    weight = counts_ST @ present.astype(np.float64)
    mean = np.divide(total, weight, out=np.full_like(total, np.nan), where=weight > 0)
    return mean.reshape(len(counts_ST), *each_T.shape[1:])
