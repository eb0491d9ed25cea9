"""Crossing: in lock-step, one model writes and the other's token is taken wherever a rule says so.

Rules are free functions of the two laws; both models draw with one random number, so that a switch is effective exactly
where the two draws differ. Source: arXiv 2603.22446, section 3.3; signed rule: arXiv 2603.22117.
"""

# B rows, V vocabulary

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from shiftscope.core.decode import Sampling, choose
from shiftscope.core.divergence import assert_massless_tail
from shiftscope.core.laws import LOWEST, Workspace
from shiftscope.core.lockstep import CONTROL, DRAW, Policy, Step


@dataclass(frozen=True)
class Laws:
    """What a rule sees of B positions: p the primary model's law, q the intervening one's, at temperature 1, not
    truncated.

    logp_BV, logq_BV: valid until the next step; -inf may stand as a very low finite number. token_p_B, token_q_B: what
    each law would write, from one random number. uniform_B: a number of the rule's own. switched_B: switches so far.
    """

    logp_BV: Tensor
    logq_BV: Tensor
    js_nats_B: Tensor
    entropy_p_nats_B: Tensor
    entropy_q_nats_B: Tensor
    token_p_B: Tensor
    token_q_B: Tensor
    uniform_B: Tensor
    switched_B: Tensor


Rule = Callable[[Laws], Tensor]


def js_above(laws: Laws, epsilon: float) -> Tensor:
    """Switch where the laws differ by more than epsilon nats (JS): below 0 always, from ln 2 on never; symmetric."""
    return laws.js_nats_B > epsilon


def at_random(laws: Laws, rate: float) -> Tensor:
    """Switch at random positions: the control that asks whether positions matter at all."""
    return laws.uniform_B < rate


def entropy_above(laws: Laws, cutoff_nats: float, *, of_primary: bool = True) -> Tensor:
    """Switch where one model is unsure: the control that asks whether uncertainty alone finds the positions."""
    return (laws.entropy_p_nats_B if of_primary else laws.entropy_q_nats_B) > cutoff_nats


def less_likely(laws: Laws, tau_nats: float) -> Tensor:
    """Switch where the intervening model finds the primary's token less likely than the primary does, by more than −tau
    nats.

    log q(a) − log p(a) < tau for the drawn token a. Source: arXiv 2603.22117 (the signed rule).
    """
    return _at_token(laws.logq_BV, laws.token_p_B) - _at_token(laws.logp_BV, laws.token_p_B) < tau_nats


def within_budget(laws: Laws, rule: Rule, budget: int) -> Tensor:
    """Another rule, until it has switched `budget` tokens of the text."""
    return rule(laws) & (laws.switched_B.to(laws.js_nats_B.device) < budget)


def crossing(rule: Rule, sampling: Sampling, *, compiled: bool = False) -> Policy:
    """Write the drafter's (primary's) draw, and the checker's (intervening model's) where the rule says so.

    Temperature and top-p shape both draws; the rule sees both laws at temperature 1. Records per token: token,
    switched, primary and other (both draws; a switch is effective where they differ), js_nats, entropy_primary_nats,
    entropy_other_nats, logp_primary_nats, logp_other_nats (of the written token). Laws are over the ids common to both.
    Source: arXiv 2603.22446, section 3.3.
    """
    workspace: Workspace | None = None

    def propose(logits_BV: Tensor, uniform_B: Tensor) -> Tensor:
        return choose(logits_BV.float(), uniform_B, sampling.temperature, sampling.top_p)

    def decide(step: Step, drafted_B: Tensor) -> dict[str, Tensor]:
        sizes = (step.drafter_logits_BV.shape[-1], step.checker_logits_BV.shape[-1])
        logits = [law[:, : min(sizes)] for law in (step.drafter_logits_BV, step.checker_logits_BV)]
        rows, device = len(drafted_B), logits[0].device
        nonlocal workspace
        if workspace is None or workspace.rows < rows:
            workspace = Workspace(rows, min(sizes), device, compiled=compiled)
        block = workspace.laws(*logits)
        sides = (("primary", block.lse_p_R), ("intervening", block.lse_q_R))
        for (side, lse_B), own_BV in zip(sides, (step.drafter_logits_BV, step.checker_logits_BV), strict=True):
            step.check(side, lse_B)
            if own_BV.shape[-1] > min(sizes):
                assert_massless_tail(own_BV.float().logsumexp(-1), lse_B, min(sizes))
        values = workspace.divergences(block)
        token_p_B = drafted_B.to(device)
        token_q_B = choose(logits[1].float(), step.uniform(DRAW), sampling.temperature, sampling.top_p)
        laws = Laws(
            block.logp_RV, block.logq_RV, values["js_nats"], values["entropy_p_nats"], values["entropy_q_nats"],
            token_p_B, token_q_B, step.uniform(CONTROL).to(device), step.switched_B,
        )  # fmt: skip
        switched_B = rule(laws)
        token_B = torch.where(switched_B, token_q_B, token_p_B)
        return {
            "token": token_B,
            "switched": switched_B,
            "primary": token_p_B,
            "other": token_q_B,
            "js_nats": laws.js_nats_B,
            "entropy_primary_nats": laws.entropy_p_nats_B,
            "entropy_other_nats": laws.entropy_q_nats_B,
            "logp_primary_nats": _at_token(laws.logp_BV, token_B),
            "logp_other_nats": _at_token(laws.logq_BV, token_B),
        }

    return Policy(propose, decide)


def _at_token(logp_BV: Tensor, token_B: Tensor) -> Tensor:
    logp_B = logp_BV.gather(-1, token_B[:, None])[:, 0]
    return torch.where(logp_B <= LOWEST, -torch.inf, logp_B)
