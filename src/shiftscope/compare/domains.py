"""Latent classes of several corpora: what they are mixed of, in which proportions, and which part a text belongs to.

Corpora (sources, dates, tenants, models' outputs) that hold the same kinds of text in different proportions give the kinds
away: what is frequent in the same corpora is one class, however unlike it looks. No labels are used.

Source: arXiv 2207.13179. The mathematics is in `core/corpora/latent.py`; texts become vectors in `core/embedding.py`.
Deviation: p(d|x) comes out-of-fold from a logistic regression on words, or on a kernel map of vectors, instead of a network
stopped early; clusters are three per class unless told otherwise; intervals resample texts, given p(d|x). Whether there is
any shift to use is tested first, and classes are left out where there is none.
"""

# N texts, R domains, K classes, M clusters

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from shiftscope.core import embedding, statistics
from shiftscope.core.corpora import latent, matching
from shiftscope.core.corpora.latent import Array, Factorizer, Labels, Mixture, Solver
from shiftscope.core.embedding import Corpus, Embedding
from shiftscope.core.parts import Parts
from shiftscope.core.result import Figure, Panel, Result
from shiftscope.core.settings import unread

SHOWN_TEXTS, SHOWN_CHARACTERS, SHOWN_WORDS = 6, 300, 8
SURE = 2.33  # standard errors above zero at which a shift counts as usable (one-sided 1 %)
NULL_DRAWS, ILL_CONDITIONED = 50, 100.0
MOST_SHARES = 40  # beyond so many, the mixture is in the table's metadata and on the page, not among the figures


@dataclass(frozen=True)
class Latent:
    """How latent classes are found.

    factorizer: nmf (the paper's), or anchor (corners of the hull; exact where each class has texts of its own).
    solver: em, or pinv (the paper's). features: words (tf-idf), or embedding (a sentence encoder); given vectors are used
    as they are. clusters: of p(domain | text); none takes three per class. words: how many different ones are counted.
    folds: of the discriminator. strength: its inverse penalty; none takes 5 for words and 1 for vectors. resamples: for
    the intervals of the mixture. seed: of folds, clusters, starts and resamples.
    """

    factorizer: Factorizer = "nmf"
    solver: Solver = "em"
    features: Literal["words", "embedding"] = "words"
    clusters: int | None = None
    words: int = 6000
    folds: int = 5
    strength: float | None = None
    resamples: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("factorizer", self.factorizer, ("nmf", "anchor")),
            ("solver", self.solver, ("em", "pinv")),
            ("features", self.features, ("words", "embedding")),
        ):
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}: it must be one of {', '.join(allowed)}")
        if (
            self.folds < 2
            or self.resamples < 20
            or self.words < 2
            or self.seed < 0
            or (self.strength is not None and self.strength <= 0)
        ):
            raise ValueError(
                f"folds {self.folds}, resamples {self.resamples}, words {self.words}, seed {self.seed}, strength "
                f"{self.strength}: need at least 2, 20, 2, 0 and a strength above 0"
            )


@dataclass(frozen=True)
class Pool:
    """The texts of all domains in one row order.

    domain_N: number of each row's domain; row_N: its place in its corpus; features: matrix of the discriminator;
    vocabulary: the words of its columns (empty for vectors); usable_N: rows with any feature.
    """

    names: Sequence[str]
    domain_N: Labels
    row_N: Labels
    ids: Sequence[str]
    texts: Sequence[str] | None
    truth: Sequence[str] | None
    features: Any
    vocabulary: Sequence[str]
    usable_N: np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class Found:
    """Classes of the usable rows. low_KR, high_KR: 95 % interval of the mixture over resampled texts."""

    mixture: Mixture
    low_KR: Array
    high_KR: Array
    anywhere_NK: Array
    class_NK: Array
    p_NR: Array
    cluster_N: Labels
    notes: Sequence[str] = field(default_factory=tuple)


def domains(
    corpora: list[str] | Sequence[embedding.Source],
    *,
    classes: int,
    by: str | None = None,
    truth: str | None = None,
    limit: int | None = None,
    finding: Latent = Latent(),
    embeddings: Embedding = Embedding(),
    parts: Parts | None = None,
    advance: embedding.Advance | None = None,
) -> Result:
    """Find the latent classes that shift together over several corpora, each corpus's mix of them, and each text's class.

    corpora: two or more, as jsonl, parquet (texts, or a column `embedding`), txt or npy files; or one file with --by.
    classes: how many latent classes; never more than domains. The page shows what speaks for how many.
    by: the field of a record that names its domain; domains of one name in several files are one.
    truth: the field of a record with its true class, for evaluation alone: the classes are found without it.
    limit: only the first records of each file.
    Returns a Result whose table has one row per text. Without a usable shift its classes are left out, and it says so.
    Raises ValueError, in one sentence, for more classes than domains, for domains of one text, and for malformed corpora.
    """
    read: Sequence[Corpus] = [
        embedding.read(one, _name(one, number), embeddings.field, limit) for number, one in enumerate(corpora)
    ]
    if finding.features == "words":
        unread(embeddings, Embedding(), "--features embedding", but=("field",))
    if finding.features == "embedding" or any(one.rows_ND.shape[1] for one in read):
        unread(finding, Latent(), "--features words, on texts,", "words")
    parts = parts or Parts()
    settings = {
        "corpora": {one.name: dict(one.provenance) for one in read},
        "settings": {"classes": classes, "by": by, "truth": truth, "limit": limit, "finding": asdict(finding)},
        "embedding": asdict(embeddings),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("numpy", "scikit-learn", "shiftscope")},
        },
    }
    parts.settle(settings)
    read = _with_features(read, finding, embeddings, parts, advance)
    notes = [note for one in read for note in one.notes]
    pool = _pool(read, finding, by, truth)
    _check(pool, classes, finding)
    if not pool.usable_N.all():
        notes.append(f"{int((~pool.usable_N).sum())} texts have no feature (no known word, or a zero vector): no class")
    p_NR = _judged(pool, finding)
    gain_N = latent.gains(p_NR, pool.domain_N[pool.usable_N])
    found = _found(pool, p_NR, classes, finding) if _is_usable(gain_N) else None
    return _summarised(pool, gain_N, found, finding, notes, settings)


def _name(source: Any, number: int) -> str:
    return Path(source).stem if isinstance(source, str | Path) else f"domain {number + 1}"


def _with_features(
    read: Sequence[Corpus], finding: Latent, embeddings: Embedding, parts: Parts, advance: embedding.Advance | None
) -> Sequence[Corpus]:
    """The corpora, embedded where that is asked for. Raises ValueError where some are vectors and others texts."""
    if finding.features == "embedding":
        encoder = embedding.opened(read, embeddings)
        return embedding.embedded(read, encoder, embeddings.batch_size, parts=parts, advance=advance)
    if parts.shard[1] > 1:
        raise ValueError(
            "--shard and --ray have nothing to share out with --features words, which is one quick fit: leave them out, or "
            "use them with --features embedding"
        )
    given = [one.name for one in read if one.rows_ND.shape[1]]
    if given and len(given) < len(read):
        raise ValueError(
            f"{given[0]} holds vectors and others hold texts: use --features embedding, or vectors for all"
        )
    return read


def _pool(read: Sequence[Corpus], finding: Latent, by: str | None, truth: str | None) -> Pool:
    names: list[str] = []
    domain, truths = [], []
    for one in read:
        records = one.records or [{}] * len(one.ids)
        for wanted, option in ((by, "by"), (truth, "truth")):
            missing = next((row for row, record in enumerate(records) if wanted and record.get(wanted) is None), None)
            if missing is not None:
                raise ValueError(
                    f"{one.name}, record {missing + 1} has no field {wanted!r}: give --{option} another one"
                )
        named = [one.name if by is None else str(record[by]) for record in records]
        if by is None and one.name in names:
            named = [f"{one.name} ({len(names) + 1})"] * len(named)
        names += [name for name in dict.fromkeys(named) if name not in names]
        domain += [names.index(name) for name in named]
        truths += [str(record[truth]) for record in records] if truth else []
    texts = [text for one in read for text in one.texts or ()]
    whole = texts if len(texts) == len(domain) else None
    features, vocabulary, usable_N = _features(read, whole, finding)
    rows = np.concatenate([np.arange(len(one.ids)) for one in read])
    ids = [identity for one in read for identity in one.ids]
    return Pool(names, np.array(domain), rows, ids, whole, truths or None, features, vocabulary, usable_N)


def _features(
    read: Sequence[Corpus], texts: Sequence[str] | None, finding: Latent
) -> tuple[Any, Sequence[str], np.ndarray[Any, np.dtype[np.bool_]]]:
    """The matrix of the discriminator, its words, and which rows have any feature."""
    widths = {one.rows_ND.shape[1] for one in read}
    if len(widths) > 1:
        raise ValueError(
            f"the corpora's vectors have {', '.join(map(str, sorted(widths)))} dimensions: they must agree"
        )
    if widths == {0}:
        from sklearn.feature_extraction.text import TfidfVectorizer

        model = TfidfVectorizer(max_features=finding.words)
        try:
            found = model.fit_transform(texts or [])
        except ValueError as error:
            raise ValueError("the texts hold no words of two letters or more: use --features embedding") from error
        return found, model.get_feature_names_out().tolist(), np.diff(found.indptr) > 0
    rows_ND = np.concatenate([np.asarray(one.rows_ND, dtype=np.float64) for one in read])
    usable_N = (rows_ND != 0).any(1)
    return rows_ND, (), usable_N


def _check(pool: Pool, classes: int, finding: Latent) -> None:
    """Raises ValueError where classes, domains and texts do not fit."""
    n_domains, clusters = len(pool.names), finding.clusters or 3 * classes
    if n_domains < 2:
        raise ValueError(
            f"there is one domain ({', '.join(pool.names)}): latent classes show in how domains differ; give two or more"
        )
    if not 2 <= classes <= n_domains:
        raise ValueError(
            f"{classes} classes and {n_domains} domains: there must be at least 2 classes and as many domains as classes"
        )
    counts = np.bincount(pool.domain_N[pool.usable_N], minlength=n_domains)
    if counts.min() < finding.folds:
        raise ValueError(
            f"{pool.names[int(counts.argmin())]} has {counts.min()} usable texts: each domain needs at least one for each "
            f"of {finding.folds} folds"
        )
    if not classes <= clusters <= counts.sum():
        raise ValueError(
            f"{clusters} clusters: there must be at least {classes} classes and at most {counts.sum()} texts"
        )
    if pool.truth is not None and len(set(pool.truth)) > classes:
        raise ValueError(f"--truth names {len(set(pool.truth))} classes and --classes is {classes}: they must agree")


def _judged(pool: Pool, finding: Latent) -> Array:
    """p(domain | text) of the usable rows."""
    rows, domain_N = pool.features[pool.usable_N], pool.domain_N[pool.usable_N]
    if not pool.vocabulary:
        rows = latent.kernel_map(rows, seed=finding.seed)
    strength = finding.strength or (5.0 if pool.vocabulary else 1.0)
    return latent.out_of_fold(rows, domain_N, folds=finding.folds, c=strength, seed=finding.seed)


def _is_usable(gain_N: Array) -> bool:
    return float(gain_N.mean()) > SURE * float(gain_N.std(ddof=1)) / np.sqrt(len(gain_N))


def _found(pool: Pool, p_NR: Array, classes: int, finding: Latent) -> Found:
    domain_N, n_domains = pool.domain_N[pool.usable_N], len(pool.names)
    clusters, notes = finding.clusters or 3 * classes, []
    cluster_N, centre_MR = latent.clustered(p_NR, clusters, finding.seed)

    def factorised(share_MR: Array, centres_MR: Array, start: Mixture | None) -> Mixture:
        if finding.factorizer == "anchor":
            return latent.anchor(centres_MR, share_MR, classes)
        return latent.nmf(share_MR, classes, seed=finding.seed, start=start)

    best = factorised(latent.cluster_shares(cluster_N, domain_N, clusters, n_domains), centre_MR, None)
    if not best.converged:
        notes.append("the factorisation stopped at its limit of 2000 iterations: its mixture may still move")
    if best.condition > ILL_CONDITIONED:
        notes.append(
            f"the mixes of the domains are nearly dependent (condition number {best.condition:.3g}): fewer classes, or "
            f"domains that differ more, give surer answers"
        )
    generator, members = np.random.default_rng(finding.seed), [np.flatnonzero(domain_N == d) for d in range(n_domains)]
    drawn_SKR = []
    for _ in range(finding.resamples):
        picked = np.concatenate([generator.choice(inside, len(inside)) for inside in members])
        share_MR = latent.cluster_shares(cluster_N[picked], domain_N[picked], clusters, n_domains)
        size_M = np.bincount(cluster_N[picked], minlength=clusters)
        summed_MR = np.stack([np.bincount(cluster_N[picked], p_NR[picked, d], clusters) for d in range(n_domains)], 1)
        moved_MR = np.divide(summed_MR, size_M[:, None], out=centre_MR.copy(), where=size_M[:, None] > 0)
        again = factorised(share_MR, moved_MR, best)
        drawn_SKR.append(again.mixture_KR[matching.aligned(again.mixture_KR, best.mixture_KR)])
    low_KR, high_KR = np.quantile(drawn_SKR, [0.025, 0.975], axis=0)
    domain_RK = best.domain_given_class_RK
    anywhere_NK = latent.class_given_text(p_NR, domain_RK, finding.solver)
    class_NK = latent.class_in_domain(anywhere_NK, domain_RK, domain_N)
    low_KR, high_KR = np.minimum(low_KR, best.mixture_KR), np.maximum(high_KR, best.mixture_KR)
    return Found(best, low_KR, high_KR, anywhere_NK, class_NK, p_NR, cluster_N, notes)


def _summarised(
    pool: Pool, gain_N: Array, found: Found | None, finding: Latent, notes: Sequence[str], provenance: Mapping[str, Any]
) -> Result:
    low, high = statistics.bootstrap_mean(gain_N, seed=finding.seed)
    gain, n_domains = float(gain_N.mean()), len(pool.names)
    figures = {
        "domain_gain_nats": Figure(gain, "nats", len(gain_N), min(low, gain), max(high, gain)),
        "domain_gain_share": Figure(gain / np.log(n_domains), "share", len(gain_N)),
        "usable_shift": Figure(found is not None, "yes or no", len(gain_N)),
        "domains": Figure(n_domains, "count", len(pool.ids)),
        "texts": Figure(len(pool.ids), "count", len(pool.ids)),
    }
    if found is None:
        said = (
            f"No usable shift: a classifier that has not seen a text predicts which of {n_domains} domains it comes from no "
            f"better than chance (gain {gain:.3g} nats, 95 % interval {low:.2g} to {high:.2g}); classes are left out."
        )
        return Result("compare domains", _table(pool, None), figures, provenance, [said], notes, [])
    classes = len(found.mixture.mixture_KR)
    figures |= _share_figures(pool, found) if classes * n_domains <= MOST_SHARES else {}
    figures["condition"] = Figure(found.mixture.condition, "ratio", n_domains)
    figures["certainty_mean"] = statistics.mean_figure(found.class_NK.max(1), unit="share", seed=finding.seed)
    extra, panel = _class_count(pool, found, finding)
    figures |= extra | _evaluated(pool, found)
    kept = {"domains": pool.names, "mixture": found.mixture.mixture_KR.tolist()}
    kept |= {"low": found.low_KR.tolist(), "high": found.high_KR.tolist()}
    table = _table(pool, found).replace_schema_metadata({b"mixture": json.dumps(kept).encode()})
    panels = [_mixture_panel(pool, found), _classes_panel(pool, found)]
    panels += [] if pool.texts is None else [_texts_panel(pool, found)]
    caveats = [
        "intervals of the mixture resample texts and keep the discriminator and the clusters: the true uncertainty is larger",
        "the classes are numbered without meaning: name them from their texts",
    ]
    return Result(
        "compare domains",
        table,
        figures,
        provenance,
        _verdict(pool, found, figures),
        [*notes, *found.notes, *caveats],
        [*panels, *panel],
    )


def _share_figures(pool: Pool, found: Found) -> dict[str, Figure]:
    """The mixture, named so that a gate can be put on a share."""
    named = [re.sub(r"\W+", "_", name) for name in pool.names]
    named = named if len(set(named)) == len(named) else [f"domain_{d + 1}" for d in range(len(named))]
    figures = {}
    for k, share_R in enumerate(found.mixture.mixture_KR):
        for d, name in enumerate(named):
            n, interval = int((pool.domain_N == d).sum()), (float(found.low_KR[k, d]), float(found.high_KR[k, d]))
            figures[f"share_of_class_{k + 1}_in_{name}"] = Figure(float(share_R[d]), "share", n, *interval)
    return figures


def _table(pool: Pool, found: Found | None) -> pa.Table:
    """One row per text, in the order they were read; probabilities are null for texts without a feature."""
    columns: dict[str, Any] = {
        "domain": [pool.names[d] for d in pool.domain_N],
        "row": pool.row_N,
        "id": list(pool.ids),
    }
    if pool.texts is not None:
        columns["text"] = [_short(text) for text in pool.texts]
    if found is not None:
        blank = np.full(len(pool.ids), np.nan)
        label_N = np.zeros(len(pool.ids), np.int32)
        label_N[pool.usable_N] = found.class_NK.argmax(1) + 1
        columns["class"] = pa.array(label_N, mask=~pool.usable_N)
        for name, values_NK in (("p_class", found.class_NK), ("p_class_anywhere", found.anywhere_NK)):
            for k in range(values_NK.shape[1]):
                column = blank.copy()
                column[pool.usable_N] = values_NK[:, k]
                columns[f"{name}_{k + 1}"] = pa.array(column, mask=~pool.usable_N)
    return pa.table(columns)


def _short(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"


def _class_count(pool: Pool, found: Found, finding: Latent) -> tuple[dict[str, Figure], list[Panel]]:
    """What speaks for how many classes: singular values against chance, and the error on held-out texts."""
    domain_N, shape = pool.domain_N[pool.usable_N], (found.mixture.emission_MK.shape[0], len(pool.names))
    value_S = latent.singular_values(latent.cluster_shares(found.cluster_N, domain_N, *shape))
    null_PS = latent.null_singular_values(found.cluster_N, domain_N, shape, draws=NULL_DRAWS, seed=finding.seed)
    bound_S = np.full(len(value_S), np.quantile(null_PS[:, 0], 0.95))
    beyond = int((value_S > bound_S).sum())
    most = min(shape[1], shape[0], 12)
    error_K = latent.held_out_errors(found.cluster_N, domain_N, shape, most=most, seed=finding.seed)
    figures = {
        "directions_beyond_chance": Figure(beyond, "count", len(domain_N)),
        "classes_of_lowest_held_out_error": Figure(int(np.argmin(error_K)) + 1, "count", len(domain_N)),
    }
    rank = np.tile(np.arange(1, len(value_S) + 1), 2)
    spectrum = pa.table(
        {
            "direction": rank,
            "singular value": np.concatenate([value_S, bound_S]),
            "what": ["these domains"] * len(value_S) + ["largest by chance (95 %)"] * len(value_S),
        }
    )
    errors = pa.table({"classes": np.arange(1, most + 1), "error": error_K})
    return figures, [
        Panel(
            "How many classes: directions",
            "Singular values of p(cluster | domain) around the mean; k classes make k − 1 of them, the rest is chance.",
            "line", spectrum, x="direction", y="singular value", series="what", x_title="direction", y_title="singular value",
        ),
        Panel(
            "How many classes: held-out error",
            "Error of the factorisation on the half of the texts it was not fitted on.",
            "line", errors, x="classes", y="error", x_title="classes", y_title="Frobenius error",
        ),
    ]  # fmt: skip


def _evaluated(pool: Pool, found: Found) -> dict[str, Figure]:
    """Accuracy of the classes and error of the mixture, where the truth is known; the naming is matched once, on texts."""
    if pool.truth is None:
        return {}
    classes = len(found.mixture.mixture_KR)
    names = sorted(set(pool.truth))
    truth_N = np.array([names.index(name) for name in pool.truth])[pool.usable_N]
    accuracy, naming = matching.matched(found.class_NK.argmax(1), truth_N, classes)
    domain_N = pool.domain_N[pool.usable_N]
    true_KR = latent.cluster_shares(truth_N, domain_N, classes, len(pool.names))
    estimate_KR = np.empty_like(true_KR)
    estimate_KR[naming] = found.mixture.mixture_KR
    low, high = statistics.wilson(round(accuracy * len(truth_N)), len(truth_N))
    majority = true_KR.max(0)[domain_N].mean()
    return {
        "accuracy": Figure(accuracy, "share", len(truth_N), low, high),
        "majority_accuracy": Figure(float(majority), "share", len(truth_N)),
        "mixture_error": Figure(float(np.abs(estimate_KR - true_KR).mean()), "share", true_KR.size),
    }


def _mixture_panel(pool: Pool, found: Found) -> Panel:
    rows = [
        {
            "domain": name,
            "class": f"class {k + 1}",
            "share": float(found.mixture.mixture_KR[k, d]),
            "low": float(found.low_KR[k, d]),
            "high": float(found.high_KR[k, d]),
        }
        for d, name in enumerate(pool.names)
        for k in range(len(found.mixture.mixture_KR))
    ]
    return Panel(
        "What each domain is mixed of", "Share of every latent class in every domain, with 95 % intervals.",
        "bar", pa.Table.from_pylist(rows), x="domain", y="share", low="low", high="high", series="class",
        x_title="domain", y_title="share of texts",
    )  # fmt: skip


def _classes_panel(pool: Pool, found: Found) -> Panel:
    rows = []
    label_N, domain_RK = found.class_NK.argmax(1), found.mixture.domain_given_class_RK
    for k in range(domain_RK.shape[1]):
        row = {
            "class": k + 1,
            "texts": int((label_N == k).sum()),
            "mostly in": ", ".join(pool.names[d] for d in np.argsort(-domain_RK[:, k], kind="stable")[:3]),
        }
        if pool.vocabulary:
            row["words"] = ", ".join(_words(pool, found.anywhere_NK[:, k]))
        rows.append(row)
    caption = "Where each class is most at home" + (", and the words that set it apart." if pool.vocabulary else ".")
    return Panel("The classes", caption, "table", pa.Table.from_pylist(rows))


def _words(pool: Pool, weight_N: Array) -> list[str]:
    """The words whose mean tf-idf in a class is farthest above that in the other texts."""
    rows = pool.features[pool.usable_N]
    inside = rows.T @ (weight_N / weight_N.sum())
    outside = rows.T @ ((1 - weight_N) / max(1e-12, float((1 - weight_N).sum())))
    return [pool.vocabulary[i] for i in np.argsort(-(inside - outside), kind="stable")[:SHOWN_WORDS]]


def _texts_panel(pool: Pool, found: Found) -> Panel:
    """Of every class the surest texts; among equally sure ones those whose domains are nearest to the class's own."""
    where = np.flatnonzero(pool.usable_N)
    domain_RK, rows = found.mixture.domain_given_class_RK, []
    for k in range(domain_RK.shape[1]):
        gap_N = np.abs(found.p_NR - domain_RK[:, k]).sum(1)
        for place in np.lexsort((gap_N, -found.anywhere_NK[:, k].round(3)))[:SHOWN_TEXTS]:
            row = int(where[place])
            rows.append(
                {
                    "class": k + 1,
                    "p(class)": float(found.anywhere_NK[place, k]),
                    "domain": pool.names[pool.domain_N[row]],
                    "id": pool.ids[row],
                    "text": _short((pool.texts or ())[row]),
                }
            )
    caption = "The texts that belong to each class most surely, whichever domain they come from."
    return Panel("Top texts of every class", caption, "table", pa.Table.from_pylist(rows))


def _verdict(pool: Pool, found: Found, figures: Mapping[str, Figure]) -> list[str]:
    mixture_KR = found.mixture.mixture_KR
    classes, gain = len(mixture_KR), figures["domain_gain_nats"]
    spread_K = mixture_KR.max(1) - mixture_KR.min(1)
    k = int(np.argmax(spread_K))
    high, low = int(np.argmax(mixture_KR[k])), int(np.argmin(mixture_KR[k]))
    sentences = [
        f"{classes} classes explain how {len(pool.names)} domains differ; class {k + 1} shifts most: "
        f"{100 * mixture_KR[k, high]:.0f} % of {pool.names[high]} and {100 * mixture_KR[k, low]:.0f} % of {pool.names[low]}.",
        f"The shift is usable: the domain of an unseen text is predicted {float(gain.value):.2g} nats better than chance "
        f"(95 % interval {gain.low:.2g} to {gain.high:.2g}; {np.log(len(pool.names)):.2g} would be certainty).",
    ]
    beyond = int(figures["directions_beyond_chance"].value)
    if beyond + 1 < classes:
        sentences.append(
            f"Only {beyond} directions of difference are beyond chance, which speaks for {beyond + 1} classes, not {classes}."
        )
    if "accuracy" in figures:
        accuracy, majority = figures["accuracy"], figures["majority_accuracy"]
        sentences.append(
            f"Against the given truth: accuracy {100 * float(accuracy.value):.1f} % (each domain's largest class alone: "
            f"{100 * float(majority.value):.1f} %), mean error of the mixture {float(figures['mixture_error'].value):.3f}."
        )
    return sentences
