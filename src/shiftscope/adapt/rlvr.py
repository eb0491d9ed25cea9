"""Verifiable-reward tuning: make a checkpoint right more often where rightness can be checked, and see what it cost.

GRPO as in DAPO (see `core/grpo.py`), optionally with the divergence-weighted advantage: at every token the advantage is
multiplied by w = 1 + s·(σ(α·k3) − ½), k3 estimating KL(old‖new) there; `high` boosts tokens whose law the update has
already moved, `low` the others. w is 1 exactly on the first minibatch after a rollout, where old and new are the same
policy: with one update a rollout the weighting does nothing.

Source: arXiv 2603.22446 (divergence-weighted advantage); arXiv 2503.14476 (DAPO).
Deviation: s and α are not published; s is 1, and α is 1 over the 99th percentile of k3 in the first rollout's updates, in
which the weights stay 1. Only the sign of s·α matters: `high` is +, `low` is −.
Deviation: groups whose answers all earn the same are left out of the policy's mean over tokens, not drawn again.
Whether the weighting gains anything is for the table to say: on the zoo's sums it is within seed noise.
See also: `compare tokens` and `compare swaps` for where such a run acted and whether that carries its gain.
"""

# B answers of a minibatch, T answer tokens

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import pyarrow as pa
import torch
from torch import Tensor

from shiftscope.core import checkpoints, corpus, decode, grpo, statistics, verifiers
from shiftscope.core.checkpoints import Checkpoint
from shiftscope.core.corpus import Template, Text
from shiftscope.core.grpo import Settings, k3_nats
from shiftscope.core.result import Figure, Panel, Result
from shiftscope.core.verifiers import Verifier

Weight = Literal["off", "high", "low"]
SCHEMA = pa.schema(
    [("step", pa.int32()), ("rollout", pa.int32()), *((name, pa.float64()) for name in grpo.COLUMNS)]
)


def divergence_weights(logp_new_T: Tensor, logp_old_T: Tensor, *, s: float = 1.0, alpha: float) -> Tensor:
    """Weights w = 1 + s·(σ(α·k3) − ½) of the advantages of drawn tokens, without gradient.

    logp_new_T, logp_old_T: log-probabilities of tokens drawn from old, any shape. s: how far weights reach. alpha: sets
    the k3 (nats) at which they get there; s·alpha > 0 boosts high divergence, < 0 low.
    Returns weights of logp_new_T's shape and type, within [1, 1 + s/2) for s·alpha > 0 and (1 − |s|/2, 1] below; exactly
    1 where the two agree.
    Source: arXiv 2603.22446.
    """
    reach = torch.sigmoid(abs(alpha) * k3_nats(logp_new_T, logp_old_T)) - 0.5
    sign = 1.0 if s * alpha > 0 else -1.0
    return (1 + sign * abs(s) * reach).to(logp_new_T.dtype)


@dataclass
class CalibratedWeights:
    """`divergence_weights` whose alpha is 1 over the 99th percentile of k3 in the first `calls` minibatches.

    Until then, and where nothing moved in them, the weights are 1. Under several processes all use the mean percentile.
    """

    s: float
    calls: int
    alpha: float | None = None
    seen: list[Tensor] = field(default_factory=list)

    def __call__(self, logp_new_BT: Tensor, logp_old_BT: Tensor, mask_BT: Tensor) -> Tensor:
        if self.alpha is not None:
            return divergence_weights(logp_new_BT, logp_old_BT, s=self.s, alpha=self.alpha)
        self.seen.append(k3_nats(logp_new_BT, logp_old_BT)[mask_BT].cpu())
        if len(self.seen) >= self.calls:
            self.alpha = self._calibrated()
            self.seen.clear()
        return torch.ones_like(logp_new_BT)

    def _calibrated(self) -> float | None:
        k3_N = torch.cat(self.seen)
        moved_N = k3_N[k3_N > 0].numpy()
        percentile = float(statistics.np.quantile(moved_N, 0.99)) if len(moved_N) else 0.0
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            gathered: list[float] = [0.0] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(gathered, percentile)
            percentile = sum(gathered) / len(gathered)
        return 1 / percentile if percentile > 0 else None
