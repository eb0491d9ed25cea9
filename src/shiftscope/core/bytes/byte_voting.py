"""Models with different vocabularies vote on the next byte: the mixture of their exact byte laws, drawn from and scored.

Source: arXiv 2410.09303 (ensembles of byte-level laws of models with different vocabularies).
Deviation: laws are mixed given that the text goes on canonically. A model that gives a drawn byte no probability leaves the
rest of that answer, and the other weights grow in proportion.
"""

# O outcomes: 256 bytes and the end; M models, N outcomes of an answer

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from shiftscope.core.answers import Loading
from shiftscope.core.bytes import byte_law
from shiftscope.core.bytes.byte_drawing import Drawing, ending
from shiftscope.core.bytes.byte_law import END, ByteLaw, Engine, Law
from shiftscope.core.bytes.canonical import Support
from shiftscope.core.bytes.token_tree import Array, TokenTree
from shiftscope.core.checkpoints import Checkpoint, opened
from shiftscope.core.randomness import uniforms


@dataclass(frozen=True)
class Voting(Drawing):
    """How models vote and how bytes are drawn.

    mixture: arithmetic is the weighted mean of the laws, geometric their weighted product, normalised. weights: one per
    model, in proportion (default: equal). temperature: of the mixture; 0 is greedy. samples: answers per prompt.
    max_new_bytes: longest answer. stop: texts that end an answer, left out of it. seed: of the draws.
    """

    mixture: Literal["arithmetic", "geometric"] = "arithmetic"
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mixture not in ("arithmetic", "geometric"):
            raise ValueError(f"mixture is {self.mixture!r}: it must be arithmetic or geometric")
        if self.weights and not (all(0 <= w < math.inf for w in self.weights) and sum(self.weights) > 0):
            raise ValueError(f"weights are {self.weights}: none may be negative or infinite and one must be above 0")

    def shares(self, count: int) -> Array:
        """Weights of `count` models that sum to 1. Raises ValueError for another number of weights."""
        if self.weights and len(self.weights) != count:
            raise ValueError(
                f"{len(self.weights)} weights are given for {count} models: give one for each model, or none"
            )
        weights = np.array(self.weights or [1.0] * count)
        return weights / weights.sum()


def mixed(p_MO: Array, weights_M: Array, mixture: Literal["arithmetic", "geometric"] = "arithmetic") -> Array:
    """The law [O] that models vote for: the weighted mean of their laws, or their weighted product, normalised.

    p_MO: each model's law. weights_M: not negative, in proportion; a model of weight 0 has no say.
    Raises ValueError where no outcome is possible under all models of a product.
    """
    voting = weights_M > 0
    p_MO, weights_M = p_MO[voting], weights_M[voting] / weights_M[voting].sum()
    if mixture == "arithmetic":
        return weights_M @ p_MO
    with np.errstate(divide="ignore"):
        logp_O = weights_M @ np.log(p_MO)
    if not (logp_O > -math.inf).any():
        raise ValueError("no byte is possible under all models: their product is empty; use the arithmetic mixture")
    product_O = np.exp(logp_O - logp_O.max())
    return product_O / product_O.sum()


@dataclass(frozen=True)
class Vote:
    """The law before one byte, p_O [257]: of each byte, then of the end. members: each model's own; None where it left."""

    p_O: Array
    members: tuple[Law | None, ...]

    def kl_nats(self) -> list[float]:
        """KL(model ‖ mixture) of each model, NaN for one that left."""
        return [math.nan if law is None else _kl_nats(_outcomes(law), self.p_O) for law in self.members]


@dataclass(frozen=True)
class Scored:
    """An answer under the mixture and its models: log-probabilities in nats, mean KL(model ‖ mixture) and lost share per byte.

    NaN for a model that left before the end; an empty given answer has the mean of no bytes, NaN too.
    stopped: given, end, stop, length or context.
    """

    answer: bytes
    stopped: str
    logp_nats: float
    logp_models_nats: tuple[float, ...]
    kl_models_nats: tuple[float, ...]
    lost_models: tuple[float, ...]

    @property
    def text(self) -> str:
        """The answer as text; a character that is not whole becomes U+FFFD."""
        return self.answer.decode("utf-8", "replace")


class Ensemble:
    """Causal models with any vocabularies as one exact model of bytes.

    models: paths, hub ids, zoo names or loaded Checkpoints. voting: how they are mixed, with their weights.
    support: canonical (exact over canonical encodings), unmasked (canonical up to the last token) or all.
    Raises ValueError without models, and where their number is not that of the weights.
    """

    def __init__(
        self,
        models: Sequence[str | Checkpoint],
        *,
        voting: Voting = Voting(),
        support: Support = "canonical",
        loading: Loading = Loading(),
    ) -> None:
        if not models:
            raise ValueError("an ensemble of no models: name at least one")
        self.voting, self.weights_M = voting, voting.shares(len(models))
        known: dict[str | int, tuple[Checkpoint, Engine]] = {}
        for model in models:
            key = model if isinstance(model, str) else id(model)
            if key not in known:  # the same model twice is loaded once
                checkpoint = opened(model, dtype=loading.dtype, device=loading.device)
                known[key] = checkpoint, byte_law.engine_of(checkpoint, support)
        found = [known[model if isinstance(model, str) else id(model)] for model in models]
        self.checkpoints, self.engines = [one for one, _ in found], [engine for _, engine in found]

    def normalised(self, text: str | bytes) -> bytes:
        """The bytes of a text; raises ValueError, naming the model, where a tokenizer changes it."""
        for checkpoint, engine in zip(self.checkpoints, self.engines, strict=True):
            try:
                found = engine.tokens.normalised(text)
            except ValueError as error:
                raise ValueError(f"{checkpoint.name}: {error}") from error
        return found

    def vote(self, members: Sequence[Law | None]) -> Vote:
        """The mixture of the models' laws before one byte; a model without a law has no say."""
        voting = np.array([law is not None for law in members])
        p_MO = np.array([_outcomes(law) for law in members if law is not None])
        return Vote(mixed(p_MO, self.weights_M[voting], self.voting.mixture), tuple(members))

    def law(self, prefix: str | bytes = b"") -> Vote:
        """The law of the byte after a prefix, which may end anywhere."""
        text = self.normalised(prefix)
        return self.vote([ByteLaw(engine, text).law() for engine in self.engines])

    def laws(self, text: str | bytes, first: int = 0) -> list[Vote]:
        """The laws before each byte of a text from byte `first` on and after its last one: one forward per model."""
        whole = self.normalised(text)
        read = {id(engine): byte_law.teacher_forced(engine, whole, first) for engine in self.engines}
        return [self.vote(members) for members in zip(*(read[id(engine)] for engine in self.engines), strict=True)]

    def score(self, prompt: str | bytes, answer: str | bytes) -> Scored:
        """What a given answer costs after its prompt, under the mixture and under each model."""
        before, after = (text.encode() if isinstance(text, str) else text for text in (prompt, answer))
        votes = self.laws(before + after, len(before))[:-1]
        return _scored(after, "given", votes, list(after), len(self.engines))

    def sample(self, prompts: Sequence[str | bytes], *, documents: Sequence[int] = ()) -> list[Scored]:
        """One answer per prompt, drawn together. documents: the number of each prompt, which keys its random numbers.

        An answer does not depend on how prompts are batched.
        """
        prefixes = [self.normalised(prompt) for prompt in prompts]
        laws = [byte_law.begin(engine, prefixes, undo=0) for engine in self.engines]
        writings = [_Writing(list(row), [], []) for row in zip(*laws, strict=True)]
        numbers = list(documents) or list(range(len(prefixes)))
        alive, why = list(range(len(writings))), ["length"] * len(writings)
        for position in range(self.voting.max_new_bytes if writings else 0):
            draws = uniforms(self.voting.seed, [numbers[row] for row in alive], [position] * len(alive))
            for row, uniform in zip(alive, draws, strict=True):
                one = writings[row]
                one.votes.append(self.vote([law if law is None else law.law() for law in one.laws]))
                one.outcomes.append(byte_law.outcome(one.votes[-1].p_O, float(uniform), self.voting.temperature))
                why[row] = self._stopped(one)
            alive = [row for row in alive if why[row] == "length"]
            if not alive or position + 1 == self.voting.max_new_bytes:
                break
            self._extend([writings[row] for row in alive])
        return [
            _scored(one.finished(self.voting.stop, stopped), stopped, one.votes, one.outcomes, len(self.engines))
            for one, stopped in zip(writings, why, strict=True)
        ]

    def _stopped(self, one: _Writing) -> str:
        """Why an answer stops after its newest outcome; "length" where only that could stop it."""
        if one.outcomes[-1] == END:
            return "end"
        if ending(one.answer, self.voting.stop):
            return "stop"
        full = any(
            law is not None and isinstance(tree := engine.tree, TokenTree) and law.depth + 1 >= tree.limit
            for law, engine in zip(one.laws, self.engines, strict=True)
        )
        return "context" if full else "length"

    def _extend(self, writings: Sequence[_Writing]) -> None:
        """Push each text's newest byte into every model that gives it a probability: one forward per model."""
        for number in range(len(self.engines)):
            staying: list[tuple[ByteLaw, int]] = []
            for one in writings:
                law, before = one.laws[number], one.votes[-1].members[number]
                if law is not None and before is not None and before.p[one.outcomes[-1]] > 0:
                    staying.append((law, one.outcomes[-1]))
                else:
                    one.laws[number] = None
            byte_law.extend([law for law, _ in staying], [byte for _, byte in staying])


@dataclass
class _Writing:
    """An answer that is being drawn: the growing text under each model (None: it left), votes and outcomes so far."""

    laws: list[ByteLaw | None]
    votes: list[Vote]
    outcomes: list[int]

    @property
    def answer(self) -> bytes:
        return bytes(outcome for outcome in self.outcomes if outcome != END)

    def finished(self, stops: Sequence[str], stopped: str) -> bytes:
        """The answer without the stop text that ended it."""
        return self.answer.removesuffix(ending(self.answer, stops)) if stopped == "stop" else self.answer


def _outcomes(law: Law) -> Array:
    return np.append(law.p, law.end)


def _kl_nats(p_O: Array, q_O: Array) -> float:
    possible = p_O > 0
    if (q_O[possible] == 0).any():
        return math.inf
    return max(0.0, float((p_O[possible] * np.log(p_O[possible] / q_O[possible])).sum()))


def _scored(answer: bytes, stopped: str, votes: Sequence[Vote], outcomes: Sequence[int], models: int) -> Scored:
    """What the outcomes cost. models: how many there are."""
    members_NM = np.full((len(votes), models), math.nan)
    for row, (vote, outcome) in enumerate(zip(votes, outcomes, strict=True)):
        members_NM[row] = [math.nan if law is None else _outcomes(law)[outcome] for law in vote.members]
    with np.errstate(divide="ignore"):
        logp = float(np.log([vote.p_O[outcome] for vote, outcome in zip(votes, outcomes, strict=True)]).sum())
        sums = np.log(members_NM).sum(0)
    lost = [[math.nan if law is None else law.lost for law in vote.members] for vote in votes]
    kl, missing = (_means(rows, models) for rows in ([vote.kl_nats() for vote in votes], lost))
    return Scored(answer, stopped, logp, tuple(sums.tolist()), kl, missing)


def _means(rows: Sequence[Sequence[float]], models: int) -> tuple[float, ...]:
    return tuple(np.mean(rows, axis=0).tolist()) if rows else (math.nan,) * models
