"""Divergences between next-token laws: pure functions on log-probabilities, natural logarithm, units in the name.

Conventions: `logp`, `logq` are log-probabilities over the last axis (float32 or float64), -inf marks an impossible
token. A term with p = 0 contributes 0, whatever q is. KL is +inf exactly where p has mass that q excludes; everything
else is finite for any -inf pattern. Identical laws give exactly 0.

Source: arXiv 2603.22446, section 3.1 (JS); arXiv 2601.06238 (Fisher–Rao); arXiv 2312.01552 (rank classes).
Deviation: Fisher–Rao in chord form, 4·arcsin(‖√p − √q‖/2), because arccos of the Bhattacharyya coefficient is 0 in
float32 for laws 1e-4 apart.
"""

# B any leading axes, V vocabulary, K listed tokens

from __future__ import annotations

import math

import torch
from torch import Tensor

LN2 = math.log(2)
RUN = 64  # entries of a run in top_k


def _times_log(p: Tensor, log_ratio: Tensor) -> Tensor:
    """p·log_ratio with 0·(anything, ±inf and NaN included) = 0."""
    return torch.where(p > 0, p * torch.where(p > 0, log_ratio, 0), 0)


def kl_nats(logp_BV: Tensor, logq_BV: Tensor) -> Tensor:
    """KL(p‖q) in nats; +inf where p puts mass on a token that q excludes."""
    return _times_log(logp_BV.exp(), logp_BV - logq_BV).sum(-1).clamp(min=0)


def js_nats(logp_BV: Tensor, logq_BV: Tensor) -> Tensor:
    """Jensen–Shannon divergence in nats, within [0, ln 2].

    Computed per token as (p+q)/4·[(1+u)·ln(1+u) + (1−u)·ln(1−u)], u = (p−q)/(p+q): no cancellation for near-equal laws,
    unlike the difference of entropies. Source: arXiv 2603.22446, section 3.1.
    """
    p, q = logp_BV.exp(), logq_BV.exp()
    total = p + q
    u = torch.where(total > 0, (p - q) / total.clamp(min=torch.finfo(total.dtype).tiny), 0)
    terms = torch.special.xlog1py(1 + u, u) + torch.special.xlog1py(1 - u, -u)
    return (total * terms).sum(-1).mul(0.25).clamp(0, LN2)


def tv(logp_BV: Tensor, logq_BV: Tensor) -> Tensor:
    """Total variation distance, within [0, 1]."""
    return (logp_BV.exp() - logq_BV.exp()).abs().sum(-1).mul(0.5).clamp(0, 1)


def bhattacharyya(logp_BV: Tensor, logq_BV: Tensor) -> Tensor:
    """Bhattacharyya coefficient Σ√(p·q), within [0, 1]; 1 − half the squared chord, so exactly 1 for identical laws."""
    return (1 - 0.5 * _squared_chord(logp_BV, logq_BV)).clamp(0, 1)


def js_to_token_nats(logp_B: Tensor) -> Tensor:
    """JS in nats between a law and the certainty of one token that has log-probability logp under it.

    0 where the law is sure of the token, ln 2 where it excludes it: how far a written token lies from a reader's law.
    """
    p = logp_B.exp()
    inside = _times_log(p, logp_B + LN2 - torch.log1p(p))
    return (0.5 * (LN2 - torch.log1p(p) + inside + (1 - p) * LN2)).clamp(0, LN2)


def fisher_rao(logp_BV: Tensor, logq_BV: Tensor) -> Tensor:
    """Fisher–Rao geodesic distance 2·arccos Σ√(p·q) in radians, within [0, π]; chord form, exact for small ones."""
    return arc_of_chord(_squared_chord(logp_BV, logq_BV).sqrt())


def arc_of_chord(chord_B: Tensor) -> Tensor:
    """Fisher–Rao distance in radians of two laws whose square roots are ‖√p − √q‖₂ = chord_B apart."""
    return 4 * torch.asin((0.5 * chord_B).clamp(max=math.sqrt(0.5)))


def _squared_chord(logp_BV: Tensor, logq_BV: Tensor) -> Tensor:
    return ((0.5 * logp_BV).exp() - (0.5 * logq_BV).exp()).square().sum(-1)


def entropy_nats(logp_BV: Tensor) -> Tensor:
    """Shannon entropy in nats."""
    return -_times_log(logp_BV.exp(), logp_BV).sum(-1).clamp(max=0)


def rank(logp_BV: Tensor, ids_B: Tensor) -> Tensor:
    """How many tokens are strictly more probable than ids_B: 0 is the top, ties get the best rank. int64."""
    value_B1 = logp_BV.gather(-1, ids_B[..., None])
    rank_B = torch.zeros(ids_B.shape, dtype=torch.int64, device=logp_BV.device)
    for part in logp_BV.split(1 << 15, dim=-1):  # counted in float32, which on a CPU is four times as fast as in bool
        rank_B += torch.gt(part, value_B1, out=torch.empty(part.shape, device=part.device)).sum(-1).long()
    return rank_B


def top_k(values_BV: Tensor, k: int, maxima_BM: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The k largest values and their indices, in descending order; the same set as torch.topk up to ties.

    Two passes: the maxima of runs of RUN entries choose the k runs that can hold a top-k entry, then only those are
    searched. At V = 152k this takes about a tenth of torch.topk's time on a CPU. maxima_BM: the maxima of the
    V // RUN whole runs, where they are at hand.
    """
    vocabulary = values_BV.shape[-1]
    whole = vocabulary // RUN * RUN
    if k * RUN * 4 > vocabulary:
        return values_BV.topk(k, dim=-1)
    runs = values_BV[..., :whole].unflatten(-1, (-1, RUN))
    chosen = (runs.amax(-1) if maxima_BM is None else maxima_BM).topk(k, dim=-1, sorted=False).indices
    inside = torch.arange(RUN, device=values_BV.device)
    ids = (chosen[..., None] * RUN + inside).flatten(-2)
    tail = torch.arange(whole, vocabulary, device=values_BV.device).expand(*ids.shape[:-1], -1)
    ids = torch.cat([ids, tail], -1)
    best = values_BV.gather(-1, ids).topk(k, dim=-1)
    return best.values, ids.gather(-1, best.indices)


def top_k_overlap(ids_p_BK: Tensor, ids_q_BK: Tensor) -> Tensor:
    """|top-k(p) ∩ top-k(q)| / k for every k = 1..K at once: [..., K], from two lists sorted by falling probability."""
    same = ids_p_BK[..., :, None] == ids_q_BK[..., None, :]
    within_both = same.cumsum(-1).cumsum(-2)
    shared = torch.diagonal(within_both, dim1=-2, dim2=-1)
    return shared / torch.arange(1, ids_p_BK.shape[-1] + 1, device=ids_p_BK.device)


def js_lower_bound_nats(logp_BK: Tensor, logq_BK: Tensor) -> Tensor:
    """JS of two laws known only on K listed tokens (the same ids for both), the rest of each merged into one bucket.

    A lower bound of the true JS, by data processing: merging outcomes can only lower a divergence.
    """

    def with_tail(log_BK: Tensor) -> Tensor:
        tail = (1 - log_BK.exp().sum(-1, keepdim=True)).clamp(min=0)
        return torch.cat([log_BK, tail.log()], -1)

    return js_nats(with_tail(logp_BK), with_tail(logq_BK))


def js_lower_bound_of_lists_nats(ids_p_BK: Tensor, logp_BK: Tensor, ids_q_BK: Tensor, logq_BK: Tensor) -> Tensor:
    """The same bound from two top-k lists with different ids: tokens in both lists, and one bucket for all others."""
    same = ids_p_BK[..., :, None] == ids_q_BK[..., None, :]
    logq_at_p = torch.where(same, logq_BK[..., None, :], -math.inf).amax(-1)
    return js_lower_bound_nats(torch.where(same.any(-1), logp_BK, -math.inf), logq_at_p)


def truncate_top_p(logp_BV: Tensor, top_p: float) -> Tensor:
    """Keep the smallest set of most probable tokens whose mass reaches top_p, renormalised; the rest becomes -inf."""
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}: it must lie in (0, 1]")
    ordered, ids = logp_BV.sort(-1, descending=True)
    mass_before = ordered.exp().cumsum(-1) - ordered.exp()
    kept = torch.where(mass_before < top_p, ordered, -math.inf)
    kept = kept - kept.logsumexp(-1, keepdim=True)
    return torch.full_like(logp_BV, -math.inf).scatter(-1, ids, kept)


def common_log_softmax(logits_p_BV: Tensor, logits_q_BV: Tensor, tolerance: float = 1e-3) -> tuple[Tensor, Tensor]:
    """float32 (or float64) log-laws of two models on their common ids, when one vocabulary is padded longer.

    Raises ValueError where the ids that only one model has hold more than `tolerance` of its mass.
    """
    common = min(logits_p_BV.shape[-1], logits_q_BV.shape[-1])
    laws = []
    for logits in (logits_p_BV, logits_q_BV):
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if logits.shape[-1] > common:
            assert_massless_tail(logits.logsumexp(-1), logits[..., :common].logsumexp(-1), common, tolerance)
        laws.append(logits[..., :common].log_softmax(-1))
    return laws[0], laws[1]


def assert_massless_tail(whole_B: Tensor, common_B: Tensor, common: int, tolerance: float = 1e-3) -> None:
    """Check log-sum-exps over all ids and over the common ids: those beyond may hold at most `tolerance` of the mass.

    Raises ValueError with the mass found.
    """
    mass = float(-torch.expm1(common_B - whole_B).amin()) if common_B.numel() else 0.0
    if mass > tolerance:
        raise ValueError(
            f"token ids from {common} on exist in one model only and hold {mass:.3g} of its probability at some "
            f"position (allowed: {tolerance:g}): the vocabularies differ by more than padding"
        )
