"""Whether texts are samples of the model that wrote them, reveal by reveal.

A decoder that draws each token from the model's law at a place chosen without looking at the draw samples the model along
its order (chain rule). Then the place of each drawn token in its own law, ranked by probability and made continuous by a
random number, is uniform and independent of all that went before: a test of every reveal, for any vocabulary and order,
at one forward per reveal. Choosing by what was drawn, drawing several at once, stale or pruned contexts all show in it.

Source: randomised probability integral transform (Rosenblatt 1952; Brockwell 2007); its use here is our own.
"""

# R reveals, B texts, V vocabulary

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shiftscope.core.denoising.any_subset import AnySubsetLM
from shiftscope.core.denoising.decoders import Model, Text
from shiftscope.core.denoising.gapped import Gapped
from shiftscope.core.denoising.reveals import Reveals
from shiftscope.core.randomness import uniforms

_SPREAD = 7  # stream of random numbers
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Replayed:
    """The reveals of one text against the model's own laws.

    u_R: where each token stands in its law, in [0, 1]; uniform for samples of the model, near 0 for tokens too likely.
    logp_R: of the token. entropy_R: of its law, nats. variance_R: of the log-probability under the law, nats².
    """

    u_R: Array
    logp_R: Array
    entropy_R: Array
    variance_R: Array


def replay(
    model: Model, texts: Sequence[Text], records: Sequence[Reveals], *, seed: int = 0, batch_size: int = 64
) -> list[Replayed]:
    """Each reveal's token against the model's law at its place given what the record had filled before it.

    The canvas is the one that stood at the reveal's call, whole: what a decoder did not see counts here.
    batch_size: reveals (of a masked model) or texts (of an any-order one) of a call; no more laws are held at a time.
    """
    documents = [text.document for text, record in zip(texts, records, strict=True) for _ in record.position]
    places, tokens = ([x for record in records for x in getattr(record, name)] for name in ("position", "token"))
    token_R, uniform_R = torch.tensor(tokens, dtype=torch.long), uniforms(seed, documents, places, _SPREAD)
    found, start = [Replayed(*[np.empty(0)] * 4)], 0
    for logits_RV in _laws(model, texts, records, batch_size):
        rows = slice(start, start + len(logits_RV))
        found.append(against(logits_RV, token_R[rows], torch.from_numpy(uniform_R[rows])))
        start += len(logits_RV)
    ends = np.cumsum([len(record.position) for record in records])[:-1]
    columns = (np.split(np.concatenate(column), ends) for column in zip(*map(_columns, found), strict=True))
    return [Replayed(*row) for row in zip(*columns, strict=True)]


def _columns(one: Replayed) -> tuple[Array, Array, Array, Array]:
    return one.u_R, one.logp_R, one.entropy_R, one.variance_R


def against(logits_RV: Tensor, token_R: Tensor, uniform_R: Tensor) -> Replayed:
    """Tokens against laws. uniform_R: numbers that spread a token's own mass."""
    logp_RV = logits_RV.double().cpu().log_softmax(-1)
    p_RV = logp_RV.exp()
    own_R1 = p_RV.gather(-1, token_R[:, None])
    above_R = torch.where(p_RV > own_R1, p_RV, 0).sum(-1)
    level_R = torch.where(p_RV == own_R1, p_RV, 0).sum(-1)
    finite_RV = torch.where(p_RV > 0, logp_RV, 0)
    entropy_R = -(p_RV * finite_RV).sum(-1)
    variance_R = ((p_RV * finite_RV.square()).sum(-1) - entropy_R.square()).clamp(min=0)
    logp_R = logp_RV.gather(-1, token_R[:, None])[:, 0]
    u_R = (above_R + uniform_R * level_R).clamp(0, 1)
    return Replayed(u_R.numpy(), logp_R.numpy(), entropy_R.numpy(), variance_R.numpy())


def _laws(model: Model, texts: Sequence[Text], records: Sequence[Reveals], batch_size: int) -> Iterator[Tensor]:
    """Logits [R, V] of the reveals of all texts, one text after the other, each given those before it."""
    if isinstance(model, AnySubsetLM):
        for start in range(0, len(texts), batch_size):
            some = list(zip(texts, records, strict=True))[start : start + batch_size]
            jobs = [Gapped(text.document, list(text.ids), tuple(record.position)) for text, record in some]
            counts = [len(record.position) for _, record in some]
            laws_BRV = model.judge(jobs, [record.token for _, record in some], counts, [0] * len(jobs))
            yield from (laws_RV[:count] for laws_RV, count in zip(laws_BRV, counts, strict=True))
        return
    states = [state for text, record in zip(texts, records, strict=True) for state in _states(model, text, record)]
    for start in range(0, len(states), batch_size):
        group = states[start : start + batch_size]
        yield torch.cat(list(model.logits([ids for ids, _ in group], [[place] for _, place in group])))


def _states(model: Model, text: Text, record: Reveals) -> list[tuple[list[int], int]]:
    """The canvas as it stood before each reveal, and the reveal's place."""
    ids, states, edits = list(text.ids), list[tuple[list[int], int]](), list(record.edits)
    for place, token, call in zip(record.position, record.token, record.call, strict=True):
        while edits and edits[0][0] < call:
            length = text.start + edits.pop(0)[1]
            ids = ids[:length] + [model.mask_id] * (length - len(ids))
        states.append((list(ids), place))
        ids[place] = token
    return states


@dataclass(frozen=True)
class Fidelity:
    """What the reveals of many texts say.

    distance: largest gap between the distribution of u and the uniform one (Kolmogorov–Smirnov). p_uniform: how often
    samples of the model are that far. excess_nats: by how much a token is likelier than a sample's, per token; positive:
    too likely, the texts vary too little. p_excess: how often samples of the model are that far from 0. error_nats: the
    excess's standard error for samples of the model; what is far smaller goes unseen.
    """

    reveals: int
    distance: float
    p_uniform: float
    excess_nats: float
    p_excess: float
    error_nats: float

    def holds(self, level: float) -> bool:
        """Whether the texts pass as samples of the model; level: how often samples would fail."""
        return min(1.0, 2 * min(self.p_uniform, self.p_excess)) >= level

    def seen_from(self, level: float) -> float:
        """The excess, in nats per token, from which on these reveals would not pass at the level, half the time."""
        from scipy import stats

        return float(stats.norm.isf(level / 4)) * self.error_nats


def fidelity(u_R: Array, logp_R: Array, entropy_R: Array, variance_R: Array) -> Fidelity:
    """The two tests over all reveals. Raises ValueError without any."""
    from scipy import stats

    if not len(u_R):
        raise ValueError("no position was filled: there is nothing to test")
    uniform = stats.kstest(u_R, "uniform")
    gap_R = np.where(np.isfinite(logp_R), logp_R + entropy_R, -np.inf)
    excess, spread = float(gap_R.mean()), math.sqrt(float(variance_R.sum()))
    total = float(gap_R.sum())
    score = 0.0 if total == 0 else math.inf if spread == 0 else abs(total) / spread
    p_excess, error = float(2 * stats.norm.sf(score)), spread / len(u_R)
    return Fidelity(len(u_R), float(uniform.statistic), float(uniform.pvalue), excess, p_excess, error)
