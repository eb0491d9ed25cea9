"""Vetoing: in lock-step, a teacher proposes each token and a student refuses those that it finds too improbable.

After `trials` refused proposals from the same pool the student speaks itself. The written text carries the teacher's
choices in the student's words; its law is that of neither (`one_step_law`).

Source: arXiv 2509.22230. Deviation: draws are inverse-CDF draws from keyed numbers. Decided where paper and code leave
it open: the tested probability is the student's own at temperature 1, not truncated; top-p comes before top-k; a
threshold of 0 vetoes nothing, not even what is outside the student's top-k.
"""

# B rows, V vocabulary, C tokens of a truncated law

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from shiftscope.core import divergence
from shiftscope.core.lockstep import CONTROL, Policy, Step
from shiftscope.core.settings import unread


@dataclass(frozen=True)
class Veto:
    """How a student (checker) judges a teacher's (drafter's) proposals; the defaults are those of arXiv 2509.22230.

    p_min: a proposal below this probability under the student is vetoed (0 vetoes none, above 1 all). trials: proposals
    per token before the student speaks itself. top_k, top_p, temperature: of both models' draws; a proposal must also
    lie in the student's top_k. student_temperature: of the probability that is tested (1: what supervised tuning sees).
    floor_fallback: the student's own tokens must reach p_min too (its most probable one where none does).
    """

    p_min: float = 0.01
    trials: int = 5
    top_k: int = 20
    top_p: float = 0.95
    temperature: float = 0.7
    student_temperature: float = 1.0
    floor_fallback: bool = False

    def __post_init__(self) -> None:
        if self.p_min < 0 or self.trials < 1 or self.top_k < 1:
            raise ValueError(
                f"p_min {self.p_min}, trials {self.trials}, top_k {self.top_k}: need p_min >= 0 and the others >= 1"
            )
        if self.p_min == 0:
            unread(self, type(self), "--p-min above 0", "trials", "student_temperature", "floor_fallback")
        if self.temperature < 0 or not self.student_temperature > 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                f"temperature {self.temperature}, student_temperature {self.student_temperature}, top_p {self.top_p}: "
                f"need temperature >= 0, student_temperature > 0 and 0 < top_p <= 1"
            )


@dataclass(frozen=True)
class Pool:
    """A truncated law on at most C listed tokens a row.

    ids_BC: rising, -1 for none. p_BC: sums to 1, or to 0 for an empty pool. lost_B: mass without an id, left out.
    """

    ids_BC: Tensor
    p_BC: Tensor
    lost_B: Tensor

    def draw(self, uniform_B: Tensor) -> Tensor:
        """The drawn token of every row by inverse CDF in id order, -1 for an empty pool."""
        cumulative_BC = self.p_BC.cumsum(-1)
        target_B1 = uniform_B.to(cumulative_BC)[:, None] * cumulative_BC[:, -1:]
        drawn_B1 = torch.searchsorted(cumulative_BC, target_B1, right=True)
        last_B1 = (
            (self.p_BC > 0)
            .long()
            .mul(torch.arange(self.p_BC.shape[-1], device=self.p_BC.device))
            .amax(-1, keepdim=True)
        )
        token_B = self.ids_BC.gather(-1, torch.minimum(drawn_B1, last_B1))[:, 0]
        return torch.where(cumulative_BC[:, -1] > 0, token_B, -1)

    def p_of(self, token_B: Tensor) -> Tensor:
        """The probability of one token of every row, 0 where the pool has it not."""
        return torch.where(self.ids_BC == token_B[:, None], self.p_BC, 0).sum(-1)


def pool(
    logits_BV: Tensor,
    *,
    temperature: float,
    top_p: float,
    top_k: int,
    allowed_BV: Tensor | None = None,
    own_of_V: Tensor | None = None,
) -> Pool:
    """Temperature, then top-p, then top-k; then only ids that the writer's vocabulary has, renormalised. float64.

    allowed_BV: which ids may be drawn. own_of_V: id -> the writer's id, -1 where it has none (None: the same ids).
    """
    if allowed_BV is not None:
        logits_BV = torch.where(allowed_BV, logits_BV, -torch.inf)
    if temperature == 0:
        value_BC, ids_BC = torch.zeros_like(logits_BV[:, :1]).double(), logits_BV.argmax(-1, keepdim=True)
    else:
        scaled_BV = logits_BV.double() / temperature
        top_BC, ids_BC = divergence.top_k(scaled_BV, min(top_k, logits_BV.shape[-1]))
        value_BC = top_BC - scaled_BV.logsumexp(-1, keepdim=True)
    p_BC = value_BC.exp()
    p_BC = torch.where(p_BC.cumsum(-1) - p_BC < top_p, p_BC, 0)
    p_BC = p_BC / p_BC.sum(-1, keepdim=True)
    lost_B = torch.zeros_like(p_BC[:, 0])
    if own_of_V is not None:
        own_BC = own_of_V.to(ids_BC.device)[ids_BC]
        lost_B = torch.where(own_BC < 0, p_BC, 0).sum(-1)
        p_BC, ids_BC = torch.where(own_BC < 0, 0, p_BC), own_BC
        total_B1 = p_BC.sum(-1, keepdim=True)
        p_BC = torch.where(total_B1 > 0, p_BC / total_B1.clamp(min=torch.finfo(p_BC.dtype).tiny), 0)
    order_BC = ids_BC.argsort(-1)
    return Pool(ids_BC.gather(-1, order_BC), p_BC.gather(-1, order_BC), lost_B)


def acceptable(logits_BV: Tensor, veto: Veto) -> Tensor:
    """Which proposals the student takes [B, V]: probability at least p_min (not truncated) and within its top_k.

    p_min 0 takes all, so that the teacher writes alone.
    """
    if veto.p_min == 0:
        return torch.ones_like(logits_BV, dtype=torch.bool)
    logp_BV = (logits_BV.float() / veto.student_temperature).log_softmax(-1)
    kth_B1 = divergence.top_k(logits_BV.float(), min(veto.top_k, logits_BV.shape[-1]))[0][:, -1:]
    return (logp_BV.exp() >= veto.p_min) & (logits_BV.float() >= kth_B1)


def one_step_law(q_BV: Tensor, accepted_BV: Tensor, fallback_BV: Tensor, trials: int) -> Tensor:
    """The law of the written token without the loop: (1 − (1−a)^R)·q(·|accepted) + (1−a)^R·fallback, a = q(accepted).

    q_BV, fallback_BV: probabilities; accepted_BV: bool; trials: R. Source: arXiv 2509.22230 (its loop, summed).
    """
    inside_BV = torch.where(accepted_BV, q_BV, 0)
    a_B1 = inside_BV.sum(-1, keepdim=True)
    vetoed_B1 = (1 - a_B1).clamp(min=0) ** trials
    given_BV = torch.where(a_B1 > 0, inside_BV / a_B1.clamp(min=torch.finfo(q_BV.dtype).tiny), 0)
    return (1 - vetoed_B1) * given_BV + vetoed_B1 * fallback_BV


def vetoing(veto: Veto, *, own_of_V: Tensor | None = None, readable_V: Tensor | None = None) -> Policy:
    """Write the teacher's draw that the student accepts, of up to `trials`, else the student's own draw.

    own_of_V: teacher's id -> student's id, -1 where it has none. readable_V: student's ids that the teacher can read.
    Records per token: token, switched (the student spoke), trial (0-based; `trials` where it spoke), p_teacher (of the
    token in the pool), logp_student_nats (of the token, temperature 1), fallback_p (chance that all trials fail),
    top_teacher and top_student (their most probable ids; -1 where the student has no such token), lost (teacher's mass
    without an id).
    Source: arXiv 2509.22230. p_min 0 is the teacher alone, p_min above 1 the student (their truncated laws).
    """
    truncated = partial(pool, temperature=veto.temperature, top_p=veto.top_p, top_k=veto.top_k)

    def propose(logits_BV: Tensor, uniform_B: Tensor) -> Tensor:
        return truncated(logits_BV, own_of_V=own_of_V).draw(uniform_B)

    def decide(step: Step, drafted_B: Tensor) -> dict[str, Tensor]:
        student_BV = step.checker_logits_BV.float()
        for side, logits_BV in (("teacher", step.drafter_logits_BV), ("student", student_BV)):
            step.check(side, logits_BV.float().logsumexp(-1))
        offered = truncated(step.drafter_logits_BV, own_of_V=own_of_V)
        accepted_BV = acceptable(student_BV, veto)
        token_B, trial_B = torch.full_like(drafted_B, -1), torch.full_like(drafted_B, veto.trials)
        for trial in range(veto.trials):
            drawn_B = drafted_B if trial == 0 else offered.draw(step.uniform(CONTROL + trial)).cpu()
            taken_B = (token_B < 0) & (drawn_B >= 0) & _at(accepted_BV, drawn_B)
            token_B, trial_B = torch.where(taken_B, drawn_B, token_B), torch.where(taken_B, trial, trial_B)
            if bool((token_B >= 0).all()):
                break
        allowed_BV = torch.ones_like(accepted_BV)
        if readable_V is not None:
            allowed_BV = readable_V.to(student_BV.device).expand_as(student_BV)
        own = truncated(student_BV, allowed_BV=_fallback_ids(student_BV, allowed_BV, veto))
        spoke_B = token_B < 0
        token_B = torch.where(spoke_B, own.draw(step.uniform(CONTROL)).cpu(), token_B)
        logp_BV, at = student_BV.log_softmax(-1), token_B[:, None].to(student_BV.device)
        a_B = (offered.p_BC * accepted_BV.gather(-1, offered.ids_BC.clamp(min=0))).sum(-1).clamp(max=1)
        top_B = step.drafter_logits_BV.argmax(-1)
        return {
            "token": token_B,
            "switched": spoke_B,
            "trial": trial_B,
            "p_teacher": offered.p_of(at[:, 0]).float(),
            "logp_student_nats": logp_BV.gather(-1, at)[:, 0],
            "fallback_p": ((1 - a_B) ** veto.trials).float(),
            "top_teacher": top_B if own_of_V is None else own_of_V.to(top_B.device)[top_B],
            "top_student": student_BV.argmax(-1),
            "lost": offered.lost_B.float(),
        }

    return Policy(propose, decide)


def _fallback_ids(student_BV: Tensor, allowed_BV: Tensor, veto: Veto) -> Tensor:
    """Which ids the student's own draw may give: the allowed ones, or those that reach p_min, or the best one."""
    if not veto.floor_fallback:
        return allowed_BV
    possible_BV = torch.where(allowed_BV, student_BV, -torch.inf)
    likely_BV = allowed_BV & ((student_BV / veto.student_temperature).softmax(-1) >= veto.p_min)
    best_BV = torch.zeros_like(allowed_BV).scatter(-1, possible_BV.argmax(-1, keepdim=True), True)
    return torch.where(likely_BV.any(-1, keepdim=True), likely_BV, best_BV)


def _at(flags_BV: Tensor, token_B: Tensor) -> Tensor:
    return flags_BV.gather(-1, token_B.clamp(min=0)[:, None].to(flags_BV.device))[:, 0].cpu()
