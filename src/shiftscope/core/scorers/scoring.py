"""One model's laws of given tokens, importance ratios of two scorers, and bounds of divergences from a top-k list.

Sources: k1, k2, k3 (Schulman, "Approximating KL divergence", 2020); effective sample size (Kish 1965); the capped worst
case of the bounds is ours.
"""

# B texts, N positions, R rows of a block, V vocabulary, K listed tokens

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from shiftscope.core import divergence
from shiftscope.core.checkpoints import Checkpoint
from shiftscope.core.head import evaluating
from shiftscope.core.paired import PairedBatch, PairedText, Scorer, Side, block_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROUNDING = 1e-6  # what the masses of a list of float32 log-probabilities may be wrong by


def hidden_rows(checkpoint: Checkpoint, items: Sequence[PairedText], together: int) -> Tensor:
    """Final hidden states [N, d] that predict every answer token, in forwards of `together` right-padded texts.

    The context is the tuned one of each item.
    """
    found = []
    for start in range(0, len(items), together):
        group = items[start : start + together]
        sequences = [(*item.tuned_context, *item.answer) for item in group]
        ids_BT = torch.zeros(len(group), max(map(len, sequences)), dtype=torch.long)
        mask_BT = torch.zeros_like(ids_BT)
        for row, sequence in enumerate(sequences):
            ids_BT[row, : len(sequence)] = torch.tensor(sequence)
            mask_BT[row, : len(sequence)] = 1
        with evaluating(checkpoint.model):
            hidden_BTD = checkpoint.head.hidden(ids_BT.to(checkpoint.head.device), mask_BT.to(checkpoint.head.device))
        for row, item in enumerate(group):
            first = len(item.tuned_context) - 1
            found.append(hidden_BTD[row, first : first + len(item.answer)])
    return torch.cat(found)


def laws(checkpoint: Checkpoint, rows_ND: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Walk over the rows: (which, log-probabilities float32 [R, V]). Raises ValueError for logits that are not numbers."""
    step = block_rows(checkpoint.vocabulary_size, rows_ND.device)
    with torch.no_grad():
        for start in range(0, len(rows_ND), step):
            logp_RV = checkpoint.head.logits(rows_ND[start : start + step]).float().log_softmax(-1)
            if bool(logp_RV.isnan().any()):
                raise ValueError(f"{checkpoint.name} gives logits that are not numbers: load it with --dtype float32")
            yield slice(start, start + len(logp_RV)), logp_RV


def divergence_bounds(logp_RV: Tensor, ids_RK: Tensor, logq_RK: Tensor, cap_R: Tensor) -> dict[str, Tensor]:
    """What a top-k list of q says of the divergences from p: `_low` and `_high` bounds, float64 [R] each.

    logp_RV: the whole law p. ids_RK: listed tokens, -1 where a row lists fewer; logq_RK: their log-probabilities under q.
    cap_R: no token that is not listed has a larger log-probability under q.
    The tail's mass is taken to be known up to ROUNDING, and every bound is the safest one within that.
    Low: all unlisted tokens merged into one (data processing). High: the law within the list, tail mass and cap that is
    furthest from p: it puts as much as the cap allows on the tokens least probable under p, one after the other. JS, TV and
    KL(q‖p) are convex in q and what a token gains by holding the mass falls with p, so no other law is further.
    KL(p‖q) has no finite upper bound: an unlisted token may be impossible under q.
    """
    logp_RV, logq_RK = logp_RV.double(), logq_RK.double()
    present_RK = ids_RK >= 0
    safe_RK = ids_RK.clamp(min=0)
    logq_RK = torch.where(present_RK, logq_RK, -math.inf)
    logp_RK = torch.where(present_RK, logp_RV.gather(-1, safe_RK), -math.inf)
    listed_RV = torch.zeros_like(logp_RV).scatter_add_(-1, safe_RK, present_RK.double()) > 0
    tail_p_R = torch.where(listed_RV, 0, logp_RV.exp()).sum(-1)
    spare_R = 1 - logq_RK.exp().sum(-1)
    tail_q_R = tail_p_R.clamp(spare_R - ROUNDING, spare_R + ROUNDING).clamp(min=0)  # as near to p as rounding allows
    merged_p, merged_q = (
        torch.cat([log_RK, tail_R.log()[:, None]], -1) for log_RK, tail_R in ((logp_RK, tail_p_R), (logq_RK, tail_q_R))
    )
    excess_R = merged_q.exp().sum(-1) - merged_p.exp().sum(-1)  # of masses that do not add up: KL as an f-divergence
    found = {
        "js_low_nats": divergence.js_nats(merged_p, merged_q),
        "tv_low": divergence.tv(merged_p, merged_q),
        "kl_model_against_low_nats": (divergence.kl_nats(merged_p, merged_q) + excess_R).clamp(min=0),
        "kl_against_model_low_nats": (divergence.kl_nats(merged_q, merged_p) - excess_R).clamp(min=0),
    }
    order_RV = torch.where(listed_RV, math.inf, logp_RV).argsort(-1)
    for tail_R in ((spare_R - ROUNDING).clamp(0, 1), (spare_R + ROUNDING).clamp(0, 1)):
        q_RV = _furthest(order_RV, listed_RV, tail_R, cap_R.double().exp())
        logq_RV = q_RV.scatter_add_(-1, safe_RK, logq_RK.exp()).log()
        for name, value in (
            ("js_high_nats", divergence.js_nats(logp_RV, logq_RV)),
            ("tv_high", divergence.tv(logp_RV, logq_RV)),
            ("kl_against_model_high_nats", divergence.kl_nats(logq_RV, logp_RV)),
        ):
            found[name] = torch.maximum(found.get(name, value), value)
    return found


def _furthest(order_RV: Tensor, listed_RV: Tensor, tail_R: Tensor, cap_R: Tensor) -> Tensor:
    """Probabilities of the unlisted tokens under the law furthest from p, 0 for listed ones; order_RV: tokens by p."""
    before_V = torch.arange(order_RV.shape[-1], device=order_RV.device, dtype=tail_R.dtype)
    amount_RV = (tail_R[:, None] - before_V * cap_R[:, None]).clamp(min=0).minimum(cap_R[:, None])
    amount_RV = torch.where(listed_RV.gather(-1, order_RV), 0, amount_RV)
    return torch.zeros_like(amount_RV).scatter_(-1, order_RV, amount_RV)


def effective_share(log_ratios_N: ArrayLike) -> float:
    """Effective sample size over n of importance weights exp(log_ratios): (Σw)² / (n·Σw²), in log space.

    1 where all weights are equal, 1/n where one holds everything.
    """
    logs = np.asarray(log_ratios_N, dtype=np.float64)
    if logs.size == 0:
        raise ValueError("an effective sample of no weights: nothing was measured")
    weights = np.exp(logs - logs.max())
    return float(weights.sum() ** 2 / (np.square(weights).sum() * weights.size))


def effective_share_interval(
    log_ratios_N: ArrayLike, groups_N: ArrayLike, *, samples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of `effective_share`, resampling whole groups (texts)."""
    logs, (_, group_N) = (
        np.asarray(log_ratios_N, dtype=np.float64),
        np.unique(np.asarray(groups_N), return_inverse=True),
    )
    weights = np.exp(logs - logs.max())
    sums = np.stack([np.bincount(group_N, weights=values) for values in (weights, weights**2, np.ones_like(weights))])
    groups = sums.shape[1]
    generator, found = np.random.default_rng(seed), []
    for start in range(0, samples, step := max(1, 2_000_000 // groups)):
        picks = generator.integers(0, groups, (min(step, samples - start), groups))
        first, second, count = sums[:, picks].sum(-1)
        found.append(first**2 / (second * count))
    low, high = np.quantile(np.concatenate(found), [0.025, 0.975])
    return float(low), float(high)


def kl_estimates(log_ratios_N: ArrayLike) -> dict[str, NDArray[np.float64]]:
    """k1, k2 and k3 of KL(q‖p) at each token drawn from q, from log_ratios = log p − log q, in nats.

    k1 = −log r and k3 = r − 1 − log r are unbiased, k3 and k2 = (log r)²/2 are never negative.
    """
    logs = np.asarray(log_ratios_N, dtype=np.float64)
    return {"k1": -logs, "k2": 0.5 * np.square(logs), "k3": np.expm1(logs) - logs}


@dataclass
class TwoLayouts(Scorer):
    """One model in two batch layouts: each batch as one padded forward, and in forwards of `together` texts."""

    together: int = 1

    def batch(self, items: Sequence[PairedText], *, states: bool = False) -> PairedBatch:
        """Both layouts of a batch of texts; block states are not kept."""
        assert not states, "no measure of layouts reads states"
        lengths = torch.tensor([len(item.answer) for item in items])
        sides = [
            Side(checkpoint, hidden_rows(checkpoint, items, together))
            for checkpoint, together in ((self.base, len(items)), (self.tuned, self.together))
        ]
        return PairedBatch(
            items,
            torch.tensor([item.text for item in items]).repeat_interleave(lengths),
            torch.cat([torch.arange(len(item.answer)) for item in items]),
            torch.cat([torch.tensor(item.answer) for item in items]),
            *sides,
        )


def retokenised(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> int:
    """How many tokens come back otherwise when a text is decoded and tokenised again: all but the common ends."""
    text = tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)
    again = tokenizer(text, add_special_tokens=False)["input_ids"]
    if list(ids) == again:
        return 0
    shorter = min(len(ids), len(again))
    same = [old == new for old, new in zip(ids, again, strict=False)]
    head = same.index(False) if False in same else shorter
    back = [old == new for old, new in zip(reversed(ids), reversed(again), strict=False)][: shorter - head]
    return max(1, len(ids) - head - (back.index(False) if False in back else len(back)))
