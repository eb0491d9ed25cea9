"""Ensembles: models with different vocabularies vote on the next byte, and text is drawn or scored by their mixture.

Token laws of different vocabularies cannot be averaged; byte laws can. Every model is turned into its exact byte-level law,
the laws are mixed, and the same byte goes into every model.

Source: arXiv 2410.09303 (ensembles of byte-level laws of models with different vocabularies).
Deviation: laws are mixed given that the text goes on canonically; the mass that does not is a figure per model. A model that
gives a drawn byte no probability leaves the rest of that answer, and the other weights grow in proportion.
"""

# O outcomes: 256 bytes and the end; M models

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from shiftscope.core import answers, byte_law, statistics
from shiftscope.core.answers import Loading, Texts
from shiftscope.core.byte_law import END, ByteLaw, Engine, Law
from shiftscope.core.canonical import Support
from shiftscope.core.checkpoints import Checkpoint, opened
from shiftscope.core.corpus import Text
from shiftscope.core.parts import Parts
from shiftscope.core.randomness import uniforms
from shiftscope.core.result import Figure, Panel, Result

Array = NDArray[np.float64]
LN2 = math.log(2)
ROWS = pa.schema(
    [
        ("text", pa.int32()), ("sample", pa.int32()), ("prompt", pa.string()), ("answer", pa.string()),
        ("raw", pa.binary()), ("n_bytes", pa.int32()), ("stopped", pa.string()), ("given", pa.bool_()),
        ("logp_nats", pa.float64()), ("logp_models_nats", pa.list_(pa.float64())),
        ("kl_models_nats", pa.list_(pa.float64())), ("lost_models", pa.list_(pa.float64())), ("left", pa.int32()),
    ]
)  # fmt: skip


@dataclass(frozen=True)
class Voting:
    """How models vote and how bytes are drawn.

    mixture: arithmetic is the weighted mean of the laws, geometric their weighted product, normalised. weights: one per
    model, in proportion (default: equal). temperature: of the mixture; 0 is greedy. samples: answers per prompt.
    max_new_bytes: longest answer. stop: texts that end an answer, left out of it. seed: of the draws.
    """

    mixture: Literal["arithmetic", "geometric"] = "arithmetic"
    weights: tuple[float, ...] = ()
    temperature: float = 1.0
    samples: int = 1
    max_new_bytes: int = 256
    stop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mixture not in ("arithmetic", "geometric"):
            raise ValueError(f"mixture is {self.mixture!r}: it must be arithmetic or geometric")
        if self.weights and not (all(0 <= w < math.inf for w in self.weights) and sum(self.weights) > 0):
            raise ValueError(f"weights are {self.weights}: none may be negative or infinite and one must be above 0")
        if self.temperature < 0 or self.samples < 1 or self.max_new_bytes < 1:
            raise ValueError(
                f"temperature {self.temperature}, samples {self.samples} and max_new_bytes {self.max_new_bytes}: need "
                f"temperature >= 0 and at least 1 of the others"
            )
        if not all(self.stop):
            raise ValueError(f"stop is {self.stop!r}: texts that stop must not be empty")

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

    NaN for a model that left before the end. stopped: given, end, stop, length or context.
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
        return _scored(after, "given", votes, list(after))

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
            _scored(_without_stop(one.answer, self.voting.stop, stopped), stopped, one.votes, one.outcomes)
            for one, stopped in zip(writings, why, strict=True)
        ]

    def _stopped(self, one: _Writing) -> str:
        """Why an answer stops after its newest outcome; "length" where only that could stop it."""
        if one.outcomes[-1] == END:
            return "end"
        if any(one.answer.endswith(stop.encode()) for stop in self.voting.stop):
            return "stop"
        full = any(
            law is not None and isinstance(tree := engine.tree, byte_law.TokenTree) and law.depth + 1 >= tree.limit
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


def _outcomes(law: Law) -> Array:
    return np.append(law.p, law.end)


def _kl_nats(p_O: Array, q_O: Array) -> float:
    possible = p_O > 0
    if (q_O[possible] == 0).any():
        return math.inf
    return max(0.0, float((p_O[possible] * np.log(p_O[possible] / q_O[possible])).sum()))


def _without_stop(answer: bytes, stops: Sequence[str], stopped: str) -> bytes:
    ending = next((stop.encode() for stop in stops if answer.endswith(stop.encode())), b"")
    return answer.removesuffix(ending) if stopped == "stop" else answer


def _scored(answer: bytes, stopped: str, votes: Sequence[Vote], outcomes: Sequence[int]) -> Scored:
    with np.errstate(divide="ignore"):
        logp = float(np.sum([np.log(vote.p_O[byte]) for vote, byte in zip(votes, outcomes, strict=True)]))
        members = [
            tuple(math.nan if law is None else float(np.log(_outcomes(law)[byte])) for law in vote.members)
            for vote, byte in zip(votes, outcomes, strict=True)
        ]
    lost = [tuple(math.nan if law is None else law.lost for law in vote.members) for vote in votes]
    sums = tuple(map(math.fsum, zip(*members, strict=True)))
    kl, missing = (_means(rows) for rows in ([vote.kl_nats() for vote in votes], lost))
    return Scored(answer, stopped, logp, sums, kl, missing)


def _means(rows: Sequence[Sequence[float]]) -> tuple[float, ...]:
    return tuple(float(np.mean(column)) for column in zip(*rows, strict=True))


def ensemble(
    models: Sequence[str | Checkpoint],
    *,
    prompts: Texts = None,
    limit: int | None = None,
    support: Support = "canonical",
    voting: Voting = Voting(),
    loading: Loading = Loading(batch_size=8),
    parts: Parts | None = None,
    advance: answers.Advance | None = None,
) -> Result:
    """Let models with any vocabularies vote on every next byte; draw answers from the mixture, or score given ones.

    models: the checkpoints (paths, hub ids, zoo names, or loaded Checkpoints), in the order of the weights.
    prompts: jsonl, parquet or txt with a prompt per record; a record with an answer is scored, not continued; without,
        the prompts that ship with the first model.
    limit: only the first records.
    support: canonical (exact over canonical encodings), unmasked (canonical up to the last token) or all (every token
        sequence, for short texts).
    Returns a Result whose table has one row per answer.
    Raises ValueError, in one sentence, for malformed prompts, text that a tokenizer changes, a text beyond a context.
    """
    if loading.compile:
        raise ValueError("compile is set: byte laws have nothing to compile; leave it out")
    together, parts = Ensemble(models, voting=voting, support=support, loading=loading), parts or Parts()
    first = together.checkpoints[0]
    settings = answers.provenance(
        first, prompts=prompts, limit=limit, support=support, voting=asdict(voting), loading=asdict(loading)
    )
    settings = {"models": [one.provenance for one in together.checkpoints], **settings}
    del settings["base"]
    parts.settle(settings)
    texts = answers.corpus_of(prompts, first, limit)
    groups = [texts[start : start + loading.batch_size] for start in range(0, len(texts), loading.batch_size)]

    def measure(group: Sequence[Text]) -> dict[str, pa.Table]:
        return {"ensemble": pa.Table.from_pylist(list(_rows(together, group)), schema=ROWS)}

    named = None if advance is None else lambda done, total: advance("voting", done, total)
    rows = parts.map("ensemble", groups, measure, advance=named, final=True)
    names = [one.name for one in together.checkpoints]
    return summarise(rows["ensemble"], names, together.weights_M.tolist(), provenance=settings)


def _rows(together: Ensemble, texts: Sequence[Text]) -> Iterable[dict[str, Any]]:
    samples = together.voting.samples
    asked = [(text, sample) for text in texts if text.answer is None for sample in range(samples)]
    numbers = [text.text * samples + sample for text, sample in asked]
    drawn = together.sample([text.prompt for text, _ in asked], documents=numbers) if asked else []
    scored = [(text, 0, together.score(text.prompt, text.answer)) for text in texts if text.answer]
    for text, sample, one in [*((t, s, d) for (t, s), d in zip(asked, drawn, strict=True)), *scored]:
        lists = {name: list(getattr(one, name)) for name in ("logp_models_nats", "kl_models_nats", "lost_models")}
        yield {
            "text": text.text, "sample": sample, "prompt": text.prompt, "answer": one.text, "raw": one.answer,
            "n_bytes": len(one.answer), "stopped": one.stopped, "given": one.stopped == "given",
            "logp_nats": one.logp_nats, "left": sum(map(math.isnan, one.logp_models_nats)),
            **{name: [None if math.isnan(value) else value for value in values] for name, values in lists.items()},
        }  # fmt: skip


def summarise(
    table: pa.Table, names: Sequence[str], weights: Sequence[float], *, provenance: dict[str, Any] | None = None
) -> Result:
    """Figures, verdict and panels of a table of answers. names, weights: of the models, in order; weights sum to 1."""
    rows = table.to_pylist()
    figures: dict[str, Figure] = {}
    notes: list[str] = []
    verdict: list[str] = []
    about = [
        {"model": number, "name": name, "weight": w}
        for number, (name, w) in enumerate(zip(names, weights, strict=True), 1)
    ]
    for given, kind in ((True, "given"), (False, "drawn")):
        chosen = [row for row in rows if row["given"] == given and row["n_bytes"]]
        if chosen:
            figures |= _figures(kind, chosen, about, notes)
    drawn = [row for row in rows if not row["given"]]
    if drawn:
        figures["ended_share"] = statistics.share_figure(sum(row["stopped"] == "end" for row in drawn), len(drawn))
        figures["answers_left_share"] = statistics.share_figure(sum(row["left"] > 0 for row in drawn), len(drawn))
    verdict.append(
        f"{len(drawn)} answers were drawn and {len(rows) - len(drawn)} given ones scored by {len(names)} models."
    )
    gain = figures.get("given_gain_over_best")
    if gain is not None:
        sure = (gain.low or 0) > 0 or (gain.high or 0) < 0
        said = (
            ("better than" if float(gain.value) > 0 else "worse than") if sure else "as well as (within the interval)"
        )
        verdict.append(
            f"The mixture expects the given answers {said} the best model alone: {gain.value:.3g} bits per byte less "
            f"(95 % interval {gain.low:.3g} to {gain.high:.3g})."
        )
    shown = table.select(["text", "sample", "prompt", "answer", "stopped", "logp_nats", "left"])
    panels = [
        Panel(
            "Models",
            "Who voted, with which weight, and what the answers cost it.",
            "table",
            pa.Table.from_pylist(about),
        ),
        Panel("Answers", "Prompts that end anywhere, and how the mixture goes on.", "table", shown),
    ]
    return Result("generate ensemble", table, figures, provenance or {}, verdict, notes, panels)


def _figures(
    kind: str, rows: Sequence[Mapping[str, Any]], about: Sequence[dict[str, Any]], notes: list[str]
) -> dict[str, Figure]:
    """Bits per byte of the mixture and of each model, and how far each is from the mixture; adds to `about` and `notes`."""
    texts, sizes = [row["text"] for row in rows], [row["n_bytes"] for row in rows]
    mixture = [-row["logp_nats"] / LN2 for row in rows]
    figures = {f"{kind}_bits_per_byte_mixture": _rate(mixture, sizes, texts)} if np.isfinite(mixture).all() else {}
    costs: list[list[float]] = []
    for place, model in enumerate(about):
        own = [row["logp_models_nats"][place] for row in rows]
        if None not in own and np.isfinite(own).all():
            costs.append([-value / LN2 for value in own])
            figures[f"{kind}_bits_per_byte_model_{place + 1}"] = _rate(costs[-1], sizes, texts)
            model[f"{kind}_bits_per_byte"] = sum(costs[-1]) / sum(sizes)
        else:
            notes.append(f"{model['name']} gives some {kind} answers no probability: its bits per byte are left out")
        for column, name, unit in (
            ("kl_models_nats", "kl_model", "nats/byte"),
            ("lost_models", "non_canonical_share", "share"),
        ):
            values = [row[column][place] for row in rows]
            if None not in values and np.isfinite(values).all():
                figures[f"{kind}_{name}_{place + 1}"] = statistics.mean_figure(values, texts, unit=unit)
    if costs and figures.get(f"{kind}_bits_per_byte_mixture"):
        best = min(costs, key=sum)
        gain = [theirs - ours for theirs, ours in zip(best, mixture, strict=True)]
        figures[f"{kind}_gain_over_best"] = _rate(gain, sizes, texts)
    return figures


def _rate(bits: Sequence[float], sizes: Sequence[int], texts: Sequence[int]) -> Figure:
    """Σ bits / Σ bytes with its bootstrap interval over texts."""
    (sums, _), (counts, _) = (statistics.group_sums(values, texts) for values in (bits, sizes))
    low, high = np.quantile(statistics.resampled_ratios(sums, counts), [0.025, 0.975])
    value = sum(bits) / sum(sizes)
    return Figure(value, "bits/byte", sum(sizes), min(float(low), value), max(float(high), value))
