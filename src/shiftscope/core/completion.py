"""Greedy completion of many forced first tokens after one prompt: the prompt is read once, its KV cache is shared.

Source: arXiv 2410.02284 (probing a next-token law token by token). Deviation: the probes of one prompt run as one batch
on an expanded cache, instead of one `generate` call each; a probe that ends leaves the batch.
"""

# N probes, V vocabulary, D width

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shiftscope.core.checkpoints import Checkpoint
from shiftscope.core.decode import end_ids
from shiftscope.core.head import evaluating

Ended = Literal["stop", "end", "length"]


@dataclass(frozen=True)
class Prefix:
    """A prompt that was read. hidden_D: final state that predicts what follows; logits_V: float32, on the CPU."""

    ids: tuple[int, ...]
    hidden_D: Tensor
    logits_V: Tensor
    cache: Any


@dataclass(frozen=True)
class Completion:
    """One completed probe. ids: from the forced first token on, end-of-text left out; text: up to the stop string.

    ended: by the stop string, by end-of-text, or cut off at the length allowed.
    """

    ids: tuple[int, ...]
    text: str
    ended: Ended


def read(checkpoint: Checkpoint, ids: Sequence[int]) -> Prefix:
    """Read a prompt once. Raises ValueError for an empty prompt, one that leaves no room to answer, and NaN logits."""
    limit = checkpoint.context_length
    if not ids or (limit is not None and len(ids) >= limit):
        raise ValueError(
            f"a prompt of {len(ids)} tokens cannot be completed by {checkpoint.name}, which reads "
            f"{'at least 1' if not ids else f'at most {limit}'}: give a {'longer' if not ids else 'shorter'} prompt"
        )
    ids_BT = torch.tensor([list(ids)], device=checkpoint.head.device)
    with evaluating(checkpoint.model):
        output = checkpoint.head.body(input_ids=ids_BT, use_cache=True)
        hidden_D = output.last_hidden_state[0, -1]
        logits_V = checkpoint.head.logits(hidden_D[None])[0].float().cpu()
    if bool(logits_V.isnan().any()):
        raise ValueError(f"{checkpoint.name} gives logits that are not numbers: load it with --dtype float32")
    return Prefix(tuple(ids), hidden_D, logits_V, output.past_key_values)


def complete(
    checkpoint: Checkpoint,
    prefix: Prefix,
    firsts: Sequence[int],
    *,
    max_tokens: int,
    stop: str | None = None,
    batch_size: int = 64,
) -> list[Completion]:
    """For every first token, the greedy continuation of prefix + that token; the prefix is not read again.

    max_tokens: longest completion, the first token included. stop: ends a completion once its text holds it (white
    space that opens it aside); None leaves the end to the model.
    """
    found: list[Completion] = []
    for start in range(0, len(firsts), batch_size):
        found += _complete(checkpoint, prefix, list(firsts[start : start + batch_size]), max_tokens, stop)
    return found


def _complete(
    checkpoint: Checkpoint, prefix: Prefix, firsts: list[int], max_tokens: int, stop: str | None
) -> list[Completion]:
    room = (checkpoint.context_length or 1 << 30) - len(prefix.ids)
    ends, length = set(end_ids(checkpoint)), min(max_tokens, room)
    answers = [[first] for first in firsts]
    ended: list[Ended] = ["length"] * len(firsts)
    alive, cache = list(range(len(firsts))), None
    with evaluating(checkpoint.model):
        while True:
            kept = []
            for place, row in enumerate(alive):
                if answers[row][-1] in ends:
                    answers[row].pop()
                    ended[row] = "end"
                elif stop is not None and _stop_at(_text(checkpoint, answers[row]), stop) >= 0:
                    ended[row] = "stop"
                elif len(answers[row]) < length:
                    kept.append(place)
            if not kept:
                break
            if cache is None:
                cache = copy.deepcopy(prefix.cache)
                cache.batch_repeat_interleave(len(kept))
            elif len(kept) < len(alive):
                cache.batch_select_indices(torch.tensor(kept, device=checkpoint.head.device))
            alive = [alive[place] for place in kept]
            step_N1 = torch.tensor([[answers[row][-1]] for row in alive], device=checkpoint.head.device)
            output = checkpoint.head.body(input_ids=step_N1, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            for row, token in zip(
                alive, checkpoint.head.logits(output.last_hidden_state[:, -1]).argmax(-1).tolist(), strict=True
            ):
                answers[row].append(token)
    texts = [_text(checkpoint, ids) for ids in answers]
    cuts = [
        _stop_at(text, stop) if how == "stop" and stop else len(text) for text, how in zip(texts, ended, strict=True)
    ]
    return [
        Completion(tuple(ids), text[:cut], how) for ids, text, cut, how in zip(answers, texts, cuts, ended, strict=True)
    ]


def cannot_open(checkpoint: Checkpoint, stop: str | None = None) -> NDArray[np.bool_]:
    """Which tokens [V] cannot open an answer: padding, special ones, blanks, a new line, the stop, part of a character.

    A probe of one of these is wasted: its completion is no answer, or belongs to another token.
    """
    tokenizer = checkpoint.tokenizer
    named, special = set(tokenizer.get_vocab().values()), {*tokenizer.all_special_ids, *end_ids(checkpoint)}
    texts = tokenizer.batch_decode([[token] for token in range(min(len(tokenizer), checkpoint.vocabulary_size))])
    closed_V = np.ones(checkpoint.vocabulary_size, bool)
    for token, text in enumerate(texts):
        body = text.lstrip(" ")
        starts_wrong = not body.strip() or body[0] in "\n\r" or (stop is not None and body.startswith(stop))
        closed_V[token] = starts_wrong or "\ufffd" in text or token in special or token not in named
    return closed_V


def ranked(logits_V: Tensor, closed_V: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Tokens by falling logit (ties by id) that can open an answer, and how many that cannot rank above each."""
    order_V = np.argsort(-logits_V.double().numpy(), kind="stable").astype(np.int64)
    skipped_V = np.cumsum(closed_V[order_V], dtype=np.int64)
    open_V = ~closed_V[order_V]
    return order_V[open_V], skipped_V[open_V]


def _text(checkpoint: Checkpoint, ids: Sequence[int]) -> str:
    return str(checkpoint.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


def _stop_at(text: str, stop: str) -> int:
    """Where the stop string begins, white space that opens the text aside; -1 where it does not occur."""
    return text.find(stop, len(text) - len(text.lstrip()))
