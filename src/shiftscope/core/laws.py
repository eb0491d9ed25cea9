"""Statistics of two next-token laws straight from logits: the hot loop under `paired`, and its compiled twins.

Compiled means `laws.c` on a CPU, by way of `core/native.py`, and torch.compile on an accelerator; the rest of this text is
about a CPU without it. Each row is swept twice in tiles of columns that stay in the cache. The first sweep makes
unnormalised probabilities, their sums and every sum that is linear in the logits; the second makes JS and TV from the
probabilities. Sums run over tiles in float64. Nothing of size positions × vocabulary exists, and no pass is made twice:
normalising is folded into the scalar of an addition, and the two logarithms of JS are taken of 1 + u and 1 − u,
u = (p − q)/(p + q), rounded so that they add up to exactly 2. JS is stationary in u, so that rounding does not matter;
rounding either alone would. Definitions: `core/divergence.py`.
"""

# R rows of one block, V vocabulary, M runs of the vocabulary, K listed tokens

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import pad

from shiftscope.core import divergence, native
from shiftscope.core.divergence import RUN

DIVERGENCES = ("js_nats", "kl_pq_nats", "kl_qp_nats", "tv", "entropy_p_nats", "entropy_q_nats")
LOWEST = -1e30  # stands for -inf where a product with probability 0 must be 0
TINY = torch.finfo(torch.float32).tiny
BELOW_ONE = 1 - 2**-22  # the step of float32 between 2 and 4, where 3 + u lies
TILE = 128 * 297  # columns of a tile: 38016 × 4 bytes × 7 operands fill about half of a 2 MB cache
SWEPT = 8192  # from this vocabulary on a CPU sweeps row by row; below, whole blocks of rows are small enough
SAFE_SUM = (1e-12, 1e20)  # sums of exp(logit) in this range need no shift in float32


@dataclass(frozen=True)
class Block:
    """Two laws p and q of the same R rows, as logits with their log-sum-exp. Valid until the next block.

    logits_p_RV, logits_q_RV: in the models' own types. lse_p_R, lse_q_R: float32. values_6R: in the order of
    DIVERGENCES.
    maxima_p_RM, maxima_q_RM: largest logit of each run of RUN tokens, None where they were not made.
    rank_2R: rank under p and under q of the tokens that were given, None where it was not counted.
    """

    logits_p_RV: Tensor
    logits_q_RV: Tensor
    lse_p_R: Tensor
    lse_q_R: Tensor
    values_6R: Tensor
    maxima_p_RM: Tensor | None = field(default=None, repr=False)
    maxima_q_RM: Tensor | None = field(default=None, repr=False)
    rank_2R: Tensor | None = field(default=None, repr=False)

    @cached_property
    def logp_RV(self) -> Tensor:
        """Log-probabilities of p, float32 [R, V]: one pass over the vocabulary; for a few tokens use `logp_at`."""
        return self.logits_p_RV.float() - self.lse_p_R[:, None]

    @cached_property
    def logq_RV(self) -> Tensor:
        """Log-probabilities of q, float32 [R, V]: one pass over the vocabulary; for a few tokens use `logq_at`."""
        return self.logits_q_RV.float() - self.lse_q_R[:, None]

    @cached_property
    def p_RV(self) -> Tensor:
        """Probabilities of p, float32 [R, V]."""
        return self.logp_RV.exp()

    @cached_property
    def q_RV(self) -> Tensor:
        """Probabilities of q, float32 [R, V]."""
        return self.logq_RV.exp()

    def logp_at(self, ids_RK: Tensor) -> Tensor:
        """Log-probabilities under p of the listed tokens, float32 [R, K]."""
        return self.logits_p_RV.gather(-1, ids_RK).float() - self.lse_p_R[:, None]

    def logq_at(self, ids_RK: Tensor) -> Tensor:
        """Log-probabilities under q of the listed tokens, float32 [R, K]."""
        return self.logits_q_RV.gather(-1, ids_RK).float() - self.lse_q_R[:, None]

    def top_p(self, k: int) -> tuple[Tensor, Tensor]:
        """Log-probabilities and ids of the k most probable tokens under p, falling, [R, K] each."""
        values, ids = divergence.top_k(self.logits_p_RV, k, self.maxima_p_RM)
        return values.float() - self.lse_p_R[:, None], ids

    def top_q(self, k: int) -> tuple[Tensor, Tensor]:
        """Log-probabilities and ids of the k most probable tokens under q, falling, [R, K] each."""
        values, ids = divergence.top_k(self.logits_q_RV, k, self.maxima_q_RM)
        return values.float() - self.lse_q_R[:, None], ids


class Workspace:
    """The buffers of one block size, reused for every block, and the statistics computed in them.

    compiled: on a CPU the kernel of `core/native.py`, where there is a C compiler (`compiled_note` says whether); on an
    accelerator torch.compile, at one fixed shape.
    """

    def __init__(self, rows: int, vocabulary: int, device: torch.device, *, compiled: bool = False) -> None:
        self.rows = rows
        on_cpu = device.type == "cpu"
        self.native = native.kernel()[0] if compiled and on_cpu else None
        swept = on_cpu and vocabulary >= SWEPT and self.native is None
        self.sweep = Sweep(vocabulary) if swept else None
        self.maxima = torch.empty(2, rows, vocabulary // RUN if swept or self.native else 0, device=device)
        self.copies = torch.empty(2, rows, vocabulary if self.native else 0)  # of half-precision logits; else untouched
        self.compiled = compiled and not on_cpu
        self.dense = torch.compile(dense, dynamic=False) if self.compiled else dense

    @property
    def buffers(self) -> list[Tensor]:
        """Every tensor that the workspace keeps."""
        return [self.maxima, self.copies, *([] if self.sweep is None else self.sweep.buffers)]

    def laws(self, logits_p_RV: Tensor, logits_q_RV: Tensor, token_R: Tensor | None = None) -> Block:
        """Both laws and their statistics from logits of any float type.

        token_R: a token of each row: the compiled kernel counts its ranks in passing, and nothing else does. A NaN or
        +inf logit makes its row's log-sum-exp NaN or infinite.
        """
        if self.native is not None:
            return self._native_laws(self.native, logits_p_RV, logits_q_RV, token_R)
        if self.sweep is None:
            # compiled code has one shape for all blocks: a shorter one is filled up
            missing = self.rows - len(logits_p_RV) if self.compiled else 0
            filled = [pad(logits, (0, 0, 0, missing)) for logits in (logits_p_RV, logits_q_RV)]
            found = self.dense(*filled)[:, : len(logits_p_RV)]
            return Block(logits_p_RV, logits_q_RV, found[0], found[1], found[2:])
        maxima_p, maxima_q = self.maxima[:, : len(logits_p_RV)]
        rows = zip(logits_p_RV, logits_q_RV, maxima_p, maxima_q, strict=True)
        found = torch.tensor([self.sweep(*row) for row in rows]).T
        return Block(logits_p_RV, logits_q_RV, found[0], found[1], found[2:], maxima_p, maxima_q)

    def _native_laws(
        self, kernel: native.Kernel, logits_p_RV: Tensor, logits_q_RV: Tensor, token_R: Tensor | None
    ) -> Block:
        p, q = (
            logits if logits.dtype == torch.float32 and logits.stride(1) == 1 else copy[: len(logits)].copy_(logits)
            for logits, copy in zip((logits_p_RV, logits_q_RV), self.copies, strict=True)
        )
        maxima = self.maxima[:, : len(p)]
        found_R8, rank_R2 = kernel(p, q, torch.zeros(len(p)) if token_R is None else token_R, maxima)
        found, rank = found_R8.T, None if token_R is None else rank_R2.T
        return Block(logits_p_RV, logits_q_RV, found[0], found[1], found[2:], maxima[0], maxima[1], rank)

    def divergences(self, block: Block) -> dict[str, Tensor]:
        """JS, KL(p‖q), KL(q‖p), TV and both entropies of every row, float32 [R]; definitions as in `divergence`."""
        found = dict(zip(DIVERGENCES, block.values_6R.clamp(min=0), strict=True))
        found["js_nats"] = found["js_nats"].clamp(max=divergence.LN2)
        found["tv"] = found["tv"].clamp(max=1)
        return found


class Sweep:
    """One row at a time, in tiles of columns: log-sum-exps and the six statistics of two laws as Python floats."""

    def __init__(self, vocabulary: int) -> None:
        count = math.ceil(vocabulary / TILE)
        width = math.ceil(vocabulary / count / RUN) * RUN  # even tiles of whole runs
        self.maxima = torch.zeros(2, vocabulary // RUN)
        self.tile_maxima = [maxima.split(width // RUN) for maxima in self.maxima]
        self.exp_p, self.exp_q, self.copy_p, self.copy_q = (torch.zeros(vocabulary) for _ in range(4))
        self.spare = [torch.zeros(width) for _ in range(3)]
        self.three, self.four = torch.tensor([3.0]), torch.tensor([4.0])
        sizes = [len(part) for part in self.exp_p.split(width)]
        self.tiles = [
            (*parts, *(spare[:size] for spare in self.spare))
            for size, *parts in zip(sizes, self.exp_p.split(width), self.exp_q.split(width), strict=True)
        ]
        self.width = width

    @property
    def buffers(self) -> list[Tensor]:
        """Every tensor that the sweep keeps."""
        return [self.exp_p, self.exp_q, self.copy_p, self.copy_q, self.maxima, *self.spare]

    def __call__(self, logits_p_V: Tensor, logits_q_V: Tensor, maxima_p_M: Tensor, maxima_q_M: Tensor) -> list[float]:
        """[lse_p, lse_q, *DIVERGENCES] of a row; writes the largest logit of each run into the two maxima."""
        logits_p, logits_q = (
            logits if logits.dtype == torch.float32 else copy.copy_(logits)
            for logits, copy in ((logits_p_V, self.copy_p), (logits_q_V, self.copy_q))
        )
        found = self._row(logits_p, logits_q)
        maxima_p_M.copy_(self.maxima[0])
        maxima_q_M.copy_(self.maxima[1])
        return found if all(map(math.isfinite, found)) else self._careful_row(logits_p, logits_q)

    def _row(self, logits_p_V: Tensor, logits_q_V: Tensor, *, careful: bool = False) -> list[float]:
        """The row's numbers, some NaN where exp overflows, a logit is -inf, or both laws underflow at a token."""
        sums = [0.0] * 6
        tiles = zip(self.tiles, self._split(logits_p_V), self._split(logits_q_V), *self.tile_maxima, strict=True)
        for (p, q, difference, *_), (zp, runs_p), (zq, runs_q), maxima_p, maxima_q in tiles:
            torch.exp(zp, out=p)
            torch.exp(zq, out=q)
            torch.amax(runs_p, -1, out=maxima_p)
            torch.amax(runs_q, -1, out=maxima_q)
            torch.sub(zp, zq, out=difference)
            terms = (p.sum(), q.sum(), p.dot(zp), q.dot(zq), p.dot(difference), q.dot(difference))
            sums = [total + term.item() for total, term in zip(sums, terms, strict=True)]
        sum_p, sum_q, p_zp, q_zq, p_difference, q_difference = sums
        if not all(SAFE_SUM[0] < total < SAFE_SUM[1] for total in sums[:2]):
            return [math.nan]
        lse_p, lse_q = math.log(sum_p), math.log(sum_q)
        js, tv = self._curved(sum_p / sum_q, careful)
        kl_pq, kl_qp = p_difference / sum_p - lse_p + lse_q, lse_p - lse_q - q_difference / sum_q
        return [lse_p, lse_q, js / sum_p, kl_pq, kl_qp, tv / sum_p, lse_p - p_zp / sum_p, lse_q - q_zq / sum_q]

    def _split(self, logits_V: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The tiles of a row, each flat and as whole runs."""
        runs = logits_V[: self.maxima.shape[1] * RUN].view(-1, RUN)
        return zip(logits_V.split(self.width), runs.split(self.width // RUN), strict=True)

    def _curved(self, ratio: float, careful: bool) -> tuple[float, float]:
        """JS and TV times Σp from the unnormalised laws of the first sweep; q is `ratio` times its buffer."""
        js = tv = 0.0
        for p, q, total, difference, spare in self.tiles:
            torch.add(p, q, alpha=ratio, out=total)
            torch.sub(p, q, alpha=ratio, out=difference)
            if careful:
                total.clamp_(min=TINY)
            torch.addcdiv(self.three, difference, total, value=BELOW_ONE, out=total)
            tv += difference.abs_().sum().item()
            torch.sub(total, 2, out=spare).log_().mul_(p)
            torch.sub(self.four, total, out=total).log_()
            js += spare.addcmul_(q, total, value=ratio).sum().item()
        return 0.5 * js, 0.5 * tv

    def _careful_row(self, logits_p_V: Tensor, logits_q_V: Tensor) -> list[float]:
        """The row's numbers for any logits: shifted by the largest, with tokens that a law excludes set apart."""
        shifts = [float(logits.max()) for logits in (logits_p_V, logits_q_V)]
        if not all(map(math.isfinite, shifts)):
            return [*(shift if math.isfinite(shift) else math.nan for shift in shifts), *[math.nan] * 6]
        p, q = torch.sub(logits_p_V, shifts[0], out=self.copy_p), torch.sub(logits_q_V, shifts[1], out=self.copy_q)
        excluded = torch.eq(p, -math.inf, out=self.exp_p), torch.eq(q, -math.inf, out=self.exp_q)
        any_excluded = any(bool(mask.any()) for mask in excluded)
        infinite = [False, False]
        if any_excluded:
            infinite = [float(p.exp().dot(excluded[1])) > 0, float(q.exp().dot(excluded[0])) > 0]
            p.clamp_(min=LOWEST)
            q.clamp_(min=LOWEST)
        found = self._row(p, q, careful=True)
        found[:2] = [lse + shift for lse, shift in zip(found[:2], shifts, strict=True)]
        found[3:5] = [math.inf if endless else kl for endless, kl in zip(infinite, found[3:5], strict=True)]
        return found


def dense(logits_p_RV: Tensor, logits_q_RV: Tensor) -> Tensor:
    """[lse_p, lse_q, *DIVERGENCES] of whole blocks, [8, R], for any logits: accelerators and small vocabularies."""
    logits_p, logits_q = logits_p_RV.float(), logits_q_RV.float()
    lse_p, lse_q = logits_p.logsumexp(-1, keepdim=True), logits_q.logsumexp(-1, keepdim=True)
    logp, logq = logits_p - lse_p, logits_q - lse_q
    p, q = logits_p.softmax(-1), logits_q.softmax(-1)  # not exp(logp): its error is that of the larger lse
    difference = p - q
    shifted = 3 + BELOW_ONE * (difference / (p + q).clamp(min=TINY))
    js = 0.5 * (p * (shifted - 2).log() + q * (4 - shifted).log()).sum(-1)
    kl_pq = torch.where(p > 0, p * (logp - logq), 0).sum(-1)
    kl_qp = torch.where(q > 0, q * (logq - logp), 0).sum(-1)
    entropy_p, entropy_q = (-torch.where(law > 0, law * log, 0).sum(-1) for law, log in ((p, logp), (q, logq)))
    tv = 0.5 * difference.abs().sum(-1)
    return torch.stack([lse_p[:, 0], lse_q[:, 0], js, kl_pq, kl_qp, tv, entropy_p, entropy_q])


def compiler_available() -> bool:
    """Whether there is a C compiler here, which compiled statistics need."""
    return native.compiler() is not None


def compiled_note() -> str:
    """One sentence on why compiled statistics run eagerly on this machine's CPU; '' where they do not."""
    kernel, reason = native.kernel()
    return "" if kernel else f"the statistics were not compiled: {reason}; they ran eagerly, which takes longer"
