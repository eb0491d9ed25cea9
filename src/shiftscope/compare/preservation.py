"""Preservation: does a decoder still sample from its model, or did its shortcuts change the law of the texts?

Decoders are run on a model whose laws are exactly known (a hidden Markov chain's posteriors, the oracle) or on a checkpoint,
and every drawn token is held against the model's own law of it given what was written before. A sample of the model passes;
choosing positions by what was drawn there makes texts too likely, drawing several tokens of a call apart makes them too
unlikely, stale or pruned contexts show as well. On the oracle the distance to the true law of neighbours is given too. Each
decoder declares what it keeps (exact, exact_if_consistent, no) and is held to it.

On the oracle with 2 000 texts of 8 places the seven rules that declare to keep the law stay within the noise of true texts
(distance of neighbours below 0.028); `sampled`, LLaDA's low-confidence remasking, stands at 0.33 with 0.27 nats a token too
likely, and two positions a call at 0.045 (random) and 0.09 (max_prob).

Source: the rules compared are those of arXiv 2502.09992 (LLaDA), arXiv 2508.15487 (Dream), arXiv 2505.22618 (Fast-dLLM),
arXiv 2601.20332 (windows) and arXiv 2504.20456 (any-subset speculation); the test is our own (`core/denoising/fidelity.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from shiftscope.core import answers, statistics
from shiftscope.core.answers import Loading, Texts
from shiftscope.core.denoising import decoders, fidelity
from shiftscope.core.denoising.decoders import Model, Named, Text
from shiftscope.core.denoising.oracle import MarkovOracle, random_chain
from shiftscope.core.parts import Parts
from shiftscope.core.result import Figure, Panel, Result
from shiftscope.core.settings import refuse, unread

RULES = (
    "left_to_right", "random", "max_prob", "margin", "entropy", "blocks block=4", "sampled", "random per_call=2",
    "max_prob per_call=2", "max_prob temperature=0.8", "assd k=3", "independent k=2",
)  # fmt: skip
ROWS = pa.schema(
    [
        ("decoder", pa.string()), ("document", pa.int32()), ("place", pa.int32()), ("token", pa.int32()),
        ("call", pa.int32()), ("u", pa.float64()), ("logp_nats", pa.float64()), ("entropy_nats", pa.float64()),
        ("variance_nats2", pa.float64()), ("calls", pa.int32()),
    ]
)  # fmt: skip
_SIMULATIONS = 400
_BINS = 20
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Chain:
    """The oracle and what is drawn from it.

    states: of the chain. places: length of a text. texts: drawn by each decoder. concentration: of the rows' Dirichlet law;
    the smaller, the more a state tells of the next.
    """

    states: int = 6
    places: int = 8
    texts: int = 2000
    concentration: float = 1.0

    def __post_init__(self) -> None:
        if self.states < 2 or self.places < 2 or self.texts < 1 or self.concentration <= 0:
            raise ValueError(
                f"states {self.states}, places {self.places}, texts {self.texts} and concentration {self.concentration}: need "
                f"2 states and places, 1 text and a concentration above 0 at least"
            )


def preservation(
    names: Sequence[str],
    *,
    model: str | Model = "oracle",
    prompts: Texts = None,
    limit: int | None = 32,
    samples: int = 1,
    max_new_tokens: int = 32,
    level: float = 0.001,
    chain: Chain = Chain(),
    loading: Loading = Loading(batch_size=64),
    parts: Parts | None = None,
    advance: answers.Advance | None = None,
) -> Result:
    """Test whether decoders still sample from their model, and hold each to what it declares.

    names: decoders, each in quotes: words (an order such as max_prob or sampled; full, blocks or window; assd, sequential or
        independent) and settings, 'window inner=8 outer=16'. rules stands for a table of common ones.
    model: oracle (exact laws, no checkpoint), or a masked or any-order checkpoint (path, hub id, zoo name).
    prompts: for a checkpoint: jsonl, parquet or txt with a prompt per record; without, those that ship with it.
    limit: only the first records.
    samples: texts per prompt and decoder.
    max_new_tokens: hidden positions after a prompt that hides none itself.
    level: how often samples of the model would be taken for something else.
    Returns a Result whose table has one row per filled position.
    Raises ValueError, in one sentence, for a decoder of unknown name or one that cannot write with the model, prompts for
    the oracle, and a chain for a checkpoint.
    """
    if not 0 < level < 1 or samples < 1:
        raise ValueError(f"level {level} and samples {samples}: need a level in (0, 1) and at least one sample")
    asked = _named([names] if isinstance(names, str) else names)
    if model == "oracle" and prompts is not None:
        raise ValueError(
            "prompts are given and the model is the oracle, which reads none: name a checkpoint with --model"
        )
    if model == "oracle":
        _check_read(limit, samples, max_new_tokens, loading)
    if model != "oracle" and chain != Chain():
        raise ValueError(
            "states, places, texts and concentration are of the oracle, and a checkpoint is tested: leave them out, or leave "
            "out --model"
        )
    found = _opened(model, chain, loading)
    for named in asked:
        decoders.check(found, named)
    parts = parts or Parts()
    settings: dict[str, Any] = {
        "names": [named.name for named in asked], "level": level, "samples": samples, "max_new_tokens": max_new_tokens,
        "limit": limit, "chain": asdict(chain) if isinstance(found, MarkovOracle) else None, "prompts": prompts,
    }  # fmt: skip
    provenance = answers.provenance(_any(found), **settings)
    parts.settle(provenance)
    if isinstance(found, MarkovOracle):
        texts = [Text(document, [found.mask_id] * chain.places, 0) for document in range(chain.texts)]
        size = max(1, chain.texts // 4)
    else:
        records = answers.corpus_of(prompts, _any(found), limit, option="prompts")
        for named in asked:
            decoders.check(found, named, records)
        texts, size = decoders.canvases(found, records, max_new_tokens, samples), loading.batch_size
    jobs = [(named, texts[start : start + size]) for named in asked for start in range(0, len(texts), size)]
    rows = parts.map(
        "reveals", jobs, lambda job: {"reveals": _reveals(found, *job)},
        advance=None if advance is None else lambda done, total: advance("drawing and testing", done, total), final=True,
    )["reveals"]  # fmt: skip
    exact = (found.bigrams(chain.places), _floor(found, chain)) if isinstance(found, MarkovOracle) else None
    return summarise(rows, asked, model=found, level=level, exact=exact, provenance=provenance)


def _check_read(limit: int | None, samples: int, max_new_tokens: int, loading: Loading) -> None:
    """Raises ValueError for a setting that the oracle does not read."""
    refuse(
        "--model with a checkpoint", limit=(limit, 32), samples=(samples, 1), max_new_tokens=(max_new_tokens, 32),
    )  # fmt: skip
    unread(loading, Loading(batch_size=64), "--model with a checkpoint")


def _any(model: Any) -> Any:
    """Corpora and provenance read the name, the tokenizer and where it came from, of any kind of model."""
    return model


def _named(names: Sequence[str]) -> list[Named]:
    asked = [rule for name in names for rule in (RULES if name == "rules" else (name,))]
    if not asked:
        raise ValueError(
            "no decoder was given: name at least one, such as max_prob, or rules for a table of common ones"
        )
    repeated = sorted({name for name in asked if asked.count(name) > 1})
    if repeated:
        raise ValueError(f"decoder {repeated[0]!r} is given twice")
    return [decoders.parse(name, temperature=1.0) for name in asked]


def _opened(model: str | Model, chain: Chain, loading: Loading) -> Model:
    if model == "oracle":
        return random_chain(chain.states, concentration=chain.concentration)
    return decoders.opened(model, dtype=loading.dtype, device=loading.device) if isinstance(model, str) else model


def _reveals(model: Model, named: Named, texts: Sequence[Text]) -> pa.Table:
    """A row per filled position of the texts that the decoder writes."""
    records = [record for _, record in decoders.write(model, named, texts)]
    size = len(texts) * 8 if isinstance(model, MarkovOracle) else 64  # a chain's laws are small, whatever their number
    replayed = fidelity.replay(model, texts, records, batch_size=size)
    counts = [len(record.position) for record in records]
    return pa.table(
        {
            "decoder": [named.name] * sum(counts),
            "document": np.repeat([text.document for text in texts], counts),
            "place": [place for record in records for place in record.position],
            "token": [token for record in records for token in record.token],
            "call": [call for record in records for call in record.call],
            "u": np.concatenate([one.u_R for one in replayed]),
            "logp_nats": np.concatenate([one.logp_R for one in replayed]),
            "entropy_nats": np.concatenate([one.entropy_R for one in replayed]),
            "variance_nats2": np.concatenate([one.variance_R for one in replayed]),
            "calls": np.repeat([record.calls for record in records], counts),
        }
    ).cast(ROWS)


def _floor(oracle: MarkovOracle, chain: Chain) -> Array:
    """Distances to the true law of neighbours of as many true texts, drawn again and again."""
    generator, true = np.random.default_rng(0), oracle.bigrams(chain.places)
    found, S = [], chain.states
    for _ in range(_SIMULATIONS):
        state = (generator.random((chain.texts, 1)) > oracle.first_S.cumsum()[:-1]).sum(1)
        counts = np.zeros_like(true)
        for _ in range(chain.places - 1):
            after = (generator.random((chain.texts, 1)) > oracle.step_SS.cumsum(1)[state, :-1]).sum(1)
            counts += np.bincount(state * S + after, minlength=S * S).reshape(S, S)
            state = after
        found.append(_distance(counts, true))
    return np.array(found)


def _distance(counts: Array, true: Array) -> float:
    return float(np.abs(counts / counts.sum() - true).sum() / 2)


def _entropy_nats(counts: Array) -> float:
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())


def summarise(
    table: pa.Table,
    asked: Sequence[Named],
    *,
    model: Model,
    level: float = 0.001,
    exact: tuple[Array, Array] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Result:
    """Figures, verdict and panels of a table of reveals. exact: true law of neighbours and distances of true texts to it."""
    columns = {name: table[name].to_numpy() for name in table.column_names if name != "decoder"}
    decoder_R = np.array(table["decoder"].to_pylist())
    figures: dict[str, Figure] = {}
    lines, broken = [], []
    for named in asked:
        own = {name: values[decoder_R == named.name] for name, values in columns.items()}
        line = {"decoder": named.name, "declares": decoders.declared(model, named).kind, **_line(own, level, exact)}
        lines.append(line)
        figures |= _figures(named.figure, own, line)
        if line["declares"] != "no" and not line["passes"]:
            broken.append(named.name)
    kept = [line["decoder"] for line in lines if line["passes"]]
    lost = [f"{line['decoder']} ({line['says']})" for line in lines if not line["passes"]]
    verdict = [
        f"{len(kept)} of {len(lines)} decoders write samples of the model at level {level:g}"
        + (f": {', '.join(kept)}." if kept else "."),
        *([f"The law is changed by {', '.join(lost)}."] if lost else []),
        f"Held to what they declare: {'all keep it.' if not broken else ', '.join(broken) + ' do not keep what they declare.'}",
    ]
    figures["declarations_broken"] = Figure(len(broken), "count", len(lines))
    if exact is not None:
        figures["model.pair_entropy"] = Figure(_entropy_nats(exact[0]), "nats", 1)
    unseen = max(line["seen_from_nats"] for line in lines)
    notes = [
        "a token is held against the model's law given what was written before it, on the whole canvas of its call: passing "
        "means sampling the model along the decoder's order, which is the model's one joint law where its laws belong to one",
        f"passing is no proof: with so many reveals an excess below {unseen:.2g} nats a token may go unseen; more texts see "
        f"smaller ones",
        *decoders.reasons(model, asked),
    ]
    return Result(
        "compare preservation",
        table,
        figures,
        dict(provenance or {}),
        verdict,
        notes,
        _panels(lines, columns, decoder_R),
    )


def _line(own: Mapping[str, Any], level: float, exact: tuple[Array, Array] | None) -> dict[str, Any]:
    found = fidelity.fidelity(own["u"], own["logp_nats"], own["entropy_nats"], own["variance_nats2"])
    passes = found.holds(level)
    texts = len(np.unique(own["document"]))
    line = {
        "passes": passes, "excess_nats": found.excess_nats, "seen_from_nats": found.seen_from(level),
        "p_excess": found.p_excess, "distance": found.distance, "p_uniform": found.p_uniform,
        "calls_per_token": own["calls"][np.unique(own["document"], return_index=True)[1]].sum() / found.reveals,
        "texts": texts, "reveals": found.reveals,
    }  # fmt: skip
    too = "too likely" if found.excess_nats > 0 else "too unlikely"
    line["says"] = (
        f"{abs(found.excess_nats):.2f} nats a token {too}" if found.p_excess < level else "misplaced in their laws"
    )
    if exact is not None:
        true, floor = exact
        counts = _neighbours(own, len(true))
        line["tv_neighbours"] = _distance(counts, true)
        line["tv_of_true_texts"] = float(np.quantile(floor, 0.999))
        line["pair_entropy"] = _entropy_nats(counts)
    return line


def _neighbours(own: Mapping[str, Any], states: int) -> Array:
    """How often each state follows each other one, [S, S]. Every text of the oracle is filled whole."""
    filled = np.zeros((int(own["document"].max()) + 1, int(own["place"].max()) + 1), dtype=np.int64)
    filled[own["document"], own["place"]] = own["token"]
    pairs = filled[:, :-1] * states + filled[:, 1:]
    return np.bincount(pairs.ravel(), minlength=states**2).reshape(states, states).astype(np.float64)


def _figures(name: str, own: Mapping[str, Any], line: Mapping[str, Any]) -> dict[str, Figure]:
    excess = own["logp_nats"] + own["entropy_nats"]
    figures = {f"{name}.passes": Figure(bool(line["passes"]), "", line["reveals"])}
    if np.isfinite(excess).all():
        figures[f"{name}.excess"] = statistics.mean_figure(excess, own["document"], unit="nats/token")
    figures[f"{name}.distance"] = Figure(line["distance"], "share", line["reveals"])
    if "tv_neighbours" in line:
        figures[f"{name}.tv_neighbours"] = Figure(line["tv_neighbours"], "share", line["texts"])
        figures[f"{name}.pair_entropy"] = Figure(line["pair_entropy"], "nats", line["texts"])
    return figures


def _panels(lines: Sequence[Mapping[str, Any]], columns: Mapping[str, Any], decoder_R: NDArray[Any]) -> list[Panel]:
    shown = pa.Table.from_pylist([{key: value for key, value in line.items() if key != "says"} for line in lines])
    edges = np.linspace(0, 1, _BINS + 1)
    density = []
    for line in lines:
        counts, _ = np.histogram(columns["u"][decoder_R == line["decoder"]], edges)
        density += [
            {"decoder": line["decoder"], "u": float(middle), "density": float(count * _BINS / counts.sum())}
            for middle, count in zip((edges[1:] + edges[:-1]) / 2, counts, strict=True)
        ]
    excess = pa.table({name: [line[name] for line in lines] for name in ("decoder", "excess_nats")})
    return [
        Panel(
            "Decoders", "What each declares and what its texts show; p-values of samples of the model are seldom small.",
            "table", shown,
        ),
        Panel(
            "Likelier than a sample's token", "0 for samples; above, texts vary too little; below, tokens do not fit together.",
            "bar", excess, x="decoder", y="excess_nats", x_title="decoder", y_title="excess log-probability (nats per token)",
        ),
        Panel(
            "Where drawn tokens stand in their laws", "Ranked from the likeliest (0) to the least likely (1); flat at 1 for "
            "samples of the model.", "line", pa.Table.from_pylist(density), x="u", y="density", series="decoder",
            x_title="mass of the law above the token", y_title="density",
        ),
    ]  # fmt: skip
