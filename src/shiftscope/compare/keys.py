"""Vocabulary keys: which tokens' unembedding rows are alike, and what rides along when a model is sure of one of them.

The next-token law is softmax(q·K). Rows of K that are alike rise together: behind a few right tokens, the middle ranks
fill with their look-alikes, and tuning that teaches one token lifts its neighbours. Three answers: the clusters of K;
accuracy of middle-rank tokens in the clusters of the top tokens against that of the others (with a verifier); how much
of the gain of the most raised tokens spilled over to their cluster mates (between base and tuned).

Source: arXiv 2410.02284 (clusters and probe as in the authors' experiments; spill-over after its section on training
risk). The cure, navigation, is `generate navigate`.
Deviation: both models are probed, in the clusters of the base's keys, and intervals resample prompts. Spill-over is
judged among tokens of like base probability, beside random clusters of equal size (see `core/keys/gains.py`), and measured
again on the mates that no answer contains, since the others may have been taught directly.
"""

# V vocabulary, K clusters, L leading tokens (the most raised)

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from shiftscope.core import answers, corpus, paired, statistics
from shiftscope.core.answers import Compiling, Texts
from shiftscope.core.checkpoints import Checkpoint, opened
from shiftscope.core.corpus import Template
from shiftscope.core.decode import Sampling
from shiftscope.core.head import evaluating
from shiftscope.core.keys import clusters, gains, probing
from shiftscope.core.keys.clusters import Clusters, Metric
from shiftscope.core.keys.gains import Gains
from shiftscope.core.keys.probing import Probing
from shiftscope.core.parts import Parts
from shiftscope.core.result import Figure, Panel, Result
from shiftscope.core.settings import refuse, unread
from shiftscope.core.verifiers import Verifier

PLACES = {"top": "top ranks", "in": "their look-alikes", "out": "other tokens"}
FIGURE_OF = {"top": "top", "in": "in_cluster", "out": "out_cluster"}
SHOWN_CLUSTERS, SHOWN_EXAMPLES, SHOWN_GAINERS = 40, 12, 12


@dataclass(frozen=True)
class Clustering:
    """How keys are clustered.

    n_clusters: None takes about a hundredth of the rows. metric: cosine normalises the rows. cluster_seed: of k-means;
    the next seed measures stability. gainers: how many of the most raised tokens spill-over is measured on.
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
    sampling: Sampling = Sampling(),
    loading: Compiling = Compiling(),
    clustering: Clustering = Clustering(),
    probes: Probing = Probing(),
    parts: Parts | None = None,
    advance: answers.Advance | None = None,
) -> Result:
    """Cluster a checkpoint's unembedding rows; probe its middle ranks; measure spill-over between two checkpoints.

    base: the checkpoint whose keys are clustered (path, hub id, zoo name, or a loaded Checkpoint).
    tuned: the checkpoint after; with it, spill-over to cluster mates is measured on its answers.
    texts: jsonl, parquet or txt with a prompt, optionally an answer (for spill-over) and a reference (for the verifier)
        per record; without texts, the prompts that ship with the checkpoint.
    limit: only the first records.
    verifier: module:function, regex:PATTERN or exact; with it, the ranks of the law after each prompt are probed.
    template: how the prompt is rendered: plain, chat (the tokenizer's template) or frame (zero-shot frame).
    Returns a Result whose table has one row per cluster.
    Raises ValueError, in one sentence, for differing vocabularies, malformed texts, more clusters than rows, NaN
    logits.
    """
    if tuned is None:
        unread(sampling, Sampling(), "a TUNED checkpoint")
        unread(loading, Compiling(), "a TUNED checkpoint", "batch_size", "compile")
        unread(clustering, Clustering(), "a TUNED checkpoint", "gainers", "permutations")
    if verifier is None:
        unread(probes, Probing(), "--verifier")
    if tuned is None and verifier is None:
        refuse(
            "a TUNED checkpoint or --verifier", texts=(texts, None), limit=(limit, None), template=(template, "plain")
        )
    first = opened(base, dtype=loading.dtype, device=loading.device)
    second = None if tuned is None else answers.pair(first, tuned, loading)[1]
    read = answers.corpus_of(texts, second or first, limit) if second or verifier else []
    if second:
        answers.check_sampling(read, sampling)
    parts = parts or Parts()
    settings = answers.provenance(
        first, second, texts=texts, limit=limit, verifier=probing.named(verifier), template=template,
        sampling=asdict(sampling), loading=asdict(loading), clustering=asdict(clustering), probes=asdict(probes),
    )  # fmt: skip
    parts.settle(settings)
    found, notes = described(first, second, clustering), list[str]()
    gained, probed = None, None
    if second:
        ready = answers.prepare(
            first, second, read, template=template, sampling=sampling, batch_size=loading.batch_size, parts=parts,
            advance=advance,
        )  # fmt: skip
        gained = paired.run(
            paired.Scorer(first, second, compiled=loading.compile), ready.paired, {"keys": gains.measure()},
            batch_size=loading.batch_size, parts=parts,
            advance=None if advance is None else lambda done, total: advance("comparing", done, total),
        )["keys"]  # fmt: skip
        notes += [*ready.notes, *answers.compile_notes(loading, first)]
    if verifier:
        sides = {"base": first} | ({"tuned": second} if second else {})
        probed = probing.probe(
            sides, read, verifier, found.clusters, probes, template=template, parts=parts, advance=advance
        )
    return summarise(found, gained, probed, clustering=clustering, notes=notes, provenance=settings)


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


def summarise(
    found: Keys,
    gained: pa.Table | None = None,
    probed: pa.Table | None = None,
    *,
    clustering: Clustering = Clustering(),
    notes: Sequence[str] = (),
    provenance: Mapping[str, Any] | None = None,
) -> Result:
    """Figures, panels and verdict from the clusters, the rows of `gains.measure` and the rows of `probing.probe`.

    gained, probed: None where there was no tuned checkpoint, no verifier; their figures are then absent, with a note.
    """
    table, first = _cluster_table(found), _clusters(found)
    if gained is None:
        spilled = Finding(notes=["no tuned checkpoint was given: figures about spill-over are left out"])
    else:
        gathered = gains.gathered(gained, len(found.pieces))
        table = table.append_column("gain", pa.array(_cluster_means(gathered.gain_V, found.clusters)))
        spilled = spill_over(found, gathered, clustering)
    if probed is None:
        ranked = Finding(notes=["no verifier was given: in-cluster and out-of-cluster accuracy are left out"])
    else:
        ranked = ranks(probed)
    by = "size" if gained is None else "gain"
    shown = table.sort_by([(by, "descending")]).slice(0, SHOWN_CLUSTERS)
    caption = f"Tokens whose unembedding rows are alike, those nearest to the centre first; sorted by {by}."
    findings = (ranked, spilled, first)
    return Result(
        "compare keys",
        table,
        {name: figure for finding in findings for name, figure in finding.figures.items()},
        provenance or {},
        [sentence for finding in findings for sentence in finding.verdict],
        [*notes, *(note for finding in findings for note in finding.notes)],
        [*ranked.panels, *spilled.panels, Panel("Key clusters", caption, "table", shown)],
    )


@dataclass(frozen=True)
class Finding:
    """What one part of the report adds."""

    figures: Mapping[str, Figure] = field(default_factory=dict)
    verdict: Sequence[str] = ()
    notes: Sequence[str] = ()
    panels: Sequence[Panel] = ()


def _clusters(found: Keys) -> Finding:
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
        f"{rows:,} keys fall into {fitted.n_clusters} clusters of {int(sizes.min())} to {int(sizes.max())} tokens; the "
        f"partition is {stable} (ARI {fitted.seed_ari:.2f} between two seeds) and leaves "
        f"{100 * fitted.unexplained_share:.0f} % of the keys' variance inside the clusters."
    ]
    notes = []
    if fitted.nameless or fitted.coinciding:
        notes.append(
            f"{fitted.nameless} rows without a token and {fitted.coinciding} rows that coincide with another (never "
            f"trained apart) are in no cluster"
        )
    if found.drift is not None and found.drift > 0.1:
        notes.append(
            f"tuning moved the keys themselves by {100 * found.drift:.0f} % of their spread: clusters are those of the "
            f"base"
        )
    if found.tied:
        notes.append("the keys are tied to the input embeddings: clusters are those of both")
    if found.broken_by:
        notes.append(
            f"the head has {' and '.join(found.broken_by)}: {100 * found.residual:.2g} % of the logits' spread is not "
            f"the plain dot product of state and key"
        )
    return Finding(figures, verdict, notes)


def _cluster_table(found: Keys) -> pa.Table:
    fitted = found.clusters
    order = np.lexsort((fitted.distance_V, fitted.label_V))
    order = order[fitted.label_V[order] >= 0]
    groups = np.split(order, np.cumsum(fitted.sizes_K)[:-1])
    return pa.table(
        {
            "cluster": np.arange(fitted.n_clusters, dtype=np.int32),
            "size": fitted.sizes_K.astype(np.int32),
            "spread": _cluster_means(fitted.distance_V, fitted),
            "examples": [" ".join(_shown(found.pieces[t]) for t in group[:SHOWN_EXAMPLES]) for group in groups],
        }
    )


def _cluster_means(value_V: NDArray[Any], fitted: Clusters) -> NDArray[np.float64]:
    kept = fitted.label_V >= 0
    return np.bincount(fitted.label_V[kept], value_V[kept], fitted.n_clusters) / np.maximum(fitted.sizes_K, 1)


def _shown(piece: str) -> str:
    """A token's text with what is invisible made visible."""
    return piece.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣") or "∅"


def spill_over(found: Keys, gathered: Gains, clustering: Clustering) -> Finding:
    """Mean gain of the cluster mates of the most raised tokens, against tokens of like probability and random ones."""
    fitted, gain_V = found.clusters, gathered.gain_V
    leads = gains.most_raised(gathered, fitted, clustering.gainers)
    pool_V = fitted.label_V >= 0
    pool_V[leads] = False
    mates = gains.mates_within(leads, fitted, pool_V)
    if not mates:
        what = "no raised token has a cluster mate that is not raised itself" if leads else "no token was raised"
        return Finding(notes=[f"{what}: figures about spill-over are left out"])
    raised, notes = np.array(list(mates)), list[str]()
    figures = {"gainers_gain": statistics.mean_figure(gain_V[raised], fitted.label_V[raised], unit="probability")}
    settings = {"permutations": clustering.permutations, "seed": clustering.cluster_seed}
    figures |= gains.spill_figures("spillover", mates, gathered, pool_V, fitted, **settings)
    unseen_V = pool_V & (gathered.emitted_V == 0)
    if unseen := gains.mates_within(leads, fitted, unseen_V):
        figures |= gains.spill_figures("spillover_unseen", unseen, gathered, unseen_V, fitted, **settings)
    else:
        notes.append("every mate of a raised token occurs in the answers: spill-over to unseen mates is left out")
    panel = Panel(
        "Spill-over to look-alikes",
        f"Mean gain of probability per position, tuned minus base, of the cluster mates of the most raised tokens and "
        f"of as many random tokens (95 % intervals; {gathered.positions:,} positions).",
        "bar", _lead_bars(mates, gain_V, pool_V, found.pieces), x="token", y="gain", low="low", high="high",
        series="of", x_title="raised token", y_title="mean gain of probability",
    )  # fmt: skip
    return Finding(figures, [_spill_sentence(figures)], notes, [panel])


def _lead_bars(
    mates: Mapping[int, NDArray[np.int64]],
    gain_V: NDArray[np.float64],
    pool_V: NDArray[np.bool_],
    pieces: Sequence[str],
) -> pa.Table:
    generator, pool, rows = np.random.default_rng(0), gain_V[pool_V], []
    for lead, those in list(mates.items())[:SHOWN_GAINERS]:
        own = statistics.mean_figure(gain_V[those], unit="probability")
        drawn = pool[generator.integers(0, len(pool), (400, len(those)))].mean(1)
        low, high = np.quantile(drawn, [0.025, 0.975])
        for series, bar in (
            ("cluster mates", (own.value, own.low, own.high)),
            ("random tokens", (drawn.mean(), low, high)),
        ):
            rows.append({"token": _shown(pieces[lead]), "of": series} | _bar("gain", *bar))
    return pa.Table.from_pylist(rows)


def _bar(name: str, value: Any, low: Any, high: Any) -> dict[str, float]:
    return {name: float(value), "low": float(low), "high": float(high)}


def _spill_sentence(figures: Mapping[str, Figure]) -> str:
    own, random, matched, p_value = (
        float(figures[f"spillover_{name}"].value) for name in ("gain", "random_gain", "matched_gain", "matched_p_value")
    )
    excess, n = figures["spillover_excess_gain"], figures["spillover_gain"].n
    assert excess.low is not None
    sentence = (
        f"The look-alikes of the {n} most raised tokens gained {own:.2g} of probability per position; tokens of like "
        f"base probability gained {matched:.2g} (p = {p_value:.2g}), random tokens {random:.2g}: "
    )
    if p_value > 0.05:
        return sentence + "no sign that tuning lifted look-alikes."
    if excess.low <= 0:
        return sentence + "look-alikes rose in some clusters, not in general (the interval over clusters includes 0)."
    if "spillover_unseen_gain" not in figures:
        return sentence + "look-alikes rose, but the answers contain them all: they may have been taught directly."
    unseen = float(figures["spillover_unseen_matched_p_value"].value)
    told = "those that no answer contains included" if unseen <= 0.05 else "but not to those that no answer contains"
    return sentence + f"tuning spilled over to look-alikes, {told} (p = {unseen:.2g})."


def ranks(probed: pa.Table) -> Finding:
    """Accuracy of the top tokens and of the middle ranks in and out of their clusters, for every model probed."""
    names = ("model", "text", "rank", "place", "reward", "failed", "masked")
    frame = {name: probed[name].to_numpy(zero_copy_only=False) for name in names}
    figures, verdict, notes, bars = dict[str, Figure](), list[str](), list[str](), list[dict[str, Any]]()
    for model in dict.fromkeys(frame["model"].tolist()):
        mine = {name: column[frame["model"] == model] for name, column in frame.items()}
        for place, label in FIGURE_OF.items():
            here = mine["place"] == place
            if not here.any():
                notes.append(f"no probe of the {model} is among the {PLACES[place]}: its figures are left out")
                continue
            right, rank, text = (mine[name][here] for name in ("reward", "rank", "text"))
            accuracy = statistics.mean_figure(right, text, unit="accuracy")
            figures[f"{label}_accuracy_{model}"] = accuracy
            figures[f"{label}_rank_{model}"] = statistics.mean_figure(rank, text, unit="rank")
            bar = _bar("accuracy", accuracy.value, accuracy.low, accuracy.high)
            bars.append({"place": PLACES[place], "model": model} | bar)
        middle, texts = mine["place"] != "top", np.unique(mine["text"])
        if middle.any():
            inside = mine["place"][middle] == "in"
            figures[f"in_cluster_share_{model}"] = statistics.mean_figure(inside, mine["text"][middle], unit="share")
        failed = statistics.mean_figure(mine["failed"], mine["text"], unit="share")
        figures[f"probe_failed_share_{model}"] = failed
        masked = sum(int(mine["masked"][mine["text"] == text].max()) for text in texts)
        figures[f"probe_masked_tokens_{model}"] = Figure(masked, "tokens", len(texts))
        if gaps := _gaps(mine):
            figures[f"out_minus_in_accuracy_{model}"] = statistics.mean_figure(gaps, unit="accuracy")
            verdict.append(_rank_sentence(model, figures))
    panels = [
        Panel(
            "Are look-alikes of the top tokens right?",
            "Accuracy of the first tokens probed: the top ranks, and in the middle ranks those that share a cluster "
            "with them and the others. 95 % intervals over prompts.",
            "bar", pa.Table.from_pylist(bars), x="place", y="accuracy", low="low", high="high", series="model",
            x_title="where the token ranks", y_title="accuracy",
        ),
        *_by_rank(frame),
    ]  # fmt: skip
    return Finding(figures, verdict, notes, panels)


def _gaps(mine: Mapping[str, NDArray[Any]]) -> list[float]:
    """Accuracy out of the clusters minus in them, for every prompt that has both."""
    found = []
    for text in np.unique(mine["text"]):
        inside, outside = (mine["reward"][(mine["text"] == text) & (mine["place"] == place)] for place in ("in", "out"))
        if len(inside) and len(outside):
            found.append(float(outside.mean() - inside.mean()))
    return found


def _by_rank(frame: Mapping[str, NDArray[Any]], bins: int = 6) -> list[Panel]:
    rank, rows = frame["rank"], []
    if not (frame["place"] != "top").any():
        return []
    edges = np.linspace(rank[frame["place"] != "top"].min(), rank.max() + 1, bins + 1)
    for model in dict.fromkeys(frame["model"].tolist()):
        for place in ("in", "out"):
            mine = (frame["model"] == model) & (frame["place"] == place)
            for low, high in pairwise(edges):
                here = mine & (rank >= low) & (rank < high)
                if here.any():
                    found = statistics.mean_figure(frame["reward"][here], frame["text"][here], unit="", samples=400)
                    bar = _bar("accuracy", found.value, found.low, found.high)
                    rows.append({"rank": (low + high) / 2, "tokens": f"{place} cluster, {model}"} | bar)
    return [
        Panel(
            "Accuracy by rank", "Middle-rank tokens in and out of the clusters of the top ones, at like rank.",
            "line", pa.Table.from_pylist(rows), x="rank", y="accuracy", low="low", high="high", series="tokens",
            x_title="rank", y_title="accuracy",
        )
    ]  # fmt: skip


def _rank_sentence(model: str, figures: Mapping[str, Figure]) -> str:
    inside, outside, gap = (
        figures[f"{name}_accuracy_{model}"] for name in ("in_cluster", "out_cluster", "out_minus_in")
    )
    rank_in, rank_out = (float(figures[f"{name}_cluster_rank_{model}"].value) for name in ("in", "out"))
    low, high = float(gap.low or 0), float(gap.high or 0)
    meaning = "no difference is established"
    if low > 0:
        meaning = "the middle ranks are full of look-alikes that are wrong"
    elif high < 0:
        meaning = "look-alikes are the better guess here"
    return (
        f"In the middle ranks of the {model}, tokens that share a cluster with the top ones are right "
        f"{100 * float(inside.value):.3g} % of the time (mean rank {rank_in:.0f}), others "
        f"{100 * float(outside.value):.3g} % (mean rank {rank_out:.0f}); the difference is "
        f"{100 * float(gap.value):.2g} points [{100 * low:.2g}, {100 * high:.2g}]: {meaning}."
    )
