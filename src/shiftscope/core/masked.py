"""Fill the hidden positions of texts with a masked model: reveal orders, confidence rules, how many per call, and the loop.

A decoder is made of parts that do not know each other: what a call computes and which positions it may fill
(core/scope.py), in which order and how many are filled (`Filling`, here), and how long a text becomes (core/length.py).
The state is the canvas alone, never a step counter: the loop ends when nothing is hidden before the end of the text.

Source: orders and rules as in arXiv 2502.09992 (LLaDA), arXiv 2508.15487 (Dream), arXiv 2505.22618 (threshold and factor),
arXiv 2505.24857 (entropy bound). Deviation: confidence is a statistic of the law, not of the drawn token, unless order is
sampled: choosing positions by the value that was drawn is a selection bias, and collapses the entropy.
"""

# K hidden positions of one text, V vocabulary

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from shiftscope.core.decode import choose
from shiftscope.core.divergence import entropy_nats, truncate_top_p
from shiftscope.core.masked_model import MaskedLM
from shiftscope.core.randomness import uniforms
from shiftscope.core.reveals import Reveals
from shiftscope.core.scope import Scope, Sight

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
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                f"temperature {self.temperature} and top_p {self.top_p}: need temperature >= 0 and 0 < top_p <= 1"
            )
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
    """A text being filled. ids: mask_id where hidden. start: where the written part begins. document: keys its randomness."""

    document: int
    ids: list[int]
    start: int
    mask_id: int
    stopped: Literal["", "filled", "end"] = ""
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

    adjust: called after every call that saw all that a text may still need, with the places that were hidden before it and
    their logits, to lengthen or shorten the canvas. early_stop: end a text at its first end that nothing hidden precedes.
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
        for canvas, view, logits_KV in zip(alive, views, logits, strict=True):
            canvas.record.spend(len(view.ids), view.pairs, refresh=view.fresh and scope.method == "window")
            allowed = [view.wanted.index(place) for place in view.allowed]
            filled = fill(canvas, view.allowed, logits_KV[allowed], filling)
            sights[id(canvas)].filled(filled)
            if adjust is not None and view.fresh:
                adjust(canvas, view.wanted, logits_KV)
                sights[id(canvas)].cut(len(canvas.ids))
            canvas.settle(model.end_ids, early_stop)
            if watch is not None:
                watch(canvas)


def fill(canvas: Canvas, places: Sequence[int], logits_KV: Tensor, filling: Filling) -> list[int]:
    """The posterior step: fill some of the allowed places by their laws, and record it. Returns the places filled."""
    logp_KV = logits_KV.double().log_softmax(-1)
    redrawn = filling.order == "sampled"  # every position is drawn in every call, and most draws are thrown away
    stream = _REDRAWS + canvas.record.calls if redrawn else _DRAWS
    uniform_K = torch.from_numpy(uniforms(filling.seed, [canvas.document] * len(places), list(places), stream))
    drawn_K = choose(logits_KV, uniform_K, filling.temperature, filling.top_p) if redrawn else None
    score_K = confidence(logp_KV, filling.order, places, drawn_K, filling.seed, canvas.document)
    chosen = select(logp_KV, score_K, filling)
    if drawn_K is None:
        tokens = choose(logits_KV[chosen], uniform_K[chosen], filling.temperature, filling.top_p)
    else:
        tokens = drawn_K[chosen]
    drawn_from_NV = tempered(logp_KV[chosen], filling)
    for row, (index, token) in enumerate(zip(chosen, tokens.tolist(), strict=True)):
        canvas.ids[places[index]] = token
        canvas.record.add(places[index], token, float(drawn_from_NV[row, token]))
    return [places[index] for index in chosen]


def tempered(logp_KV: Tensor, filling: Filling) -> Tensor:
    """The law that tokens are drawn from, as log-probabilities; at temperature 0 the model's own."""
    if filling.temperature not in (0, 1):
        logp_KV = (logp_KV / filling.temperature).log_softmax(-1)
    return truncate_top_p(logp_KV, filling.top_p) if filling.top_p < 1 and filling.temperature else logp_KV


def confidence(
    logp_KV: Tensor, order: Order, places: Sequence[int], drawn_K: Tensor | None, seed: int, document: int
) -> Tensor:
    """How early each place is filled, the largest first. [K] float64. drawn_K: the drawn ids, for order sampled only."""
    if order == "left_to_right":
        return -torch.tensor(places, dtype=torch.float64)
    if order == "random":  # a permutation fixed in advance, whatever is written
        return torch.from_numpy(uniforms(seed, [document] * len(places), list(places), _ORDERS))
    if order == "entropy":
        return -entropy_nats(logp_KV)
    if order == "margin":
        best_K2 = logp_KV.exp().topk(2, -1).values
        return best_K2[:, 0] - best_K2[:, 1]
    if order == "sampled":
        assert drawn_K is not None
        return logp_KV.gather(-1, drawn_K[:, None].to(logp_KV.device))[:, 0].exp()
    return logp_KV.amax(-1).exp()


def select(logp_KV: Tensor, score_K: Tensor, filling: Filling) -> list[int]:
    """Rows to fill, the largest score first; ties go to the leftmost. At least one."""
    ranked_K = torch.argsort(score_K, descending=True, stable=True).to(logp_KV.device)
    if filling.one_by_one or filling.per_call > 1:
        count = filling.per_call
    elif filling.entropy_bound is not None:
        entropy_K = entropy_nats(logp_KV)[ranked_K]
        count = int((entropy_K.cumsum(0) - entropy_K.cummax(0).values <= filling.entropy_bound).sum())
    else:
        p_K = score_K.to(ranked_K.device)[ranked_K] if filling.order == "sampled" else logp_KV.amax(-1).exp()[ranked_K]
        if filling.threshold is not None:
            return ranked_K[p_K >= filling.threshold].tolist() or ranked_K[:1].tolist()
        assert filling.factor is not None
        rank_K = torch.arange(2, len(p_K) + 2, device=p_K.device)
        inside_K = (rank_K * (1 - p_K)) < filling.factor
        count = int(inside_K.nonzero().max()) + 1 if inside_K.any() else 1
    return ranked_K[: max(count, 1)].tolist()
