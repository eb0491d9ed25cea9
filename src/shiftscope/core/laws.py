"""Row-blocked statistics of two next-token laws from logits: the hot loop under `paired`, and its compiled twin.

A block of a few rows stays in the processor's cache, so the two dozen passes over the vocabulary cost little beside the
two heads that made the logits; nothing of size positions × vocabulary ever exists. Formulas: `core/divergence.py`.
"""

# R rows of one block, V vocabulary, K listed tokens

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from shiftscope.core import divergence

TINY = torch.finfo(torch.float32).tiny
BELOW_ONE = 1 - torch.finfo(torch.float32).eps / 2
LOWEST = -1e30  # stands for -inf inside a block: its exp is 0, and differences stay finite
INFINITE_KL = 1e20
SAFE_EXPONENT = 60.0  # exp of logits below this needs no shift in float32
DIVERGENCES = ("js_nats", "kl_pq_nats", "kl_qp_nats", "tv", "entropy_p_nats", "entropy_q_nats")


@dataclass(frozen=True)
class Block:
    """Two laws of the same R rows: log-probabilities and probabilities, float32 [R, V]. Valid until the next block.

    lse_p_R, lse_q_R: log-sum-exp of the logits that the laws came from.
    """

    logp_RV: Tensor
    logq_RV: Tensor
    p_RV: Tensor
    q_RV: Tensor
    lse_p_R: Tensor
    lse_q_R: Tensor


class Workspace:
    """The buffers of one block size, reused for every block, and the dense statistics computed in them.

    compiled: run the dense part through torch.compile, at one fixed shape (the last, shorter block rides in it too).
    """

    def __init__(self, rows: int, vocabulary: int, device: torch.device, *, compiled: bool = False) -> None:
        self.rows = rows
        self.buffers = [torch.zeros(rows, vocabulary, device=device) for _ in range(7)]
        self.zero = torch.zeros(1, device=device)
        self.dense: Callable[..., Tensor] | None = torch.compile(dense_divergences, dynamic=False) if compiled else None

    def laws(self, logits_p_RV: Tensor, logits_q_RV: Tensor) -> Block:
        """Log-laws of logits in any float type. A NaN logit makes its row's log-sum-exp NaN."""
        R = logits_p_RV.shape[0]
        logp, logq, p, q = (buffer[:R] for buffer in self.buffers[:4])
        lse_p = _log_softmax(logits_p_RV, logp, p)
        lse_q = _log_softmax(logits_q_RV, logq, q)
        return Block(logp, logq, p, q, lse_p, lse_q)

    def divergences(self, block: Block) -> dict[str, Tensor]:
        """JS, KL(p‖q), KL(q‖p), TV and both entropies of every row, float32 [R]; definitions as in `divergence`."""
        R = block.p_RV.shape[0]
        if self.dense is not None:
            values = self.dense(*self.buffers[:4])[:, :R]
        else:
            values = self._eager(block)
            if values.isnan().any():  # -inf logits, or laws that underflow together: rare, so paid for only when met
                block.logp_RV.clamp_(min=LOWEST)
                block.logq_RV.clamp_(min=LOWEST)
                values = dense_divergences(block.logp_RV, block.logq_RV, block.p_RV, block.q_RV)
        found = dict(zip(DIVERGENCES, values.clamp(min=0), strict=True))
        found["js_nats"] = found["js_nats"].clamp(max=divergence.LN2)
        found["tv"] = found["tv"].clamp(max=1)
        for name in ("kl_pq_nats", "kl_qp_nats"):
            found[name] = torch.where(found[name] > INFINITE_KL, torch.inf, found[name])
        return found

    def _eager(self, block: Block) -> Tensor:
        """The six statistics in buffers; NaN where a law holds -inf or both laws underflow at a token."""
        R = block.p_RV.shape[0]
        logp, logq, p, q = block.logp_RV, block.logq_RV, block.p_RV, block.q_RV
        total, u, spare = (buffer[:R] for buffer in self.buffers[4:])
        difference = torch.sub(logp, logq, out=spare)
        kl_pq, kl_qp = _dots(p, difference), -_dots(q, difference)
        entropy_p, entropy_q = -_dots(p, logp), -_dots(q, logq)
        torch.add(p, q, out=total)
        torch.sub(p, q, out=u)
        variation = torch.linalg.vector_norm(u, 1, -1).mul_(0.5)
        torch.addcdiv(self.zero, u, total, value=BELOW_ONE, out=u)
        js = _dots(p, torch.log1p(u, out=spare))
        js = js.add_(_dots(q, torch.log1p(u.neg_(), out=spare))).mul_(0.5)
        return torch.stack([js, kl_pq, kl_qp, variation, entropy_p, entropy_q])


def _log_softmax(logits_RV: Tensor, logp_RV: Tensor, p_RV: Tensor) -> Tensor:
    """Write log-softmax and softmax of logits into the two buffers; returns the log-sum-exp [R], all float32."""
    logits = logits_RV if logits_RV.dtype == torch.float32 else logp_RV.copy_(logits_RV)
    top = logits.amax(-1, keepdim=True)
    shift = torch.where(top.abs() < SAFE_EXPONENT, 0, top)
    source = torch.sub(logits, shift, out=p_RV) if shift.any() else logits
    lse = torch.exp(source, out=p_RV).sum(-1, keepdim=True).log_().add_(shift)
    torch.sub(logits, lse, out=logp_RV)
    torch.exp(logp_RV, out=p_RV)
    return lse[:, 0]


def _dots(a_RV: Tensor, b_RV: Tensor) -> Tensor:
    """Row-wise dot products in one pass without a temporary (on a CPU a BLAS call per row beats a batched product)."""
    if a_RV.device.type != "cpu":
        return torch.linalg.vecdot(a_RV, b_RV)
    return torch.stack([torch.dot(a, b) for a, b in zip(a_RV, b_RV, strict=True)])


def dense_divergences(logp: Tensor, logq: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """The same six statistics as one expression, for torch.compile to fuse; takes -inf (as 0·(-inf) = 0)."""
    logp, logq = logp.clamp(min=LOWEST), logq.clamp(min=LOWEST)
    difference = logp - logq
    u = ((p - q) / (p + q).clamp(min=TINY)).clamp(-BELOW_ONE, BELOW_ONE)
    js = 0.5 * (p * torch.log1p(u) + q * torch.log1p(-u)).sum(-1)
    kl_pq, kl_qp = (p * difference).sum(-1), -(q * difference).sum(-1)
    return torch.stack([js, kl_pq, kl_qp, 0.5 * (p - q).abs().sum(-1), -(p * logp).sum(-1), -(q * logq).sum(-1)])


def compiler_available() -> bool:
    """Whether torch.compile can build code for a CPU here (it needs a C++ compiler)."""
    return any(shutil.which(name) for name in ("g++", "clang++", "c++"))
