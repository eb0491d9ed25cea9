"""Sample answers from one model with a KV cache, batched; the sample does not depend on how texts are batched.

Randomness is keyed by (seed, text, position). Temperature 0 is greedy. An answer ends with the model's end-of-text token,
which belongs to it: stopping is a decision like any other.
"""

# B texts of a batch, T positions, V vocabulary

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shiftscope.core.checkpoints import Checkpoint
from shiftscope.core.divergence import truncate_top_p
from shiftscope.core.head import evaluating
from shiftscope.core.randomness import uniforms

Allowed = Callable[[int, Sequence[int]], NDArray[np.bool_] | None]


def check_drawing(temperature: float, top_p: float) -> None:
    """Raises ValueError where tokens cannot be drawn with these settings."""
    if not 0 <= temperature < math.inf or not 0 < top_p <= 1:
        raise ValueError(f"temperature {temperature} and top_p {top_p}: need temperature >= 0 and 0 < top_p <= 1")
    if temperature == 0 and top_p < 1:
        raise ValueError(
            f"top_p is {top_p} at temperature 0, where the likeliest token is taken and nothing is drawn: raise temperature, "
            f"or leave top_p out"
        )


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn.

    temperature: 0 is greedy. top_p: mass of the nucleus kept. samples: answers per prompt. max_new_tokens: longest answer.
    seed: of the draws. Raises ValueError for values outside these ranges.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    samples: int = 1
    max_new_tokens: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        check_drawing(self.temperature, self.top_p)
        if self.samples < 1 or self.max_new_tokens < 1:
            raise ValueError(
                f"samples {self.samples} and max_new_tokens {self.max_new_tokens}: both must be at least 1"
            )
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(
                f"samples is {self.samples} at temperature 0: greedy answers would all be equal; raise --temperature"
            )


def shaped(logits_BV: Tensor, temperature: float, top_p: float = 1.0, top_k: int = 0) -> Tensor:
    """The log-law that is drawn from, float64: temperature, then the top_k most probable tokens (0: all), then top_p."""
    logp_BV = (logits_BV.double() / temperature).log_softmax(-1)
    if 0 < top_k < logp_BV.shape[-1]:
        values, ids = logp_BV.topk(top_k, -1)
        logp_BV = torch.full_like(logp_BV, -torch.inf).scatter(-1, ids, values.log_softmax(-1))
    return truncate_top_p(logp_BV, top_p) if top_p < 1 else logp_BV


def choose(logits_BV: Tensor, uniform_B: Tensor, temperature: float, top_p: float = 1.0, *, top_k: int = 0) -> Tensor:
    """The drawn token of every row by inverse CDF in id order, so that equal numbers give coupled draws. [B] int64."""
    if temperature == 0:
        return logits_BV.argmax(-1)
    logp_BV = shaped(logits_BV, temperature, top_p, top_k)
    cumulative_BV = logp_BV.exp().cumsum(-1)
    target_B1 = uniform_B.to(cumulative_BV).unsqueeze(-1) * cumulative_BV[:, -1:]
    drawn_B = torch.searchsorted(cumulative_BV, target_B1, right=True).squeeze(-1)
    last_possible_B = (logp_BV > -torch.inf).long().mul(torch.arange(logp_BV.shape[-1], device=logp_BV.device)).amax(-1)
    return torch.minimum(drawn_B, last_possible_B)


def end_ids(checkpoint: Checkpoint) -> tuple[int, ...]:
    """The ids that end an answer: the generation configuration's and the tokenizer's end-of-text token.

    Ids beyond the model's vocabulary (a small model with its family's default, say) are left out: no model draws them.
    """
    configured = getattr(checkpoint.model.generation_config, "eos_token_id", None)
    found = configured if isinstance(configured, list) else [configured]
    ids = [token for token in (*found, checkpoint.tokenizer.eos_token_id) if token is not None]
    return tuple(dict.fromkeys(token for token in ids if token < checkpoint.vocabulary_size))


def sample(
    checkpoint: Checkpoint,
    contexts: Sequence[Sequence[int]],
    documents: Sequence[int],
    sampling: Sampling,
    *,
    top_k: int = 0,
    allowed: Allowed | None = None,
    further_ends: Sequence[int] = (),
) -> list[tuple[int, ...]]:
    """One answer per context as token ids, ended by an end-of-text id or by max_new_tokens (or the model's context).

    documents: the number of each context, which keys its random numbers. top_k: tokens kept at each step, 0 for all.
    allowed: (row, ids of its answer so far) -> which ids [V] may follow, None for all. further_ends: ids that end an
    answer too, and belong to it.
    """
    if not contexts:
        return []
    device, ends = checkpoint.head.device, torch.tensor([*end_ids(checkpoint), *further_ends], dtype=torch.long)
    room = (checkpoint.context_length or 1 << 30) - max(map(len, contexts))
    if room < 1:
        raise ValueError(
            f"a prompt of {max(map(len, contexts))} tokens leaves no room in {checkpoint.name}, which reads at most "
            f"{checkpoint.context_length}: shorten the prompt"
        )
    ids_BT, mask_BT = left_padded(contexts)
    answers: list[list[int]] = [[] for _ in contexts]
    alive = torch.ones(len(contexts), dtype=torch.bool)
    cache = None
    with evaluating(checkpoint.model):
        step_BT = ids_BT
        for position in range(min(sampling.max_new_tokens, room)):
            places_BT = (mask_BT.cumsum(-1) - 1).clamp(min=0)[:, -step_BT.shape[1] :]
            output = checkpoint.model(
                input_ids=step_BT.to(device),
                attention_mask=mask_BT.to(device),
                position_ids=places_BT.to(device),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            cache = output.past_key_values
            uniform_B = torch.from_numpy(uniforms(sampling.seed, list(documents), position))
            logits_BV = output.logits[:, -1].float()
            if allowed is not None:
                logits_BV = _masked(logits_BV, allowed, answers, alive)
            drawn_B = choose(logits_BV, uniform_B, sampling.temperature, sampling.top_p, top_k=top_k).cpu()
            for row in alive.nonzero()[:, 0].tolist():
                answers[row].append(int(drawn_B[row]))
            alive &= ~torch.isin(drawn_B, ends)
            if not alive.any():
                break
            step_BT = drawn_B[:, None]
            mask_BT = torch.cat([mask_BT, torch.ones(len(contexts), 1, dtype=torch.long)], 1)
    return [tuple(answer) for answer in answers]


def _masked(logits_BV: Tensor, allowed: Allowed, answers: Sequence[Sequence[int]], alive: Tensor) -> Tensor:
    """Logits with -inf where a row may not go on; rows that have ended stay as they are."""
    masked_BV = logits_BV.clone()
    for row in alive.nonzero()[:, 0].tolist():
        mask_V = allowed(row, answers[row])
        if mask_V is not None:
            kept_V = torch.from_numpy(mask_V).to(masked_BV.device)
            masked_BV[row] = torch.where(kept_V, masked_BV[row], -torch.inf)
    return masked_BV


def left_padded(contexts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Contexts of unequal length as ids [B, T] padded on the left, and their attention mask [B, T]."""
    longest = max(map(len, contexts))
    ids_BT = torch.zeros(len(contexts), longest, dtype=torch.long)
    mask_BT = torch.zeros_like(ids_BT)
    for row, context in enumerate(contexts):
        ids_BT[row, longest - len(context) :] = torch.tensor(context)
        mask_BT[row, longest - len(context) :] = 1
    return ids_BT, mask_BT
