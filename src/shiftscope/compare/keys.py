"""Vocabulary keys: which tokens' unembedding rows are alike, and what rides along when a model is sure of one of them.

The next-token law is softmax(q·K). Rows of K that are alike rise together: behind a few right tokens, the middle ranks fill
with their look-alikes, and tuning that teaches one token lifts its neighbours. Three answers: the clusters of K; accuracy
of middle-rank tokens in the clusters of the top tokens against that of the others (with a verifier); how much of the gain
of the most raised tokens spilled over to their cluster mates (between base and tuned).

Source: arXiv 2410.02284 (clusters and probe as in the authors' experiments; spill-over after its section on training risk).
Deviation: spill-over is judged by permuting the gains among tokens of like base probability, beside the random clusters of
equal size: former answers lose mass whoever their mates are. It is measured again on the mates that no answer contains,
since the others may have been taught directly. A middle-rank token counts as in-cluster only by its
key; which tokens cannot open an answer is decided beforehand, and they are not probed.
"""

# V vocabulary, R rows of a block, K clusters, L leading tokens (the most raised), S permutations

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from shiftscope.core import answers, clusters, completion, corpus, paired, statistics, verifiers
from shiftscope.core.answers import Loading, Texts
from shiftscope.core.checkpoints import Checkpoint, opened
from shiftscope.core.clusters import Clusters, Metric
from shiftscope.core.corpus import Template, Text
from shiftscope.core.decode import Sampling
from shiftscope.core.head import evaluating
from shiftscope.core.laws import Block, Workspace
from shiftscope.core.parts import Parts
from shiftscope.core.result import Figure, Panel, Result
from shiftscope.core.verifiers import Verifier

NEGLIGIBLE = 1e-9  # mean probability per position below which a token's gain is added to the remainder
REMAINDER = -1  # stands for all tokens whose gain is negligible; its row also counts the positions
PLACES = {"top": "top tokens", "in": "middle ranks, in their clusters", "out": "middle ranks, other clusters"}
STRATA = 20  # of base probability, for the matched permutations


@dataclass(frozen=True)
class Clustering:
    """How keys are clustered.

    n_clusters: None takes about a hundredth of the rows. metric: cosine normalises the rows. cluster_seed: of k-means; the
    next seed measures stability. gainers: how many of the most raised tokens spill-over is measured on.
    permutations: of the gains over tokens.
    """

    n_clusters: int | None = None
    metric: Metric = "euclidean"
    cluster_seed: int = 0
    gainers: int = 20
    permutations: int = 1000

    def __post_init__(self) -> None:
        if self.gainers < 1 or self.permutations < 100:
            raise ValueError(f"gainers {self.gainers} and permutations {self.permutations}: need at least 1 and 100")


@dataclass(frozen=True)
class Probing:
    """How the ranks of a next-token law are probed (defaults of the paper).

    top: first ranks, whose clusters are the main ones. candidates: ranks probed in all. probed_prompts: how many prompts.
    max_probe_tokens: longest completion. stop: text that ends a completion; with one, a completion without it has failed.
    """

    top: int = 10
    candidates: int = 100
    probed_prompts: int = 40
    max_probe_tokens: int = 64
    stop: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.top < self.candidates:
            raise ValueError(f"top {self.top} and candidates {self.candidates}: need 0 < top < candidates")
        if self.probed_prompts < 1 or self.max_probe_tokens < 1:
            raise ValueError(
                f"probed_prompts {self.probed_prompts} and max_probe_tokens {self.max_probe_tokens}: need 1 or more"
            )
        if self.stop == "":
            raise ValueError("stop is empty: give the text that ends a completion, or none")


@dataclass(frozen=True)
class Keys:
    """The keys of a checkpoint as they were found.

    pieces: the text of every token. residual: share of the logits' spread that is not the plain dot product. broken_by:
    what breaks it (bias, soft-cap, scale). tied: the keys are also the input embeddings. drift: how far the tuned keys
    moved, as a share of the base keys' spread (None without a tuned checkpoint).
    """

    clusters: Clusters
    pieces: Sequence[str]
    residual: float
    broken_by: Sequence[str]
    tied: bool
    drift: float | None


def keys(
    base: str | Checkpoint,
    tuned: str | Checkpoint | None = None,
    *,
    texts: Texts = None,
    limit: int | None = None,
    verifier: str | Verifier | None = None,
    template: Template = "plain",
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
    loading: Loading = Loading(),  # noqa: B008 - frozen
    clustering: Clustering = Clustering(),  # noqa: B008 - frozen
    probing: Probing = Probing(),  # noqa: B008 - frozen
    parts: Parts | None = None,
    advance: answers.Advance | None = None,
) -> Result:
    """Cluster a checkpoint's unembedding rows; probe its middle ranks; measure spill-over between two checkpoints.

    base: the checkpoint whose keys are clustered (path, hub id, zoo name, or a loaded Checkpoint).
    tuned: the checkpoint after; with it, spill-over to cluster mates is measured on its answers.
    texts: jsonl, parquet or txt with a prompt, optionally an answer (for spill-over) and a reference (for the verifier) per
        record; without texts, the prompts that ship with the checkpoint.
    limit: only the first records.
    verifier: module:function, regex:PATTERN or exact; with it, the ranks of the law after each prompt are probed.
    template: how the prompt is rendered: plain, chat (the tokenizer's template) or frame (zero-shot frame).
    Returns a Result whose table has one row per cluster.
    Raises ValueError, in one sentence, for differing vocabularies, malformed texts, more clusters than rows, NaN logits.
    """
    first = opened(base, dtype=loading.dtype, device=loading.device)
    second = None if tuned is None else answers.pair(first, tuned, loading)[1]
    parts = parts or Parts()
    settings = answers.provenance(
        first, second, texts=texts, limit=limit, verifier=_name(verifier), template=template, sampling=asdict(sampling),
        loading=asdict(loading), clustering=asdict(clustering), probing=asdict(probing),
    )  # fmt: skip
    parts.settle(settings)
    found = described(first, second, clustering)
    gains, probes, notes = None, None, list[str]()
    read = answers.corpus_of(texts, second or first, limit) if second or verifier else []
    if second:
        ready = answers.prepare(
            first,
            second,
            read,
            template=template,
            sampling=sampling,
            batch_size=loading.batch_size,
            parts=parts,
            advance=advance,
        )
        scorer = paired.Scorer(first, second, compiled=loading.compile)
        gains = paired.run(
            scorer, ready.paired, {"keys": measure()}, batch_size=loading.batch_size, parts=parts,
            advance=None if advance is None else lambda done, total: advance("comparing", done, total),
        )["keys"]  # fmt: skip
        notes += ready.notes
    if verifier:
        sides = {"base": first} | ({"tuned": second} if second else {})
        probes = probe(sides, read, verifier, found.clusters, probing, template=template, parts=parts, advance=advance)
    return summarise(found, gains, probes, clustering=clustering, notes=notes, provenance=settings)


def _name(verifier: str | Verifier | None) -> str | None:
    return (
        verifier
        if verifier is None or isinstance(verifier, str)
        else getattr(verifier, "__qualname__", type(verifier).__name__)
    )


def described(base: Checkpoint, tuned: Checkpoint | None, clustering: Clustering) -> Keys:
    """Cluster the base's keys and measure how far they are from the plain dot-product story."""
    head = base.head
    names = base.tokenizer.get_vocab().values()
    found = clusters.fit(
        head.weight, names, seed=clustering.cluster_seed, n_clusters=clustering.n_clusters, metric=clustering.metric
    )
    piece_of = corpus.pieces(base.tokenizer, (token for token in names if token < base.vocabulary_size))
    ids_BT = torch.arange(64, device=head.device).mul(7919).remainder(base.vocabulary_size).view(8, 8)
    with evaluating(base.model):
        hidden_ND = head.hidden(ids_BT).flatten(0, 1)
        residual = clusters.dot_product_residual(head.logits(hidden_ND), hidden_ND, head.weight)
    broken = {"a bias": head.bias is not None, "a soft-cap": bool(head.soft_cap), "a scale": head.scale != 1}
    tied = base.model.get_input_embeddings().weight is head.weight
    drift = None
    if tuned is not None:
        common = min(base.vocabulary_size, tuned.vocabulary_size)
        before, after = (side.head.weight.detach()[:common].float().cpu() for side in (base, tuned))
        drift = float((after - before).norm() / (before - before.mean(0)).norm())
    return Keys(
        found,
        [piece_of.get(token, f"<id {token}>") for token in range(base.vocabulary_size)],
        residual,
        [name for name, present in broken.items() if present],
        tied,
        drift,
    )


def measure() -> paired.Measure:
    """The rows of one batch: per token, the gain of probability from base to tuned, summed over the answer positions.

    Columns token_id, gain_sum, base_sum (of the base's probability), emitted (times in the answers), n (positions, in the row
    of REMAINDER alone, which stands for all tokens of negligible gain: the gains of a batch sum to zero).
    """

    def start(batch: paired.PairedBatch) -> tuple[paired.OnBlock, Callable[[], pa.Table]]:
        sums: list[torch.Tensor] = []

        def on_block(rows: slice, block: Block, workspace: Workspace) -> None:
            if not sums:
                sums.extend(
                    torch.zeros(block.p_RV.shape[-1], dtype=torch.float64, device=block.p_RV.device) for _ in range(2)
                )
            sums[0] += block.p_RV.sum(0)
            sums[1] += block.q_RV.sum(0)

        def finish() -> pa.Table:
            base_V, tuned_V = (side.cpu().numpy() for side in sums)
            emitted_V = np.bincount(batch.token_N.numpy(), minlength=len(base_V))[: len(base_V)]
            gain_V, n = tuned_V - base_V, len(batch.token_N)
            kept = (np.maximum(base_V, tuned_V) > NEGLIGIBLE * n) | (emitted_V > 0)
            return pa.table(
                {
                    "token_id": np.append(np.flatnonzero(kept), REMAINDER).astype(np.int32),
                    "gain_sum": np.append(gain_V[kept], gain_V[~kept].sum()),
                    "base_sum": np.append(base_V[kept], base_V[~kept].sum()),
                    "emitted": np.append(emitted_V[kept], 0).astype(np.int64),
                    "n": np.append(np.zeros(kept.sum(), np.int64), n),
                }
            )

        return on_block, finish

    return start


def probe(
    sides: Mapping[str, Checkpoint],
    texts: Sequence[Text],
    verifier: str | Verifier,
    found: Clusters,
    probing: Probing,
    *,
    template: Template = "plain",
    parts: Parts | None = None,
    advance: answers.Advance | None = None,
) -> pa.Table:
    """Complete each of the first `candidates` tokens of the law after every prompt, and let the verifier judge.

    sides: name -> checkpoint. Returns one row per probe: model, text, rank (1 the most probable), token_id, cluster, place
    ('top', 'in' a main cluster or 'out' of them), answer, failed (no stop text), reward, masked (tokens ranked higher that
    cannot open an answer).
    """
    judge = verifiers.load(verifier) if isinstance(verifier, str) else verifiers.guarded(verifier, str(_name(verifier)))
    asked = [(name, text) for name in sides for text in texts[: probing.probed_prompts]]
    closed = {name: completion.cannot_open(side, probing.stop) for name, side in sides.items()}

    def one(job: tuple[str, Text]) -> dict[str, pa.Table]:
        name, text = job
        side = sides[name]
        prefix = completion.read(side, corpus.context_ids(side, text, template))
        order, skipped = (found_V[: probing.candidates] for found_V in completion.ranked(prefix.logits_V, closed[name]))
        done = completion.complete(side, prefix, order.tolist(), max_tokens=probing.max_probe_tokens, stop=probing.stop)
        labels = found.label_V[order]
        main = set(labels[: probing.top].tolist()) - {clusters.UNASSIGNED}
        failed = [probing.stop is not None and answer.ended == "length" for answer in done]
        judged = [
            0.0 if lost else judge(text.prompt, answer.text, text.reference)
            for answer, lost in zip(done, failed, strict=True)
        ]
        places = [
            "top" if rank < probing.top else "in" if label in main else "out"
            for rank, label in enumerate(labels.tolist())
        ]
        rows = {
            "model": [name] * len(order), "text": np.full(len(order), text.text, np.int32),
            "rank": np.arange(1, len(order) + 1, dtype=np.int32), "token_id": order.astype(np.int32),
            "cluster": labels.astype(np.int32), "place": places, "answer": [answer.text for answer in done],
            "failed": failed, "reward": np.array(judged, np.float64), "masked": skipped.astype(np.int32),
        }  # fmt: skip
        return {"probes": pa.table(rows)}

    told = None if advance is None else lambda finished, total: advance("probing", finished, total)
    return (parts or Parts()).map("probe", asked, one, advance=told)["probes"]


def summarise(
    found: Keys,
    gains: pa.Table | None = None,
    probes: pa.Table | None = None,
    *,
    clustering: Clustering = Clustering(),  # noqa: B008 - frozen
    notes: Sequence[str] = (),
    provenance: Mapping[str, Any] | None = None,
) -> Result:
    """Figures, panels and verdict from the clusters, the rows of `measure` and the rows of `probe` (either may be None)."""
    figures, verdict, caveats = _cluster_figures(found)
    caveats = [*notes, *caveats]
    table, panels = _cluster_table(found), list[Panel]()
    if gains is None:
        caveats.append("no tuned checkpoint was given: figures about spill-over are left out")
    else:
        gained = gained_tokens(gains, len(found.pieces))
        table = table.append_column("gain", pa.array(_cluster_means(gained["gain"], found.clusters)))
        spilled = spill_over(found, gained, clustering)
        figures |= spilled.figures
        verdict, caveats, panels = [*verdict, *spilled.verdict], [*caveats, *spilled.notes], [*panels, *spilled.panels]
    if probes is None:
        caveats.append("no verifier was given: figures about in-cluster and out-of-cluster accuracy are left out")
    else:
        probed = ranks(probes)
        figures |= probed.figures
        verdict, caveats, panels = [*probed.verdict, *verdict], [*caveats, *probed.notes], [*probed.panels, *panels]
    shown = table.sort_by([("gain" if gains is not None else "size", "descending")]).slice(0, 40)
    panels.append(
        Panel(
            "Key clusters",
            "Tokens whose unembedding rows are alike, with those nearest to each centre.",
            "table",
            shown,
        )
    )
    return Result("compare keys", table, figures, provenance or {}, verdict, caveats, panels)


@dataclass(frozen=True)
class Finding:
    """What one part of the report adds."""

    figures: Mapping[str, Figure]
    verdict: Sequence[str]
    notes: Sequence[str]
    panels: Sequence[Panel]


def _cluster_figures(found: Keys) -> tuple[dict[str, Figure], list[str], list[str]]:
    fitted = found.clusters
    sizes, rows = fitted.sizes_K, int((fitted.label_V >= 0).sum())
    figures = {
        "key_clusters": Figure(fitted.n_clusters, "count", rows),
        "key_cluster_size_median": Figure(float(np.median(sizes)), "tokens", fitted.n_clusters),
        "key_cluster_size_max": Figure(int(sizes.max()), "tokens", fitted.n_clusters),
        "key_rows_nameless": Figure(fitted.nameless, "rows", len(fitted.label_V)),
        "key_rows_coinciding": Figure(fitted.coinciding, "rows", len(fitted.label_V)),
        "key_inertia": Figure(fitted.inertia, "squared distance", rows),
        "key_unexplained_share": Figure(fitted.unexplained_share, "share", rows),
        "key_seed_ari": Figure(fitted.seed_ari, "index", rows),
        "dot_product_residual": Figure(found.residual, "share", 64),
        "keys_tied": Figure(found.tied, "", len(fitted.label_V)),
    }
    if found.drift is not None:
        figures["key_drift"] = Figure(found.drift, "share", rows)
    stable = "stable" if fitted.seed_ari > 0.8 else "fairly stable" if fitted.seed_ari > 0.5 else "unstable"
    verdict = [
        f"{rows:,} keys fall into {fitted.n_clusters} clusters of {int(sizes.min())} to {int(sizes.max())} tokens; the partition "
        f"is {stable} (ARI {fitted.seed_ari:.2f} between two seeds) and leaves {100 * fitted.unexplained_share:.0f} % of the "
        f"keys' variance inside the clusters."
    ]
    notes = []
    if fitted.nameless or fitted.coinciding:
        notes.append(
            f"{fitted.nameless} rows without a token and {fitted.coinciding} rows that coincide with another (never trained "
            f"apart) are in no cluster"
        )
    if found.tied:
        notes.append("the keys are tied to the input embeddings: clusters are those of both")
    if found.broken_by:
        notes.append(
            f"the head has {' and '.join(found.broken_by)}: {100 * found.residual:.2g} % of the logits' spread is not the plain "
            f"dot product of state and key"
        )
    return figures, verdict, notes


def _cluster_table(found: Keys, examples: int = 12) -> pa.Table:
    fitted = found.clusters
    order = np.lexsort((fitted.distance_V, fitted.label_V))
    order = order[fitted.label_V[order] >= 0]
    groups = np.split(order, np.cumsum(fitted.sizes_K)[:-1])
    return pa.table(
        {
            "cluster": np.arange(fitted.n_clusters, dtype=np.int32),
            "size": fitted.sizes_K.astype(np.int32),
            "spread": _cluster_means(fitted.distance_V, fitted),
            "examples": [" ".join(_shown(found.pieces[token]) for token in group[:examples]) for group in groups],
        }
    )


def _cluster_means(value_V: NDArray[Any], fitted: Clusters) -> NDArray[np.float64]:
    kept = fitted.label_V >= 0
    return np.bincount(fitted.label_V[kept], value_V[kept], fitted.n_clusters) / np.maximum(fitted.sizes_K, 1)


def _shown(piece: str) -> str:
    """A token's text with what is invisible made visible."""
    return piece.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣") or "∅"


def gained_tokens(gains: pa.Table, vocabulary: int) -> dict[str, NDArray[np.float64]]:
    """Mean gain and mean base probability per position, and how often the answers contain it, for every token [V]."""
    ids, n = gains["token_id"].to_numpy(), int(pc.sum(gains["n"]).as_py())
    listed = ids != REMAINDER
    names = {"gain": "gain_sum", "base": "base_sum", "emitted": "emitted"}
    found = {
        name: np.bincount(ids[listed], gains[column].to_numpy()[listed], vocabulary) for name, column in names.items()
    }
    return {
        "gain": found["gain"] / n,
        "base": found["base"] / n,
        "emitted": found["emitted"],
        "positions": np.array([n]),
    }


def spill_over(found: Keys, gained: Mapping[str, NDArray[np.float64]], clustering: Clustering) -> Finding:
    """Mean gain of the cluster mates of the most raised tokens, against tokens drawn at random."""
    gain_V, fitted, n = gained["gain"], found.clusters, int(gained["positions"][0])
    ordered = [
        int(t)
        for t in np.argsort(-gain_V, kind="stable")[: clustering.gainers]
        if gain_V[t] > 0 and fitted.label_V[t] >= 0
    ]
    if not ordered:
        return Finding(
            {},
            ["Tuning raised no token's probability."],
            ["no token was raised: figures about spill-over are left out"],
            [],
        )
    pool_V = fitted.label_V >= 0
    pool_V[ordered] = False
    mates = _mates_of(ordered, fitted, pool_V)
    if not mates:
        return Finding(
            {}, [], ["no raised token has a cluster mate that is not raised itself: spill-over is left out"], []
        )
    leads, notes = np.array(list(mates)), list[str]()
    figures = {"gainers_gain": statistics.mean_figure(gain_V[leads], fitted.label_V[leads], unit="probability")}
    figures |= _tested("spillover", mates, gained, pool_V, fitted, clustering)
    unseen_V = pool_V & (gained["emitted"] == 0)
    if unseen := _mates_of(ordered, fitted, unseen_V):
        figures |= _tested("spillover_unseen", unseen, gained, unseen_V, fitted, clustering)
    else:
        notes.append("every mate of a raised token occurs in the answers: spill-over to unseen mates is left out")
    panel = Panel(
        "Spill-over to look-alikes",
        f"Mean gain of probability per position, tuned minus base, of the cluster mates of the most raised tokens and of as many "
        f"random tokens (95 % intervals; {n:,} positions).",
        "bar", _lead_bars(mates, gain_V, pool_V, found.pieces), x="token", y="gain", low="low", high="high", series="of",
        x_title="raised token", y_title="mean gain of probability",
    )  # fmt: skip
    return Finding(figures, [_spill_sentence(figures)], notes, [panel])


def _mates_of(leads: Sequence[int], fitted: Clusters, pool_V: NDArray[np.bool_]) -> dict[int, NDArray[np.int64]]:
    """Lead -> its cluster mates within the pool, leads without any left out."""
    mates = {lead: fitted.mates(lead) for lead in leads}
    return {lead: those[pool_V[those]] for lead, those in mates.items() if pool_V[those].any()}


def _tested(
    name: str,
    mates: Mapping[int, NDArray[np.int64]],
    gained: Mapping[str, NDArray[np.float64]],
    pool_V: NDArray[np.bool_],
    fitted: Clusters,
    clustering: Clustering,
) -> dict[str, Figure]:
    """The mean over leads of their mates' mean gain, beside what permuting the gains over the pool gives.

    `random`: any token against any, which is a random cluster of equal size; `matched`: among tokens of like base
    probability. Each with its mean, the middle 95 % and a one-sided p value, for which tokens are exchangeable. `excess`:
    gain above the tokens of like base probability, with an interval over the clusters of the leads.
    """
    leads = np.array(list(mates))
    weight_V = np.zeros(len(pool_V))
    for those in mates.values():
        weight_V[those] += 1 / (len(those) * len(leads))
    pool = np.flatnonzero(pool_V)
    pool = pool[np.argsort(gained["base"][pool], kind="stable")]
    gain_V, expected_V = gained["gain"], np.zeros(len(pool_V))
    figures, group_L = dict[str, Figure](), fitted.label_V[leads]
    own_L = np.array([gain_V[those].mean() for those in mates.values()])
    figures[f"{name}_gain"] = statistics.mean_figure(own_L, group_L, unit="probability")
    for kind, strata in (("random", 1), ("matched", min(STRATA, max(1, len(pool) // 10)))):
        null_S = permuted(weight_V[pool], gain_V[pool], strata, clustering.permutations, clustering.cluster_seed)
        low, high = np.quantile(null_S, [0.025, 0.975])
        p_value = (1 + int((null_S >= own_L.mean() - 1e-15).sum())) / (1 + len(null_S))
        figures[f"{name}_{kind}_gain"] = Figure(
            float(null_S.mean()), "probability", len(null_S), float(low), float(high)
        )
        figures[f"{name}_{kind}_p_value"] = Figure(p_value, "probability", len(null_S))
        for stratum in np.array_split(pool, strata):
            expected_V[stratum] = gain_V[stratum].mean()
    excess_L = [float((gain_V[those] - expected_V[those]).mean()) for those in mates.values()]
    figures[f"{name}_excess_gain"] = statistics.mean_figure(excess_L, group_L, unit="probability")
    return figures


def permuted(
    weight_P: NDArray[np.float64], value_P: NDArray[np.float64], strata: int, permutations: int, seed: int
) -> NDArray[np.float64]:
    """Weighted sums of values permuted within consecutive strata of the pool: [permutations]."""
    generator = np.random.default_rng(seed)
    total_S = np.zeros(permutations)
    for weights, values in zip(np.array_split(weight_P, strata), np.array_split(value_P, strata), strict=True):
        used = weights[weights > 0]
        if len(used):
            total_S += [
                used @ values[generator.choice(len(values), len(used), replace=False)] for _ in range(permutations)
            ]
    return total_S


def _lead_bars(
    mates: Mapping[int, NDArray[np.int64]],
    gain_V: NDArray[np.float64],
    pool_V: NDArray[np.bool_],
    pieces: Sequence[str],
    most: int = 12,
) -> pa.Table:
    generator, pool, rows = np.random.default_rng(0), gain_V[pool_V], []
    for lead, those in list(mates.items())[:most]:
        own = statistics.mean_figure(gain_V[those], unit="probability")
        drawn = pool[generator.integers(0, len(pool), (400, len(those)))].mean(1)
        low, high = np.quantile(drawn, [0.025, 0.975])
        token = _shown(pieces[lead])
        rows.append({"token": token, "gain": float(own.value), "low": own.low, "high": own.high, "of": "cluster mates"})
        rows.append(
            {"token": token, "gain": float(drawn.mean()), "low": float(low), "high": float(high), "of": "random tokens"}
        )
    return pa.Table.from_pylist(rows)


def _spill_sentence(figures: Mapping[str, Figure]) -> str:
    own, random, matched, p_value = (
        float(figures[f"spillover_{name}"].value) for name in ("gain", "random_gain", "matched_gain", "matched_p_value")
    )
    excess, n = figures["spillover_excess_gain"], figures["spillover_gain"].n
    assert excess.low is not None
    sentence = (
        f"The look-alikes of the {n} most raised tokens gained {own:.2g} of probability per position; tokens of like base "
        f"probability gained {matched:.2g} (p = {p_value:.2g}), random tokens {random:.2g}: "
    )
    if p_value > 0.05:
        return sentence + "no sign that tuning lifted look-alikes."
    if excess.low <= 0:
        return sentence + "look-alikes rose in some clusters, not in general (the interval over clusters includes 0)."
    if "spillover_unseen_gain" not in figures:
        return (
            sentence
            + "look-alikes fared better, but the answers contain them all, so they may have been taught directly."
        )
    unseen = float(figures["spillover_unseen_matched_p_value"].value)
    told = "those that no answer contains included" if unseen <= 0.05 else "but not to those that no answer contains"
    return sentence + f"tuning spilled over to look-alikes, {told} (p = {unseen:.2g})."


def ranks(probes: pa.Table) -> Finding:
    """Accuracy of the top tokens and of the middle ranks in and out of their clusters, for every model probed."""
    frame = {
        name: probes[name].to_numpy(zero_copy_only=False)
        for name in ("model", "text", "rank", "place", "reward", "failed", "masked")
    }
    figures, verdict, notes, bars = dict[str, Figure](), list[str](), list[str](), list[dict[str, Any]]()
    for model in dict.fromkeys(frame["model"].tolist()):
        mine = {name: column[frame["model"] == model] for name, column in frame.items()}
        for place in PLACES:
            here = mine["place"] == place
            if not here.any():
                notes.append(f"no probe of {model} lies in the {PLACES[place]}: its figures are left out")
                continue
            label = "top" if place == "top" else f"{place}_cluster"
            accuracy = statistics.mean_figure(mine["reward"][here], mine["text"][here], unit="accuracy")
            figures[f"{label}_accuracy_{model}"] = accuracy
            figures[f"{label}_rank_{model}"] = statistics.mean_figure(
                mine["rank"][here], mine["text"][here], unit="rank"
            )
            bars.append(
                {
                    "place": PLACES[place],
                    "accuracy": accuracy.value,
                    "low": accuracy.low,
                    "high": accuracy.high,
                    "model": model,
                }
            )
        middle = mine["place"] != "top"
        figures[f"in_cluster_share_{model}"] = statistics.mean_figure(
            mine["place"][middle] == "in", mine["text"][middle], unit="share"
        )
        figures[f"probe_failed_share_{model}"] = statistics.mean_figure(mine["failed"], mine["text"], unit="share")
        masked = sum(int(mine["masked"][mine["text"] == text].max()) for text in np.unique(mine["text"]))
        figures[f"probe_masked_tokens_{model}"] = Figure(masked, "tokens", len(np.unique(mine["text"])))
        gap = [np.mean(mine["reward"][(mine["text"] == t) & (mine["place"] == "out")]) - np.mean(mine["reward"][(mine["text"] == t) & (mine["place"] == "in")])
               for t in np.unique(mine["text"]) if {"in", "out"} <= set(mine["place"][mine["text"] == t].tolist())]  # fmt: skip
        if gap:
            figures[f"out_minus_in_accuracy_{model}"] = statistics.mean_figure(gap, unit="accuracy")
            verdict.append(_rank_sentence(model, figures))
    panels = [
        Panel(
            "Are look-alikes of the top tokens right?", "Accuracy of probed first tokens, with 95 % intervals over prompts.",
            "bar", pa.Table.from_pylist(bars), x="place", y="accuracy", low="low", high="high", series="model",
            x_title="where the token ranks", y_title="accuracy",
        ),
        Panel(
            "Accuracy by rank", "Middle-rank tokens in and out of the clusters of the top ones: rank does not explain the gap.",
            "line", _by_rank(frame), x="rank", y="accuracy", low="low", high="high", series="tokens", x_title="rank", y_title="accuracy",
        ),
    ]  # fmt: skip
    return Finding(figures, verdict, notes, panels)


def _by_rank(frame: Mapping[str, NDArray[Any]], bins: int = 6) -> pa.Table:
    middle = frame["place"] != "top"
    edges = np.linspace(frame["rank"][middle].min(), frame["rank"].max() + 1, bins + 1)
    rows = []
    for model in dict.fromkeys(frame["model"].tolist()):
        for place in ("in", "out"):
            for low, high in zip(edges, edges[1:], strict=False):
                here = (
                    (frame["model"] == model)
                    & (frame["place"] == place)
                    & (frame["rank"] >= low)
                    & (frame["rank"] < high)
                )
                if here.any():
                    figure = statistics.mean_figure(
                        frame["reward"][here], frame["text"][here], unit="accuracy", samples=400
                    )
                    label = f"{place} cluster, {model}"
                    rows.append(
                        {
                            "rank": (low + high) / 2,
                            "accuracy": figure.value,
                            "low": figure.low,
                            "high": figure.high,
                            "tokens": label,
                        }
                    )
    return pa.Table.from_pylist(rows)


def _rank_sentence(model: str, figures: Mapping[str, Figure]) -> str:
    inside, outside, gap = (
        figures[f"{name}_accuracy_{model}"] for name in ("in_cluster", "out_cluster", "out_minus_in")
    )
    ranks = [float(figures[f"{name}_cluster_rank_{model}"].value) for name in ("in", "out")]
    assert gap.low is not None and gap.high is not None
    meaning = (
        "the middle ranks are full of look-alikes that are wrong"
        if gap.low > 0
        else "look-alikes are the better guess here"
        if gap.high < 0
        else "no difference is established"
    )
    return (
        f"In the middle ranks of the {model}, tokens that share a cluster with the top ones are right {100 * float(inside.value):.3g} % of "
        f"the time (mean rank {ranks[0]:.0f}), others {100 * float(outside.value):.3g} % (mean rank {ranks[1]:.0f}); the difference is "
        f"{100 * float(gap.value):.2g} points [{100 * gap.low:.2g}, {100 * gap.high:.2g}]: {meaning}."
    )
