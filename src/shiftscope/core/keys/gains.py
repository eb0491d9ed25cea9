"""Which tokens a tuned model raised, and whether their look-alikes rose with them: spill-over with permutation tests.

Source: arXiv 2410.02284 (the section on training risk). Deviation: gains are permuted among tokens of like base
probability, beside the paper's random cluster of equal size: former answers lose mass whoever their mates are.
"""

# V vocabulary, R rows of a block, L leading tokens (the most raised), P tokens of the pool, S permutations

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from shiftscope.core import paired, statistics
from shiftscope.core.keys.clusters import Clusters
from shiftscope.core.laws import Block, Workspace
from shiftscope.core.result import Figure

NEGLIGIBLE = 1e-9  # mean probability per position below which a token is added to the remainder
REMAINDER = -1  # stands for all negligible tokens; its row also counts the positions
STRATA = 20  # of base probability, for the matched permutations


@dataclass(frozen=True)
class Gains:
    """Per token: mean gain of probability (tuned minus base) and mean base probability per position, times emitted."""

    gain_V: NDArray[np.float64]
    base_V: NDArray[np.float64]
    emitted_V: NDArray[np.int64]
    positions: int


def measure() -> paired.Measure:
    """The rows of one batch: per token, the gain of probability from base to tuned, summed over the answer positions.

    Columns token_id, gain_sum, base_sum (of the base's probability), emitted (times in the answers), n (positions, in
    the row of REMAINDER alone, which stands for all tokens of negligible probability: the gains of a batch sum to
    zero).
    """

    def start(batch: paired.PairedBatch) -> tuple[paired.OnBlock, Callable[[], pa.Table]]:
        sums: list[torch.Tensor] = []

        def on_block(rows: slice, block: Block, workspace: Workspace) -> None:
            if not sums:
                V, device = block.p_RV.shape[-1], block.p_RV.device
                sums.extend(torch.zeros(V, dtype=torch.float64, device=device) for _ in range(2))
            sums[0].add_(block.p_RV.sum(0))
            sums[1].add_(block.q_RV.sum(0))

        def finish() -> pa.Table:
            base_V, tuned_V = (side.cpu().numpy() for side in sums)
            emitted_V = np.bincount(batch.token_N.numpy(), minlength=len(base_V))[: len(base_V)]
            gain_V, n = tuned_V - base_V, len(batch.token_N)
            kept_V = (np.maximum(base_V, tuned_V) > NEGLIGIBLE * n) | (emitted_V > 0)
            return pa.table(
                {
                    "token_id": np.append(np.flatnonzero(kept_V), REMAINDER).astype(np.int32),
                    "gain_sum": np.append(gain_V[kept_V], gain_V[~kept_V].sum()),
                    "base_sum": np.append(base_V[kept_V], base_V[~kept_V].sum()),
                    "emitted": np.append(emitted_V[kept_V], 0).astype(np.int64),
                    "n": np.append(np.zeros(kept_V.sum(), np.int64), n),
                }
            )

        return on_block, finish

    return start


def gathered(rows: pa.Table, vocabulary: int) -> Gains:
    """The rows of all batches, in any order, as means per position over the vocabulary."""
    ids, positions = rows["token_id"].to_numpy(), int(pc.sum(rows["n"]).as_py())
    listed = ids != REMAINDER
    gain_V, base_V, emitted_V = (
        np.bincount(ids[listed], rows[name].to_numpy()[listed], vocabulary)
        for name in ("gain_sum", "base_sum", "emitted")
    )
    return Gains(gain_V / positions, base_V / positions, emitted_V.astype(np.int64), positions)


def most_raised(gains: Gains, fitted: Clusters, most: int) -> list[int]:
    """The tokens with the largest mean gain, largest first; only raised ones that are in a cluster."""
    order = np.argsort(-gains.gain_V, kind="stable")[:most].tolist()
    return [token for token in order if gains.gain_V[token] > 0 and fitted.label_V[token] >= 0]


def mates_within(leads: Sequence[int], fitted: Clusters, pool_V: NDArray[np.bool_]) -> dict[int, NDArray[np.int64]]:
    """Lead -> its cluster mates within the pool; leads without any are left out."""
    mates = {lead: fitted.mates(lead) for lead in leads}
    return {lead: those[pool_V[those]] for lead, those in mates.items() if pool_V[those].any()}


def spill_figures(
    name: str,
    mates: Mapping[int, NDArray[np.int64]],
    gains: Gains,
    pool_V: NDArray[np.bool_],
    fitted: Clusters,
    *,
    permutations: int,
    seed: int,
) -> dict[str, Figure]:
    """The mean over leads of their mates' mean gain, beside what permuting the gains over the pool gives.

    `random`: any token against any, which is a random cluster of equal size; `matched`: among tokens of like base
    probability. Each with its mean, the middle 95 % and a one-sided p value, for which tokens are exchangeable.
    `excess`: gain above the tokens of like base probability, with an interval over the clusters of the leads.
    """
    leads, gain_V = np.array(list(mates)), gains.gain_V
    weight_V, expected_V = np.zeros(len(pool_V)), np.zeros(len(pool_V))
    for those in mates.values():
        weight_V[those] += 1 / (len(those) * len(leads))
    pool = np.flatnonzero(pool_V)
    pool = pool[np.argsort(gains.base_V[pool], kind="stable")]
    group_L, figures = fitted.label_V[leads], dict[str, Figure]()
    own_L = np.array([gain_V[those].mean() for those in mates.values()])
    figures[f"{name}_gain"] = statistics.mean_figure(own_L, group_L, unit="probability")
    for kind, strata in (("random", 1), ("matched", min(STRATA, max(1, len(pool) // 10)))):
        null_S = permuted(weight_V[pool], gain_V[pool], strata, permutations, seed)
        low, high = np.quantile(null_S, [0.025, 0.975])
        p_value = (1 + int((null_S >= own_L.mean() - 1e-15).sum())) / (1 + len(null_S))
        figures[f"{name}_{kind}_gain"] = Figure(
            float(null_S.mean()), "probability", len(null_S), float(low), float(high)
        )
        figures[f"{name}_{kind}_p_value"] = Figure(p_value, "probability", len(null_S))
        for stratum in np.array_split(pool, strata):
            expected_V[stratum] = gain_V[stratum].mean()
    excess_L = [float((gain_V[those] - expected_V[those]).mean()) for those in mates.values()]
    figures[f"{name}_excess_gain"] = statistics.mean_figure(excess_L, group_L, unit="probability")
    return figures


def permuted(
    weight_P: NDArray[np.float64], value_P: NDArray[np.float64], strata: int, permutations: int, seed: int
) -> NDArray[np.float64]:
    """Weighted sums of values permuted within consecutive strata of the pool: [permutations]."""
    generator = np.random.default_rng(seed)
    total_S = np.zeros(permutations)
    for weights, values in zip(np.array_split(weight_P, strata), np.array_split(value_P, strata), strict=True):
        used = weights[weights > 0]
        if len(used):
            total_S += [
                used @ values[generator.choice(len(values), len(used), replace=False)] for _ in range(permutations)
            ]
    return total_S
