"""Group losses: what to train on, beside the plain mean, when some groups of the training data are few or lie far away.

Free functions on tensors for any trainer: each takes what a step has at hand (a loss per group, logits, or features) and
gives a scalar to minimise. The tasks of `compare slices` say which item is of which group; its worst slice says whether a
loss was worth it. None of the five wins everywhere: for near groups the plain mean is the one to beat.

Source: arXiv 2202.06523, section 4 (the five, and their settings). erm: the mean. group_dro: arXiv 1911.08731. irm: arXiv
1907.02893. coral: arXiv 1607.01719. cdann: Li et al., ECCV 2018, "Deep domain generalization via conditional invariant
adversarial networks".
Deviation: `irm_penalty` squares the gradient of the whole batch, where the published code multiplies those of two halves; that
keeps the batch's variance in the penalty, which is never negative then.
Deviation: the CDANN discriminator is the caller's module, and one backward pass trains it and the features (a reversed
gradient), instead of alternating steps with a gradient penalty.
"""

# G groups, B items, C classes, D features

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

DRO_STEP, IRM_WEIGHT, IRM_ANNEALING = 0.01, 100.0, 500  # of the paper's runs


def group_means(loss_B: Tensor, group_B: Tensor, groups: int) -> Tensor:
    """Mean loss of each group [G], 0 with no gradient for one that the batch has nothing of. group_B: 0 … G - 1, int64."""
    count_G = torch.bincount(group_B, minlength=groups)
    sum_G = loss_B.new_zeros(groups).index_add(0, group_B, loss_B)
    return sum_G / count_G.clamp(min=1)


def erm(loss_B: Tensor) -> Tensor:
    """The plain mean over items, whatever their group."""
    return loss_B.mean()


def group_dro(loss_G: Tensor, weight_G: Tensor, step: float = DRO_STEP) -> tuple[Tensor, Tensor]:
    """The mean under weights that grow where the loss is high, and those weights for the next step.

    loss_G: mean loss of each group; weight_G: from the step before (at first 1/G each). New weights are
    weight · exp(step · loss), summing to 1, computed in log space so that no loss is too large.
    """
    moved_G = torch.softmax(weight_G.log() + step * loss_G.detach(), 0)
    return (moved_G * loss_G).sum(), moved_G


def irm_penalty(logits_BC: Tensor, label_B: Tensor) -> Tensor:
    """Of one group: squared gradient of its mean cross-entropy by a factor on the logits, at 1; 0 where that is optimal."""
    factor = torch.ones((), dtype=logits_BC.dtype, device=logits_BC.device, requires_grad=True)
    loss = functional.cross_entropy(logits_BC * factor, label_B)
    (slope,) = torch.autograd.grad(loss, factor, create_graph=True)
    return slope.square()


def irm(
    loss_G: Tensor, penalty_G: Tensor, step: int, weight: float = IRM_WEIGHT, annealing: int = IRM_ANNEALING
) -> Tensor:
    """Mean loss plus weighted mean penalty of all groups; the penalty's weight is 1 for the first `annealing` steps."""
    return loss_G.mean() + (weight if step >= annealing else 1.0) * penalty_G.mean()


def coral(features: Sequence[Tensor]) -> Tensor:
    """How far the groups' features lie apart: gap of means plus gap of covariances, mean squared. Add it to the loss, with weight
    1 in the paper's runs.

    features: one [B, D] tensor a group; the mean is over all pairs of groups. Raises ValueError for fewer than two groups, or
    a group with fewer than two items, whose covariance is not defined.
    """
    sizes = [len(one) for one in features]
    if len(sizes) < 2 or min(sizes) < 2:
        raise ValueError(f"groups of {sizes} items: coral compares two groups or more of at least two items each")
    moments = [(one_BD.mean(0), torch.cov(one_BD.T)) for one_BD in features]
    gaps = [
        (mean - other_mean).square().mean() + (spread - other_spread).square().mean()
        for place, (mean, spread) in enumerate(moments)
        for other_mean, other_spread in moments[place + 1 :]
    ]
    return torch.stack(gaps).mean()


def cdann(group_logits_BG: Tensor, group_B: Tensor, label_B: Tensor) -> Tensor:
    """Cross-entropy of a discriminator of groups, to be added to the loss; every (class, group) cell weighs alike.

    group_logits_BG: of a module that reads `reversed_gradient(features)` and the class, so that one backward pass teaches it
    to tell the groups of a class apart and the features to hide them.
    """
    cell_B = label_B * group_logits_BG.shape[1] + group_B
    _, own_B, count = torch.unique(cell_B, return_inverse=True, return_counts=True)
    weight_B = 1.0 / count[own_B]
    return (functional.cross_entropy(group_logits_BG, group_B, reduction="none") * weight_B).sum() / weight_B.sum()


def reversed_gradient(features_BD: Tensor, strength: float = 1.0) -> Tensor:
    """The features themselves; backwards, their gradient times -strength."""
    found: Tensor = _Reversed.apply(features_BD, strength)
    return found


class _Reversed(torch.autograd.Function):
    """Identity forwards, a factor of -strength backwards."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * gradients[0], None
