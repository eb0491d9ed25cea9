"""Preferences: the DPO loss as a free function, where its gradient falls, and pairs read from a file.

Source of the loss: arXiv 2305.18290, equation 7.
"""

# B pairs, T positions, V vocabulary

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from shiftscope.core import corpus
from shiftscope.core.head import evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from shiftscope.core.checkpoints import Checkpoint


@dataclass(frozen=True)
class Preference:
    """One prompt with a preferred and a rejected answer, in token ids."""

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]


def dpo_loss(
    chosen_B: Tensor, rejected_B: Tensor, chosen_reference_B: Tensor, rejected_reference_B: Tensor, beta: float = 0.1
) -> Tensor:
    """−ln σ(β·[(ln π(y+) − ln π_ref(y+)) − (ln π(y−) − ln π_ref(y−))]) of every pair, in nats, [B].

    All arguments are log-probabilities of whole answers in nats; ln 2 where policy and reference are the same.
    """
    margin_B = (chosen_B - chosen_reference_B) - (rejected_B - rejected_reference_B)
    return -F.logsigmoid(beta * margin_B)


def answer_logp_nats(logits_BTV: Tensor, ids_BT: Tensor, answer_BT: Tensor) -> Tensor:
    """Log-probability of every answer given its prompt, in nats, [B].

    logits_BTV: row t predicts token t + 1. answer_BT: True at the tokens of the answer (the first token cannot be one).
    """
    logp_BTV = logits_BTV[:, :-1].float().log_softmax(-1)
    taken_BT = logp_BTV.gather(-1, ids_BT[:, 1:, None])[..., 0]
    return torch.where(answer_BT[:, 1:], taken_BT, 0).sum(-1)


def padded(prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, attention mask and answer mask [B, T] of prompts followed by answers, padded on the right."""
    longest = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True))
    ids_BT = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask_BT, answer_BT = torch.zeros_like(ids_BT), torch.zeros_like(ids_BT, dtype=torch.bool)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        start, stop = len(prompt), len(prompt) + len(answer)
        ids_BT[row, :stop] = torch.tensor([*prompt, *answer])
        mask_BT[row, :stop] = 1
        answer_BT[row, start:stop] = True
    return ids_BT, mask_BT, answer_BT


def read(
    source: str | Path | Iterable[Mapping[str, Any]], checkpoint: Checkpoint, limit: int | None = None
) -> list[Preference]:
    """Read preference pairs, in the ids of a checkpoint's tokenizer.

    source: jsonl or parquet with `prompt`, `chosen` and `rejected`, or such records in memory.
    Raises ValueError naming the record that is malformed, and for a source without records.
    """
    name = str(source) if isinstance(source, str | Path) else "the given pairs"
    pairs = []
    for number, record in enumerate(corpus.records(source, limit), start=1):
        fields = [
            record.get(field) if isinstance(record, Mapping) else None for field in ("prompt", "chosen", "rejected")
        ]
        if not all(isinstance(field, str) for field in fields):
            raise ValueError(f"{name}, record {number} must have `prompt`, `chosen` and `rejected`, each a text")
        prompt, *answers = map(str, fields)
        context = corpus.context_ids(checkpoint, corpus.Text(number, str(number), prompt))
        pair = Preference(context, *(corpus.answer_ids(checkpoint.tokenizer, answer) for answer in answers))
        if not (pair.prompt and pair.chosen and pair.rejected):
            raise ValueError(f"{name}, record {number} has an empty prompt or answer: each needs at least one token")
        pairs.append(pair)
    if not pairs:
        raise ValueError(f'{name} has no records: give at least one {{"prompt": …, "chosen": …, "rejected": …}}')
    return pairs


def block_gradient_squares(
    policy: Checkpoint, reference: Checkpoint, pairs: Sequence[Preference], *, beta: float = 0.1, batch_size: int = 16
) -> Tensor:
    """Squared gradient norm of the mean DPO loss over pairs, summed over the parameters of each block: [n_blocks].

    policy: the model whose parameters the gradient is taken at; reference: its anchor. Embeddings, final norm and head
    are no block and have no entry. The policy's own `grad` and `requires_grad` are not touched: the gradient is taken
    on detached views of its weights. float64.
    """
    views, owners = _block_views(policy)
    sums = [torch.zeros_like(view) for view in views.values()]
    with evaluating(policy.model, reference.model):
        for start in range(0, len(pairs), batch_size):
            some = pairs[start : start + batch_size]
            anchors = _pair_logp(reference.model, {}, some)
            with torch.enable_grad():
                loss = dpo_loss(*_pair_logp(policy.model, views, some), *anchors, beta).sum() / len(pairs)
                gradients = torch.autograd.grad(loss, list(views.values()), allow_unused=True)
            for total, gradient in zip(sums, gradients, strict=True):
                if gradient is not None:
                    total += gradient
    squares = torch.zeros(len(policy.head.blocks), dtype=torch.float64)
    for owner, total in zip(owners, sums, strict=True):
        squares[owner] += float(total.double().square().sum())
    return squares


def _block_views(checkpoint: Checkpoint) -> tuple[dict[str, Tensor], list[int]]:
    """Detached views of every block's parameters that collect gradients, by name, and the block of each."""
    block_of = {id(p): number for number, block in enumerate(checkpoint.head.blocks) for p in block.parameters()}
    named = [
        (name, p) for name, p in checkpoint.model.named_parameters() if id(p) in block_of and p.is_floating_point()
    ]
    return {name: p.detach().requires_grad_() for name, p in named}, [block_of[id(p)] for _, p in named]


def _pair_logp(
    model: PreTrainedModel, parameters: dict[str, Tensor], pairs: Sequence[Preference]
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the chosen and of the rejected answers, with some parameters of the model replaced."""
    prompts = [pair.prompt for pair in pairs]
    found = []
    for answers in ([pair.chosen for pair in pairs], [pair.rejected for pair in pairs]):
        ids_BT, mask_BT, answer_BT = (tensor.to(model.device) for tensor in padded(prompts, answers))
        inputs = {"input_ids": ids_BT, "attention_mask": mask_BT, "use_cache": False}
        found.append(answer_logp_nats(functional_call(model, parameters, (), inputs).logits, ids_BT, answer_BT))
    return found[0], found[1]
