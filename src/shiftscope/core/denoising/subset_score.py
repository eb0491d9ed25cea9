"""How likely a text is under the model that wrote it, whatever the decoder: in nats per token.

An any-order model's joint law is one call. A masked model's is bounded: hide k of the L tokens at random, k uniform, and
take L/k times their cross-entropy; the mean over draws is at least −log p, and equal to it where the model's laws of one
token given some others belong to one joint law. The same places are hidden for every decoder's text of a record.

Source: arXiv 2502.09992, section 2.4 (the bound); arXiv 2504.20456 (joint density in one call).
"""

# K places of a text that are scored, N its positions

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from shiftscope.core.denoising.any_subset import AnySubsetLM
from shiftscope.core.denoising.decoders import Model
from shiftscope.core.denoising.gapped import Gapped
from shiftscope.core.randomness import uniforms

_SIZES, _PLACES = 20, 1000  # streams of random numbers, one for each draw from there on


def nll_nats(
    model: Model,
    ids: Sequence[Sequence[int]],
    places: Sequence[Sequence[int]],
    documents: Sequence[int],
    *,
    draws: int = 32,
    seed: int = 0,
    batch_size: int = 64,
) -> list[float]:
    """−log p of the tokens at the places given the rest, per text in nats; a bound for masked models. 0 without places.

    documents: key the random subsets. draws: subsets per text. Raises ValueError for fewer than one draw.
    """
    if draws < 1:
        raise ValueError(f"draws is {draws}: at least one subset a text is needed")
    if isinstance(model, AnySubsetLM):
        copies = [Gapped(d, list(row), tuple(asked)) for d, row, asked in zip(documents, ids, places, strict=True)]
        scored = [copy for copy in copies if copy.order]
        found = iter(model.joint_logp(scored) if scored else [])
        return [-float(next(found).sum()) if copy.order else 0.0 for copy in copies]
    jobs: list[tuple[int, list[int], list[int]]] = []
    for text, (asked, document) in enumerate(zip(places, documents, strict=True)):
        jobs += [
            (text, *_hidden(model.mask_id, ids[text], asked, document, draw, seed)) for draw in range(draws) if asked
        ]
    total = np.zeros(len(ids))
    for start in range(0, len(jobs), batch_size):
        group = jobs[start : start + batch_size]
        laws = model.logits([row for _, row, _ in group], [hidden for *_, hidden in group])
        for (text, _, hidden), logits_KV in zip(group, laws, strict=True):
            token_K1 = torch.tensor([ids[text][place] for place in hidden], device=logits_KV.device)[:, None]
            logp = float(logits_KV.double().log_softmax(-1).gather(-1, token_K1).sum())
            total[text] -= logp * len(places[text]) / len(hidden) / draws
    return total.tolist()


def _hidden(
    mask_id: int, ids: Sequence[int], places: Sequence[int], document: int, draw: int, seed: int
) -> tuple[list[int], list[int]]:
    """The text with a random subset of the places hidden, any size alike, and the subset."""
    size = 1 + int(uniforms(seed, document, draw, _SIZES) * len(places))
    first = np.argsort(uniforms(seed, [document] * len(places), np.arange(len(places)), _PLACES + draw))[:size]
    hidden = sorted(places[index] for index in first)
    row = list(ids)
    for place in hidden:
        row[place] = mask_id
    return row, hidden
