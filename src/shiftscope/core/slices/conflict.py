"""Training conflict: which slice of the training data helps or hurts which slice of the evaluation data.

At every step of a training run record what the mini-batch was made of and how every evaluation slice changed; one linear
regression of the changes on the compositions is the matrix. For small steps it is the inner product of both slices'
gradients, summed along the path. Source: arXiv 2202.06523, section 5.2. The published code keeps only the hooks.
"""

# T steps, S training slices, E evaluation slices

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from shiftscope.core import corpus, statistics
from shiftscope.core.result import Figure, Panel, Result


@dataclass(frozen=True)
class Steps:
    """What was recorded. share_TS: share of each training slice in the batch, rows sum to 1; change_TE: change of each
    evaluation slice over the step, positive where it became better."""

    train: tuple[str, ...]
    evaluated: tuple[str, ...]
    share_TS: NDArray[np.float64]
    change_TE: NDArray[np.float64]


@dataclass(frozen=True)
class Conflict:
    """effect_SE: change of an evaluation slice in a step made of one training slice alone; positive helps. low_SE, high_SE:
    95 % interval (robust to unequal variances); scale: the largest |effect|, by which `normalised_SE` is divided;
    explained_E: share of the variance of an evaluation slice's changes that the composition explains."""

    effect_SE: NDArray[np.float64]
    low_SE: NDArray[np.float64]
    high_SE: NDArray[np.float64]
    explained_E: NDArray[np.float64]

    @property
    def scale(self) -> float:
        """The largest absolute effect; 1 where there is none."""
        return float(np.abs(self.effect_SE).max()) or 1.0

    @property
    def normalised_SE(self) -> NDArray[np.float64]:
        """Effects within [-1, 1]."""
        return self.effect_SE / self.scale


def read(source: Any, *, higher_is_better: bool = False) -> Steps:
    """Steps from jsonl, parquet or memory: per record `composition` (training slice → items of the batch, or share) and
    `change` (evaluation slice → how its loss, or score, changed over the step).

    higher_is_better: the changes are of a score; else of a loss, and their sign is turned.
    Raises ValueError naming the step for a missing field, an empty batch, or a change that is no finite number.
    """
    records = list(corpus.records(source))
    for number, record in enumerate(records):
        for field in ("composition", "change"):
            if not isinstance(record, Mapping) or not isinstance(record.get(field), Mapping) or not record[field]:
                raise ValueError(
                    f"step {number + 1} has no `{field}`: a step needs a composition and a change by slice"
                )
    if not records:
        raise ValueError("there are no steps: record composition and change of every training step")
    train = tuple(sorted({str(name) for record in records for name in record["composition"]}))
    evaluated = tuple(sorted({str(name) for record in records for name in record["change"]}))
    share_TS = _matrix(records, "composition", train, missing=0.0)
    change_TE = _matrix(records, "change", evaluated, missing=np.nan)
    if not np.isfinite(change_TE).all():
        step, place = np.argwhere(~np.isfinite(change_TE))[0]
        raise ValueError(
            f"step {step + 1} has no finite change of {evaluated[place]!r}: record every slice at every step"
        )
    bad = ~np.isfinite(share_TS).all(1) | (share_TS < 0).any(1) | (share_TS.sum(1) <= 0)
    if bad.any():
        raise ValueError(f"the composition of step {int(bad.argmax()) + 1} is empty, negative or no number")
    share_TS = share_TS / share_TS.sum(1, keepdims=True)
    return Steps(train, evaluated, share_TS, change_TE if higher_is_better else -change_TE)


def fit(steps: Steps) -> Conflict:
    """Least squares of changes on shares, without an intercept: the shares sum to one.

    Raises ValueError where the compositions cannot tell the training slices apart (too few steps, or batches that always
    mix alike).
    """
    (n, slices), rank = steps.share_TS.shape, int(np.linalg.matrix_rank(steps.share_TS))
    if n <= slices or rank < slices:
        raise ValueError(
            f"{n} steps with compositions of rank {rank} cannot tell {slices} training slices apart: record more steps than "
            f"slices, and draw batches from few slices at a time"
        )
    effect_SE = np.asarray(np.linalg.lstsq(steps.share_TS, steps.change_TE, rcond=None)[0], dtype=np.float64)
    rest_TE = steps.change_TE - steps.share_TS @ effect_SE
    bread_SS = np.linalg.inv(steps.share_TS.T @ steps.share_TS)
    lever_TS = steps.share_TS @ bread_SS
    error_SE = np.sqrt((lever_TS**2).T @ rest_TE**2 * (n / (n - slices)))
    from scipy.special import stdtrit

    reach = float(stdtrit(n - slices, 0.975))
    total_E = ((steps.change_TE - steps.change_TE.mean(0)) ** 2).sum(0)
    explained_E = 1 - np.divide((rest_TE**2).sum(0), total_E, out=np.ones_like(total_E), where=total_E > 0)
    return Conflict(effect_SE, effect_SE - reach * error_SE, effect_SE + reach * error_SE, explained_E)


def summarise(steps: Steps, method: str) -> Result:
    """The matrix as a table, with its conflicts counted and drawn; raises like `fit`."""
    found = fit(steps)
    pairs = [(s, e) for s in range(len(steps.train)) for e in range(len(steps.evaluated))]
    columns: dict[str, Any] = {
        "trained on": [steps.train[s] for s, _ in pairs],
        "evaluated on": [steps.evaluated[e] for _, e in pairs],
        "effect": [float(found.normalised_SE[pair]) for pair in pairs],
        "change per step": [float(found.effect_SE[pair]) for pair in pairs],
        "low": [float(found.low_SE[pair]) for pair in pairs],
        "high": [float(found.high_SE[pair]) for pair in pairs],
    }
    table = pa.table(columns)
    hurts, n = int((found.high_SE < 0).sum()), len(steps.share_TS)
    figures = {
        "conflicts_share": statistics.share_figure(hurts, len(pairs)),
        "explained_share_mean": Figure(float(found.explained_E.mean()), "share", n),
    }
    s, e = np.unravel_index(int(found.effect_SE.argmin()), found.effect_SE.shape)
    verdict = [
        f"{hurts} of {len(pairs)} pairs of a training and an evaluation slice are in conflict (95 % interval below 0)."
    ]
    if found.effect_SE[s, e] < 0:
        verdict.append(
            f"Training on {steps.train[s]} hurts {steps.evaluated[e]} most ({found.normalised_SE[s, e]:.2f} of the largest "
            f"effect)."
        )
    notes = ["effects are of the recorded steps together; intervals take the steps' residuals as independent"]
    caption = "Change of an evaluation slice (column) by a step on one training slice (row), over the largest; positive helps."
    panels = [
        Panel(
            "Training conflict", caption, "heat", table, x="evaluated on", y="trained on", color="effect",
            x_title="evaluated on", y_title="trained on",
        )
    ]  # fmt: skip
    return Result(method, table, figures, {}, verdict, notes, panels)


def _matrix(records: Sequence[Any], field: str, names: Sequence[str], *, missing: float) -> NDArray[np.float64]:
    own = [{str(name): value for name, value in record[field].items()} for record in records]
    found = [[one.get(name) for name in names] for one in own]
    if any(not isinstance(value, int | float | None) for row in found for value in row):
        raise ValueError(f"a `{field}` holds something that is no number: give a number by slice")
    return np.array([[missing if value is None else value for value in row] for row in found], dtype=np.float64)
