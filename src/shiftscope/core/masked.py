"""Fill the hidden positions of texts with a masked model: reveal orders, confidence rules, how many per call, and the loop.

A decoder is made of parts that do not know each other: what a call computes and which positions it may fill
(core/denoising/scope.py), in which order and how many are filled (`Filling`, here), and how long a text becomes
(core/denoising/length.py).
The state is the canvas alone, never a step counter: the loop ends when nothing is hidden before the end of the text.

Source: orders and rules as in arXiv 2502.09992 (LLaDA), arXiv 2508.15487 (Dream), arXiv 2505.22618 (threshold and factor),
arXiv 2505.24857 (entropy bound). Deviation: confidence is a statistic of the law, not of the drawn token, unless order is
sampled: choosing positions by the value that was drawn is a selection bias, and collapses the entropy.
"""

# B texts, K hidden places of a text, N places filled, V vocabulary

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from shiftscope.core.decode import check_drawing, choose
from shiftscope.core.denoising.masked_model import MaskedLM
from shiftscope.core.denoising.reveals import Reveals
from shiftscope.core.denoising.scope import Scope, Sight, View
from shiftscope.core.divergence import entropy_nats, truncate_top_p
from shiftscope.core.randomness import uniforms

Order = Literal["max_prob", "margin", "entropy", "left_to_right", "random", "sampled"]
_DRAWS, _ORDERS, _REDRAWS = 0, 1, 2  # streams of random numbers


@dataclass(frozen=True)
class Filling:
    """Which of the allowed positions a call fills, and with what.

    order: which come first: by the law's largest probability (max_prob), the gap of its two largest (margin), its entropy
    (least first), left_to_right, random, or the probability of the drawn token (sampled: what LLaDA calls low-confidence
    remasking; it changes the law of the text). per_call: positions filled by a call. threshold: instead, all whose largest
    probability is at least this, one at least. factor: instead, the most confident r with (r + 1)(1 - p_r) below it.
    entropy_bound: instead, the least uncertain whose entropies without the largest add up to at most this, in nats.
    temperature: 0 is greedy. top_p: mass of the nucleus kept. seed: of the draws.
    """

    order: Order = "max_prob"
    per_call: int = 1
    threshold: float | None = None
    factor: float | None = None
    entropy_bound: float | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_drawing(self.temperature, self.top_p)
        if self.per_call < 1:
            raise ValueError(f"per_call is {self.per_call}: a call fills at least one position")
        rules = [self.threshold, self.factor, self.entropy_bound]
        if sum(rule is not None for rule in rules) + (self.per_call > 1) > 1:
            raise ValueError(
                "per_call, threshold, factor and entropy_bound each say how many to fill: give one of them"
            )
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise ValueError(f"threshold is {self.threshold}: a probability in (0, 1] is needed")
        if (self.factor is not None and self.factor <= 0) or (
            self.entropy_bound is not None and self.entropy_bound < 0
        ):
            raise ValueError(
                f"factor {self.factor} and entropy_bound {self.entropy_bound}: need factor > 0 and entropy_bound >= 0"
            )

    @property
    def one_by_one(self) -> bool:
        """Whether every call fills exactly one position."""
        return self.per_call == 1 and self.threshold is None and self.factor is None and self.entropy_bound is None


@dataclass
class Canvas:
    """A text being filled. ids: mask_id where hidden. start: where the written part begins. document: keys its randomness.

    dropped: positions behind the text's end that were cut off when it stopped.
    """

    document: int
    ids: list[int]
    start: int
    mask_id: int
    stopped: Literal["", "filled", "end"] = ""
    dropped: int = 0
    record: Reveals = field(default_factory=Reveals)

    @property
    def hidden(self) -> list[int]:
        """The places that are still hidden, ascending."""
        return [place for place, token in enumerate(self.ids) if token == self.mask_id]

    def settle(self, end_ids: Sequence[int], early: bool) -> None:
        """Stop where nothing is hidden; with early, also after the first end that nothing hidden precedes (cut there)."""
        first_hidden = next(iter(self.hidden), len(self.ids))
        ends = [place for place in range(self.start, first_hidden) if self.ids[place] in end_ids] if early else []
        if ends:
            self.dropped = len(self.ids) - ends[0] - 1
            del self.ids[ends[0] + 1 :]
            self.stopped = "end"
        elif first_hidden == len(self.ids):
            self.stopped = "filled"


Adjust = Callable[[Canvas, Sequence[int], Tensor], None]


def prompted(model: MaskedLM, prompt: Sequence[int], room: int, document: int) -> Canvas:
    """A prompt and so many hidden positions after it. Raises ValueError where the model cannot read that much."""
    limit = model.context_length
    if room < 1 or (limit is not None and len(prompt) + room > limit):
        raise ValueError(
            f"a prompt of {len(prompt)} tokens and {room} hidden ones do not fit into {model.name}, which reads at most "
            f"{limit}: shorten the prompt or lower --max-new-tokens"
        )
    return Canvas(document, [*prompt, *[model.mask_id] * room], len(prompt), model.mask_id)


def decode(
    model: MaskedLM,
    canvases: Sequence[Canvas],
    filling: Filling = Filling(),
    scope: Scope = Scope(),
    *,
    adjust: Adjust | None = None,
    early_stop: bool = True,
    watch: Callable[[Canvas], None] | None = None,
) -> None:
    """Fill the canvases in place until each stops. A text does not depend on how many are filled together.

    adjust: called after every call that gives the laws of all hidden places in sight, with the places that were hidden
    before it and their logits, to lengthen or shorten the canvas. early_stop: end a text at its first end that nothing
    hidden precedes.
    watch: called with each canvas after each of its calls.
    """
    sights = {id(canvas): Sight(scope) for canvas in canvases}
    alive = [canvas for canvas in canvases if not canvas.stopped]
    for canvas in alive:
        canvas.settle(model.end_ids, early_stop)
    while alive := [canvas for canvas in alive if not canvas.stopped]:
        views = [sights[id(canvas)].look(canvas.ids, canvas.hidden, canvas.start, model.shift) for canvas in alive]
        if scope.method == "window":
            logits = [model.logits([v.ids], [v.wanted], positions=[v.places], window=v.window)[0] for v in views]
        else:
            logits = model.logits([view.ids for view in views], [view.wanted for view in views])
        for canvas, view in zip(alive, views, strict=True):
            canvas.record.spend(len(view.ids), view.pairs, refresh=view.fresh and scope.method == "window")
        allowed = [_rows(logits_KV, view) for logits_KV, view in zip(logits, views, strict=True)]
        filled = fill(alive, [view.allowed for view in views], allowed, filling)
        for canvas, view, logits_KV, places in zip(alive, views, logits, filled, strict=True):
            sights[id(canvas)].filled(places)
            if adjust is not None and view.whole:
                adjust(canvas, view.wanted, logits_KV)
                sights[id(canvas)].cut(len(canvas.ids))
            canvas.settle(model.end_ids, early_stop)
            if watch is not None:
                watch(canvas)


def _rows(logits_KV: Tensor, view: View) -> Tensor:
    """The laws of the places that may be filled, of the laws that were asked for."""
    if len(view.allowed) == len(view.wanted):
        return logits_KV
    seat = {place: row for row, place in enumerate(view.wanted)}
    return logits_KV[[seat[place] for place in view.allowed]]


def fill(
    canvases: Sequence[Canvas], places: Sequence[Sequence[int]], logits: Sequence[Tensor], filling: Filling
) -> list[list[int]]:
    """The posterior step: fill some of the allowed places of every text by their laws, and record it.

    places: the allowed places of each text, at least one. logits: [places, V] of each. Returns the places filled.
    """
    logits_BKV, real_BK = pad_sequence(list(logits), batch_first=True), _real([len(row) for row in places])
    places_BK = pad_sequence([torch.as_tensor(row) for row in places], batch_first=True)
    documents_B1 = np.array([[canvas.document] for canvas in canvases])
    redrawn = filling.order == "sampled"  # every place is drawn in every call, and most draws are thrown away
    stream_B1 = np.array([[_REDRAWS + canvas.record.calls if redrawn else _DRAWS] for canvas in canvases])
    uniform_BK = torch.from_numpy(uniforms(filling.seed, documents_B1, places_BK.numpy(), stream_B1))
    logp_BKV = logits_BKV.log_softmax(-1)
    drawn_BK = None
    if redrawn:
        flat_N = choose(logits_BKV.flatten(0, 1), uniform_BK.flatten(), filling.temperature, filling.top_p)
        drawn_BK = flat_N.view(real_BK.shape).cpu()
    score_BK = confidence(logp_BKV, filling, places_BK, documents_B1, drawn_BK).masked_fill(~real_BK, -torch.inf)
    chosen_BK = select(logp_BKV, score_BK, real_BK, filling)
    logits_NV = logits_BKV[chosen_BK]
    if drawn_BK is None:
        tokens_N = choose(logits_NV, uniform_BK[chosen_BK], filling.temperature, filling.top_p).cpu()
    else:
        tokens_N = drawn_BK[chosen_BK]
    logp_N = tempered(logits_NV, filling).gather(-1, tokens_N[:, None].to(logits_NV.device))[:, 0].cpu()
    rows_N, place_N = chosen_BK.nonzero()[:, 0], places_BK[chosen_BK]
    filled: list[list[int]] = [[] for _ in canvases]
    for row, place, token, logp in zip(
        rows_N.tolist(), place_N.tolist(), tokens_N.tolist(), logp_N.tolist(), strict=True
    ):
        canvases[row].ids[place] = token
        canvases[row].record.add(place, token, logp)
        filled[row].append(place)
    return filled


def tempered(logits_NV: Tensor, filling: Filling) -> Tensor:
    """The laws that tokens are drawn from, as log-probabilities in float64; at temperature 0 the model's own."""
    temperature = filling.temperature or 1.0
    logp_NV = (logits_NV.double() / temperature).log_softmax(-1)
    return truncate_top_p(logp_NV, filling.top_p) if filling.top_p < 1 and filling.temperature else logp_NV


def confidence(
    logp_BKV: Tensor,
    filling: Filling,
    places_BK: Tensor,
    documents_B1: NDArray[np.int64],
    drawn_BK: Tensor | None = None,
) -> Tensor:
    """How early each place is filled, the largest first. [B, K] on the CPU. drawn_BK: the drawn ids, for order sampled."""
    if filling.order == "left_to_right":
        return -places_BK.double()
    if filling.order == "random":  # a permutation fixed in advance, whatever is written
        return torch.from_numpy(uniforms(filling.seed, documents_B1, places_BK.numpy(), _ORDERS))
    if filling.order == "entropy":
        return -entropy_nats(logp_BKV).cpu()
    if filling.order == "margin":
        best_BK2 = logp_BKV.topk(2, -1).values.exp()
        return (best_BK2[..., 0] - best_BK2[..., 1]).cpu()
    if filling.order == "sampled":
        assert drawn_BK is not None
        return logp_BKV.gather(-1, drawn_BK[..., None].to(logp_BKV.device))[..., 0].exp().cpu()
    return logp_BKV.amax(-1).exp().cpu()


def select(logp_BKV: Tensor, score_BK: Tensor, real_BK: Tensor, filling: Filling) -> Tensor:
    """Which places to fill, the largest score first; ties go to the left. At least one of each text. [B, K] bool.

    score_BK: -inf where real_BK is False, the padding of texts with fewer places.
    """
    ranked_BK = torch.argsort(score_BK, descending=True, stable=True)
    rank_BK = torch.arange(score_BK.shape[1]).expand_as(score_BK)
    if filling.entropy_bound is not None:
        entropy_BK = entropy_nats(logp_BKV).cpu().gather(1, ranked_BK)
        taken_BK = entropy_BK.cumsum(1) - entropy_BK.cummax(1).values <= filling.entropy_bound
    elif filling.threshold is not None or filling.factor is not None:
        sure_BK = score_BK if filling.order == "sampled" else logp_BKV.amax(-1).exp().cpu()
        p_BK = sure_BK.gather(1, ranked_BK)
        if filling.threshold is not None:
            taken_BK = p_BK >= filling.threshold
        else:
            assert filling.factor is not None
            holds_BK = ((rank_BK + 2) * (1 - p_BK) < filling.factor) & real_BK.gather(1, ranked_BK)
            taken_BK = rank_BK < (holds_BK * (rank_BK + 1)).amax(1, keepdim=True)
    else:
        taken_BK = rank_BK < filling.per_call
    taken_BK = taken_BK | (rank_BK == 0)
    return torch.zeros_like(real_BK).scatter(1, ranked_BK, taken_BK) & real_BK


def _real(counts: Sequence[int]) -> Tensor:
    return torch.arange(max(counts))[None] < torch.tensor(counts)[:, None]
