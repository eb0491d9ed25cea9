"""Training a masked-diffusion language model, and scoring text with one: the LLaDA objective as free functions.

A sequence is masked with its own probability t; the model fills in what is hidden, and the cross-entropy at masked
positions, weighted by 1/t, bounds −ln p(text) from above. Supervised text leaves the prompt in sight and closes the
answer with end tokens up to the end of its canvas, which are masked and learnt like words: the model knows lengths.

Source: arXiv 2502.09992, sections 2.2 (objective), 2.3 (supervised canvases) and 2.4 (k of L masked).
Deviations: t is stratified over the batch (the same law for each sequence, less variance); no share of batches has a
random length (a caller draws the canvases it wants).
"""

# B sequences, T positions, V vocabulary

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from shiftscope.core.head import evaluating

LEAST_PROBABILITY = 1e-3  # of masking: 1/t stays finite


@dataclass(frozen=True)
class Canvases:
    """Whole sequences and what of them may be hidden: answers, for supervised text; everything, for plain text.

    ids_BT: int64 token ids. answer_BT: True where a token may be masked, and counts in the loss.
    attended_BT: True inside a sequence's own canvas; padding behind it is neither attended to nor learnt.
    """

    ids_BT: Tensor
    answer_BT: Tensor
    attended_BT: Tensor

    def __post_init__(self) -> None:
        if not self.ids_BT.shape == self.answer_BT.shape == self.attended_BT.shape:
            shapes = [tuple(tensor.shape) for tensor in (self.ids_BT, self.answer_BT, self.attended_BT)]
            raise ValueError(f"ids, answer and attended must have one shape [B, T]; they have {shapes}")
        if not self.answer_BT.any(-1).all():
            raise ValueError("every sequence needs at least one token that may be masked; one has none")


@dataclass(frozen=True)
class Settings:
    """How `fit` trains.

    steps: optimiser steps. batch: sequences a step. peak_rate: AdamW's learning rate after warm-up, from where it
    falls to zero along a cosine. warm_up: share of the steps before the peak. clip: largest norm of the gradient.
    """

    steps: int = 1000
    batch: int = 32
    peak_rate: float = 2e-3
    warm_up: float = 0.05
    clip: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1:
            raise ValueError(f"steps and batch must be at least 1; they are {self.steps} and {self.batch}")
        if not (self.peak_rate > 0 and self.clip > 0 and 0 < self.warm_up < 1):
            raise ValueError(
                "peak_rate and clip must be positive and warm_up between 0 and 1; they are "
                f"{self.peak_rate:g}, {self.clip:g} and {self.warm_up:g}"
            )


# ---- sequences ------------------------------------------------------------------------------------------------------
def plain(ids_BT: Tensor) -> Canvases:
    """Sequences of one length, any position of which may be masked: pre-training."""
    everywhere_BT = torch.ones_like(ids_BT, dtype=torch.bool)
    return Canvases(ids_BT, everywhere_BT, everywhere_BT)


def supervised(
    prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], lengths: Sequence[int], *, end_id: int
) -> Canvases:
    """Prompts kept in sight, each followed by a canvas of the length given: the answer, then end tokens to its end.

    An answer longer than its canvas is cut. Rows shorter than the longest are padded behind with end tokens, outside
    of `attended_BT`. Raises ValueError for a length below 1.
    """
    if min(lengths) < 1:
        raise ValueError(f"a canvas must have room for one token; the shortest length given is {min(lengths)}")
    longest = max(len(prompt) + length for prompt, length in zip(prompts, lengths, strict=True))
    ids_BT = torch.full((len(prompts), longest), end_id)
    answer_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
    attended_BT = torch.zeros_like(answer_BT)
    for row, (prompt, answer, length) in enumerate(zip(prompts, answers, lengths, strict=True)):
        start, stop = len(prompt), len(prompt) + length
        kept = [*prompt, *answer][:stop]
        ids_BT[row, : len(kept)] = torch.tensor(kept)
        answer_BT[row, start:stop] = True
        attended_BT[row, :stop] = True
    return Canvases(ids_BT, answer_BT, attended_BT)


# ---- masks ----------------------------------------------------------------------------------------------------------
def stratified_probabilities(n: int, generator: torch.Generator) -> Tensor:
    """n masking probabilities, each uniform on [LEAST_PROBABILITY, 1], one from every n-th of it in random order: [B]."""
    strata_B = torch.randperm(n, generator=generator)
    share_B = (strata_B + torch.rand(n, generator=generator)) / n
    return LEAST_PROBABILITY + (1 - LEAST_PROBABILITY) * share_B


def masks_at(t_B: Tensor, answer_BT: Tensor, generator: torch.Generator) -> Tensor:
    """Where to mask: each token of an answer by itself with its sequence's probability, bool [B, T]."""
    return answer_BT & (torch.rand(answer_BT.shape, generator=generator) < t_B[:, None])


def masks_of_random_size(answer_BT: Tensor, generator: torch.Generator) -> Tensor:
    """Where to mask: k tokens of each answer of L, k uniform on 1..L and any k alike, bool [B, T]."""
    lengths_B = answer_BT.sum(-1)
    sizes_B = 1 + (torch.rand(len(lengths_B), generator=generator, dtype=torch.float64) * lengths_B).long()
    order_BT = torch.where(answer_BT, torch.rand(answer_BT.shape, generator=generator, dtype=torch.float64), 2.0)
    return order_BT.argsort(-1).argsort(-1) < sizes_B[:, None]


# ---- losses ---------------------------------------------------------------------------------------------------------
def denoising_nats(logits_BTV: Tensor, ids_BT: Tensor, masked_BT: Tensor, answer_BT: Tensor, t_B: Tensor) -> Tensor:
    """Loss of each sequence in nats a token, [B]: cross-entropy summed over masked tokens, by t and the answer's length.

    Averaged over masks and t it is at least −ln p(answer)/length, and equal to it where the model's laws of one
    token given some others all belong to one joint law. Source: arXiv 2502.09992, sections 2.2 and 2.3.
    """
    return _masked_nats(logits_BTV, ids_BT, masked_BT) / t_B / answer_BT.sum(-1)


def subset_nats(logits_BTV: Tensor, ids_BT: Tensor, masked_BT: Tensor, answer_BT: Tensor) -> Tensor:
    """What one mask of k of L tokens says about −ln p(answer), in nats, [B]: the cross-entropy there times L/k.

    Its mean over `masks_of_random_size` is the same bound as `denoising_nats`' times L, with less variance.
    Source: arXiv 2502.09992, section 2.4.
    """
    return _masked_nats(logits_BTV, ids_BT, masked_BT) * answer_BT.sum(-1) / masked_BT.sum(-1)


def _masked_nats(logits_BTV: Tensor, ids_BT: Tensor, masked_BT: Tensor) -> Tensor:
    """Cross-entropy summed over the masked tokens of each sequence, in nats, [B]."""
    nats_BT = F.cross_entropy(logits_BTV.float().transpose(1, 2), ids_BT, reduction="none")
    return torch.where(masked_BT, nats_BT, 0).sum(-1)


# ---- with a model ---------------------------------------------------------------------------------------------------
def fit(
    model: Any, draw: Callable[[int, torch.Generator], Canvases], *, mask_id: int, settings: Settings, seed: int
) -> float:
    """Train a masked language model in place; returns the mean loss of the last tenth of the steps in nats a token.

    draw: (how many, generator) -> fresh canvases. The model is left in eval mode.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.peak_rate, betas=(0.9, 0.98), weight_decay=0.01)
    model.train()
    losses = []
    for step in range(settings.steps):
        warmed, falling = (
            (step + 1) / (settings.warm_up * settings.steps),
            1 + math.cos(math.pi * step / settings.steps),
        )
        for group in optimizer.param_groups:
            group["lr"] = settings.peak_rate * min(warmed, falling / 2)
        rows = draw(settings.batch, generator)
        t_B = stratified_probabilities(settings.batch, generator)
        masked_BT = masks_at(t_B, rows.answer_BT, generator)
        logits_BTV = masked_logits(model, rows, masked_BT, mask_id)
        loss = denoising_nats(logits_BTV, rows.ids_BT, masked_BT, rows.answer_BT, t_B).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    tail = losses[-max(1, settings.steps // 10) :]
    return sum(tail) / len(tail)


def masked_logits(model: Any, rows: Canvases, masked_BT: Tensor, mask_id: int) -> Tensor:
    """Logits [B, T, V] of canvases with some tokens hidden."""
    ids_BT = torch.where(masked_BT, mask_id, rows.ids_BT)
    logits: Tensor = model(input_ids=ids_BT, attention_mask=rows.attended_BT.long()).logits
    return logits


def answer_nats(model: Any, rows: Canvases, *, mask_id: int, draws: int = 128, seed: int) -> Tensor:
    """Monte-Carlo bound on −ln p(answer | prompt) in nats, one value for each draw: [draws, B].

    Average over the draws; their spread gives the error. draws: masks per sequence (the paper takes 128).
    Raises ValueError for fewer than one draw. The model is left as it was.
    """
    if draws < 1:
        raise ValueError(f"draws must be at least 1; it is {draws}")
    generator = torch.Generator().manual_seed(seed)
    found = []
    with evaluating(model):
        for _ in range(draws):
            masked_BT = masks_of_random_size(rows.answer_BT, generator)
            logits_BTV = masked_logits(model, rows, masked_BT, mask_id)
            found.append(subset_nats(logits_BTV, rows.ids_BT, masked_BT, rows.answer_BT))
    return torch.stack(found)


def fill_greedily(model: Any, ids_BT: Tensor, *, mask_id: int, window: int | None = None) -> Tensor:
    """Fill every mask, one a sequence and call: the token and position of highest probability. Returns new ids [B, T].

    ids_BT: canvases with equally many masks in each row. window: only the first so many masks of a row are candidates;
    None takes all. Equal probabilities go to the leftmost position. This is the plainest decoder there is: recipes
    measure their figures by it, so that a card does not change with the decoders it is there to judge.
    Raises ValueError where the rows have different numbers of masks.
    """
    counts = (ids_BT == mask_id).sum(-1).unique().tolist()
    if len(counts) != 1:
        raise ValueError(f"every row must have the same number of masks; the numbers are {counts}")
    ids_BT, rows_B = ids_BT.clone(), torch.arange(len(ids_BT))
    with evaluating(model):
        for _ in range(counts[0]):
            open_BT = ids_BT == mask_id
            if window is not None:
                open_BT &= open_BT.cumsum(-1) <= window
            logp_BTV = model(input_ids=ids_BT).logits.float().log_softmax(-1)
            logp_BTV[..., mask_id] = -math.inf
            best_BT, token_BT = logp_BTV.max(-1)
            chosen_B = torch.where(open_BT, best_BT, -math.inf).argmax(-1)
            ids_BT[rows_B, chosen_B] = token_BT[rows_B, chosen_B]
    return ids_BT
