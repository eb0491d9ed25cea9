"""Any-subset speculative decoding: draft several hidden tokens at once, keep those that the joint law would have drawn.

A round drafts the next k positions of a fixed order, judges them by the laws that each has given the drafts before it,
keeps them up to the first refusal and draws that one anew from what the draft lacked. Every text has the joint law of
the network, whatever the draft is; a better draft only means fewer calls. With the network as its own draft the first
position is always kept, so that no text takes more calls than it has hidden tokens.

Source: arXiv 2504.20456 (rounds, both drafts, the bound); acceptance rule: arXiv 2211.17192. Deviations: laws without the
mask token are renormalised before they are compared (else the sample is biased); a round whose drafts were all kept adds
one token more from the judging call (`bonus`); laws drafted beyond a refusal serve later rounds, which then cost one call
(`ahead`); an n-gram draft without a left neighbour takes unigrams, not another call.
"""

# B texts, K positions of a round, V vocabulary

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from shiftscope.core.decode import check_drawing, choose, shaped
from shiftscope.core.denoising.gapped import Gapped, Network, Round
from shiftscope.core.denoising.ngram_draft import NGrams
from shiftscope.core.randomness import uniforms
from shiftscope.core.settings import unread

DRAW, ACCEPT, REDRAW = 0, 1, 2  # streams of random numbers
Method = Literal["assd", "sequential", "independent"]
Draft = Literal["self", "ngram"]


@dataclass(frozen=True)
class Speculation:
    """How hidden positions are filled.

    method: assd drafts and judges; sequential takes a call per token; independent keeps every draft unjudged (another law).
    draft: self (the network, one call a round) or ngram (bigrams of the text's known tokens, no call). k: positions
    drafted in a round, and filled by a call of independent. bonus: a round whose drafts are all kept adds one token more.
    ahead: positions whose laws a call of draft self gives; the unused ones draft later rounds without a call (0: no, as
    published).
    temperature: 0 is greedy. top_p: mass of the nucleus kept, of draft and judge alike. seed: of the draws.
    """

    method: Method = "assd"
    draft: Draft = "self"
    k: int = 5
    bonus: bool = True
    ahead: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_drawing(self.temperature, self.top_p)
        if self.k < 1 or self.ahead < 0:
            raise ValueError(
                f"k is {self.k} and ahead {self.ahead}: a round drafts at least one position, ahead is 0 or more"
            )
        if self.method == "sequential":
            unread(self, type(self), "--method assd or independent", "k")
        if self.method != "assd":
            unread(self, type(self), "--method assd", "bonus")
        if self.draft == "ngram":
            unread(self, type(self), "--draft self", "ahead")
        if self.method != "assd" and self.draft == "ngram":
            raise ValueError(f"method {self.method} writes what the network draws: draft ngram is for method assd only")
        if self.method == "assd" and self.draft == "self" and self.k < 2:
            raise ValueError(
                "k is 1: a round of two calls would be sure of one token only, so no call could be saved; give --k 2 or more, "
                "or --method sequential"
            )

    @property
    def preserves(self) -> Literal["exact", "no"]:
        """exact where a text has the network's joint law along its order, else no; `law` says it in words."""
        return "exact" if self._follows and self.temperature == 1 and self.top_p == 1 else "no"

    @property
    def law(self) -> str:
        """What law the texts have, in a sentence."""
        if not self._follows:
            return (
                f"The law is not the model's: {self.k} positions of a call are drawn as if they did not depend on each other; "
                f"use method assd."
            )
        if self.temperature == 0:
            return "Greedy: each text is what position by position would write; nothing is drawn."
        if self.preserves == "exact":
            return (
                "The law is exact: each text is a sample of the model's joint law of the hidden tokens given the rest."
            )
        return (
            f"The law is exactly that of drawing position by position with temperature {self.temperature:g} and top_p "
            f"{self.top_p:g}, which shape every conditional law, not the joint one."
        )

    @property
    def _follows(self) -> bool:
        """Whether the texts have the law of drawing position by position with the same settings."""
        return self.method != "independent" or self.k == 1


# ---- the rule -------------------------------------------------------------------------------------------------------
def law(logits_BV: Tensor, temperature: float = 1.0, top_p: float = 1.0) -> Tensor:
    """Log-probabilities, float64, of the law that is drawn from; temperature 0 puts all mass on the best token."""
    if temperature == 0:
        best_B1 = logits_BV.argmax(-1, keepdim=True)
        return torch.full_like(logits_BV, -torch.inf, dtype=torch.float64).scatter(-1, best_B1, 0.0)
    return shaped(logits_BV, temperature, top_p)


def accepted(logp_B: Tensor, logq_B: Tensor, uniform_B: Tensor) -> Tensor:
    """Whether a token drawn from q is kept as one of p: with probability min(1, p/q) of the token. Bool.

    logp_B, logq_B: of the drawn token, in nats. Source: arXiv 2211.17192, section 2.3.
    """
    return uniform_B.log() < logp_B - logq_B


def residual(logp_BV: Tensor, logq_BV: Tensor) -> Tensor:
    """Log of (p − q)⁺, normalised: the law of the token that replaces a refused draft; p itself where p = q.

    Kept drafts and replacements together have the law p. Source: arXiv 2211.17192, section 2.3.
    """
    lack_BV = (logp_BV.exp() - logq_BV.exp()).clamp(min=0)
    total_B1 = lack_BV.sum(-1, keepdim=True)
    return torch.where(total_B1 > 0, (lack_BV / total_B1).log(), logp_BV)


# ---- the rounds -----------------------------------------------------------------------------------------------------
def fill(network: Network, texts: Sequence[Gapped], how: Speculation = Speculation()) -> None:
    """Fill all hidden positions of the texts, in place. What is written does not depend on how texts are batched.

    Raises ValueError for the n-gram draft of an order that does not ascend: it needs the left neighbour of each position.
    """
    for text in texts:
        if how.method == "assd" and how.draft == "ngram" and list(text.order) != sorted(text.order):
            raise ValueError(
                f"document {text.document} is decoded in an order that does not ascend: the n-gram draft needs the left "
                f"neighbour of every position; use draft self"
            )
    draft: _Drafter = _NGramDraft(network.vocabulary_size, how) if how.draft == "ngram" else _OwnDraft(network, how)
    alive = [text for text in texts if text.left]
    while alive:
        if how.method == "assd":
            _speculate(network, alive, draft(alive), how)
        else:
            _unjudged(network, alive, how)
        alive = [text for text in alive if text.left]


@dataclass(frozen=True)
class _Drafted:
    """What was drafted: ids [B, K], their laws [B, K, V], how many of them count in each text, and in which texts the first
    one was drawn from the judge's own law."""

    token_BK: Tensor
    logq_BKV: Tensor
    counts: Sequence[int]
    sure: Sequence[bool]

    def of(self, rows: Sequence[int]) -> _Drafted:
        counts, sure = [self.counts[row] for row in rows], [self.sure[row] for row in rows]
        return _Drafted(self.token_BK[rows], self.logq_BKV[rows], counts, sure)


_Drafter = Callable[[Sequence[Gapped]], _Drafted]


def _unjudged(network: Network, texts: Sequence[Gapped], how: Speculation) -> None:
    """One call whose drafts are all written."""
    counts = [min(1 if how.method == "sequential" else how.k, text.left) for text in texts]
    logq_BKV = law(network.draft(texts, counts), how.temperature, how.top_p)
    for text, token_K, logq_KV, count in zip(texts, _drawn(texts, logq_BKV, how), logq_BKV, counts, strict=True):
        _write(text, token_K[:count].tolist(), logq_KV)


def _speculate(network: Network, texts: Sequence[Gapped], drafted: _Drafted, how: Speculation) -> None:
    """One round of every text: judge, keep up to the first refusal, and one token more."""
    judged = [row for row, text in enumerate(texts) if text.left > 1 or not drafted.sure[row]]
    for row in sorted(set(range(len(texts))) - set(judged)):  # a last token that has the judge's law already
        _write(texts[row], drafted.token_BK[row, :1].tolist(), drafted.logq_BKV[row])
        texts[row].rounds.append(Round(1, 1, 1))
    if not judged:
        return
    texts, drafted = [texts[row] for row in judged], drafted.of(judged)
    asked = [min(count + how.bonus, text.left) for count, text in zip(drafted.counts, texts, strict=True)]
    tokens = [row[:count] for row, count in zip(drafted.token_BK.tolist(), drafted.counts, strict=True)]
    judgement_BKV = law(network.judge(texts, tokens, asked, list(map(int, drafted.sure))), how.temperature, how.top_p)
    logp_BKV = torch.zeros(len(texts), max(asked), judgement_BKV.shape[-1], dtype=torch.float64)
    for row, sure in enumerate(drafted.sure):
        logp_BKV[row, 0] = drafted.logq_BKV[row, 0]
        logp_BKV[row, int(sure) : asked[row]] = judgement_BKV[row, : asked[row] - sure]
    kept_B, last_B = _settled(texts, drafted, logp_BKV, asked, how)
    for row, text in enumerate(texts):
        kept = int(kept_B[row])
        written = [*tokens[row][:kept], int(last_B[row])][: asked[row]]
        _write(text, written, logp_BKV[row])
        text.rounds.append(Round(drafted.counts[row], kept, len(written)))


def _settled(
    texts: Sequence[Gapped], drafted: _Drafted, logp_BKV: Tensor, asked: Sequence[int], how: Speculation
) -> tuple[Tensor, Tensor]:
    """How many drafts are kept [B], and the token after them [B]: drawn anew, or added where nothing was refused."""
    count_B, rows, K = torch.tensor(drafted.counts), torch.arange(len(texts)), drafted.token_BK.shape[1]
    logp_BK, logq_BK = (
        laws_BKV[:, :K].gather(-1, drafted.token_BK[..., None])[..., 0] for laws_BKV in (logp_BKV, drafted.logq_BKV)
    )
    kept_BK = accepted(logp_BK, logq_BK, _uniforms(texts, K, ACCEPT, how.seed))
    kept_BK[:, 0] |= torch.tensor(drafted.sure)
    kept_B = (kept_BK & (torch.arange(K) < count_B[:, None])).long().cumprod(-1).sum(-1)
    place_B, refused_B = torch.minimum(kept_B, torch.tensor(asked) - 1), kept_B < count_B
    logp_BV, logq_BV = logp_BKV[rows, place_B], drafted.logq_BKV[rows, place_B.clamp(max=K - 1)]
    anew_B, added_B = (_uniforms(texts, max(asked), stream, how.seed)[rows, place_B] for stream in (REDRAW, DRAW))
    last_BV = torch.where(refused_B[:, None], residual(logp_BV, logq_BV), logp_BV)
    return kept_B, choose(last_BV, torch.where(refused_B, anew_B, added_B), 1.0)


def _write(text: Gapped, tokens: Sequence[int], logp_KV: Tensor) -> None:
    for token, logp_V in zip(tokens, logp_KV, strict=False):
        text.write(token, float(logp_V[token]))


class _OwnDraft:
    """The network's own draft: each position drawn by itself, given what was known when its law was worked out.

    A call gives the laws of the next positions, up to `ahead`; the next call is due when they are used up.
    """

    def __init__(self, network: Network, how: Speculation) -> None:
        self.network, self.how = network, how
        self.laws: dict[int, tuple[int, Tensor]] = {}  # of each text: how much of it was known, laws from there on

    def __call__(self, texts: Sequence[Gapped]) -> _Drafted:
        sure = [not len(self._laws(text)) for text in texts]
        due = [text for text, none in zip(texts, sure, strict=True) if none]
        if due:
            counts = [min(max(self.how.k, self.how.ahead), text.left) for text in due]
            logq_BKV = law(self.network.draft(due, counts), self.how.temperature, self.how.top_p)
            for text, logq_KV, count in zip(due, logq_BKV, counts, strict=True):
                self.laws[id(text)] = text.known, logq_KV[:count]
        logq = [self._laws(text)[: self.how.k] for text in texts]
        if not self.how.ahead:
            self.laws.clear()
        logq_BKV = pad_sequence(logq, batch_first=True)
        return _Drafted(_drawn(texts, logq_BKV, self.how), logq_BKV, list(map(len, logq)), sure)

    def _laws(self, text: Gapped) -> Tensor:
        """The laws that are there for the next positions, maybe none."""
        known, logq_KV = self.laws.get(id(text), (text.known, torch.zeros(0, 0)))
        return logq_KV[text.known - known :]


class _NGramDraft:
    """A draft from left to right by each text's own bigrams: an auxiliary call."""

    def __init__(self, vocabulary_size: int, how: Speculation) -> None:
        self.vocabulary_size, self.how = vocabulary_size, how

    def __call__(self, texts: Sequence[Gapped]) -> _Drafted:
        counts = [min(self.how.k, text.left) for text in texts]
        uniform_BK = _uniforms(texts, max(counts), DRAW, self.how.seed)
        stores = [NGrams(text) for text in texts]
        laws, drawn = list[Tensor](), list[Tensor]()
        for j in range(max(counts)):
            laws.append(torch.stack([store.law(j, self.vocabulary_size) for store in stores]))
            drawn.append(choose(laws[-1], uniform_BK[:, j], 1.0))
            for store, token in zip(stores, drawn[-1].tolist(), strict=True):
                store.drafted.append(token)
        for text in texts:
            text.record.auxiliary += 1
        return _Drafted(torch.stack(drawn, 1), torch.stack(laws, 1), counts, [False] * len(texts))


def _drawn(texts: Sequence[Gapped], logq_BKV: Tensor, how: Speculation) -> Tensor:
    """A token [B, K] of each law, each drawn by itself."""
    uniform_BK = _uniforms(texts, logq_BKV.shape[1], DRAW, how.seed)
    return choose(logq_BKV.flatten(0, 1), uniform_BK.flatten(), 1.0).view_as(uniform_BK)


def _uniforms(texts: Sequence[Gapped], count: int, stream: int, seed: int) -> Tensor:
    """A random number for each of the next positions [B, count], keyed by document and position."""
    places = [[*text.ahead(count), *[0] * (count - len(text.ahead(count)))] for text in texts]
    return torch.from_numpy(uniforms(seed, [[text.document] for text in texts], places, stream))
